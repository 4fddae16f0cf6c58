"""The code behind a result as one hash, which tidying up leaves as it is.

A module's hash is that of its syntax tree, in which each name that an import binds is replaced by what it stands for:
of our own package the hash of the module that it comes from and its name there, of any other the dotted name. So the
tree follows every import (a Merkle tree), while paths, import lines, their order and the names that they bind are no
part of it; neither are comments, docstrings, and the annotations of functions. What modules OUTSIDE hold contributes
nothing. Modules that are chosen by kind and imported by name join the hash of the runs that name them: see kinds.py.

Imports no workflow engine and no torch, because everything that parses the Snakefile imports it.
"""

from __future__ import annotations

import ast
import json
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from longshort.errors import UserError
from longshort.identity.accepted import accepted_changes
from longshort.identity.spec import digest, dumps

PACKAGE = "longshort"
SOURCE = Path(__file__).resolve().parents[1]
# Set by the process that plans, inherited by its jobs.
PLANNED = "LONGSHORT_PLANNED"
# What the files' syntax trees came to, by the files' text: parsing them costs every plan and every job of a cluster
# more than all else that they import. Like Python's own caches beside it, it can be deleted at any time.
TREES = SOURCE / "__pycache__" / "trees.json"
OUTSIDE = {
    # The specification carries the meaning of these, as resolved values and names.
    "longshort.evaluation.settings",
    "longshort.study.schema",
    "longshort.study.schema.alignment",
    "longshort.study.schema.arms",
    "longshort.study.schema.data",
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
    "longshort.study.deepspeed",
    "longshort.study.files",
    "longshort.study.resources",
    "longshort.alignment.schedules",
    # They name, record and write what others compute.
    "longshort.identity",
    "longshort.identity.spec",
    "longshort.identity.code",
    "longshort.identity.accepted",
    "longshort.identity.kinds",
    "longshort.identity.strict",
    "longshort.records.provenance",
    "longshort.records.publish",
    "longshort.errors",
    # They run jobs, or say how far one is.
    "longshort.jobs.heartbeat",
    "longshort.jobs.interruption",
    "longshort.jobs.ownership",
    "longshort.jobs.slurm",
    "longshort.terminal",
}


class Parsed(NamedTuple):
    """What one file says, without a look at any other.

    tree: hash of its tree, in which the imported names are numbered.
    names: the dotted name behind each number, such as longshort.data.streams.generator or torch.nn.Linear.
    effects: imported without being named: what they do when they are imported is all that they are for.
    bound: name at module level -> dotted name, by which others may import it from here.
    """

    tree: str
    names: list[str]
    effects: list[str]
    bound: dict[str, str]


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
    def parsed(self, module: str) -> Parsed:
        path = self.files[module]
        return _parsed(path, path.read_text(encoding="utf-8"))

    def place_of(self, name: str) -> tuple[str, str] | None:
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
        found = [place[0] for name in (*parsed.names, *parsed.effects) if (place := self.place_of(name))]
        return [*found, *self._run_before(module)]

    def _run_before(self, module: str) -> Iterator[str]:
        """The packages around a module, whose code an import runs first; most only pass names on."""
        words = module.split(".")
        for end in range(1, len(words)):
            package = ".".join(words[:end])
            if package not in OUTSIDE and package in self.files and self.parsed(package).tree != EMPTY:
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
            place = self.place_of(name)
            if place is None:
                return name
            if place[0] in OUTSIDE:
                return ""
            found, alone = self._hash_of(place[0], (*above, module))
            whole = whole and (alone or place[0] == module)
            return [found, place[1]]

        names, effects = [of(name) for name in parsed.names], sorted(map(of, parsed.effects), key=dumps)
        before = sorted(self._hash_of(package, (*above, module))[0] for package in self._run_before(module))
        found = digest(dumps([parsed.tree, names, [effect for effect in effects if effect], before]))
        if whole:
            self._hashes[module] = found
        return found, whole


def name_of(path: Path, source: Path) -> str:
    """The module that a file holds."""
    return ".".join([PACKAGE, *path.relative_to(source).with_suffix("").parts]).removesuffix(".__init__")


