"""Schedules of alpha: multipliers as pure functions of (step, total steps, lengths).

The arm states the weights of its terms, a schedule multiplies them. With u = step / (steps - 1), step = 0..steps-1:

    linear            start + (end - start) u
    cosine            start + (end - start) (1 - cos(pi u)) / 2
    exponential       start (end / start)^u
    ratio             (l_test / l_train)^power, the same at every step
    ratio-curriculum  (l_test(u) / l_train)^power with l_test(u) = l_train + u (l_test - l_train)
    view-ratio        proportional to (l_train + l_extra) / l_train of the step's own views, mean 1 over the steps
    view-gap          proportional to l_extra / l_train, likewise

Why schedules at all: Theorem 4.1 of "Long-Short Alignment" (arXiv 2506.11769) bounds the test error by
C1 L_misalign + C2 L_train + C0, where C1 / C2 grows with the test length.
"""

from __future__ import annotations

import math


def progress(step: int, steps: int) -> float:
    """u in [0, 1]: the share of the training that lies behind step (0 where there is one step only)."""
    return step / (steps - 1) if steps > 1 else 0.0


def linear(step: int, steps: int, start: float, end: float) -> float:
    return start + (end - start) * progress(step, steps)


def cosine(step: int, steps: int, start: float, end: float) -> float:
    return start + (end - start) * (1.0 - math.cos(math.pi * progress(step, steps))) / 2.0


def exponential(step: int, steps: int, start: float, end: float) -> float:
    return start * (end / start) ** progress(step, steps)


def ratio(l_test: int, l_train: int, power: float) -> float:
    return (l_test / l_train) ** power


def ratio_curriculum(step: int, steps: int, l_test: int, l_train: int, power: float) -> float:
    reached = l_train + progress(step, steps) * (l_test - l_train)
    return (reached / l_train) ** power


def view_ratio(extras: list[int], l_train: int) -> list[float]:
    return scaled_to_mean([(l_train + extra) / l_train for extra in extras], 1.0)


def view_gap(extras: list[int], l_train: int) -> list[float]:
    return scaled_to_mean([extra / l_train for extra in extras], 1.0)


def mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


def scaled_to_mean(values: list[float], target: float) -> list[float]:
    """The same shape with mean `target`, so that no schedule wins by using more alpha than its control."""
    factor = target / mean(values)
    return [value * factor for value in values]


def rounded(values: list[float]) -> list[float]:
    """12 significant digits: two machines whose libm differs in the last bit agree on the values, hence on the run."""
    return [float(f"{value:.12g}") for value in values]
