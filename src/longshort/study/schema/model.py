"""The section `model`: the base that every arm starts from, and how its context is extended."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, StrictInt, field_validator, model_validator

from longshort.identity.strict import COMMIT, MOST_SEEDS, NOT_IDENTITY, Strict
from longshort.models.settings import Architecture, Rope, Weights
from longshort.study.schema.training import Training

SEEDS_PER_BASE = Field(
    1,
    gt=0,
    description="so many seeds, in the order of seeds, start from each base: tells its share of chance from theirs",
    json_schema_extra={"neutral": 1},
)


class TrainedModel(Strict):
    """A base that a rule trains, by plain next-token prediction: one that every arm starts from, or one a seed."""

    kind: Literal["trained"]
    architecture: Architecture = Field(description="what is trained")
    training: Training = Field(description="how the base is trained")
    seed: int | Literal["per-run"] = Field(
        0,
        description="seed of the base's weights and data order; per-run: each seed of a study has a base of its own",
    )
    seeds_per_base: StrictInt = SEEDS_PER_BASE
    long_base: bool = Field(
        False,
        description="train one more base, from scratch at lengths.test on as many tokens, as a reference that no arm "
        "starts from",
        json_schema_extra={"neutral": False},
    )
    max_length: int = Field(gt=0, description="longest input the model can take, extended, tokens")
    rope: Rope | None = Field(
        None,
        description="context extension, before the arms are trained; null: none",
        json_schema_extra=NOT_IDENTITY,  # of the base; each run of an arm names it
    )

    @field_validator("training")
    @classmethod
    def _trained_whole(cls, training: Training) -> Training:
        if training.adapter is not None:
            raise ValueError("a base that begins with random weights is trained whole; leave adapter to the arms")
        return training

    @field_validator("seed", mode="before")
    @classmethod
    def _a_seed_or_a_word(cls, seed: Any) -> Any:
        if seed != "per-run" and (type(seed) is not int or not 0 <= seed < MOST_SEEDS):
            raise ValueError(f"must be an integer from 0 to {MOST_SEEDS - 1}, or per-run")
        return seed

    @property
    def layers(self) -> int:
        return self.architecture.layers


class PretrainedBase(Strict):
    """One of several bases that exist."""

    name: str = Field(min_length=1, description="hub id or path of a local folder")
    revision: str | None = Field(
        None,
        pattern=COMMIT,
        description="commit of the hub repository, its 40 hexadecimal digits; null for a local folder",
    )


class PretrainedModel(Strict):
    """A base that exists, or several that differ by chance alone: hub ids or local folders, safetensors only."""

    kind: Literal["pretrained"]
    name: str | None = Field(
        None, min_length=1, description="hub id or path of a local folder", json_schema_extra={"neutral": None}
    )
    revision: str | None = Field(
        None,
        pattern=COMMIT,
        description="commit of the hub repository, its 40 hexadecimal digits; null for a local folder",
    )
    bases: list[PretrainedBase] | None = Field(
        None,
        min_length=1,
        description="in place of one name: the s-th of seeds starts from the s-th of these",
        json_schema_extra={"neutral": None},
    )
    seeds_per_base: StrictInt = SEEDS_PER_BASE
    trust_remote_code: Literal[False] = Field(
        False, description="code that comes with a model is never run; the key stands in the names of finished runs"
    )
    layers: int = Field(  # this and max_length are for checks only: the model's own files say them
        gt=0,
        description="blocks of the model, so that layer choices are checked before it is loaded",
        json_schema_extra=NOT_IDENTITY,
    )
    max_length: int = Field(
        gt=0, description="longest input the model can take, extended, tokens", json_schema_extra=NOT_IDENTITY
    )
    beyond_positions: bool = Field(
        False,
        description="max_length may lie beyond the rotary positions that the model's configuration states, or beyond "
        "those that rope stretches them to",
        json_schema_extra=NOT_IDENTITY,
    )
    rope: Rope | None = Field(
        None,
        description="context extension, before the arms are trained; null: none",
        json_schema_extra=NOT_IDENTITY,  # of the base; each run of an arm names it
    )

    @model_validator(mode="after")
    def _named_in_one_way(self) -> PretrainedModel:
        if (self.name is None) == (self.bases is None):
            raise ValueError("give either a name or bases")
        if self.bases is not None and self.revision is not None:
            raise ValueError("revision goes with each of bases; take it out here")
        return self

    def each(self) -> list[PretrainedModel]:
        """The bases, each as a model of its own."""
        if self.bases is None:
            return [self]
        alone = {"bases": None, "seeds_per_base": 1}
        return [self.model_copy(update={**alone, **base.model_dump()}) for base in self.bases]

    @property
    def weights(self) -> Weights:
        """What a run takes of one of `each`."""
        return Weights(name=str(self.name), revision=self.revision, trust_remote_code=self.trust_remote_code)


Model = Annotated[TrainedModel | PretrainedModel, Field(discriminator="kind")]
