"""Position interpolation: position m becomes m / factor (Chen et al., arXiv 2306.15595, equation 4)."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

from longshort.models.rope import set_parameters


def extend(model: PreTrainedModel, settings: dict[str, Any], seed: int) -> None:
    longest = round(model.config.max_position_embeddings * settings["factor"])
    set_parameters(model, {"rope_type": "linear", "factor": settings["factor"]}, longest)
