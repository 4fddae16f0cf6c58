"""What a run of another training length than the study's is: as many tokens in every optimiser step."""

from __future__ import annotations

import math
from typing import cast

from longshort.errors import StudyError
from longshort.study.parsing import parse
from longshort.study.schema import Arm, Study, Training


def of_arm(where: str, arm: Arm, study: Study) -> int:
    """The training length of an arm, tokens.

    Raises:
        StudyError: the study names no test length, or the model cannot take it.
    """
    if arm.lengths is None:
        return study.lengths.train
    length = study.lengths.test if arm.lengths.train == "test" else arm.lengths.train
    if length is None:
        raise StudyError(
            f"{where}: lengths.train = 'test': the study has no lengths.test; give it one, or take the arm out"
        )
    if length > study.model.max_length:
        raise StudyError(
            f"{where}: lengths.train = {length} tokens: longer than the model can take (model.max_length "
            f"{study.model.max_length}); lower it, or extend the model"
        )
    return length


def same_tokens(where: str, key: str, training: Training, before: int, length: int, micro: bool = True) -> Training:
    """A training in windows of `before` tokens, in windows of `length` tokens: as many tokens a step.

    Args:
        key: of the training, for a refusal.
        micro: also as many tokens in each forward, or as many as a window has.

    Raises:
        StudyError: these tokens are no whole number of windows for each process.
    """
    if length == before:
        return training
    each = length * training.world_size
    if training.batch * before % each:
        raise StudyError(
            f"{where}: {training.batch} windows of {before} tokens a step are no whole number of windows of {length} "
            f"tokens for each of {training.world_size} process{'es' if training.world_size > 1 else ''}; give {key}"
            f".batch a multiple of {each // math.gcd(each, before)}"
        )
    batch = training.batch * before // length
    micro_batch = training.micro_batch
    if micro and micro_batch is not None:
        micro_batch = math.gcd(max(1, micro_batch * before // length), batch // training.world_size)
    return cast(
        "Training",
        parse(Training, {**training.model_dump(), "batch": batch, "micro_batch": micro_batch}, where, key),
    )
