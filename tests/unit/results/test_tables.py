"""Numbers of tables by hand, and what they say of what is missing, diverged, mixed or best."""

from __future__ import annotations

import math
from statistics import fmean, stdev
from typing import Any

import pandas as pd
import pytest

from longshort.errors import UserError
from longshort.evaluation.prompts import TASKS
from longshort.results import answers, columns, compare, components, formats, long_table, report, tables
from longshort.results.notes import exact_test, notes_of
from tests.support.results import cell, line_of, make_metrics, make_runs, make_study, tidy_of


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


def test_every_task_counts_alike_whatever_the_number_of_its_documents(
    metrics: pd.DataFrame, study: dict[str, Any]
) -> None:
    """As in the macro mean beside it: 12 tasks lose 3 points, and the one of three times as many documents gains 10."""
    of_task = metrics["metric"].eq("longbench_e") & metrics["task"].eq(TASKS[0]) & metrics["document"].notna()
    rows = metrics[of_task & metrics["arm"].isin(["baseline", "constant"])]
    more = [metrics, *(rows.assign(document=rows["document"] + again) for again in ("2", "3"))]
    more = pd.concat(more, ignore_index=True)
    more.loc[more["task"].eq(TASKS[0]) & more["arm"].eq("constant"), "value"] += 13
    more.loc[more["metric"].eq("longbench_e") & more["task"].eq("overall") & more["arm"].eq("constant"), "value"] += 1
    row, reference = (cell(tidy_of(more, study), arm, "longbench_e") for arm in ("constant", "baseline"))
    assert row["difference_documents"] == 13 * 3 + 6
    assert row["difference"] == pytest.approx((12 * -3 + 10) / 13)
    assert row["difference"] == pytest.approx(row["mean"] - reference["mean"])


def with_five_seeds() -> tuple[pd.DataFrame, dict[str, Any]]:
    """The perplexity of constant is 9 with every seed, of step_linear and baseline 10, give or take a per cent."""
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
    study |= {"seeds": seeds, "bases": {str(seed): "base" for seed in seeds}}
    for arm in study["arms"]:
        arm["runs"] = {str(seed): f"{'constant' if arm['name'] == 'twin' else arm['name']}-{seed}" for seed in seeds}
    return together, study


def test_an_effect_is_claimed_of_the_primary_number_alone() -> None:
    """A clear difference gets its dagger, a null one `n. s.`, and no other column either."""
    together, study = with_five_seeds()
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
    assert "[-12.3, -8.4] (differs by less than 13 %)" in answers.answers(together, study)[0]
    # With two seeds nothing is claimed, whatever the numbers.
    assert tidy_of(make_metrics(), make_study())["verdict"].isna().all()


@pytest.mark.parametrize(
    ("primary", "verdict"),
    [
        ("longbench_e", "worse"),
        *(pytest.param(name, "better", marks=pytest.mark.wide) for name in ("perplexity@32", "symkl@32")),
    ],
)
def test_any_number_may_be_the_primary_one(primary: str, verdict: str) -> None:
    """One in per cent, one in nats, one in points: it alone is claimed, and all pages speak of it. All are lower for
    constant than for baseline, which of points is a loss."""
    together, study = with_five_seeds()
    together, study["primary"] = long_table.with_costs(together, make_runs(), 4), primary
    tidy = tidy_of(together, study)
    assert set(tidy.loc[tidy["verdict"].notna(), "column"]) == {primary}
    row = cell(tidy, "constant", primary)
    relative = next(column.relative for column in columns.columns_of(study) if column.key == primary)
    assert row["difference_unit"] == "%" if relative else pd.isna(row["difference_unit"])
    for table in study["tables"]:
        assert f"### {table['title']}" in tables.format_table(together, study, table["name"])
    first = answers.answers(together, study)[0]
    assert first.startswith("Alignment") and f": {verdict}: constant to baseline" in first
    assert "constant to baseline" in report.page(together, make_runs(), study, [])


