"""What a person edits: studies, arms, the site, DeepSpeed's files, acceptances, and the command line."""

from __future__ import annotations

import copy
import json
import math
import os
import random
from collections.abc import Callable, Iterator
from contextlib import chdir
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from longshort.study import resolve
from tests.fuzz.engine import Kind, Mutation
from tests.support.project import ROOT, TINY, write_study

STUDY: dict[str, Any] = {
    **TINY,
    "model": {**TINY["model"], "rope": {"kind": "yarn", "factor": 2.0}},
    "arms": ["baseline", "constant", "hidden", "step-linear", "ratio-2x"],
    "overrides": {"hidden": {"alignment": {"alpha": 0.5}, "training": {"batch": 4}}},
    "evaluations": {
        **TINY["evaluations"],
        "longbench_e": {"source": {"kind": "stand-in", "items_per_task": 1}, "max_length": 128, "max_new_tokens": 4},
        "harness": {"tasks": ["hellaswag"], "max_length": 64, "lower_is_better": ["hellaswag"]},
    },
    "tables": {"main": {"title": "T", "arms": ["baseline", "constant"], "compare_with": "baseline"}},
    "primary": "perplexity@32",
    "published": [{"arm": "constant", "step": 6, "column": "perplexity@32", "value": 1.0, "source": "a paper"}],
    "needs": {"device": "cpu", "data_cores": 2},
}
STUDY_FILE = "config/studies/fuzz.yaml"
ARMS_FILE = "config/arms.yaml"
SITE_FILE = "slurm/site.yaml"
ACCEPTED_FILE = "results/accepted.json"
DEEPSPEED_FILE = "config/deepspeed/zero1.json"
PLAN = ("-m", "longshort.cli", "plan", "--study", "fuzz")
CHECK = ("-m", "longshort.cli", "check", "--study", "fuzz")
DRY_RUN = ("-m", "snakemake", "all", "--cores", "1", "--dry-run", "--config")

# Each kind of YAML value, numbers at the ends of what a field may hold, names that would be more than names.
VALUES: list[Any] = [None, True, False, -1, 0, 1, 1.5, 1e308, -1e308, math.nan, math.inf, 2**70, -(2**70)]
VALUES += ["", "x", "a/b", "../../x", "$(touch PWNED)", "{x}", "1:30", "\x1b[2J", "é" * 300, "a\nb"]
VALUES += [[], {}, [1], [None], [[1]], [{}], {"a": 1}, {"kind": "x"}]
# What is typed, and what it is by YAML 1.2's core schema.
WORDS: dict[str, Any] = {
    **{word: word for word in ("on", "off", "yes", "no", "y", "1:30", "1_000", "0b1", "0x", "1.5.2", "12e03x")},
    **{"010": 10, "+5": 5, "0o17": 15, "0x1F": 31, "1e3": 1000.0, ".5": 0.5, "-0": 0, "True": True, "FALSE": False},
    **{"~": None, "": None, "Null": None, ".inf": math.inf, "-.INF": -math.inf, '"8"': "8"},
}
GONE = object()
Place = tuple[str | int, ...]


def write(project: Path) -> None:
    write_study(project, STUDY, "fuzz")
    (project / "slurm").mkdir(exist_ok=True)
    (project / SITE_FILE).write_text("account: abc\npartition: long\n")


def places(value: Any, before: Place = ()) -> Iterator[Place]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inside in items:
        yield (*before, key)
        yield from places(inside, (*before, key))


def at(content: Any, place: Place) -> Any:
    for key in place:
        content = content[key]
    return content


def changed(content: dict[str, Any], place: Place, value: Any) -> dict[str, Any]:
    content = copy.deepcopy(content)
    holder = at(content, place[:-1])
    if value is GONE:
        del holder[place[-1]]
    else:
        holder[place[-1]] = value
    return content


@cache
def validator(file: str) -> jsonschema.Draft202012Validator:
    """The published schema, read by a library that knows nothing of ours."""
    name = "arms" if file == ARMS_FILE else "study"
    return jsonschema.Draft202012Validator(json.loads((ROOT / f"config/schema/{name}.json").read_text()))


def original(project: Path, file: str) -> dict[str, Any]:
    return copy.deepcopy(STUDY) if file == STUDY_FILE else yaml.safe_load((project / file).read_text())


