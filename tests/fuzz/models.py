"""Models that a study takes from a folder: weights, configuration, and what else may lie there."""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from longshort.models import load
from tests.fuzz.engine import Kind, Mutation
from tests.support.models import ARCHITECTURE
from tests.support.project import TINY, write_study

STUDY = {
    **TINY,
    "data": {**TINY["data"], "corpus": {"kind": "stdlib"}},
    "model": {"kind": "pretrained", "name": "mymodel", "layers": 3, "max_length": 128},
}
CHECK = ("-m", "longshort.cli", "check", "--study", "pretrained")
# What every stage does first with the weights, and what a training's record names of them.
LOAD = """
import hashlib, sys
from longshort.models import load
from longshort.models.settings import Weights
from longshort.training.__main__ import taken_as_it_is
taken_as_it_is(Weights(name="mymodel"))
try:
    state = load.load("mymodel").state_dict()
except ValueError as error:
    sys.exit(str(error))
content = b"".join(name.encode() + state[name].numpy().tobytes() for name in sorted(state))
open("loaded", "w").write(hashlib.sha256(content).hexdigest())
"""
COMMANDS = (CHECK, ("-c", LOAD))


def write(project: Path) -> None:
    model = load.from_scratch(ARCHITECTURE, vocabulary=257, separator=256, length=128, seed=0)
    model.save_pretrained(project / "mymodel")
    write_study(project, STUDY, "pretrained")


def loaded(weights: dict[str, Any]) -> Callable[[Path], str | None]:
    """Whether it was loaded with other weights than these."""
    content = b"".join(name.encode() + weights[name].numpy().tobytes() for name in sorted(weights))
    wanted = hashlib.sha256(content).hexdigest()
    return lambda project: None if (project / "loaded").read_text() == wanted else "it has other weights"


def of_tensors(draw: random.Random, project: Path) -> Mutation:
    path = project / "mymodel/model.safetensors"
    tensors = load_file(path)
    name = draw.choice(sorted(tensors))
    whole, tensor = dict(tensors), tensors.pop(name)
    edits: dict[str, dict[str, Any]] = {
        "gone": {},
        "of another name": {draw.choice([f"{name}s", f"x.{name}", name.replace("model.", "")]): tensor},
        "of another shape": {name: tensor[:-1].clone()},
        "with one more axis": {name: tensor[None].clone()},
        "in half precision": {name: tensor.half()},
    }
    what, put = draw.choice(list(edits.items()))
    if name == "lm_head.weight" and what == "of another name":
        put = {"head.weight": tensor}
    save_file(tensors | put, path, metadata={"format": "pt"})
    # transformers takes the names of a model without its head, too.
    fine = what == "in half precision" or set(put) == {name.removeprefix("model.")}
    whole[name] = tensor.half().float() if what == "in half precision" else tensor
    said = name.split(".")[-2]
    because = "every weight of the model comes from its files; another precision is converted"
    return Mutation(f"{name} {what}", because, said, may_pass=fine, commands=COMMANDS, wrong=loaded(whole))


def of_more_tensors(draw: random.Random, project: Path) -> Mutation:
    path = project / "mymodel/model.safetensors"
    tensors = load_file(path)
    block = draw.randrange(3, 6)
    strange = f"model.layers.{block}.mlp.up_proj.weight"
    name = draw.choice([strange, "score.weight", "model.layers.0.self_attn.q_norm"])
    save_file(tensors | {name: tensors["model.norm.weight"].clone()}, path, metadata={"format": "pt"})
    return Mutation(
        f"also {name}", "a weight without a place is another model's", name.split(".")[-2], commands=COMMANDS
    )


def of_bytes(draw: random.Random, project: Path) -> Mutation:
    path = project / "mymodel/model.safetensors"
    whole = path.read_bytes()
    header = int.from_bytes(whole[:8], "little")
    edits = {
        "cut": whole[: draw.randrange(len(whole))],
        "a longer header": (header * draw.randrange(2, 2**30)).to_bytes(8, "little") + whole[8:],
        "no header": b"\0" * 8 + whole[8:],
        "a header of another kind": (2).to_bytes(8, "little") + b"[]" + whole[8 + header :],
        "a pickle": b"\x80\x04cos\nsystem\n" + whole,
        "text": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    }
    what, content = draw.choice(list(edits.items()))
    path.write_bytes(content)
    return Mutation(what, "a file that is no whole safetensors file is named", "model.safetensors", commands=COMMANDS)


