"""What is refused of a long table, and which of its numbers are no headlines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from longshort.collecting import numbers
from longshort.results import drawing, long_table, plots_lengths, tables
from tests.support.results import make_runs


def test_a_table_that_was_edited_is_refused(metrics: pd.DataFrame, tmp_path: Path) -> None:
    numbers.publish(metrics, make_runs(), tmp_path / "metrics.parquet", {})
    assert len(long_table.read(tmp_path / "metrics.parquet")) == len(metrics)
    metrics.assign(value=metrics["value"] * 2).to_parquet(tmp_path / "metrics.parquet", index=False)
    with pytest.raises(ValueError, match="metrics.parquet is not the file that was collected; delete it"):
        long_table.read(tmp_path / "metrics.parquet")
    (tmp_path / "metrics.json").unlink()
    with pytest.raises(ValueError, match="metrics.json is missing, by which .*metrics.parquet is known; delete"):
        long_table.read(tmp_path / "metrics.parquet")


@pytest.mark.parametrize(
    ("metric", "length", "rule"),
    [("symkl", 16, "misalignment"), ("perplexity", 16, "perplexity"), ("longbench_e", None, "longbench_e")],
)
def test_two_protocols_in_a_column_are_refused(
    metric: str, length: int | None, rule: str, metrics: pd.DataFrame, tmp_path: Path
) -> None:
    mixed = metrics.copy()
    at = mixed["length"].eq(length).fillna(False) if length else mixed["length"].isna()
    mixed.loc[mixed["arm"].eq("twin") & mixed["metric"].eq(metric) & at, "protocol"] = f"{metric}/v2"
    numbers.publish(mixed, make_runs(), tmp_path / "metrics.parquet", {})
    place = f"{metric} at length {length}" if length else metric
    said = (
        rf"{place} holds .*'{metric}/v1'.*'{metric}/v2' \(twin\).*--forcerun {rule} --config study=tiny`.*two studies"
    )
    with pytest.raises(ValueError, match=said):
        long_table.read(tmp_path / "metrics.parquet")


def test_a_number_twice_is_refused(metrics: pd.DataFrame, tmp_path: Path) -> None:
    trained = metrics[metrics["metric"].str.startswith("train/")]
    twice = pd.concat([metrics, trained.head(1), metrics[metrics["metric"].eq("sce")].head(1)])
    numbers.publish(twice, make_runs(), tmp_path / "metrics.parquet", {})
    with pytest.raises(ValueError, match=r"sce of arm \(base\), seed -1, step 0, length 8 more than once"):
        long_table.read(tmp_path / "metrics.parquet")


def test_grid_and_standard_errors_are_no_headlines(metrics: pd.DataFrame, study: dict[str, Any]) -> None:
    assert not long_table.headlines(metrics)["metric"].str.endswith("_grid").any()
    without = metrics[~metrics["metric"].str.contains("_grid|_se")]
    assert len(without) < len(metrics)
    for name in ("main", "schedules"):
        assert tables.format_table(metrics, study, name) == tables.format_table(without, study, name)
    figures = [drawing.figure_bytes(plots_lengths.draw_misalignment(rows, study))["png"] for rows in (metrics, without)]
    assert figures[0] == figures[1]
