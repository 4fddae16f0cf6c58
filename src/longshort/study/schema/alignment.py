"""The section `alignment`, which is what an arm is."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from longshort.alignment.settings import Divergence, Overlap, OverlapAll, StopGradient
from longshort.identity.strict import Strict


class Constant(Strict):
    """The same multiplier at every step."""

    kind: Literal["constant"] = "constant"
    times: float = Field(1.0, gt=0, description="multiplier at every step", json_schema_extra={"neutral": 1.0})


class StepSchedule(Strict):
    """A multiplier that changes over the optimiser steps."""

    kind: Literal["linear", "cosine", "exponential"]
    start: float = Field(ge=0, description="multiplier at the first step")
    end: float = Field(ge=0, description="multiplier at the last step")
    mean: float | None = Field(
        None, gt=0, description="rescale the values so that their mean over all steps is this; null leaves them"
    )

    @model_validator(mode="after")
    def _exponential_is_positive(self) -> StepSchedule:
        if self.kind == "exponential" and (self.start <= 0 or self.end <= 0):
            raise ValueError("an exponential schedule needs start > 0 and end > 0; use linear to start from 0")
        if self.mean is not None and self.start == self.end == 0:
            raise ValueError("a schedule that is 0 throughout has no shape to scale; give start or end a value above 0")
        return self


class RatioSchedule(Strict):
    """A multiplier by the ratio of test to training length, constant (ratio) or growing to it (ratio-curriculum)."""

    kind: Literal["ratio", "ratio-curriculum"]
    l_test: int | None = Field(None, gt=0, description="test length in tokens; null takes the study's lengths.test")
    power: float = Field(1.0, ge=0, description="exponent of l_test / l_train")


class ViewSchedule(Strict):
    """A multiplier by the l_extra of the step's own views, with mean 1 over training.

    Proportional to (l_train + l_extra) / l_train (view-ratio) or to l_extra / l_train (view-gap).
    """

    kind: Literal["view-ratio", "view-gap"]


class MeanOf(Strict):
    """The constant control of a schedule: its mean over training, at every step."""

    kind: Literal["mean-of"]
    schedule: Annotated[StepSchedule | RatioSchedule, Field(discriminator="kind")] = Field(
        description="the schedule whose mean is used"
    )


Schedule = Annotated[Constant | StepSchedule | RatioSchedule | ViewSchedule | MeanOf, Field(discriminator="kind")]


class Hidden(Strict):
    """Alignment of intermediate layers between the two views."""

    alpha: float = Field(ge=0, description="weight of the mean distance over the chosen layers")
    layers: list[float] = Field(
        min_length=1,
        description="outputs of blocks 1..n-1: an index (1 and above) or a fraction of the depth n (below 1)",
    )
    distance: Literal["mse", "cosine", "logit-lens"] = Field(
        "mse",
        description="mse of RMS-normalised states (mean over features), 1 - cosine, or logit-lens: "
        "the output divergence after the final norm and the head",
    )


class Alignment(Strict):
    """CE + alpha s(u) D + hidden.alpha s(u) mean over layers of d."""

    alpha: float = Field(ge=0, description="weight of the divergence of the output distributions; 0 leaves it out")
    divergence: Divergence = Field(description="divergence of the next-token distributions of the two views")
    stop_gradient: StopGradient = Field(
        "none", description="which view's distribution is a constant; targets (sce only): the weights of both terms"
    )
    overlap: Overlap = Field(OverlapAll(), description="which positions of the overlap are aligned")
    sampling_range: float = Field(
        0.5, gt=0, le=1, description="l_extra ~ U{1..sampling_range * l_train}, as a fraction of l_train"
    )
    sampling_start: float | None = Field(
        None,
        gt=0,
        le=1,
        description="the range at the first step, from which it grows linearly to sampling_range at the last; "
        "null: sampling_range at every step",
        json_schema_extra={"neutral": None},
    )
    sampling_per: Literal["batch", "row"] = Field("batch", description="one l_extra per optimiser step or per window")
    schedule: Schedule = Field(Constant(), description="multiplies alpha and hidden.alpha over training")
    hidden: Hidden | None = Field(None, description="alignment of hidden layers; null: none")
    views: Literal[1, 2] = Field(
        2,
        description="views of each window that are trained on; 1: plain next-token prediction on twice as many windows "
        "of l_train tokens, so that a step has as many tokens",
        json_schema_extra={"neutral": 2},
    )

    @model_validator(mode="after")
    def _one_view_is_not_aligned(self) -> Alignment:
        if self.views == 1 and (self.alpha or self.hidden):
            raise ValueError("views 1 leaves nothing to align; give alpha 0 and hidden null, or views 2")
        return self

    @model_validator(mode="after")
    def _targets_is_for_sce(self) -> Alignment:
        if self.stop_gradient == "targets" and self.divergence != "sce":
            raise ValueError("stop_gradient targets is defined for sce only; use none, first or second")
        return self

    @model_validator(mode="after")
    def _views_of_a_step(self) -> Alignment:
        if self.schedule.kind in ("view-ratio", "view-gap") and self.sampling_per == "row":
            raise ValueError(
                f"schedule {self.schedule.kind} weighs a step by its one l_extra, and with sampling_per row each "
                "window has its own; use sampling_per batch, or another schedule"
            )
        return self