def of_config(draw: random.Random, project: Path) -> Mutation:
    path = project / "mymodel/config.json"
    content = json.loads(path.read_text())
    key = draw.choice(["num_hidden_layers", "hidden_size", "intermediate_size", "vocab_size", "num_attention_heads"])
    good = content[key]
    values = [good + 1, good * 2, 0, -1, None, "x", str(good), 1e9, [good], True, good + 0.5]
    value = draw.choice(values)
    path.write_text(json.dumps({**content, key: value}))
    # Twice the heads of half the size have weights of the same shapes.
    same = key == "num_attention_heads" and value in (good * 2, 1, True)
    return Mutation(
        f"{key} = {value!r}",
        "a configuration that its weights contradict, or that no model can have, is named",
        refused="config.json|model.name|mymodel",
        may_pass=same or (isinstance(value, float) and value == good),
        commands=COMMANDS,
    )


def of_a_config_file(draw: random.Random, project: Path) -> Mutation:
    path = project / "mymodel/config.json"
    whole = path.read_bytes()
    content = json.loads(whole)
    path.unlink()
    put: dict[str, Callable[[], object]] = {
        "gone": lambda: None,
        "a folder": path.mkdir,
        "a pipe": lambda: os.mkfifo(path),
        "a loop": lambda: path.symlink_to(path),
        "cut": lambda: path.write_bytes(whole[: draw.randrange(len(whole) - 2)]),
        "a list": lambda: path.write_text("[]"),
        "no model's": lambda: path.write_text("{}"),
        "of an unknown kind": lambda: path.write_text(json.dumps({**content, "model_type": "x"})),
        "of another kind": lambda: path.write_text(json.dumps({**content, "model_type": "gpt2"})),
        "of code": lambda: path.write_text(json.dumps(remote(content))),
        "an adapter's": lambda: (project / "mymodel/adapter_config.json").write_text('{"peft_type": "LORA"}'),
        "no UTF-8": lambda: path.write_bytes(b"\xff\xfe" + whole),
    }
    what = draw.choice(list(put))
    put[what]()
    (project / "mymodel/modeling_x.py").write_text("open('PWNED', 'w')")
    return Mutation(
        what,
        "what is no configuration of these weights is named; code beside a model is never run",
        refused="config.json|mymodel",
        commands=COMMANDS,
        wrong=lambda project: "its code ran" if (project / "PWNED").exists() else None,
        may_pass=what == "of code",
    )


def remote(content: dict[str, Any]) -> dict[str, Any]:
    return {**content, "auto_map": {"AutoModelForCausalLM": "modeling_x.X", "AutoConfig": "modeling_x.Y"}}


def of_shards(draw: random.Random, project: Path) -> Mutation:
    folder = project / "mymodel"
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    half = draw.randrange(1, len(names))
    parts = {"model-1-of-2.safetensors": names[:half], "model-2-of-2.safetensors": names[half:]}
    for file, some in parts.items():
        save_file({name: tensors[name] for name in some}, folder / file, metadata={"format": "pt"})
    weight_map = {name: file for file, some in parts.items() for name in some}
    what = draw.choice(["whole", "a file gone", "a name gone", "another file", "a cut index", "no map"])
    index = json.dumps({"metadata": {}, "weight_map": weight_map})
    lost = draw.choice(list(parts))
    if what == "a file gone":
        (folder / lost).unlink()
    if what == "a name gone":
        del weight_map[draw.choice(names)]
    if what == "another file":
        weight_map[draw.choice(names)] = "../../x.safetensors"
    if what in ("a name gone", "another file"):
        index = json.dumps({"metadata": {}, "weight_map": weight_map})
    if what == "a cut index":
        index = index[: draw.randrange(len(index) - 2)]
    if what == "no map":
        index = '{"metadata": {}}'
    (folder / "model.safetensors.index.json").write_text(index)
    because = "an index names every weight, in files that are there"
    return Mutation(what, because, None if what == "whole" else "mymodel|index", commands=COMMANDS)


KINDS: dict[str, Kind] = {
    "tensors of a model": of_tensors,
    "more tensors than a model has": of_more_tensors,
    "bytes of a model's weights": of_bytes,
    "the configuration of a model": of_config,
    "a model's config.json": of_a_config_file,
    "the shards of a model": of_shards,
}