@pytest.mark.parametrize("lost", [0, 4])
def test_an_effect_that_lacks_a_seed_of_the_reference_is_no_claim(lost: int) -> None:
    """The arm itself is whole: its cell says of how many pairs the difference is, each of the two of one seed."""
    together, study = with_five_seeds()
    lacking = together["arm"].eq("baseline") & together["seed"].eq(lost) & together["step"].eq(4)
    tidy = tidy_of(together[~lacking], study)
    pairs = [(1.005, 1), (1, 1.01), (1.01, 0.99), (1.01, 1.02), (0.995, 1)]
    logs = [math.log(one / other) for seed, (one, other) in enumerate(pairs) if seed != lost]
    half = 3.182446305 * stdev(logs) / 2  # t on three degrees of freedom: all documents differ alike
    row = cell(tidy, "step_linear")
    assert row["difference"] == pytest.approx(100 * math.expm1(fmean(logs)))
    assert row["low"] == pytest.approx(100 * math.expm1(fmean(logs) - half), rel=1e-6)
    row = cell(tidy, "constant")
    assert (row["status"], row["n"], row["difference_n"]) == ("ok", 5, 4) and pd.isna(row["verdict"])
    text = tables.format_table(together[~lacking], study)
    assert "] (n = 4)" in text and text.count(formats.DAGGER) == 1


def test_an_end_of_an_interval_that_is_not_0_is_not_shown_as_0() -> None:
    together, study = with_five_seeds()
    tidy = tidy_of(together, study)
    at = tidy["arm"].eq("constant") & tidy["column"].eq("perplexity@32") & tidy["step"].eq(4)
    tidy.loc[at, ["difference", "joint_low", "joint_high"]] = -0.385, -0.767, -0.003
    table = tables.table_of(study, "main")
    assert f"-0.385 [-0.767, -0.003] {formats.DAGGER}" in formats.markdown(
        tables.contents(together, study, table, tidy=tidy)
    )


def test_where_nothing_is_compared_nothing_is_said_of_it() -> None:
    together, study = with_five_seeds()
    study["arms"] = [arm for arm in study["arms"] if arm["name"] == "baseline"]
    study["tables"] = [{"name": "main", "title": "One", "arms": ["baseline"], "compare_with": "baseline"}]
    alone = together[together["arm"].isin(["baseline", long_table.BASE])]
    text = tables.format_table(alone, study)
    assert "sign-flip" not in text and "descriptive" not in text
    with pytest.raises(UserError, match="study tiny compares no two arms"):
        components.table(alone, study)


def test_what_a_study_claims_is_the_family_of_its_intervals() -> None:
    """Of the arms that it names, by whatever name of the same run, each with its control or the baseline."""
    together, study = with_five_seeds()
    study |= {"claims": ["twin", "step_linear"]}
    tidy = tidy_of(together, study)
    assert list(tidy.loc[tidy["verdict"].notna(), "arm"]) == ["constant", "twin"]  # to the baseline
    assert cell(tidy_of(together, study, "schedules"), "step_linear")["verdict"] == "yes"
    assert "for the 2 effects that the study claims (twin to baseline, step_linear to constant)" in tables.format_table(
        together, study
    )
    # Of one claim the joint interval is the interval; the more, the wider.
    alone = cell(tidy_of(together, study | {"claims": ["twin"]}), "constant")
    assert alone["joint_low"] == pytest.approx(alone["low"]) and alone["verdict"] == "yes"
    assert (
        alone["joint_low"]
        > cell(tidy, "constant")["joint_low"]
        > cell(tidy_of(*with_five_seeds()), "constant")["joint_low"]
    )
    said = answers.answers(together, study)
    assert "better: constant to baseline" in said[0] and "worse: step_linear to constant" in said[1]
    assert (
        "not claimed (each interval for itself): step_linear to constant"
        in answers.answers(together, study | {"claims": ["twin"]})[1]
    )