def judged(project: Path, file: str, content: dict[str, Any], what: str, text: str | None = None) -> Mutation:
    """A file of other content: refused if its schema refuses it, else refused or taken for what it says."""
    if text is None:
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    (project / file).write_text(text)
    valid = finite(content) and validator(file).is_valid(content)

    def wrong(project: Path) -> str | None:
        with chdir(project):
            resolved = resolve.load("fuzz")
        said: Any = resolved.study.model_dump(by_alias=True)
        if file == ARMS_FILE:
            said = {"arms": {name: arm.model_dump(by_alias=True) for name, arm in resolved.arms.items()}}
            content["arms"] = {name: content["arms"][name] for name in resolved.arms}
            return differs(content["arms"], said["arms"], "arms")
        return differs(content, said, "")

    return Mutation(
        what,
        "what the published schema refuses is refused, anything else is refused by name or taken for what it says",
        refused="fuzz|arms.yaml",
        may_pass=valid,
        wrong=wrong,
    )


def finite(value: Any) -> bool:
    """JSON has no other numbers, and its schema no word for them."""
    if isinstance(value, dict | list):
        return all(map(finite, value.values() if isinstance(value, dict) else value))
    return not isinstance(value, float) or math.isfinite(value)


def differs(typed: Any, taken: Any, where: str) -> str | None:
    """The first value that was taken for another one than was typed."""
    if isinstance(typed, dict) and isinstance(taken, dict):
        for key, value in typed.items():
            if key not in taken:
                return f"{where}.{key} = {value!r} was dropped"
            if trouble := differs(value, taken[key], f"{where}.{key}"):
                return trouble
        return None
    if isinstance(typed, list) and isinstance(taken, list | tuple) and len(typed) == len(taken):
        return next(filter(None, map(differs, typed, taken, [where] * len(typed))), None)
    if isinstance(typed, bool) is isinstance(taken, bool) and typed == taken:
        return None
    return f"{where} = {typed!r} was taken for {taken!r}"


def of_a_value(file: str) -> Kind:
    def mutate(draw: random.Random, project: Path) -> Mutation:
        content = original(project, file)
        place = draw.choice(list(places(content)))
        value = draw.choice([*VALUES, GONE])
        what = f"{file}: {place} {'gone' if value is GONE else repr(value)[:60]}"
        return judged(project, file, changed(content, place, value), what)

    return mutate


def of_a_word(draw: random.Random, project: Path) -> Mutation:
    """A scalar, typed as YAML 1.1 and 1.2 read it differently."""
    place = draw.choice([p for p in places(STUDY) if isinstance(at(STUDY, p), bool | int | float)])
    word = draw.choice(list(WORDS))
    text = yaml.safe_dump(changed(STUDY, place, "a word"), sort_keys=False).replace("a word", word)
    return judged(project, STUDY_FILE, changed(STUDY, place, WORDS[word]), f"{place} typed as {word}", text)


def of_a_key(file: str) -> Kind:
    def mutate(draw: random.Random, project: Path) -> Mutation:
        content = original(project, file)
        place = draw.choice([place for place in places(content) if isinstance(place[-1], str)])
        new = draw.choice([f"{place[-1]}s", str(place[-1])[:-1], str(place[-1]).upper(), 5, "a/b", ""])
        holder = at(content, place[:-1])
        items = list(holder.items())
        holder.clear()
        holder.update({new if key == place[-1] else key: value for key, value in items})
        return judged(project, file, strings(content), f"{file}: key {place} is {new!r}", yaml.safe_dump(content))

    return mutate


def strings(content: Any) -> Any:
    """With keys as the validator can have them."""
    if isinstance(content, dict):
        return {str(key): strings(value) for key, value in content.items()}
    return [strings(value) for value in content] if isinstance(content, list) else content


EDITED = {STUDY_FILE: "fuzz", ARMS_FILE: "arms", SITE_FILE: "site", DEEPSPEED_FILE: "zero1", ACCEPTED_FILE: "accepted"}


def of_a_text(draw: random.Random, project: Path) -> Mutation:
    """Bytes that are no file of its kind."""
    file, name = draw.choice(list(EDITED.items()))
    path = project / file
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = path.read_bytes() if path.exists() else b"[]"
    start = draw.randrange(len(whole) + 1)
    edits: dict[str, tuple[bytes, bool]] = {
        "cut": (whole[:start], True),
        "empty": (b"", file == SITE_FILE),
        "zero bytes": (whole[:start] + b"\0" * 8 + whole[start:], False),
        "no UTF-8": (whole[:start] + b"\xff\xfe" + whole[start:], False),
        "a tab": (b"\ta: 1\n" + whole, False),
        "twice": (whole + b"\n" + whole, False),
        "nested": (b"[" * 20_000 + b"]" * 20_000, False),
        "a bomb": (b"a: &a [x,x,x,x,x,x,x,x,x]\n" + bombs(), False),
        "escapes": (b"\x1b[2J\x1b]0;owned\x07" + whole, False),
        "a mark": (b"\xef\xbb\xbf" + whole, True),
        "Windows' ends": (whole.replace(b"\n", b"\r\n"), True),
        "another kind": (b"3" if draw.random() < 0.5 else b'"text"', False),
        "too large": (b"# " + b"x" * 2_000_000 + b"\n" + whole, False),
    }
    what, (content, may_pass) = draw.choice(list(edits.items()))
    path.write_bytes(content)
    because = "a file that is not of its kind is named"
    if what == "twice" and not whole:
        may_pass = True
    return Mutation(f"{file}: {what}", because, refused=name, may_pass=may_pass, commands=(CHECK, PLAN))


