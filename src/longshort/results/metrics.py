"""The long table of a study, as tables and plots read it."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from longshort.results import statistics

# The base model before fine-tuning stands in the table as an arm of its own, at step 0.
BASE, BASE_SEED = "(base)", -1


def read_metrics(path: Path) -> pd.DataFrame:
    """The long table of results; the columns are those of DESIGN, section Results.

    Raises:
        ValueError: a column is absent, a number is there twice, or two protocols share a column.
    """
    metrics = pd.read_parquet(path)
    needed = "arm seed step metric length task document value status protocol code commit environment".split()
    absent = [name for name in needed if name not in metrics.columns]
    if absent:
        raise ValueError(f"{path} has no column {', '.join(absent)}: it is no metrics table; collect the results again")
    metrics["length"] = metrics["length"].astype("Int64")
    statistics.headlines(metrics)
    statistics.refuse_mixed_protocols(metrics)
    return metrics