# ---- one file --------------------------------------------------------------------------------------------------------


def _parsed(path: Path, text: str) -> Parsed:
    known = _known_trees()
    key = _tree_key(text)
    if key not in known:
        known[key] = _parse(path, text)
    return known[key]


@cache
def _known_trees() -> dict[str, Parsed]:
    try:
        return {key: Parsed(*parsed) for key, parsed in json.loads(TREES.read_text(encoding="utf-8")).items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def _remember_trees(texts: list[str]) -> None:
    """Leaves on the disk what is known of these files, and of no others."""
    trees = json.dumps({key: _known_trees()[key] for key in map(_tree_key, texts)})
    with suppress(OSError):  # the installation may be read-only
        if not TREES.exists() or TREES.read_text(encoding="utf-8") != trees:
            TREES.parent.mkdir(exist_ok=True)
            part = TREES.with_name(f".{TREES.name}.{os.getpid()}.part")
            part.write_text(trees, encoding="utf-8")
            part.replace(TREES)


def _tree_key(text: str) -> str:
    return digest(f"{_python()} {_how_trees_are_read()} {text}", 64)


@cache
def _how_trees_are_read() -> str:
    return digest(Path(__file__).read_text(encoding="utf-8"))


def _parse(path: Path, text: str) -> Parsed:
    """As _parsed, without a memory."""
    tree = ast.parse(text, filename=str(path))
    mentioned = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    reader = _Reader()
    tree.body = reader.block(tree.body, is_class=False)
    left = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    bound = {name: dotted for name, dotted in reader.scopes[0][0].items() if dotted}
    effects = [
        dotted
        for name, dotted in reader.imported
        # Not those that nothing but annotations mention.
        if dotted not in reader.numbers and (name in left or name not in mentioned)
        if not any(number.startswith(f"{dotted}.") for number in reader.numbers)
    ]
    return Parsed(digest(ast.dump(tree)), list(reader.numbers), sorted(set(effects)), bound)


class _Reader(ast.NodeTransformer):
    """Takes the imports out of a tree and puts a number in the place of every name that stands for one."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}
        # Of each import, the name that it binds and the dotted name that this stands for.
        self.imported: list[tuple[str, str]] = []
        # Name -> the dotted name that an import binds it to, None if something else binds it; the innermost last. And
        # whether it is the scope of a class, which its methods do not see.
        self.scopes: list[tuple[dict[str, str | None], bool]] = []

    # Scopes

    def block(self, body: list[ast.stmt], is_class: bool) -> list[ast.stmt]:
        """The body of the module, or of a function or a class."""
        self.scopes.append((_bindings(body), is_class))
        body = self._statements(_without_docstring(body))
        if len(self.scopes) > 1:
            self.scopes.pop()
        return body

    def _statements(self, body: Iterable[Any]) -> list[Any]:
        visited = (self.visit(node) for node in body)
        return [node for node in visited if node is not None]

    def _function(self, node: Any) -> Any:
        arguments = node.args
        every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
        every = [argument for argument in every if argument is not None]
        for argument in every:
            argument.annotation = None
        arguments.defaults = self._statements(arguments.defaults)
        arguments.kw_defaults = [default and self.visit(default) for default in arguments.kw_defaults]
        self.scopes.append(({argument.arg: None for argument in every}, False))
        if isinstance(node, ast.Lambda):
            node.body = self.visit(node.body)
        else:
            node.returns = None
            node.body = self.block(node.body, is_class=False)
        self.scopes.pop()
        return node

    def visit_Lambda(self, node: ast.Lambda) -> Any:
        return self._function(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> Any:
        node.decorator_list = self._statements(node.decorator_list)
        return self._function(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> Any:
        node.decorator_list = self._statements(node.decorator_list)
        return self._function(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> Any:
        for part in ("decorator_list", "bases", "keywords"):
            setattr(node, part, self._statements(getattr(node, part)))
        node.body = self.block(node.body, is_class=True)
        return node

    def _comprehension(self, node: Any) -> Any:
        targets = [name.id for one in node.generators for name in ast.walk(one.target) if isinstance(name, ast.Name)]
        self.scopes.append((dict.fromkeys(targets), False))
        node = self.generic_visit(node)
        self.scopes.pop()
        return node

    visit_ListComp = visit_SetComp = visit_DictComp = visit_GeneratorExp = _comprehension

    # Imports and what they bind

    def visit_Import(self, node: ast.Import) -> None:
        self.imported += [(alias.asname or alias.name.split(".")[0], alias.name) for alias in node.names]

    def visit_ImportFrom(self, node: ast.ImportFrom) -> Any:
        if node.module == "__future__":
            return None
        if node.level or any(alias.name == "*" for alias in node.names):
            return node  # not in this package
        self.imported += [(alias.asname or alias.name, f"{node.module}.{alias.name}") for alias in node.names]
        return None

    def visit_If(self, node: ast.If) -> Any:
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return None
        return self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> Any:
        node.target = self.visit(node.target)
        node.value = node.value and self.visit(node.value)
        # They make the fields of a class, and do nothing anywhere else.
        node.annotation = self.visit(node.annotation) if self.scopes[-1][1] else ast.Constant(None)
        return node

    def visit_Name(self, node: ast.Name) -> Any:
        return self._numbered(node) or node

    def visit_Attribute(self, node: ast.Attribute) -> Any:
        return self._numbered(node) or self.generic_visit(node)

    def _numbered(self, node: ast.Name | ast.Attribute) -> ast.Name | None:
        words, inner = [], node
        while isinstance(inner, ast.Attribute):
            words.append(inner.attr)
            inner = inner.value  # type: ignore[assignment]
        if not isinstance(inner, ast.Name) or not isinstance(node.ctx, ast.Load):
            return None
        seen = [names for names, is_class in self.scopes[:-1] if not is_class] + [self.scopes[-1][0]]
        dotted = next((names[inner.id] for names in reversed(seen) if inner.id in names), None)
        if dotted is None:
            return None
        name = ".".join([dotted, *reversed(words)])
        number = self.numbers.setdefault(name, len(self.numbers))
        return ast.Name(f"imported {number}", ast.Load())  # a name that no one can write


def _without_docstring(body: list[ast.stmt]) -> list[ast.stmt]:
    first = body[0] if body else None
    said = first.value.value if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) else None
    return body[1:] if isinstance(said, str) else body


def _bindings(body: list[ast.stmt]) -> dict[str, str | None]:
    """What the statements of a scope bind: a name that something else than one import binds is its own."""
    found: dict[str, str | None] = {}

    def bind(name: str, dotted: str | None) -> None:
        found[name] = dotted if found.get(name, dotted) == dotted else None

    free: set[str] = set()
    waiting: list[ast.AST] = list(body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            for alias in node.names:
                bind(alias.asname or alias.name.split(".")[0], alias.name if alias.asname else alias.name.split(".")[0])
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                bind(alias.asname or alias.name, f"{node.module}.{alias.name}" if not node.level else None)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            bind(node.name, None)
            waiting += node.decorator_list
            continue
        elif isinstance(node, ast.Global | ast.Nonlocal):
            free |= set(node.names)
        elif isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            bind(node.id, None)
        elif isinstance(node, ast.ExceptHandler) and node.name:
            bind(node.name, None)
        elif isinstance(node, ast.MatchAs | ast.MatchStar) and node.name:
            bind(node.name, None)
        elif isinstance(node, ast.Lambda | ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp):
            continue
        waiting += ast.iter_child_nodes(node)
    return {name: dotted for name, dotted in found.items() if name not in free}


# The tree of a module that has nothing but imports and a docstring.
EMPTY = digest(ast.dump(ast.parse("")))


# ---- planned and started ---------------------------------------------------------------------------------------------


def source_as_planned() -> str:
    """The hash of every module that a job may ask for, as the plan knows it, for the environment variable PLANNED."""
    words = [f"python={_python()}"]
    texts = []
    for path in sorted(SOURCE.rglob("*.py")):
        name = name_of(path, SOURCE)
        texts.append(path.read_text(encoding="utf-8"))
        _parsed(path, texts[-1])
        if name not in OUTSIDE:
            words.append(f"{name}={_Package.at(SOURCE).own_hash_of(name)}")
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
