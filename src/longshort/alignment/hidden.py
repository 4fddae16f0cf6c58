"""Intermediate layers: capturing chosen ones, and their distance between the views.

Layer i is the output of block i, i = 1..n-1. Only the chosen ones are held, and only until the head has used them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from longshort.alignment.divergences import at_least_single


class LayerCapture:
    """Holds the outputs of chosen blocks during a forward."""

    def __init__(self, blocks: nn.ModuleList, layers: list[int]) -> None:
        self.layers = layers
        self._states: dict[int, Tensor] = {}
        for layer in layers:
            blocks[layer - 1].register_forward_hook(self._keep(layer))

    def drop(self) -> None:
        """Holds nothing, after a forward whose states nobody wants."""
        self._states = {}

    def take(self) -> list[Tensor]:
        """The captured states in the order of `layers`, [..., d] each; holds nothing afterwards."""
        states = [self._states[layer] for layer in self.layers]
        self._states = {}
        return states

    def _keep(self, layer: int) -> Any:
        def hook(block: nn.Module, inputs: Any, output: Any) -> None:
            # Recomputation in the backward pass runs the hook again; the head has taken the states by then.
            self._states[layer] = output[0] if isinstance(output, tuple) else output

        return hook


def distance(kind: str, a: Tensor, b: Tensor) -> Tensor:
    """Distance of states per position: [..., d] -> [...], at least in float32.

    mse: mean over features of the squared difference of RMS-normalised states. cosine: 1 - cosine similarity.
    """
    a, b = (at_least_single(x) for x in (a, b))
    if kind == "mse":
        return (_rms_normalised(a) - _rms_normalised(b)).square().mean(-1)
    if kind == "cosine":
        return 1.0 - torch.cosine_similarity(a, b, dim=-1)
    raise ValueError(f"hidden distance is {kind!r}; use mse or cosine")


def _rms_normalised(x: Tensor) -> Tensor:
    return x * x.square().mean(-1, keepdim=True).add(1e-6).rsqrt()
