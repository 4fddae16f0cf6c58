"""Bases through the real engine: one for each seed, one at the test length, and those of a study that extends them."""

from __future__ import annotations

import json
from pathlib import Path

import pandas
import pytest

from longshort.data.tokenizers import byte_tokenizer
from longshort.models.load import load
from longshort.models.rope import extend
from longshort.records import layout
from longshort.study import resolve
from tests.support.perplexity import PREFIX, by_key, evaluate
from tests.support.project import TINY, edit_study, longshort, make_project, planned, run_snakemake


@pytest.mark.wide
def test_a_base_for_each_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = {**TINY, "seeds": [0, 4], "evaluations": {"perplexity": {"lengths": [16, 32], "documents": 3}}}
    study["model"] = {**TINY["model"], "seed": "per-run"}
    project = make_project(tmp_path / "project", study)
    run_snakemake(project, "all")
    folder = project / "results/tiny"
    metrics = pandas.read_parquet(folder / "metrics.parquet")
    shown = metrics[metrics["metric"].eq("perplexity") & metrics["length"].eq(32) & metrics["document"].isna()]
    values = shown.set_index(["arm", "step", "seed"])["value"]
    assert values.is_unique and {seed for arm, _, seed in values.index if arm == "(base)"} == {0, 4}
    monkeypatch.chdir(project)
    resolved = resolve.load("tiny")
    # The seed is that of weights, data order and fine-tuning: nothing of the two pairs is the same.
    logs = [pandas.read_parquet(Path(resolved.record(run)).with_suffix(".parquet")) for run in resolved.bases.values()]
    assert not logs[0]["loss"].equals(logs[1]["loss"])
    for seed, run in resolved.bases.items():
        assert (folder / f"base-{seed}").resolve() == (project / "results/runs" / run).resolve()
    table = (folder / "tables/main.md").read_text()
    assert "Each seed has a base model of its own" in table and "seeds, each with its own base, and documents" in table
    assert "(base) is the 2 bases before fine-tuning" in table
    base = (
        pandas.read_parquet(folder / "tables/main.parquet")
        .set_index(["arm", "column"])
        .loc[("(base)", "perplexity@32")]
    )
    assert base["n"] == 2 and base["mean"] == pytest.approx(values.sort_index()["(base)", 0].mean()) and base["sd"] > 0
    assert "Each seed has a base model of its own" in (folder / "report.html").read_text().split("</section>")[0]
    said = longshort(project, "why", "main", "(base)", "PPL 32", "--study", "tiny").stdout
    assert "seed 0" in said and f"results/runs/{resolved.bases[4]}" in said
    assert longshort(project, "plan", "--study", "tiny").stdout.endswith("every result is up to date\n")
    # Back to one base: what seed 0 has stays, and seed 4 starts from another base than it did.
    edit_study(project, model__seed=0)
    made = json.loads(longshort(project, "plan", "--study", "tiny", "--json").stdout)
    assert made["why"] == {arm: ["model.seed per-run -> 0"] for arm in ("baseline", "constant")}
    assert made["jobs"] == {arm: {"train": 1, "perplexity": 1} for arm in ("baseline", "constant")}
    assert planned(project)["train"] == 2


