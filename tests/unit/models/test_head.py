"""The loss inside the head: against plain training, and which heads and models can have it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import Gemma2Config, LlamaConfig

from longshort.evaluation.forward import refuse_unknown_logits
from longshort.models.head import LossInputs, parts
from longshort.models.load import LogitChange, logit_change
from tests.support.objective import SHAPE, VOCABULARY, aligned, batch_of, install, small_model


def test_a_change_of_the_logits_that_is_not_known_is_refused() -> None:
    """By its name, and where a name means nothing or something else in this model, by what the model does."""
    assert logit_change(Gemma2Config()) == LogitChange(cap=30.0)  # attn_logit_softcapping is no change of the logits
    assert logit_change(LlamaConfig(**SHAPE, moe_router_logit_softcapping=2.0)) == LogitChange()
    with pytest.raises(ValueError, match=r"logits_mup_width_multiplier = 24"):
        logit_change(LlamaConfig(**SHAPE, logits_mup_width_multiplier=24.0))
    model = small_model(LlamaConfig(**SHAPE, logit_scale=0.5))  # which Llama ignores
    with pytest.raises(ValueError, match=r"LlamaForCausalLM does to its logits .* LogitChange\(scale=0.5"):
        install(model, aligned())
    with pytest.raises(ValueError, match="LlamaForCausalLM makes its logits otherwise"):
        refuse_unknown_logits(small_model(LlamaConfig(**SHAPE, logit_scale=0.5)))


def test_heads_that_are_not_plain_linear_are_refused() -> None:
    model = small_model()

    class LoraLinear(torch.nn.Linear):  # as peft's: a layer of its own around or instead of the plain one
        pass

    model.set_output_embeddings(LoraLinear(8, VOCABULARY, bias=False))
    with pytest.raises(ValueError, match="LoraLinear; the objective needs a plain torch.nn.Linear: leave the head out"):
        install(model, aligned(output="sce"))


def test_without_a_batch_the_head_is_a_linear_layer() -> None:
    plain, ours = small_model(), small_model()
    head = install(ours, aligned(output="sce", layers=[1]))
    tokens = torch.arange(6)[None]
    assert torch.equal(ours(input_ids=tokens).logits, plain(input_ids=tokens).logits)
    with pytest.raises(KeyError):
        head.objective.capture.take()  # nothing is held


def test_recomputed_activations_give_the_same_gradients() -> None:
    gradients = []
    for recompute in (False, True):
        model = small_model()
        head = install(model, aligned(output="symmetric-kl", layers=[1, 2]))
        model.train()
        if recompute:
            model.activation_checkpointing_enable({"use_reentrant": False})
        batch = batch_of(6, [2])
        parts(model, head, batch["inputs"], LossInputs(batch["targets"], batch["extra"], 0.5, 0.5))[0].backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_baseline_is_plain_training_bit_for_bit() -> None:
    """alpha 0: twenty steps of AdamW in float32 against a loop with no alignment code, on both views of each batch."""
    plain = small_model().float()
    ours = copy.deepcopy(plain)
    head = install(ours, aligned())
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
