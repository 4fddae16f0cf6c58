"""What evaluation stages share: what a result is the result of, and checkpoints that diverged."""

from __future__ import annotations

import math
import zipfile
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas
import pytest
import torch
from datasets import Dataset

from longshort.data.settings import BytesTokenizer
from longshort.errors import UserError
from longshort.evaluation import harness, loaded, longbench, misalignment, prompts, stage
from longshort.evaluation.journal import Journal, Measured
from longshort.records import provenance
from longshort.records.publish import file_digest, folder_digests, read_record, write_json, write_record
from tests.support.longbench import tiny_llama


def asked_of(
    folder: Path, settings: dict[str, Any], metric: str, *items: Path, content: str = "d", precision: str = "fp32"
) -> Namespace:
    """What a stage is given for the checkpoint of step 5, in folder/checkpoint if there is one."""
    checkpoint = folder / "checkpoint"
    files = folder_digests(checkpoint) if checkpoint.exists() else {}
    spec = {"metric": metric, "length": 16, "data": {"corpus": {"kind": "stdlib"}}, "precision": precision}
    write_json(folder / "spec.json", {**spec, "settings": settings})
    (folder / "test").mkdir(exist_ok=True)
    (folder / "test/notes").write_text("of the corpus")
    files_of_data = {"test/notes": file_digest(folder / "test/notes")}
    write_record(folder / "data.json", {"content": content, "files": files_of_data})
    step = {"5": {"path": str(checkpoint), "files": files}}
    write_record(folder / "run.json", {"run": "s", "run_id": "r", "status": "ok", "checkpoints": step})
    return Namespace(
        spec=folder / "spec.json", data=folder / "data.json", run=folder / "run.json", steps="5",
        out=folder / "out.parquet", code=None, items=list(items), work=folder / "work",
    )  # fmt: skip


def published(arguments: Namespace, measurement: stage.Measurement) -> pandas.DataFrame:
    """What a stage publishes."""
    beat: Any = SimpleNamespace(watch=lambda progress: None)
    stage.make(arguments, measurement._replace(keeps_items=False), beat)
    return pandas.read_parquet(arguments.out)


def evaluated(
    folder: Path, settings: dict[str, Any], measurement: stage.Measurement, *items: Path, precision: str = "fp32"
) -> pandas.DataFrame:
    return published(asked_of(folder, settings, measurement.metric, *items, precision=precision), measurement)


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Stands in for the measuring: the number is how often it was done."""
    done: list[int] = []

    def evaluate(*_: Any) -> Measured:
        done.append(1)
        return Measured([{"metric": "m", "value": float(len(done)), "n": 1}])

    monkeypatch.setattr(loaded, "load", lambda checkpoint, precision: None)
    monkeypatch.setattr(stage, "_answers", lambda model, data, length: True)
    return evaluate


HARNESS = {"tasks": ["t"], "limit": None, "num_fewshot": None, "max_length": 64}


def test_a_result_of_other_items_is_not_found_again(tmp_path: Path, counting: Any) -> None:
    """Given with --items, two of one name among them, or not; what Python makes of task files does not count."""
    for name in ("own/a", "own/b"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "utils.py").write_text("1")
    measured = harness.MEASUREMENT._replace(evaluate=counting)
    given = [tmp_path / "own/a/utils.py", tmp_path / "own/b/utils.py"]
    settings = {**HARNESS, "include_path": None}

    def value(settings: dict[str, Any], *items: Path) -> float:
        (found,) = evaluated(tmp_path, settings, measured, *items)["value"]
        return float(found)

    assert [value(settings, *given), value(settings, *given)] == [1, 1]
    given[0].write_text("2")
    assert value(settings, *given) == 2
    settings["include_path"] = str(tmp_path / "own")
    assert value(settings) == 3
    (tmp_path / "own/__pycache__").mkdir()
    (tmp_path / "own/__pycache__/utils.pyc").write_text("x")
    assert value(settings) == 3
    given[0].write_text("3")
    assert value(settings) == 4


def test_a_result_of_other_longbench_items_is_not_found_again(tmp_path: Path, counting: Any) -> None:
    measured = longbench.MEASUREMENT._replace(evaluate=counting)
    made = {"source": {"kind": "stand-in", "items_per_task": 3}, "max_length": 64, "max_new_tokens": 8}
    local = {**made, "source": {"kind": "zip", "path": str(tmp_path / "data.zip")}}

    def values(settings: dict[str, Any]) -> list[float]:
        return evaluated(tmp_path, settings, measured)["value"].tolist()

    items = tmp_path / "longbench-e-3" / "lcc_e.jsonl"
    items.parent.mkdir()

    def make_items(content: str) -> None:
        items.write_text(content)
        write_json(items.with_name("manifest.json"), {items.name: file_digest(items)})

    make_items("a")
    assert [values(made), values(made)] == [[1], [1]]
    make_items("b")
    assert values(made) == [2]
    for content in ("{}", "[]"):
        with zipfile.ZipFile(tmp_path / "data.zip", "w") as file:
            for task in prompts.TASKS:
                file.writestr(f"data/{task}_e.jsonl", content)
        assert values(local) == [3 if content == "{}" else 4]
    (tmp_path / "data.zip").unlink()
    with pytest.raises(UserError, match="longbench_e: LongBench-E task qasper is missing: no file"):
        values(local)


def test_a_result_of_other_libraries_is_not_found_again(
    tmp_path: Path, counting: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = misalignment.MEASUREMENT._replace(evaluate=counting, protocol=lambda *_: "p")
    settings = {"sequences": 2, "lengths_per_sequence": 2, "beyond": []}
    assert evaluated(tmp_path, settings, measured)["value"].tolist() == [1]
    monkeypatch.setattr(provenance, "environment", lambda: "torch=9")
    again = evaluated(tmp_path, settings, measured)
    assert again["value"].tolist() == [2] and again["environment"].tolist() == ["torch=9"]


def test_what_is_published_stands_while_it_is_what_would_be_published(
    tmp_path: Path, counting: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else several metrics of one job would keep the numbers of another corpus, of other weights or other items."""
    measured = misalignment.MEASUREMENT._replace(evaluate=counting)
    settings, item = {"sequences": 2, "lengths_per_sequence": 2, "beyond": []}, tmp_path / "item"
    item.write_text("1")

    def stands(**changed: Any) -> bool:
        asked = asked_of(tmp_path, {**settings, **changed.pop("settings", {})}, "misalignment", item, **changed)
        return stage.stands(asked, measured)

    assert not stands()
    published(asked_of(tmp_path, settings, "misalignment", item), measured)
    assert stands()
    assert not stands(content="another") and not stands(precision="bf16") and not stands(settings={"sequences": 3})
    item.write_text("2")
    assert not stands()
    item.write_text("1")
    with monkeypatch.context() as patch:
        patch.setattr(provenance, "environment", lambda: "torch=9")
        assert stands()
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint/model.safetensors").write_text("weights")
    assert not stands()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_model_is_measured_in_the_precision_that_is_asked_for(tmp_path: Path, precision: str) -> None:
    tiny_llama().save_pretrained(tmp_path / "checkpoint")
    Dataset.from_dict({"name": ["d"], "text": [""], "input_ids": [[7] * 40]}).save_to_disk(str(tmp_path / "test"))
    types: list[torch.dtype] = []

    def evaluate(model: Any, *_: Any) -> Measured:
        types.append(model.dtype)
        return Measured([{"metric": "misalignment", "value": 1.0, "n": 1}])

    settings = {"sequences": 2, "lengths_per_sequence": 2, "beyond": []}
    found = evaluated(tmp_path, settings, misalignment.MEASUREMENT._replace(evaluate=evaluate), precision=precision)
    assert types == [{"fp32": torch.float32, "bf16": torch.bfloat16}[precision]]
    assert found["protocol"].item().endswith("&weights=bf16") == (precision == "bf16")


