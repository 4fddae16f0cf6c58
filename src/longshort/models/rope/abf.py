"""Adjusted base frequency: a larger theta, and nothing else (Xiong et al., arXiv 2309.16039, section 2.1)."""

from __future__ import annotations

from transformers import PreTrainedModel

from longshort.models.rope import set_parameters
from longshort.models.settings import ABF


def extend(model: PreTrainedModel, settings: ABF, seed: int) -> None:
    set_parameters(model, {"rope_type": "default", "rope_theta": settings.theta})
