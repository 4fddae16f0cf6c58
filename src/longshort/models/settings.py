"""What a study says of models: their shape, where weights lie, how the context is extended, what is trained beside."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, StrictInt, model_validator

from longshort.identity.strict import COMMIT, Strict, distinct


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


class Weights(Strict):
    """The weights of a model that exists: a hub id or a local folder, safetensors only."""

    kind: Literal["pretrained"] = "pretrained"
    name: str = Field(min_length=1, description="hub id or path of a local folder")
    revision: str | None = Field(
        None,
        pattern=COMMIT,
        description="commit of the hub repository, its 40 hexadecimal digits; null for a local folder",
    )
    trust_remote_code: Literal[False] = Field(
        False, description="code that comes with a model is never run; the key stands in the names of finished runs"
    )


def _no_head(targets: list[str]) -> list[str]:
    if heads := {"lm_head", "embed_out", "embed_tokens"} & set(targets):
        raise ValueError(f"{min(heads)!r} is the head or the embeddings, which get no adapter; take it out")
    return targets


class Adapter(Strict):
    """Small matrices beside the base's linear layers, trained in its place: LoRA; QLoRA: with the base in four bits."""

    kind: Literal["lora", "qlora"]
    rank: int = Field(gt=0, description="rank of the trained product")
    alpha: float = Field(gt=0, description="the product is multiplied by alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout of the adapter's input while training")
    targets: Annotated[list[str], AfterValidator(distinct), AfterValidator(_no_head)] = Field(
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        min_length=1,
        description="names of the linear layers that get one; never the head",
    )
