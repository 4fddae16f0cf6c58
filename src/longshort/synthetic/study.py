"""The synthetic study, typed and resolved (config/studies/<name>.yaml with `kind: synthetic`).

Imports no torch and no workflow engine.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, StrictInt, field_validator, model_validator

from longshort.identity.code import code_hash
from longshort.identity.spec import canonical, digest, dumps
from longshort.records import hub, layout
from longshort.study import resources
from longshort.study.parsing import parse
from longshort.study.schema import MOST_SEEDS, Strict, distinct
from longshort.study.wired import Result, Wired
from longshort.study.wiring import TABLE_KINDS

TRAINING = "longshort.synthetic.train"
Task = Literal["mean", "length"]
Encoding = Literal["none", "learned", "rope", "alibi"]
Parameterisation = Literal["identity", "sqrt", "log", "inverse-sqrt"]


class SyntheticModel(Strict):
    features: int = Field(gt=0, description="width; the blocks' inner layer has four times as much")
    layers: int = Field(gt=0, description="blocks")
    heads: int = Field(gt=0, description="of the attention, in each block")

    @model_validator(mode="after")
    def _heads_divide(self) -> SyntheticModel:
        if self.features % (2 * self.heads):
            raise ValueError(f"features {self.features} is no even multiple of heads {self.heads}; change one of them")
        return self


class SyntheticTraining(Strict):
    steps: int = Field(gt=0, description="optimiser steps (AdamW, cosine schedule)")
    batch: int = Field(gt=0, description="sequences a step")
    learning_rate: float = Field(gt=0, description="at the end of the warm-up")
    warmup_steps: int = Field(0, ge=0, description="steps in which the learning rate grows linearly")


class SequenceLengths(Strict):
    train: int = Field(gt=1, description="longest length of the training, tokens; lengths are uniform in 1..train")
    test: int = Field(description="longest length of the test; every length up to it is tested")

    @model_validator(mode="after")
    def _longer(self) -> SequenceLengths:
        if self.test <= self.train:
            raise ValueError(f"lengths.test {self.test} must be above lengths.train {self.train}")
        return self


class SyntheticStudy(Strict):
    kind: Literal["synthetic"] = Field(description="tells this study from one of language models")
    title: str = Field(description="one line")
    question: str = Field(description="what the study asks, in a sentence or two")
    tasks: list[Task] = Field(min_length=1, description="what is to be predicted of a sequence of zeros and ones")
    encodings: list[Encoding] = Field(min_length=1, description="of positions")
    parameterisations: list[Parameterisation] = Field(
        min_length=1, description="what is predicted in place of the length; the mean is predicted as it is"
    )
    alpha: float | None = Field(
        None, gt=0, description="weight of the alignment of two views, in an arm of its own on the length task"
    )
    seeds: list[Annotated[StrictInt, Field(ge=0, lt=MOST_SEEDS)]] = Field(
        min_length=1, description="one model of every arm for each"
    )
    lengths: SequenceLengths = Field(description="of the sequences, tokens")
    model: SyntheticModel = Field(description="a small decoder-only transformer")
    training: SyntheticTraining = Field(description="the same for every arm")
    test_sequences: int = Field(gt=0, description="sequences of every test length")
    cap: float = Field(gt=0, description="mapped-back predictions above it count as it: one can be infinite")

    _once = field_validator("tasks", "encodings", "parameterisations", "seeds")(distinct)


class GroupSpec(Strict):
    """The models that are trained together, as one job: all seeds and parameterisations of a task and an encoding."""

    kind: Literal["synthetic"] = "synthetic"
    task: Task
    encoding: Encoding
    parameterisations: list[Parameterisation]
    alpha: float
    seeds: list[int]
    lengths: SequenceLengths
    model: SyntheticModel
    training: SyntheticTraining
    test_sequences: int
    cap: float


@dataclass(frozen=True)
class ResolvedSynthetic(Wired):
    """A synthetic study: the specification of every group by its id."""

    name: str
    study: SyntheticStudy
    groups: dict[str, GroupSpec]
    texts: dict[str, str] = field(repr=False)
    site: resources.Site = field(default_factory=resources.Site)
    kind: ClassVar[Literal["synthetic"]] = "synthetic"
    stages: ClassVar[tuple[str, ...]] = ("specification", "synthetic")

    def numbers(self) -> list[str]:
        return [layout.synthetic(group).numbers for group in self.groups]

    def published(self) -> list[str]:
        return [*self.numbers(), *(self.record(group) for group in self.groups)]

    def table_names(self) -> list[str]:
        return ["growth", *(["parameterisations"] if "length" in self.study.tasks else [])]

    def targets(self) -> list[str]:
        folder, tables = layout.study_folder(self.name), layout.tables(self.name)
        return [
            *(layout.report(self.name), layout.metrics(folder)),
            *(layout.plot(self.name, "error", kind) for kind in ("pdf", "png")),
            *(layout.table(tables, name, kind) for name in self.table_names() for kind in TABLE_KINDS),
        ]

    def record(self, group: str) -> str:
        """The file that says how a group's numbers were made."""
        return layout.synthetic(group).record

    @property
    def code(self) -> str:
        """The code of every group's job."""
        return code_hash(TRAINING)

    def results(self) -> list[Result]:
        return [
            Result(group, layout.SYNTHETIC, self.record(group), layout.synthetic(group).log, self.code)
            for group in self.groups
        ]

    def names(self) -> dict[str, str]:
        """Id -> task/encoding, with /alignment where two views are aligned."""
        return {
            identity: f"{group.task}/{group.encoding}{'/alignment' if group.alpha else ''}"
            for identity, group in self.groups.items()
        }

    def identities(self) -> set[str]:
        return {*self.groups}

    def in_words(self) -> str:
        models = sum(len(group.parameterisations) * len(group.seeds) for group in self.groups.values())
        return f"synthetic, {models} models, trained in {len(self.groups)} groups"

    def external_paths(self) -> list[str]:
        return []

    def hub_parts(self) -> list[hub.Part]:
        return []

    def resources(self) -> resources.Resources:
        return resources.job(self.site, 0, 2000, 60)

    def summary(self) -> dict[str, Any]:
        groups = {identity: canonical(group) for identity, group in self.groups.items()}
        return {"name": self.name, **canonical(self.study), "groups": groups}


def resolve(name: str, content: dict[str, Any], site: resources.Site) -> ResolvedSynthetic:
    """A synthetic study as the workflow asks for it: its groups of models, each with the text of its specification.

    Raises:
        StudyError: with key, value and remedy of every mistake found.
    """
    study: SyntheticStudy = parse(SyntheticStudy, content, f"study {name}", None)
    shared = {key: getattr(study, key) for key in ("seeds", "lengths", "model", "training", "test_sequences", "cap")}
    groups, texts = {}, {}
    for task in study.tasks:
        alphas = [0.0, study.alpha] if task == "length" and study.alpha else [0.0]
        for encoding in study.encodings:
            for alpha in alphas:
                chosen = study.parameterisations if task == "length" and not alpha else ["identity"]
                own = {"task": task, "encoding": encoding, "parameterisations": chosen, "alpha": alpha}
                group = GroupSpec.model_validate({**own, **shared})
                text = dumps(canonical(group))
                groups[digest(text)], texts[digest(text)] = group, text
    return ResolvedSynthetic(name, study, groups, texts, site)
