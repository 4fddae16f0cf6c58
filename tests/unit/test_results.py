from __future__ import annotations

import io
import json
import math
import re
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import matplotlib.image
import matplotlib.style
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longshort.collecting import numbers
from longshort.collecting import runs as collecting_runs
from longshort.evaluation import scoring
from longshort.evaluation.prompts import TASKS
from longshort.metrics.catalog import BUCKETS
from longshort.results import (
    drawing,
    formats,
    long_table,
    plots,
    plots_compared,
    plots_lengths,
    plots_training,
    report,
    statistics,
    tables,
)
from tests.support.latex import assert_compiles

STYLE = Path(plots.__file__).with_name("longshort.mplstyle")
LENGTHS = [8, 16, 32]
DOCUMENTS = ["a", "b", "c"]
SEEDS = [0, 1]
ARMS = ["baseline", "constant", "twin", "broken", "step_linear"]
# Perplexity at 32 tokens, step 4, seeds 0 and 1; `twin` is the same run as `constant`, seed 1 of `broken` diverges.
PERPLEXITY = {"baseline": (10.0, 12.0), "constant": (9.0, 10.0), "broken": (1.0, 1.0), "step_linear": (9.5, 9.0)}


def make_study() -> dict[str, Any]:
    arms = []
    for name in ARMS:
        run = "constant" if name == "twin" else name
        control = "constant" if name == "step_linear" else None
        runs = {str(seed): f"{run}-{seed}" for seed in SEEDS}
        settings = {"alignment": {"alpha": float(name != "baseline"), "hidden": None}, "training": {"steps": 4}}
        about = {"description": f"the arm {name}", "control": control, "settings": settings}
        arms.append({"name": name, "runs": runs, **about})
    return {
        "name": "tiny",
        "title": "Tiny & quick",
        "question": "?",
        "l_train": 8,
        "steps": 4,
        "checkpoints": [2, 4],
        "seeds": SEEDS,
        "base": "base",
        "primary": "perplexity@32",
        "published": [],
        "settings": {"lengths": {"train": 8}},
        "arms": arms,
        "evaluations": {
            "perplexity": {"lengths": LENGTHS, "temperature_documents": 0},
            "misalignment": {"beyond": [2, 4], "grid_sequences": 3},
            "longbench_e": {},
        },
        "tables": [
            {"name": "main", "title": "All arms, 100 %", "arms": ARMS, "compare_with": "baseline"},
            {"name": "schedules", "title": "Schedules", "arms": ["constant", "step_linear"], "compare_with": "control"},
            *(
                {"name": kind, "title": kind, "arms": ARMS, "compare_with": "baseline", "columns": kind}
                for kind in ("tasks", "buckets", "lengths", "cost")
            ),
        ],
    }


def make_metrics() -> pd.DataFrame:
    rows: list[dict[str, Any]] = []

    def add(
        arm: str, seed: int, step: int, metric: str, value: float, length: int | None = None, task: str | None = None,
        document: str | None = None,
    ) -> None:  # fmt: skip
        run = "constant" if arm == "twin" else arm
        lost = run == "broken" and seed == 1 and step > 2
        rows.append(
            {
                "study": "tiny", "arm": arm, "seed": seed, "step": step, "metric": metric, "length": length,
                "task": task, "document": document, "value": float("nan") if lost else value, "n": 3,
                "status": "diverged" if lost else "ok", "protocol": f"{metric}/v1", "run_id": f"{run}-{seed}",
                "code": "c0de" * 8, "data": "da7a" * 8, "commit": "0123456789abcdef" * 2, "environment": "e" * 32,
            }
        )  # fmt: skip

    def evaluate(arm: str, seed: int, step: int, perplexity: float) -> None:
        for length in LENGTHS:
            scale = length / 32
            add(arm, seed, step, "perplexity", perplexity * scale**0.3 if length < 32 else perplexity, length)
            for place, document in enumerate(DOCUMENTS):  # their mean is that of all
                of_all = math.log(perplexity * scale**0.3 if length < 32 else perplexity)
                add(arm, seed, step, "nll", of_all + 0.1 * (place - 1), length, document=document)
            add(arm, seed, step, "accuracy", 1 / perplexity, length)
            add(arm, seed, step, "sce", 2 + perplexity * scale, length)
            add(arm, seed, step, "symkl", perplexity * scale / 100, length)
            add(arm, seed, step, "symkl_se", perplexity * scale / 1000, length)
        for short, long in combinations([4, *LENGTHS], 2):
            add(arm, seed, step, "sce_grid", 2 + perplexity * long / short, long, task=str(short))
            add(arm, seed, step, "symkl_grid", perplexity * long / short / 1000, long, task=str(short))
        add(arm, seed, step, "longbench_e", 2 * perplexity, task="overall")
        for task in TASKS:
            add(arm, seed, step, "longbench_e", 2 * perplexity, task=task)
            for place, document in enumerate(DOCUMENTS):
                add(arm, seed, step, "longbench_e", 2 * perplexity + place - 1, task=task, document=document)
        for bucket in BUCKETS:
            add(arm, seed, step, "longbench_e", 3 * perplexity, task=f"overall:{bucket}")

    evaluate(long_table.BASE, long_table.BASE_SEED, 0, 0.5)
    for arm in ARMS:
        for seed in (0, 1):
            perplexity = PERPLEXITY["constant" if arm == "twin" else arm][seed]
            for step in (2, 4):
                evaluate(arm, seed, step, perplexity + (4 - step))
            for step in range(1, 5):
                add(arm, seed, step, "train/ce", 3 - 0.1 * step - 0.01 * perplexity)
                add(arm, seed, step, "train/divergence", 0.1 / step)
                add(
                    arm,
                    seed,
                    step,
                    "train/alpha_output",
                    step / 4 if arm == "step_linear" else float(arm != "baseline"),
                )
                add(arm, seed, step, "train/alpha_hidden", 0.0)
    metrics = pd.DataFrame(rows)
    metrics["length"] = metrics["length"].astype("Int64")
    return metrics


