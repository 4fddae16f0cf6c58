"""Perplexity against hand values and the plain full-logits computation of transformers."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, CohereConfig, GraniteConfig, LlamaConfig, LlamaForCausalLM

from longshort.data import tokenizers
from longshort.evaluation import forward, perplexity, protocols, stage, temperature
from longshort.evaluation.journal import Journal
from longshort.models import rope
from tests.support import golden

VOCABULARY, BOS = 61, 60
PREFIX = {"kind": "prefix"}
TOKENIZER = SimpleNamespace(bos_token_id=BOS)
DYNAMIC = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}


SMALL = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 16, "initializer_range": 0.3,
    "pad_token_id": 0, "bos_token_id": BOS, "eos_token_id": BOS,
}  # fmt: skip


def llama(rope: dict | None = None) -> LlamaForCausalLM:
    torch.manual_seed(1)
    return LlamaForCausalLM(LlamaConfig(**SMALL, rope_parameters=rope)).eval()


def data_folder(folder: Path, sizes: list[int], split: str = "test") -> Path:
    generator = np.random.default_rng(0)
    ids = [generator.integers(0, BOS, size).tolist() for size in sizes]
    rows = {"name": [f"d{i}" for i in range(len(sizes))], "text": [""] * len(sizes), "input_ids": ids}
    Dataset.from_dict(rows).save_to_disk(str(folder / split))
    return folder


def plain_nll(model: LlamaForCausalLM, input_ids: list[int], length: int) -> float:
    """Mean NLL of the first `length` tokens after BOS: one forward, all the logits."""
    with torch.no_grad():
        logits = model(torch.tensor([[BOS, *input_ids[: length - 1]]])).logits[0].double()
    picked = logits.log_softmax(-1)[torch.arange(length), torch.tensor(input_ids[:length])]
    return -picked.mean().item()


def by_key(rows: list[dict]) -> dict[tuple, float]:
    return {(row["metric"], row["length"], row["document"]): row["value"] for row in rows}


def test_a_uniform_model_has_the_vocabulary_as_perplexity(tmp_path: Path) -> None:
    model = llama()
    torch.nn.init.zeros_(model.get_output_embeddings().weight)
    rows = perplexity.evaluate(
        model,
        TOKENIZER,
        {"lengths": [8, 40], "documents": 2, "protocol": PREFIX, "temperature_documents": 0},
        data_folder(tmp_path, [40, 50]),
        16,
    ).rows
    assert by_key(rows)["perplexity", 8, None] == pytest.approx(VOCABULARY, rel=1e-6)
    assert by_key(rows)["perplexity", 40, None] == pytest.approx(VOCABULARY, rel=1e-6)
    assert [row["n"] for row in rows if row["metric"] == "perplexity"] == [16, 80]


class FromStates(torch.nn.Module):
    """A model whose logits are a function of the position and the token read; only its interface is transformers'."""

    device = torch.device("cpu")

    def __init__(self, logits: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.config = LlamaConfig(**SMALL)
        self.logits = logits

    def get_decoder(self) -> Callable[..., Any]:
        def decode(input_ids: torch.Tensor, use_cache: bool) -> Any:
            position = torch.arange(input_ids.shape[1]).expand(input_ids.shape)
            return SimpleNamespace(last_hidden_state=torch.stack([position, input_ids], dim=-1))

        return decode

    def get_output_embeddings(self) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda states: self.logits(states[..., 0], states[..., 1])


def ramp(position: torch.Tensor, token: torch.Tensor) -> torch.Tensor:
    """Token 0, the only one that comes, has an NLL of t / 1000 at position t."""
    other = torch.expm1(position.double() / 1000).log()
    return torch.stack([torch.zeros_like(other), other], dim=-1)


@pytest.mark.parametrize(
    ("chosen", "lengths", "expected", "scored"),
    [
        ({"kind": "prefix"}, [1024, 8192], [1023 / 2000, 8191 / 2000], [1024, 8192]),
        ({"kind": "sliding", "stride": 256, "tokens": None}, [1024, 8192], [0.8475, 8191 / 2000], [8192, 8192]),
        ({"kind": "sliding", "stride": 1024, "tokens": 8192}, [1024], [1023 / 2000], [8192]),
        # The first 2 x 1024 tokens, and 52 at the end of the window of the last 1024: positions 972 to 1023.
        ({"kind": "sliding", "stride": 1024, "tokens": 2100}, [1024], [(2 * 523.776 + 51.87) / 2100], [2100]),
        # Without BOS the first token read is the first position that predicts: t = 0 is the second token.
        ({"kind": "block", "tokens": 8192}, [1024, 3000], [1022 / 2000, 2998 / 2000], [8 * 1023, 2 * 2999]),
        ({"kind": "same-targets", "targets": 10}, [100, 1024], [0.0945, 1.0185], [10, 10]),
    ],
    ids=["prefix", "sliding", "sliding-apart", "sliding-with-a-rest", "block", "same-targets"],
)
def test_a_ramp_of_nll_gives_the_mean_over_the_scored_positions(
    chosen: dict, lengths: list[int], expected: list[float], scored: list[int], tmp_path: Path
) -> None:
    Dataset.from_dict({"name": ["a"], "text": [""], "input_ids": [[0] * 8193]}).save_to_disk(str(tmp_path / "test"))
    settings = {"lengths": lengths, "documents": 1, "protocol": chosen, "temperature_documents": 0}
    rows = perplexity.evaluate(FromStates(ramp), TOKENIZER, settings, tmp_path, 16).rows
    values = by_key(rows)
    assert [values["nll", length, "a"] for length in lengths] == pytest.approx(expected, abs=1e-9)
    assert [values["perplexity", length, None] for length in lengths] == pytest.approx(np.exp(expected), abs=1e-8)
    assert [row["n"] for row in rows if row["metric"] == "perplexity"] == scored
    if chosen["kind"] == "prefix":
        buckets = {row["task"]: (row["value"], row["n"]) for row in rows if row["task"] and row["length"] == 1024}
        assert list(buckets) == ["0", "1", "2-3", "4-7", *(f"{2**k}-{2 ** (k + 1) - 1}" for k in range(3, 10))]
        assert buckets["512-1023"] == (pytest.approx((512 + 1023) / 2000), 512)


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


@pytest.mark.parametrize("rope", [None, DYNAMIC, "longrope"], ids=["default", "dynamic", "longrope"])
@pytest.mark.parametrize("length", [17, 32])
def test_blocks_are_what_a_model_says_of_its_own_loss(rope: Any, length: int, tmp_path: Path) -> None:
    """As run_clm and CLEX's scripts compute it."""
    if rope == "longrope":
        factors = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "original_max_position_embeddings": 16}
        rope = {"rope_type": "longrope", "factor": 4.0, "rope_theta": 10000.0, **factors}
    data = data_folder(tmp_path, [3 * length + 5])
    settings = {"lengths": [length], "documents": 1, "protocol": {"kind": "block", "tokens": 3 * length}}
    rows = perplexity.evaluate(llama(rope), TOKENIZER, {**settings, "temperature_documents": 0}, data, 16).rows
    ids = torch.tensor(Dataset.load_from_disk(str(data / "test"))[0]["input_ids"][: 3 * length]).view(3, length)
    with torch.no_grad():
        expected = llama(rope)(ids, labels=ids).loss.item()
    assert by_key(rows)["nll", length, "d0"] == pytest.approx(expected, abs=2e-6)
    # The first token scored has one before it.
    assert {row["task"] for row in rows if row["metric"] == "nll_by_position"} >= {"1", "2-3"}
    assert "0" not in {row["task"] for row in rows if row["metric"] == "nll_by_position"}


