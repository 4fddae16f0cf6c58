"""The objective: CE + alpha_output D + alpha_hidden mean over layers of d, inside the head module's forward.

"Long-Short Alignment" (arXiv 2506.11769): L = L_CE + alpha L_misalign; L_CE is the mean cross-entropy over both views,
L_misalign the mean divergence over their overlap. The loss is computed in the head's own forward because only there
does every DeepSpeed stage see all uses of the head's weight: a loss computed outside the engine's forward crashes under
ZeRO-3 and trains differently, without a word, under plain data parallelism.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from longshort.alignment.divergences import divergence
from longshort.alignment.hidden import LayerCapture, distance
from longshort.alignment.views import IGNORED, Overlap, overlap
from longshort.models.load import blocks, final_norm

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
    """targets [views, batch, length], extra [batch], and the weights of this step."""

    targets: Tensor
    extra: Tensor
    alpha_output: float = 0.0
    alpha_hidden: float = 0.0


class AlignmentHead(nn.Linear):
    """The model's head. With a batch set it returns the loss and its parts, [4] as in PARTS; else it is linear."""

    terms: Terms
    batch: Batch | None
    capture: LayerCapture | None
    norm: list[nn.Module]

    @property
    def parts(self) -> tuple[str, ...]:
        """Those of PARTS that this run measures."""
        unmeasured = {"divergence": self.terms.output is None, "hidden": not self.terms.layers}
        return tuple(part for part in PARTS if not unmeasured.get(part))

    def forward(self, hidden_states: Tensor) -> Tensor:
        if self.batch is None:
            return super().forward(hidden_states)
        batch, self.batch = self.batch, None
        views = batch.targets.shape[0]
        logits_VBLN = super().forward(hidden_states).unflatten(0, (views, -1))
        logits_VBLN = logits_VBLN if logits_VBLN.element_size() >= 4 else logits_VBLN.float()
        ce = cross_entropy(logits_VBLN.flatten(0, -2), batch.targets.flatten(), ignore_index=IGNORED)
        loss, output_term, hidden_term = ce, ce.new_zeros(()), ce.new_zeros(())
        terms = self.terms
        if terms.output or terms.layers:
            at = overlap(batch.targets, batch.extra, terms.overlap, terms.overlap_k)
            if terms.output:
                a, b = logits_VBLN[0][at.rows, at.in_a], logits_VBLN[1][at.rows, at.in_b]
                output_term = _mean(divergence(terms.output, a, b, terms.output_stop_gradient), at)
                loss = loss + batch.alpha_output * output_term
            if terms.layers:
                assert self.capture is not None
                per_layer = []
                for states in self.capture.take():
                    states_VBLD = states.unflatten(0, (views, -1))
                    a, b = states_VBLD[0][at.rows, at.in_a], states_VBLD[1][at.rows, at.in_b]
                    per_layer.append(_mean(self._layer_distance(a, b), at))
                hidden_term = torch.stack(per_layer).mean()
                loss = loss + batch.alpha_hidden * hidden_term
        return torch.stack([loss, *(part.detach() for part in (ce, output_term, hidden_term))])

    def _layer_distance(self, a: Tensor, b: Tensor) -> Tensor:
        terms = self.terms
        if terms.lens is not None:
            lens_a, lens_b = (nn.Linear.forward(self, self.norm[0](x)) for x in (a, b))
            return divergence(terms.lens, lens_a, lens_b, terms.hidden_stop_gradient)
        if terms.hidden_stop_gradient == "first":
            a = a.detach()
        if terms.hidden_stop_gradient == "second":
            b = b.detach()
        return distance(terms.distance, a, b)


def install(model: PreTrainedModel, terms: Terms) -> AlignmentHead:
    """Replaces the model's head by one that can compute the objective; weights and their names stay the same.

    Raises:
        ValueError: the head is no plain linear layer.
    """
    old = model.get_output_embeddings()
    if type(old) is not nn.Linear:
        raise ValueError(
            f"the head of {type(model).__name__} is a {type(old).__name__}; the objective needs a linear one"
        )
    head = AlignmentHead(old.in_features, old.out_features, bias=old.bias is not None, device="meta")
    head.weight, head.bias = old.weight, old.bias
    head.terms, head.batch = terms, None
    head.capture = LayerCapture(blocks(model), list(terms.layers)) if terms.layers else None
    # In a list, so that the norm does not become a submodule and change the names of the weights.
    head.norm = [final_norm(model)] if terms.lens else []
    model.set_output_embeddings(head)
    return head


def parts(model: nn.Module, head: AlignmentHead, inputs: Tensor, batch: Batch) -> Tensor:
    """One forward over all views at once: inputs [views, batch, length] -> the loss and its parts, [4]."""
    head.batch = batch
    return model(input_ids=inputs.flatten(0, 1), use_cache=False).logits


def _mean(values: Tensor, at: Overlap) -> Tensor:
    """Mean over a row's positions, then over rows: equal for every division of a batch into micro-batches."""
    counts = torch.zeros(at.batch, dtype=values.dtype, device=values.device).index_add(
        0, at.rows, torch.ones_like(values)
    )
    return (values / counts[at.rows]).sum() / at.batch
