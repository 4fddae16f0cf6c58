from __future__ import annotations

import io
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

from longshort.results import long_table, plots, statistics, tables

STYLE = Path(plots.__file__).with_name("longshort.mplstyle")
LENGTHS = [8, 16, 32]
ARMS = ["baseline", "constant", "twin", "broken", "step_linear"]
# Perplexity at 32 tokens, step 4, seeds 0 and 1; `twin` is the same run as `constant`, seed 1 of `broken` diverges.
PERPLEXITY = {"baseline": (10.0, 12.0), "constant": (9.0, 10.0), "broken": (1.0, 1.0), "step_linear": (9.5, 9.0)}


def make_study() -> dict[str, Any]:
    arms = []
    for name in ARMS:
        run = "constant" if name == "twin" else name
        control = "constant" if name == "step_linear" else None
        arms.append({"name": name, "description": "", "control": control, "runs": {"0": f"{run}-0", "1": f"{run}-1"}})
    return {
        "name": "tiny",
        "title": "Tiny & quick",
        "question": "?",
        "l_train": 8,
        "steps": 4,
        "checkpoints": [2, 4],
        "seeds": [0, 1],
        "base": "base",
        "arms": arms,
        "evaluations": {
            "perplexity": {"lengths": LENGTHS, "temperature_documents": 0},
            "misalignment": {"beyond": [2, 4], "grid_sequences": 3},
            "longbench_e": {},
        },
        "tables": [
            {"name": "main", "title": "All arms, 100 %", "arms": ARMS, "compare_with": "baseline"},
            {"name": "schedules", "title": "Schedules", "arms": ["constant", "step_linear"], "compare_with": "control"},
        ],
    }


def make_metrics() -> pd.DataFrame:
    rows: list[dict[str, Any]] = []

    def add(
        arm: str, seed: int, step: int, metric: str, value: float, length: int | None = None, task: str | None = None
    ) -> None:
        run = "constant" if arm == "twin" else arm
        lost = run == "broken" and seed == 1 and step > 2
        rows.append(
            {
                "study": "tiny", "arm": arm, "seed": seed, "step": step, "metric": metric, "length": length,
                "task": task, "document": None, "value": float("nan") if lost else value, "n": 3,
                "status": "diverged" if lost else "ok", "protocol": f"{metric}/v1", "run_id": f"{run}-{seed}",
                "code": "c0de" * 8, "data": "da7a" * 8, "commit": "0123456789abcdef" * 2, "environment": "e" * 32,
            }
        )  # fmt: skip

    def evaluate(arm: str, seed: int, step: int, perplexity: float) -> None:
        for length in LENGTHS:
            scale = length / 32
            add(arm, seed, step, "perplexity", perplexity * scale**0.3 if length < 32 else perplexity, length)
            add(arm, seed, step, "accuracy", 1 / perplexity, length)
            add(arm, seed, step, "sce", 2 + perplexity * scale, length)
            add(arm, seed, step, "symkl", perplexity * scale / 100, length)
            add(arm, seed, step, "symkl_se", perplexity * scale / 1000, length)
        for short, long in combinations([4, *LENGTHS], 2):
            add(arm, seed, step, "sce_grid", 2 + perplexity * long / short, long, task=str(short))
            add(arm, seed, step, "symkl_grid", perplexity * long / short / 1000, long, task=str(short))
        add(arm, seed, step, "longbench_e", 2 * perplexity, task="overall")
        add(arm, seed, step, "longbench_e", 99.0, task="qasper")

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


def tidy_of(metrics: pd.DataFrame, study: dict[str, Any], name: str = "main") -> pd.DataFrame:
    return tables.tidy_table(metrics, study, tables.table_of(study, name))


def cell(tidy: pd.DataFrame, arm: str, column: str = "perplexity@32", step: int = 4) -> pd.Series:
    found = tidy[tidy["arm"].eq(arm) & tidy["column"].eq(column) & tidy["step"].eq(step)]
    assert len(found) == 1
    return found.iloc[0]


def line_of(markdown: str, arm: str, step: int) -> list[str]:
    """The cells of the arm's line at a checkpoint, in the first block of the table."""
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