@pytest.fixture(scope="module")
def metrics() -> pd.DataFrame:
    return make_metrics()


@pytest.fixture(scope="module")
def study() -> dict[str, Any]:
    return make_study()


def make_runs() -> pd.DataFrame:
    rows = []
    for arm, seed in [(long_table.BASE, long_table.BASE_SEED), *((arm, seed) for arm in ARMS for seed in SEEDS)]:
        for place, stage in enumerate(("training", "perplexity", "misalignment", "longbench_e")):
            lost = arm == "broken" and seed == 1
            rows.append(
                {
                    "arm": arm, "seed": seed, "run": f"{'constant' if arm == 'twin' else arm}-{seed}", "stage": stage,
                    "steps": "2-4", "status": "diverged" if lost else "ok", "spec": '{"seed": 0}', "log": "a.log",
                    "log_tail": "loss <nan>\nended" if lost else "finished", "hardware": "a processor",
                    "device_seconds": 360.0 * (1 + place), "planned_seconds": 300.0, "planned_from": "counted",
                    "tokens_per_second": 1000.0, "peak_memory_mb": 2048.0, "path": f"{stage}.json",
                }
            )  # fmt: skip
    return pd.DataFrame(rows, columns=[*collecting_runs.RUNS]).astype(collecting_runs.RUNS)


def tidy_of(metrics: pd.DataFrame, study: dict[str, Any], name: str = "main") -> pd.DataFrame:
    """Of the module's own metrics and study, which no test changes, each table once."""
    key = id(metrics), json.dumps(study), name
    if key not in TIDY:
        TIDY[key] = metrics, tables.tidy_table(metrics, study, tables.table_of(study, name))
    return TIDY[key][1].copy()


TIDY: dict[tuple[int, str, str], tuple[pd.DataFrame, pd.DataFrame]] = {}


def cell(tidy: pd.DataFrame, arm: str, column: str = "perplexity@32", step: int = 4) -> pd.Series:
    found = tidy[tidy["arm"].eq(arm) & tidy["column"].eq(column) & tidy["step"].eq(step)]
    assert len(found) == 1
    return found.iloc[0]


def line_of(markdown: str, arm: str, step: int) -> list[str]:
    """The cells of the arm's line at a checkpoint, in the first block of the table (or of what follows)."""
    at = None
    for line in markdown.split("\n\n")[1].splitlines():
        cells = [text.strip() for text in line.strip("|").split("|")]
        at = cells[0] or at
        if at == str(step) and cells[1] == arm:
            return cells
    raise AssertionError(f"no line of {arm} at step {step}")


def test_summary_by_hand_and_nan_stays_counted() -> None:
    assert statistics.summarise(pd.Series([1.0, 2.0, 6.0])) == (3.0, pytest.approx(7**0.5), 3, 0)
    summary = statistics.summarise(pd.Series([4.0, None, float("nan")]))
    assert summary[0] == 4.0 and np.isnan(summary.sd) and summary[2:] == (1, 2)
    assert np.isnan(statistics.summarise(pd.Series([None], dtype="float64")).mean)


