"""Context extension: closed forms, what stays equal below the original length, the KV cache, saving and loading."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from longshort.data.streams import generator
from longshort.evaluation.forward import rope_depends_on_length
from longshort.models import load, rope
from longshort.models.rope import eabf, shifted_sparse
from longshort.models.settings import ABF, CLEX, EABF, Interpolation, YaRN

ORIGINAL = 32  # tokens
THETA, SIZE = 10000.0, 16  # of a head
INDEX = torch.arange(0, SIZE, 2, dtype=torch.float64)
PLAIN = THETA ** (-INDEX / SIZE)
SETTINGS: dict[str, Any] = {
    "pi": Interpolation(kind="pi", factor=4.0),
    "ntk": Interpolation(kind="ntk", factor=4.0),
    "dynamic-ntk": Interpolation(kind="dynamic-ntk", factor=4.0),
    "yarn": YaRN(kind="yarn", factor=4.0, beta_fast=4.0, beta_slow=0.5),
    "abf": ABF(kind="abf", theta=500000.0),
    "eabf": EABF(kind="eabf", plain_layers=1),
    "clex": CLEX(kind="clex", max_factor=4, time_step=0.05, draws_per="step"),
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


def extended(kind: str, **changes: Any) -> PreTrainedModel:
    model = plain()
    rope.extend(model, SETTINGS[kind].model_copy(update=changes), seed=3)
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
        ("yarn", 64, yarn_frequencies(4.0, 4.0, 0.5)),
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


@pytest.mark.parametrize(("plain_layers", "scaled"), [(0, [True, True]), (1, [False, True]), (2, [False, False])])
def test_eabf_scales_all_blocks_but_the_first(plain_layers: int, scaled: list[bool]) -> None:
    """Against the same blocks by plain attention, whose query projections are multiplied by hand."""
    model, ids = extended("eabf", plain_layers=plain_layers), tokens(2 * ORIGINAL)
    by_hand = extended("abf")
    scale = (torch.arange(1.0, 2 * ORIGINAL + 1).log() / math.log(ORIGINAL)).clamp(min=1)[None, :, None]
    for layer, is_scaled in zip(by_hand.get_decoder().layers, scaled, strict=True):
        if is_scaled:
            layer.self_attn.q_proj.register_forward_hook(lambda module, given, queries: queries * scale)
    torch.testing.assert_close(logits(model, ids), logits(by_hand, ids), rtol=1e-4, atol=1e-4)


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


def turning_a_quarter() -> PreTrainedModel:
    """GPT-NeoX, as all Pythias are."""
    torch.manual_seed(0)
    shape = {"hidden_size": 4 * SIZE, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = GPTNeoXConfig(**shape, vocab_size=50, max_position_embeddings=ORIGINAL, initializer_range=0.2)
    assert config.rope_parameters["partial_rotary_factor"] == 0.25
    return GPTNeoXForCausalLM(config).eval()


@pytest.mark.parametrize("kind", SETTINGS)
def test_a_part_of_a_head_that_is_turned_stays_that_part(kind: str, tmp_path: Path) -> None:
    """Where a method leaves the frequencies as they are, the logits are; and a saved model is loaded as it was."""
    model, ids = turning_a_quarter(), tokens(ORIGINAL)
    before, same = logits(model, ids), {"abf": {"theta": THETA}, "eabf": {"theta": THETA}, "pi": {"factor": 1.0}}
    rope.extend(model, SETTINGS[kind].model_copy(update=same.get(kind, {})))
    if kind not in ("ntk", "yarn"):
        torch.testing.assert_close(logits(model, ids), before, rtol=1e-5, atol=1e-5)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(load.load(tmp_path).eval(), tokens(100)), logits(model, tokens(100)))


def test_ntk_takes_the_size_of_what_is_turned() -> None:
    model = turning_a_quarter()
    rope.extend(model, SETTINGS["ntk"])
    size = SIZE // 4
    expected = (THETA * 4 ** (size / (size - 2))) ** (-torch.arange(0, size, 2) / size)
    torch.testing.assert_close(model.get_decoder().rotary_emb.inv_freq, expected)


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


def test_clex_draws_for_every_window_whatever_the_micro_batch() -> None:
    """The rows of a forward are the first views of its windows, then the second ones."""
    rotary = extended("clex", draws_per="window").get_decoder().rotary_emb.train()
    ids = torch.arange(ORIGINAL)[None]

    def drawn(seed: int, step: int, samples: list[int], views: int = 2) -> torch.Tensor:
        torch.manual_seed(step + 100)  # of no concern
        rotary.draw(seed, step, samples)
        with torch.no_grad():
            cos, sin = rotary(torch.zeros(views * len(samples), ORIGINAL, 1), ids)
        return torch.stack([cos, sin], dim=1).expand(views * len(samples), -1, -1, -1)

    whole = drawn(0, 5, [8, 9, 10, 11])
    assert whole.shape == (8, 2, ORIGINAL, SIZE)
    assert torch.equal(whole[:4], whole[4:])
    assert len({row.numpy().tobytes() for row in whole}) == 4
    parts = [drawn(0, step, samples) for step, samples in enumerate([[8], [9, 10], [11]])]
    assert torch.equal(torch.cat([part[: len(part) // 2] for part in parts]), whole[:4])
    assert torch.equal(drawn(0, 6, [8], views=1), whole[:1]) and not torch.equal(drawn(1, 5, [8], views=1), whole[:1])
    rotary.draw(0, 5, [8, 9])
    with pytest.raises(RuntimeError, match="ahead of each forward"):
        rotary(torch.zeros(3, ORIGINAL, 1), ids)


def test_a_batch_with_clex_is_the_mean_of_its_micro_batches() -> None:
    """Loss and gradients, its own weights' among them; the two views of a window see one t and the same positions."""
    windows = tokens(2 * ORIGINAL, rows=4)
    views = torch.stack([windows[:, :ORIGINAL], windows[:, 5 : ORIGINAL + 5]])

    def gradients(batches: list[list[int]]) -> dict[str, torch.Tensor]:
        model = extended("clex", draws_per="window").train()
        for samples in batches:
            model.get_decoder().rotary_emb.draw(0, 0, [sample + 40 for sample in samples])
            ids = views[:, samples].flatten(0, 1)
            (model(input_ids=ids, labels=ids, use_cache=False).loss / len(batches)).backward()
        return {name: parameter.grad for name, parameter in model.named_parameters()}

    whole = gradients([[0, 1, 2, 3]])
    assert all(gradient.abs().max() > 0 for gradient in whole.values())
    for batches in ([[0, 1], [2, 3]], [[0], [1], [2], [3]]):
        for name, gradient in gradients(batches).items():
            torch.testing.assert_close(gradient, whole[name], rtol=1e-3, atol=1e-5)


