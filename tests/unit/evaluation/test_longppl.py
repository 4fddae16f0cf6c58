"""LongPPL against the authors' package, text by text, and by hand for models whose losses are known."""

from __future__ import annotations

import hashlib
import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas
import pytest
import torch
from datasets import Dataset
from longppl.longppl import compute_longppl
from transformers import LlamaConfig

from longshort.data import tokenizers
from longshort.data.settings import BytesTokenizer
from longshort.evaluation import key_tokens, longppl
from longshort.metrics.settings import LongPPL
from longshort.records import layout
from longshort.records.publish import folder_digests, read_record, write_record
from tests.support.longppl import BY, DYNAMIC, TEXTS, llama, words

TOKENIZERS = {"bytes": tokenizers.byte_tokenizer, "words": words}


@pytest.mark.parametrize("pair", [("bytes", "bytes"), ("bytes", "words"), ("words", "bytes")], ids="-".join)
def test_equals_the_official_package(pair: tuple[str, str]) -> None:
    model, evaluator = llama(1), llama(2)
    tokenizer, its = (TOKENIZERS[name]() for name in pair)
    compared = 0
    for text in TEXTS:
        official = compute_longppl(
            text, model, evaluator, tokenizer, its, None, BY.short, BY.stride, BY.gain, -BY.below
        )
        ids = tokenizer(text, add_special_tokens=False).input_ids
        spans = key_tokens.merged(key_tokens.find(evaluator, its, text, BY).spans)
        positions = key_tokens.tokens_inside(key_tokens.offsets_of(tokenizer, text, ids), spans)
        sums = longppl.of_document(model, torch.tensor(ids), torch.tensor(positions), [len(ids)], BY)
        n, total, _ = sums[str(len(ids))]
        assert n == len(positions) == (official["n_key_token"] or 0)
        if n:
            assert math.exp(total / n) == pytest.approx(float(official["longppl"]), rel=1e-5)
            compared += 1
    assert compared >= 15, "texts with key tokens"


class Copies(torch.nn.Module):
    """Says with 0.9 what followed the last time that the token before it came, within what it reads; else 1 / 257."""

    sure = 0.9

    def __init__(self) -> None:
        super().__init__()
        self.config, self.device = LlamaConfig(vocab_size=257), torch.device("cpu")

    def get_decoder(self) -> Any:
        return self

    def get_output_embeddings(self) -> Any:
        return torch.nn.Identity()

    def forward(self, input_ids: torch.Tensor, use_cache: bool) -> Any:
        logits = torch.full((*input_ids.shape, 257), math.log(1 / 257))
        for row, ids in enumerate(input_ids.tolist()):
            for place, token in enumerate(ids):
                before = [k for k in range(place) if ids[k] == token]
                if before and self.sure:
                    logits[row, place] = math.log((1 - self.sure) / 256)
                    logits[row, place, ids[before[-1] + 1]] = math.log(self.sure)
        return SimpleNamespace(last_hidden_state=logits)


class Uniform(Copies):
    sure = 0.0


class LessSure(Copies):
    sure = 0.8


# Each letter follows the same one as 40 characters before: beyond a short context of 8 to 12.
FIRST = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMN"
SETTINGS: dict[str, Any] = {
    **{"evaluator": {"kind": "pretrained", "name": "evaluator", "revision": None, "precision": "fp32"}},
    **{"short": 8, "stride": 4, "gain": 2.0, "below": 2.0, "lengths": [50, 60], "documents": 3},
}


NAMES = ["near", "far", "never"]
TEXTS_OF = [FIRST + FIRST[:20], FIRST + "OPQRSTUVWXYZ" + FIRST[:8], FIRST + "OPQRSTUVWXYZ01234567"]


