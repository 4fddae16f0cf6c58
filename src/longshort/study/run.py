"""What one run and one evaluation are: every value that they depend on, and nothing else."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from longshort.alignment.settings import TwoViews
from longshort.data.settings import Data
from longshort.identity.kinds import ADAPTERS, ALIGNMENT, DIVERGENCES, HIDDEN, ROPE, SHIFTED_SPARSE
from longshort.identity.strict import Strict
from longshort.models.settings import Architecture, Rope, Weights
from longshort.study.schema.training import Training


class RunSpec(Strict):
    """One run, resolved: all that its computation depends on besides code and content."""

    data: Data
    length: int = Field(description="l_train, tokens")
    seed: int
    architecture: Architecture | None = Field(
        None, description="trained from scratch", json_schema_extra={"neutral": None}
    )
    pretrained: Weights | None = Field(None, description="taken as it is", json_schema_extra={"neutral": None})
    base: str | None = Field(None, description="id of the run that it starts from", json_schema_extra={"neutral": None})
    rope: Rope | None = Field(None, description="extends the base's context", json_schema_extra={"neutral": None})
    training: Training | None = Field(None, json_schema_extra={"neutral": None})
    deepspeed: dict[str, Any] | None = Field(None, json_schema_extra={"neutral": None})
    alignment: TwoViews | None = Field(
        None, description="null: one view, cross-entropy", json_schema_extra={"neutral": None}
    )

    @model_validator(mode="after")
    def _trained_by_an_engine(self) -> RunSpec:
        if (self.training is None) != (self.deepspeed is None):
            raise ValueError("training and deepspeed go together: give both, or none of the two")
        return self

    @property
    def optimisation(self) -> Training:
        """How it is trained.

        Raises:
            ValueError: it is not, but taken as it is.
        """
        if self.training is None:
            raise ValueError("the specification has no training, and names no pretrained model; give one of the two")
        return self.training

    @property
    def modules(self) -> tuple[str, ...]:
        """The modules chosen by kind that this run's code identity holds."""
        names = set()
        terms = [self.alignment.output, self.alignment.hidden] if self.alignment else []
        for term in terms:
            if term is not None:
                names.add(ALIGNMENT)
                names |= {DIVERGENCES[term.divergence]} if term.divergence else set()
        if self.alignment and self.alignment.hidden:
            names.add(HIDDEN)
        if self.rope:
            names.add(ROPE[self.rope.kind])
        if self.training and self.training.attention == "shifted-sparse":
            names.add(SHIFTED_SPARSE)
        if self.training and self.training.adapter:
            names.add(ADAPTERS)
        return tuple(sorted(names))


class Evaluation(Strict):
    """One metric of one study, whichever run is measured by it."""

    metric: str = Field(description="its name in the catalogue")
    length: int = Field(description="l_train, tokens")
    data: Data
    precision: Literal["fp32", "bf16"] = Field("fp32", json_schema_extra={"neutral": "fp32"})
    settings: Strict = Field(description="what the study asks of the metric")
