"""The section `model`: the base that every arm starts from, and how its context is extended."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, StrictInt, field_validator, model_validator

from longshort.identity.strict import COMMIT, MOST_SEEDS, NOT_IDENTITY, Strict
from longshort.study.schema.training import Training


class Architecture(Strict):
    """A small Llama-style decoder."""

    hidden_size: int = Field(gt=0, description="width")
    intermediate_size: int = Field(gt=0, description="width of the feed-forward layers")
    layers: int = Field(gt=0, description="blocks")
    heads: int = Field(gt=0, description="attention heads")
    rope_theta: float = Field(10000.0, gt=0, description="base of the rotary frequencies")

    @model_validator(mode="after")
    def _heads_divide(self) -> Architecture:
        if self.hidden_size % (2 * self.heads):
            raise ValueError(f"hidden_size {self.hidden_size} is no multiple of 2 x heads {self.heads}")
        return self


class Interpolation(Strict):
    """Positions or frequencies stretched by a factor: pi (all alike), ntk (by theta), dynamic-ntk (by the input)."""

    kind: Literal["pi", "ntk", "dynamic-ntk"]
    factor: float = Field(gt=1, description="new over original context length")


class YaRN(Strict):
    """Low frequencies stretched, high ones left, attention scaled."""

    kind: Literal["yarn"]
    factor: float = Field(gt=1, description="new over original context length")
    beta_fast: float = Field(32.0, gt=0, description="frequencies of more turns than this in the original length stay")
    beta_slow: float = Field(1.0, gt=0, description="frequencies with fewer turns than this are stretched in full")


class ABF(Strict):
    """Another base of the rotary frequencies."""

    kind: Literal["abf"]
    theta: float = Field(gt=0, description="base of the rotary frequencies")


class EABF(Strict):
    """ABF, with queries scaled by the logarithm of their position."""

    kind: Literal["eabf"]
    theta: float = Field(500000.0, gt=0, description="base of the rotary frequencies")
    plain_layers: int = Field(
        2, ge=0, description="so many first blocks are not scaled: 2 by the paper, 0 by its released code"
    )


class CLEX(Strict):
    """Frequencies as a learned continuous function of the length."""

    kind: Literal["clex"]
    max_factor: StrictInt = Field(16, gt=1, description="longest length trained for, over the original one")
    time_step: float = Field(0.01, gt=0, description="step of the integration, in units of the original length")
    width_factor: StrictInt = Field(1, gt=0, description="width of the learned function over the size of a head")
    activation: Literal["tanh", "silu"] = Field("tanh", description="of the learned function")
    draws_per: Literal["window", "step"] = Field(
        "window",
        description="what has a length and positions of its own while training: every window, or every optimiser step",
        json_schema_extra={"neutral": "step"},
    )


Rope = Annotated[Interpolation | YaRN | ABF | EABF | CLEX, Field(discriminator="kind")]


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


Model = Annotated[TrainedModel | PretrainedModel, Field(discriminator="kind")]
