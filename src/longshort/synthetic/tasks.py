"""The synthetic tasks: the mean or the length of a sequence of zeros and ones, and how the target is parameterised
(Long-Short Alignment, arXiv 2506.11769, section 3)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from longshort.data.streams import generator

BEGIN = 2  # the token before every sequence; a causal model that attends to it can tell the length


class Batch(NamedTuple):
    """tokens [rows, 1 + longest]: BEGIN, the sequence, zeros; lengths [rows]; extra [rows]: of a second view."""

    tokens: Tensor
    lengths: Tensor
    extra: Tensor


class Parameterisation(NamedTuple):
    """What a model predicts in place of a target t >= 1, and back. `inverse` is defined for every real prediction."""

    forward: Callable[[Tensor], Tensor]
    inverse: Callable[[Tensor], Tensor]


PARAMETERISATIONS = {
    "identity": Parameterisation(lambda t: t, lambda y: y),
    "sqrt": Parameterisation(torch.sqrt, lambda y: y.clamp(min=0) ** 2),
    "log": Parameterisation(torch.log, torch.exp),
    # A prediction of zero or less stands for a target without bound.
    "inverse-sqrt": Parameterisation(torch.rsqrt, lambda y: y.clamp(min=0) ** -2),
}


def training_batch(seed: int, step: int, rows: int, longest: int) -> Batch:
    """Sequences of lengths uniform in 1..longest. A second view is one without its first `extra` tokens, uniform in
    1..length/2; a sequence of one token has none (0)."""
    draws = generator("synthetic", seed, step)
    lengths = draws.integers(1, longest + 1, rows)
    extra = np.where(lengths > 1, draws.integers(0, np.maximum(lengths // 2, 1)) + 1, 0)
    return Batch(_sequences(draws, lengths, longest), torch.from_numpy(lengths), torch.from_numpy(extra))


def test_batch(rows: int, longest: int) -> Batch:
    """Sequences of the longest length, the same ones for every model; their beginnings are those of all others."""
    lengths = np.full(rows, longest)
    tokens = _sequences(generator("synthetic-test", 0, 0), lengths, longest)
    return Batch(tokens, torch.from_numpy(lengths), torch.zeros(rows, dtype=torch.long))


def second_view(batch: Batch) -> Batch:
    """The sequences without their first `extra` tokens."""
    places = torch.arange(1, batch.tokens.shape[1]) + batch.extra[:, None]
    kept = batch.tokens.gather(1, places.clamp(max=batch.tokens.shape[1] - 1))
    lengths = batch.lengths - batch.extra
    kept = kept.where(places <= batch.lengths[:, None], 0)
    return Batch(torch.cat([batch.tokens[:, :1], kept], 1), lengths, torch.zeros_like(lengths))


def targets(task: str, tokens: Tensor) -> Tensor:
    """What is to be predicted from the first 1..longest tokens, before it is parameterised: [rows, longest]."""
    lengths = torch.arange(1, tokens.shape[1]).expand(len(tokens), -1)
    return lengths.float() if task == "length" else tokens[:, 1:].cumsum(1) / lengths


def at(values: Tensor, lengths: Tensor) -> Tensor:
    """Of values [..., rows, longest], those of the lengths [rows]: [..., rows]."""
    return values.gather(-1, (lengths - 1)[..., None].expand(*values.shape[:-1], 1))[..., 0]


def _sequences(draws: np.random.Generator, lengths: NDArray[np.int64], longest: int) -> Tensor:
    """Each with a probability of ones of its own, so that means are spread over 0 to 1."""
    rows = len(lengths)
    ones = draws.random((rows, longest)) < draws.random((rows, 1))
    inside = np.arange(longest) < lengths[:, None]
    return torch.from_numpy(np.concatenate([np.full((rows, 1), BEGIN), ones & inside], axis=1))
