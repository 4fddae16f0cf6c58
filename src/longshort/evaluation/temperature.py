"""The temperatures at which logits fit the validation documents best: one for the checkpoint, one for each length.

They are fitted on FITTED_TOKENS of the scored tokens of each length, an even sample of each document, or on all where
there are not so many: of 8 documents, all of each that has no more than 8,192. In the checkpoint's own temperature a
length weighs as much as it has scored tokens, however many of them are in the sample. The NLL is convex in the factor
of the logits, and each pass over them takes its first three derivatives at all temperatures at once.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from longshort.data.streams import generator
from longshort.evaluation.forward import LOG2_E, head_of, in_cache, scored_states, tokens_per_head
from longshort.evaluation.journal import Section
from longshort.evaluation.protocols import (
    Reading,
    by_length,
    documents_of,
    lengths_of,
    scored_for,
    start_of,
    tokens_read,
)
from longshort.metrics.settings import Perplexity, SameTargets

# At each length. If the logits vary by 5 (nats squared) under the model's own probabilities, the standard error of what
# so many fit is a sixth of a per cent: 1 / sqrt(65,536 * 5).
FITTED_TOKENS = 65_536
# Once they were so many. Where there are no more, all are fitted as then, and the protocol keeps its name.
FORMERLY_FITTED = 32_768
# Of each document, however many there are: the first tokens of documents alone are not what is scored.
LEAST_FITTED = 32
# Enough to find where the others are to be looked at: a pass over all costs as much as scoring them.
LOCATED_TOKENS = 1024
COLDEST, HOTTEST = 0.05, 20.0
# A step smaller than this is the last: what is left is of its third power.
LAST_STEP = 0.05
MOST_STEPS = 50


class Sample(NamedTuple):
    """Tokens of one reading that temperatures are fitted to.

    states: hidden states [tokens, features]. came: the tokens that came next [tokens].
    counts: how much a token counts for each temperature [temperatures, tokens].
    """

    states: Tensor
    came: Tensor
    counts: Tensor


def fit(model: Any, settings: Perplexity, data: Path, bos: int | None, journal: Section) -> dict[str, float]:
    """The temperature of the checkpoint and of each length that fit the validation documents best."""
    count = settings.temperature_documents
    documents = documents_of(data, count, tokens_read(settings), "validation", "temperature_documents")
    lengths = lengths_of(settings)
    samples: list[Sample] = []
    for index, (_, token_ids) in enumerate(documents):
        start = start_of(settings, token_ids, index, "validation")
        if not isinstance(settings.protocol, SameTargets):
            token_ids = token_ids[: tokens_read(settings)]
        readings = list(by_length(model, settings, token_ids, start, bos))
        taken = {length: _places(readings, length, index, len(documents)) for length in lengths}
        stands_for = [_scored(readings, length) / len(taken[length]) for length in lengths]
        for served, reading in readings:
            counts = torch.zeros(1 + len(lengths), len(reading.scored) * len(reading.targets))
            for row, length in enumerate(lengths, 1):
                if length in served:
                    tokens = scored_for(served, reading, length)
                    counts[row, taken[length][(taken[length] >= 0) & (taken[length] < tokens)]] = 1
                    taken[length] = taken[length] - tokens
            # The checkpoint's own: of all lengths together.
            counts[0] = torch.tensor(stands_for) @ counts[1:]
            samples.append(_sample(model, reading, counts))
    found = fit_temperatures(head_of(model), samples, tokens_per_head(model))
    fitted = dict(zip(["checkpoint", *map(str, lengths)], found, strict=True))
    print(f"temperatures from {len(documents)} validation documents: {fitted}", flush=True)
    journal.add("temperatures", fitted)
    return fitted


def most_fitted(settings: Perplexity) -> int:
    """The most tokens that are fitted at a length, as the protocol's name says it."""
    most = settings.protocol.targets if isinstance(settings.protocol, SameTargets) else tokens_read(settings)
    few = most <= max(LEAST_FITTED, FORMERLY_FITTED // settings.temperature_documents)
    return FORMERLY_FITTED if few else FITTED_TOKENS


def _scored(readings: list[tuple[list[int], Reading]], length: int) -> int:
    return sum(scored_for(served, reading, length) for served, reading in readings if length in served)


def _places(readings: list[tuple[list[int], Reading]], length: int, document: int, documents: int) -> Tensor:
    """Places among all tokens that are scored of a document at a length, each as probable as another, ascending."""
    scored = _scored(readings, length)
    count = min(scored, max(LEAST_FITTED, FITTED_TOKENS // documents))
    stream = generator(f"perplexity/temperature/{length}", 0, document)
    return torch.from_numpy(np.sort(stream.choice(scored, count, replace=False)))


@torch.inference_mode()
def _sample(model: Any, reading: Reading, counts: Tensor) -> Sample:
    """Of a reading, the tokens that count at all."""
    parts = scored_states(model, reading.input_ids, reading.targets, reading.scored, reading.chunk)
    states, came = (torch.cat(part) for part in zip(*parts, strict=True))
    used = counts[0].nonzero()[:, 0]
    here = used.to(states.device)
    return Sample(states[here], came[here], counts[:, used].to(states.device))


@torch.inference_mode()
def fit_temperatures(head: Any, samples: list[Sample], size: int) -> list[float]:
    """The T that minimise the NLL of logits / T, in COLDEST to HOTTEST; NaN where the logits are not finite.

    Args:
        head: logits of hidden states.
        size: so many tokens have logits at a time.
    """
    factors = [1.0] * len(samples[0].counts)
    every = sum(len(some.came) for some in samples) // LOCATED_TOKENS
    if every > 1:
        few = [Sample(some.states[::every], some.came[::every], some.counts[:, ::every]) for some in samples]
        factors = _search(head, few, size, factors)
    return [1 / factor for factor in _search(head, samples, size, factors)]


def _search(head: Any, samples: list[Sample], size: int, factors: list[float]) -> list[float]:
    """The factors of the logits that minimise the NLL, by Halley's method from given ones."""
    factors = list(factors)
    between = {place: (0.0, math.inf) for place in range(len(factors))}  # of those that are not found yet
    for _ in range(MOST_STEPS):
        groups = _groups({place: factors[place] for place in between})
        for (factor, places), derivatives in zip(groups, _derivatives(head, samples, size, groups), strict=True):
            for place, (slope, curvature, third) in zip(places, derivatives.tolist(), strict=True):
                low, high = between[place]
                low, high = (low, factor) if slope > 0 else (factor, high)
                found = factor + _step(slope, curvature, third)
                if not math.isnan(found):
                    found = min(max(found, factor / 4, 1 / HOTTEST), factor * 4, 1 / COLDEST)
                    found = found if low <= found <= high else math.sqrt(low * high)
                factors[place], between[place] = found, (low, high)
                if math.isnan(found) or abs(math.log(found / factor)) <= LAST_STEP:
                    del between[place]
        if not between:
            break
    return factors


def _groups(factors: dict[int, float]) -> list[tuple[float, list[int]]]:
    """Those that lie within a last step of each other share a factor, as a step from there is good for all of them."""
    groups: list[list[int]] = []
    for place in sorted(factors, key=lambda place: factors[place]):
        if groups and factors[place] <= factors[groups[-1][0]] * (1 + LAST_STEP):
            groups[-1].append(place)
        else:
            groups.append([place])
    return [(math.sqrt(factors[places[0]] * factors[places[-1]]), places) for places in groups]


def _step(slope: float, curvature: float, third: float) -> float:
    """Halley's step to the zero of the slope; without end where the curve says nothing but its direction."""
    if slope == 0 or not math.isfinite(slope):
        return 0.0 * slope
    bend = 2 * curvature**2 - slope * third
    return -2 * slope * curvature / bend if bend > 0 and curvature > 0 else -math.copysign(math.inf, slope)


def _derivatives(head: Any, samples: list[Sample], size: int, groups: list[tuple[float, list[int]]]) -> list[Tensor]:
    """The first three derivatives of the summed NLL by the factor of the logits [places, 3], for each group.

    The first is the expected logit less the one that came, the others the logit's variance and third central moment.
    """
    sums = [torch.zeros(len(places), 3, dtype=torch.float64) for _, places in groups]
    needed = [place for _, places in groups for place in places]
    for some in samples:
        for states, came, counts in zip(
            some.states.split(size), some.came.split(size), some.counts.T.split(size), strict=True
        ):
            if not counts[:, needed].any():
                continue
            for logits, wanted, weights in in_cache(head(states), came, counts):
                logits.sub_(logits.amax(-1, keepdim=True))
                for total, (factor, places) in zip(sums, groups, strict=True):
                    rows = weights[:, places].any(-1).nonzero()[:, 0]
                    if len(rows) == 0:
                        continue
                    chosen = logits if len(rows) == len(logits) else logits[rows]
                    moments = _moments(chosen, factor)
                    moments[:, 0] -= chosen.gather(-1, wanted[rows, None])[:, 0]
                    total += (weights[rows][:, places].double().T @ moments).cpu()
    return sums


def _moments(logits: Tensor, factor: float) -> Tensor:
    """Mean, variance, third central moment of logits [tokens, vocabulary] by softmax(factor * logits): [tokens, 3]."""
    weights = (logits * (factor * LOG2_E)).exp2_()
    total = weights.sum(-1).double()
    first = weights.mul_(logits).sum(-1).double() / total
    second = weights.mul_(logits).sum(-1).double() / total
    third = torch.linalg.vecdot(weights, logits).double() / total
    return torch.stack([first, second - first**2, third - 3 * first * second + 2 * first**3], dim=-1)
