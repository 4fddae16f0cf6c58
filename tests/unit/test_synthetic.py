"""The synthetic study: its sequences, the inverse mappings, the model, batched training, what its numbers come to."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from torch import Tensor
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from longshort.synthetic import results
from longshort.synthetic.model import ENCODINGS, Transformer, _bias, _turned, _turns
from longshort.synthetic.tasks import (
    BEGIN,
    PARAMETERISATIONS,
    at,
    second_view,
    targets,
    training_batch,
)
from longshort.synthetic.tasks import (
    test_batch as fixed_batch,
)
from longshort.synthetic.train import Group

SPEC: dict[str, Any] = {
    "task": "length",
    "encoding": "rope",
    "parameterisations": ["identity", "log"],
    "alpha": 0.0,
    "seeds": [0, 1],
    "lengths": {"train": 6, "test": 9},
    "model": {"features": 8, "layers": 2, "heads": 2},
    "training": {"steps": 8, "batch": 4, "learning_rate": 1e-2, "warmup_steps": 2},
    "test_sequences": 3,
    "cap": 90.0,
}


def sequences(tokens: Tensor, lengths: Tensor) -> list[list[int]]:
    return [row[1 : 1 + length] for row, length in zip(tokens.tolist(), lengths.tolist(), strict=True)]


def test_lengths_are_uniform_and_sequences_are_zeros_and_ones() -> None:
    batches = [training_batch(0, step, 50, 10) for step in range(200)]
    lengths = np.concatenate([batch.lengths for batch in batches])
    assert stats.chisquare(np.bincount(lengths, minlength=11)[1:]).pvalue > 1e-3
    for batch in batches:
        assert (batch.tokens[:, 0] == BEGIN).all() and batch.tokens.shape == (50, 11)
        inside = torch.arange(10) < batch.lengths[:, None]
        assert set(batch.tokens[:, 1:][inside].tolist()) == {0, 1} and not batch.tokens[:, 1:][~inside].any()
    means = torch.cat([at(targets("mean", batch.tokens), batch.lengths) for batch in batches])
    assert 0.45 < means.mean() < 0.55 and (means < 0.1).any() and (means > 0.9).any()


def test_a_batch_depends_on_seed_and_step_alone() -> None:
    batch = training_batch(3, 7, 5, 10)
    assert all(torch.equal(*pair) for pair in zip(batch, training_batch(3, 7, 5, 10), strict=True))
    assert not torch.equal(batch.tokens, training_batch(3, 8, 5, 10).tokens)
    assert not torch.equal(batch.tokens, training_batch(4, 7, 5, 10).tokens)
    assert torch.equal(fixed_batch(4, 9).tokens, fixed_batch(4, 9).tokens)


def test_the_second_view_is_the_sequence_without_its_beginning() -> None:
    seen = set()
    for step in range(100):
        batch = training_batch(0, step, 20, 10)
        view = second_view(batch)
        for whole, end, extra in zip(sequences(*batch[:2]), sequences(*view[:2]), batch.extra.tolist(), strict=True):
            assert end == whole[extra:] and (view.tokens[:, 0] == BEGIN).all()
            assert 1 <= extra <= len(whole) // 2 or (extra, len(whole)) == (0, 1)
            seen.add((len(whole), extra))
        beyond = torch.arange(10) >= view.lengths[:, None]
        assert not view.tokens[:, 1:][beyond].any()
    assert seen == {(1, 0)} | {(length, extra) for length in range(2, 11) for extra in range(1, length // 2 + 1)}


def test_targets_are_those_of_every_beginning() -> None:
    tokens = fixed_batch(5, 12).tokens
    for row, sequence in enumerate(tokens[:, 1:].tolist()):
        means = [sum(sequence[:length]) / length for length in range(1, 13)]
        assert targets("mean", tokens)[row].tolist() == pytest.approx(means)
        assert targets("length", tokens)[row].tolist() == list(range(1, 13))


@pytest.mark.parametrize(
    ("name", "of_nine"), [("identity", 9), ("sqrt", 3), ("log", math.log(9)), ("inverse-sqrt", 1 / 3)]
)
def test_parameterisations_are_mapped_back(name: str, of_nine: float) -> None:
    one = PARAMETERISATIONS[name]
    lengths = torch.arange(1.0, 501.0, dtype=torch.float64)
    assert one.forward(torch.tensor(9.0)).item() == pytest.approx(of_nine)
    torch.testing.assert_close(one.inverse(one.forward(lengths)), lengths)
    anything = one.inverse(torch.linspace(-5, 5, 101))
    assert not anything.isnan().any() and (name == "identity" or (anything >= 0).all())


def test_a_prediction_of_nothing_is_no_length_or_an_unbounded_one() -> None:
    assert PARAMETERISATIONS["sqrt"].inverse(torch.tensor([-2.0, 0.0])).tolist() == [0.0, 0.0]
    assert PARAMETERISATIONS["inverse-sqrt"].inverse(torch.tensor([-2.0, 0.0])).tolist() == [math.inf, math.inf]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_prediction_sees_its_beginning_alone(encoding: str) -> None:
    torch.manual_seed(0)
    model = Transformer(encoding, 8, 2, 2, 10)
    tokens = fixed_batch(3, 9).tokens
    whole = model(tokens)
    for length in range(1, 11):
        torch.testing.assert_close(model(tokens[:, :length]), whole[:, :length])


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_without_an_encoding_one_block_sees_no_order(encoding: str) -> None:
    torch.manual_seed(0)
    model = Transformer(encoding, 8, 1, 2, 10)
    tokens = torch.tensor([[BEGIN, 0, 1, 1, 0, 1]])
    swapped = tokens[:, [0, 2, 1, 3, 4, 5]]
    assert torch.allclose(model(tokens)[:, 3:], model(swapped)[:, 3:], atol=1e-6) == (encoding == "none")


def test_encodings_are_those_of_their_papers() -> None:
    torch.manual_seed(0)
    states, (cos, sin) = torch.randn(2, 4, 7, 6), _turns(7, 6)
    expected, _ = apply_rotary_pos_emb(states, states, cos[None], sin[None])
    torch.testing.assert_close(_turned(states, (cos, sin)), expected)
    assert cos[3, 1].item() == pytest.approx(math.cos(3 * 10_000 ** (-2 / 6)))
    bias = _bias(3, 4)
    assert bias[:, 2, 0].tolist() == pytest.approx([-2 * 2.0**-2, -2 * 2.0**-4, -2 * 2.0**-6, -2 * 2.0**-8])
    assert bias[0, 0].tolist() == [0, -math.inf, -math.inf] and _bias(3, 0)[0, 2].tolist() == [0, 0, 0]


@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_models_that_train_together_are_what_each_alone_would_be(alpha: float) -> None:
    spec = SPEC | {"alpha": alpha}
    together = Group(spec)
    together.train(lambda _: None)
    for place, (name, seed) in enumerate(together.members):
        alone = Group(spec | {"parameterisations": [name], "seeds": [seed]})
        before = {key: value.clone() for key, value in alone.weights.items()}
        alone.train(lambda _: None)
        for key, value in alone.weights.items():
            torch.testing.assert_close(together.weights[key][place], value[0], rtol=1e-3, atol=1e-5)
        assert any(not torch.equal(before[key], value) for key, value in alone.weights.items())


def test_the_alignment_is_the_squared_difference_of_two_views() -> None:
    group, aligned = Group(SPEC), Group(SPEC | {"alpha": 0.5})
    added = (aligned.losses(aligned.weights, 3) - group.losses(group.weights, 3)).detach()
    for place, (_, seed) in enumerate(group.members):
        batch = training_batch(seed, 3, 4, 6)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = Transformer("rope", 8, 2, 2, 10)
        views = [
            torch.stack(
                [model(view.tokens[row : row + 1, : 1 + length])[0, -1] for row, length in enumerate(view.lengths)]
            )
            for view in (batch, second_view(batch))
        ]
        assert added[place].item() == pytest.approx(0.5 * (views[0] - views[1]).square().mean().item(), rel=1e-3)


def test_errors_are_those_of_the_mapped_back_and_capped_predictions() -> None:
    group = Group(SPEC)
    found = group.test().set_index(["parameterisation", "seed", "length"])["value"]
    tokens = fixed_batch(3, 9).tokens
    for name, seed in group.members:
        torch.manual_seed(seed)
        raw = Transformer("rope", 8, 2, 2, 10)(tokens)[:, 1:].detach()
        predicted = raw.exp().clamp(max=90) if name == "log" else raw
        for length in (1, 6, 9):
            expected = (predicted[:, length - 1] - length).square().mean().item()
            assert found[name, seed, length] == pytest.approx(expected, rel=1e-4)


def test_a_diverged_model_is_said_and_the_others_are_shown() -> None:
    study = {"name": "s", "tasks": ["length"], "encodings": ["none"], "seeds": [0, 1], "alpha": None, "cap": 90}
    study |= {"lengths": {"train": 3, "test": 6}, "training": {"steps": 5}, "test_sequences": 2}
    rows = [
        {"arm": arm, "seed": seed, "length": length, "value": math.nan if (arm, seed) == ("log", 1) else length / 2}
        for arm in ("identity", "log")
        for seed in (0, 1)
        for length in range(1, 7)
    ]
    metrics = pd.DataFrame(rows).assign(task="length", encoding="none", protocol="p", commit="c")
    made = results.tables(metrics, study)
    for name, (table, _) in made.items():
        said = {arm: cells[0].number for _, arm, cells in table.panels[0].rows}
        assert said.pop("log" if name == "parameterisations" else "length, log") == "diverged"
        assert all(float(number) for number in said.values())
    assert "none" not in str(results.answers(metrics, study)) and "diverged" in results.answers(metrics, study)[-1]
    lines = results.draw_error(metrics, study).axes[1].lines
    assert any(np.isfinite(np.asarray(line.get_ydata(), float)).all() for line in lines)


def test_growth_and_intervals_by_hand() -> None:
    lengths = np.arange(1, 51)
    errors = pd.DataFrame({seed: 3 + (seed + 1) * (lengths - 10.0) ** 2 for seed in range(3)}, index=lengths)
    errors.loc[:10] = 1e6  # the trained lengths are no part of the fit
    found = results.growth(errors, 10)
    assert found.slope.mean == pytest.approx(2) and found.r2.mean == pytest.approx(1)
    assert found.slope.high - 2 == pytest.approx(4.302653 / math.sqrt(3), rel=1e-5)
    three = results.geometric(np.array([1.0, 10.0, 100.0]))
    assert three.mean == pytest.approx(10)
    assert math.log10(three.high) == pytest.approx(1 + 4.302653 / math.sqrt(3), rel=1e-5)
    assert math.isnan(results.geometric(np.array([2.0])).low)
