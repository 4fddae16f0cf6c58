"""The temperature that a model is calibrated at."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset

from longshort.evaluation import perplexity, protocols, temperature
from tests.support.perplexity import BOS, PREFIX, TOKENIZER, VOCABULARY, FromStates, by_key, data_folder, llama


def test_a_markov_source_has_its_entropy_rate_and_scaled_logits_their_temperature(tmp_path: Path) -> None:
    """A model that knows the source is calibrated; one whose logits are doubled is so at temperature 2."""
    states, tokens = 5, 20_000
    random = np.random.default_rng(3)
    transition = random.dirichlet(np.ones(states), size=states)
    eigenvalues, vectors = np.linalg.eig(transition.T)
    stationary = np.real(vectors[:, np.argmax(eigenvalues.real)])
    stationary /= stationary.sum()
    rate = -(stationary[:, None] * transition * np.log(transition)).sum()
    for split in ("test", "validation"):
        text = [0]
        for uniform in random.random(tokens - 1):
            text.append(int(np.searchsorted(transition[text[-1]].cumsum(), uniform).clip(0, states - 1)))
        Dataset.from_dict({"name": [split], "text": [""], "input_ids": [text]}).save_to_disk(str(tmp_path / split))
    table = torch.from_numpy(np.log(transition))
    settings = {"lengths": [tokens], "documents": 1, "protocol": {"kind": "block", "tokens": None}}
    settings["temperature_documents"] = 4
    for scale in (1.0, 2.0):
        model = FromStates(lambda position, token, scale=scale: scale * table[token])
        values = by_key(perplexity.evaluate(model, TOKENIZER, settings, tmp_path, 16).rows)
        assert values["temperature", tokens, None] == pytest.approx(scale, rel=0.05)
        assert values["temperature", None, None] == pytest.approx(values["temperature", tokens, None], rel=1e-5)
        assert math.log(values["perplexity_length_t", tokens, None]) == pytest.approx(rate, abs=0.02)
        if scale == 1.0:
            assert math.log(values["perplexity", tokens, None]) == pytest.approx(rate, abs=0.02)
            assert values["ece", tokens, None] < 0.02
        else:
            assert math.log(values["perplexity", tokens, None]) > rate + 0.1
            assert values["ece", tokens, None] > 0.1
        right = (transition.max(1) * stationary).sum()
        assert values["accuracy", tokens, None] == pytest.approx(right, abs=0.02)


def test_the_temperature_is_the_best_one(tmp_path: Path) -> None:
    """Against a search over many temperatures, on the validation documents themselves."""
    data = data_folder(tmp_path, [64, 64, 64], split="validation")
    data_folder(tmp_path, [64, 64])
    settings = {"lengths": [24, 64], "documents": 2, "protocol": PREFIX, "temperature_documents": 3}
    values = by_key(perplexity.evaluate(llama(), TOKENIZER, settings, data, 16).rows)
    ids = [row["input_ids"] for row in Dataset.load_from_disk(str(data / "validation"))]
    with torch.no_grad():
        of_texts = [llama()(torch.tensor([[BOS, *tokens[:63]]])).logits[0].double() for tokens in ids]

    def best(lengths: list[int]) -> float:
        low, high = 0.05, 20.0
        for _ in range(2):  # between the neighbours of the best of 81, 81 again
            candidates = np.geomspace(low, high, 81)
            losses = [nll(candidate, lengths) for candidate in candidates]
            place = int(np.argmin(losses))
            low, high = candidates[max(place - 1, 0)], candidates[min(place + 1, 80)]
        return float(candidates[place])

    def nll(temperature: float, lengths: list[int]) -> float:
        total = 0.0
        for logits, tokens in zip(of_texts, ids, strict=True):
            for length in lengths:
                scaled = (logits[:length] / temperature).log_softmax(-1)
                total -= scaled[torch.arange(length), torch.tensor(tokens[:length])].sum().item()
        return total

    assert values["temperature", 24, None] == pytest.approx(best([24]), rel=2e-3)
    assert values["temperature", None, None] == pytest.approx(best([24, 64]), rel=2e-3)


@pytest.mark.parametrize(
    ("chosen", "documents"),
    [
        ({"kind": "prefix"}, 40),
        ({"kind": "block", "tokens": 520}, 8),
        ({"kind": "sliding", "stride": 16, "tokens": 520}, 8),
        ({"kind": "same-targets", "targets": 60}, 8),
    ],
    ids=lambda value: value["kind"] if isinstance(value, dict) else None,
)
def test_the_temperature_is_fitted_on_an_even_sample_of_what_is_scored(
    chosen: dict, documents: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each token knows its place: over documents, the mean place of those taken is that of those scored."""
    monkeypatch.setattr(temperature, "FITTED_TOKENS", 400)
    data_folder(data_folder(tmp_path, [520]), [520] * documents, split="validation")
    taken: list[torch.Tensor] = []

    def fit(head: Any, states: list[tuple[torch.Tensor, torch.Tensor]], *_: Any) -> float:
        taken.append(torch.cat([some[:, 0] for some, _ in states]).double())
        return 1.0

    monkeypatch.setattr(temperature, "fit_temperature", fit)
    settings = {"lengths": [64], "documents": 1, "protocol": chosen, "temperature_documents": documents}
    model = FromStates(lambda position, token: torch.zeros(*position.shape, VOCABULARY))
    perplexity.evaluate(model, TOKENIZER, settings, tmp_path, 16)
    ids = np.zeros(520 if chosen["kind"] != "prefix" else 64, dtype=np.int64)
    scored = torch.cat(
        [
            torch.arange(some.targets.shape[1] - some.last, some.targets.shape[1]).repeat(len(some.targets))
            for some in protocols.windows(chosen, ids, 64, 64, 0, BOS)
        ]
    ).double()
    count = documents * max(32, 400 // documents)
    assert len(taken[0]) == count
    error = float(scored.std()) / math.sqrt(count)
    assert float(taken[0].mean()) == pytest.approx(float(scored.mean()), abs=4 * error)


@pytest.mark.parametrize(("true", "found"), [(0.02, 0.05), (1.0, 1.0), (15.0, 15.0), (30.0, 20.0)])
def test_the_temperature_keeps_to_its_range(true: float, found: float) -> None:
    """Logits of 0 and 1 for a token that comes with the probability that they have at the true temperature."""
    p = 1 / (1 + math.exp(-1 / true))
    comes = round(1000 * p) if true > 0.1 else 1000
    states = torch.zeros(1000, 1)
    came = torch.tensor([1] * comes + [0] * (1000 - comes))
    head = lambda some: torch.tensor([[0.0, 1.0]]).expand(len(some), 2).double()  # noqa: E731
    assert temperature.fit_temperature(head, [(states, came)], 100) == pytest.approx(found, rel=0.05)
    assert temperature.fit_temperature(lambda some: 0 * head(some), [(states, came)], 100) == 1.0
