"""A whole study through the real engine: what it leaves behind, and what happens when an arm fails."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pandas
import pytest
import yaml

from longshort.evaluation.prompts import TASKS
from longshort.records.publish import file_digest, read_record, write_record
from tests.support.project import TINY, edit, longshort, make_project, planned, run_snakemake
from tests.support.reruns import DRAWN


def metrics_of(project: Path) -> pandas.DataFrame:
    return pandas.read_parquet(project / "results" / "tiny" / "metrics.parquet")


def test_every_number_of_every_arm_is_there(finished: Path) -> None:
    metrics = metrics_of(finished)
    assert set(metrics.loc[metrics["arm"] != "step-linear", "status"]) == {"ok"}
    expected = {("perplexity", 16), ("perplexity", 32), ("accuracy", 32), ("symkl", 16), ("symkl", 32), ("sce", 16)}
    for arm, steps in [
        ("(base)", {0}),
        *((arm, {2, 6}) for arm in ("baseline", "constant", "alpha-1x", "hidden+output")),
    ]:
        rows = metrics[(metrics["arm"] == arm) & ~metrics["metric"].str.startswith("train/")]
        assert set(rows["step"]) == steps
        for step in steps:
            at = rows[rows["step"] == step]
            assert expected <= set(zip(at["metric"], at["length"], strict=True))
            assert set(TASKS) | {"overall"} <= set(at.loc[at["metric"] == "longbench_e", "task"])
    trained = metrics[(metrics["arm"] == "constant") & (metrics["metric"] == "train/loss")]
    assert list(trained["step"]) == [1, 2, 3, 4, 5, 6]
    for column in ("run_id", "code", "data", "commit", "environment", "protocol"):
        assert metrics[column].str.len().gt(0).all(), column


def test_tables_and_plots_are_there_and_equal_arms_are_said(finished: Path) -> None:
    folder = finished / "results" / "tiny"
    for kind in ("parquet", "csv", "md", "tex"):
        assert (folder / "tables" / f"main.{kind}").stat().st_size > 0
    for plot in ("perplexity", "misalignment", "misalignment-grid", "training", "schedules"):
        assert (folder / "plots" / f"{plot}.png").stat().st_size > 5000
        assert (folder / "plots" / f"{plot}.pdf").read_bytes().startswith(b"%PDF")
    assert "alpha-1x is the same run as constant" in (folder / "tables" / "main.md").read_text()
    assert (folder / "arms" / "alpha-1x" / "seed-0").resolve() == (folder / "arms" / "constant" / "seed-0").resolve()


def test_weights_are_safetensors_and_load(finished: Path) -> None:
    from transformers import AutoModelForCausalLM

    record = json.loads((finished / "results/tiny/arms/constant/seed-0/training/2-6.json").read_text())
    assert sorted(record["checkpoints"], key=int) == ["2", "6"]
    for checkpoint in record["checkpoints"].values():
        assert any(name.endswith(".safetensors") for name in checkpoint["files"])
        model, info = AutoModelForCausalLM.from_pretrained(finished / checkpoint["path"], output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"]


def test_a_diverged_arm_is_marked_and_the_others_finish(finished: Path) -> None:
    record = json.loads((finished / "results/tiny/arms/step-linear/seed-0/training/2-6.json").read_text())
    assert record["status"] == "diverged" and record["diverged"]["step"] <= 3
    metrics = metrics_of(finished)
    lost = metrics[(metrics["arm"] == "step-linear") & ~metrics["metric"].str.startswith("train/")]
    assert set(lost["status"]) == {"diverged"} and lost["value"].isna().all()
    table = (finished / "results/tiny/tables/main.md").read_text()
    assert re.search(r"step-linear +\| +diverged", table) and "Diverged: step-linear, seed 0" in table


@pytest.mark.wide
def test_the_same_run_again_gives_the_same_numbers(finished: Path, tmp_path: Path) -> None:
    """From nothing: corpus, base, arm, evaluation."""
    again = make_project(tmp_path / "again", TINY)
    shutil.copytree(finished / "modules", again / "modules")
    shutil.copy(finished / "config/studies/tiny.yaml", again / "config/studies/tiny.yaml")
    run = (finished / "results/tiny/arms/hidden+output/seed-0").resolve().relative_to(finished)
    numbers = [str(path.relative_to(finished)) for path in (finished / run).glob("*/*/2-6.parquet")]
    assert len(numbers) == 3
    run_snakemake(again, *numbers)
    for path in numbers:
        frames = [pandas.read_parquet(project / path) for project in (finished, again)]
        pandas.testing.assert_frame_equal(*frames, check_exact=True)
    logs = [pandas.read_parquet(project / run / "training/2-6.parquet") for project in (finished, again)]
    pandas.testing.assert_frame_equal(*(log.drop(columns="tokens_per_second") for log in logs), check_exact=True)


def test_a_failed_study_still_shows_what_it_has(finished_copy: Path) -> None:
    path = finished_copy / "config/studies/tiny.yaml"
    study = yaml.safe_load(path.read_text())
    study["evaluations"]["perplexity"]["documents"] = 10**6
    path.write_text(yaml.safe_dump(study))
    shutil.copytree(finished_copy / "results/tiny/tables", finished_copy / "results/tiny/before")
    assert run_snakemake(finished_copy, "all", check=False).returncode != 0
    logs = "".join(path.read_text() for path in finished_copy.glob("results/runs/*/perplexity/*/*.log"))
    assert "perplexity needs 1000000 test documents" in logs and "evaluations.perplexity.documents" in logs
    shown, before = (
        pandas.read_parquet(finished_copy / f"results/tiny/{folder}/main.parquet").query("arm != 'step-linear'")
        for folder in ("partial", "before")  # step-linear diverged
    )
    of_perplexity = shown["column"].str.startswith(("perplexity", "accuracy", "ece"))
    assert set(shown.loc[of_perplexity, "status"]) == {"failed", "missing"}
    assert shown.loc[of_perplexity, "mean"].isna().all()
    both = shown[~of_perplexity].merge(before, on=["arm", "column", "step"])
    assert (
        len(both) == sum(~of_perplexity) > 0 and both["mean_x"].equals(both["mean_y"]) and both["mean_x"].notna().all()
    )


@pytest.mark.wide
def test_partial_tables_show_no_number_of_other_code(finished_copy: Path) -> None:
    """Trainings stay, misalignment is stale; then the trainings are, and what was measured on them."""

    def values() -> dict[str, bool]:
        longshort(finished_copy, "tables", "--study", "tiny", "--partial")
        rows = pandas.read_parquet(finished_copy / "results/tiny/partial/metrics.parquet")
        kinds = {"train": "train/loss", "perplexity": "perplexity", "misalignment": "symkl|misalignment"}
        return {kind: rows[rows["metric"].str.fullmatch(of)]["value"].notna().any() for kind, of in kinds.items()}

    assert values() == {"train": True, "perplexity": True, "misalignment": True}
    for record in finished_copy.glob("results/runs/*/training/*.json"):  # trained again, and not yet measured
        record.with_suffix(".was").write_bytes(record.read_bytes())
        write_record(record, {**read_record(record), "run_id": "0" * 16})
    assert values() == {"train": True, "perplexity": False, "misalignment": False}
    for record in finished_copy.glob("results/runs/*/training/*.was"):
        record.rename(record.with_suffix(".json"))
    edit(finished_copy, "src/longshort/evaluation/misalignment.py", "import torch\n", "import abc\nimport torch\n")
    assert values() == {"train": True, "perplexity": True, "misalignment": False}
    edit(finished_copy, "src/longshort/training/trainer.py", "import argparse", "import abc\nimport argparse")
    assert values() == {"train": False, "perplexity": False, "misalignment": False}


def copy_base(finished: Path, folder: Path) -> None:
    """The base of the finished study as a model that exists; its configuration says how far a study may read."""
    record = json.loads(next(finished.glob("results/runs/*/training/4.json")).read_text())
    left_out = shutil.ignore_patterns("global_step*", "*.pt", "*.pth", "*manifest*")
    shutil.copytree(finished / record["checkpoints"]["4"]["path"], folder, ignore=left_out)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 128}))


@pytest.mark.wide
def test_a_base_may_be_a_local_folder(finished: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    copy_base(finished, model)
    study = {**TINY, "model": {"kind": "pretrained", "name": str(model), "layers": 3, "max_length": 128}}
    study = {**study, "arms": ["baseline"], "evaluations": {"perplexity": TINY["evaluations"]["perplexity"]}}
    project = make_project(tmp_path / "project", study)
    run_snakemake(project, "tables")
    metrics = metrics_of(project)
    values = metrics[(metrics["metric"] == "perplexity") & (metrics["length"] == 32)].set_index(["arm", "step"])[
        "value"
    ]
    assert set(values.index) == {("(base)", 0), ("baseline", 2), ("baseline", 6)} and values.is_unique
    assert planned(project) == DRAWN
    # Touched it is the same model. Another one is refused, however old its file, until the record of the first is gone.
    weights, [record] = model / "model.safetensors", project.glob("results/runs/*/training/0.json")
    weights.touch()
    assert planned(project) == DRAWN
    another = bytearray(weights.read_bytes())
    another[-1] ^= 1
    (tmp_path / "another").write_bytes(another)
    os.utime(tmp_path / "another", (0, 0))
    (tmp_path / "another").replace(weights)
    done = run_snakemake(project, "all", "--dry-run", check=False)
    assert done.returncode != 0 and f"{model}: {record.relative_to(project)}" in done.stdout + done.stderr
    record.unlink()
    assert planned(project)["train"] == 2
    weights.unlink()
    shutil.rmtree(project / "results")
    done = run_snakemake(project, "all", check=False)
    assert done.returncode != 0
    assert "no weights in .safetensors files there; only those are loaded" in done.stdout + done.stderr
    assert not list(project.glob("results/*"))


@pytest.mark.wide
def test_two_protocols_become_one_by_the_command_that_is_named(tmp_path: Path) -> None:
    """An arm whose numbers stand as an older version would have left them."""
    study = {**TINY, "arms": ["baseline"], "evaluations": {"perplexity": TINY["evaluations"]["perplexity"]}}
    project = make_project(tmp_path / "project", study)
    run_snakemake(project, "tables")
    whole = metrics_of(project)
    (numbers,) = project.glob("results/tiny/arms/baseline/seed-0/perplexity/*/2-6.parquet")
    pandas.read_parquet(numbers).assign(protocol="ppl/prefix-v1?").to_parquet(numbers, index=False)
    record = read_record(numbers.with_suffix(".json"))
    write_record(numbers.with_suffix(".json"), {**record, "protocol": "ppl/prefix-v1?", "sha256": file_digest(numbers)})
    assert run_snakemake(project, "tables", check=False).returncode != 0
    said = (project / "results/tiny/logs/tables.log").read_text()
    assert "'ppl/prefix-v1?' (baseline)" in said
    _, *command = re.findall(r"`snakemake (.*) --config study=tiny`", said)[0].split()
    run_snakemake(project, "tables", *command)
    pandas.testing.assert_frame_equal(metrics_of(project), whole)
    assert planned(project) == DRAWN


@pytest.mark.wide
def test_names_are_names_and_never_commands(finished: Path, tmp_path: Path) -> None:
    """Of every place that a study names; what stands in braces, in a text, is no wildcard."""
    odd = "an odd 'name' \"of\" $(touch PWNED) `touch PWNED`; touch PWNED #"
    tasks = tmp_path / f"tasks {odd}"
    shutil.copytree(next(finished.glob("results/data/*/longbench-e-1")), tasks)
    model = tmp_path / f"model {odd}"
    copy_base(finished, model)
    study = {
        **TINY,
        "question": "Is l_{train} enough, {wildcards.run} {0} {{x}} %s $(touch PWNED)?",
        "data": {**TINY["data"], "corpus": {"kind": "text", "path": f"corpus {odd}"}},
        "model": {"kind": "pretrained", "name": str(model), "layers": 3, "max_length": 128},
        "arms": ["baseline"],
        "evaluations": {
            "longbench_e": {"source": {"kind": "folder", "path": str(tasks)}, "max_length": 128, "max_new_tokens": 4}
        },
    }
    project = make_project(tmp_path / "project", study)
    (project / "corpus").rename(project / f"corpus {odd}")
    first = next((project / f"corpus {odd}").glob("*.txt"))
    first.rename(first.with_name(f"{odd}.txt"))
    run_snakemake(project, "all")
    assert set(metrics_of(project).query("metric == 'longbench_e'")["status"]) == {"ok"}
    assert study["question"] in (project / "results/tiny/study.json").read_text().replace('\\"', '"')
    assert planned(project) == {}
    assert not list(tmp_path.rglob("PWNED"))
