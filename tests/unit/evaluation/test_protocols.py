"""Which tokens each protocol scores, with how much before them, and the names that this is published under."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset

from longshort.data import tokenizers
from longshort.data.settings import PretrainedTokenizer
from longshort.evaluation import protocols, temperature
from longshort.metrics.settings import Sliding
from tests.support import golden
from tests.support.perplexity import (
    BOS,
    DYNAMIC,
    LONGROPE,
    PREFIX,
    TOKENIZER,
    VOCABULARY,
    FromStates,
    by_key,
    data_folder,
    described,
    evaluate,
    llama,
    protocol,
)


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
    rows = evaluate(FromStates(ramp), TOKENIZER, settings, tmp_path).rows
    values = by_key(rows)
    assert [values["nll", length, "a"] for length in lengths] == pytest.approx(expected, abs=1e-9)
    assert [values["perplexity", length, None] for length in lengths] == pytest.approx(np.exp(expected), abs=1e-8)
    assert [row["n"] for row in rows if row["metric"] == "perplexity"] == scored
    if chosen["kind"] == "prefix":
        buckets = {row["task"]: (row["value"], row["n"]) for row in rows if row["task"] and row["length"] == 1024}
        assert list(buckets) == ["0", "1", "2-3", "4-7", *(f"{2**k}-{2 ** (k + 1) - 1}" for k in range(3, 10))]
        assert buckets["512-1023"] == (pytest.approx((512 + 1023) / 2000), 512)


@pytest.mark.parametrize("rope", [None, DYNAMIC, LONGROPE], ids=["default", "dynamic", "longrope"])
@pytest.mark.parametrize("length", [17, 32])
def test_blocks_are_what_a_model_says_of_its_own_loss(rope: dict | None, length: int, tmp_path: Path) -> None:
    """As run_clm and CLEX's scripts compute it."""
    data = data_folder(tmp_path, [3 * length + 5])
    settings = {"lengths": [length], "documents": 1, "protocol": {"kind": "block", "tokens": 3 * length}}
    rows = evaluate(llama(rope), TOKENIZER, {**settings, "temperature_documents": 0}, data).rows
    ids = torch.tensor(Dataset.load_from_disk(str(data / "test"))[0]["input_ids"][: 3 * length]).view(3, length)
    with torch.no_grad():
        expected = llama(rope)(ids, labels=ids).loss.item()
    assert by_key(rows)["nll", length, "d0"] == pytest.approx(expected, abs=2e-6)
    # The first token scored has one before it.
    assert {row["task"] for row in rows if row["metric"] == "nll_by_position"} >= {"1", "2-3"}
    assert "0" not in {row["task"] for row in rows if row["metric"] == "nll_by_position"}


@pytest.mark.parametrize("rope", [None, DYNAMIC], ids=["default", "dynamic"])
def test_without_bos_the_first_token_is_not_scored(rope: dict | None, tmp_path: Path) -> None:
    """Against the model's own loss; texts that begin with BOS give what prefix gives of the rest, one token shorter."""
    without = SimpleNamespace(bos_token_id=None)
    data = data_folder(tmp_path, [40])
    settings = {"lengths": [8, 32], "documents": 1, "protocol": PREFIX, "temperature_documents": 0}
    rows = evaluate(llama(rope), without, settings, data).rows
    ids = Dataset.load_from_disk(str(data / "test"))[0]["input_ids"]
    for length in (8, 32):
        with torch.no_grad():
            expected = llama(rope)(torch.tensor([ids[:length]]), labels=torch.tensor([ids[:length]])).loss.item()
        assert by_key(rows)["nll", length, "d0"] == pytest.approx(expected, abs=2e-6)
    assert [row["n"] for row in rows if row["metric"] == "nll"] == [7, 31]
    if rope is None:
        beginning = {"name": ["a"], "text": [""], "input_ids": [[BOS, *ids]]}
        Dataset.from_dict(beginning).save_to_disk(str(tmp_path / "begins" / "test"))
        shifted = by_key(evaluate(llama(), without, settings, tmp_path / "begins").rows)
        one_less = {**settings, "lengths": [7, 31]}
        usual = by_key(evaluate(llama(), TOKENIZER, one_less, data).rows)
        for length in (8, 32):
            assert shifted["nll", length, "a"] == pytest.approx(usual["nll", length - 1, "d0"], abs=2e-6)