def test_table_numbers_by_hand(metrics: pd.DataFrame, study: dict[str, Any]) -> None:
    row = cell(tidy_of(metrics, study), "constant")
    assert (row["mean"], row["n"], row["reference"]) == (9.5, 2, "baseline")
    assert row["sd"] == pytest.approx(0.5**0.5)
    # Perplexities differ by a factor: 9 / 10 with one seed, 10 / 12 with the other.
    factor = math.sqrt(9 / 10 * 10 / 12)
    assert row["difference"] == pytest.approx(100 * (factor - 1)) and row["difference_unit"] == "%"
    # All documents differ alike, so that the seeds alone say how much is chance: a t interval on one degree of freedom.
    half = 12.706204736 * abs(math.log(9 / 10) - math.log(10 / 12)) / 2
    assert row["low"] == pytest.approx(100 * (factor * math.exp(-half) - 1), rel=1e-6)
    assert (row["difference_n"], row["difference_documents"], row["sign_flip_p"]) == (2, 3, 0.5)
    misaligned = cell(tidy_of(metrics, study), "constant", "sce@8")  # 2 + perplexity / 4, without documents
    assert misaligned["difference"] == pytest.approx(-1.5 / 4) and pd.isna(misaligned["difference_unit"])
    assert misaligned["difference_sd"] == pytest.approx(0.5**0.5 / 4) and misaligned["difference_documents"] == 0
    controlled = cell(tidy_of(metrics, study, "schedules"), "step_linear")
    assert controlled["reference"] == "constant"
    assert controlled["difference"] == pytest.approx(100 * (math.sqrt(9.5 / 9 * 9 / 10) - 1))
    markdown = tables.format_table(metrics, study)
    assert line_of(markdown, "constant", 4)[5] == "_9.50_  ± 0.71"
    assert "**Step 4: difference to baseline**" in markdown and "-13.4 [" in markdown
    assert "constant for step_linear" in tables.format_table(metrics, study, "schedules")
    # The headline of LongBench-E is `overall`, never a task.
    assert cell(tidy_of(metrics, study), "constant", "longbench_e")["mean"] == 19.0
    assert cell(tidy_of(metrics, study, "buckets"), "constant", "longbench_e:8k+")["mean"] == 28.5
    # Thirteen tasks of three documents each, which differ as the tasks do.
    of_tasks = cell(tidy_of(metrics, study), "constant", "longbench_e")
    assert of_tasks["difference"] == pytest.approx(-3) and of_tasks["difference_documents"] == 39


def test_an_effect_is_claimed_of_the_primary_number_alone() -> None:
    """With five seeds: a clear difference gets its dagger, a null one `n. s.`, and no other column either."""
    metrics, study = make_metrics(), make_study()
    seeds = list(range(5))
    one = metrics[metrics["seed"].isin([0, -1])]
    noise = {"baseline": [0, 0.01, -0.01, 0.02, 0], "step_linear": [0.005, 0, 0.01, 0.01, -0.005]}
    copies = []
    for seed in seeds:
        factor = one["arm"].map(lambda arm, seed=seed: 1 + noise.get(arm, [0] * 5)[seed])
        same = one["arm"].eq("step_linear") & one["metric"].isin(["perplexity", "nll"])
        value = one["value"].where(
            ~same, one["value"] + one["metric"].map({"perplexity": 0.5, "nll": math.log(10 / 9.5)})
        )
        value = (value * factor).where(one["metric"].eq("perplexity"), value)
        value = (value + factor.map(math.log)).where(one["metric"].eq("nll"), value)
        copies.append(one.assign(seed=one["seed"].where(one["arm"].eq(long_table.BASE), seed), value=value))
    together = pd.concat([copies[0], *(c[c["arm"].ne(long_table.BASE)] for c in copies[1:])])
    study["seeds"] = seeds
    for arm in study["arms"]:
        arm["runs"] = {str(seed): f"{'constant' if arm['name'] == 'twin' else arm['name']}-{seed}" for seed in seeds}
    tidy = tidy_of(together, study)
    # constant 9 against 10 with every seed; step_linear, moved to 10, against 10.
    assert cell(tidy, "constant")["verdict"] == "yes" and cell(tidy, "step_linear")["verdict"] == "no"
    assert set(tidy.loc[tidy["verdict"].notna(), "column"]) == {"perplexity@32"}
    text = tables.format_table(together, study)
    # The legend; constant, its twin, and `broken`, whose perplexity is 1 with every seed here.
    assert text.count(formats.DAGGER) == 1 + 3 and "n. s." in text
    assert "for the 4 comparisons of this study's tables" in text
    # As an equivalence: the larger end of the joint interval, in the table's notes and in the report's answer.
    assert cell(tidy, "constant")["joint_low"] == pytest.approx(-12.3, abs=0.05)
    assert "constant to baseline differs by less than 13 %; twin" in text
    assert "[-12.3, -8.4] (differs by less than 13 %)" in report.answers(together, study)[0]
    # With two seeds nothing is claimed, whatever the numbers.
    assert tidy_of(make_metrics(), make_study())["verdict"].isna().all()


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (-2.25, 2.0, "differs by less than 2.3 %"),
        (-0.1, 99.1, "differs by less than 100 %"),
        (-0.00121, -0.001, "differs by less than 0.0013 %"),
        (0.0, 0.0, ""),
        (-1.0, math.inf, ""),
        (math.nan, math.nan, ""),
    ],
)
def test_an_equivalence_is_rounded_up(low: float, high: float, said: str) -> None:
    assert formats.equivalence(low, high, " %") == said


