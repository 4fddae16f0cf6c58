"""The sequences of the synthetic study, their views and targets, and the inverse mappings."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from longshort.synthetic.tasks import BEGIN, PARAMETERISATIONS, at, second_view, targets, training_batch
from longshort.synthetic.tasks import test_batch as fixed_batch


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