def extended(kind: str) -> LlamaForCausalLM:
    """Beyond 16 tokens its frequencies depend on the length; CLEX with something learned."""
    if kind == "dynamic":
        return llama(DYNAMIC)
    model = llama()
    rope.extend(model, {"kind": "clex", "max_factor": 3, "time_step": 0.1, "width_factor": 1, "activation": "tanh"})
    torch.nn.init.normal_(model.get_decoder().rotary_emb.inv_freq_down, std=0.1)
    return model


def frequencies(model: LlamaForCausalLM, kind: str, length: int) -> torch.Tensor:
    """Of a text of so many tokens: t = ceil(length / 16), at most 3; or dynamic NTK's formula."""
    if kind == "clex":
        return model.get_decoder().rotary_emb.frequencies(min(3, math.ceil(length / 16))).double()
    theta = 10000.0 * max(1.0, 4 * length / 16 - 3) ** (8 / 6)
    return theta ** (-torch.arange(0, 8, 2, dtype=torch.float64) / 8)


@torch.no_grad()
def nll_of_chunks(model: LlamaForCausalLM, kind: str, ids: list[int], chunk: int) -> torch.Tensor:
    """CLEX's evaluation without a cache: block by block of the model over the whole text, in which the tokens of a
    chunk attend to all keys up to its end, rotated by the frequencies of the text up to there; rotations as products of
    complex numbers. The NLL of all tokens but the first ones of chunks."""
    model = model.double()
    decoder, length = model.get_decoder(), len(ids)
    x = decoder.embed_tokens(torch.tensor([ids]))
    for layer in decoder.layers:
        attention, normed = layer.self_attn, layer.input_layernorm(x)
        q, k, v = (
            project(normed).view(length, 4, 8).transpose(0, 1)
            for project in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        parts = []
        for begin in range(0, length, chunk):
            end = min(length, begin + chunk)
            turn = torch.polar(torch.ones(()).double(), torch.outer(torch.arange(end), frequencies(model, kind, end)))
            turned_q = torch.complex(q[:, begin:end, :4], q[:, begin:end, 4:]) * turn[begin:]
            turned_k = torch.complex(k[:, :end, :4], k[:, :end, 4:]) * turn
            scores = (turned_q @ turned_k.transpose(1, 2).conj()).real / math.sqrt(8)
            later = torch.arange(end)[None] > torch.arange(begin, end)[:, None]
            parts.append(scores.masked_fill(later, -math.inf).softmax(-1) @ v[:, :end])
        x = x + attention.o_proj(torch.cat(parts, dim=1).transpose(0, 1).reshape(1, length, 32))
        x = x + layer.mlp(layer.post_attention_layernorm(x))
    log_probs = model.lm_head(decoder.norm(x))[0].log_softmax(-1)
    return -torch.stack([log_probs[place - 1, ids[place]] for place in range(length) if place % chunk])


@pytest.mark.parametrize("kind", ["clex", "dynamic"])
def test_chunks_are_clexs_own_evaluation(kind: str, tmp_path: Path) -> None:
    data = data_folder(tmp_path, [2 * 64 + 3])
    settings = {"lengths": [8, 16, 32, 64], "documents": 1, "temperature_documents": 0}
    chosen = {"kind": "block", "tokens": 128, "chunk": 16}
    rows = perplexity.evaluate(extended(kind), TOKENIZER, {**settings, "protocol": chosen}, data, 16).rows
    ids = Dataset.load_from_disk(str(data / "test"))[0]["input_ids"]
    values = by_key(rows)
    for length in settings["lengths"]:
        blocks = [ids[begin : begin + length] for begin in range(0, 128, length)]
        expected = torch.cat([nll_of_chunks(extended(kind), kind, block, 16) for block in blocks])
        assert values["nll", length, "d0"] == pytest.approx(expected.mean().item(), abs=1e-5)
        assert {row["n"] for row in rows if row["metric"] == "nll" and row["length"] == length} == {len(expected)}
    # Token 17 of a block is read with 16 before it, token 16, the first of a chunk, is not scored.
    long = {row["task"]: row["n"] for row in rows if row["metric"] == "nll_by_position" and row["length"] == 64}
    assert long == {"1": 2, "2-3": 4, "4-7": 8, "8-15": 16, "16-31": 30, "32-63": 60}
    whole = perplexity.evaluate(
        extended(kind), TOKENIZER, {**settings, "protocol": {**chosen, "chunk": None}}, data, 16
    ).rows
    assert [by_key(whole)["nll", length, "d0"] for length in (8, 16)] == [values["nll", n, "d0"] for n in (8, 16)]
    assert abs(by_key(whole)["nll", 64, "d0"] - values["nll", 64, "d0"]) > 1e-2
    said = perplexity.protocol({**settings, "protocol": chosen}, 16)
    assert said == "ppl/block-v2?docs=1&lengths=8,16,32,64&chunk=16&tokens=128&temperature-docs=0"


def test_where_frequencies_stay_chunks_are_one_reading_that_scores_less(tmp_path: Path) -> None:
    ids = torch.tensor([list(range(40))])
    whole, parts = (forward.hidden_states(llama(), ids, chunk) for chunk in (None, 16))
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-5)