@pytest.mark.wide
def test_a_base_trained_at_length_finds_the_key_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the arm `long` beside it: in plan, tables, plots and report, and in no comparison."""
    longppl = {
        "evaluator": "long",
        "short": 16,
        "stride": 8,
        "gain": 0.0,
        "below": 8.0,
        "lengths": [64],
        "documents": 3,
    }
    evaluations = {"perplexity": {"lengths": [16, 32], "documents": 3}, "longppl": longppl}
    study = {**TINY, "seeds": [0, 4], "arms": ["baseline", "constant", "long"], "evaluations": evaluations}
    study["model"] = {**TINY["model"], "seed": "per-run", "long_base": True}
    project = make_project(tmp_path / "project", study)
    said = longshort(project, "plan", "--study", "tiny").stdout
    assert "  (long base): 1 train, 1 perplexity, 1 longppl\n      not trained yet" in said and "key_tokens" in said
    assert "key_tokens, longppl, perplexity, training: counted" in said
    run_snakemake(project, "all")
    monkeypatch.chdir(project)
    resolved, folder = resolve.load("tiny"), project / "results/tiny"
    found = json.loads(Path(resolved.items("longppl")[0]).read_text())
    assert found["run_id"] == json.loads(Path(resolved.record(resolved.long_base)).read_text())["run_id"]
    metrics = pandas.read_parquet(folder / "metrics.parquet")
    (protocol,) = metrics.loc[metrics["metric"].eq("longppl"), "protocol"].unique()
    assert f"evaluator=long@{found['evaluator']}," in protocol
    shown = metrics[metrics["metric"].eq("longppl")].groupby("arm").size()
    assert shown.to_dict() == {"(base)": 2, "(long base)": 1, "baseline": 4, "constant": 4, "long": 4}
    assert (folder / "long-base").resolve() == (project / "results/runs" / str(resolved.long_base)).resolve()
    tidy = pandas.read_parquet(folder / "tables/main.parquet")
    assert list(dict.fromkeys(tidy["arm"]))[:3] == ["(base)", "(long base)", "long"]
    assert set(tidy.loc[tidy["reference"].notna(), "arm"]) == {"constant"}
    report = (folder / "report.html").read_text().split("</section>")[0]
    assert "the way from baseline to long, by log" in report
    why = longshort(project, "why", "main", "(long base)", "LongPPL 64", "--study", "tiny").stdout
    assert f"results/runs/{resolved.long_base}" in why
    # Other key tokens: they are found anew and measured on, and no more is trained.
    edit_study(project, evaluations__longppl__gain=0.01)
    assert planned(project)["key_tokens"] == 1 and "train" not in planned(project)
    edit_study(project, evaluations__longppl__gain=0.0)
    assert longshort(project, "plan", "--study", "tiny").stdout.endswith("every result is up to date\n")


@pytest.mark.wide
@pytest.mark.parametrize(
    "rope", [{"kind": "yarn", "factor": 4}, {"kind": "clex", "max_factor": 4}], ids=["yarn", "clex"]
)
def test_the_base_of_an_extended_study_is_measured_as_it_is_and_extended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rope: dict[str, object]
) -> None:
    """By hand: the base's weights, extended, and read at a length beyond that of its training."""
    study = {**TINY, "evaluations": {"perplexity": {"lengths": [16, 64], "documents": 3, "temperature_documents": 0}}}
    project = make_project(tmp_path / "project", {**study, "model": {**TINY["model"], "rope": rope}})
    said = longshort(project, "plan", "--study", "tiny").stdout
    assert "(base), (extended base), baseline, constant: 1 train, 1 perplexity each" in said
    run_snakemake(project, "all")
    metrics = pandas.read_parquet(project / "results/tiny/metrics.parquet")
    whole = metrics[metrics["metric"].eq("perplexity") & metrics["document"].isna()]
    numbers = whole.set_index(["arm", "seed", "step", "length"])["value"]
    monkeypatch.chdir(project)
    resolved = resolve.load("tiny")
    record = json.loads(Path(resolved.record(resolved.bases[0])).read_text())
    settings = {"lengths": [16, 64], "documents": 3, "protocol": PREFIX, "temperature_documents": 0}
    data = Path(layout.data_folder(resolved.data))
    model = load(record["checkpoints"]["4"]["path"])
    for name in ("(base)", "(extended base)"):
        if name == "(extended base)":
            extend(model, resolved.study.model.rope)
        rows = by_key(evaluate(model.eval(), byte_tokenizer(), settings, data).rows)
        assert [numbers[name, -1, 0, length] for length in (16, 64)] == [
            rows["perplexity", length, None] for length in (16, 64)
        ]
    assert numbers["(extended base)", -1, 0, 64] != numbers["(base)", -1, 0, 64]
    table = Path("results/tiny/tables/main.md").read_text()
    assert f"(extended base) is (base) with its context extended ({rope['kind']})" in table
    tidy = pandas.read_parquet("results/tiny/tables/main.parquet")
    assert list(dict.fromkeys(tidy["arm"]))[:2] == ["(base)", "(extended base)"]
    assert set(tidy.loc[tidy["reference"].notna(), "arm"]) == {"constant"}
    run = Path("results/runs") / resolved.extended_bases[0]
    assert Path("results/tiny/extended-base").resolve() == run.resolve()
    assert str(run) in longshort(project, "why", "main", "(extended base)", "PPL 64", "--study", "tiny").stdout
    assert "tiny" in longshort(project, "prune").stdout  # its checkpoint is the base's
    assert longshort(project, "plan", "--study", "tiny").stdout.endswith("every result is up to date\n")
