"""Long-Short Misalignment against brute force over pairs and plain forwards, one context at a time."""

from __future__ import annotations

import math
from collections import Counter
from itertools import combinations, product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM

from longshort.data.settings import BytesTokenizer
from longshort.evaluation import forward, misalignment
from longshort.evaluation.journal import Journal
from longshort.identity.spec import restored
from longshort.metrics.settings import Misalignment
from tests.support import golden

VOCABULARY = 61
L_TRAIN = 16
SETTINGS = {"sequences": 5, "lengths_per_sequence": 4, "beyond": [2, 4], "grid_sequences": 3}
LENGTHS = [16, 32, 64]
TOKENIZER = SimpleNamespace()
DYNAMIC = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}


def llama(rope: dict | None = None) -> LlamaForCausalLM:
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=L_TRAIN, initializer_range=0.3, rope_parameters=rope,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def evaluate(model: Any, tokenizer: Any, settings: dict[str, Any], data: Path, journal: Any = None) -> Any:
    return misalignment.evaluate(model, tokenizer, restored(Misalignment, settings), data, L_TRAIN, journal)


def protocol(settings: dict[str, Any]) -> str:
    return misalignment.protocol(restored(Misalignment, settings), L_TRAIN, BytesTokenizer())


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
    of_all = [row for row in rows if row["task"] is None and row["document"] is None]
    return {(row["metric"], row["length"]): row["value"] for row in of_all}


def grid(rows: list[dict], metric: str) -> dict[tuple[int, int], float]:
    return {(int(row["task"]), row["length"]): row["value"] for row in rows if row["metric"] == metric}


@pytest.mark.parametrize("rope", [None, DYNAMIC], ids=["default", "dynamic"])
def test_equals_brute_force_over_pairs_and_one_forward_a_context(rope: dict | None, data: Path) -> None:
    rows = evaluate(llama(rope), TOKENIZER, SETTINGS, data).rows
    drawn = misalignment.sequences(data, 5, 4, 4 * L_TRAIN, L_TRAIN)
    documents = [one.document for one in drawn]
    assert 1 < len(set(documents)) < 5  # documents with one sequence and with several
    counts = {5: misalignment.METRICS, 3: ("sce_grid", "symkl_grid")}
    assert {metric for metric, _ in values(rows)} == {
        name + end for name in misalignment.METRICS for end in ("", "_se")
    }
    for n, metrics in counts.items():
        assert {row["n"] for row in rows if row["metric"] in metrics and row["document"] is None} == {n}
    for metric, length in product(misalignment.METRICS, LENGTHS):
        of = [row for row in rows if (row["metric"], row["length"]) == (metric, length) and row["document"] is not None]
        assert {row["document"]: row["n"] for row in of} == Counter(documents)
        mean = sum(row["n"] * row["value"] for row in of) / 5
        assert mean == pytest.approx(values(rows)[metric, length], rel=1e-12)

    def distribution(tokens: np.ndarray) -> torch.Tensor:
        model = llama(rope)  # fresh: transformers' dynamic NTK remembers the longest input
        with torch.no_grad():
            return model(torch.from_numpy(tokens)[None]).logits[0, -1].double().softmax(-1)

    expected: dict[int, list[list[float]]] = {length: [] for length in LENGTHS}
    pairs: dict[tuple[int, int], list[list[float]]] = {pair: [] for pair in combinations([4, 8, 16, 32, 64], 2)}
    for one in drawn:
        short = [distribution(one.tokens[-length:]) for length in one.lengths]
        ordered = [(p, q) for i, p in enumerate(short) for j, q in enumerate(short) if i != j]
        expected[16].append([np.mean([f(p, q) for p, q in ordered]) for f in (sce, entropies)])
        for length in (32, 64):
            long = distribution(one.tokens[-length:])
            expected[length].append([np.mean([f(p, long) for p in short]) for f in (sce, entropies)])
        for l1, l2 in pairs:
            p, q = distribution(one.tokens[-l1:]), distribution(one.tokens[-l2:])
            pairs[l1, l2].append([sce(p, q), entropies(p, q)])
    for length, per_sequence in expected.items():
        array = np.array(per_sequence)
        array = np.column_stack([array, array[:, 0] - array[:, 1]])
        for metric, column in zip(misalignment.METRICS, array.T, strict=True):
            assert values(rows)[metric, length] == pytest.approx(column.mean(), rel=1e-4)
            error = clustered(column, documents)
            assert values(rows)[f"{metric}_se", length] == pytest.approx(error, rel=1e-3)
        assert array[:, 2].mean() > 1e-2  # else the lines above could not fail
    for metric, column in {"sce_grid": 0, "symkl_grid": 2}.items():
        measured = grid(rows, metric)
        assert set(measured) == set(pairs)
        for pair, per_sequence in pairs.items():
            array = np.array(per_sequence[:3])
            array = np.column_stack([array, array[:, 0] - array[:, 1]])
            assert measured[pair] == pytest.approx(array[:, column].mean(), rel=1e-4)


