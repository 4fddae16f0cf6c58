"""Means, spreads and paired differences over seeds.

Everything here is descriptive: without an interval or a test, nothing here supports a claim of significance.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd

# The least p of an exact two-sided sign-flip test over n pairs is 2 / 2^n: 0.0625 at 5 seeds, 0.03125 at 6.
SEEDS_FOR_A_TEST = 6


class Summary(NamedTuple):
    mean: float
    sd: float
    n: int
    absent: int


def summarise(values: pd.Series) -> Summary:
    """Mean and sample standard deviation (n - 1) of one number per seed, in the unit of `values`.

    NaN and None are left out of mean and sd and counted in `absent`: n + absent is always the number of seeds
    asked for. Without a value the mean is NaN; with fewer than two, so is the sd.
    """
    numbers = values.astype("float64").to_numpy()
    present = numbers[~np.isnan(numbers)]
    absent = len(numbers) - len(present)
    if len(present) == 0:
        return Summary(float("nan"), float("nan"), 0, absent)
    mean = float(present.mean())
    finite = bool(np.isfinite(present).all())
    sd = float(present.std(ddof=1)) if finite and len(present) > 1 else float("nan")
    return Summary(mean, sd, len(present), absent)


def paired_difference(values: pd.Series, reference: pd.Series) -> Summary:
    """Mean, sd and n of values - reference, seed by seed (the index of both).

    Only seeds that both have count; one that only one of them has is counted in `absent`.
    """
    return summarise(values.astype("float64") - reference.astype("float64"))