def test_a_second_protocol_stands_beside_the_first(tmp_path: Path) -> None:
    data = data_folder(tmp_path, [40, 64])  # one of them has no block of 64 tokens
    settings = {"lengths": [16, 64], "documents": 1, "protocol": PREFIX, "temperature_documents": 0}
    block = {"kind": "block", "tokens": 64, "chunk": 16}
    one, other = (
        by_key(perplexity.evaluate(extended("clex"), TOKENIZER, {**settings, "protocol": chosen}, data, 16).rows)
        for chosen in (PREFIX, block)
    )
    both = by_key(perplexity.evaluate(extended("clex"), TOKENIZER, {**settings, "beside": block}, data, 16).rows)
    for metric in ("perplexity", "nll"):
        for key in [key for key in one if key[0] == metric]:
            assert both[key] == one[key] != other[key] == both[f"{metric}_block", *key[1:]]
    assert set(both) - set(one) == {(f"{key[0]}_block", *key[1:]) for key in one if key[0] in ("perplexity", "nll")}
    said = perplexity.protocol({**settings, "beside": block}, 16)
    assert said == ("ppl/prefix-v2?docs=1&lengths=16,64&temperature-docs=0&beside=block-v2,tokens=64,chunk=16")


@pytest.mark.parametrize("rope", [None, DYNAMIC], ids=["default", "dynamic"])
def test_without_bos_the_first_token_is_not_scored(rope: dict | None, tmp_path: Path) -> None:
    """Against the model's own loss; texts that begin with BOS give what prefix gives of the rest, one token shorter."""
    without = SimpleNamespace(bos_token_id=None)
    data = data_folder(tmp_path, [40])
    settings = {"lengths": [8, 32], "documents": 1, "protocol": PREFIX, "temperature_documents": 0}
    rows = perplexity.evaluate(llama(rope), without, settings, data, 16).rows
    ids = Dataset.load_from_disk(str(data / "test"))[0]["input_ids"]
    for length in (8, 32):
        with torch.no_grad():
            expected = llama(rope)(torch.tensor([ids[:length]]), labels=torch.tensor([ids[:length]])).loss.item()
        assert by_key(rows)["nll", length, "d0"] == pytest.approx(expected, abs=2e-6)
    assert [row["n"] for row in rows if row["metric"] == "nll"] == [7, 31]
    if rope is None:
        beginning = {"name": ["a"], "text": [""], "input_ids": [[BOS, *ids]]}
        Dataset.from_dict(beginning).save_to_disk(str(tmp_path / "begins" / "test"))
        shifted = by_key(perplexity.evaluate(llama(), without, settings, tmp_path / "begins", 16).rows)
        one_less = {**settings, "lengths": [7, 31]}
        usual = by_key(perplexity.evaluate(llama(), TOKENIZER, one_less, data, 16).rows)
        for length in (8, 32):
            assert shifted["nll", length, "a"] == pytest.approx(usual["nll", length - 1, "d0"], abs=2e-6)


