"""CLEX: the frequencies as a learned continuous function of the length (Chen et al., ICLR 2024, arXiv 2310.16450;
github DAMO-NLP-SG/CLEX, CLEX/clex_layer.py).

With t = length / l0 and z(t) the logarithms of the d/2 frequencies, z(1) those of the original model:

    dz/dt = act((z + ln NTK(t)) W_up) W_down + d ln NTK(t) / dt,    NTK(t)_i = theta^(-2i/d) (2t - 1)^(-2i/(d-2))

W_down starts at zero, where z(t) is NTK's solution (ntk.py with factor 2t - 1). The equation is integrated by the
3/8-rule of fourth order, in float32.

Training draws t ~ U{1..max_factor}, and as many positions of 0..t l - 1 as a view has tokens, ascending, both ends
among them: for every window, by (seed, global sample index) alone, so the same for every micro-batch, on all processes
and after a resume (CLEX's own training draws for every forward of a process, 16 windows by train_lm.sh); or, with
`draws_per: step`, once for each optimiser step. Both views of a window get the same t and positions, as they would
without CLEX: what is aligned are predictions of the same tokens after contexts of two lengths, and two values of t
would also set two sets of frequencies apart, which no context has to do with.

Otherwise t = ceil(length / l0), at most max_factor, where length is that of the first input of a request: keys that
were cached keep their frequencies until it ends. (CLEX's own code caches unrotated keys and lets t rise while it
answers; the perplexity protocol `block` with `chunk` reads as it does.) Attention is not scaled by log n, as
train_lm.sh sets it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel

from longshort.data.streams import generator
from longshort.errors import UserError
from longshort.identity.spec import restored
from longshort.models.rope import KEY, rotary_size
from longshort.models.settings import CLEX


def extend(model: PreTrainedModel, settings: CLEX, seed: int) -> None:
    config, original_length = model.config, model.config.max_position_embeddings
    _refuse_other_layouts(model)
    setattr(config, KEY, {**settings.model_dump(), "original_length": original_length})
    config.max_position_embeddings *= settings.max_factor
    rotary = ContinuousRotary(rotary_size(model), config.rope_parameters["rope_theta"], settings, original_length, seed)
    # ZeRO-3 takes weights that it divided while they were loaded, and these beside them, for ones of one type.
    model.get_decoder().rotary_emb = rotary.to(model.dtype).train(model.training)


def _refuse_other_layouts(model: PreTrainedModel) -> None:
    """Its angles are paired as Llama's are, features i and i + d / 2.

    Raises:
        UserError: those of the model are not.
    """
    rotary = model.get_decoder().rotary_emb
    device = rotary.inv_freq.device
    cos, _ = rotary(torch.zeros(1, 1, device=device), torch.arange(8, device=device)[None])
    half = rotary.inv_freq.numel()
    if cos.shape[-1] != 2 * half or not torch.equal(cos[..., :half], cos[..., half:]):
        raise UserError(
            f"model.rope = clex: {type(model).__name__} lays its rotary positions out otherwise than Llama; take a "
            "model of the Llama, Mistral or Qwen family, or another method"
        )


def restore(model: PreTrainedModel, kept: dict[str, Any], folder: Path) -> None:
    """The module, with the weights that transformers found no place for.

    Raises:
        UserError: the folder has none.
    """
    # An earlier configuration, which says nothing of draws_per, drew once a step, which is its neutral value.
    settings = restored(CLEX, {key: value for key, value in kept.items() if key != "original_length"})
    theta = model.config.rope_parameters["rope_theta"]
    rotary = ContinuousRotary(rotary_size(model), theta, settings, kept["original_length"], seed=0)
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

    def __init__(self, size: int, theta: float, settings: CLEX, original_length: int, seed: int) -> None:
        super().__init__()
        self.size, self.theta = size, theta
        self.original_length, self.max_factor = original_length, settings.max_factor
        self.time_step = settings.time_step
        activations: dict[str, Callable[[Tensor], Tensor]] = {"tanh": torch.tanh, "silu": torch.nn.functional.silu}
        self.activation = activations[settings.activation]
        wide = settings.width_factor * size
        draws = torch.Generator().manual_seed(int(generator("clex weights", seed, 0).integers(2**31)))
        # kaiming_uniform_ with a = sqrt(5), by the same fan as there: the second dimension.
        bound = 1 / math.sqrt(wide)
        # So called because transformers warns of weights that it finds no place for, but for rotary_emb.inv_freq*.
        self.inv_freq_up = torch.nn.Parameter((2 * torch.rand(size // 2, wide, generator=draws) - 1) * bound)
        self.inv_freq_down = torch.nn.Parameter(torch.zeros(wide, size // 2))
        self.per_window = settings.draws_per == "window"
        self._drawn: list[tuple[str, int, int]] = []
        self._factor = 1
        self._known: tuple[tuple[int, int], list[Tensor]] = ((-1, -1), [])

    def draw(self, seed: int, step: int, samples: Sequence[int]) -> None:
        """What the t and the positions of the next forward in training mode are drawn by.

        Args:
            samples: global index of each window in it. Its rows are the first views of these, then the second ones.
        """
        if self.per_window:
            self._drawn = [("clex window", seed, sample) for sample in samples]
        else:
            self._drawn = [("clex", seed, step)]

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        if self.training:
            return self._random_angles(x, position_ids.shape[-1])
        positions = position_ids.float()
        if int(position_ids.min()) == 0:  # a new request
            self._factor = min(self.max_factor, -(-(int(position_ids.max()) + 1) // self.original_length))
        return _turned(positions[..., None] * self.frequencies(self._factor).to(x.device), x)

    def _random_angles(self, x: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """Of the rows of x [rows, length, features], or one for all of them.

        Raises:
            RuntimeError: draw was not called for this forward.
        """
        drawn = [self._random_positions(length, generator(*stream)) for stream in self._drawn]
        if not drawn or x.shape[0] % len(drawn):
            raise RuntimeError("CLEX in training mode needs draw(seed, step, samples) ahead of each forward")
        known = self._all_frequencies(max(factor for _, factor in drawn))
        positions = torch.stack([positions for positions, _ in drawn])
        if x.is_cuda:  # from pinned memory it is copied while the GPU works on what came before
            positions = positions.pin_memory()
        positions = positions.to(x.device, non_blocking=True)
        frequencies = torch.stack([known[factor - 1] for _, factor in drawn]).to(x.device)
        cos, sin = _turned(positions[..., None] * frequencies[:, None], x)
        views = x.shape[0] // len(drawn) if len(drawn) > 1 else 1
        return cos.repeat(views, 1, 1), sin.repeat(views, 1, 1)

    def _random_positions(self, length: int, random: np.random.Generator) -> tuple[Tensor, int]:
        """Positions [length], float32, and t."""
        factor = int(random.integers(1, self.max_factor + 1))
        inner = random.choice(length * factor - 2, size=length - 2, replace=False, shuffle=False)
        inner.sort()
        # Where a view is longer than the original length, its positions are brought back to t l0: all but the last one
        # in fractions, as CLEX's own code does, so that the last one may lie up to a position before those ahead of it.
        shrink = max(1, length // self.original_length)
        last = length * factor // shrink - 1
        positions = [0.0, *((inner + 1) / shrink).tolist(), float(last)]
        return torch.tensor(positions, dtype=torch.float32), factor

    def frequencies(self, factor: int) -> Tensor:
        """exp(z(factor)), [d / 2], float32."""
        return self._all_frequencies(factor)[factor - 1]

    def _all_frequencies(self, longest: int) -> list[Tensor]:
        """exp(z(1)) to exp(z(longest)) at least."""
        if torch.is_grad_enabled():
            return [z.exp() for z in self._integrated(longest)]
        of, known = self._known
        now = (self.inv_freq_up._version, self.inv_freq_down._version)
        if of != now or len(known) < longest:
            self._known = now, [z.exp() for z in self._integrated(longest)]
        return self._known[1]

    def _integrated(self, longest: int) -> list[Tensor]:
        """z(1) to z(longest), on one grid."""
        up, down = self.inv_freq_up.float(), self.inv_freq_down.float()
        index = torch.arange(0, self.size, 2, dtype=torch.float32, device=up.device)
        original = -index / self.size * math.log(self.theta)
        z = original
        if longest == 1:
            return [z + 0 * (up.sum() + down.sum())]  # every step has a gradient of every weight, which ZeRO counts on

        def slope(t: float, z: Tensor) -> Tensor:
            stretched = 2 * t - 1
            ntk = original - index / (self.size - 2) * math.log(stretched)
            change = -2 * index / (self.size - 2) / stretched
            return self.activation((z + ntk) @ up) @ down + change

        found = [z]
        steps = math.ceil(1 / self.time_step - 1e-9)  # from one t to the next
        h = 1 / steps
        for number in range(steps * (longest - 1)):
            t = 1 + number * h
            k1 = slope(t, z)
            k2 = slope(t + h / 3, z + h * k1 / 3)
            k3 = slope(t + 2 * h / 3, z + h * (k2 - k1 / 3))
            k4 = slope(t + h, z + h * (k1 - k2 + k3))
            z = z + h * (k1 + 3 * (k2 + k3) + k4) / 8
            if (number + 1) % steps == 0:
                found.append(z)
        return found


def _turned(angles: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines [..., 2 * features] of angles [..., features]."""
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos().to(like.dtype), angles.sin().to(like.dtype)