@pytest.mark.parametrize("place", ["head", "layer"])
def test_a_checkpoint_of_nan_is_marked_and_not_measured(tmp_path: Path, place: str) -> None:
    model = tiny_llama()
    with torch.no_grad():
        weight = model.lm_head.weight if place == "head" else model.model.layers[1].mlp.down_proj.weight
        weight[0, 0] = math.nan
    model.save_pretrained(tmp_path / "checkpoint")
    Dataset.from_dict({"name": ["d"], "text": [""], "input_ids": [[7] * 40]}).save_to_disk(str(tmp_path / "test"))
    settings = {"sequences": 2, "lengths_per_sequence": 2, "beyond": []}
    (row,) = evaluated(tmp_path, settings, misalignment.MEASUREMENT).to_dict("records")
    assert (row["metric"], row["step"], row["n"], row["status"]) == ("misalignment", 5, 0, "diverged")
    assert math.isnan(row["value"]) and read_record(tmp_path / "out.json")["run_id"] == "r"


def test_an_undefined_metric_is_no_divergence() -> None:
    def status(metric: str, value: float) -> str:
        return stage._status({"metric": metric, "value": value, "n": 4})

    assert [status("harness", math.nan), status("harness:mcc", math.nan)] == ["undefined"] * 2
    assert [status("perplexity", math.nan), status("harness", math.inf)] == ["diverged"] * 2
    assert status("harness", 0.5) == "ok"


def test_each_checkpoint_has_its_own_numbers_also_where_a_killed_job_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Items are called alike in all checkpoints."""
    monkeypatch.setattr(stage, "_answers", lambda model, data, length: True)
    measured = iter(range(1, 9))

    def evaluate(*given: Any) -> Measured:
        journal = given[-1]
        if (value := journal.get("item")) is None:
            value = next(measured)
            journal.add("item", value)
        return Measured([{"metric": "m", "value": value, "n": 1}])

    measurement = misalignment.MEASUREMENT._replace(evaluate=evaluate)
    run = {"status": "ok", "checkpoints": {"5": {}, "7": {}}}
    data = SimpleNamespace(tokenizer=BytesTokenizer())
    spec: Any = SimpleNamespace(settings=None, length=16, precision="fp32", data=data)
    models: Any = SimpleNamespace(of=lambda checkpoint, precision: None)
    for _ in range(2):
        journal = Journal(tmp_path / "journal")
        rows = stage._checkpoints(measurement, run, [5, 7], spec, tmp_path, journal, models).rows
        assert {row["step"]: row["value"] for row in rows} == {5: 1, 7: 2}
