"""Two studies side by side."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from longshort.errors import UserError
from longshort.results import agreement
from tests.support.results import SEEDS, make_metrics, make_study


def results(folder: Path, metrics: pd.DataFrame) -> agreement.Side:
    """As another machine's: without the record beside it."""
    folder.mkdir()
    metrics.to_parquet(folder / "metrics.parquet", index=False)
    (folder / "study.json").write_text(json.dumps(make_study()))
    return agreement.read(folder / "metrics.parquet")


def test_two_studies_side_by_side(tmp_path: Path) -> None:
    metrics = make_metrics()
    # On the other machine `constant` is worse by half: of other texts, without what single documents say.
    moved = metrics[metrics["document"].isna()].copy()
    worse = moved["arm"].eq("constant") & moved["metric"].eq("perplexity")
    moved.loc[worse, "value"] *= 1.5
    one, other = results(tmp_path / "one", metrics), results(tmp_path / "other", moved)
    frame, overall = agreement.against(one, one)
    assert frame.loc[frame["p"].notna(), "agree"].all() and overall["p"] == 1 and overall["chi_square"] == 0
    frame, overall = agreement.against(one, other)
    row = frame.set_index(["arm", "reference"]).loc[("constant", "baseline")]
    spread = np.var([math.log(9 / 10), math.log(10 / 12)], ddof=1) / len(SEEDS)
    assert row["error"] == pytest.approx(math.sqrt(2 * spread))
    assert row["difference_b"] == pytest.approx(100 * (1.5 * (1 + row["difference_a"] / 100) - 1))
    assert row["p"] < 0.05 and not row["agree"]
    assert overall["effects"] == frame["p"].notna().sum() and overall["p"] < 1
    text = agreement.text(frame, overall, one, other)
    assert " no |" in text and "another base was not drawn" in text
    assert text.count("came without the record beside its metrics.parquet") == 2
    assert set(agreement.against(one, other, every_column=True)[0]["column"]) > {"perplexity@32", "longbench_e"}
    with pytest.raises(UserError, match="gone/metrics.parquet does not exist"):
        agreement.read(tmp_path / "gone/metrics.parquet")