def test_differences_are_paired_by_seed_not_by_place() -> None:
    values = pd.Series([5.0, 3.0, 100.0], index=[1, 0, 2])
    reference = pd.Series([1.0, 2.0, 50.0], index=[0, 1, 3])
    # Seed 0: 3 - 1, seed 1: 5 - 2; seeds 2 and 3 have no partner.
    assert statistics.paired_difference(values, reference) == (2.5, pytest.approx(0.5**0.5), 2, 2)


def test_table_numbers_by_hand(metrics: pd.DataFrame, study: dict[str, Any]) -> None:
    row = cell(tidy_of(metrics, study), "constant")
    assert (row["mean"], row["n"], row["difference"], row["reference"]) == (9.5, 2, -1.5, "baseline")
    assert row["sd"] == pytest.approx(0.5**0.5)
    assert row["difference_sd"] == pytest.approx(0.5**0.5)
    controlled = cell(tidy_of(metrics, study, "schedules"), "step_linear")
    assert (controlled["difference"], controlled["reference"]) == (-0.25, "constant")
    assert line_of(tables.format_table(metrics, study), "constant", 4)[5] == "9.50   ± 0.71 (-1.50)"
    assert "constant for step_linear" in tables.format_table(metrics, study, "schedules")
    # The headline of LongBench-E is `overall`, never a task.
    assert cell(tidy_of(metrics, study), "constant", "longbench_e")["mean"] == 19.0


def test_best_is_bold_without_base_and_unfinished_arms(metrics: pd.DataFrame, study: dict[str, Any]) -> None:
    tidy = tidy_of(metrics, study)
    best = tidy[tidy["best"] & tidy["step"].eq(4)].groupby("column")["arm"].agg(list)
    # The base model (0.5) and the diverged arm (1.0) have the least perplexity, and take no part.
    assert best["perplexity@32"] == ["step_linear"]
    assert best["longbench_e"] == ["baseline"]
    markdown = tables.format_table(metrics, study)
    assert line_of(markdown, "step_linear", 4)[5].startswith("**9.25** ± ")
    assert "**" not in line_of(markdown, "(base)", 0)[5] + line_of(markdown, "constant", 4)[5]
    assert r"\textbf{9.25} $\pm$ 0.35 ($-$1.75)" in tables.format_latex(metrics, study, "main")


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


