"""What a run aligns, by values and not by schedules; and the words in which a study says it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from longshort.identity.strict import Strict

Divergence = Literal["sce", "symmetric-kl", "kl", "reverse-kl", "js", "l2"]
StopGradient = Literal["none", "first", "second", "targets"]


class OverlapAll(Strict):
    kind: Literal["all"] = "all"


class OverlapLast(Strict):
    kind: Literal["last"]


class OverlapLastK(Strict):
    kind: Literal["last-k"]
    k: int = Field(gt=0, description="how many positions at the end of the overlap, at most")


Overlap = Annotated[OverlapAll | OverlapLast | OverlapLastK, Field(discriminator="kind")]


class OutputTerm(Strict):
    alpha: float | list[float] = Field(description="weight at every step, or one for all")
    divergence: Divergence
    stop_gradient: StopGradient = Field("none", json_schema_extra={"neutral": "none"})


class HiddenTerm(Strict):
    alpha: float | list[float]
    layers: list[int] = Field(description="outputs of blocks 1..n-1")
    distance: Literal["mse", "cosine", "logit-lens"]
    divergence: Divergence | None = Field(None, description="of the logit lens", json_schema_extra={"neutral": None})
    stop_gradient: StopGradient = Field("none", json_schema_extra={"neutral": "none"})


class TwoViews(Strict):
    """The alignment as one run computes it: values, no schedules."""

    max_extra: int | list[int] = Field(description="l_extra ~ U{1..max_extra}, tokens, at every step, or one for all")
    sampling_per: Literal["batch", "row"] = Field("batch", json_schema_extra={"neutral": "batch"})
    overlap: Overlap | None = None
    output: OutputTerm | None = None
    hidden: HiddenTerm | None = None

    @model_validator(mode="after")
    def _a_term_is_of_an_overlap(self) -> TwoViews:
        if (self.output or self.hidden) and self.overlap is None:
            raise ValueError("overlap is null, and output or hidden is not: say which positions are aligned")
        return self
