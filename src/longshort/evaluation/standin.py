"""An offline stand-in for LongBench-E: 13 tasks of the official shape, made from the test documents of a data folder.

    python -m longshort.evaluation.standin --data results/data/ID --items 3 --out FOLDER

The documents are Python sources. Each task asks the like of what its official model asks, in the same prompt, of the
same length in words, with the same kind of answer; the numbers compare the arms of a study and are no LongBench scores.
Item k of a task is drawn from a generator of its own, (seed, task, k), and belongs to bucket k modulo 3.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import textwrap
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from longshort.data import prepared, splits
from longshort.errors import in_a_line
from longshort.evaluation.prompts import TASKS
from longshort.evaluation.scoring import bucket_of, score_prediction
from longshort.identity.code import refuse_changed_code
from longshort.jobs import interruption
from longshort.jobs.ownership import Owner, sole_owner
from longshort.records.publish import file_digest, read_json, wait_for_files, write_atomic, write_json

# Words of an item that is to fall into 0-4k, 4-8k, 8k+; the margins leave room for questions and whole last passages.
WORDS = ((800, 3000), (4400, 7000), (8200, 9000))
DRAWS = 50
RETRIEVAL_PARAGRAPHS = 30  # the official prompt says so
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
NAME_STARTS = ("AMBER", "BRISK", "CEDAR", "DUSKY", "EMBER", "FROST", "GLADE", "HAZEL", "INDIGO", "JASPER")
NAME_ENDS = ("LIMIT", "OFFSET", "QUOTA", "RETRIES", "STRIDE", "THRESHOLD", "TIMEOUT", "WEIGHT", "WIDTH", "YIELD")

Item = dict[str, Any]


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


def build(documents: Iterable[tuple[str, str]], items_per_task: int, seed: int = 0) -> dict[str, list[Item]]:
    """The items of the 13 tasks in the official format, from (name, text) of Python sources.

    Raises:
        ValueError: the documents have too few words or documented functions.
    """
    material = extract(documents)
    items: dict[str, list[Item]] = {}
    for place, task in enumerate(TASKS):
        numbers = np.random.Generator(np.random.Philox([seed, place])).permutation(RETRIEVAL_PARAGRAPHS - 1).tolist()
        items[task] = [
            _build_item(task, material, np.random.Generator(np.random.Philox([seed, place, k])), k, numbers)
            for k in range(items_per_task)
        ]
    return items


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
    words = sum(_words(module.text) for module in material.modules)
    if words < WORDS[-1][-1]:
        raise ValueError(
            f"the test documents have {words} words together, and the stand-in needs {WORDS[-1][-1]}: "
            "give the test split more documents"
        )
    heads = len({function.summary for function in material.functions})
    if heads < RETRIEVAL_PARAGRAPHS:
        raise ValueError(
            f"the test documents have {heads} documented functions, and the stand-in needs {RETRIEVAL_PARAGRAPHS}: "
            "give the test split more Python sources"
        )
    return material


def _build_item(task: str, material: Material, rng: np.random.Generator, k: int, numbers: Sequence[int]) -> Item:
    """Draws until the item falls into its bucket, its own answer scores 1 and none scores 0."""
    low, high = WORDS[k % len(WORDS)]
    for _ in range(DRAWS):
        words = int(rng.integers(low, high))
        fields = BUILDERS[task](material, rng, words, numbers[k % len(numbers)])
        item = {"all_classes": None, "language": "en", **fields, "dataset": task, "_id": f"{task}-{k}"}
        item["length"] = sum(_words(text) for text in (item["input"], item["context"], *item["answers"]))
        gold, empty = (
            score_prediction(task, prediction, item["answers"], item["all_classes"])
            for prediction in (item["answers"][0], "")
        )
        if bucket_of(item["length"]) == bucket_of(low) and gold > 0.9999 and empty == 0:
            return item
    raise ValueError(
        f"no item {k} of {task} with {low} to {high} words came of {DRAWS} draws: "
        "give the test split more Python sources"
    )


# One builder per task: (material, rng, words of the context, a number no other item of the task has) -> fields.


def _qasper(material: Material, rng: np.random.Generator, words: int, number: int) -> Item:
    modules = _some_modules(material, rng, words)
    place, (name,), value = int(rng.integers(len(modules))), _constants(rng, 1), _value(rng)
    modules[place] = _with_line(modules[place], f"{name} = {value}", rng)
    question = f"What value does {name} have in {modules[place].name}?"
    return {"input": question, "context": _files(modules), "answers": [str(value)]}


def _multifieldqa_en(material: Material, rng: np.random.Generator, words: int, number: int) -> Item:
    def show(function: Function) -> str:
        return f"# FILE: {function.module}\n{function.source}"

    functions = list(_some_functions(material, rng, words, show))
    target = functions[int(rng.integers(len(functions)))]
    context = "\n\n".join(map(show, functions))
    question = f"Which function of {target.module} is documented as follows: {target.summary}"
    same = {f.name for f in functions if (f.module, f.summary) == (target.module, target.summary)}
    return {"input": question, "context": context, "answers": sorted(same)}


def _hotpotqa(material: Material, rng: np.random.Generator, words: int, number: int) -> Item:
    modules = _some_modules(material, rng, words)
    (first, second), value = _constants(rng, 2), _value(rng)
    for line in (f"{first} = {second}", f"{second} = {value}"):
        place = int(rng.integers(len(modules)))
        modules[place] = _with_line(modules[place], line, rng)
    question = f"Which number does {first} stand for?"
    return {"input": question, "context": _files(modules), "answers": [str(value)]}


def _2wikimqa(material: Material, rng: np.random.Generator, words: int, number: int) -> Item:
    modules = _some_modules(material, rng, words)
    names, values = _constants(rng, 2), rng.choice(np.arange(1000, 10000), 2, replace=False).tolist()
    for name, value in zip(names, values, strict=True):
        place = int(rng.integers(len(modules)))
        modules[place] = _with_line(modules[place], f"{name} = {value}", rng)
    question = f"Which of the two constants {names[0]} and {names[1]} is larger?"
    answer = names[0] if values[0] > values[1] else names[1]
    return {"input": question, "context": _files(modules), "answers": [answer]}


def _gov_report(material: Material, rng: np.random.Generator, words: int, number: int) -> Item:
    modules = _some_modules(material, rng, words)
    summaries = [module.summary for module in modules if module.summary]
    return {"input": "", "context": _files(modules), "answers": [_joined(summaries)]}


def _multi_news(material: Material, rng: np.random.Generator, words: int, number: int) -> Item:
    functions = list(_some_functions(material, rng, words, lambda function: function.source))
    passages = [f"Passage {place}:\n{function.source}" for place, function in enumerate(functions, 1)]
    summaries = [f"{function.name}: {function.summary}" for function in functions]
    return {"input": "", "context": "\n\n".join(passages), "answers": [_joined(summaries)]}


def _trec(material: Material, rng: np.random.Generator, words: int, number: int) -> Item:
    kinds = [kind for kind, lines in material.lines.items() if lines]

    def draw() -> tuple[str, str]:
        kind = kinds[int(rng.integers(len(kinds)))]
        return material.lines[kind][int(rng.integers(len(material.lines[kind])))], kind

    shots: list[str] = []
    filled = 0
    while filled < words:
        line, kind = draw()
        shots.append(f"Question: {line}\nType: {kind}")
        filled += _words(shots[-1])
    line, kind = draw()
    question = f"Question: {line}\nType:"
    return {"input": question, "context": "\n".join(shots), "answers": [kind], "all_classes": list(LINE_KINDS)}


def _triviaqa(material: Material, rng: np.random.Generator, words: int, number: int) -> Item:
    ask = "Passage:\n{0.source}\nQuestion:\nWhich function does the passage define?\nAnswer:"
    target, *shots = _some_functions(material, rng, words, ask.format)
    context = "\n\n".join(f"{ask.format(shot)}\n{shot.name}" for shot in shots)
    return {"input": ask.format(target), "context": context, "answers": [target.name]}


def _samsum(material: Material, rng: np.random.Generator, words: int, number: int) -> Item:
    ask = "Dialogue: {0.body}\nSummary:"
    target, *shots = _some_functions(material, rng, words, ask.format)
    context = "\n".join(f"{ask.format(shot)} {shot.summary}" for shot in shots)
    return {"input": ask.format(target), "context": context, "answers": [target.summary]}


def _passage_count(material: Material, rng: np.random.Generator, words: int, number: int) -> Item:
    """2 to 30 different paragraphs, each number as often as any other: a constant answer is rarely right."""
    different = 2 + number
    repeated = rng.integers(different, size=int(rng.integers(1, different + 1)))
    length = words // (different + len(repeated))
    paragraphs = _chunks(_files(_some_modules(material, rng, words)), length)[:different]
    order = rng.permutation(np.concatenate([np.arange(len(paragraphs)), repeated % len(paragraphs)]))
    context = "\n\n".join(f"Paragraph {place}: {paragraphs[which]}" for place, which in enumerate(order, 1))
    return {"input": "", "context": context, "answers": [str(len(set(paragraphs)))]}


def _passage_retrieval_en(material: Material, rng: np.random.Generator, words: int, number: int) -> Item:
    """Which paragraph starts with the function so documented; never Paragraph 1, which a copied first line names."""
    functions = _shuffled(material.functions, rng)
    heads = list({function.summary: function for function in functions}.values())[:RETRIEVAL_PARAGRAPHS]
    rest = iter([function for function in functions if function not in heads] or functions)
    paragraphs = []
    for head in heads:
        body = head.body
        while _words(body) < words // len(heads) and (more := next(rest, None)):
            body += "\n\n" + more.body
        paragraphs.append(body)
    context = "\n\n".join(f"Paragraph {place}: {text}" for place, text in enumerate(paragraphs, 1))
    target = 1 + number % (len(heads) - 1)
    return {"input": heads[target].summary, "context": context, "answers": [f"Paragraph {target + 1}"]}


def _lcc(material: Material, rng: np.random.Generator, words: int, number: int) -> Item:
    before, answer = _code_to_continue(material, rng, words)
    return {"input": "", "context": "".join(before), "answers": [answer], "language": "python"}


def _repobench_p(material: Material, rng: np.random.Generator, words: int, number: int) -> Item:
    before, answer = _code_to_continue(material, rng, words)
    near = "".join(before[-40:])
    return {"input": near, "context": "".join(before[:-40]), "answers": [answer], "language": "python"}


BUILDERS: dict[str, Callable[[Material, np.random.Generator, int, int], Item]] = {
    "qasper": _qasper,
    "multifieldqa_en": _multifieldqa_en,
    "hotpotqa": _hotpotqa,
    "2wikimqa": _2wikimqa,
    "gov_report": _gov_report,
    "multi_news": _multi_news,
    "trec": _trec,
    "triviaqa": _triviaqa,
    "samsum": _samsum,
    "passage_count": _passage_count,
    "passage_retrieval_en": _passage_retrieval_en,
    "lcc": _lcc,
    "repobench-p": _repobench_p,
}


def _parse(text: str) -> ast.Module | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in old sources
        try:
            return ast.parse(text)
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
        if not 4 <= _words(summary) <= 40 or len(node.body) < 2 or docstring.lineno == node.lineno:
            continue
        source = lines[node.lineno - 1 : node.end_lineno]
        # Counted from the function's first line.
        first, last = docstring.lineno - node.lineno, (docstring.end_lineno or docstring.lineno) - node.lineno
        body = source[:first] + source[last + 1 :]
        if _words(" ".join(source)) <= 250:
            yield Function(module, node.name, _dedented(source), _dedented(body), summary)


def _dedented(lines: list[str]) -> str:
    return textwrap.dedent("\n".join(lines)).strip("\n")


def _some_modules(material: Material, rng: np.random.Generator, words: int) -> list[Module]:
    """Modules in random order with so many words together; the last one is cut at the end of a line."""
    chosen: list[Module] = []
    for module in _shuffled(material.modules, rng):
        room = words - sum(_words(other.text) for other in chosen)
        if room <= 0:
            break
        chosen.append(module._replace(text=_cut(module.text, room)))
    return chosen


def _some_functions(
    material: Material, rng: np.random.Generator, words: int, show: Callable[[Function], str]
) -> Iterator[Function]:
    """Two functions or more in random order, shown in so many words; over again where there are too few."""
    filled = count = 0
    while filled < words or count < 2:
        for function in _shuffled(material.functions, rng):
            if filled >= words and count >= 2:
                return
            yield function
            filled += _words(show(function))
            count += 1


def _code_to_continue(material: Material, rng: np.random.Generator, words: int) -> tuple[list[str], str]:
    """Lines of code, and the next one: the first after so many words that the official score can judge."""
    lines = _files(_some_modules(material, rng, words + 500)).splitlines(keepends=True)
    filled = list(accumulate(_words(line) for line in lines))
    for place, line in enumerate(lines):
        judged = len(line.strip()) >= 15 and not any(mark in line for mark in ("`", "#", "//"))
        if filled[place] >= words and judged:
            return lines[:place], line.rstrip("\n")
    return lines, ""  # an empty prediction would be right, so that another draw is made


def _files(modules: Iterable[Module]) -> str:
    return "\n\n".join(f"# FILE: {module.name}\n{module.text}" for module in modules)


def _with_line(module: Module, line: str, rng: np.random.Generator) -> Module:
    lines = module.text.split("\n")
    lines.insert(int(rng.integers(len(lines))), line)
    return module._replace(text="\n".join(lines))


def _constants(rng: np.random.Generator, count: int) -> list[str]:
    """Names of made-up constants."""
    starts, ends = rng.choice(NAME_STARTS, count, replace=False), rng.choice(NAME_ENDS, count, replace=False)
    return [f"{start}_{end}" for start, end in zip(starts, ends, strict=True)]


def _value(rng: np.random.Generator) -> int:
    return int(rng.integers(1000, 10000))


def _joined(summaries: list[str]) -> str:
    """The first summaries up to 150 words: the recursion of the official ROUGE gives long sentences 0."""
    text = " ".join(summary.rstrip(".") + "." for summary in summaries)
    return " ".join(text.split()[:150])


def _chunks(text: str, words: int) -> list[str]:
    """The text cut at ends of lines into parts of at least so many words."""
    chunks, part = [], ""
    for line in text.splitlines(keepends=True):
        part += line
        if _words(part) >= words:
            chunks.append(part.strip())
            part = ""
    return chunks or [part.strip()]


def _cut(text: str, words: int) -> str:
    kept: list[str] = []
    for line in text.splitlines(keepends=True):
        if words <= 0:
            break
        kept.append(line)
        words -= _words(line)
    return "".join(kept)


def _shuffled(values: list[Any], rng: np.random.Generator) -> list[Any]:
    return [values[place] for place in rng.permutation(len(values))]


def _words(text: str) -> int:
    return len(text.split())


def write(items: dict[str, list[Item]], out: Path, owner: Owner | None = None) -> None:
    """The 13 files `<task>_e.jsonl`, each whole or not at all, and last manifest.json with the sha256 of each."""
    for task, rows in items.items():
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        write_atomic(out / f"{task}_e.jsonl", lines)
    if owner is not None:
        owner.refuse_if_lost()
    write_json(out / "manifest.json", {f"{task}_e.jsonl": file_digest(out / f"{task}_e.jsonl") for task in items})


@in_a_line()
def main() -> None:
    parser = argparse.ArgumentParser(description="Make the offline stand-in of LongBench-E.")
    parser.add_argument("--data", type=Path, required=True, help="a published data folder; its test split is read")
    parser.add_argument("--items", type=int, required=True, help="items per task, spread over the length buckets")
    parser.add_argument("--out", type=Path, required=True, help="folder of the 13 files and manifest.json")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--code", help="refuse to run if the code's hash is another one")
    arguments = parser.parse_args()
    if arguments.code:
        refuse_changed_code(arguments.code, "longshort.evaluation.standin")
    interruption.end_at_once()
    wait_for_files(arguments.data, read_json(arguments.data / "manifest.json").get("files", []))
    prepared.refuse_altered(arguments.data / "manifest.json", "test")
    test = splits.load(arguments.data / "test")
    documents = list(zip(test.column("name").to_pylist(), test.column("text").to_pylist(), strict=True))
    with sole_owner(arguments.out) as owner:
        write(build(documents, arguments.items, arguments.seed), arguments.out, owner)


if __name__ == "__main__":
    main()
