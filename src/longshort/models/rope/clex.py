"""CLEX: the frequencies as a learned continuous function of the length (Chen et al., ICLR 2024, arXiv 2310.16450;
github DAMO-NLP-SG/CLEX, CLEX/clex_layer.py).

With t = length / l0 and z(t) the logarithms of the d/2 frequencies, z(1) those of the original model:

    dz/dt = act((z + ln NTK(t)) W_up) W_down + d ln NTK(t) / dt,    NTK(t)_i = theta^(-2i/d) (2t - 1)^(-2i/(d-2))

W_down starts at zero, where z(t) is NTK's solution (ntk.py with factor 2t - 1). The equation is integrated by the
3/8-rule of fourth order, in float32.

Training draws t ~ U{1..max_factor} for every optimiser step, and as many positions of 0..t l - 1 as a view has tokens,
ascending, both ends among them; both by (seed, step) alone, so the same on all processes and after a resume. Both views
of a text get the same positions, as they would without CLEX. Otherwise t = ceil(length / l0), at most max_factor, where
length is that of the first input of a request: keys that were cached keep their frequencies until it ends.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel

from longshort.data.streams import generator
from longshort.errors import UserError
from longshort.models.rope import KEY, head_size


def extend(model: PreTrainedModel, settings: dict[str, Any], seed: int) -> None:
    config, theta = model.config, model.config.rope_parameters["rope_theta"]
    about = {**settings, "original_length": config.max_position_embeddings}
    setattr(config, KEY, about)
    config.max_position_embeddings *= settings["max_factor"]
    model.get_decoder().rotary_emb = ContinuousRotary(head_size(model), theta, about, seed).train(model.training)


def restore(model: PreTrainedModel, settings: dict[str, Any], folder: Path) -> None:
    """The module, with the weights that transformers found no place for.

    Raises:
        UserError: the folder has none.
    """
    rotary = ContinuousRotary(head_size(model), model.config.rope_parameters["rope_theta"], settings, seed=0)
    prefix = f"{model.base_model_prefix}.rotary_emb."
    weights: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            weights |= {name.removeprefix(prefix): file.get_tensor(name) for name in file.keys() if prefix in name}
    if set(weights) != set(rotary.state_dict()):
        wanted = " and ".join(prefix + name for name in rotary.state_dict())
        raise UserError(f"{folder}: config.json says clex, but the safetensors hold no {wanted}")
    rotary.load_state_dict(weights)
    model.get_decoder().rotary_emb = rotary.to(model.device, model.dtype).train(model.training)


class ContinuousRotary(torch.nn.Module):
    """Takes the place of a model's rotary embedding: cosines and sines [batch, length, head] of the positions."""

    def __init__(self, size: int, theta: float, settings: dict[str, Any], seed: int) -> None:
        super().__init__()
        self.size, self.theta = size, theta
        self.original_length, self.max_factor = settings["original_length"], settings["max_factor"]
        self.time_step = settings["time_step"]
        activations: dict[str, Callable[[Tensor], Tensor]] = {"tanh": torch.tanh, "silu": torch.nn.functional.silu}
        self.activation = activations[settings["activation"]]
        wide = settings["width_factor"] * size
        draws = torch.Generator().manual_seed(int(generator("clex weights", seed, 0).integers(2**31)))
        # kaiming_uniform_ with a = sqrt(5), by the same fan as there: the second dimension.
        bound = 1 / math.sqrt(wide)
        # So called because transformers warns of weights that it finds no place for, but for rotary_emb.inv_freq*.
        self.inv_freq_up = torch.nn.Parameter((2 * torch.rand(size // 2, wide, generator=draws) - 1) * bound)
        self.inv_freq_down = torch.nn.Parameter(torch.zeros(wide, size // 2))
        self._drawn: tuple[int, int] | None = None
        self._factor = 1
        self._known: dict[tuple[int, int, int], Tensor] = {}

    def draw(self, seed: int, step: int) -> None:
        """What an optimiser step's t and positions are drawn by, for forwards in training mode."""
        self._drawn = (seed, step)

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        if self.training:
            positions, factor = self._random_positions(position_ids.shape[-1])
            positions = positions.to(x.device).expand(position_ids.shape)
        else:
            positions = position_ids.float()
            if int(position_ids.min()) == 0:  # a new request
                self._factor = min(self.max_factor, -(-(int(position_ids.max()) + 1) // self.original_length))
            factor = self._factor
        angles = positions[..., None] * self.frequencies(factor).to(x.device)
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos().to(x.dtype), angles.sin().to(x.dtype)

    def _random_positions(self, length: int) -> tuple[Tensor, int]:
        """Positions [length], float32, and t.

        Raises:
            RuntimeError: draw was not called.
        """
        if self._drawn is None:
            raise RuntimeError("CLEX in training mode needs draw(seed, step) ahead of each optimiser step")
        random = generator("clex", *self._drawn)
        factor = int(random.integers(1, self.max_factor + 1))
        inner = random.choice(length * factor - 2, size=length - 2, replace=False, shuffle=False)
        inner.sort()
        # Where a view is longer than the original length, its positions are brought back to t l0.
        shrink = max(1, length // self.original_length)
        last = length * factor // shrink - 1
        positions = [0.0, *((inner + 1) / shrink).tolist(), float(last)]
        return torch.tensor(positions, dtype=torch.float32), factor

    def frequencies(self, factor: int) -> Tensor:
        """exp(z(factor)), [d / 2], float32."""
        key = (factor, self.inv_freq_up._version, self.inv_freq_down._version)
        if torch.is_grad_enabled() or key not in self._known:
            solved = self._integrated(factor).exp()
            if torch.is_grad_enabled():
                return solved
            self._known = {key: solved, **{k: v for k, v in self._known.items() if k[1:] == key[1:]}}
        return self._known[key]

    def _integrated(self, factor: int) -> Tensor:
        up, down = self.inv_freq_up.float(), self.inv_freq_down.float()
        index = torch.arange(0, self.size, 2, dtype=torch.float32, device=up.device)
        original = -index / self.size * math.log(self.theta)
        z = original
        if factor == 1:
            return z + 0 * (up.sum() + down.sum())  # every step has a gradient of every weight, which ZeRO counts on

        def slope(t: float, z: Tensor) -> Tensor:
            stretched = 2 * t - 1
            ntk = original - index / (self.size - 2) * math.log(stretched)
            change = -2 * index / (self.size - 2) / stretched
            return self.activation((z + ntk) @ up) @ down + change

        steps = math.ceil((factor - 1) / self.time_step - 1e-9)
        h = (factor - 1) / steps
        for number in range(steps):
            t = 1 + number * h
            k1 = slope(t, z)
            k2 = slope(t + h / 3, z + h * k1 / 3)
            k3 = slope(t + 2 * h / 3, z + h * (k2 - k1 / 3))
            k4 = slope(t + h, z + h * (k1 - k2 + k3))
            z = z + h * (k1 + 3 * (k2 + k3) + k4) / 8
        return z
