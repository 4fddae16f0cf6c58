"""What makes two runs the same run: the canonical specification, the code they are computed by, and their inputs.

Imports no workflow engine and no torch, because everything that parses the Snakefile imports it.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from longshort.errors import UserError
from longshort.publish import Altered, read_json, write_atomic

PACKAGE = "longshort"
SOURCE = Path(__file__).resolve().parent
# Set by the process that plans, inherited by its jobs.
PLANNED = "LONGSHORT_PLANNED"
# Changes of the code that a person declared harmless: see accept.py.
ACCEPTED = Path("results/accepted.json")
# What the syntax trees of files came to, by the files' text: parsing them costs every plan and every job of a cluster
# more than all else that they import. Like Python's own caches beside it, it can be deleted at any time.
TREES = SOURCE / "__pycache__" / "trees.json"
# Of studies, arms and tables: they become names of files and folders, and words of a command.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+_-]{0,63}")
OUTSIDE = {
    # The specification carries the meaning of these, as resolved values and names.
    "longshort.study",
    "longshort.resolve",
    "longshort.mistakes",
    "longshort.places",
    "longshort.zero",
    "longshort.reading",
    "longshort.alignment.schedules",
    "longshort.alignment.kinds",
    "longshort.models.kinds",
    "longshort.kinds",
    # They name, record and write what others compute.
    "longshort.identity",
    "longshort.provenance",
    "longshort.publish",
    # They run jobs, or say how far one is.
    "longshort.heartbeat",
    "longshort.interruption",
    "longshort.ownership",
    "longshort.slurm",
    "longshort.terminal",
    "longshort.errors",
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


def read_spec(path: Path) -> dict[str, Any]:
    """A specification that a stage was given.

    Raises:
        Altered: it is not the one that its folder is named by; a folder with another kind of name promises none.
    """
    remedy = "it was edited or cut by hand; delete it and run snakemake again, or change the study in config/"
    spec: dict[str, Any] = read_json(path)
    name = path.absolute().parent.name
    if not isinstance(spec, dict) or (re.fullmatch("[0-9a-f]{16}", name) and digest(_or_empty(spec)) != name):
        raise Altered(f"{path} is not the specification {name} that its folder is named by: {remedy}")
    return spec


def _or_empty(spec: dict[str, Any]) -> str:
    try:
        return dumps(spec)
    except ValueError:  # a number that JSON has not
        return ""


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
    return _code_hash(entry, tuple(chosen), source)


@cache
def _code_hash(entry: str, chosen: tuple[str, ...], source: Path) -> str:
    return digest(dumps(list(modules(entry, chosen, source).items())))


def modules(entry: str, chosen: tuple[str, ...] = (), source: Path = SOURCE) -> dict[str, str]:
    """Name and hash of every module behind code_hash, sorted: what two hashes differ in, in words."""
    names = {module for start in (entry, *chosen) for module in closure(start, source)}
    return {module: _tree_hash(_file(module, source)) for module in sorted(names)}


def changed_modules(before: dict[str, str], now: dict[str, str]) -> list[str]:
    """Files of the modules that differ, were added or went, as seen from the package: alignment/objective.py."""
    differing = [module for module in {**before, **now} if before.get(module) != now.get(module)]
    return sorted(_file(module, SOURCE).relative_to(SOURCE).as_posix() for module in differing)


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
    path = _file(module, source)
    for name in _parsed(path, path.read_text())[1]:
        if name.split(".")[0] == PACKAGE and _file(name, source).exists():
            # Importing a.b.c runs a and a.b first.
            parts = name.split(".")
            found += [".".join(parts[:end]) for end in range(1, len(parts) + 1)]
    return found


@cache
def _tree_hash(path: Path) -> str:
    return _parsed(path, path.read_text())[0]


def _parsed(path: Path, text: str) -> tuple[str, list[str]]:
    """The hash of a file's syntax tree, and what the file imports: one pass for both, for each plan needs them all."""
    known = _known_trees()
    key = _tree_key(text)
    if key not in known:
        known[key] = _parse(path, text)
    return known[key]


