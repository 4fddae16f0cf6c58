"""What one file says, whoever asks: its syntax tree as a hash, and the names that it imports.

The tree is that of ast, less what cannot change a number: comments, docstrings, annotations of functions, and the
imports themselves. Each name that an import binds is replaced by a number, so that neither the import lines nor the
names that they choose are part of the hash.

Imports no workflow engine and no torch, because everything that parses the Snakefile imports it.
"""

from __future__ import annotations

import ast
import json
import os
import sys
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from longshort.identity.spec import digest

# What the files' syntax trees came to, by the files' text: parsing them costs every plan and every job of a cluster
# more than all else that they import. Like Python's own caches beside it, it can be deleted at any time.
TREES = Path(__file__).resolve().parents[1] / "__pycache__" / "trees.json"


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


def parse(path: Path, text: str) -> Parsed:
    """What a file of that text says."""
    known = _known_trees()
    key = _tree_key(text)
    if key not in known:
        known[key] = _parse_anew(path, text)
    return known[key]


@cache
def _known_trees() -> dict[str, Parsed]:
    try:
        return {key: Parsed(*parsed) for key, parsed in json.loads(TREES.read_text(encoding="utf-8")).items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def remember(texts: list[str]) -> None:
    """Leaves on the disk what is known of these files, and of no others."""
    trees = json.dumps({key: _known_trees()[key] for key in map(_tree_key, texts)})
    with suppress(OSError):  # the installation may be read-only
        if not TREES.exists() or TREES.read_text(encoding="utf-8") != trees:
            TREES.parent.mkdir(exist_ok=True)
            part = TREES.with_name(f".{TREES.name}.{os.getpid()}.part")
            part.write_text(trees, encoding="utf-8")
            part.replace(TREES)


def _tree_key(text: str) -> str:
    return digest(f"{python_version()} {_reader_digest()} {text}", 64)


def python_version() -> str:
    """The version that decides how a text is parsed."""
    return f"{sys.version_info.major}.{sys.version_info.minor}"


@cache
def _reader_digest() -> str:
    return digest(Path(__file__).read_text(encoding="utf-8"))


def _parse_anew(path: Path, text: str) -> Parsed:
    """As parse, without a memory."""
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
