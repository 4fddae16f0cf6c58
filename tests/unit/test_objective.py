"""The objective inside a model: against two plain forwards of the untouched model, and against plain training."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    CohereConfig,
    Gemma2Config,
    GraniteConfig,
    LlamaConfig,
    PhiConfig,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from longshort.alignment.objective import Alignment, Terms
from longshort.data.windows import collate
from longshort.evaluation.forward import refuse_unknown_logits
from longshort.models import head as heads
from longshort.models.head import LossHead, LossInputs, NextToken, parts
from longshort.models.load import LogitChange, logit_change
from tests.support import reference

VOCABULARY = 11
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def install(model: PreTrainedModel, terms: Terms) -> LossHead:
    return heads.install(model, NextToken() if terms == Terms() else Alignment(model, terms))


def small_model(config: Any = None, **changed: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config or LlamaConfig(**{**SHAPE, **changed})).double()
    with torch.no_grad():  # larger weights than at the start of a training, so that distributions differ
        model.get_output_embeddings().weight *= 20
    return model


def batch_of(length: int, extras: list[int]) -> dict[str, Any]:
    samples = []
    for row, extra in enumerate(extras):
        samples.append(
            {"window": (torch.arange(length + extra + 1) * (row + 3)) % VOCABULARY, "extra": extra, "sample": row}
        )
    return collate(samples, length)


def compare(
    plain: PreTrainedModel, terms: Terms, batch: dict[str, Any], alpha_output: float, alpha_hidden: float
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
    aligned = reference.aligned(batch["targets"], batch["extra"], terms.overlap, terms.overlap_k)

    def over_rows(distance: Any, states: list[Tensor]) -> Tensor:
        return reference.mean_over_rows(
            [[distance(states[0][row, a], states[1][row, b]) for a, b in aligned[row]] for row in range(len(aligned))]
        )

    def of_states(a: Tensor, b: Tensor) -> Tensor:
        if terms.distance == "logit-lens":
            a, b = (plain.lm_head(plain.model.norm(x)) for x in (a, b))
            return reference.divergence(terms.lens, a, b, terms.hidden_stop_gradient)
        if terms.distance == "cosine":
            return 1 - torch.dot(a, b) / (a.norm() * b.norm())
        a, b = (x / (x.square().mean() + 1e-6).sqrt() for x in (a, b))
        return (a - b).square().mean()

    output_term = hidden_term = ce.new_zeros(())
    if terms.output:
        output_term = over_rows(
            lambda a, b: reference.divergence(terms.output, a, b, terms.output_stop_gradient),
            [view.logits for view in views],
        )
    if terms.layers:
        layers = [over_rows(of_states, [view.hidden_states[i] for view in views]) for i in terms.layers]
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
        Terms(),
        Terms(output="sce"),
        Terms(output="symmetric-kl", overlap="last"),
        Terms(output="js", overlap="last-k", overlap_k=2, output_stop_gradient="first"),
        Terms(layers=(1, 2)),
        Terms(output="kl", layers=(2,), distance="cosine"),
        Terms(layers=(1,), distance="logit-lens", lens="symmetric-kl"),
        Terms(output="sce", layers=(1, 2), distance="logit-lens", lens="kl", hidden_stop_gradient="second"),
    ],
    ids=lambda terms: f"{terms.output}-{terms.overlap}-{terms.layers}-{terms.distance}",
)
def test_loss_and_gradients_equal_two_plain_forwards(terms: Terms, extras: list[int], tied: bool) -> None:
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
    compare(small_model(config), Terms(output="symmetric-kl", layers=(1,)), batch_of(6, [2, 3]), 0.7, 0.3)


def test_a_change_of_the_logits_that_is_not_known_is_refused() -> None:
    """By its name, and where a name means nothing or something else in this model, by what the model does."""
    assert logit_change(Gemma2Config()) == LogitChange(cap=30.0)  # attn_logit_softcapping is no change of the logits
    assert logit_change(LlamaConfig(**SHAPE, moe_router_logit_softcapping=2.0)) == LogitChange()
    with pytest.raises(ValueError, match=r"logits_mup_width_multiplier = 24"):
        logit_change(LlamaConfig(**SHAPE, logits_mup_width_multiplier=24.0))
    model = small_model(LlamaConfig(**SHAPE, logit_scale=0.5))  # which Llama ignores
    with pytest.raises(ValueError, match=r"LlamaForCausalLM does to its logits .* LogitChange\(scale=0.5"):
        install(model, Terms())
    with pytest.raises(ValueError, match="LlamaForCausalLM makes its logits otherwise"):
        refuse_unknown_logits(small_model(LlamaConfig(**SHAPE, logit_scale=0.5)))


@pytest.mark.parametrize("lens", ["kl", None])
def test_no_value_of_a_tensor_is_looked_at(lens: str | None) -> None:
    """The head alone, on a device without values: transformers' own masks look at a position in every forward."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(LlamaConfig(**SHAPE))
        states = torch.empty(4, 6, SHAPE["hidden_size"], requires_grad=True)
    head = install(model, Terms(output="sce", layers=(1, 2), distance="logit-lens" if lens else "mse", lens=lens))
    head.objective.capture = SimpleNamespace(take=lambda: [states, states])
    head.batch = LossInputs(torch.empty(2, 2, 6, dtype=torch.long, device="meta"), [2, 3], 1.0, 1.0)
    head(states)[0].backward()
    assert head.weight.grad.shape == head.weight.shape


