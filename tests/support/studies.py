"""The tiny study with some of its keys changed, and how it is refused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from longshort.errors import StudyError
from longshort.study import resolve
from tests.support.project import ROOT, TINY, write_study

# The shipped studies whose corpus and models are the hub's.
FROM_THE_HUB = [
    path.stem for path in sorted((ROOT / "config/studies").glob("*.yaml")) if "kind: hub, dataset" in path.read_text()
]


def load(config: Path, **changes: object) -> resolve.ResolvedStudy:
    values = copy.deepcopy(TINY)
    for path, value in changes.items():
        holder = values
        *parents, last = path.split("__")
        for parent in parents:
            holder = holder[parent]
        holder[last] = value
    write_study(config.parent, values)
    return resolve.load("tiny")


def arms_yaml(config: Path, **arms: dict) -> None:
    path = config / "arms.yaml"
    values = yaml.safe_load(path.read_text())
    for name, patch in arms.items():
        values["arms"][name] = {"description": name, **patch}
    path.write_text(yaml.safe_dump(values, sort_keys=False))


PRETRAINED = {"kind": "pretrained", "name": "some/model", "layers": 3, "max_length": 128}
POLYPYTHIAS = {
    **{key: value for key, value in PRETRAINED.items() if key != "name"},
    "bases": [{"name": f"some/model-seed{seed}", "revision": str(seed) * 40} for seed in (1, 2)],
}
LORA = {"kind": "lora", "rank": 2, "alpha": 4.0}


def check(folder: Path, name: str = "tiny", **changes: Any) -> resolve.ResolvedStudy:
    write_study(folder, {**TINY, **changes}, name)
    return resolve.load(name)


def pretrained(**changes: Any) -> dict[str, Any]:
    return {"model": {"kind": "pretrained", "name": "model", "layers": 3, "max_length": 128, **changes}}


def refused(folder: Path, said: str, name: str = "tiny", **changes: Any) -> None:
    with pytest.raises(StudyError, match=said):
        check(folder, name, **changes)