@pytest.mark.parametrize(
    ("margin", "constant", "step_linear"),
    [
        (None, "better", "no difference was found"),
        (1, "better", "undecided"),
        (5, "better", "no difference of 5 % or more"),
        (20, "better, by less than 20 %", "no difference of 20 % or more"),
    ],
)
def test_within_the_margin_an_effect_counts_as_none(margin: float | None, constant: str, step_linear: str) -> None:
    together, study = with_five_seeds()
    study["arms"][-1]["control"] = "baseline"
    said = answers.answers(together, study | {"margin": margin})
    assert (
        f": {constant}: constant to baseline -10" in said[0] and f": {step_linear}: step_linear to baseline" in said[1]
    )


@pytest.mark.parametrize(
    ("seeds", "claims", "said"), [(5, 4, "cannot show"), (9, 8, "passes"), (9, 20, "does not pass")]
)
def test_the_exact_test_is_held_against_holms_correction(seeds: int, claims: int, said: str) -> None:
    """2 / 2^9 times 8 is 0.031, times 20 it is 0.078."""
    study = make_study() | {"seeds": list(range(seeds)), "bases": {str(seed): str(seed) for seed in range(seeds)}}
    study |= {"claims": ["constant"] * claims}
    assert said in exact_test(study)


def test_one_seed_gives_differences_without_an_interval(metrics: pd.DataFrame, study: dict[str, Any]) -> None:
    alone = metrics[metrics["seed"].isin([0, long_table.BASE_SEED])]
    study = {**study, "seeds": [0]}
    row = cell(tidy_of(alone, study), "constant")
    assert row["difference"] == pytest.approx(-10) and row[["low", "high", "joint_low", "joint_high"]].isna().all()
    text = tables.format_table(alone, study)
    assert " -10.0 |" in text and "inf" not in text and "nan" not in text


def test_a_document_that_is_there_twice_is_refused(metrics: pd.DataFrame, study: dict[str, Any]) -> None:
    """Two documents of one name would be averaged, and pair as one."""
    twice = metrics.assign(document=metrics["document"].where(metrics["document"].ne("c"), "b"))
    with pytest.raises(ValueError, match="the document 'b'.* has 2 numbers of one kind with seed 0"):
        tidy_of(twice, study)


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
    assert "lack a seed" not in text  # though no device's memory was recorded, whose column is not shown
    # They are no headline: nothing else in the tables is another.
    pd.testing.assert_frame_equal(tidy_of(together, study), tidy_of(metrics, study))


def test_on_cpus_the_cost_is_cpu_time_and_says_so(metrics: pd.DataFrame, study: dict[str, Any]) -> None:
    study, made = {**study, "device": "cpu"}, make_runs()
    together = long_table.with_costs(metrics, made, 4, cpu_time=long_table.knows_cpu_time(made))
    tidy = tidy_of(together, study, "cost")
    assert cell(tidy, "constant", "cost/training_cpu_hours")["mean"] == pytest.approx(0.05)
    assert cell(tidy, "constant", "cost/evaluation_cpu_hours")["mean"] == pytest.approx(0.45)
    assert cell(tidy, "constant", "cost/training_operations")["mean"] == pytest.approx(3)
    text = tables.format_table(together, study, "cost", runs=made)
    assert "training (CPU-hours)" in text and "training (device-hours)" not in text and "CPU-hours: time on" in text
    page = report.page(together, made, study, [])
    # Planned is device time, and is held against device time: 1,200 s for 3,600 of constant's first seed.
    assert "planned (device-hours)" in page and "spent (CPU-hours)" in page and "device-hours / planned" in page
    assert '<td class="left">3.00</td>' in page and '<td class="left">1.50</td>' not in page

    made.loc[0, "cpu_seconds"] = None  # of an older record: all arms by one measure
    assert not long_table.knows_cpu_time(made)
    together = long_table.with_costs(metrics, made, 4, cpu_time=long_table.knows_cpu_time(made))
    text = tables.format_table(together, study, "cost", runs=made)
    assert "training (device-hours)" in text and "CPU-hours" not in text and "hold no CPU time" in text
    assert "spent (device-hours)" in report.page(together, made, study, [])


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


