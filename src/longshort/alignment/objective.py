"""The objective: CE + alpha_output D + alpha_hidden mean over layers of d, for the head of the model.

"Long-Short Alignment" (arXiv 2506.11769): L = L_CE + alpha L_misalign; L_CE is the mean cross-entropy over both views,
L_misalign the mean divergence over their overlap. Runs without alignment have nothing of this: models/head.NextToken.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedModel

from longshort.alignment.divergences import with_slopes
from longshort.alignment.views import Overlap, overlap
from longshort.identity.kinds import HIDDEN
from longshort.models import head as heads
from longshort.models.fused import IGNORED, Pairs, losses
from longshort.models.head import LossHead, LossInputs
from longshort.models.load import blocks, final_norm


@dataclass(frozen=True)
class Terms:
    """What is aligned; the weights come with each batch."""

    overlap: str = "all"
    overlap_k: int | None = None
    output: str | None = None
    output_stop_gradient: str = "none"
    layers: tuple[int, ...] = ()
    distance: str = "mse"
    lens: str | None = None
    hidden_stop_gradient: str = "none"

    @staticmethod
    def of(alignment: dict[str, Any]) -> Terms:
        """From the `alignment` of a run's specification, neutral values filled in."""
        overlap, output, hidden = (alignment[part] or {} for part in ("overlap", "output", "hidden"))
        said: dict[str, Any] = {
            "overlap": overlap.get("kind"),
            "overlap_k": overlap.get("k"),
            "output": output.get("divergence"),
            "output_stop_gradient": output.get("stop_gradient"),
            "layers": tuple(hidden.get("layers", ())),
            "distance": hidden.get("distance"),
            "lens": hidden.get("divergence"),
            "hidden_stop_gradient": hidden.get("stop_gradient"),
        }
        return Terms(**{name: value for name, value in said.items() if value is not None})


class Alignment:
    """What a run aligns, and what it needs of the model for that."""

    def __init__(self, model: PreTrainedModel, terms: Terms) -> None:
        self.terms = terms
        # Imported by name: runs that align no layers do not depend on it.
        self.capture = import_module(HIDDEN).LayerCapture(blocks(model), list(terms.layers)) if terms.layers else None
        self.norm = final_norm(model) if terms.lens else None

    @property
    def parts(self) -> tuple[str, ...]:
        unmeasured = {"divergence": self.terms.output is None, "hidden": not self.terms.layers}
        return tuple(part for part in heads.PARTS if not unmeasured.get(part))

    def drop(self) -> None:
        if self.capture:
            self.capture.drop()

    def __call__(self, head: LossHead, states_RD: Tensor, batch: LossInputs) -> Tensor:
        terms = self.terms
        targets_R = batch.targets.flatten()
        pairs: list[Pairs] = []
        at = overlap(batch.targets, batch.extra, terms.overlap, terms.overlap_k)
        alone = at.alone if terms.output else torch.arange(len(targets_R), device=targets_R.device)
        if terms.output:
            how = (batch.alpha_output, with_slopes(terms.output, terms.output_stop_gradient))
            pairs.append(Pairs(at.in_a, at.in_b, at.weight, *how))
        layers = [states.flatten(0, -2) for states in self.capture.take()] if self.capture else []
        if terms.lens and self.norm is not None:
            # The lens's rows join the output's: one pass over the head, one gradient of its weight.
            how = (batch.alpha_hidden / len(layers), with_slopes(terms.lens, terms.hidden_stop_gradient))
            lenses = [self.norm(torch.cat([states[at.in_a], states[at.in_b]])) for states in layers]
            first = len(states_RD)
            for lens in lenses:
                in_a, in_b = (first + torch.arange(len(lens), device=lens.device)).chunk(2)
                pairs.append(Pairs(in_a, in_b, at.weight, *how))
                first += len(lens)
            states_RD = torch.cat([states_RD, *lenses])
            targets_R = pad(targets_R, (0, len(states_RD) - len(targets_R)), value=IGNORED)
        loss, ce, values = losses(
            states_RD, head.weight, head.bias, targets_R, pairs, alone, head.change, head.chunk_size
        )
        divergence = values[0] if terms.output else ce.new_zeros(())
        hidden = ce.new_zeros(())
        if terms.lens:
            hidden = torch.stack(values[-len(layers) :]).mean()
        elif layers:
            hidden = torch.stack([self._distance(states[at.in_a], states[at.in_b], at) for states in layers]).mean()
            loss = loss + batch.alpha_hidden * hidden
        return torch.stack([loss, *(part.detach() for part in (ce, divergence, hidden))])

    def _distance(self, a: Tensor, b: Tensor, at: Overlap) -> Tensor:
        if self.terms.hidden_stop_gradient == "first":
            a = a.detach()
        if self.terms.hidden_stop_gradient == "second":
            b = b.detach()
        values = import_module(HIDDEN).distance(self.terms.distance, a, b)
        return (values * at.weight.to(values.dtype)).sum()


def of(model: PreTrainedModel, alignment: dict[str, Any]) -> Alignment:
    """The objective that the `alignment` of a run's specification asks for."""
    return Alignment(model, Terms.of(alignment))
