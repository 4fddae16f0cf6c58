"""A whole study of language models, with its small sections."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, StrictInt, field_validator, model_validator

from longshort.data.settings import Data
from longshort.identity.strict import MOST_SEEDS, Strict, distinct
from longshort.study.schema.evaluations import Evaluations
from longshort.study.schema.model import Model
from longshort.study.schema.tables import Published, Table
from longshort.study.schema.training import Training

MOST_RUNS = 10_000
# Ahead of its time limit, whatever that is, slurm/config.yaml has any job asked to end.
PROFILE_MINUTES = 2


class Lengths(Strict):
    train: int = Field(gt=1, description="training length l_train, tokens")
    test: int | None = Field(None, gt=0, description="the test length that ratio schedules refer to, tokens")

    @model_validator(mode="after")
    def _test_is_longer(self) -> Lengths:
        if self.test is not None and self.test < self.train:
            raise ValueError(f"test {self.test} is below train {self.train}; give a longer one, or null")
        return self


class Override(Strict):
    """What a study may change of one arm. What the arm is called and compared with is said in config/arms.yaml."""

    alignment: dict[str, Any] = Field({}, description="patch of the alignment")
    training: dict[str, Any] = Field({}, description="patch of the training")


class Needs(Strict):
    """What the jobs of a study ask a scheduler for at their first attempt; the next one gets as much again."""

    device: Literal["cpu", "gpu"] = Field(
        "cpu",
        description="gpu: one for each process of a training, one for an evaluation; cpu: none is used",
    )
    data_cores: int = Field(2, gt=0, description="cores that tokenise the corpus")
    training_memory_mb: int = Field(4000, gt=0, description="main memory of a training on each node, MB")
    training_minutes: int = Field(240, gt=0, description="time limit of a training, minutes")
    save_minutes: int = Field(
        PROFILE_MINUTES, gt=0, description="how long before its time limit a training is asked to save and end, minutes"
    )
    evaluations: Literal["together", "apart"] | None = Field(
        None,
        description="together: one job measures all that is due of a run, and loads its models once; apart: a job for "
        "each metric; null: together on CPUs, apart on GPUs",
    )
    evaluation_memory_mb: int = Field(4000, gt=0, description="main memory of an evaluation job, MB")
    evaluation_minutes: int = Field(240, gt=0, description="time limit of an evaluation job, minutes")

    @model_validator(mode="after")
    def _time_is_left(self) -> Needs:
        if PROFILE_MINUTES < self.save_minutes >= self.training_minutes:
            raise ValueError(
                f"needs.save_minutes = {self.save_minutes} leaves a training no minute of needs.training_minutes = "
                f"{self.training_minutes}; lower it"
            )
        return self

    @property
    def are_together(self) -> bool:
        """Whether the evaluations of a run are one job."""
        return self.device == "cpu" if self.evaluations is None else self.evaluations == "together"


class Study(Strict):
    """config/studies/<name>.yaml"""

    title: str = Field(description="one line")
    question: str = Field(description="what the study asks, in a sentence or two")
    data: Data = Field(description="corpus and tokens")
    model: Model = Field(description="the base that every arm starts from, or one for each seed")
    lengths: Lengths = Field(description="training and test length")
    training: Training = Field(description="fine-tuning; an arm may patch it")
    alignment: dict[str, Any] = Field(
        {}, description="replaces parts of the alignment that config/arms.yaml starts from"
    )
    checkpoints: list[StrictInt] = Field(min_length=1, description="optimiser steps at which every run is evaluated")
    seeds: list[Annotated[StrictInt, Field(ge=0, lt=MOST_SEEDS)]] = Field(
        min_length=1, description="one run of every arm for each"
    )
    arms: list[str] = Field(min_length=1, description="names of config/arms.yaml, in the order of the tables")
    overrides: dict[str, Override] = Field({}, description="patches of single arms, for this study only")
    evaluations: Evaluations = Field(description="metrics")
    tables: dict[str, Table] = Field(
        {}, description="tables of this study alone, or in place of a shared one of config/arms.yaml"
    )
    primary: str | None = Field(
        None,
        description="the one number that effects are claimed of, at the last checkpoint, as a column of the tables "
        "(longbench_e, perplexity@4096, ...); null: every number is descriptive",
    )
    margin: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="a smaller effect on the primary number counts as none: per cent of a perplexity, else its own "
        "unit; null: none is stated",
    )
    claims: list[str] = Field(
        [],
        description="the arms whose effects on the primary number are claimed, each against its control or the "
        "baseline; []: all that the tables compare",
    )
    published: list[Published] = Field(
        [], description="the paper's numbers, shown beside this study's where the two are comparable"
    )
    needs: Needs = Field(Needs(), description="devices, memory and time of the jobs; no part of the identity")

    _all_once = field_validator("seeds", "arms", "checkpoints", "claims")(distinct)

    @model_validator(mode="after")
    def _runs_are_few(self) -> Study:
        if len(self.seeds) * len(self.arms) > MOST_RUNS:
            raise ValueError(
                f"{len(self.seeds)} seeds times {len(self.arms)} arms are more than {MOST_RUNS} runs; give fewer seeds"
            )
        return self