def test_one_seed_gives_differences_without_an_interval(metrics: pd.DataFrame, study: dict[str, Any]) -> None:
    alone = metrics[metrics["seed"].isin([0, long_table.BASE_SEED])]
    study = {**study, "seeds": [0]}
    row = cell(tidy_of(alone, study), "constant")
    assert row["difference"] == pytest.approx(-10) and row[["low", "high", "joint_low", "joint_high"]].isna().all()
    text = tables.format_table(alone, study)
    assert " -10.0 |" in text and "inf" not in text and "nan" not in text


def test_documents_that_one_arm_lacks_are_not_paired(metrics: pd.DataFrame, study: dict[str, Any]) -> None:
    lacking = metrics[~(metrics["arm"].eq("constant") & metrics["document"].eq("c") & metrics["metric"].eq("nll"))]
    row = cell(tidy_of(lacking, study), "constant")
    assert row["difference_documents"] == 0
    assert row["difference"] == pytest.approx(cell(tidy_of(metrics, study), "constant")["difference"])


def test_published_numbers_stand_beside_their_arm_alone(metrics: pd.DataFrame, study: dict[str, Any]) -> None:
    one = {"arm": "constant", "step": 4, "column": "longbench_e", "value": 26.6, "source": "the paper, Table 2"}
    study = {**study, "published": [one]}
    text = tables.format_table(metrics, study)
    lines = {arm: line_of(text, arm, 4) for arm in ("constant", "baseline")}
    assert lines["constant"][3] == "26.6" and lines["baseline"][3] == "" and "(the paper, Table 2)" in text
    assert "paper" not in tables.format_table(metrics, {**study, "published": []})


def test_costs_are_numbers_of_arm_and_seed(metrics: pd.DataFrame, study: dict[str, Any]) -> None:
    together = long_table.with_costs(metrics, make_runs(), 4)
    tidy = tidy_of(together, study, "cost")
    assert cell(tidy, "constant", "cost/training_hours")["mean"] == pytest.approx(0.1)
    assert cell(tidy, "constant", "cost/evaluation_hours")["mean"] == pytest.approx(0.9)
    assert cell(tidy, "constant", "cost/planned_hours")["mean"] == pytest.approx(1 / 3)
    text = tables.format_table(together, study, "cost", runs=make_runs())
    assert "Hardware: a processor." in text and "device memory" not in text and "**" not in text
    # They are no headline: nothing else in the tables is another.
    pd.testing.assert_frame_equal(tidy_of(together, study), tidy_of(metrics, study))


def test_a_table_that_was_edited_is_refused(metrics: pd.DataFrame, tmp_path: Path) -> None:
    numbers.publish(metrics, make_runs(), tmp_path / "metrics.parquet")
    assert len(long_table.read(tmp_path / "metrics.parquet")) == len(metrics)
    metrics.assign(value=metrics["value"] * 2).to_parquet(tmp_path / "metrics.parquet", index=False)
    with pytest.raises(ValueError, match="metrics.parquet is not the file that was collected; delete it"):
        long_table.read(tmp_path / "metrics.parquet")
    (tmp_path / "metrics.json").unlink()
    with pytest.raises(ValueError, match="metrics.json is missing, by which .*metrics.parquet is known; delete"):
        long_table.read(tmp_path / "metrics.parquet")


