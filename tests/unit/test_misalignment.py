"""Long-Short Misalignment against brute force over pairs and plain forwards, one context at a time."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM

from longshort.evaluation import forward, misalignment

VOCABULARY = 61
L_TRAIN = 16
SETTINGS = {"sequences": 5, "lengths_per_sequence": 4, "beyond": [2, 4]}
TOKENIZER = SimpleNamespace()
DYNAMIC = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}


def llama(rope: dict | None = None) -> LlamaForCausalLM:
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=L_TRAIN, initializer_range=0.3, rope_parameters=rope,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("data")
    generator = np.random.default_rng(0)
    ids = [generator.integers(0, VOCABULARY, size).tolist() for size in (64, 200, 100, 30)]
    names = [f"d{i}" for i in range(len(ids))]
    Dataset.from_dict({"name": names, "text": [""] * 4, "input_ids": ids}).save_to_disk(str(folder / "test"))
    return folder


def sce(p: torch.Tensor, q: torch.Tensor) -> float:
    return -((p * q.log()).sum() + (q * p.log()).sum()).item()


def entropies(p: torch.Tensor, q: torch.Tensor) -> float:
    return -((p * p.log()).sum() + (q * q.log()).sum()).item()


def values(rows: list[dict]) -> dict[tuple[str, int], float]:
    return {(row["metric"], row["length"]): row["value"] for row in rows}


@pytest.mark.parametrize("rope", [None, DYNAMIC], ids=["default", "dynamic"])
def test_equals_brute_force_over_pairs_and_one_forward_a_context(rope: dict | None, data: Path) -> None:
    rows = misalignment.evaluate(llama(rope), TOKENIZER, SETTINGS, data, L_TRAIN).rows
    windows, lengths = misalignment.sequences(data, 5, 4, 4 * L_TRAIN, L_TRAIN)
    assert {row["n"] for row in rows} == {5}

    def distribution(tokens: np.ndarray) -> torch.Tensor:
        model = llama(rope)  # fresh: transformers' dynamic NTK remembers the longest input
        with torch.no_grad():
            return model(torch.from_numpy(tokens)[None]).logits[0, -1].double().softmax(-1)

    expected: dict[int, list[list[float]]] = {16: [], 32: [], 64: []}
    for window, drawn in zip(windows, lengths, strict=True):
        short = [distribution(window[-length:]) for length in drawn]
        ordered = [(p, q) for i, p in enumerate(short) for j, q in enumerate(short) if i != j]
        expected[16].append([np.mean([f(p, q) for p, q in ordered]) for f in (sce, entropies)])
        for length in (32, 64):
            long = distribution(window[-length:])
            expected[length].append([np.mean([f(p, long) for p in short]) for f in (sce, entropies)])
    for length, per_sequence in expected.items():
        wanted_sce, wanted_floor = np.mean(per_sequence, axis=0)
        assert values(rows)["sce", length] == pytest.approx(wanted_sce, rel=1e-5)
        assert values(rows)["entropy_floor", length] == pytest.approx(wanted_floor, rel=1e-5)
        assert values(rows)["symkl", length] == pytest.approx(wanted_sce - wanted_floor, rel=1e-4)
        assert wanted_sce - wanted_floor > 1e-2  # else the line above could not fail


def test_closed_form_equals_the_pairs_and_sce_is_floor_plus_symkl() -> None:
    log_p = torch.randn(7, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).mul(3).log_softmax(-1)
    p = log_p.exp()
    pairs = [(i, j) for i in range(6) for j in range(6) if i != j]
    brute = [np.mean([f(p[i], p[j]) for i, j in pairs]) for f in (sce, entropies)]
    inside = misalignment.inside_range(log_p[:6]).tolist()
    assert inside == pytest.approx([brute[0], brute[1], brute[0] - brute[1]], rel=1e-12)
    brute = [np.mean([f(p[i], p[6]) for i in range(6)]) for f in (sce, entropies)]
    beyond = misalignment.against_long(log_p[:6], log_p[6]).tolist()
    assert beyond == pytest.approx([brute[0], brute[1], brute[0] - brute[1]], rel=1e-12)


def test_by_hand_two_coins() -> None:
    # p = (1/2, 1/2), q = (1/4, 3/4): KL(p||q) = ln 2 - ln(3)/2, KL(q||p) = 3/4 ln 3 - ln 2, in all ln(3)/4.
    log_p = torch.tensor([[0.5, 0.5], [0.25, 0.75]], dtype=torch.float64).log()
    assert misalignment.inside_range(log_p)[2].item() == pytest.approx(np.log(3) / 4, abs=1e-15)
    assert misalignment.against_long(log_p[:1], log_p[1])[2].item() == pytest.approx(np.log(3) / 4, abs=1e-15)


def test_a_model_that_ignores_context_has_no_symkl(data: Path) -> None:
    model = llama()
    for layer in model.model.layers:
        torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
    measured = values(misalignment.evaluate(model, TOKENIZER, SETTINGS, data, L_TRAIN).rows)
    for length in (16, 32, 64):
        assert abs(measured["symkl", length]) < 1e-10
        assert measured["sce", length] == pytest.approx(measured["entropy_floor", length], abs=1e-10)
        assert measured["sce", length] > 0.1


def test_right_padding_equals_one_by_one() -> None:
    model = llama()
    generator = np.random.default_rng(3)
    contexts = [generator.integers(0, VOCABULARY, length) for length in (9, 40, 16, 16, 1, 12)]
    together = forward.last_log_probs(model, contexts)
    alone = torch.cat([forward.last_log_probs(model, [context]) for context in contexts])
    assert torch.allclose(together, alone, atol=1e-5)
    assert not torch.allclose(together[2], together[3], atol=1e-2)  # the order of the contexts is kept


def test_rows_of_different_lengths_share_a_batch_only_when_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward, "TOKENS_PER_FORWARD", 20)
    assert forward.batches([5, 30, 7, 5, 5, 5], equal=False) == [[0, 3, 4, 5], [2], [1]]
    assert forward.batches([9, 5, 9, 5], equal=True) == [[1, 3], [0, 2]]
    assert forward.batches([9, 5, 5], equal=False) == [[1, 2], [0]]


def test_contexts_are_the_same_for_everyone_and_lie_in_the_range(data: Path) -> None:
    windows, lengths = misalignment.sequences(data, 300, 4, 64, L_TRAIN)
    assert {length for drawn in lengths for length in drawn} == set(range(8, 17))
    assert {len(window) for window in windows} == {64}
    fewer_windows, fewer_lengths = misalignment.sequences(data, 10, 4, 64, L_TRAIN)
    assert fewer_lengths == lengths[:10]
    assert all(np.array_equal(a, b) for a, b in zip(fewer_windows, windows, strict=False))
    # The stream is part of protocol suffix-v1: other numbers here need another protocol name.
    assert lengths[:2] == [[11, 12, 10, 10], [14, 10, 9, 9]]


def test_too_short_documents_and_too_few_draws_are_refused(data: Path) -> None:
    with pytest.raises(
        ValueError, match=r"at least 256 tokens and .* has none: lower evaluations\.misalignment\.beyond"
    ):
        misalignment.evaluate(llama(), TOKENIZER, {**SETTINGS, "beyond": [16]}, data, L_TRAIN)
    with pytest.raises(ValueError, match="pairs need at least 2"):
        misalignment.evaluate(llama(), TOKENIZER, {**SETTINGS, "lengths_per_sequence": 1}, data, L_TRAIN)


def test_inside_only_needs_windows_of_the_training_length(data: Path) -> None:
    rows = misalignment.evaluate(llama(), TOKENIZER, {**SETTINGS, "beyond": []}, data, L_TRAIN).rows
    assert [(row["metric"], row["length"]) for row in rows] == [
        ("sce", 16),
        ("entropy_floor", 16),
        ("symkl", 16),
    ]


def test_protocol_says_what_was_done() -> None:
    assert misalignment.protocol(SETTINGS) == "lsm/suffix-v1?seqs=5&k=4&beyond=2,4"