def test_windows_without_bos_score_every_token_but_the_first() -> None:
    """Each token that slides by, once, with as many tokens before it as its window has."""
    found = protocols.windows({"kind": "sliding", "stride": 3, "tokens": None}, np.arange(14), 6, 6, 0, None)
    scored = [int(token) for some in found for token in some.targets[:, some.scored].flatten()]
    assert sorted(scored) == list(range(1, 14))
    assert all((some.targets == some.input_ids[:, 1:]).all() for some in found)


def test_whether_there_is_a_bos_token_is_part_of_the_protocol(tmp_path: Path) -> None:
    settings = {"lengths": [8], "documents": 1, "protocol": PREFIX, "temperature_documents": 0}
    tokenizer = tokenizers.byte_tokenizer()
    tokenizer.save_pretrained(tmp_path / "with")
    tokenizer.bos_token = None
    tokenizer.save_pretrained(tmp_path / "without")
    names = []
    for folder in ("with", "without"):
        spec = {"kind": "pretrained", "name": str(tmp_path / folder), "revision": None}
        names.append(perplexity.protocol(perplexity.settle(settings, spec), 16))
    plain = "ppl/prefix-v2?docs=1&lengths=8&temperature-docs=0"
    assert names == [plain, plain.replace("&temp", "&bos=none&temp")]
    assert perplexity.settle(settings, {"kind": "bytes"}) == settings
    block = {**settings, "protocol": {"kind": "block"}}
    assert perplexity.settle(block, {"kind": "pretrained", "name": "not looked at"}) == block


