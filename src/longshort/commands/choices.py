"""Lengths, a batch and documents that fit a person's model, texts and machine: for `longshort new`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

from longshort.commands import memory
from longshort.commands.survey import Machine, OwnModel, OwnTexts
from longshort.data import corpora
from longshort.errors import StudyError
from longshort.study.deepspeed import read_deepspeed
from longshort.study.schema import Training

# l_train, tokens, and windows a step, where nothing is asked or stands against them.
LENGTH, BATCH = {"gpu": 4096, "cpu": 256}, {"gpu": 16, "cpu": 4}
SHORTEST = 16
# Tested is up to so many times the training length, as in the paper.
LONGEST_RATIO = 8
# So many test documents shall be as long as the test length, if the corpus has them, and at most so many are read.
FEW, MANY = 8, {"gpu": 100, "cpu": 16}
# Of a device's memory: what the estimate counts. The rest is for what it does not, and for how far it is off.
SHARE = 0.8
# How a training is divided and what it recomputes, the fastest first, the leanest last.
ALONE = (("zero1", False), ("zero1", True), ("zero0", True))
TOGETHER = (("zero2", False), ("zero2", True), ("zero3", True))


class Lengths(NamedTuple):
    """Tokens; factor: by which YaRN extends the model's positions, None where it reads as far by itself."""

    train: int
    test: int
    factor: int | None
    max_length: int


class Fit(NamedTuple):
    """A training that fits; bytes: that a process of it takes, as the estimate counts them."""

    deepspeed: str
    checkpointing: bool
    micro_batch: int
    bytes: float


class Split(NamedTuple):
    """Shares of the documents that are held out, and how many tokens the documents have that fall to each split, the
    longest first; None: not known."""

    validation: float
    test: float
    tokens: dict[str, list[int]] | None

    def at_least(self, name: str, length: int) -> int | None:
        """How many documents of a split have so many tokens."""
        return None if self.tokens is None else sum(count >= length for count in self.tokens[name])


def split(texts: OwnTexts) -> Split:
    """The fewer documents, the larger the shares."""
    if texts.tokens is None:
        return Split(0.01, 0.02, None)
    documents = max(len(texts.tokens), texts.documents)
    validation, test = (0.1, 0.25) if documents < 200 else (0.05, 0.1) if documents < 2000 else (0.01, 0.05)
    tokens: dict[str, list[int]] = {"train": [], "validation": [], "test": []}
    for name, count in texts.tokens.items():
        tokens[corpora.split_of(name, validation, test)].append(count)
    if texts.whole and not tokens["validation"]:  # which the study would refuse
        validation = 0.0
    return Split(validation, test, {name: sorted(counts, reverse=True) for name, counts in tokens.items()})


