"""Context extension: closed forms, what stays equal below the original length, the KV cache, saving and loading."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from longshort.evaluation.forward import rope_depends_on_length
from longshort.models import load, rope
from longshort.models.rope import eabf, shifted_sparse

ORIGINAL = 32  # tokens
THETA, SIZE = 10000.0, 16  # of a head
INDEX = torch.arange(0, SIZE, 2, dtype=torch.float64)
PLAIN = THETA ** (-INDEX / SIZE)
SETTINGS: dict[str, dict[str, Any]] = {
    "pi": {"kind": "pi", "factor": 4.0},
    "ntk": {"kind": "ntk", "factor": 4.0},
    "dynamic-ntk": {"kind": "dynamic-ntk", "factor": 4.0},
    "yarn": {"kind": "yarn", "factor": 4.0, "beta_fast": 4.0, "beta_slow": 1.0},
    "abf": {"kind": "abf", "theta": 500000.0},
    "eabf": {"kind": "eabf", "theta": 500000.0, "plain_layers": 1},
    "clex": {"kind": "clex", "max_factor": 4, "time_step": 0.05, "width_factor": 1, "activation": "tanh"},
}
WEIGHTS_OF_CLEX = 7


def plain(seed: int = 0) -> PreTrainedModel:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=4 * SIZE,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=ORIGINAL,
        rope_parameters={"rope_type": "default", "rope_theta": THETA},
        initializer_range=0.2,
    )
    return LlamaForCausalLM(config).eval()


def extended(kind: str) -> PreTrainedModel:
    model = plain()
    rope.extend(model, SETTINGS[kind], seed=3)
    if kind == "clex":  # at the start it is NTK: give it something of its own
        torch.manual_seed(WEIGHTS_OF_CLEX)
        torch.nn.init.normal_(model.get_decoder().rotary_emb.inv_freq_down, std=0.1)
    return model


def tokens(length: int, rows: int = 2) -> torch.Tensor:
    return torch.randint(50, (rows, length), generator=torch.Generator().manual_seed(length))


def logits(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=ids, use_cache=False).logits


def frequencies(model: PreTrainedModel, length: int) -> torch.Tensor:
    """Angles at position 1, of an input of so many tokens."""
    with torch.inference_mode():
        cosines, sines = model.get_decoder().rotary_emb(torch.zeros(1, 1), torch.arange(length)[None])
    return torch.atan2(sines[0, 1, : SIZE // 2], cosines[0, 1, : SIZE // 2]).double()


def yarn_frequencies(factor: float, fast: float, slow: float) -> torch.Tensor:
    """Definition 3 of the paper, with its ramp over the turns in the original length rounded to whole pairs."""

    def pair_of(turns: float) -> float:
        return SIZE * math.log(ORIGINAL / (turns * 2 * math.pi)) / (2 * math.log(THETA))

    low, high = max(0, math.floor(pair_of(fast))), min(SIZE - 1, math.ceil(pair_of(slow)))
    stretched = ((torch.arange(SIZE // 2).double() - low) / (high - low)).clamp(0, 1)
    return PLAIN * (1 - stretched) + PLAIN / factor * stretched


EXPONENT = -INDEX / (SIZE - 2)


@pytest.mark.parametrize(
    ("kind", "length", "expected"),
    [
        ("pi", 64, PLAIN / 4),
        ("ntk", 64, PLAIN * 4**EXPONENT),
        ("dynamic-ntk", 32, PLAIN),
        ("dynamic-ntk", 128, PLAIN * (4 * 4 - 3) ** EXPONENT),
        ("yarn", 64, yarn_frequencies(4.0, 4.0, 1.0)),
        ("abf", 64, 500000.0 ** (-INDEX / SIZE)),
        ("eabf", 64, 500000.0 ** (-INDEX / SIZE)),
    ],
)
def test_frequencies_are_those_of_the_formula(kind: str, length: int, expected: torch.Tensor) -> None:
    torch.testing.assert_close(frequencies(extended(kind), length), expected, rtol=2e-6, atol=1e-9)


@pytest.mark.parametrize(("length", "factor"), [(20, 1), (32, 1), (33, 2), (64, 2), (100, 4), (400, 4)])
def test_clex_begins_as_ntk_for_the_length(length: int, factor: int) -> None:
    model = plain()
    rope.extend(model, SETTINGS["clex"])
    expected = PLAIN * (2 * factor - 1.0) ** EXPONENT
    torch.testing.assert_close(frequencies(model, length), expected, rtol=1e-5, atol=1e-8)


def test_clex_solves_its_equation() -> None:
    """Against the equation as the paper states it, in float64 and steps a hundred times as fine, by Euler's method."""
    rotary = extended("clex").get_decoder().rotary_emb
    up, down, z, h = rotary.inv_freq_up.detach().double(), rotary.inv_freq_down.detach().double(), PLAIN.log(), 0.0005
    for number in range(round(2 / h)):
        stretched = 2 * (1 + number * h) - 1
        ntk = (PLAIN * stretched**EXPONENT).log()
        z = z + h * (torch.tanh((z + ntk) @ up) @ down + 2 * EXPONENT / stretched)
    torch.testing.assert_close(rotary.frequencies(3).detach().double().log(), z, rtol=1e-3, atol=3e-3)