def clustered(column: np.ndarray, documents: list[str]) -> float:
    """The definition, with loops: the sum over documents of squared sums of residuals."""
    residuals: dict[str, float] = {}
    for value, document in zip(column, documents, strict=True):
        residuals[document] = residuals.get(document, 0.0) + value - column.mean()
    count = len(residuals)
    return math.sqrt(sum(sum_**2 for sum_ in residuals.values()) * count / (count - 1)) / len(column)


def test_standard_error_by_hand_and_against_simulation() -> None:
    column = torch.tensor([[1.0], [2.0], [6.0]], dtype=torch.float64)
    assert misalignment.standard_error(column, ["a", "b", "c"]).item() == pytest.approx(math.sqrt(7 / 3))
    # Mean 3; residuals by document -3 and 3: sqrt(2 / 1 x 18) / 3.
    assert misalignment.standard_error(column, ["a", "a", "b"]).item() == pytest.approx(2)
    assert misalignment.standard_error(column, ["a", "a", "a"]).isnan().all()
    # 40 documents of 8 sequences that share a part: sd / sqrt(n) would be too small by more than a half.
    generator = np.random.default_rng(0)
    samples = generator.normal(size=(2000, 40, 1)) + 0.5 * generator.normal(size=(2000, 40, 8))
    samples = samples.reshape(2000, 320)
    errors = misalignment.standard_error(torch.from_numpy(samples.T), np.repeat(np.arange(40), 8).astype(str).tolist())
    assert errors.square().mean().sqrt().item() == pytest.approx(samples.mean(1).std(), rel=0.05)
    assert samples.std(1).mean() / 320**0.5 < 0.5 * samples.mean(1).std()


def test_a_single_document_gives_no_standard_error(data: Path) -> None:
    # A row without a finite number would stand for a divergence.
    rows = evaluate(llama(), TOKENIZER, {**SETTINGS, "beyond": [8]}, data).rows
    assert {metric for metric, _ in values(rows)} == set(misalignment.METRICS)


def test_identical_models_give_equal_numbers(data: Path) -> None:
    one, other = (evaluate(llama(), TOKENIZER, SETTINGS, data).rows for _ in range(2))
    assert one == other


