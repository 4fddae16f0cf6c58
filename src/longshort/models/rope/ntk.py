"""NTK-aware scaling by theta: theta' = theta factor^(d / (d - 2)), d the size of a head: the highest frequency stays,
the lowest is divided by factor (bloc97; YaRN, arXiv 2309.00071, definition 1)."""

from __future__ import annotations

from transformers import PreTrainedModel

from longshort.models.rope import rotary_size, set_parameters
from longshort.models.settings import Interpolation


def extend(model: PreTrainedModel, settings: Interpolation, seed: int) -> None:
    size = rotary_size(model)
    theta = model.config.rope_parameters["rope_theta"] * settings.factor ** (size / (size - 2))
    longest = round(model.config.max_position_embeddings * settings.factor)
    set_parameters(model, {"rope_type": "default", "rope_theta": theta}, longest)