def bombs() -> bytes:
    lines = []
    for one, other in zip("bcdefghi", "abcdefgh", strict=True):
        lines.append(f"{one}: &{one} [{','.join([f'*{other}'] * 9)}]")
    return "\n".join(lines).encode()


def of_a_place(draw: random.Random, project: Path) -> Mutation:
    """No file at all where one belongs."""
    file, name = draw.choice(list(EDITED.items()))
    path = project / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    put: dict[str, Callable[[], object]] = {
        "a folder": path.mkdir,
        "a pipe": lambda: os.mkfifo(path),
        "a loop of links": lambda: path.symlink_to(path),
        "a link to nothing": lambda: path.symlink_to("nowhere"),
        "a device": lambda: path.symlink_to("/dev/zero"),
        "nothing": lambda: None,
    }
    what = draw.choice(list(put))
    put[what]()
    missing = what == "nothing" and file in (SITE_FILE, ACCEPTED_FILE)
    because = "these need not be there" if missing else "what is no file is named, and never waited for"
    return Mutation(f"{file}: {what}", because, None if missing else name, commands=(CHECK, PLAN))


def of_the_site(draw: random.Random, project: Path) -> Mutation:
    keys = ["account", "partition", "cpu_partition", "qos", "constraint", "gpu_type"]
    key = draw.choice([*keys, "5", "acount", "Account", "''"])
    good = ["0123", "abc", "on", "1e3", "yes", "010", "a.b", "1_000"]
    value = draw.choice([*good, "$(touch PWNED)", "a b", "--wrap=x", "'; touch PWNED'", "[a, b]", "{a: b}", "é\x1b[2J"])
    (project / SITE_FILE).write_text(f"{key}: {value}\n")

    def wrong(project: Path) -> str | None:
        with chdir(project):
            taken = getattr(resolve.load("fuzz").site, key)
        return None if taken == value else f"{key} was taken for {taken!r}"

    fine = key in keys and value in good and not (key == "gpu_type" and value == "-")
    return Mutation(
        f"{key}: {value}",
        "a value of the site is the text that was typed, and nothing that a shell or sbatch takes for more",
        refused=None if fine else "site.yaml",
        commands=(CHECK, PLAN),
        wrong=wrong,
    )


def of_deepspeed(draw: random.Random, project: Path) -> Mutation:
    path = project / DEEPSPEED_FILE
    content = json.loads(path.read_text())
    said: list[tuple[str, Any]] = [
        ("fp16", {"enabled": True}),
        ("bf16", {"enabled": True}),
        ("gradient_clipping", draw.choice([0.5, -1, "x", None, True])),
        ("optimizer", {"type": draw.choice(["Adam", "SGD"])}),
        ("scheduler", {"type": "WarmupLR"}),
        ("train_batch_size", draw.choice([8, 0, None])),
        ("gradient_accumulation_steps", 4),
        (draw.choice(["zero_optimisation", "zero_optimization_", "Zero_optimization", "stage"]), {"stage": 2}),
        ("zero_optimization", {"stage": draw.choice([7, -1, True, "1", 1.5, None])}),
        ("zero_optimization", {"stage": 1, draw.choice(["stge", "overlapp_comm", "x"]): 1}),
        ("zero_optimization", draw.choice([2, [], "stage 2", None])),
        ("curriculum_learning", {"enabled": True}),
        ("compression_training", {}),
        ("elasticity", {"enabled": True}),
    ]
    key, value = draw.choice(said)
    path.write_text(json.dumps({**content, key: value}))
    because = "a file of DeepSpeed says nothing that the study says, and nothing that is not known"
    return Mutation(f"{key}: {value}", because, refused=f"zero1.json: {key}")


def of_an_acceptance(draw: random.Random, project: Path) -> Mutation:
    run, other = "a" * 16, "b" * 16
    whole: dict[str, Any] = {"arm": "constant", "stage": "longshort.training.trainer", "from": "f", "to": "t"}
    whole |= {"runs": [run], "records": [f"results/runs/{run}/training/2-6.json"], "modules": ["m.py"]}
    whole |= {"because": "a comment", "time": "now"}
    key = draw.choice(list(whole))
    value = draw.choice([GONE, None, 7, "", " ", [], [None], {}, [other], "x" if isinstance(whole[key], list) else []])
    (project / ACCEPTED_FILE).parent.mkdir(exist_ok=True)
    (project / ACCEPTED_FILE).write_text(json.dumps([changed(whole, (key,), value)]))
    because = "an acceptance holds as a whole: what it accepts stands in the notes"
    texts = key == "modules" and value in ([], [other])
    return Mutation(f"{key} {value}", because, refused=None if texts else "accepted.json", commands=(CHECK, PLAN))


