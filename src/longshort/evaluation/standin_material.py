"""What the stand-in of LongBench-E is made of: modules, documented functions and lines of Python sources."""

from __future__ import annotations

import ast
import re
import textwrap
import warnings
from collections.abc import Iterable, Iterator
from typing import NamedTuple

LINE_KINDS = {
    "Comment line": r"#",
    "Import statement": r"(import|from) ",
    "Function definition": r"(async )?def ",
    "Class definition": r"class ",
    "Conditional branch": r"(if|elif|else)\b",
    "Loop header": r"(for|while) ",
    "Return statement": r"return\b",
    "Exception handling": r"(raise|try|except|finally)\b",
}


class Module(NamedTuple):
    name: str
    text: str
    summary: str  # first paragraph of its docstring, one line; empty if there is none


class Function(NamedTuple):
    module: str
    name: str
    source: str
    body: str  # the source without its docstring
    summary: str  # first paragraph of its docstring, one line


class Material(NamedTuple):
    modules: list[Module]
    functions: list[Function]
    lines: dict[str, list[str]]  # kind of line -> lines


def extract(documents: Iterable[tuple[str, str]]) -> Material:
    """What the tasks are made of; a document that is no Python source is text without functions."""
    material = Material([], [], {kind: [] for kind in LINE_KINDS})
    for name, text in sorted(documents):
        tree = _parse(text)
        material.modules.append(Module(name, text, _summary(tree) if tree else ""))
        if tree:
            material.functions.extend(_documented_functions(name, text, tree))
        for line in map(str.strip, text.split("\n")):
            kind = next((kind for kind, start in LINE_KINDS.items() if re.match(start, line)), None)
            if kind and len(line) > 10:
                material.lines[kind].append(line)
    return material


def _parse(text: str) -> ast.Module | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in old sources
        try:
            return ast.parse(text, feature_version=(3, 11))  # a later one's statements are no source here, either
        except (SyntaxError, ValueError):
            return None


def _summary(node: ast.Module | ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    return " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())


def _documented_functions(module: str, text: str, tree: ast.Module) -> Iterator[Function]:
    lines = text.split("\n")  # not splitlines(): ast counts no line at a form feed
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        summary, docstring = _summary(node), node.body[0]
        if not 4 <= count_words(summary) <= 40 or len(node.body) < 2 or docstring.lineno == node.lineno:
            continue
        source = lines[node.lineno - 1 : node.end_lineno]
        # Counted from the function's first line.
        first, last = docstring.lineno - node.lineno, (docstring.end_lineno or docstring.lineno) - node.lineno
        body = source[:first] + source[last + 1 :]
        if count_words(" ".join(source)) <= 250:
            yield Function(module, node.name, _dedented(source), _dedented(body), summary)


def _dedented(lines: list[str]) -> str:
    return textwrap.dedent("\n".join(lines)).strip("\n")


def count_words(text: str) -> int:
    return len(text.split())
