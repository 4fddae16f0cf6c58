"""What `check` can know of a study before anything runs: what it names is there, and says the same."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest

from longshort import studies
from longshort.errors import StudyError
from longshort.models import load
from longshort.study import resolve
from tests.support.project import TINY, write_study

ARCHITECTURE = {"hidden_size": 16, "intermediate_size": 32, "layers": 3, "heads": 2, "rope_theta": 10000.0}
LORA = {"kind": "lora", "rank": 2, "alpha": 4.0}


@pytest.fixture
def folder(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(project)
    return project


@pytest.fixture
def model(folder: Path) -> Path:
    made = load.from_scratch(ARCHITECTURE, vocabulary=257, separator=256, length=128, seed=0)
    made.save_pretrained(folder / "model")
    return folder / "model"


def check(folder: Path, name: str = "tiny", **changes: Any) -> resolve.ResolvedStudy:
    write_study(folder, {**TINY, **changes}, name)
    return resolve.load(name)


def pretrained(**changes: Any) -> dict[str, Any]:
    return {"model": {"kind": "pretrained", "name": "model", "layers": 3, "max_length": 128, **changes}}


def refused(folder: Path, said: str, name: str = "tiny", **changes: Any) -> None:
    with pytest.raises(StudyError, match=said):
        check(folder, name, **changes)


def test_a_model_is_whole_and_as_deep_as_the_study_says(folder: Path, model: Path) -> None:
    assert check(folder, **pretrained())
    refused(
        folder,
        r"model.layers = 4: model/config.json says num_hidden_layers 3; give that number",
        **pretrained(layers=4),
    )
    whole = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(whole[:-100])
    refused(folder, "model.safetensors was cut short", **pretrained())
    (model / "model.safetensors").write_bytes(whole[:5])
    refused(folder, "no whole safetensors file", **pretrained())
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    refused(folder, "no weights in .safetensors files there", **pretrained())
    (model / "config.json").unlink()
    refused(folder, "no config.json there", **pretrained())


def test_an_index_names_files_that_are_there(folder: Path, model: Path) -> None:
    index = {"weight_map": {"model.norm.weight": "model.safetensors", "lm_head.bias": "model-2.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(folder, "names lm_head.bias, which is in no file", **pretrained())


@pytest.mark.parametrize("local", [False, True])
def test_an_adapter_stands_beside_layers_that_the_model_has(folder: Path, model: Path, local: bool) -> None:
    base = pretrained() if local else {}
    training = {**TINY["training"], "adapter": {**LORA, "targets": ["q_proj", "down_proj"]}}
    assert check(folder, training=training, **base)
    training = {**TINY["training"], "adapter": {**LORA, "targets": ["q_proj", "v_porj"]}}
    refused(
        folder,
        "adapter.targets = 'v_porj': the model has no layer of that name; it has down_proj",
        training=training,
        **base,
    )
    training = {**TINY["training"], "adapter": {**LORA, "targets": ["lm_head"]}}
    refused(folder, "'lm_head' is the head", training=training, **base)


def test_tasks_are_there_and_not_empty(folder: Path) -> None:
    def source(kind: str, path: str) -> dict[str, Any]:
        longbench = {"source": {"kind": kind, "path": path}, "max_length": 128, "max_new_tokens": 4}
        return {"evaluations": {"longbench_e": longbench}}

    (folder / "tasks").mkdir()
    refused(folder, "no <task>_e.jsonl there", **source("folder", "tasks"))
    (folder / "tasks/trec_e.jsonl").touch()
    refused(folder, "trec_e.jsonl is empty", **source("folder", "tasks"))
    (folder / "tasks/trec_e.jsonl").write_text("{}\n")
    assert check(folder, **source("folder", "tasks"))
    (folder / "tasks/{task}_e.jsonl").write_text("{}\n")
    refused(folder, "has a brace or a line break in its name", **source("folder", "tasks"))
    refused(folder, "no zip file there", **source("zip", "data.zip"))
    (folder / "data.zip").write_text("no zip")
    refused(folder, "no zip file there", **source("zip", "data.zip"))
    with ZipFile(folder / "data.zip", "w") as file:
        file.writestr("data/trec_e.jsonl", "{}")
    assert check(folder, **source("zip", "data.zip"))
    os.rename(folder / "corpus", folder / "{corpus}")
    refused(folder, "has a brace", data={**TINY["data"], "corpus": {"kind": "text", "path": "{corpus}"}})


def test_a_task_is_in_ones_own_folder_or_in_lm_eval(folder: Path) -> None:
    (folder / "tasks").mkdir()
    (folder / "tasks/mine.yaml").write_text("task: my_task\ndataset_path: json\n")

    def asked(*tasks: str) -> dict[str, Any]:
        return {"evaluations": {"harness": {"tasks": [*tasks], "max_length": 64, "include_path": "tasks"}}}

    assert check(folder, **asked("my_task", "hellaswag", "mmlu"))
    refused(folder, "tasks = 'my_tsk': neither tasks nor lm_eval has it; did you mean 'my_task'", **asked("my_tsk"))


@pytest.mark.parametrize("name", ["runs", "data", "evaluations", "a b", "$(touch PWNED)", "-x", "x" * 65, "é"])
def test_a_study_has_a_name_that_is_no_other_folder_and_no_command(folder: Path, name: str) -> None:
    refused(folder, "which all studies share|would be a file name", name)


def test_the_engine_is_given_a_study_and_nothing_else(folder: Path) -> None:
    check(folder)
    assert studies.of_config({"study": "tiny"}).name == "tiny"
    for config in ({"studdy": "tiny"}, {"study": "tiny", "seeds": 3}):
        with pytest.raises(StudyError, match="unknown key; only study=NAME is known here"):
            studies.of_config(config)


DEEPSPEED = json.loads((Path(__file__).parents[2] / "config/deepspeed/zero2.json").read_text())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"fp16": {"enabled": True}}, "fp16 = .*training.precision says fp32"),
        ({"bf16": {"enabled": True}}, "bf16 = .*training.precision says fp32"),
        ({"gradient_clipping": 0.5}, "max_gradient_norm says 1; give 'auto'"),
        ({"optimizer": {"type": "Adam"}}, "optimizer = .*for the study to say"),
        ({"scheduler": {"type": "WarmupLR"}}, "scheduler = .*for the study to say"),
        ({"zero_optimisation": {"stage": 2}}, "did you mean 'zero_optimization'"),
        ({"zero_optimization": {"stage": 7}}, "zero_optimization.stage = 7: there are the stages"),
        ({"zero_optimization": {"stage": True}}, "zero_optimization.stage = True"),
        ({"zero_optimization": {"stge": 2}}, "zero_optimization.stge = 2: .*did you mean 'stage'"),
        ({"zero_optimization": 2}, "must be an object"),
        ({"train_batch_size": 8}, "the study's training says the batch"),
    ],
)
def test_a_deepspeed_file_says_nothing_that_the_study_says(folder: Path, changes: dict[str, Any], said: str) -> None:
    (folder / "config/deepspeed/zero1.json").write_text(json.dumps({**DEEPSPEED, **changes}))
    refused(folder, f"config/deepspeed/zero1.json: .*{said}")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"lengths": {"train": 16, "test": 8}}, "test 8 is below train 16"),
        ({"seeds": list(range(8_000))}, "more than 10000 runs; give fewer seeds"),
        ({"seeds": list(range(50_000))}, "bytes; files of this kind have 100000 at most"),
        ({"training": {**TINY["training"], "steps": 2**64}}, "training.steps = .*must be at most 1000000"),
        ({"training": {**TINY["training"], "batch": True}}, "training.batch = True: must be an integer"),
        ({"training": {**TINY["training"], "learning_rate": "0.1"}}, "learning_rate = '0.1': must be a number"),
        ({"alignment": {"alpha": 1e308, "schedule": {"kind": "linear", "start": 0.0, "end": 1e10}}}, "is no number"),
        ({"alignment": {"schedule": {"kind": "ratio", "power": 1e6}}}, "leave the range of numbers"),
        (
            {"alignment": {"schedule": {"kind": "exponential", "start": 1e-308, "end": 1e308}}},
            "range of numbers|no number",
        ),
    ],
)
def test_numbers_that_cannot_be_meant_are_refused(folder: Path, changes: dict[str, Any], said: str) -> None:
    refused(folder, said, **changes)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"runs": []}, "do not name the same runs"),
        ({"records": []}, "do not name the same runs"),
        ({"runs": ["b" * 16]}, "do not name the same runs"),
        ({"because": " "}, "because is no text"),
        ({"from": 7}, "from is no text"),
        ({"modules": "all"}, "modules is no list of texts"),
    ],
)
def test_an_acceptance_that_was_edited_is_refused(folder: Path, changed: dict[str, Any], said: str) -> None:
    run = "a" * 16
    whole = {"arm": "constant", "runs": [run], "records": [f"results/runs/{run}/training/2-6.json"], "stage": "s"}
    whole |= {"from": "f", "to": "t", "modules": ["m.py"], "because": "a comment", "time": "now"}
    (folder / "results").mkdir()
    (folder / "results/accepted.json").write_text(json.dumps([whole]))
    assert check(folder).accepted == [whole]
    (folder / "results/accepted.json").write_text(json.dumps([{**whole, **changed}]))
    refused(folder, said)