def test_what_is_measured_at_a_time_changes_no_number(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The grid's sequences among them: its third is the first of the second block."""
    in_one = evaluate(llama(), TOKENIZER, SETTINGS, data).rows
    monkeypatch.setattr(misalignment, "SEQUENCES_AT_ONCE", 2)
    in_three = evaluate(llama(), TOKENIZER, SETTINGS, data).rows
    assert in_three == [{**row, "value": pytest.approx(row["value"], rel=1e-4, abs=1e-7)} for row in in_one]


def test_a_killed_evaluation_goes_on_and_gives_the_same_bits(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(misalignment, "SEQUENCES_AT_ONCE", 2)
    undisturbed = evaluate(llama(), TOKENIZER, SETTINGS, data).rows
    whole = misalignment.last_log_probs
    calls = []

    def killed_in_the_second_block(*given: object) -> torch.Tensor:
        calls.append(given)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return whole(*given)

    def resume() -> list[dict]:
        journal = Journal(tmp_path / "journal").of("step 1")
        return evaluate(llama(), TOKENIZER, SETTINGS, data, journal).rows

    monkeypatch.setattr(misalignment, "last_log_probs", killed_in_the_second_block)
    with pytest.raises(KeyboardInterrupt):
        resume()
    assert resume() == undisturbed
    assert len(calls) == 4  # three blocks, the second twice
    assert resume() == undisturbed
    assert len(calls) == 4  # a full journal needs no forward


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
    rows = evaluate(model, TOKENIZER, SETTINGS, data).rows
    measured = values(rows)
    for length in (16, 32, 64):
        assert abs(measured["symkl", length]) < 1e-10
        assert measured["sce", length] == pytest.approx(measured["entropy_floor", length], abs=1e-10)
        assert measured["sce", length] > 0.1
    assert max(map(abs, grid(rows, "symkl_grid").values())) < 1e-10


def test_contexts_are_the_same_for_everyone_and_lie_in_the_range(data: Path) -> None:
    drawn = misalignment.sequences(data, 300, 4, 64, L_TRAIN)
    assert {length for one in drawn for length in one.lengths} == set(range(8, 17))
    assert {len(one.tokens) for one in drawn} == {64}
    assert [one.lengths for one in drawn[:2]] == [[11, 12, 10, 10], [14, 10, 9, 9]]
    fewer = misalignment.sequences(data, 10, 4, 64, L_TRAIN)
    for one, same in zip(drawn, fewer, strict=False):
        assert (one.document, one.offset, one.lengths) == (same.document, same.offset, same.lengths)
        assert np.array_equal(one.tokens, same.tokens)
    documents = dict(forward.held_out_documents(data, 64))
    assert all(np.array_equal(documents[one.document][one.offset :][:64], one.tokens) for one in drawn)


def test_too_short_documents_and_too_few_draws_are_refused(data: Path) -> None:
    with pytest.raises(
        ValueError, match=r"at least 256 tokens and .* has none: lower evaluations\.misalignment\.beyond"
    ):
        evaluate(llama(), TOKENIZER, {**SETTINGS, "beyond": [16]}, data)
    with pytest.raises(ValueError, match="lengths_per_sequence = 1: Input should be greater than or equal to 2"):
        evaluate(llama(), TOKENIZER, {**SETTINGS, "lengths_per_sequence": 1}, data)


def test_inside_only_needs_windows_of_the_training_length(data: Path) -> None:
    rows = evaluate(llama(), TOKENIZER, {**SETTINGS, "beyond": []}, data).rows
    assert {length for _, length in values(rows)} == {16}
    assert set(grid(rows, "symkl_grid")) == {(4, 8), (4, 16), (8, 16)}


def test_the_grid_is_the_powers_of_two_and_may_be_left_out(data: Path) -> None:
    assert misalignment.grid_lengths(128, 8) == [32, 64, 128, 256, 512, 1024]
    assert misalignment.grid_lengths(100, 6) == [25, 50, 100, 200, 400]
    assert misalignment.grid_lengths(2, 1) == [1, 2]
    without = {**SETTINGS, "grid_sequences": 0}
    rows = evaluate(llama(), TOKENIZER, without, data).rows
    assert {metric for metric, _ in values(rows)} == {row["metric"] for row in rows}
    all_of_them = {**SETTINGS, "grid_sequences": 99}
    rows = evaluate(llama(), TOKENIZER, all_of_them, data).rows
    assert {row["n"] for row in rows if row["metric"] == "symkl_grid"} == {5}
    assert protocol(all_of_them).endswith("&grid=5")


def test_protocol_says_what_was_done() -> None:
    assert protocol(SETTINGS) == "lsm/suffix-v1?train=16&seqs=5&k=4&beyond=2,4&grid=3"
    inside = {**SETTINGS, "beyond": [], "grid_sequences": 0}
    assert protocol(inside) == "lsm/suffix-v1?train=16&seqs=5&k=4&beyond=none"


def test_a_protocol_keeps_its_name_only_while_it_does_the_same(tmp_path: Path) -> None:
    """The contexts drawn from fixed documents, and the values of fixed distributions to ten digits."""
    sizes = [64 + 7 * number for number in range(12)]
    columns = {"name": [f"d{size}" for size in sizes], "text": [""] * 12, "input_ids": [list(range(n)) for n in sizes]}
    Dataset.from_dict(columns).save_to_disk(str(tmp_path / "test"))
    p = torch.tensor([[1, 2, 3, 4], [4, 3, 2, 1], [1, 1, 1, 7], [2, 5, 1, 2]], dtype=torch.float64) / 10
    measured = {
        "inside": misalignment.inside_range(p[:3].log()),
        "against long": misalignment.against_long(p[:3].log(), p[3].log()),
        "standard error": misalignment.standard_error(p, ["a", "a", "b", "c"]),
    }
    values = {
        f"{what} {place}": f"{number:.10g}"
        for what, numbers in measured.items()
        for place, number in enumerate(numbers.tolist())
    }
    for place, one in enumerate(misalignment.sequences(tmp_path, 40, 4, 64, L_TRAIN)):
        # The tokens of a document are its places, so that the first tells all.
        assert one.tokens.tolist() == list(range(one.tokens[0], one.tokens[0] + 64))
        values[f"sequence {place}"] = f"{one.document} at {one.offset} from {one.tokens[0]}, lengths {one.lengths}"
    for length in (16, 100):
        for longest in (1, 6, 8):
            values[f"grid {length} to {longest}"] = str(misalignment.grid_lengths(length, longest))
    version = protocol(SETTINGS).split("?")[0]
    golden.assert_unchanged("misalignment", version, values, "misalignment.protocol")
