"""Models that train together, their alignment and their errors."""

from __future__ import annotations

import math

import pytest
import torch

from longshort.synthetic.model import Transformer
from longshort.synthetic.study import GroupSpec
from longshort.synthetic.tasks import second_view, training_batch
from longshort.synthetic.tasks import test_batch as fixed_batch
from longshort.synthetic.train import Group, _rate

SPEC = GroupSpec.model_validate(
    {
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
)


def train_by_hand(group: Group) -> None:
    """A group's training without its loop: AdamW, at each step the gradient of that step alone and its own rate."""
    weights, training = [weight.requires_grad_() for weight in group.weights.values()], group.spec.training
    optimizer = torch.optim.AdamW(weights)
    for step in range(training.steps):
        optimizer.param_groups[0]["lr"] = training.learning_rate * _rate(step, training)
        gradients = torch.autograd.grad(group.losses(group.weights, step).sum(), weights)
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = gradient
        optimizer.step()


@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_models_that_train_together_are_what_each_alone_would_be(alpha: float) -> None:
    spec = SPEC.model_copy(update={"alpha": alpha})
    together = Group(spec)
    together.train(lambda _: None)
    for place, (name, seed) in enumerate(together.members):
        alone = Group(spec.model_copy(update={"parameterisations": [name], "seeds": [seed]}))
        before = {key: value.clone() for key, value in alone.weights.items()}
        train_by_hand(alone)
        for key, value in alone.weights.items():
            torch.testing.assert_close(together.weights[key][place], value[0], rtol=1e-3, atol=1e-5)
        assert any(not torch.equal(before[key], value) for key, value in alone.weights.items())


def test_the_loss_is_the_squared_error_of_what_is_predicted_and_the_alignment_that_of_two_views() -> None:
    group, aligned = Group(SPEC), Group(SPEC.model_copy(update={"alpha": 0.5}))
    losses = group.losses(group.weights, 3).detach()
    added = aligned.losses(aligned.weights, 3).detach() - losses
    for place, (name, seed) in enumerate(group.members):
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
        wanted = batch.lengths.float().log() if name == "log" else batch.lengths
        assert losses[place].item() == pytest.approx((views[0] - wanted).square().mean().item(), rel=1e-3)
        assert added[place].item() == pytest.approx(0.5 * (views[0] - views[1]).square().mean().item(), rel=1e-3)


def test_the_learning_rate_rises_in_the_warmup_and_falls_to_0_by_a_cosine() -> None:
    rates = [_rate(step, SPEC.training) for step in range(SPEC.training.steps + 1)]
    assert rates[:3] == [0.5, 1, 1] and (rates[5], rates[8]) == (pytest.approx(0.5), pytest.approx(0))


def test_errors_are_those_of_the_mapped_back_and_capped_predictions() -> None:
    cap = 0.9
    group = Group(SPEC.model_copy(update={"parameterisations": ["identity", "log", "inverse-sqrt"], "cap": cap}))
    found = group.test().set_index(["parameterisation", "seed", "length"])["value"]
    tokens = fixed_batch(3, 9).tokens
    for name, seed in group.members:
        torch.manual_seed(seed)
        raw = Transformer("rope", 8, 2, 2, 10)(tokens)[:, 1:].detach()
        inverse = torch.where(raw > 0, raw**-2, math.inf)  # a prediction below 0 stands for any length
        predicted = {"identity": raw, "log": raw.exp(), "inverse-sqrt": inverse}[name]
        assert name == "identity" or (predicted > cap).any()
        predicted = predicted.clamp(max=cap)
        for length in (1, 6, 9):
            expected = (predicted[:, length - 1] - length).square().mean().item()
            assert found[name, seed, length] == pytest.approx(expected, rel=1e-4)