def test_a_window_is_read_by_the_positions_and_the_t_of_its_own_number() -> None:
    """Two windows in one forward, against each read alone by angles made here from what was drawn."""
    model = extended("clex", draws_per="window").train()
    rotary, ids = model.get_decoder().rotary_emb, tokens(ORIGINAL)
    samples = next([n, n + 1] for n in range(40) if len({t_of(rotary, n), t_of(rotary, n + 1), 1}) == 3)
    rotary.draw(0, 0, samples)
    with torch.no_grad():
        cos, _ = rotary(torch.zeros(2, ORIGINAL, 1), torch.arange(ORIGINAL)[None])
        for row, sample in enumerate(samples):
            positions, t = rotary._random_positions(ORIGINAL, generator("clex window", 0, sample))
            assert positions[-1] == t * ORIGINAL - 1
            expected = torch.outer(positions, rotary.frequencies(t)).cos()
            torch.testing.assert_close(cos[row, :, : SIZE // 2], expected)
        together = model(input_ids=ids, use_cache=False).logits
        for row, sample in enumerate(samples):
            rotary.draw(0, 0, [sample])
            alone = model(input_ids=ids[row : row + 1], use_cache=False).logits
            torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-4, atol=1e-4)


def t_of(rotary: Any, sample: int) -> int:
    return rotary._random_positions(ORIGINAL, generator("clex window", 0, sample))[1]


def test_clex_draws_by_seed_and_step_alone() -> None:
    """With draws_per: step, as runs were trained whose specification does not say."""
    rotary = extended("clex").get_decoder().rotary_emb.train()
    x, ids = torch.zeros(3, 1), torch.arange(ORIGINAL)[None]

    def drawn(seed: int, step: int) -> torch.Tensor:
        torch.manual_seed(step + 100)  # of no concern
        rotary.draw(seed, step, [7, 8, 9])
        with torch.no_grad():
            return rotary(x, ids)[0]

    first = drawn(0, 5)
    assert first.shape == (1, ORIGINAL, SIZE)  # of all rows
    assert not torch.equal(first, drawn(0, 6)) and not torch.equal(first, drawn(1, 5))
    assert torch.equal(first, drawn(0, 5))


def test_positions_of_clex_are_distinct_ascending_and_reach_both_ends() -> None:
    rotary = extended("clex").get_decoder().rotary_emb.train()
    factors = set()
    for step in range(40):
        positions, factor = rotary._random_positions(ORIGINAL, generator("clex", 0, step))
        factors.add(factor)
        assert positions[0] == 0 and positions[-1] == ORIGINAL * factor - 1
        assert (positions.diff() >= 1).all()
    assert factors == {1, 2, 3, 4}


def test_positions_of_a_view_beyond_the_original_length_stay_below_t_times_that() -> None:
    """The last one goes back by less than a token, as in CLEX's own code."""
    rotary = extended("clex").get_decoder().rotary_emb
    positions, factor = rotary._random_positions(4 * ORIGINAL, generator("clex", 0, 0))
    assert len(positions) == 4 * ORIGINAL and positions.max() < factor * ORIGINAL
    assert (positions[:-1].diff() >= 1 / 4).all()


@pytest.mark.parametrize(("draws_per", "drawn"), [("step", ("clex", 3, 5)), ("window", ("clex window", 3, 7))])
def test_a_training_draws_by_its_seed(draws_per: str, drawn: tuple[str, int, int]) -> None:
    model = extended("clex", draws_per=draws_per)
    rope.at_forward(model, 3)(5, [7])
    assert model.get_decoder().rotary_emb._drawn == [drawn]


def test_clex_begins_with_the_weights_of_its_seed() -> None:
    def weights(seed: int) -> torch.Tensor:
        model = plain()
        rope.extend(model, SETTINGS["clex"], seed)
        return model.get_decoder().rotary_emb.inv_freq_up

    assert torch.equal(weights(1), weights(1)) and not torch.equal(weights(1), weights(0))


def test_all_weights_of_clex_have_a_gradient_at_every_step() -> None:
    model = extended("clex").train()
    rotary = model.get_decoder().rotary_emb
    for step in range(8):
        rotary.draw(0, step, [])
        rotary.inv_freq_up.grad = rotary.inv_freq_down.grad = None
        model(input_ids=tokens(ORIGINAL), labels=tokens(ORIGINAL), use_cache=False).loss.backward()
        assert rotary.inv_freq_up.grad is not None and rotary.inv_freq_down.grad is not None


def test_what_has_no_rotary_positions_is_refused() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=20, n_positions=32))
    with pytest.raises(ValueError, match=r"model\.rope = pi: GPT2LMHeadModel has no single set of rotary"):
        rope.extend(model, SETTINGS["pi"])


# ---- shifted sparse attention ---------------------------------------------------------------------------------------


def test_clex_refuses_positions_that_are_laid_out_otherwise() -> None:
    """Of a part of each head it knows the size; of pairs of neighbours it would turn each feature at another speed."""
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 32}
    model = CohereForCausalLM(CohereConfig(vocab_size=50, pad_token_id=0, bos_token_id=1, eos_token_id=1, **shape))
    with pytest.raises(ValueError, match="clex: CohereForCausalLM lays its rotary positions out otherwise"):
        rope.extend(model, SETTINGS["clex"])


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
    ours, _ = shifted_sparse.attention(module, query, key, value, None, scaling=0.3)
    dense = torch.nn.functional.scaled_dot_product_attention(
        query, key.repeat_interleave(2, 1), value.repeat_interleave(2, 1), attn_mask=allowed, scale=0.3
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
