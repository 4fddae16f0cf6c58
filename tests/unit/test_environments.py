"""The conda environments of the stages: pinned as the lock is, with all that the stages import."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml

from longshort.identity import code
from tests.support.project import ROOT

LOCKS = ("requirements.lock", "torch.lock")
STAGES = {
    "data": ["data.__main__", "evaluation.standin"],
    "training": ["training.__main__", "training.worker"],
    "evaluation": [
        *(f"evaluation.{name}" for name in ("perplexity", "misalignment", "longbench", "harness")),
        *(f"evaluation.{name}" for name in ("longppl", "key_tokens", "longbench_likelihood")),
        "synthetic.train",
    ],
    "results": ["collecting.__main__", "results.tables", "results.plots", "results.report", "synthetic.results"],
}
# Loaded by what is imported: by the Trainer and by DeepSpeed; by pandas; by lm_eval. And for an adapter: by its
# name, and by transformers.
LOADED = {
    "data": {"pyarrow", "sympy"},
    "training": {"accelerate", "bitsandbytes", "ninja", "peft", "pyarrow"},
    "evaluation": {"accelerate", "datasets", "peft", "pyarrow"},
    "results": {"pyarrow"},
}


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(lines: list[str]) -> dict[str, str]:
    found = (re.fullmatch(r"([\w.-]+)==(\S+)(?: \\)?", line.strip()) for line in lines)
    return {normalised(pin[1]): pin[2] for pin in found if pin}


def environment(stage: str) -> dict[str, str]:
    dependencies = yaml.safe_load((ROOT / f"envs/{stage}.yaml").read_text())["dependencies"]
    listed = next(entry["pip"] for entry in dependencies if isinstance(entry, dict))
    assert len(pins(listed)) == len(listed), "each package is pinned"
    return pins(listed)


def reached(entry: str) -> set[str]:
    """The modules that an entry imports, those outside of the code identity too; of the study only its meaning."""
    package = code._Package.at(code.SOURCE)
    found: set[str] = set()
    waiting = [f"longshort.{entry}"]
    while waiting:
        module = waiting.pop()
        if module not in found and not module.startswith("longshort.study."):
            found.add(module)
            waiting += package.used_by(module)
    return found


def imported(entries: list[str]) -> set[str]:
    """The packages that the modules behind the entries import."""
    names: set[str] = set()
    for module in {module for entry in entries for module in reached(entry)}:
        for node in ast.walk(ast.parse(code._Package.at(code.SOURCE).files[module].read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names.add(node.module.split(".")[0])
    packages = packages_distributions()
    return {normalised(packages[name][0]) for name in names - set(sys.stdlib_module_names) - {"longshort"}}


@pytest.mark.parametrize("stage", STAGES)
def test_an_environment_has_what_its_stages_import_as_the_lock_pins_it(stage: str) -> None:
    found = environment(stage)
    locked = pins([line for lock in LOCKS for line in (ROOT / "envs" / lock).read_text().splitlines()])
    assert found == {name: locked[name] for name in found}
    assert found.keys() == imported(STAGES[stage]) | LOADED[stage]


def test_every_file_that_is_installed_is_known_by_its_hash_but_torchs() -> None:
    for lock in ("requirements.lock", "real-model.lock"):
        lines = (ROOT / "envs" / lock).read_text().splitlines()
        assert all(line.startswith(("#", "    --hash=sha256:")) or line.endswith(" \\") for line in lines)
    assert [*pins((ROOT / "envs/torch.lock").read_text().splitlines())] == ["torch"]


def test_the_lock_of_the_real_model_holds_the_extra_and_nothing_else() -> None:
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["real-model"]
    assert {one.split("==")[0] for one in extra} == pins(
        (ROOT / "envs/real-model.lock").read_text().splitlines()
    ).keys()


def test_each_rule_with_an_environment_names_that_of_its_stage() -> None:
    files = {
        "specification": set(),
        "data": {"data"},
        "train": {"training"},
        "evaluate": {"evaluation"},
        "tables": {"results"},
        "synthetic": {"evaluation", "results"},
    }
    for file in Path(ROOT / "workflow/rules").glob("*.smk"):
        named = set(re.findall(r'conda:\n\s+"\.\./\.\./envs/(\w+)\.yaml"', file.read_text()))
        assert named == files[file.stem]
