"""The 13 tasks of the stand-in of LongBench-E, each drawn from Python sources.

Each asks the like of what its official model asks, in the same prompt, with the same kind of answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate
from typing import Any

import numpy as np

from longshort.evaluation.standin_material import LINE_KINDS, Function, Material, Module, count_words

RETRIEVAL_PARAGRAPHS = 30  # the official prompt says so
NAME_STARTS = ("AMBER", "BRISK", "CEDAR", "DUSKY", "EMBER", "FROST", "GLADE", "HAZEL", "INDIGO", "JASPER")
NAME_ENDS = ("LIMIT", "OFFSET", "QUOTA", "RETRIES", "STRIDE", "THRESHOLD", "TIMEOUT", "WEIGHT", "WIDTH", "YIELD")

Item = dict[str, Any]

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
        filled += count_words(shots[-1])
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
        while count_words(body) < words // len(heads) and (more := next(rest, None)):
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


def _some_modules(material: Material, rng: np.random.Generator, words: int) -> list[Module]:
    """Modules in random order with so many words together; the last one is cut at the end of a line."""
    chosen: list[Module] = []
    for module in _shuffled(material.modules, rng):
        room = words - sum(count_words(other.text) for other in chosen)
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
            filled += count_words(show(function))
            count += 1


def _code_to_continue(material: Material, rng: np.random.Generator, words: int) -> tuple[list[str], str]:
    """Lines of code, and the next one: the first after so many words that the official score can judge."""
    lines = _files(_some_modules(material, rng, words + 500)).splitlines(keepends=True)
    filled = list(accumulate(count_words(line) for line in lines))
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
        if count_words(part) >= words:
            chunks.append(part.strip())
            part = ""
    return chunks or [part.strip()]


def _cut(text: str, words: int) -> str:
    kept: list[str] = []
    for line in text.splitlines(keepends=True):
        if words <= 0:
            break
        kept.append(line)
        words -= count_words(line)
    return "".join(kept)


def _shuffled(values: list[Any], rng: np.random.Generator) -> list[Any]:
    return [values[place] for place in rng.permutation(len(values))]
