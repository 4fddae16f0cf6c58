"""Two studies side by side."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from longshort.cli import app
from longshort.collecting import numbers
from longshort.errors import UserError
from longshort.records.publish import Altered, sealed, write_json, write_record
from longshort.results import agreement, compare
from tests.support.results import make_metrics, make_runs, make_study


def results(folder: Path, metrics: pd.DataFrame, **given: Any) -> agreement.Side:
    """As another machine's: without the record beside it. given: of its study."""
    folder.mkdir()
    metrics.to_parquet(folder / "metrics.parquet", index=False)
    seeds = sorted(int(seed) for seed in metrics["seed"].unique())
    study = {**make_study(), "seeds": seeds, "bases": {str(seed): "base" for seed in seeds}}
    for arm in study["arms"]:
        run = "constant" if arm["name"] == "twin" else arm["name"]
        arm["runs"] = {str(seed): f"{folder.name} {run}-{seed}" for seed in seeds}
    (folder / "study.json").write_text(json.dumps({**study, **given}))
    return agreement.read(folder / "metrics.parquet")


def of_three_seeds() -> pd.DataFrame:
    """The third is the first, but for `constant`, whose perplexities are lower by a tenth."""
    metrics = make_metrics()
    third = metrics[metrics["seed"].eq(0)].assign(seed=2)
    lower = third["arm"].isin(["constant", "twin"])
    third.loc[lower & third["metric"].eq("perplexity"), "value"] *= 0.9
    third.loc[lower & third["metric"].eq("nll"), "value"] += math.log(0.9)
    return pd.concat([metrics, third], ignore_index=True)


def test_two_studies_side_by_side(tmp_path: Path) -> None:
    metrics = of_three_seeds()
    # On the other machine `constant` is worse by half: of other texts, without what single documents say.
    moved = metrics[metrics["document"].isna()].copy()
    worse = moved["arm"].eq("constant") & moved["metric"].eq("perplexity")
    moved.loc[worse, "value"] *= 1.5
    one, other = results(tmp_path / "one", metrics), results(tmp_path / "other", moved)
    frame, overall = agreement.against(one, one)
    assert frame.loc[frame["p"].notna(), "agree"].all() and overall["p"] == 1 and overall["chi_square"] == 0
    frame, overall = agreement.against(one, other)
    row = frame.set_index(["arm", "reference"]).loc[("constant", "baseline")]
    spread = np.var([math.log(9 / 10), math.log(10 / 12), math.log(0.9 * 9 / 10)], ddof=1) / 3
    assert row["error"] == pytest.approx(math.sqrt(2 * spread))
    assert row["difference_b"] == pytest.approx(100 * (1.5 * (1 + row["difference_a"] / 100) - 1))
    assert row["p"] < 0.05 and not row["agree"]
    # step_linear to baseline is step_linear to constant and constant to baseline.
    assert overall["effects"] == frame["p"].notna().sum() - 1 and overall["p"] < 1
    text = agreement.text(frame, overall, one, other)
    assert " no |" in text and "another base was not drawn" in text
    assert text.count("came without the record beside its metrics.parquet") == 2
    # What else was measured is shown, and is no further evidence.
    every, of_the_primary = agreement.against(one, other, every_column=True)
    assert set(every["column"]) > {"perplexity@32", "longbench_e"} and of_the_primary == overall
    with pytest.raises(UserError, match="gone/metrics.parquet does not exist"):
        agreement.read(tmp_path / "gone/metrics.parquet")


def test_documents_that_one_side_alone_holds_are_not_counted(tmp_path: Path) -> None:
    """As when a study is held against what was published of it, without documents but of the primary number."""
    metrics = of_three_seeds()
    of_one = metrics["document"].eq("a") & metrics["arm"].eq("constant") & metrics["metric"].eq("nll")
    metrics.loc[of_one, "value"] += 0.3
    one = results(tmp_path / "one", metrics)
    pair = ["arm", "reference"]
    errors = {}
    for name, there in {
        "without": metrics[metrics["document"].isna()],
        "others": metrics.assign(document=metrics["document"] + " of another corpus", data="other"),
        "other texts of the same names": metrics.assign(data="other"),
    }.items():
        frame, _ = agreement.against(one, results(tmp_path / name, there))
        errors[name] = frame.set_index(pair).loc[("constant", "baseline"), "error"]
    spread = np.var([math.log(9 / 10), math.log(10 / 12), math.log(0.9 * 9 / 10)], ddof=1) / 3
    assert errors["without"] == pytest.approx(math.sqrt(2 * spread))
    of_documents = np.var([0.3, 0.0, 0.0], ddof=1) / 3
    assert errors["others"] == pytest.approx(math.sqrt(2 * (spread + of_documents)))
    assert errors["other texts of the same names"] == errors["others"]