def test_notes(metrics: pd.DataFrame, study: dict[str, Any]) -> None:
    text = tables.format_table(metrics, study)
    for expected in [
        "n = 2 seeds (0, 1)",
        "all seeds share one base model",
        "fewer than 6 seeds cannot reach p < 0.05",
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
    mixed.to_parquet(tmp_path / "metrics.parquet")
    place = f"{metric} at length {length}" if length else metric
    said = (
        rf"{place} holds .*'{metric}/v1'.*'{metric}/v2' \(twin\).*--forcerun {rule} --config study=tiny`.*two studies"
    )
    with pytest.raises(ValueError, match=said):
        long_table.read(tmp_path / "metrics.parquet")


def test_a_number_twice_is_refused(metrics: pd.DataFrame, tmp_path: Path) -> None:
    trained = metrics[metrics["metric"].str.startswith("train/")]
    pd.concat([metrics, trained.head(1), metrics[metrics["metric"].eq("sce")].head(1)]).to_parquet(
        tmp_path / "metrics.parquet"
    )
    with pytest.raises(ValueError, match=r"sce of arm \(base\), seed -1, step 0, length 8 more than once"):
        long_table.read(tmp_path / "metrics.parquet")


def test_the_four_formats_agree(metrics: pd.DataFrame, study: dict[str, Any], tmp_path: Path) -> None:
    paths = tables.write_tables(metrics, study, tmp_path)
    assert sorted(path.name for path in paths) == sorted(path.name for path in tmp_path.iterdir())
    for name in ("main", "schedules"):
        parquet = pd.read_parquet(tmp_path / f"{name}.parquet")
        csv = pd.read_csv(tmp_path / f"{name}.csv").astype({"length": "Int64"})
        pd.testing.assert_frame_equal(parquet, csv, check_dtype=False)
        markdown = (tmp_path / f"{name}.md").read_text()
        latex = (tmp_path / f"{name}.tex").read_text()
        assert latex.count(r"\begin") == latex.count(r"\end") and latex.count("{") == latex.count("}")
        assert "%\n" not in latex
        plain = latex.replace("$-$", "-").replace(r"$\pm$", "±").replace(r"\_", "_")
        plain = re.sub(r"\\textbf{([^}]*)}", r"**\1**", plain)
        rows = [line.split(" & ") for line in plain.splitlines() if line.endswith(r"\\") and " & " in line]
        written = [[text.strip(" \\").removeprefix("midrule ") for text in row] for row in rows if "arm" not in row[1]]
        lines = [line.strip("|").split("|") for line in markdown.splitlines() if line.startswith("|")]
        read = [[" ".join(text.split()) for text in line] for line in lines if line[1].strip(" -") not in ("arm", "")]
        assert written == read
    assert r"100 \%" in (tmp_path / "main.tex").read_text() and r"step\_linear" in (tmp_path / "main.tex").read_text()


def test_markdown_is_aligned_and_fits_a_terminal(metrics: pd.DataFrame, study: dict[str, Any]) -> None:
    long = {"perplexity": {"lengths": [2**power for power in range(3, 17)], "temperature_documents": 4}}
    wide = study | {"evaluations": study["evaluations"] | long}
    for block in tables.format_table(metrics, wide).split("\n\n")[1:-1]:
        widths = {len(line) for line in block.splitlines()}
        assert len(widths) == 1 and max(widths) <= tables.WIDTH


def test_plots_are_drawn_repeatable_and_embed_fonts(
    metrics: pd.DataFrame, study: dict[str, Any], tmp_path: Path
) -> None:
    paths = plots.write_plots(metrics, study, tmp_path, STYLE)
    assert {path.name for path in paths} == {
        f"{name}.{suffix}"
        for name in ("perplexity", "misalignment", "misalignment-grid", "training", "schedules")
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
        again = plots.figure_bytes(plots.draw_schedules(metrics, study))
    assert again == {suffix: (tmp_path / f"schedules.{suffix}").read_bytes() for suffix in ("pdf", "png")}


def test_plots_name_every_arm(metrics: pd.DataFrame, study: dict[str, Any]) -> None:
    gone = metrics[~metrics["arm"].eq("step_linear")]
    texts = [text.get_text() for axes in plots.draw_perplexity(gone, study).axes for text in axes.texts]
    for label in ["baseline", "constant = twin", "broken\ndiverged (1 of 2)", "step_linear\nmissing"]:
        assert texts.count(label) == 2  # once a panel
    figure = plots.draw_training(gone, study)
    assert "step_linear: missing" in [text.get_text() for text in figure.axes[1].texts]


def test_misalignment_inside_is_not_joined_to_beyond(metrics: pd.DataFrame, study: dict[str, Any]) -> None:
    l_train = study["l_train"]
    for axes in plots.draw_misalignment(metrics, study).axes:
        lines = [line.get_xdata() for line in axes.get_lines() if line.get_transform() == axes.transData]
        ends = [(min(x), max(x)) for x in map(np.asarray, lines) if len(x) > 1 and x.min() > 1]
        assert all(low > 1.5 * l_train or high < 1.5 * l_train for low, high in ends)


def test_grid_and_standard_errors_are_no_headlines(metrics: pd.DataFrame, study: dict[str, Any]) -> None:
    assert not long_table.headlines(metrics)["metric"].str.endswith("_grid").any()
    without = metrics[~metrics["metric"].str.contains("_grid|_se")]
    assert len(without) < len(metrics)
    for name in ("main", "schedules"):
        assert tables.format_table(metrics, study, name) == tables.format_table(without, study, name)
    figures = [plots.figure_bytes(plots.draw_misalignment(rows, study))["png"] for rows in (metrics, without)]
    assert figures[0] == figures[1]


def test_grid_by_hand(metrics: pd.DataFrame, study: dict[str, Any]) -> None:
    grids = plots.grids_of(metrics, study)
    assert list(grids) == [long_table.BASE, "baseline", "constant", "broken", "step_linear"]
    mean, status = grids["baseline"]
    assert (list(mean.index), list(mean.columns), status) == ([4, 8, 16], [8, 16, 32], "ok")
    # Perplexities 10 and 12 at the last checkpoint: 11 on the mean, times 32 / 8 / 1000.
    assert mean.loc[8, 32] == pytest.approx(0.044)
    assert mean.isna().sum(axis=None) == 3 and np.isnan(mean.loc[16, 8])
    assert grids["broken"][1] == "diverged (1 of 2)" and grids["broken"][0].loc[8, 32] == pytest.approx(0.004)
    figure = plots.draw_misalignment_grid(metrics, study)
    titles = [axes.get_title(loc="left") or axes.get_title() for axes in figure.axes]
    assert titles == ["base model", "baseline", "constant = twin", "broken", "step_linear", ""]
    texts = [text.get_text() for text in figure.axes[1].texts]
    assert texts == ["0.022", "0.044", "0.088", "0.022", "0.044", "0.022"]
    gone = metrics[~(metrics["metric"].eq("symkl_grid") & metrics["arm"].eq("baseline"))]
    assert [text.get_text() for text in plots.draw_misalignment_grid(gone, study).axes[1].texts] == ["missing"]


@pytest.mark.parametrize("value", [0.0, 1e-300, float("nan"), None])
def test_a_grid_of_equal_distributions_or_of_nothing_is_drawn(
    metrics: pd.DataFrame, study: dict[str, Any], value: float | None
) -> None:
    of_grid = metrics["metric"].eq("symkl_grid")
    rows = metrics[~of_grid] if value is None else metrics.assign(value=metrics["value"].where(~of_grid, value))
    figure = plots.draw_misalignment_grid(rows, study)
    plots.figure_bytes(figure)
    texts = {text.get_text() for text in figure.axes[0].texts}
    assert texts == ({"missing"} if value is None or np.isnan(value) else {plots.short_number(value)})


def test_numbers_of_the_grid_are_short() -> None:
    values = [0, 1e-300, 0.00012, 0.0012, 0.096, 0.1, 1.04, 9.96, 12.3, 123.4]
    written = ["0", "1e-300", "1e-4", "0.0012", "0.096", "0.10", "1.0", "10", "12", "123"]
    assert [plots.short_number(value) for value in values] == written


def test_curves_far_above_the_rest_get_their_own_axis() -> None:
    curves = {name: pd.Series(values) for name, values in {"a": [1.0, 2.0], "b": [9.0, 8.5], "c": [2.0, 1.0]}.items()}
    assert plots.far_above(curves) == ["b"]
    assert plots.far_above({"a": curves["a"], "c": curves["c"]}) == [] == plots.far_above({})


def test_looks_are_distinct_in_grey_too() -> None:
    names = [f"arm{number}" for number in range(30)]
    study = {"arms": [{"name": name, "runs": {"0": name}} for name in names], "tables": []}
    looks = plots.looks_of(study).values()
    assert len({(look.marker, str(look.line)) for look in looks}) == 30
    assert len({(look.colour, str(look.line)) for look in looks}) == 30


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.floats(0.01, 0.2))
def test_labels_do_not_overlap(wanted: list[float], height: float) -> None:
    places = plots.spread_apart(wanted, [height] * len(wanted), 0.0, 1.0)
    gap = min(height, 1 / max(len(wanted) - 1, 1))
    ordered = sorted(places)
    assert all(after - before > gap - 1e-9 for before, after in pairwise(ordered))
    assert ordered[0] > -1e-9 and ordered[-1] < 1 + 1e-9
    assert all(places[i] < places[j] for i in range(len(wanted)) for j in range(len(wanted)) if wanted[i] < wanted[j])


def test_labels_that_have_room_stay() -> None:
    assert plots.spread_apart([0.9, 0.1, 0.5], [0.1] * 3, 0, 1) == pytest.approx([0.9, 0.1, 0.5])
    # Two at one place part evenly: the least movement.
    assert plots.spread_apart([0.5, 0.5], [0.1, 0.1], 0, 1) == pytest.approx([0.45, 0.55])