def prepare(folder: Path, texts: list[str], content: str) -> None:
    ids = [list(text.encode()) for text in texts]
    Dataset.from_dict({"name": NAMES, "text": texts, "input_ids": ids}).save_to_disk(str(folder / "test"))
    files = {f"test/{name}": sha for name, sha in folder_digests(folder / "test").items()}
    spec = {"corpus": {"kind": "stdlib"}, "tokenizer": {"kind": "bytes"}}
    write_record(folder / "manifest.json", {"spec": spec, "content": content, "files": files})


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A corpus of bytes: a text that repeats itself after 40 characters, one that does so after 52, one that never."""
    prepare(tmp_path, TEXTS_OF, "d")
    monkeypatch.chdir(tmp_path)
    Path("evaluator").mkdir()
    key_tokens._digest_of.cache_clear()  # of a folder of that name of another test
    monkeypatch.setattr(key_tokens, "_loaded", lambda evaluator: (Copies(), tokenizers.byte_tokenizer()))
    return tmp_path


def evaluate(model: Any, settings: dict[str, Any], data: Path) -> Any:
    return longppl.evaluate(model, None, LongPPL.model_validate(settings), data, 8)


def find(data: Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> layout.KeyTokens:
    search = LongPPL.model_validate(settings).key_tokens
    place = layout.key_tokens(data, search.id)
    by = search.model_dump_json()
    arguments = ["key_tokens", "--data", str(data / "manifest.json"), "--by", by, "--out", place.record]
    monkeypatch.setattr(sys, "argv", [*arguments, "--work", str(data / "work")])
    monkeypatch.setattr(key_tokens.hub, "refuse_network", lambda: None)  # it would hold for all tests that follow
    monkeypatch.setattr(key_tokens.interruption, "end_at_once", lambda: None)
    key_tokens.main()
    return place


def test_models_that_copy_and_that_do_not(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = find(data, SETTINGS, monkeypatch)
    tokens = pandas.read_parquet(place.tokens)
    # The first letter of a repetition is not foretold: what came before it is new.
    assert tokens[tokens["document"] == "near"]["position"].tolist() == list(range(41, 60))
    assert tokens[tokens["document"] == "far"]["start"].tolist() == list(range(53, 60))
    assert "never" not in set(tokens["document"])
    assert tokens["loss_long"].to_numpy() == pytest.approx(-math.log(0.9), rel=1e-5)
    assert tokens["loss_short"].to_numpy() == pytest.approx(math.log(257), rel=1e-5)
    for model, long, gain in (
        (Copies(), 1 / 0.9, math.log(257) + math.log(0.9)),
        (Uniform(), 257.0, 0.0),
    ):
        rows = evaluate(model, SETTINGS, data).rows
        said = {(row["metric"], row["length"]): row for row in rows if row["document"] is None}
        for length, count, without in ((50, 9, 2), (60, 26, 1)):
            assert said["key_tokens", length]["value"] == count and said["key_tokens", length]["n"] == 3
            assert said["documents_without_key_tokens", length]["value"] == without
            assert (
                said["longppl", length]["value"] == pytest.approx(long, rel=1e-5)
                and said["longppl", length]["n"] == count
            )
            assert said["lsd", length]["value"] == pytest.approx(gain, abs=1e-5)
        of_documents = {
            row["document"]: row["n"] for row in rows if row["metric"] == "longppl_nll" and row["length"] == 60
        }
        assert of_documents == {"near": 19, "far": 7}
        assert said["longppl_nll_se", 60]["value"] == pytest.approx(0, abs=1e-6)
        assert ("longppl_nll_se", 50) not in said, "one document does not say how documents differ"


@pytest.mark.parametrize("changed", ["corpus", "evaluator"])
def test_what_was_found_in_other_texts_or_by_another_evaluator_is_looked_for_anew(
    data: Path, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    """Work that was finished for texts of the same names lies in the same folder."""
    find(data, SETTINGS, monkeypatch)
    documents, loss = {"near", "far"}, -math.log(0.9)
    if changed == "corpus":
        prepare(data, TEXTS_OF[::-1], "e")
        documents = {"far", "never"}
    else:
        (data / "evaluator/config.json").write_text("{}")
        key_tokens._digest_of.cache_clear()
        monkeypatch.setattr(key_tokens, "_loaded", lambda evaluator: (LessSure(), tokenizers.byte_tokenizer()))
        loss = -math.log(0.8)
    tokens = pandas.read_parquet(find(data, SETTINGS, monkeypatch).tokens)
    assert set(tokens["document"]) == documents
    assert tokens["loss_long"].to_numpy() == pytest.approx(loss, rel=1e-5)


def test_as_many_documents_are_read_as_the_protocol_says(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {**SETTINGS, "documents": 2}
    first = sorted(NAMES, key=lambda name: hashlib.sha256(name.encode()).hexdigest())[:2]
    assert read_record(Path(find(data, settings, monkeypatch).record))["documents"] == first
    rows = evaluate(Copies(), settings, data).rows
    assert [row["n"] for row in rows if row["metric"] == "key_tokens"] == [2, 2]


def test_standard_errors_by_hand() -> None:
    """Three key tokens. Losses: mean 3.5 / 3, residuals by document 2/3 and -2/3. Gains: mean 1, residuals -1 and 1.
    The errors are sqrt(2 / 1 x the sum of squares) / 3."""
    rows = longppl._rows(60, {"a": [2, 3.0, 1.0], "none": [0, 0.0, 0.0], "b": [1, 0.5, 2.0]})
    errors = {row["metric"]: (row["value"], row["n"]) for row in rows if row["metric"].endswith("_se")}
    assert errors == {"longppl_nll_se": (pytest.approx(4 / 9), 2), "lsd_se": (pytest.approx(2 / 3), 2)}


def test_a_length_without_key_tokens_has_no_number(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {**SETTINGS, "lengths": [20, 60]}
    find(data, settings, monkeypatch)
    rows = evaluate(Copies(), settings, data).rows
    assert [row["value"] for row in rows if row["metric"] == "longppl"] == [None, pytest.approx(1 / 0.9, rel=1e-5)]
    assert all(row["value"] is None or math.isfinite(row["value"]) for row in rows)


def test_prefixes_of_one_forward_are_those_of_a_forward_each() -> None:
    """Where the frequencies depend on the length, each length is read by itself."""
    ids, positions = torch.randint(300, (90,)), torch.arange(10, 90, 3)
    for rope in (None, DYNAMIC):
        model = llama(3, rope=rope)
        together = longppl.of_document(model, ids, positions, [60, 90], BY)
        alone = longppl.of_document(model, ids[:60], positions[positions < 60], [60], BY)
        assert together["60"][:2] == pytest.approx(alone["60"][:2], rel=1e-5)
        losses = torch.nn.functional.cross_entropy(model(ids[None, :60]).logits[0, :-1], ids[1:60], reduction="none")
        assert together["60"][1] == pytest.approx(losses[positions[positions < 60] - 1].sum().item(), rel=1e-4)


def test_no_other_evaluator_and_no_other_settings_share_a_protocol(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_text(name)

    def said(**changed: Any) -> str:
        evaluator = {**SETTINGS["evaluator"], "name": str(tmp_path / "a"), **changed.pop("evaluator", {})}
        return longppl.protocol(
            LongPPL.model_validate({**SETTINGS, "evaluator": evaluator, **changed}), 8, BytesTokenizer()
        )

    hub = {"name": "who/what", "revision": 40 * "a"}
    names = [
        *(said(), said(evaluator={"name": str(tmp_path / "b")}), said(evaluator={"precision": "bf16"})),
        *(said(evaluator=hub), said(evaluator={**hub, "revision": 40 * "b"})),
        *(said(short=9), said(stride=5), said(gain=1.0), said(below=1.0), said(documents=2), said(lengths=[60])),
    ]
    assert len(set(names)) == len(names)


def test_key_tokens_of_another_evaluator_or_none_at_all(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="were not looked for"):
        evaluate(Copies(), SETTINGS, data)
    scored = Path(find(data, SETTINGS, monkeypatch).scored)
    whole = scored.read_bytes()
    pandas.read_parquet(scored)[:-1].to_parquet(scored, index=False)
    with pytest.raises(ValueError, match="scored.parquet is not the file that was written"):
        evaluate(Copies(), SETTINGS, data)
    scored.write_bytes(whole)
    (data / "evaluator" / "config.json").write_text("{}")
    key_tokens._digest_of.cache_clear()
    with pytest.raises(ValueError, match="is not the one that found"):
        evaluate(Copies(), SETTINGS, data)
    with pytest.raises(SystemExit) as ended:
        find(data, {**SETTINGS, "gain": 9.0}, monkeypatch)
    assert ended.value.code not in (0, None)


def test_a_long_context_is_longer_than_the_short_one() -> None:
    with pytest.raises(ValueError, match="no long one"):
        LongPPL.model_validate({**SETTINGS, "lengths": [8]})
