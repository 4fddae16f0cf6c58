"""YaRN: high frequencies stay, low ones are interpolated, a ramp between; attention is scaled by 0.1 ln(factor) + 1 on
queries and keys each (Peng et al., arXiv 2309.00071, definition 3 and equation 22)."""

from __future__ import annotations

from transformers import PreTrainedModel

from longshort.models.rope import set_parameters
from longshort.models.settings import YaRN


def extend(model: PreTrainedModel, settings: YaRN, seed: int) -> None:
    original = model.config.max_position_embeddings
    parameters = {
        "rope_type": "yarn",
        "factor": settings.factor,
        "beta_fast": settings.beta_fast,
        "beta_slow": settings.beta_slow,
        "original_max_position_embeddings": original,
    }
    set_parameters(model, parameters, round(original * settings.factor))