def of_the_command_line(draw: random.Random, project: Path) -> Mutation:
    words = ["studdy=fuzz", "seeds=3", "study=fuz", "study=../fuzz", "study=", "study=5", "study=runs", "Study=fuzz"]
    word = draw.choice([*words, "study=$(touch PWNED)", "study=[fuzz]", "study={a: 1}", "study=true"])
    because = "only study=NAME is known, and only names of files in config/studies"
    return Mutation(word, because, refused=r"study|unknown key", commands=((*DRY_RUN, word),), wrong=pwned)


def pwned(project: Path) -> str | None:
    return "it ran" if (project / "PWNED").exists() else None


ODD = ["runs", "data", "evaluations", "a b", "$(touch PWNED)", "-x", "x" * 65, "é", "..", "a/b", "{x}", "a'b", "*"]


def of_a_name(draw: random.Random, project: Path) -> Mutation:
    name, what = draw.choice(ODD), draw.choice(["study", "arm", "table"])
    if what == "study":
        if "/" in name or name == "..":
            name = "a b"
        write_study(project, STUDY, name)
    elif what == "arm":
        arms = original(project, ARMS_FILE)
        arms["arms"][name] = arms["arms"]["constant"]
        (project / ARMS_FILE).write_text(yaml.safe_dump(arms, sort_keys=False))
        write_study(project, {**STUDY, "arms": [*STUDY["arms"], name]}, "fuzz")
    else:
        write_study(project, {**STUDY, "tables": {name: STUDY["tables"]["main"]}}, "fuzz")
    reserved = name in ("runs", "data", "evaluations") and what != "study"
    command = ("-m", "longshort.cli", "check", f"--study={name if what == 'study' else 'fuzz'}")
    return Mutation(
        f"{what} {name}",
        "a folder of an arm or a file of a table may be called so" if reserved else "a name is a name and no path",
        refused=None if reserved else "name|unknown|share",
        commands=(command,),
        wrong=pwned,
    )


def of_sources(draw: random.Random, project: Path) -> Mutation:
    """Tasks of LongBench-E and of the harness that are not there, or not tasks."""
    evaluations = copy.deepcopy(STUDY["evaluations"])
    folder = project / "tasks"
    kind = draw.choice(["folder", "zip", "harness"])
    put: dict[str, Callable[[], object]] = {
        "nothing": lambda: None,
        "a file": lambda: folder.write_text("x"),
        "an empty folder": folder.mkdir,
        "a pipe": lambda: os.mkfifo(folder),
        "a loop": lambda: folder.symlink_to(folder),
        "empty files": lambda: fill(folder, b""),
        "names with braces": lambda: fill(folder, b"{}\n", "{task}"),
        "bytes": lambda: fill(folder, b"\xff\xfe\0\0" * 100),
        "cut lines": lambda: fill(folder, b'{"input": "a", "context"'),
        "a list": lambda: fill(folder, b"[1, 2]\n"),
    }
    what = draw.choice(list(put))
    put[what]()
    if kind == "harness":
        evaluations["harness"] |= {"include_path": "tasks", "tasks": ["trec_e"], "lower_is_better": []}
    else:
        evaluations["longbench_e"]["source"] = {"kind": kind, "path": "tasks"}
    write_study(project, {**STUDY, "evaluations": evaluations}, "fuzz")
    return Mutation(f"{kind}: {what}", "tasks that cannot be read are named before anything trains", refused="tasks")


def fill(folder: Path, content: bytes, name: str = "trec") -> None:
    folder.mkdir()
    (folder / f"{name}_e.jsonl").write_bytes(content)
    (folder / f"{name}_e.yaml").write_bytes(content)


KINDS: dict[str, Kind] = {
    "a value of a study": of_a_value(STUDY_FILE),
    "a value of arms.yaml": of_a_value(ARMS_FILE),
    "a key of a study": of_a_key(STUDY_FILE),
    "a key of arms.yaml": of_a_key(ARMS_FILE),
    "a word of YAML 1.1": of_a_word,
    "the text of an edited file": of_a_text,
    "the place of an edited file": of_a_place,
    "a value of the site": of_the_site,
    "a file of DeepSpeed": of_deepspeed,
    "an acceptance": of_an_acceptance,
    "the command line": of_the_command_line,
    "a name": of_a_name,
    "the tasks": of_sources,
}
WEIGHTS = {"a value of a study": 5, "a value of arms.yaml": 3, "a key of a study": 2, "a word of YAML 1.1": 2}