def test_a_model_of_nan_is_right_about_nothing(tmp_path: Path) -> None:
    model = llama()
    with torch.no_grad():
        model.model.norm.weight[0] = math.nan
    forward.refuse_unknown_logits(model)
    settings = {"lengths": [8], "documents": 1, "protocol": PREFIX, "temperature_documents": 0}
    values = by_key(perplexity.evaluate(model, TOKENIZER, settings, data_folder(tmp_path, [40]), 16).rows)
    assert math.isnan(values["accuracy", 8, None]) and math.isnan(values["perplexity", 8, None])
    # A stage asks before it measures: other metrics would have scores for what such a model chooses.
    assert not stage._answers(model, tmp_path, 8) and stage._answers(llama(), tmp_path, 8)


def test_calibration_error_by_hand(tmp_path: Path) -> None:
    """Four tokens said with 0.8, of which three come, and four with 0.6, of which one comes: |.8 - .75|, |.6 - .25|."""
    confidence = torch.tensor([0.8, 0.8, 0.8, 0.8, 0.6, 0.6, 0.6, 0.6])

    def said(position: torch.Tensor, token: torch.Tensor) -> torch.Tensor:
        p = confidence[position]
        return torch.stack([p, 1 - p], dim=-1).log()

    ids = [0, 0, 0, 1, 0, 1, 1, 1]
    Dataset.from_dict({"name": ["a"], "text": [""], "input_ids": [ids]}).save_to_disk(str(tmp_path / "test"))
    settings = {"lengths": [8], "documents": 1, "protocol": PREFIX, "temperature_documents": 0}
    values = by_key(perplexity.evaluate(FromStates(said), TOKENIZER, settings, tmp_path, 16).rows)
    assert values["ece", 8, None] == pytest.approx((0.05 + 0.35) / 2, abs=1e-6)
    assert values["accuracy", 8, None] == 0.5


def test_the_calibration_error_has_fifteen_bins(tmp_path: Path) -> None:
    """Of no other number of bins does it have this value."""
    random = np.random.default_rng(0)
    confidence = random.uniform(0.3, 1, 300)
    ids = random.integers(0, 3, 300)

    def said(position: torch.Tensor, token: torch.Tensor) -> torch.Tensor:
        p = torch.from_numpy(confidence)[position]
        return torch.stack([p, *[(1 - p) / 3] * 3], dim=-1).log()

    def by_hand(bins: int) -> float:
        gaps = confidence - (ids == 0)
        return sum(abs(gaps[(confidence * bins).astype(int) == place].sum()) for place in range(bins)) / 300

    Dataset.from_dict({"name": ["a"], "text": [""], "input_ids": [ids]}).save_to_disk(str(tmp_path / "test"))
    settings = {"lengths": [300], "documents": 1, "protocol": PREFIX, "temperature_documents": 0}
    found = by_key(perplexity.evaluate(FromStates(said), TOKENIZER, settings, tmp_path, 16).rows)["ece", 300, None]
    assert [bins for bins in range(1, 100) if found == pytest.approx(by_hand(bins), abs=1e-4)] == [15]


