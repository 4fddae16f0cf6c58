"""The objective: CE + alpha_output D + alpha_hidden mean over layers of d, inside the head module's forward.

"Long-Short Alignment" (arXiv 2506.11769): L = L_CE + alpha L_misalign; L_CE is the mean cross-entropy over both views,
L_misalign the mean divergence over their overlap. The loss is computed in the head's own forward because only there
does every DeepSpeed stage see all uses of the head's weight: a loss computed outside the engine's forward crashes under
ZeRO-3 and trains differently, without a word, under plain data parallelism.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import PreTrainedModel

from longshort.alignment.fused import Pairs, losses
from longshort.alignment.hidden import LayerCapture, distance
from longshort.alignment.views import IGNORED, Overlap, overlap
from longshort.models.load import LogitChange, blocks, final_norm, logit_change

PARTS = ("loss", "ce", "divergence", "hidden")


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
    def of(alignment: dict[str, Any] | None) -> Terms:
        """From the `alignment` of a run's specification; None is plain next-token prediction."""
        alignment = alignment or {}
        where = alignment.get("overlap") or {"kind": "all"}
        output, hidden = alignment.get("output") or {}, alignment.get("hidden") or {}
        return Terms(
            overlap=where["kind"],
            overlap_k=where.get("k"),
            output=output.get("divergence"),
            output_stop_gradient=output.get("stop_gradient", "none"),
            layers=tuple(hidden.get("layers", ())),
            distance=hidden.get("distance", "mse"),
            lens=hidden.get("divergence"),
            hidden_stop_gradient=hidden.get("stop_gradient", "none"),
        )


class Batch(NamedTuple):
    """targets [views, batch, length], l_extra of each row, and the weights of this step."""

    targets: Tensor
    extra: Sequence[int]
    alpha_output: float = 0.0
    alpha_hidden: float = 0.0


class AlignmentHead(nn.Linear):
    """The model's head. With a batch set it returns the loss and its parts, [4] as in PARTS; else it is linear."""

    terms: Terms
    batch: Batch | None
    capture: LayerCapture | None
    norm: list[nn.Module]
    change: LogitChange
    chunk_size: int | None

    @property
    def parts(self) -> tuple[str, ...]:
        """Those of PARTS that this run measures."""
        unmeasured = {"divergence": self.terms.output is None, "hidden": not self.terms.layers}
        return tuple(part for part in PARTS if not unmeasured.get(part))

    def forward(self, hidden_states: Tensor) -> Tensor:
        if self.batch is None:
            if self.capture:
                self.capture.drop()
            return super().forward(hidden_states)
        batch, self.batch = self.batch, None
        values = self._objective(hidden_states.flatten(0, -2), batch)
        return values if self.returned_scale == 1.0 else values * self.returned_scale

    @property
    def returned_scale(self) -> float:
        """What the objective is multiplied by on its way through the model, which treats it as logits.

        Soft-capping leaves numbers alone that are small enough: cap * tanh(x / cap) is x to the last digit. An infinite
        loss would come back finite; capped logits have none.
        """
        return 1.0 if self.change.cap is None else 2.0**-40

    def _objective(self, states_RD: Tensor, batch: Batch) -> Tensor:
        """The loss and its parts, [4]; R = views * batch * length positions."""
        terms = self.terms
        targets_R = batch.targets.flatten()
        pairs: list[Pairs] = []
        alone = None
        if terms.output or terms.layers:
            at = overlap(batch.targets, batch.extra, terms.overlap, terms.overlap_k)
            alone = at.alone if terms.output else torch.arange(len(targets_R), device=targets_R.device)
        if terms.output:
            how = (batch.alpha_output, terms.output, terms.output_stop_gradient)
            pairs.append(Pairs(at.in_a, at.in_b, at.weight, *how))
        layers = [states.flatten(0, -2) for states in self.capture.take()] if self.capture else []
        if terms.lens:
            # The lens's rows join the output's: one pass over the head, one gradient of its weight.
            how = (batch.alpha_hidden / len(layers), terms.lens, terms.hidden_stop_gradient)
            lenses = [self.norm[0](torch.cat([states[at.in_a], states[at.in_b]])) for states in layers]
            first = len(states_RD)
            for lens in lenses:
                in_a, in_b = (first + torch.arange(len(lens), device=lens.device)).chunk(2)
                pairs.append(Pairs(in_a, in_b, at.weight, *how))
                first += len(lens)
            states_RD = torch.cat([states_RD, *lenses])
            targets_R = pad(targets_R, (0, len(states_RD) - len(targets_R)), value=IGNORED)
        loss, ce, values = losses(
            states_RD, self.weight, self.bias, targets_R, pairs, alone, self.change, self.chunk_size
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
        values = distance(self.terms.distance, a, b)
        return (values * at.weight.to(values.dtype)).sum()


def install(model: PreTrainedModel, terms: Terms, chunk_size: int | None = None) -> AlignmentHead:
    """Replaces the model's head by one that can compute the objective; weights and their names stay the same.

    Args:
        chunk_size: positions whose logits exist at a time; None: chosen from the vocabulary and a memory budget.

    Raises:
        ValueError: the head is no plain linear layer, or the model changes its logits in a way that is not known.
    """
    old = model.get_output_embeddings()
    if type(old) is not nn.Linear:
        raise ValueError(
            f"the head of {type(model).__name__} is a {type(old).__module__}.{type(old).__name__}; the objective needs "
            "a plain torch.nn.Linear: leave the head out of LoRA's target_modules and modules_to_save and out of "
            "quantisation"
        )
    head = AlignmentHead(old.in_features, old.out_features, bias=old.bias is not None, device="meta")
    head.weight, head.bias = old.weight, old.bias
    head.terms, head.batch, head.chunk_size = terms, None, chunk_size
    head.change = logit_change(model.config)
    head.capture = LayerCapture(blocks(model), list(terms.layers)) if terms.layers else None
    # In a list, so that the norm does not become a submodule and change the names of the weights.
    head.norm = [final_norm(model)] if terms.lens else []
    model.set_output_embeddings(head)
    _refuse_another_change(model, head)
    return head


def _refuse_another_change(model: PreTrainedModel, head: AlignmentHead) -> None:
    """Compares what the model does to the head's output with what its configuration was read to say.

    Under ZeRO-3 the weights are divided already and the model cannot run yet: there the configuration is believed.
    """
    if head.weight.is_meta or any(hasattr(parameter, "ds_id") for parameter in model.parameters()):
        return
    probe = torch.linspace(-20.0, 20.0, 8, device=head.weight.device)
    hook = head.register_forward_hook(lambda *_: probe)
    with torch.no_grad():
        # Eight tokens, which shifted sparse attention can divide.
        returned = model(input_ids=torch.zeros(1, 8, dtype=torch.long, device=probe.device), use_cache=False).logits
    hook.remove()
    if returned.shape != probe.shape or not torch.allclose(returned.float(), head.change(probe), rtol=1e-2, atol=1e-2):
        raise ValueError(
            f"{type(model).__name__} does to its logits after the head what is not known here (its configuration was "
            f"read as {head.change}): add it to logit_change in models/load.py"
        )


def parts(model: nn.Module, head: AlignmentHead, inputs: Tensor, batch: Batch) -> Tensor:
    """One forward over all views at once: inputs [views, batch, length] -> the loss and its parts, [4]."""
    head.batch = batch
    returned = model(input_ids=inputs.flatten(0, 1), use_cache=False).logits
    scale = head.returned_scale * head.change.scale
    return returned if scale == 1.0 else returned / scale
