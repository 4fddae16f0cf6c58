"""The temperature that a model is calibrated at."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset

from longshort.evaluation import protocols, temperature
from longshort.identity.spec import restored
from longshort.metrics.settings import Perplexity
from tests.support.perplexity import (
    BOS,
    PREFIX,
    TOKENIZER,
    VOCABULARY,
    FromStates,
    by_key,
    data_folder,
    evaluate,
    llama,
    protocol,
)


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
        values = by_key(evaluate(model, TOKENIZER, settings, tmp_path).rows)
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
    values = by_key(evaluate(llama(), TOKENIZER, settings, data).rows)
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

    def fit(head: Any, samples: list[temperature.Sample], size: int) -> list[float]:
        taken.append(torch.cat([some.states[some.counts[1] > 0][:, 0] for some in samples]).double())
        return [1.0, 1.0]

    monkeypatch.setattr(temperature, "fit_temperatures", fit)
    settings = {"lengths": [64], "documents": 1, "protocol": chosen, "temperature_documents": documents}
    model = FromStates(lambda position, token: torch.zeros(*position.shape, VOCABULARY))
    evaluate(model, TOKENIZER, settings, tmp_path)
    ids = np.zeros(520 if chosen["kind"] != "prefix" else 64, dtype=np.int64)
    scored = torch.cat(
        [
            torch.arange(some.targets.shape[1] - some.last, some.targets.shape[1]).repeat(len(some.targets))
            for some in protocols.readings(restored(Perplexity, settings).protocol, ids, 64, 64, 0, BOS)
        ]
    ).double()
    count = documents * max(32, 400 // documents)
    assert len(taken[0]) == count
    error = float(scored.std()) / math.sqrt(count)
    assert float(taken[0].mean()) == pytest.approx(float(scored.mean()), abs=4 * error)


def test_the_checkpoints_temperature_weighs_lengths_as_all_their_tokens_would(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that is calibrated at first and three times too sure after 16 tokens.

    Its checkpoint's temperature lies between those of the lengths, as near to the long one's as its tokens are many.
    """
    data = data_folder(tmp_path, [256])
    random = np.random.default_rng(5)
    repeats = [np.cumsum(random.random(256) > 0.8).tolist() for _ in range(16)]
    texts = [[token % BOS for token in text] for text in repeats]
    Dataset.from_dict({"name": list("abcdefghijklmnop"), "text": [""] * 16, "input_ids": texts}).save_to_disk(
        str(data / "validation")
    )

    def logits(position: torch.Tensor, token: torch.Tensor) -> torch.Tensor:
        same = torch.nn.functional.one_hot(token % BOS, VOCABULARY).double() * math.log(0.8)
        other = torch.nn.functional.one_hot((token + 1) % BOS, VOCABULARY).double() * math.log(0.2)
        return torch.where(position < 16, 1.0, 3.0)[..., None] * torch.where(same + other == 0, -50.0, same + other)

    settings = {"lengths": [16, 256], "documents": 1, "protocol": PREFIX, "temperature_documents": 16}

    def fitted() -> tuple[float, str]:
        values = by_key(evaluate(FromStates(logits), TOKENIZER, settings, data).rows)
        short, long, of_both = (values["temperature", length, None] for length in (16, 256, None))
        return (long - of_both) / (long - short), protocol(settings)

    of_all, named = fitted()
    assert named.endswith("temperature-tokens=32768")
    monkeypatch.setattr(temperature, "FORMERLY_FITTED", 16 * 63)
    monkeypatch.setattr(temperature, "FITTED_TOKENS", 16 * 64)
    of_sample, named = fitted()
    assert named.endswith("temperature-tokens=1024&temperature-lengths=as-scored")
    # Each at the weight that it has in the sample: four times as far from the long one's.
    assert of_sample == pytest.approx(of_all, rel=0.1)