@cache
def _known_trees() -> dict[str, tuple[str, list[str]]]:
    try:
        return {key: (tree, names) for key, (tree, names) in json.loads(TREES.read_text()).items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def _remember_trees(texts: list[str]) -> None:
    """Leaves on the disk what is known of these files, and of no others."""
    trees = json.dumps({key: _known_trees()[key] for key in map(_tree_key, texts)})
    with suppress(OSError):  # the installation may be read-only
        if not TREES.exists() or TREES.read_text() != trees:
            TREES.parent.mkdir(exist_ok=True)
            write_atomic(TREES, trees)


def _tree_key(text: str) -> str:
    return digest(f"{_python()} {_how_trees_are_read()} {text}", 64)


@cache
def _how_trees_are_read() -> str:
    return digest(Path(__file__).read_text())


def _parse(path: Path, text: str) -> tuple[str, list[str]]:
    """As _parsed, without a memory. Comments and formatting are not in the tree; docstrings are dropped."""
    tree = ast.parse(text, filename=str(path))
    names: list[str] = []
    for node in _statements(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                node.body = node.body[1:]
    return digest(ast.dump(tree)), names


def _statements(tree: ast.Module) -> Iterator[ast.AST]:
    """The module and every statement in it; ast.walk would visit each expression too, at the cost of every plan."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        yield (node := waiting.pop())
        for block in ("body", "orelse", "finalbody", "handlers", "cases"):
            inside = getattr(node, block, None)
            waiting += inside if isinstance(inside, list) else []


def accepted_changes(path: Path | None = None) -> list[dict[str, Any]]:
    """What `longshort accept` recorded: {arm, runs, records, stage, from, to, modules, because, time} each.

    Raises:
        UserError: the file was cut or edited.
    """
    path = path or ACCEPTED
    if not os.path.lexists(path):
        return []
    try:
        changes: list[dict[str, Any]] = read_json(path)
        if not isinstance(changes, list):
            raise TypeError("it is no list")
        for change in changes:
            for key in ("arm", "stage", "from", "to", "because", "time"):
                if not isinstance(change[key], str) or not change[key].strip():
                    raise TypeError(f"{key} is no text")
            for key in ("runs", "records", "modules"):
                if not all(isinstance(one, str) for one in change[key]) or isinstance(change[key], str):
                    raise TypeError(f"{key} is no list of texts")
            if not change["runs"] or {Path(record).parts[2:3] for record in change["records"]} != {
                (run,) for run in change["runs"]
            }:
                raise ValueError("runs and records do not name the same runs")
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{path} is not what `longshort accept` wrote ({type(error).__name__}: {error}): it was edited or cut; "
            "restore it, or delete it and accept again what it held"
        ) from None
    return changes


def source_as_planned() -> str:
    """The hash of every module that a job may ask for, as the plan knows it, for the environment variable PLANNED."""
    words = [f"python={_python()}"]
    texts = []
    for path in sorted(SOURCE.rglob("*.py")):
        name = ".".join([PACKAGE, *path.relative_to(SOURCE).with_suffix("").parts]).removesuffix(".__init__")
        if name not in OUTSIDE:
            texts.append(path.read_text())
            words.append(f"{name}={_parsed(path, texts[-1])[0]}")
    _remember_trees(texts)
    return " ".join(words)


def _python() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def refuse_changed_code(planned: str, entry: str, chosen: tuple[str, ...] = ()) -> str:
    """The code that a job runs under: the planned one, unless the source was edited between planning and start.

    A cluster's job parses the workflow anew when it starts, so the hash that it is given says nothing of the plan; the
    variable PLANNED comes from the process that planned.

    Raises:
        UserError: the source is not the one that was planned, which the result's name would deny; or the Python is
            another one, so that it cannot be known.
    """
    now = modules(entry, chosen)
    words = os.environ.get(PLANNED, "").split()
    if any(word.count("=") != 1 for word in words):
        raise UserError(f"the variable {PLANNED} is not what snakemake sets for its jobs: unset it, and run again")
    before = dict(word.split("=") for word in words)
    if before.get("python", _python()) != _python():
        raise UserError(
            f"this job runs with Python {_python()} and was planned with {before['python']}, which writes other syntax "
            "trees, so the code cannot be compared: run snakemake with the Python of the job's environment"
        )
    changed = changed_modules({name: before.get(name, "") for name in now}, now) if before else []
    current = code_hash(entry, chosen)
    accepted = any(a["stage"] == entry and (a["from"], a["to"]) == (planned, current) for a in accepted_changes())
    if changed or (planned != current and not before and not accepted):
        what = f"{', '.join(changed)} changed" if changed else f"code {planned} is now {current}: the source changed"
        raise UserError(f"{what} after this job was planned; run snakemake again, which plans with the source as it is")
    return planned


def run_id(spec: dict[str, Any], code: str, inputs: dict[str, Any]) -> str:
    """Names one computation: what was asked, by which code, from which content."""
    return digest(dumps({"spec": spec, "code": code, "inputs": inputs}))


def trajectory(spec: dict[str, Any]) -> dict[str, Any]:
    """What a run's weights at a step depend on: its specification, less the last step where no schedule knows it.

    With a constant learning rate and constant weights a longer training passes through the same weights, so it goes
    on from the shorter one's checkpoints.
    """
    terms = [(spec.get("alignment") or {}).get(term) or {} for term in ("output", "hidden")]
    constant = not any(isinstance(term.get("alpha"), list) for term in terms)
    if not spec.get("training") or spec["training"]["learning_rate_schedule"] != "constant" or not constant:
        return spec
    return {**spec, "training": {key: value for key, value in spec["training"].items() if key != "steps"}}
