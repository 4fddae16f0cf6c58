"""Dynamic NTK: as ntk.py, by the length of each input: theta' = theta (factor l / l0 - (factor - 1))^(d / (d - 2)) for
l > l0, the original length (emozilla; as transformers computes it).

The frequencies depend on the length of the input, so lengths are measured one by one. max_position_embeddings stays l0,
of which the formula is made.
"""

from __future__ import annotations

from transformers import PreTrainedModel

from longshort.models.rope import set_parameters
from longshort.models.settings import Interpolation


def extend(model: PreTrainedModel, settings: Interpolation, seed: int) -> None:
    set_parameters(model, {"rope_type": "dynamic", "factor": settings.factor})