@pytest.mark.parametrize(
    ("documents", "named"),
    [(16, "temperature-tokens=32768"), (17, "temperature-tokens=65536&temperature-lengths=as-scored")],
)
def test_where_all_tokens_were_always_fitted_the_protocol_keeps_its_name(documents: int, named: str) -> None:
    settings = {"lengths": [512, 2048], "documents": 1, "protocol": PREFIX, "temperature_documents": documents}
    assert protocol(settings).endswith(f"temperature-docs={documents}&{named}")


@pytest.mark.parametrize(("true", "found"), [(0.02, 0.05), (1.0, 1.0), (15.0, 15.0), (30.0, 20.0)])
def test_the_temperature_keeps_to_its_range(true: float, found: float) -> None:
    """Logits of 0 and 1 for a token that comes with the probability that they have at the true temperature."""
    p = 1 / (1 + math.exp(-1 / true))
    comes = round(1000 * p) if true > 0.1 else 1000
    came = torch.tensor([1] * comes + [0] * (1000 - comes))
    sample = temperature.Sample(torch.zeros(1000, 1), came, torch.ones(1, 1000))
    head = lambda some: torch.tensor([[0.0, 1.0]]).repeat(len(some), 1).double()  # noqa: E731
    assert temperature.fit_temperatures(head, [sample], 100) == [pytest.approx(found, rel=0.05)]
    assert temperature.fit_temperatures(lambda some: 0 * head(some), [sample], 100) == [1.0]
    (unknown,) = temperature.fit_temperatures(lambda some: math.nan * head(some), [sample], 100)
    assert math.isnan(unknown)


def sharp(seed: int, tokens: int, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [tokens, 40] and what comes by them; as read they are `scale` times as large."""
    random = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(tokens, 40, generator=random, dtype=torch.float64)
    came = torch.multinomial(logits.softmax(-1), 1, generator=random)[:, 0]
    return scale * logits, came


def test_derivatives_are_those_of_autograd() -> None:
    """Of two temperatures that share a factor, and of one with another, with tokens that count differently."""
    logits, came = sharp(0, 300, 1.3)
    counts = torch.stack([torch.ones(300), torch.arange(300) % 3, (torch.arange(300) < 100).float()])
    groups = [(0.8, [0, 1]), (1.4, [2])]
    sample = temperature.Sample(logits, came, counts)
    found = torch.cat(temperature._derivatives(lambda some: some.clone(), [sample], 64, groups))
    for place, factor in enumerate((0.8, 0.8, 1.4)):
        by = torch.tensor(factor, dtype=torch.float64, requires_grad=True)
        nll = torch.nn.functional.cross_entropy(by * logits, came, reduction="none") @ counts[place].double()
        for order in range(3):
            (nll,) = torch.autograd.grad(nll, by, create_graph=True)
            assert found[place, order].item() == pytest.approx(nll.item(), rel=1e-8)


@pytest.mark.parametrize("scales", [(1.0, 1.02, 1.3), (0.2, 1.0, 7.0)], ids=["near", "far"])
def test_what_is_found_is_the_minimum(scales: tuple[float, ...]) -> None:
    """Far more exactly than the last step's length; each length has a scale, the checkpoint all of them."""
    samples = []
    for place, scale in enumerate(scales, 1):
        logits, came = sharp(place, 3000, scale)
        counts = torch.zeros(1 + len(scales), 3000)
        counts[[0, place]] = 1
        samples.append(temperature.Sample(logits, came, counts))
    found = temperature.fit_temperatures(lambda some: some.clone(), samples, 512)
    for place, best in enumerate(found):
        low, high = temperature.COLDEST, temperature.HOTTEST
        while high / low > 1 + 1e-6:
            middle = math.sqrt(low * high)
            slope = 0.0
            for logits, came, counts in samples:
                each = (logits / middle).softmax(-1).mul(logits).sum(-1) - logits.gather(-1, came[:, None])[:, 0]
                slope += float(each @ counts[place].double())
            low, high = (middle, high) if slope > 0 else (low, middle)
        assert best == pytest.approx(middle, rel=1e-3)
