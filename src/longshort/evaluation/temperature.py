"""The temperatures at which logits fit the validation documents best: one for the checkpoint, one for each length."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from longshort.data.streams import generator
from longshort.evaluation.forward import head_of, scored_states, tokens_per_head
from longshort.evaluation.journal import Part
from longshort.evaluation.protocols import Windows, by_length, documents_of, lengths_of, start_of, tokens_read

# At each length. One number is fitted to them, and a few per cent of it change the NLL by less than a thousandth.
FITTED_TOKENS = 1024
# Of each document, however many there are: the first tokens of documents alone are not what is scored.
LEAST_FITTED = 32
COLDEST, HOTTEST = 0.05, 20.0


def fit(model: Any, settings: dict[str, Any], data: Path, bos: int | None, journal: Part) -> dict[str, float]:
    """The temperature of the checkpoint and of each length that fit the validation documents best."""
    count = settings["temperature_documents"]
    documents = documents_of(data, count, tokens_read(settings), "validation", "temperature_documents")
    states: dict[int, list[tuple[Tensor, Tensor]]] = {length: [] for length in lengths_of(settings)}
    for index, (_, token_ids) in enumerate(documents):
        start = start_of(settings, token_ids, index, "validation")
        if settings["protocol"]["kind"] != "same-targets":
            token_ids = token_ids[: tokens_read(settings)]
        readings = list(by_length(model, settings, token_ids, start, bos))
        taken = {length: _sample(readings, length, index, len(documents)) for length in states}
        for served, some in readings:
            hidden, came = (torch.cat(parts) for parts in zip(*_states(model, some), strict=True))
            for length in served:
                count = _scored(served, some, length)
                here = taken[length][(taken[length] >= 0) & (taken[length] < count)]
                taken[length] = taken[length] - count
                states[length].append((hidden[here], came[here]))
    head = head_of(model)
    size = tokens_per_head(model)
    fitted = {str(length): fit_temperature(head, some, size) for length, some in states.items()}
    # Of a sum of convex functions the minimum lies between theirs.
    between = (min(fitted.values()) * 0.999, max(fitted.values()) * 1.001)
    together = [pair for some in states.values() for pair in some]
    fitted["checkpoint"] = fit_temperature(head, together, size, between)
    print(f"temperatures from {len(documents)} validation documents: {fitted}", flush=True)
    journal.add("temperatures", fitted)
    return fitted


def _scored(served: list[int], some: Windows, length: int) -> int:
    """How many tokens a reading scores for a length: the first of them, where it serves several."""
    return length - some.before if len(served) > 1 else len(some.scored) * len(some.targets)


def _sample(readings: list[tuple[list[int], Windows]], length: int, document: int, documents: int) -> Tensor:
    """Places among all tokens that are scored of a document at a length, each as probable as another, ascending."""
    scored = sum(_scored(served, some, length) for served, some in readings if length in served)
    count = min(scored, max(LEAST_FITTED, FITTED_TOKENS // documents))
    stream = generator(f"perplexity/temperature/{length}", 0, document)
    return torch.from_numpy(np.sort(stream.choice(scored, count, replace=False)))


@torch.inference_mode()
def _states(model: Any, some: Windows) -> list[tuple[Tensor, Tensor]]:
    return list(scored_states(model, some.input_ids, some.targets, some.scored, some.chunk))


@torch.inference_mode()
def fit_temperature(
    head: Any, states: list[tuple[Tensor, Tensor]], size: int, between: tuple[float, float] = (0.5, 2.0)
) -> float:
    """The T that minimises the NLL of logits / T, in COLDEST to HOTTEST; NaN where the logits are not finite.

    The NLL is convex in 1 / T, so that the only zero of its slope is the minimum.

    Args:
        head: logits of hidden states.
        states: hidden states [tokens, features] and the tokens that came [tokens].
        size: so many tokens have logits at a time.
        between: two temperatures that it probably lies between.
    """

    def rise(log_temperature: float) -> float:
        return -_slope(head, states, math.exp(-log_temperature), size)

    low, high = math.log(between[0]), math.log(between[1])
    at_low, at_high = rise(low), rise(high)
    if not (math.isfinite(at_low) and math.isfinite(at_high)):
        return math.nan
    if at_low == at_high == 0:  # logits that say nothing
        return 1.0
    while at_low >= 0 and low > math.log(COLDEST):
        high, at_high, low = low, at_low, max(low - math.log(4), math.log(COLDEST))
        at_low = rise(low)
    while at_high <= 0 and high < math.log(HOTTEST):
        low, at_low, high = high, at_high, min(high + math.log(4), math.log(HOTTEST))
        at_high = rise(high)
    if at_low >= 0 or at_high <= 0:
        return COLDEST if at_low >= 0 else HOTTEST
    from scipy.optimize import brentq  # late: of use only where a temperature is fitted

    return math.exp(brentq(rise, low, high, xtol=1e-8))


def _slope(head: Any, states: list[tuple[Tensor, Tensor]], factor: float, size: int) -> float:
    """Derivative of the mean NLL by the factor of the logits: the expected logit less the one that came."""
    total, count = 0.0, 0
    for some, came in states:
        for chunk, wanted in zip(some.split(size), came.split(size), strict=True):
            logits = head(chunk)
            logits = logits - logits.max(-1, keepdim=True).values
            weights = (factor * logits).exp()
            expected = torch.linalg.vecdot(weights, logits) / weights.sum(-1)
            total += float((expected - logits.gather(-1, wanted[:, None])[:, 0]).double().sum())
            count += len(wanted)
    return total / count
