"""The objective inside a model: against two plain forwards of the untouched model."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import CohereConfig, Gemma2Config, GraniteConfig, LlamaConfig, PhiConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from longshort.alignment.settings import TwoViews
from longshort.models.head import LossInputs, parts
from longshort.models.load import logit_change
from tests.support import reference
from tests.support.objective import SHAPE, aligned, batch_of, install, small_model


def compare(
    plain: PreTrainedModel, terms: TwoViews, batch: dict[str, Any], alpha_output: float, alpha_hidden: float
) -> None:
    """Values and gradients of one forward inside the head, and of two forwards of the plain model."""
    ours = copy.deepcopy(plain)
    head = install(ours, terms)
    values = parts(
        ours, head, batch["inputs"], LossInputs(batch["targets"], batch["extra"], alpha_output, alpha_hidden)
    )
    values[0].backward()

    views = [plain(input_ids=view, output_hidden_states=True) for view in batch["inputs"]]
    ce = reference.cross_entropy(torch.stack([view.logits for view in views]), batch["targets"])
    output, hidden, overlap = terms.output, terms.hidden, terms.overlap
    pairs = reference.aligned(batch["targets"], batch["extra"], overlap.kind, getattr(overlap, "k", None))

    def over_rows(distance: Any, states: list[Tensor]) -> Tensor:
        return reference.mean_over_rows(
            [[distance(states[0][row, a], states[1][row, b]) for a, b in pairs[row]] for row in range(len(pairs))]
        )

    def of_states(a: Tensor, b: Tensor) -> Tensor:
        if hidden.distance == "logit-lens":
            a, b = (plain.lm_head(plain.model.norm(x)) for x in (a, b))
            return reference.divergence(hidden.divergence, a, b, hidden.stop_gradient)
        a = a.detach() if hidden.stop_gradient == "first" else a
        b = b.detach() if hidden.stop_gradient == "second" else b
        if hidden.distance == "cosine":
            return 1 - torch.dot(a, b) / (a.norm() * b.norm())
        a, b = (x / (x.square().mean() + 1e-6).sqrt() for x in (a, b))
        return (a - b).square().mean()

    output_term = hidden_term = ce.new_zeros(())
    if output:
        output_term = over_rows(
            lambda a, b: reference.divergence(output.divergence, a, b, output.stop_gradient),
            [view.logits for view in views],
        )
    if hidden:
        layers = [over_rows(of_states, [view.hidden_states[i] for view in views]) for i in hidden.layers]
        hidden_term = torch.stack(layers).mean()
    loss = ce + alpha_output * output_term + alpha_hidden * hidden_term
    loss.backward()
    torch.testing.assert_close(values, torch.stack([loss, ce, output_term, hidden_term]).detach(), check_dtype=False)
    theirs = dict(plain.named_parameters())
    assert dict(ours.named_parameters()).keys() == theirs.keys()
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, theirs[name].grad, msg=name)


@pytest.mark.parametrize("extras", [[2, 2], [1, 5], [5]])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    "terms",
    [
        aligned(),
        aligned(output="sce"),
        aligned(output="symmetric-kl", overlap={"kind": "last"}),
        aligned(output="js", overlap={"kind": "last-k", "k": 2}, stop_gradient="first"),
        aligned(layers=[1, 2]),
        aligned(layers=[1], hidden_stop_gradient="first"),
        aligned(output="kl", layers=[2], distance="cosine", hidden_stop_gradient="second"),
        aligned(layers=[1], distance="logit-lens", lens="symmetric-kl"),
        aligned(output="sce", layers=[1, 2], distance="logit-lens", lens="kl", hidden_stop_gradient="second"),
    ],
    ids=str,
)
def test_loss_and_gradients_equal_two_plain_forwards(terms: TwoViews, extras: list[int], tied: bool) -> None:
    compare(small_model(tie_word_embeddings=tied), terms, batch_of(6, extras), 0.7, 0.3)


@pytest.mark.parametrize(
    ("config", "scale", "cap"),
    [
        (Gemma2Config(**SHAPE, head_dim=4, final_logit_softcapping=1.5, attn_logit_softcapping=None), 1.0, 1.5),
        (CohereConfig(**SHAPE, logit_scale=0.25), 0.25, None),
        (GraniteConfig(**SHAPE, logits_scaling=3.0), 1 / 3, None),
        (PhiConfig(**SHAPE), 1.0, None),  # a head with a bias
    ],
    ids=["soft-capping", "scale", "division", "bias"],
)
def test_models_that_change_their_logits_after_the_head(config: Any, scale: float, cap: float | None) -> None:
    change = logit_change(config)
    assert (change.scale, change.cap) == (scale, cap)
    compare(small_model(config), aligned(output="symmetric-kl", layers=[1]), batch_of(6, [2, 3]), 0.7, 0.3)


@pytest.mark.parametrize("lens", ["kl", None])
def test_no_value_of_a_tensor_is_looked_at(lens: str | None) -> None:
    """The head alone, on a device without values: transformers' own masks look at a position in every forward."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(LlamaConfig(**SHAPE))
        states = torch.empty(4, 6, SHAPE["hidden_size"], requires_grad=True)
    head = install(model, aligned(output="sce", layers=[1, 2], distance="logit-lens" if lens else "mse", lens=lens))
    head.objective.capture = SimpleNamespace(take=lambda: [states, states])
    head.batch = LossInputs(torch.empty(2, 2, 6, dtype=torch.long, device="meta"), [2, 3], 1.0, 1.0)
    head(states)[0].backward()
    assert head.weight.grad.shape == head.weight.shape


def test_a_batch_equals_its_micro_batches_whatever_the_extras() -> None:
    model = small_model()
    head = install(model, aligned(output="symmetric-kl", layers=[1]))
    batch = batch_of(8, [1, 3, 5, 7])

    def loss(rows: slice) -> Tensor:
        part = LossInputs(batch["targets"][:, rows], batch["extra"][rows], 1.0, 1.0)
        return parts(model, head, batch["inputs"][:, rows], part)

    torch.testing.assert_close(loss(slice(0, 4)), (loss(slice(0, 1)) + loss(slice(1, 2)) + loss(slice(2, 4)) * 2) / 4)


@pytest.mark.parametrize("terms", [aligned(output="sce"), aligned(layers=[1, 2]), aligned(output="js", layers=[2])])
def test_no_arm_multiplies_more_matrices_than_the_baseline(terms: TwoViews) -> None:
    flops = []
    for arm in (aligned(), terms):
        model = small_model()
        head = install(model, arm)
        batch = batch_of(12, [3, 3])
        with FlopCounterMode(display=False) as counter:
            parts(model, head, batch["inputs"], LossInputs(batch["targets"], batch["extra"], 1.0, 1.0))[0].backward()
        flops.append(counter.get_total_flops())
    assert flops[0] == flops[1]
