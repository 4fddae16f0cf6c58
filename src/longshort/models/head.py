"""The model's head with the loss inside its forward.

The loss is computed there because only there does every DeepSpeed stage see all uses of the head's weight: a loss
computed outside the engine's forward crashes under ZeRO-3 and trains differently, without a word, under plain data
parallelism.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from longshort.models.fused import losses
from longshort.models.load import LogitChange, logit_change

PARTS = ("loss", "ce", "divergence", "hidden")


class LossInputs(NamedTuple):
    """targets [views, batch, length], l_extra of each row, and the weights of this step."""

    targets: Tensor
    extra: Sequence[int]
    alpha_output: float = 0.0
    alpha_hidden: float = 0.0


class Objective(Protocol):
    """What a head computes of a batch."""

    @property
    def parts(self) -> tuple[str, ...]:
        """Those of PARTS that this run measures."""

    def __call__(self, head: LossHead, states_RD: Tensor, batch: LossInputs) -> Tensor:
        """The loss and its parts, [4] as in PARTS, of the final states of R = views * batch * length positions."""

    def drop(self) -> None:
        """Lets go of what a forward left whose loss nobody wants."""


class NextToken:
    """Cross-entropy, the mean over all views."""

    parts = ("loss", "ce")

    def __call__(self, head: LossHead, states_RD: Tensor, batch: LossInputs) -> Tensor:
        targets_R = batch.targets.flatten()
        loss, ce, _ = losses(
            states_RD, head.weight, head.bias, targets_R, change=head.change, chunk_size=head.chunk_size
        )
        return torch.stack([loss, ce.detach(), ce.new_zeros(()), ce.new_zeros(())])

    def drop(self) -> None:
        pass


class LossHead(nn.Linear):
    """The model's head. With a batch set it returns what the objective makes of it, [4]; else it is linear."""

    objective: Objective
    batch: LossInputs | None
    change: LogitChange
    chunk_size: int | None

    @property
    def parts(self) -> tuple[str, ...]:
        """Those of PARTS that this run measures."""
        return self.objective.parts

    def forward(self, hidden_states: Tensor) -> Tensor:
        if self.batch is None:
            self.objective.drop()
            return super().forward(hidden_states)
        batch, self.batch = self.batch, None
        values = self.objective(self, hidden_states.flatten(0, -2), batch)
        return values if self.returned_scale == 1.0 else values * self.returned_scale

    @property
    def returned_scale(self) -> float:
        """What the objective is multiplied by on its way through the model, which treats it as logits.

        Soft-capping leaves numbers alone that are small enough: cap * tanh(x / cap) is x to the last digit. An infinite
        loss would come back finite; capped logits have none.
        """
        return 1.0 if self.change.cap is None else 2.0**-40


def install(model: PreTrainedModel, objective: Objective, chunk_size: int | None = None) -> LossHead:
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
    head = LossHead(old.in_features, old.out_features, bias=old.bias is not None, device="meta")
    head.weight, head.bias = old.weight, old.bias
    head.objective, head.batch, head.chunk_size = objective, None, chunk_size
    head.change = logit_change(model.config)
    model.set_output_embeddings(head)
    _refuse_another_change(model, head)
    return head


def _refuse_another_change(model: PreTrainedModel, head: LossHead) -> None:
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


def parts(model: nn.Module, head: LossHead, inputs: Tensor, batch: LossInputs) -> Tensor:
    """One forward over all views at once: inputs [views, batch, length] -> the loss and its parts, [4]."""
    head.batch = batch
    returned = model(input_ids=inputs.flatten(0, 1), use_cache=False).logits
    scale = head.returned_scale * head.change.scale
    return returned if scale == 1.0 else returned / scale
