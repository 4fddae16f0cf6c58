"""The code behind a result as one hash, which tidying up leaves as it is.

A module's hash is that of its syntax tree, in which each name that an import binds is replaced by what it stands for:
of our own package the hash of the module that it comes from and its name there, of any other the dotted name. So the
tree follows every import (a Merkle tree), while paths, import lines, their order and the names that they bind are no
part of it; neither are comments, docstrings, and the annotations of functions. What modules OUTSIDE hold contributes
nothing. Modules that are chosen by kind and imported by name join the hash of the runs that name them: see kinds.py.

Imports no workflow engine and no torch, because everything that parses the Snakefile imports it.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from longshort.errors import UserError
from longshort.identity import syntax
from longshort.identity.accepted import accepted_changes
from longshort.identity.spec import digest, dumps

PACKAGE = "longshort"
SOURCE = Path(__file__).resolve().parents[1]
# Set by the process that plans, inherited by its jobs.
PLANNED = "LONGSHORT_PLANNED"
OUTSIDE = {
    # The specification carries the meaning of these, as resolved values and names.
    "longshort.alignment.settings",
    "longshort.data.settings",
    "longshort.metrics.settings",
    "longshort.models.settings",
    "longshort.study.schema",
    "longshort.study.schema.alignment",
    "longshort.study.schema.arms",
    "longshort.study.schema.evaluations",
    "longshort.study.schema.model",
    "longshort.study.schema.study",
    "longshort.study.schema.tables",
    "longshort.study.schema.training",
    "longshort.study.run",
    "longshort.study.checks",
    "longshort.study.resolve",
    "longshort.study.wiring",
    "longshort.study.wired",
    "longshort.study.parsing",
    "longshort.study.external",
    "longshort.study.model_files",
    "longshort.study.deepspeed",
    "longshort.study.files",
    "longshort.study.resources",
    "longshort.synthetic.study",
    "longshort.alignment.schedules",
    # They name, record and write what others compute.
    "longshort.identity",
    "longshort.identity.spec",
    "longshort.identity.code",
    "longshort.identity.syntax",
    "longshort.identity.accepted",
    "longshort.identity.kinds",
    "longshort.identity.strict",
    "longshort.records.layout",
    "longshort.data.left_out",
    "longshort.data.seen",
    "longshort.records.provenance",
    "longshort.records.publish",
    "longshort.records.study_json",
    "longshort.errors",
    # They run jobs, or say how far one is.
    "longshort.jobs.engine",
    "longshort.jobs.heartbeat",
    "longshort.jobs.interruption",
    "longshort.jobs.ownership",
    "longshort.jobs.slurm",
    "longshort.terminal",
}


def code_hash(entry: str, chosen: tuple[str, ...] = (), source: Path = SOURCE) -> str:
    """The code of a stage.

    Args:
        entry: the stage's module, e.g. "longshort.training.trainer".
        chosen: the modules that a run's specification names (its divergence, its rope method): imported by name, they
            are invisible to the parser, and join the hash of that run alone.
        source: the package's folder.
    """
    return _code_hash(entry, tuple(sorted(chosen)), source)


@cache
def _code_hash(entry: str, chosen: tuple[str, ...], source: Path) -> str:
    return digest(dumps([_Package.at(source).hash_of(entry), sorted(map(_Package.at(source).hash_of, chosen))]))


def modules(entry: str, chosen: tuple[str, ...] = (), source: Path = SOURCE) -> dict[str, str]:
    """Name and hash of the own tree of every module behind code_hash: what two hashes differ in, in words."""
    names = {module for start in (entry, *chosen) for module in closure(start, source)}
    return {module: _Package.at(source).own_hash_of(module) for module in sorted(names)}


def changed_modules(before: dict[str, str], now: dict[str, str]) -> list[str]:
    """Files of the modules that differ, were added or went, as seen from the package: alignment/objective.py."""
    differing = [module for module in {**before, **now} if before.get(module) != now.get(module)]
    files = _Package.at(SOURCE).files
    gone = {module: SOURCE.joinpath(*module.split(".")[1:]).with_suffix(".py") for module in differing}
    return sorted(files.get(module, gone[module]).relative_to(SOURCE).as_posix() for module in differing)


@cache
def closure(entry: str, source: Path = SOURCE) -> tuple[str, ...]:
    """The modules of the package that `entry` uses, late imports included, without those OUTSIDE."""
    package, seen, waiting = _Package.at(source), set(), [entry]
    while waiting:
        module = waiting.pop()
        if module not in seen and module not in OUTSIDE:
            seen.add(module)
            waiting += package.used_by(module)
    return tuple(sorted(seen))


class _Package:
    """The modules below a folder, and which of them uses which."""

    def __init__(self, source: Path) -> None:
        self.source = source
        self.files = {name_of(path, source): path for path in source.rglob("*.py")}
        self._hashes: dict[str, str] = {}

    @staticmethod
    @cache
    def at(source: Path) -> _Package:
        return _Package(source)

    @cache  # noqa: B019 one for each folder, as long as the process
    def parsed(self, module: str) -> syntax.Parsed:
        path = self.files[module]
        return syntax.parse(path, path.read_text(encoding="utf-8"))

    def origin_of(self, name: str) -> tuple[str, str] | None:
        """The module of ours that a dotted name lies in, and its name there, through modules that only pass it on; None
        for what is not ours."""
        for _ in range(20):  # two modules may pass a name on to each other
            words = name.split(".")
            if words[0] != PACKAGE:
                return None
            end = next(end for end in range(len(words), 0, -1) if ".".join(words[:end]) in self.files)
            module, inside = ".".join(words[:end]), words[end:]
            passed_on = self.parsed(module).bound.get(inside[0]) if inside and module not in OUTSIDE else None
            if passed_on is None:
                return module, ".".join(inside)
            name = ".".join([passed_on, *inside[1:]])
        return module, ".".join(inside)

    def used_by(self, module: str) -> list[str]:
        parsed = self.parsed(module)
        found = [origin[0] for name in (*parsed.names, *parsed.effects) if (origin := self.origin_of(name))]
        return [*found, *self._run_before(module)]

    def _run_before(self, module: str) -> Iterator[str]:
        """The packages around a module, whose code an import runs first; most only pass names on."""
        words = module.split(".")
        for end in range(1, len(words)):
            package = ".".join(words[:end])
            if package not in OUTSIDE and package in self.files and self.parsed(package).tree != syntax.EMPTY:
                yield package

    def own_hash_of(self, module: str) -> str:
        parsed = self.parsed(module)
        return digest(dumps([parsed.tree, parsed.names, sorted(parsed.effects)]))

    def hash_of(self, module: str) -> str:
        return self._hash_of(module, ())[0]

    def _hash_of(self, module: str, above: tuple[str, ...]) -> tuple[str, bool]:
        """The hash, and whether it is that whichever module asks: in a circle it is not."""
        if module in OUTSIDE:
            return "", True
        if module in self._hashes:
            return self._hashes[module], True
        parsed = self.parsed(module)
        if module in above:
            return parsed.tree, False
        whole = True

        def of(name: str) -> Any:
            nonlocal whole
            origin = self.origin_of(name)
            if origin is None:
                return name
            if origin[0] in OUTSIDE:  # its content is, but which of it is used is not
                return ["", origin[1]]
            found, alone = self._hash_of(origin[0], (*above, module))
            whole = whole and (alone or origin[0] == module)
            return [found, origin[1]]

        names, effects = [of(name) for name in parsed.names], sorted(map(of, parsed.effects), key=dumps)
        effects = [effect for effect in effects if effect[0]]
        before = sorted(self._hash_of(package, (*above, module))[0] for package in self._run_before(module))
        found = digest(dumps([parsed.tree, names, effects, before]))
        if whole:
            self._hashes[module] = found
        return found, whole


def name_of(path: Path, source: Path) -> str:
    """The module that a file holds."""
    return ".".join([PACKAGE, *path.relative_to(source).with_suffix("").parts]).removesuffix(".__init__")


def files_now(names: Collection[str] | None = None) -> dict[str, str]:
    """Module -> hash of its file as it is now; of all modules where none are named. Empty of one that is gone."""
    files = _Package.at(SOURCE).files
    there = {name: path for name, path in files.items() if names is None or name in names}
    return {name: digest(path.read_text(encoding="utf-8")) if path.exists() else "" for name, path in there.items()}


# ---- planned and started ---------------------------------------------------------------------------------------------


def source_as_planned() -> str:
    """The hash of every module that a job may ask for, as the plan knows it, for the environment variable PLANNED."""
    words = [f"python={syntax.python_version()}"]
    texts = []
    for path in sorted(SOURCE.rglob("*.py")):
        name = name_of(path, SOURCE)
        texts.append(path.read_text(encoding="utf-8"))
        syntax.parse(path, texts[-1])
        if name not in OUTSIDE:
            words.append(f"{name}={_Package.at(SOURCE).own_hash_of(name)}")
    syntax.remember(texts)
    return " ".join(words)


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
    python = syntax.python_version()
    if before.get("python", python) != python:
        raise UserError(
            f"this job runs with Python {python} and was planned with {before['python']}, which writes other syntax "
            "trees, so the code cannot be compared: run snakemake with the Python of the job's environment"
        )
    changed = changed_modules({name: before.get(name, "") for name in now}, now) if before else []
    current = code_hash(entry, chosen)
    accepted = any(a["stage"] == entry and (a["from"], a["to"]) == (planned, current) for a in accepted_changes())
    if changed or (planned != current and not before and not accepted):
        what = f"{', '.join(changed)} changed" if changed else f"code {planned} is now {current}: the source changed"
        raise UserError(f"{what} after this job was planned; run snakemake again, which plans with the source as it is")
    return planned