def lengths(
    where: str, model: OwnModel, documents: Split, device: str, train: int | None = None, test: int | None = None
) -> Lengths:
    """What is asked, or what the model's positions and the documents allow.

    Args:
        train, test: what is asked, tokens; None: to be chosen.

    Raises:
        StudyError: what is asked, or anything, cannot be.
    """
    if train is not None and test is not None and test < train:
        raise StudyError(f"{where}: --test-length {test} is below --train-length {train}; give a longer one")
    least = test or 2 * (train or SHORTEST)
    most = max(least, _most(where, documents, train or SHORTEST, least))
    reach = model.reach.tokens or math.inf
    if model.reach.learnt or model.reach.extended:
        most = max(least, min(most, reach))
    if train is None:
        train = int(min(LENGTH[device], reach, (test or math.inf) // 2))
        while train > SHORTEST and (2 * train > most or not _enough(documents, train)):
            train //= 2
    if test is None:
        test = max(ratio * train for ratio in (2, 4, LONGEST_RATIO) if ratio == 2 or ratio * train <= most)
    return _reaching(where, model, train, test)


def _most(where: str, documents: Split, train: int, least: int) -> float:
    """The test length that a few test documents have, tokens, or the longest has.

    Raises:
        StudyError: none has as many as it must; or there are too few to train on.
    """
    if documents.tokens is None:
        return math.inf
    tested = documents.tokens["test"]
    longest = tested[0] if tested else 0
    if longest < least:
        raise StudyError(
            f"{where}: the longest of {len(tested)} test documents has {longest} tokens, fewer than {least}, the test "
            "length, which is twice the training length unless --test-length says otherwise; give shorter lengths, or "
            "more or longer documents"
        )
    if not _enough(documents, train):
        raise StudyError(
            f"{where}: the training documents have {sum(documents.tokens['train'])} tokens together, fewer than two "
            f"windows of {2 * train}; give a shorter --train-length, or more documents"
        )
    return tested[min(FEW, len(tested)) - 1]


def _enough(documents: Split, train: int) -> bool:
    """Whether two windows of two views can be cut, and there is room to move them."""
    return documents.tokens is None or sum(documents.tokens["train"]) >= 6 * train


def _reaching(where: str, model: OwnModel, train: int, test: int) -> Lengths:
    """With an extension where the model needs one.

    Raises:
        StudyError: its positions cannot be extended.
    """
    reach = model.reach
    if reach.tokens is None or test <= reach.tokens:
        return Lengths(train, test, None, reach.tokens or test)
    if reach.learnt or reach.extended:
        why = "they are learnt" if reach.learnt else f"its configuration extends them already ({reach.extended})"
        raise StudyError(
            f"{where}: {test} tokens, the test length, are more than the {reach.tokens} positions of the model, and "
            f"no model.rope can extend these, as {why}; give lengths up to {reach.tokens}, or another model"
        )
    factor = 2 ** math.ceil(math.log2(test / reach.tokens))
    return Lengths(train, test, factor, factor * reach.tokens)


def training(
    where: str, model: OwnModel, machine: Machine, length: int, longest: int, batch: int, processes: int, config: Path
) -> Fit | None:
    """The fastest way to train in a device's memory; None where there is none.

    Args:
        length: l_train, tokens; a forward has micro_batch windows of it.
        longest: of a window of any arm; an arm of longer windows reads fewer of them at a time, but at least one.
        batch: windows a step over all processes.
    """
    budget = SHARE * machine.memory / (processes if machine.device == "cpu" else 1)
    each = batch // processes
    for deepspeed, checkpointing in ALONE if processes == 1 else TOGETHER:
        for micro_batch in sorted((count for count in range(1, each + 1) if each % count == 0), reverse=True):
            values = {"steps": 1, "batch": batch, "learning_rate": 1.0, "processes": processes, "deepspeed": deepspeed}
            asked = Training.model_validate({**values, "precision": precision(model, machine.device)})
            zero = read_deepspeed(where, asked, config)
            of_each = max(length, math.ceil(longest / micro_batch))
            device = "cuda" if machine.device == "gpu" else "cpu"
            parts = memory.of_training(model.shape[0], asked, of_each, zero, micro_batch, checkpointing, device)
            if sum(parts.values()) <= budget:
                return Fit(deepspeed, checkpointing, micro_batch, sum(parts.values()))
    return None


def precision(model: OwnModel, device: str) -> str:
    """Of a training: bf16 on a GPU, unless the model's own files hold float32; CPUs gain little by it."""
    return "fp32" if device == "cpu" or model.dtype == "float32" else "bf16"


def too_large(where: str, model: OwnModel, machine: Machine, length: int, processes: int) -> StudyError:
    more = "more GPUs (--processes)" if machine.device == "gpu" else "a GPU (--device gpu)"
    return StudyError(
        f"{where}: no training of all weights ({model.shape[1]}) at {length} tokens fits {SHARE:.0%} of "
        f"{machine.source} with {processes} process{'es' if processes > 1 else ''}: give {more}, a smaller "
        "--train-length, a smaller model, or --memory if there is more; or copy config/studies/llama2-7b-longqlora-8k"
        ".yaml, which trains an adapter alone"
    )
