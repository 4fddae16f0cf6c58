"""What `check` can know of a study before anything runs: what it names is there, and says the same."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
from safetensors.torch import load_file

from tests.support.project import TINY
from tests.support.studies import LORA, check, pretrained, refused


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
    refused(folder, "says that lm_head.bias is in model-2.safetensors, which is not there", **pretrained())
    (model / "model-2.safetensors").write_bytes((model / "model.safetensors").read_bytes())
    refused(folder, "names lm_head.bias, which is in no file", **pretrained())
    names = sorted(load_file(model / "model.safetensors"))
    index = {"weight_map": dict.fromkeys(names[:-1], "model.safetensors")}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(folder, f"does not name {names[-1]}, which is in one of its files", **pretrained())


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


def test_each_corpus_is_there(folder: Path) -> None:
    corpus = {"kind": "text", "path": "corpus"}
    for key in ("validation_corpus", "test_corpus"):
        assert check(folder, data={"corpus": corpus, key: corpus})
        refused(
            folder,
            rf"data\.{key}\.path = 'nowhere': no file there",
            data={"corpus": corpus, key: {"kind": "text", "path": "nowhere"}},
        )
        refused(
            folder,
            rf"data\.{key}\.name = 'nothing': not installed here",
            data={"corpus": corpus, key: {"kind": "package", "name": "nothing", "content": "0" * 64}},
        )
        refused(
            folder,
            r"0.2 and a \w+_corpus: the \w+ documents come from one of the two",
            data={"corpus": corpus, key: corpus, key.removesuffix("_corpus"): 0.2},
        )
    refused(folder, "test = 0 leaves no document for evaluation", data={"corpus": corpus, "test": 0})


def test_tasks_are_there_and_not_empty(folder: Path) -> None:
    def source(kind: str, path: str) -> dict[str, Any]:
        longbench = {"source": {"kind": kind, "path": path}, "max_length": 128, "max_new_tokens": 4}
        return {"evaluations": {"longbench_e": longbench}}

    (folder / "tasks").mkdir()
    refused(folder, "no <task>_e.jsonl there", **source("folder", "tasks"))
    (folder / "tasks/trec_e.jsonl").touch()
    refused(folder, "trec_e.jsonl is empty", **source("folder", "tasks"))
    for content, said in {
        "[1, 2]\n": "trec_e.jsonl, line 1: no field 'context'",
        '{"context": ""}': "trec_e.jsonl, line 1: no field 'answers'",
        '{"input": "a", "context"': "trec_e.jsonl, line 1 is no valid JSON",
    }.items():
        (folder / "tasks/trec_e.jsonl").write_text(content)
        refused(folder, said, **source("folder", "tasks"))
    item = json.dumps(dict.fromkeys(["input", "context", "answers", "length", "all_classes", "_id"], ""))
    (folder / "tasks/trec_e.jsonl").write_text(item)
    assert check(folder, **source("folder", "tasks"))
    (folder / "tasks/{task}_e.jsonl").write_text(item)
    refused(folder, "has a brace or a line break in its name", **source("folder", "tasks"))
    refused(folder, "no zip file there", **source("zip", "data.zip"))
    (folder / "data.zip").write_text("no zip")
    refused(folder, "no zip file there", **source("zip", "data.zip"))
    with ZipFile(folder / "data.zip", "w") as file:
        file.writestr("data/trec_e.jsonl", "{}")
    refused(folder, "data/trec_e.jsonl, line 1: no field 'context'", **source("zip", "data.zip"))
    with ZipFile(folder / "data.zip", "w") as file:
        file.writestr("data/trec_e.jsonl", item)
    assert check(folder, **source("zip", "data.zip"))
    os.rename(folder / "corpus", folder / "{corpus}")
    assert check(folder, data={**TINY["data"], "corpus": {"kind": "text", "path": "{corpus}"}})


def test_a_task_is_in_ones_own_folder_or_in_lm_eval(folder: Path) -> None:
    (folder / "tasks").mkdir()
    (folder / "tasks/mine.yaml").write_text("task: my_task\ndataset_path: json\n")

    def asked(*tasks: str) -> dict[str, Any]:
        return {"evaluations": {"harness": {"tasks": [*tasks], "max_length": 64, "include_path": "tasks"}}}

    assert check(folder, **asked("my_task", "hellaswag", "mmlu"))
    refused(folder, "tasks = 'my_tsk': neither tasks nor lm_eval has it; did you mean 'my_task'", **asked("my_tsk"))