def test_what_two_studies_share_and_what_they_do_not_is_said(tmp_path: Path) -> None:
    metrics = of_three_seeds()
    one = results(tmp_path / "one", metrics)
    study = json.loads((tmp_path / "one/study.json").read_text())
    frame, overall = agreement.against(one, one)
    runs = len({run for arm in study["arms"] for run in arm["runs"].values()})
    assert f"{runs} runs (of {runs} and {runs}) are the same in A and B" in agreement.text(frame, overall, one, one)
    # Where its model lies in another folder all names are other ones; other texts at one path leave them as they are.
    elsewhere = results(tmp_path / "elsewhere", metrics)
    text = agreement.text(*agreement.against(one, elsewhere), one, elsewhere)
    assert re.search(rf"1\d runs \(of {runs} and {runs}\) are the same in A and B", text), text
    moved = metrics.assign(value=metrics["value"] + 0.5, data="other")
    texts = one._replace(metrics=moved, numbers=compare.Numbers(moved, one.study))
    assert "the same in A and B: every p" not in agreement.text(*agreement.against(one, texts), one, texts)
    loss = metrics["metric"].eq("train/ce")
    for factor, are_the_same in ((1.001, True), (1.1, False)):  # by another processor; by other code
        there = metrics.assign(value=metrics["value"].where(~loss, factor * metrics["value"]))
        again = one._replace(metrics=there, numbers=compare.Numbers(there, one.study))
        text = agreement.text(*agreement.against(one, again), one, again)
        assert (f"{runs} runs (of {runs} and {runs}) are the same" in text) == are_the_same
    for arm in study["arms"]:
        if arm["name"] == "constant":
            arm["settings"]["alignment"]["alpha"] = 7.0
    arms = [{**arm, "runs": {seed: f"its {run}" for seed, run in arm["runs"].items()}} for arm in study["arms"]]
    protocols = metrics["protocol"].replace("perplexity/v1", "perplexity/v2")
    other = results(tmp_path / "other", metrics.assign(protocol=protocols, value=metrics["value"] + 0.5))
    other = other._replace(study={**study, "arms": arms, "l_train": 4})
    text = agreement.text(*agreement.against(one, other), one, other)
    assert "The training length is 8 in A and 4 in B." in text and "the same in A and B: every p" not in text
    assert "Measured by two protocols, perplexity/v1 and perplexity/v2: PPL 32." in text
    assert "Not the same alignment in A and B, though of one name: constant." in text


def test_two_draws_have_no_p_and_a_seed_that_is_absent_is_counted(tmp_path: Path) -> None:
    metrics = of_three_seeds()
    moved = metrics[metrics["document"].isna()].copy()
    moved.loc[moved["arm"].eq("constant") & moved["metric"].eq("perplexity"), "value"] *= 1.5
    one = results(tmp_path / "one", metrics)
    frame, overall = agreement.against(one, results(tmp_path / "two", moved[moved["seed"].ne(2)]))
    assert frame["p"].dropna().eq(1).all() and frame["difference_b"].notna().any()
    lacking = moved.drop(moved.index[moved["arm"].eq("baseline") & moved["seed"].eq(2)])
    other = results(tmp_path / "lacking", lacking)
    assert " (n = 2)" in agreement.text(*agreement.against(one, other), one, other)


def test_a_study_that_was_edited_or_is_of_later_than_its_numbers_is_refused(tmp_path: Path) -> None:
    metrics, study = make_metrics(), {**make_study(), "steps_key": "2-4", "base_steps": 4}
    study["evaluations"] = {name: {**asked, "id": name} for name, asked in study["evaluations"].items()}
    numbers.publish(metrics, make_runs(), tmp_path / "metrics.parquet", study)
    write_record(tmp_path / "study.json", study)
    assert agreement.read(tmp_path).study == study
    write_json(tmp_path / "study.json", {**sealed(study), "margin": 50})
    with pytest.raises(Altered, match="study.json is not the record that was published"):
        agreement.read(tmp_path)
    write_record(tmp_path / "study.json", {**study, "margin": 50})
    with pytest.raises(UserError, match="is of the study as it was before study.json was written"):
        agreement.read(tmp_path)


def test_what_is_said_for_scripts_is_json(tmp_path: Path) -> None:
    """Where no p is known, too: JSON has no NaN."""
    results(tmp_path / "one", make_metrics())
    done = CliRunner().invoke(app, ["compare", *[str(tmp_path / "one")] * 2, "--json"])
    assert done.exit_code == 0 and "NaN" not in done.output and json.loads(done.output)["overall"]["effects"] >= 0
