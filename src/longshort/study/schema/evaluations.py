"""The section `evaluations`: what every run is measured by, a key for each metric of the catalogue."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, create_model, model_validator

from longshort.identity.strict import Strict
from longshort.metrics.catalog import METRICS

_keys: dict[str, Any] = {
    metric.name: (metric.settings | None, Field(None, description=metric.description)) for metric in METRICS.values()
}


class Evaluations(create_model("_Asked", __base__=Strict, **_keys)):  # type: ignore[misc]
    """What every run is measured by, at each checkpoint; null leaves a metric out."""

    precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="floating point type of the weights that are measured; part of every protocol"
    )

    @property
    def asked(self) -> dict[str, Strict]:
        """Metric -> its settings, of those that are measured, in the order of the catalogue."""
        settings = {metric: getattr(self, metric) for metric in METRICS}
        return {metric: asked for metric, asked in settings.items() if asked is not None}

    @model_validator(mode="after")
    def _something_is_measured(self) -> Evaluations:
        if not self.asked:
            raise ValueError(f"nothing is measured; give {', '.join(METRICS)}")
        return self
