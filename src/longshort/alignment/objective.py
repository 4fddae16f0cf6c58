"""The objective: CE + alpha_output D + alpha_hidden mean over layers of d, for the head of the model.

"Long-Short Alignment" (arXiv 2506.11769): L = L_CE + alpha L_misalign; L_CE is the mean cross-entropy over both views,
L_misalign the mean divergence over their overlap. Runs without alignment have nothing of this: models/head.NextToken.
"""

from __future__ import annotations

from importlib import import_module

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedModel

from longshort.alignment.divergences import with_slopes
from longshort.alignment.settings import HiddenTerm, OverlapLastK, TwoViews
from longshort.alignment.views import Overlap, overlap
from longshort.identity.kinds import HIDDEN
from longshort.models import head as heads
from longshort.models.fused import IGNORED, Pairs, losses
from longshort.models.head import LossHead, LossInputs
from longshort.models.load import blocks, final_norm


class AlignmentObjective:
    """What a run aligns, and what it needs of the model for that."""

    def __init__(self, model: PreTrainedModel, asked: TwoViews) -> None:
        assert asked.overlap is not None, "TwoViews has one with every term"
        self.overlap, self.output, self.hidden = asked.overlap, asked.output, asked.hidden
        # Imported by name: runs that align no layers do not depend on it.
        self.capture = import_module(HIDDEN).LayerCapture(blocks(model), self.hidden.layers) if self.hidden else None
        self.norm = final_norm(model) if self.hidden and self.hidden.divergence else None

    @property
    def parts(self) -> tuple[str, ...]:
        unmeasured = {"divergence": self.output is None, "hidden": self.hidden is None}
        return tuple(part for part in heads.PARTS if not unmeasured.get(part))

    def drop(self) -> None:
        if self.capture:
            self.capture.drop()

    def __call__(self, head: LossHead, states_RD: Tensor, batch: LossInputs) -> Tensor:
        output, hidden = self.output, self.hidden
        targets_R = batch.targets.flatten()
        pairs: list[Pairs] = []
        k = self.overlap.k if isinstance(self.overlap, OverlapLastK) else None
        at = overlap(batch.targets, batch.extra, self.overlap.kind, k)
        alone = at.alone if output else torch.arange(len(targets_R), device=targets_R.device)
        if output:
            how = (batch.alpha_output, with_slopes(output.divergence, output.stop_gradient))
            pairs.append(Pairs(at.in_a, at.in_b, at.weight, *how))
        layers = [states.flatten(0, -2) for states in self.capture.take()] if self.capture else []
        if hidden and hidden.divergence and self.norm is not None:
            # The lens's rows join the output's: one pass over the head, one gradient of its weight.
            how = (batch.alpha_hidden / len(layers), with_slopes(hidden.divergence, hidden.stop_gradient))
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
        divergence = values[0] if output else ce.new_zeros(())
        distance = ce.new_zeros(())
        if hidden and hidden.divergence:
            distance = torch.stack(values[-len(layers) :]).mean()
        elif hidden:
            distances = [_distance(hidden, states[at.in_a], states[at.in_b], at) for states in layers]
            distance = torch.stack(distances).mean()
            loss = loss + batch.alpha_hidden * distance
        return torch.stack([loss, *(part.detach() for part in (ce, divergence, distance))])


def _distance(hidden: HiddenTerm, a: Tensor, b: Tensor, at: Overlap) -> Tensor:
    if hidden.stop_gradient == "first":
        a = a.detach()
    if hidden.stop_gradient == "second":
        b = b.detach()
    values = import_module(HIDDEN).distance(hidden.distance, a, b)
    return (values * at.weight.to(values.dtype)).sum()
