"""The bases of a study: the runs that its arms start from, the same with their context extended, and the one that was
trained at the test length."""

from __future__ import annotations

from pathlib import Path

from longshort.errors import StudyError
from longshort.study import lengths
from longshort.study.deepspeed import read_deepspeed
from longshort.study.run import RunSpec
from longshort.study.schema import Study, TrainedModel


def bases_of(where: str, study: Study, config: Path) -> tuple[dict[int, RunSpec], int]:
    """Seed -> the run that its arms start from, and the optimiser steps of these: 0 where they exist already."""
    data, length, model = study.data, study.lengths.train, study.model
    if not isinstance(model, TrainedModel):
        specs = [RunSpec(data=data, length=length, seed=0, pretrained=base.weights) for base in model.each()]
        if model.bases is None:
            return dict.fromkeys(study.seeds, specs[0]), 0
        return {seed: specs[place // model.seeds_per_base] for place, seed in enumerate(study.seeds)}, 0
    deepspeed = read_deepspeed(where, model.training, config)

    def trained(seed: int) -> RunSpec:
        return RunSpec(
            data=data,
            length=length,
            seed=seed,
            architecture=model.architecture,
            training=model.training,
            deepspeed=deepspeed,
        )

    if model.seed != "per-run":
        return dict.fromkeys(study.seeds, trained(model.seed)), model.training.steps
    firsts = [study.seeds[place - place % model.seeds_per_base] for place in range(len(study.seeds))]
    return {seed: trained(first) for seed, first in zip(study.seeds, firsts, strict=True)}, model.training.steps


def extended_of(study: Study, base: str, spec: RunSpec) -> RunSpec | None:
    """A base as the arms start from it where the study extends its context: untrained. None where it does not."""
    if study.model.rope is None:
        return None
    return RunSpec(data=study.data, length=study.lengths.train, seed=spec.seed, base=base, rope=study.model.rope)


def long_base_of(where: str, study: Study, config: Path) -> RunSpec | None:
    """The base that is trained at the test length, if the study asks for it. One for all seeds, the first one's: as an
    evaluator it must judge all of them, since key tokens are found once.

    Raises:
        StudyError: the study has no longer test length, or the tokens of a step do not divide.
    """
    model = study.model
    if not isinstance(model, TrainedModel) or not model.long_base:
        return None
    length = study.lengths.test
    if length is None or length == study.lengths.train:
        raise StudyError(
            f"{where}: model.long_base = True: it is trained at lengths.test, which is {length}; give one above "
            f"lengths.train {study.lengths.train}, or leave long_base out"
        )
    key = f"{where}: model.long_base = True"
    training = lengths.same_tokens(key, "model.training", model.training, study.lengths.train, length)
    return RunSpec(
        data=study.data,
        length=length,
        seed=study.seeds[0] if model.seed == "per-run" else model.seed,
        architecture=model.architecture,
        training=training,
        deepspeed=read_deepspeed(f"{where}: model.training", training, config),
    )