def test_the_names_of_tasks_and_buckets_are_those_of_the_evaluation() -> None:
    assert BUCKETS == scoring.BUCKETS


def test_best_and_second_are_marked_without_base_and_unfinished_arms(
    metrics: pd.DataFrame, study: dict[str, Any]
) -> None:
    tidy = tidy_of(metrics, study)
    best = tidy[tidy["best"] & tidy["step"].eq(4)].groupby("column")["arm"].agg(list)
    second = tidy[tidy["second"] & tidy["step"].eq(4)].groupby("column")["arm"].agg(list)
    # The base model (0.5) and the diverged arm (1.0) have the least perplexity, and take no part.
    assert best["perplexity@32"] == ["step_linear"] and second["perplexity@32"] == ["constant", "twin"]
    assert best["longbench_e"] == ["baseline"]
    markdown = tables.format_table(metrics, study)
    assert line_of(markdown, "step_linear", 4)[5].startswith("**9.25** ± ")
    assert "**" not in line_of(markdown, "(base)", 0)[5] + line_of(markdown, "constant", 4)[5]
    latex = formats.latex(tables.contents(metrics, study, tables.table_of(study, "main")), "label")
    assert r"\textbf{9.25} $\pm$ 0.35" in latex and r"\underline{9.50} $\pm$ 0.71" in latex and "$-$13.4 [" in latex


def test_diverged_and_missing_are_marked_never_dropped(metrics: pd.DataFrame, study: dict[str, Any]) -> None:
    tidy = tidy_of(metrics, study)
    assert cell(tidy, "broken", step=2)["status"] == "ok"
    lost = cell(tidy, "broken")
    assert (lost["status"], lost["n"]) == ("diverged (1 of 2)", 1)
    markdown = tables.format_table(metrics, study)
    assert line_of(markdown, "broken", 4)[5] == "1.00, diverged (1 of 2)"
    assert "Diverged: broken, seed 1 (no value from step 3 on)." in markdown
    # Rows that a diverged run never wrote are not taken for missing.
    unwritten = metrics[~(metrics["value"].isna() & ~metrics["metric"].eq("train/ce"))]
    assert cell(tidy_of(unwritten, study), "broken")["status"] == "diverged (1 of 2)"

    gone = metrics[~(metrics["arm"].eq("constant") | (metrics["arm"].eq("step_linear") & metrics["seed"].eq(1)))]
    markdown = tables.format_table(gone, study)
    assert line_of(markdown, "constant", 4)[5] == "missing"
    assert line_of(markdown, "step_linear", 4)[5] == "9.50, missing (1 of 2)"
    assert len(tidy_of(gone, study)) == len(tidy)
    # What a partial table is made from says why a number is not there.
    rows = gone[gone["arm"].eq("baseline") & gone["step"].eq(4)].drop_duplicates(["seed", "step"])
    for status, metric in {"failed": "perplexity", "running": "train/loss"}.items():
        why = rows.assign(arm="constant", metric=metric, value=float("nan"), status=status, length=pd.NA)
        text = tables.format_table(pd.concat([gone, why.astype(gone.dtypes.to_dict())]), study)
        assert line_of(text, "constant", 4)[5] == status
        assert line_of(text, "constant", 4)[2] == ("missing" if metric == "perplexity" else "running")