def test_windows_without_bos_score_every_token_but_the_first() -> None:
    """Each token that slides by, once, with as many tokens before it as its window has."""
    found = protocols.readings(Sliding(kind="sliding", stride=3), np.arange(14), 6, 6, 0, None)
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
        names.append(protocol(settings, PretrainedTokenizer(kind="pretrained", name=str(tmp_path / folder))))
    plain = "ppl/prefix-v2?docs=1&lengths=8&temperature-docs=0"
    assert names == [plain, plain.replace("&temp", "&bos=none&temp")]
    assert protocol(settings) == plain
    not_looked_at = PretrainedTokenizer(kind="pretrained", name=str(tmp_path / "nowhere"))
    assert "bos" not in protocol({**settings, "protocol": {"kind": "block"}}, not_looked_at)


def test_protocol_says_what_was_done() -> None:
    settings = {"lengths": [256, 128], "documents": 32, "protocol": PREFIX, "temperature_documents": 0}
    assert protocol(settings) == "ppl/prefix-v2?docs=32&lengths=128,256&temperature-docs=0"


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
    values = by_key(evaluate(model, TOKENIZER, settings, data).rows)
    # The document of 41 tokens has one window only: all of it.
    ids = next(row["input_ids"] for row in Dataset.load_from_disk(str(data / "test")) if len(row["input_ids"]) == 41)
    for length in (8, 40):
        with torch.no_grad():
            logits = llama(rope)(torch.tensor([ids[40 - length : 40]])).logits[0, -3:].double()
        expected = -logits.log_softmax(-1)[torch.arange(3), torch.tensor(ids[-3:])].mean().item()
        assert values["nll", length, "d1"] == pytest.approx(expected, abs=2e-6)
    assert protocol(settings) == "ppl/same-targets-v2?docs=2&lengths=8,40&targets=3&temperature-docs=0"


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
    rows = evaluate(model, TOKENIZER, settings, tmp_path).rows
    for whole, part in {"accuracy": "accuracy", "perplexity_checkpoint_t": "nll_checkpoint_t"}.items():
        for length in settings["lengths"]:
            (total,) = (r for r in rows if (r["metric"], r["length"], r["document"]) == (whole, length, None))
            parts = [r for r in rows if (r["metric"], r["length"]) == (part, length) and r["document"] is not None]
            mean = sum(row["n"] * row["value"] for row in parts) / total["n"]
            assert total["value"] == pytest.approx(mean if whole == part else math.exp(mean), rel=1e-9)
    rows = [row for row in rows if row["document"] is None or row["metric"] == "nll"]
    values = {described(row): f"{row['value']:.4g} over {row['n']}" for row in rows}
    assert len(values) == len(rows)
    name, version = f"perplexity-{chosen['kind']}", protocol(settings)
    golden.assert_unchanged(name, version, values, "perplexity.protocol")


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
def test_a_protocol_keeps_its_name_only_while_it_fits_and_bins_the_same(
    chosen: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where every constant of the fit counts: of two validation documents each has more tokens than are fitted, of
    forty more than the least number, and the last two models are best below the coldest and above the hottest."""
    monkeypatch.setattr(temperature, "FORMERLY_FITTED", 1023)
    monkeypatch.setattr(temperature, "FITTED_TOKENS", 1024)
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
        rows = evaluate(model, TOKENIZER, fitted, tmp_path).rows
        where = f"where {documents} documents are fitted and logits are {scale:g} times as large"
        rows = [row for row in rows if row["document"] is None]
        values |= {f"{described(row)} {where}": f"{row['value']:.4g}" for row in rows}
    assert len(values) == 4 * len(rows)
    name, version = f"perplexity-{chosen['kind']}-fitted", protocol(settings)
    golden.assert_unchanged(name, version, values, "perplexity.protocol")
