"""What one run and one evaluation are: every value that they depend on, and nothing else."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from longshort.identity.kinds import chosen
from longshort.identity.spec import canonical
from longshort.identity.strict import Strict
from longshort.study.schema.alignment import Divergence, Overlap, StopGradient
from longshort.study.schema.data import Data
from longshort.study.schema.model import Architecture, PretrainedModel, Rope
from longshort.study.schema.training import Training


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


class RunSpec(Strict):
    """One run, resolved: all that its computation depends on besides code and content."""

    data: Data
    length: int = Field(description="l_train, tokens")
    seed: int
    architecture: Architecture | None = Field(
        None, description="trained from scratch", json_schema_extra={"neutral": None}
    )
    pretrained: PretrainedModel | None = Field(None, description="taken as it is", json_schema_extra={"neutral": None})
    base: str | None = Field(None, description="id of the run that it starts from", json_schema_extra={"neutral": None})
    rope: Rope | None = Field(None, description="extends the base's context", json_schema_extra={"neutral": None})
    training: Training | None = Field(None, json_schema_extra={"neutral": None})
    deepspeed: dict[str, Any] | None = Field(None, json_schema_extra={"neutral": None})
    alignment: TwoViews | None = Field(
        None, description="null: one view, cross-entropy", json_schema_extra={"neutral": None}
    )

    @property
    def modules(self) -> tuple[str, ...]:
        """The modules chosen by kind that this run's code identity holds."""
        return chosen(
            {
                "alignment": canonical(self.alignment) if self.alignment else None,
                "rope": {"kind": self.rope.kind} if self.rope else None,
                "training": {"attention": self.training.attention, "adapter": bool(self.training.adapter)}
                if self.training
                else None,
            }
        )


class Evaluation(Strict):
    metric: str = Field(description="its name in the catalogue")
    length: int = Field(description="l_train, tokens")
    data: Data
    precision: Literal["fp32", "bf16"] = Field("fp32", json_schema_extra={"neutral": "fp32"})
    settings: Strict = Field(description="what the study asks of the metric")