def test_notes(metrics: pd.DataFrame, study: dict[str, Any]) -> None:
    text = tables.format_table(metrics, study)
    for expected in [
        "n = 2 seeds (0, 1)",
        "all seeds share one base model",
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


def test_tasks_of_the_harness_are_columns(metrics: pd.DataFrame, study: dict[str, Any]) -> None:
    settings = {"tasks": ["hellaswag", "wikitext"], "lower_is_better": ["wikitext"]}
    study = {**study, "evaluations": {**study["evaluations"], "harness": settings}}
    of = metrics[metrics["metric"].eq("accuracy") & metrics["length"].eq(32)].assign(length=pd.NA)
    rows = [of.assign(metric=f"harness:{task}", value=1 - of["value"]) for task in settings["tasks"]]
    details = ["hellaswag:acc", "hellaswag:acc_stderr", "hellaswag:acc_norm", "wikitext:word_perplexity,x"]
    rows += [of.assign(metric="harness", task=task) for task in details]
    together = pd.concat([metrics, *rows]).astype({"length": "Int64"})
    tidy = tidy_of(together, study)
    assert cell(tidy, "baseline", "harness:hellaswag")["mean"] == pytest.approx(1 - (1 / 10 + 1 / 12) / 2)
    best = tidy[tidy["best"] & tidy["step"].eq(4)].groupby("column")["arm"].apply(set)
    assert best["harness:hellaswag"] == {"baseline"} and best["harness:wikitext"] == {"step_linear"}
    notes = tables.notes_of(together, study, tables.table_of(study, "main"), tidy)
    assert "Main metrics of lm_eval's tasks: hellaswag: acc; wikitext: word_perplexity,x." in notes
    # Nothing else in the tables is another.
    before = tidy_of(metrics, make_study())
    pd.testing.assert_frame_equal(tidy[~tidy["column"].str.startswith("harness")].reset_index(drop=True), before)


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
    numbers.publish(mixed, make_runs(), tmp_path / "metrics.parquet")
    place = f"{metric} at length {length}" if length else metric
    said = (
        rf"{place} holds .*'{metric}/v1'.*'{metric}/v2' \(twin\).*--forcerun {rule} --config study=tiny`.*two studies"
    )
    with pytest.raises(ValueError, match=said):
        long_table.read(tmp_path / "metrics.parquet")


def test_a_number_twice_is_refused(metrics: pd.DataFrame, tmp_path: Path) -> None:
    trained = metrics[metrics["metric"].str.startswith("train/")]
    twice = pd.concat([metrics, trained.head(1), metrics[metrics["metric"].eq("sce")].head(1)])
    numbers.publish(twice, make_runs(), tmp_path / "metrics.parquet")
    with pytest.raises(ValueError, match=r"sce of arm \(base\), seed -1, step 0, length 8 more than once"):
        long_table.read(tmp_path / "metrics.parquet")


def test_the_formats_agree(metrics: pd.DataFrame, study: dict[str, Any], tmp_path: Path) -> None:
    together = long_table.with_costs(metrics, make_runs(), 4)
    paths = tables.write_tables(together, study, tmp_path, make_runs())
    assert sorted(path.name for path in paths) == sorted(path.name for path in tmp_path.iterdir())
    for table in study["tables"]:
        name = table["name"]
        parquet = pd.read_parquet(tmp_path / f"{name}.parquet")
        csv = pd.read_csv(tmp_path / f"{name}.csv").astype(parquet.dtypes.to_dict())
        pd.testing.assert_frame_equal(parquet, csv, check_dtype=False)
        # The same cells; on a terminal what is too wide is divided.
        markdown = formats.markdown(tables.contents(together, study, table, make_runs()), 10**6)
        latex = (tmp_path / f"{name}.tex").read_text()
        assert latex.count("{") == latex.count("}")
        plain = latex.replace("$-$", "-").replace(r"$\pm$", "±").replace(r"\_", "_").replace(r"\%", "%")
        plain = re.sub(r"\\textbf{([^}]*)}", r"**\1**", plain)
        plain = re.sub(r"\\underline{([^}]*)}", r"_\1_", plain)
        rows = [line.split(" & ") for line in plain.splitlines() if line.endswith(r"\\") and " & " in line]
        written = [[text.strip(" \\") for text in row] for row in rows if row[1] != "arm"]
        lines = [line.strip("|").split("|") for line in markdown.splitlines() if line.startswith("|")]
        read = [[" ".join(text.split()) for text in line] for line in lines if line[1].strip(" -") not in ("arm", "")]
        assert written == [[text.strip() for text in line] for line in read]
        page = (tmp_path / f"{name}.html").read_text()
        cells = re.findall(r"<t[dh] (?:data-sort|scope=\"row\")[^>]*>(.*?)</t[dh]>", page)
        assert len(cells) == sum(len(row) for row in written)
        assert "http" not in page and "<script" not in page
    assert r"100 \%" in (tmp_path / "main.tex").read_text() and r"step\_linear" in (tmp_path / "main.tex").read_text()


@pytest.mark.latex
def test_latex_compiles_alone_and_in_a_paper(metrics: pd.DataFrame, study: dict[str, Any], tmp_path: Path) -> None:
    together = long_table.with_costs(metrics, make_runs(), 4)
    tables.write_tables(together, study, tmp_path, make_runs())
    assert_compiles(tmp_path, "tab:tiny-main")


def test_markdown_is_aligned_and_fits_a_terminal(metrics: pd.DataFrame, study: dict[str, Any]) -> None:
    long = {"perplexity": {"lengths": [2**power for power in range(3, 17)], "temperature_documents": 4}}
    wide = study | {"evaluations": study["evaluations"] | long}
    for block in tables.format_table(metrics, wide).split("\n\n")[1:-1]:
        widths = {len(line) for line in block.splitlines()}
        assert len(widths) == 1 and max(widths) <= formats.WIDTH


COMPARED = ["correlation", "tasks", "gain"]


def test_plots_are_drawn_repeatable_and_embed_fonts(
    metrics: pd.DataFrame, study: dict[str, Any], tmp_path: Path
) -> None:
    metrics = long_table.with_costs(metrics, make_runs(), 4)
    paths = plots.write_plots(metrics, study, tmp_path, STYLE)
    assert {path.name for path in paths} == {
        f"{name}.{suffix}"
        for name in [*("perplexity", "misalignment", "misalignment-grid", "training", "schedules"), *COMPARED]
        for suffix in ("pdf", "png")
    }
    for path in paths:
        content = path.read_bytes()
        if path.suffix == ".png":
            picture = matplotlib.image.imread(io.BytesIO(content), format="png")
            colours = np.unique((picture[..., :3] * 255).astype("int64") @ [65536, 256, 1])
            assert len(colours) > 50 and picture.shape[1] == 2100
        else:
            assert b"/FontFile2" in content and b"/Type3" not in content and b"CreationDate" not in content
    with matplotlib.style.context(STYLE, after_reset=True):
        again = drawing.figure_bytes(plots_training.draw_schedules(metrics, study))
    assert again == {suffix: (tmp_path / f"schedules.{suffix}").read_bytes() for suffix in ("pdf", "png")}


def test_plots_name_every_arm(metrics: pd.DataFrame, study: dict[str, Any]) -> None:
    gone = metrics[~metrics["arm"].eq("step_linear")]
    texts = [
        text.get_text()
        for axes in plots_lengths.draw_against_length(gone, study, "perplexity").axes
        for text in axes.texts
    ]
    for label in ["baseline", "constant = twin", "broken\ndiverged (1 of 2)", "step_linear\nmissing"]:
        assert texts.count(label) == 2  # once a panel
    figure = plots_training.draw_training(gone, study)
    assert "step_linear: missing" in [text.get_text() for text in figure.axes[1].texts]


def test_bands_are_the_intervals_of_the_table(metrics: pd.DataFrame, study: dict[str, Any]) -> None:
    """constant is the second arm that is drawn; its interval at 32 tokens is that of the table."""
    figure = plots_lengths.draw_against_length(metrics, study, "perplexity")
    row = cell(tidy_of(metrics, study), "constant")
    band = figure.axes[1].collections[1].get_paths()[0].vertices
    ends = band[band[:, 0] == 32][:, 1]
    assert (ends.min(), ends.max()) == (pytest.approx(row["low"]), pytest.approx(row["high"]))


def test_points_of_the_correlation_are_runs_once(metrics: pd.DataFrame, study: dict[str, Any]) -> None:
    points = plots_compared.points(metrics, study)
    # Four different runs x two seeds x two checkpoints; a diverged run has no number at its last one.
    assert len(points) == 16 and points["symkl"].notna().sum() == 15 and "twin" not in set(points["arm"])
    row = points[points["arm"].eq("constant") & points["seed"].eq(0) & points["step"].eq(4)].iloc[0]
    assert row["loss"] == pytest.approx(3 - 0.1 * 3.5 - 0.09)  # steps 3 and 4
    longest = max(study["evaluations"]["perplexity"]["lengths"])
    assert (row[f"log perplexity at {longest}"], row["LongBench-E (%)"]) == (9.0, 18.0)


def test_misalignment_inside_is_not_joined_to_beyond(metrics: pd.DataFrame, study: dict[str, Any]) -> None:
    l_train = study["l_train"]
    for axes in plots_lengths.draw_misalignment(metrics, study).axes:
        lines = [line.get_xdata() for line in axes.get_lines() if line.get_transform() == axes.transData]
        ends = [(min(x), max(x)) for x in map(np.asarray, lines) if len(x) > 1 and x.min() > 1]
        assert all(low > 1.5 * l_train or high < 1.5 * l_train for low, high in ends)


def test_grid_and_standard_errors_are_no_headlines(metrics: pd.DataFrame, study: dict[str, Any]) -> None:
    assert not long_table.headlines(metrics)["metric"].str.endswith("_grid").any()
    without = metrics[~metrics["metric"].str.contains("_grid|_se")]
    assert len(without) < len(metrics)
    for name in ("main", "schedules"):
        assert tables.format_table(metrics, study, name) == tables.format_table(without, study, name)
    figures = [drawing.figure_bytes(plots_lengths.draw_misalignment(rows, study))["png"] for rows in (metrics, without)]
    assert figures[0] == figures[1]


def test_grid_by_hand(metrics: pd.DataFrame, study: dict[str, Any]) -> None:
    grids = plots_lengths.grids_of(metrics, study)
    assert list(grids) == [long_table.BASE, "baseline", "constant", "broken", "step_linear"]
    mean, status = grids["baseline"]
    assert (list(mean.index), list(mean.columns), status) == ([4, 8, 16], [8, 16, 32], "ok")
    # Perplexities 10 and 12 at the last checkpoint: 11 on the mean, times 32 / 8 / 1000.
    assert mean.loc[8, 32] == pytest.approx(0.044)
    assert mean.isna().sum(axis=None) == 3 and np.isnan(mean.loc[16, 8])
    assert grids["broken"][1] == "diverged (1 of 2)" and grids["broken"][0].loc[8, 32] == pytest.approx(0.004)
    figure = plots_lengths.draw_misalignment_grid(metrics, study)
    titles = [axes.get_title(loc="left") or axes.get_title() for axes in figure.axes]
    assert titles == ["base model", "baseline", "constant = twin", "broken", "step_linear", ""]
    texts = [text.get_text() for text in figure.axes[1].texts]
    assert texts == ["0.022", "0.044", "0.088", "0.022", "0.044", "0.022"]
    gone = metrics[~(metrics["metric"].eq("symkl_grid") & metrics["arm"].eq("baseline"))]
    assert [text.get_text() for text in plots_lengths.draw_misalignment_grid(gone, study).axes[1].texts] == ["missing"]


@pytest.mark.parametrize("value", [0.0, 1e-300, float("nan"), None])
def test_a_grid_of_equal_distributions_or_of_nothing_is_drawn(
    metrics: pd.DataFrame, study: dict[str, Any], value: float | None
) -> None:
    of_grid = metrics["metric"].eq("symkl_grid")
    rows = metrics[~of_grid] if value is None else metrics.assign(value=metrics["value"].where(~of_grid, value))
    figure = plots_lengths.draw_misalignment_grid(rows, study)
    drawing.figure_bytes(figure)
    texts = {text.get_text() for text in figure.axes[0].texts}
    assert texts == ({"missing"} if value is None or np.isnan(value) else {plots_lengths.short_number(value)})


def test_numbers_of_the_grid_are_short() -> None:
    values = [0, 1e-300, 0.00012, 0.0012, 0.096, 0.1, 1.04, 9.96, 12.3, 123.4]
    written = ["0", "1e-300", "1e-4", "0.0012", "0.096", "0.10", "1.0", "10", "12", "123"]
    assert [plots_lengths.short_number(value) for value in values] == written


def test_curves_far_above_the_rest_get_their_own_axis() -> None:
    curves = {name: pd.Series(values) for name, values in {"a": [1.0, 2.0], "b": [9.0, 8.5], "c": [2.0, 1.0]}.items()}
    assert plots_training.far_above(curves) == ["b"]
    assert plots_training.far_above({"a": curves["a"], "c": curves["c"]}) == [] == plots_training.far_above({})


def test_looks_are_distinct_in_grey_too() -> None:
    names = [f"arm{number}" for number in range(30)]
    study = {"arms": [{"name": name, "runs": {"0": name}} for name in names], "tables": []}
    looks = drawing.looks_of(study).values()
    assert len({(look.marker, str(look.line)) for look in looks}) == 30
    assert len({(look.colour, str(look.line)) for look in looks}) == 30


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.floats(0.01, 0.2))
def test_labels_do_not_overlap(wanted: list[float], height: float) -> None:
    places = drawing.spread_apart(wanted, [height] * len(wanted), 0.0, 1.0)
    gap = min(height, 1 / max(len(wanted) - 1, 1))
    ordered = sorted(places)
    assert all(after - before > gap - 1e-9 for before, after in pairwise(ordered))
    assert ordered[0] > -1e-9 and ordered[-1] < 1 + 1e-9
    assert all(places[i] < places[j] for i in range(len(wanted)) for j in range(len(wanted)) if wanted[i] < wanted[j])


def test_labels_that_have_room_stay() -> None:
    assert drawing.spread_apart([0.9, 0.1, 0.5], [0.1] * 3, 0, 1) == pytest.approx([0.9, 0.1, 0.5])
    # Two at one place part evenly: the least movement.
    assert drawing.spread_apart([0.5, 0.5], [0.1, 0.1], 0, 1) == pytest.approx([0.45, 0.55])