def test_a_killed_evaluation_goes_on_after_the_last_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = data_folder(tmp_path, [40, 50, 60], split="validation")
    data_folder(tmp_path, [40, 50, 60])
    settings = {"lengths": [8, 40], "documents": 3, "protocol": PREFIX, "temperature_documents": 2}
    whole = perplexity.evaluate(llama(), TOKENIZER, settings, data, 16, Journal(tmp_path / "whole").of("step 1")).rows
    lines = (tmp_path / "whole").read_bytes().splitlines(keepends=True)
    assert len(lines) == 1 + 3
    (tmp_path / "cut").write_bytes(b"".join(lines[:2]) + lines[2][:50])
    read = []
    original = perplexity.score_tokens
    monkeypatch.setattr(perplexity, "score_tokens", lambda *given: (read.append(1), original(*given))[1])
    rows = perplexity.evaluate(llama(), TOKENIZER, settings, data, 16, Journal(tmp_path / "cut").of("step 1")).rows
    assert rows == whole and len(read) == 2
    assert (tmp_path / "cut").read_bytes() == (tmp_path / "whole").read_bytes()


def test_a_standard_error_over_documents(tmp_path: Path) -> None:
    data = data_folder(tmp_path, [40, 50, 60])
    settings = {"lengths": [40], "documents": 3, "protocol": PREFIX, "temperature_documents": 0}
    values = by_key(perplexity.evaluate(llama(), TOKENIZER, settings, data, 16).rows)
    of_documents = [values["nll", 40, f"d{i}"] for i in range(3)]
    assert values["nll_se", 40, None] == pytest.approx(np.std(of_documents, ddof=1) / math.sqrt(3))
    assert values["perplexity", 40, None] == pytest.approx(math.exp(np.mean(of_documents)))


