"""Prompt formats and answer lengths of the 13 LongBench-E tasks, equal to the official ones character by character.

Official: THUDM/LongBench, config/dataset2prompt.json and dataset2maxlen.json. The text is read from the task files of
the installed lm_eval package, mended where those differ from the official text, and held against digests.
"""

from __future__ import annotations

import hashlib
import importlib.util
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml

# Answer length in tokens, and the first 12 hex digits of the SHA-256 of the UTF-8 prompt format.
OFFICIAL = {
    "qasper": (128, "0fbdd123fe7f"),
    "multifieldqa_en": (64, "20b4666a2de8"),
    "hotpotqa": (32, "9ec4ae308865"),
    "2wikimqa": (32, "9ec4ae308865"),
    "gov_report": (512, "91c25d585b18"),
    "multi_news": (512, "2af3f28c40b9"),
    "trec": (64, "0eff8bebdba9"),
    "triviaqa": (32, "00a802e6377e"),
    "samsum": (128, "a68d88423490"),
    "passage_count": (32, "986550b6c610"),
    "passage_retrieval_en": (32, "39b96b7fa52b"),
    "lcc": (64, "6a1f24cf0bb8"),
    "repobench-p": (64, "ee9ec182ea5f"),
}
TASKS = tuple(OFFICIAL)

# What lm_eval's files lack, as (ending of the format, official ending).
_LM_EVAL_ENDINGS = {
    "triviaqa": ("{context}\n{input}", "{context}\n\n{input}"),
    "samsum": ("{context}\n{input}", "{context}\n\n{input}"),
    "passage_count": ("is:", "is: "),
    "passage_retrieval_en": ("is:", "is: "),
    "lcc": ("code:", "code:\n"),
    "repobench-p": ("code:", "code:\n"),
}


class Prompt(NamedTuple):
    """How a task asks: `format` with the fields {context} and {input}, and the length of the answer in tokens."""

    format: str
    answer_length: int


class _TolerantLoader(yaml.SafeLoader):
    """Reads lm_eval's files without importing the functions that their !function tags name."""


_TolerantLoader.add_multi_constructor("!", lambda loader, suffix, node: None)


@cache
def official_prompts() -> dict[str, Prompt]:
    """The 13 tasks in official order.

    Raises:
        ValueError: lm_eval is not installed, lacks a task, or its text or answer length is not the official one.
    """
    folder = _lm_eval_tasks()
    return {task: _official(task, folder / f"{task}_e.yaml") for task in TASKS}


def prompts_digest() -> str:
    """12 hex digits for all prompt formats and answer lengths together: a part of the protocol's name."""
    return hashlib.sha256(repr(sorted(OFFICIAL.items())).encode()).hexdigest()[:12]


def _official(task: str, file: Path) -> Prompt:
    try:
        loaded: dict[str, Any] = yaml.load(file.read_text(encoding="utf-8"), Loader=_TolerantLoader)
    except FileNotFoundError:
        raise ValueError(f"lm_eval has no task file {file}: install the version that the lock file names") from None
    text = loaded["doc_to_text"].replace("{{context}}", "{context}").replace("{{question}}", "{input}")
    theirs, official = _LM_EVAL_ENDINGS.get(task, ("", ""))
    if theirs and text.endswith(theirs):
        text = text.removesuffix(theirs) + official
    prompt = Prompt(text, loaded["generation_kwargs"]["max_gen_toks"])

    length, digest = OFFICIAL[task]
    found = hashlib.sha256(text.encode()).hexdigest()[:12]
    if found != digest or prompt.answer_length != length:
        raise ValueError(
            f"the prompt of {task} in {file} is not the official one: digest {found} and answer length "
            f"{prompt.answer_length} instead of {digest} and {length}; install the lm_eval that the lock file names"
        )
    return prompt


def _lm_eval_tasks() -> Path:
    # find_spec locates the package without running it: importing lm_eval loads the whole model stack.
    spec = importlib.util.find_spec("lm_eval")
    if spec is None or not spec.submodule_search_locations:
        raise ValueError("LongBench-E reads its prompts from the package lm_eval, which is not installed: install it")
    return Path(spec.submodule_search_locations[0]) / "tasks" / "longbench"