def test_queries_of_eabf_are_scaled_from_the_original_length_on() -> None:
    scale = eabf.query_scale(torch.tensor([[0, 30, 31, 63, 1023]]), ORIGINAL)[0, 0, :, 0]
    torch.testing.assert_close(scale, torch.tensor([1.0, 1.0, 1.0, 6 / 5, 2.0]))


@pytest.mark.parametrize("kind", ["dynamic-ntk", "clex"])
def test_below_the_original_length_nothing_changes(kind: str) -> None:
    model = extended(kind)
    logits(model, tokens(100))
    logits(model, tokens(1))  # transformers' dynamic NTK goes back at an input below the original length only
    torch.testing.assert_close(logits(model, tokens(ORIGINAL)), logits(plain(), tokens(ORIGINAL)), rtol=1e-5, atol=1e-4)


def test_below_the_original_length_eabf_is_abf() -> None:
    ids = tokens(2 * ORIGINAL)
    scaled, unscaled = logits(extended("eabf"), ids), logits(extended("abf"), ids)
    torch.testing.assert_close(scaled[:, :ORIGINAL], unscaled[:, :ORIGINAL])
    assert (scaled[:, ORIGINAL:] - unscaled[:, ORIGINAL:]).abs().max() > 1e-3


@pytest.mark.parametrize("kind", SETTINGS)
def test_an_extension_changes_what_is_beyond(kind: str) -> None:
    assert (logits(extended(kind), tokens(100)) - logits(plain(), tokens(100))).abs().max() > 1e-3


@pytest.mark.parametrize("kind", SETTINGS)
def test_generating_with_the_cache_is_a_full_forward(kind: str) -> None:
    """As far as the frequencies stay: dynamic NTK's change with each token beyond the original length."""
    model = extended(kind)
    ids = tokens(30 if kind == "dynamic-ntk" else 60)
    whole = logits(model, ids)
    with torch.inference_mode():
        first = model(input_ids=ids[:, :-3], use_cache=True)
        cached, outputs = first.past_key_values, [first.logits]
        for place in range(ids.shape[1] - 3, ids.shape[1]):
            step = model(input_ids=ids[:, place : place + 1], past_key_values=cached, use_cache=True)
            outputs.append(step.logits)
    torch.testing.assert_close(torch.cat(outputs, dim=1), whole, rtol=1e-4, atol=1e-4)