def test_what_has_seen_longer_texts_is_shown_and_no_part_of_any_comparison(
    metrics: pd.DataFrame, study: dict[str, Any]
) -> None:
    """An arm of another length and a long base, both better than all others: every other cell stays what it was."""
    entry = {**study["arms"][0], "name": "long", "runs": {"0": "long-0", "1": "long-1"}, "reference": True}
    entry["settings"] = {**entry["settings"], "lengths": {"train": 32}}
    tables_of = [{**table, "arms": ["long", *table["arms"]]} for table in study["tables"]]
    longer = {**study, "arms": [entry, *study["arms"]], "tables": tables_of, "long_base": "another"}
    longer["settings"] = {"lengths": {"train": 8, "test": 32}}
    added = [metrics[metrics["arm"].eq("baseline")].assign(arm="long")]
    added.append(metrics[metrics["arm"].eq("(base)")].assign(arm="(long base)"))
    for frame in added:
        frame["value"] = frame["value"] / 2
    more = pd.concat([metrics, *added], ignore_index=True)
    assert compare.comparisons(longer) == compare.comparisons(study) and compare.pairs(longer) == compare.pairs(study)
    table = tables.table_of(longer, "main")
    tidy = tables.tidy_table(more, longer, table)
    rows = list(dict.fromkeys(zip(tidy["step"], tidy["arm"], strict=True)))
    assert rows[:4] == [(0, "(base)"), (0, "(long base)"), (2, "long"), (2, "baseline")]
    apart = tidy["arm"].isin(["long", "(long base)"])
    assert not tidy.loc[apart, ["best", "second"]].any(axis=None) and tidy.loc[apart, "reference"].isna().all()
    assert cell(tidy, "long")["mean"] == pytest.approx(5.5)
    same = tidy[~apart].reset_index(drop=True)
    pd.testing.assert_frame_equal(same, tidy_of(metrics, study), check_exact=True)
    notes = "\n".join(tables.contents(more, longer, table, tidy=tidy).notes)
    assert "long is trained on windows of 32 tokens, as many tokens a step" in notes
    assert "(long base) is one model, trained from the start on windows of 32 tokens" in notes


def test_diverged_and_missing_are_marked_never_dropped(metrics: pd.DataFrame, study: dict[str, Any]) -> None:
    tidy = tidy_of(metrics, study)
    assert cell(tidy, "broken", step=2)["status"] == "ok"
    lost = cell(tidy, "broken")
    assert (lost["status"], lost["n"]) == ("diverged (1 of 2)", 1)
    markdown = tables.format_table(metrics, study)
    assert line_of(markdown, "broken", 4)[5] == "1.00, diverged (1 of 2)"
    assert "Diverged: broken, seed 1 (no value from step 3 on)." in markdown
    # A perplexity beyond all numbers is no number either.
    infinite = metrics.assign(value=metrics["value"].fillna(math.inf))
    assert cell(tidy_of(infinite, study), "broken")[["status", "n", "mean", "difference_n"]].tolist() == [
        "diverged (1 of 2)", 1, 1.0, 1
    ]  # fmt: skip
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
    notes = notes_of(together, study, tables.table_of(study, "main"), tidy)
    assert "Main metrics of lm_eval's tasks: hellaswag: acc; wikitext: word_perplexity,x." in notes
    # Nothing else in the tables is another.
    before = tidy_of(metrics, make_study())
    pd.testing.assert_frame_equal(tidy[~tidy["column"].str.startswith("harness")].reset_index(drop=True), before)
