"""Position interpolation: position m becomes m / factor (Chen et al., arXiv 2306.15595, equation 4)."""

from __future__ import annotations

from transformers import PreTrainedModel

from longshort.models.rope import set_parameters
from longshort.models.settings import Interpolation


def extend(model: PreTrainedModel, settings: Interpolation, seed: int) -> None:
    longest = round(model.config.max_position_embeddings * settings.factor)
    set_parameters(model, {"rope_type": "linear", "factor": settings.factor}, longest)
