"""What makes two runs the same run: the canonical specification, the code they are computed by, and their inputs.

Imports no workflow engine and no torch, because everything that parses the Snakefile imports it.
"""

from __future__ import annotations

import ast
import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

PACKAGE = "longshort"
SOURCE = Path(__file__).resolve().parent
OUTSIDE = {
    # The specification carries the meaning of these, as resolved values and names.
    "longshort.study",
    "longshort.resolve",
    "longshort.mistakes",
    "longshort.alignment.schedules",
    "longshort.alignment.kinds",
    # They name, record and write what others compute.
    "longshort.identity",
    "longshort.provenance",
    "longshort.publish",
}


def digest(text: str, length: int = 16) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def dumps(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False)


def canonical(model: BaseModel) -> dict[str, Any]:
    """Every resolved value that is part of the identity, with normalised numbers.

    Left out are fields marked `identity: False` (they do not change the computation) and fields that still equal the
    `neutral` value they were introduced with (so that a new option invalidates nothing).
    """
    values = {}
    for name, field in type(model).model_fields.items():
        value = getattr(model, name)
        mark = _mark(field)
        if mark.get("identity", True) is False or ("neutral" in mark and value == mark["neutral"]):
            continue
        values[name] = _normalised(value)
    return values


def spec_id(model: BaseModel) -> str:
    """The hash of the canonical specification: the name of a run, a corpus or an evaluation."""
    return digest(dumps(canonical(model)))


def _mark(field: FieldInfo) -> dict[str, Any]:
    return field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}


def _normalised(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return canonical(value)
    if isinstance(value, dict):
        return {str(key): _normalised(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_normalised(item) for item in value]
    if isinstance(value, float):
        return value + 0.0 if value else 0.0  # -0.0 is 0.0
    return value


# ---- code --------------------------------------------------------------------------------------------------------


def code_hash(entry: str, chosen: tuple[str, ...] = (), source: Path = SOURCE) -> str:
    """Hash of the syntax trees of everything that `entry` imports inside the package.

    Args:
        entry: the stage's module, e.g. "longshort.training.trainer".
        chosen: the modules that a run's specification names (its divergence, its rope method): loaded by name, they
            are invisible to the parser, and join the closure of that run alone.
        source: the package's folder.
    """
    modules = sorted({module for start in (entry, *chosen) for module in closure(start, source)})
    return digest(dumps([[module, _tree_hash(_file(module, source))] for module in modules]))


@cache
def closure(entry: str, source: Path = SOURCE) -> tuple[str, ...]:
    """The modules of the package that `entry` imports, late imports included, without those OUTSIDE."""
    seen: set[str] = set()
    waiting = [entry]
    while waiting:
        module = waiting.pop()
        if module in seen or module in OUTSIDE:
            continue
        seen.add(module)
        waiting += _imports(module, source)
    return tuple(sorted(seen))


def _file(module: str, source: Path) -> Path:
    path = source.joinpath(*module.split(".")[1:])
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _imports(module: str, source: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(_file(module, source).read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            if name.split(".")[0] == PACKAGE and _file(name, source).exists():
                # Importing a.b.c runs a and a.b first.
                parts = name.split(".")
                found += [".".join(parts[:end]) for end in range(1, len(parts) + 1)]
    return found


@cache
def _tree_hash(path: Path) -> str:
    """Comments and formatting are not in the tree; docstrings are dropped."""
    tree = ast.parse(path.read_text(), filename=str(path))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                node.body = node.body[1:]
    return digest(ast.dump(tree))


def refuse_changed_code(planned: str, entry: str, chosen: tuple[str, ...] = ()) -> None:
    """Raises SystemExit where the source was edited between planning and start: the result would carry a wrong name."""
    now = code_hash(entry, chosen)
    if planned != now:
        raise SystemExit(
            f"the source behind {entry} changed after this job was planned (code {planned} then, {now} now); "
            "run snakemake again, which plans with the source as it is"
        )


def run_id(spec: dict[str, Any], code: str, inputs: dict[str, Any]) -> str:
    """Names one computation: what was asked, by which code, from which content."""
    return digest(dumps({"spec": spec, "code": code, "inputs": inputs}))