@pytest.mark.parametrize("rope", [None, DYNAMIC], ids=["default", "dynamic"])
def test_equals_the_plain_full_logits_computation(
    rope: dict | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(forward, "TOKENS_PER_FORWARD", 100)  # two rows a forward, the last batch smaller
    monkeypatch.setattr(forward, "tokens_per_head", lambda model: 7)  # chunks that end inside a row
    data = data_folder(tmp_path, [48, 60, 30, 48])
    rows = perplexity.evaluate(
        llama(rope),
        TOKENIZER,
        {"lengths": [48, 16, 24], "documents": 3, "protocol": PREFIX, "temperature_documents": 0},
        data,
        16,
    ).rows
    values = by_key(rows)
    documents = {row["name"]: row["input_ids"] for row in Dataset.load_from_disk(str(data / "test"))}
    order = sorted(["d0", "d1", "d3"], key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    assert [row["document"] for row in rows if row["metric"] == "nll" and row["length"] == 16] == order
    for length in (16, 24, 48):
        # A fresh model a length: transformers' dynamic NTK remembers the longest input.
        expected = [plain_nll(llama(rope), documents[name], length) for name in order]
        assert [values["nll", length, name] for name in order] == pytest.approx(expected, abs=2e-6)
        assert values["perplexity", length, None] == pytest.approx(math.exp(np.mean(expected)), rel=2e-6)


def test_dynamic_rope_needs_a_forward_per_length(tmp_path: Path) -> None:
    # The premise of the two ways: with dynamic NTK the first tokens are read otherwise in a longer input ...
    data = data_folder(tmp_path, [64])
    settings = {"lengths": [24, 64], "documents": 1, "protocol": PREFIX, "temperature_documents": 0}
    model = llama(DYNAMIC)
    assert forward.rope_depends_on_length(model) and not forward.rope_depends_on_length(llama())
    first = perplexity.evaluate(model, TOKENIZER, settings, data, 16).rows
    model.config.rope_parameters["rope_type"] = "default"  # take the fast way with a model that must not
    model.model.rotary_emb.max_seq_len_cached = 16
    fast = perplexity.evaluate(model, TOKENIZER, settings, data, 16).rows
    assert abs(by_key(fast)["nll", 24, "d0"] - by_key(first)["nll", 24, "d0"]) > 1e-3
    # ... and what a model has read before must not change a number.
    model.config.rope_parameters["rope_type"] = "dynamic"
    assert perplexity.evaluate(model, TOKENIZER, settings, data, 16).rows == first


def test_accuracy_is_the_share_of_most_probable_tokens(tmp_path: Path) -> None:
    model = llama()
    greedy = [BOS]
    with torch.no_grad():
        for _ in range(24):
            greedy.append(int(model(torch.tensor([greedy])).logits[0, -1].argmax()))
    # Greedy text is always right; one other token at the end is wrong.
    ids = [*greedy[1:24], (greedy[24] + 1) % BOS]
    Dataset.from_dict({"name": ["a"], "text": [""], "input_ids": [ids]}).save_to_disk(str(tmp_path / "test"))
    rows = perplexity.evaluate(
        model,
        TOKENIZER,
        {"lengths": [8, 24], "documents": 1, "protocol": PREFIX, "temperature_documents": 0},
        tmp_path,
        16,
    ).rows
    assert by_key(rows)["accuracy", 8, None] == 1.0
    assert by_key(rows)["accuracy", 24, None] == 23 / 24


def test_too_few_documents_are_refused_with_the_remedy(tmp_path: Path) -> None:
    data = data_folder(tmp_path, [64, 63, 64])
    with pytest.raises(ValueError, match=r"at least 64 tokens and .* has 2: lower evaluations\.perplexity\.documents"):
        perplexity.evaluate(
            llama(),
            TOKENIZER,
            {"lengths": [8, 64], "documents": 3, "protocol": PREFIX, "temperature_documents": 0},
            data,
            16,
        )


@pytest.mark.parametrize("config", [CohereConfig(**SMALL, logit_scale=4.0), GraniteConfig(**SMALL, logits_scaling=0.1)])
def test_what_a_model_does_to_its_logits_after_the_head_counts(config: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    data = data_folder(tmp_path, [24])
    settings = {"lengths": [16], "documents": 1, "protocol": PREFIX, "temperature_documents": 0}
    values = by_key(perplexity.evaluate(model, TOKENIZER, settings, data, 16).rows)
    ids = Dataset.load_from_disk(str(data / "test"))[0]["input_ids"]
    assert values["nll", 16, "d0"] == pytest.approx(plain_nll(model, ids, 16), abs=2e-6)


def test_protocol_says_what_was_done() -> None:
    settings = {"lengths": [256, 128], "documents": 32, "protocol": PREFIX, "temperature_documents": 0}
    assert perplexity.protocol(settings, 16) == "ppl/prefix-v2?docs=32&lengths=128,256&temperature-docs=0"


@pytest.mark.parametrize("rope", [None, DYNAMIC], ids=["default", "dynamic"])
def test_same_targets_differ_in_context_only(rope: dict | None, tmp_path: Path) -> None:
    data = data_folder(tmp_path, [60, 41])
    settings = {
        "lengths": [8, 40],
        "documents": 2,
        "protocol": {"kind": "same-targets", "targets": 3},
        "temperature_documents": 0,
    }
    model = llama(rope)
    values = by_key(perplexity.evaluate(model, TOKENIZER, settings, data, 16).rows)
    # The document of 41 tokens has one window only: all of it.
    ids = next(row["input_ids"] for row in Dataset.load_from_disk(str(data / "test")) if len(row["input_ids"]) == 41)
    for length in (8, 40):
        with torch.no_grad():
            logits = llama(rope)(torch.tensor([ids[40 - length : 40]])).logits[0, -3:].double()
        expected = -logits.log_softmax(-1)[torch.arange(3), torch.tensor(ids[-3:])].mean().item()
        assert values["nll", length, "d1"] == pytest.approx(expected, abs=2e-6)
    assert perplexity.protocol(settings, 16) == "ppl/same-targets-v2?docs=2&lengths=8,40&targets=3&temperature-docs=0"


@pytest.mark.parametrize(
    "chosen",
    [
        {"kind": "prefix"},
        {"kind": "same-targets", "targets": 3},
        {"kind": "block", "tokens": 13},
        {"kind": "sliding", "stride": 3, "tokens": 14},
    ],
    ids=lambda chosen: chosen["kind"],
)
def test_a_protocol_keeps_its_name_only_while_it_does_the_same(chosen: dict, tmp_path: Path) -> None:
    """Every number of a fixed model, whose logits say which token it reads at which place, on fixed documents."""
    table = torch.from_numpy(np.random.default_rng(0).normal(size=(64, VOCABULARY, VOCABULARY)))
    data_folder(data_folder(tmp_path, [15, 18]), [16, 15], split="validation")
    settings = {"lengths": [4, 10], "documents": 1, "protocol": chosen, "temperature_documents": 2}
    model = FromStates(lambda position, token: table[position, token])
    rows = perplexity.evaluate(model, TOKENIZER, settings, tmp_path, 16).rows
    for whole, part in {"accuracy": "accuracy", "perplexity_checkpoint_t": "nll_checkpoint_t"}.items():
        for length in settings["lengths"]:
            (total,) = (r for r in rows if (r["metric"], r["length"], r["document"]) == (whole, length, None))
            parts = [r for r in rows if (r["metric"], r["length"]) == (part, length) and r["document"] is not None]
            mean = sum(row["n"] * row["value"] for row in parts) / total["n"]
            assert total["value"] == pytest.approx(mean if whole == part else math.exp(mean), rel=1e-9)
    rows = [row for row in rows if row["document"] is None or row["metric"] == "nll"]
    values = {described(row): f"{row['value']:.4g} over {row['n']}" for row in rows}
    assert len(values) == len(rows)
    name, protocol = f"perplexity-{chosen['kind']}", perplexity.protocol(settings, 16)
    golden.assert_unchanged(name, protocol, values, "perplexity.protocol")


@pytest.mark.parametrize(
    "chosen",
    [
        {"kind": "prefix"},
        {"kind": "same-targets", "targets": 550},
        {"kind": "block", "tokens": 1300},
        {"kind": "sliding", "stride": 100, "tokens": 700},
    ],
    ids=lambda chosen: chosen["kind"],
)
def test_a_protocol_keeps_its_name_only_while_it_fits_and_bins_the_same(chosen: dict, tmp_path: Path) -> None:
    """Where every constant of the fit counts: of two validation documents each has more tokens than are fitted, of
    forty more than the least number, and the last two models are best below the coldest and above the hottest."""
    random = np.random.default_rng(0)
    for split, count in {"test": 2, "validation": 40}.items():
        ids = np.zeros((count, 1400), dtype=np.int64)
        for place in range(1, 1400):
            drawn = random.integers(0, BOS, count)
            ids[:, place] = np.where(random.random(count) < 0.5, (7 * ids[:, place - 1] + 1) % BOS, drawn)
        rows = {"name": [f"d{i}" for i in range(count)], "text": [""] * count, "input_ids": ids.tolist()}
        Dataset.from_dict(rows).save_to_disk(str(tmp_path / split))
    table = random.normal(size=(64, VOCABULARY, VOCABULARY))
    table[:, np.arange(VOCABULARY), (7 * np.arange(VOCABULARY) + 1) % BOS] += 4
    logits = torch.from_numpy(table)
    settings = {"lengths": [600, 640], "documents": 1, "protocol": chosen, "temperature_documents": 2}
    values = {}
    for documents, scale in [(2, 1.0), (40, 1.0), (2, 1e-3), (2, 1e3)]:
        model = FromStates(lambda position, token, scale=scale: scale * logits[position % 64, token])
        fitted = {**settings, "temperature_documents": documents}
        rows = perplexity.evaluate(model, TOKENIZER, fitted, tmp_path, 16).rows
        where = f"where {documents} documents are fitted and logits are {scale:g} times as large"
        rows = [row for row in rows if row["document"] is None]
        values |= {f"{described(row)} {where}": f"{row['value']:.4g}" for row in rows}
    assert len(values) == 4 * len(rows)
    name, protocol = f"perplexity-{chosen['kind']}-fitted", perplexity.protocol(settings, 16)
    golden.assert_unchanged(name, protocol, values, "perplexity.protocol")


def described(row: dict[str, Any]) -> str:
    return " ".join(str(row[key]) for key in ("metric", "length", "task", "document") if row.get(key) is not None)