def test_heads_that_are_not_plain_linear_are_refused() -> None:
    model = small_model()

    class LoraLinear(torch.nn.Linear):  # as peft's: a layer of its own around or instead of the plain one
        pass

    model.set_output_embeddings(LoraLinear(8, VOCABULARY, bias=False))
    with pytest.raises(ValueError, match="LoraLinear; the objective needs a plain torch.nn.Linear: leave the head out"):
        install(model, Terms(output="sce"))


def test_without_a_batch_the_head_is_a_linear_layer() -> None:
    plain, ours = small_model(), small_model()
    head = install(ours, Terms(output="sce", layers=(1,)))
    tokens = torch.arange(6)[None]
    assert torch.equal(ours(input_ids=tokens).logits, plain(input_ids=tokens).logits)
    with pytest.raises(KeyError):
        head.objective.capture.take()  # nothing is held


def test_recomputed_activations_give_the_same_gradients() -> None:
    gradients = []
    for recompute in (False, True):
        model = small_model()
        head = install(model, Terms(output="symmetric-kl", layers=(1, 2)))
        model.train()
        if recompute:
            model.activation_checkpointing_enable({"use_reentrant": False})
        batch = batch_of(6, [2])
        parts(model, head, batch["inputs"], LossInputs(batch["targets"], batch["extra"], 0.5, 0.5))[0].backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_a_batch_equals_its_micro_batches_whatever_the_extras() -> None:
    model = small_model()
    head = install(model, Terms(output="symmetric-kl", layers=(1,)))
    batch = batch_of(8, [1, 3, 5, 7])

    def loss(rows: slice) -> Tensor:
        part = LossInputs(batch["targets"][:, rows], batch["extra"][rows], 1.0, 1.0)
        return parts(model, head, batch["inputs"][:, rows], part)

    torch.testing.assert_close(loss(slice(0, 4)), (loss(slice(0, 1)) + loss(slice(1, 2)) + loss(slice(2, 4)) * 2) / 4)


def test_baseline_is_plain_training_bit_for_bit() -> None:
    """alpha 0: twenty steps of AdamW in float32 against a loop with no alignment code, on both views of each batch."""
    plain = small_model().float()
    ours = copy.deepcopy(plain)
    head = install(ours, Terms())
    curves: list[list[float]] = [[], []]
    for model, curve in zip((plain, ours), curves, strict=True):
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        for step in range(20):
            batch = batch_of(12, [1 + step % 5, 3])
            if model is plain:
                logits = model(input_ids=batch["inputs"].flatten(0, 1)).logits
                loss = cross_entropy(logits.flatten(0, 1), batch["targets"].flatten())
            else:
                loss = parts(model, head, batch["inputs"], LossInputs(batch["targets"], batch["extra"]))[0]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            curve.append(loss.item())
    assert curves[0] == curves[1] and curves[0][-1] < curves[0][0]
    for one, other in zip(plain.parameters(), ours.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("terms", [Terms(output="sce"), Terms(layers=(1, 2)), Terms(output="js", layers=(2,))])
def test_no_arm_multiplies_more_matrices_than_the_baseline(terms: Terms) -> None:
    flops = []
    for arm in (Terms(), terms):
        model = small_model()
        head = install(model, arm)
        batch = batch_of(12, [3, 3])
        with FlopCounterMode(display=False) as counter:
            parts(model, head, batch["inputs"], LossInputs(batch["targets"], batch["extra"], 1.0, 1.0))[0].backward()
        flops.append(counter.get_total_flops())
    assert flops[0] == flops[1]