def test_clex_keeps_the_frequencies_of_a_request_until_it_ends() -> None:
    """A prompt just below a multiple of the original length, answered beyond it: its keys are cached as they were."""
    model = extended("clex")
    ids = tokens(70)
    with torch.inference_mode():
        first = model(input_ids=ids[:, :60], use_cache=True)
        step = model(input_ids=ids[:, 60:], past_key_values=first.past_key_values, use_cache=True)
    model.get_decoder().rotary_emb.max_factor = 2  # the factor of 60 tokens, for all 70
    torch.testing.assert_close(step.logits, logits(model, ids)[:, 60:], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", SETTINGS)
def test_a_saved_model_is_loaded_as_it_was(kind: str, tmp_path: Path) -> None:
    model = extended(kind)
    model.save_pretrained(tmp_path)
    loaded = load.load(tmp_path).eval()
    assert torch.equal(logits(loaded, tokens(100)), logits(model, tokens(100)))
    assert rope_depends_on_length(loaded) == (kind in ("dynamic-ntk", "clex"))


@pytest.mark.parametrize("kind", [kind for kind in SETTINGS if kind not in ("ntk", "abf")])  # those leave another theta
def test_what_is_extended_is_not_extended_again(kind: str) -> None:
    with pytest.raises(ValueError, match="extended already"):
        rope.extend(extended(kind), SETTINGS["pi"])


def test_lost_weights_of_clex_are_missed(tmp_path: Path) -> None:
    model = extended("clex")
    kept = {name: value for name, value in model.state_dict().items() if "rotary_emb" not in name}
    model.save_pretrained(tmp_path, state_dict=kept)
    with pytest.raises(ValueError, match=r"no model\.rotary_emb\.inv_freq_up and model\.rotary_emb\.inv_freq_down"):
        load.load(tmp_path)


def test_clex_draws_by_seed_and_step_alone() -> None:
    rotary = extended("clex").get_decoder().rotary_emb.train()
    x, ids = torch.zeros(1, 1), torch.arange(ORIGINAL).expand(3, -1)

    def drawn(seed: int, step: int) -> torch.Tensor:
        torch.manual_seed(step + 100)  # of no concern
        rotary.draw(seed, step)
        with torch.no_grad():
            return rotary(x, ids)[0]

    first = drawn(0, 5)
    assert first.shape == (3, ORIGINAL, SIZE)
    assert torch.equal(first[0], first[2])
    assert not torch.equal(first, drawn(0, 6)) and not torch.equal(first, drawn(1, 5))
    assert torch.equal(first, drawn(0, 5))


def test_positions_of_clex_are_distinct_ascending_and_reach_both_ends() -> None:
    rotary = extended("clex").get_decoder().rotary_emb.train()
    factors = set()
    for step in range(40):
        rotary.draw(0, step)
        positions, factor = rotary._random_positions(ORIGINAL)
        factors.add(factor)
        assert positions[0] == 0 and positions[-1] == ORIGINAL * factor - 1
        assert (positions.diff() >= 1).all()
    assert factors == {1, 2, 3, 4}


def test_all_weights_of_clex_have_a_gradient_at_every_step() -> None:
    model = extended("clex").train()
    rotary = model.get_decoder().rotary_emb
    for step in range(8):
        rotary.draw(0, step)
        rotary.inv_freq_up.grad = rotary.inv_freq_down.grad = None
        model(input_ids=tokens(ORIGINAL), labels=tokens(ORIGINAL), use_cache=False).loss.backward()
        assert rotary.inv_freq_up.grad is not None and rotary.inv_freq_down.grad is not None


def test_what_has_no_rotary_positions_is_refused() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=20, n_positions=32))
    with pytest.raises(ValueError, match=r"model\.rope = pi: GPT2LMHeadModel has no single set of rotary"):
        rope.extend(model, SETTINGS["pi"])


# ---- shifted sparse attention ---------------------------------------------------------------------------------------


def test_shifted_sparse_attention_is_masked_attention() -> None:
    """Against dense attention with the mask written out, head by head; no query sees a later key."""
    length, size = 32, 8
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, 4, length, 5, generator=generator)
    key, value = (torch.randn(2, 2, length, 5, generator=generator) for _ in "kv")
    allowed = torch.zeros(4, length, length, dtype=torch.bool)
    for q in range(length):
        for k in range(q + 1):
            allowed[:2, q, k] = q // size == k // size
            allowed[2:, q, k] = (q + size // 2) // size == (k + size // 2) // size
    module = torch.nn.Module()  # in training mode
    ours, _ = shifted_sparse.attention(module, query, key, value, None)
    dense = torch.nn.functional.scaled_dot_product_attention(
        query, key.repeat_interleave(2, 1), value.repeat_interleave(2, 1), attn_mask=allowed
    )
    torch.testing.assert_close(ours, dense.transpose(1, 2))


def test_a_model_trains_by_groups_and_is_measured_by_all(tmp_path: Path) -> None:
    ids = tokens(ORIGINAL)
    model = plain()
    shifted_sparse.use(model, ORIGINAL)
    assert torch.allclose(logits(model, ids), logits(plain(), ids), atol=1e-5)
    model.train()
    assert (logits(model, ids) - logits(plain(), ids))[:, -1].abs().max() > 1e-3
    model.save_pretrained(tmp_path)
    assert load.load(tmp_path).config._attn_implementation == "sdpa"


def test_a_length_that_makes_no_groups_is_refused() -> None:
    with pytest.raises(ValueError, match=r"lengths\.train 30 is no multiple of 8"):
        shifted_sparse.use(plain(), 30)
