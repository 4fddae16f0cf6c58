"""What is said below a table."""

from __future__ import annotations

import re
from typing import Any

import pandas as pd

from longshort.results import tables


def test_notes(metrics: pd.DataFrame, study: dict[str, Any]) -> None:
    text = tables.format_table(metrics, study)
    for expected in [
        "n = 2 seeds (0, 1)",
        "Another base was not drawn: all runs start from one base model",
        "cannot come below p = 0.5, so that it cannot show significance",
        "Below 3 seeds no effect is claimed",
        "twin is the same run as constant: trained once, shown in both rows.",
        "Protocol perplexity/v1 (perplexity).",
        "Commit: 0123456789.",
        "judge alignment by symKL",
    ]:
        assert expected in text
    assert "Mixed" not in text
    mixed = metrics.copy()
    mixed.loc[mixed["arm"].eq("twin") & mixed["metric"].eq("sce"), "environment"] = "f" * 32
    assert re.search(
        r"Mixed columns \(SCE 8\), made by more than one environment: .*f{10} \(twin\)",
        tables.format_table(mixed, study),
    )


def test_trainings_that_are_not_there_yet_are_not_called_mixed(metrics: pd.DataFrame, study: dict[str, Any]) -> None:
    trained = metrics[metrics["metric"].eq("train/ce")].assign(metric="train/loss")
    absent = trained["arm"].eq("baseline")
    for environment, mixed in {"": False, "f" * 32: True}.items():
        those = trained.assign(environment=trained["environment"].mask(absent, environment))
        text = tables.format_table(pd.concat([metrics, those]), study)
        assert ("Mixed trainings: baseline by ffffffffff." in text) is mixed is ("Mixed trainings" in text)
