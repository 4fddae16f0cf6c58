"""What the engine plans after a change: every job that the change invalidates, and no other one."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.project import ROOT, TINY, edit, edit_study, make_project, planned, run_snakemake, write_study
from tests.support.reruns import AFTER, RESULTS, reverse_ages

ARMS = ["baseline", "constant", "alpha-1x", "hidden+output", "step-linear"]  # alpha-1x is the same run as constant
TRAINING, ALIGNMENT = (f"src/longshort/study/schema/{section}.py" for section in ("training", "alignment"))
EVALUATIONS = ("perplexity", "misalignment", "longbench_e")


def runs(count: int) -> dict[str, int]:
    """So many runs trained and measured."""
    return dict.fromkeys(("train", *EVALUATIONS), count)


def new_runs(count: int) -> dict[str, int]:
    return {"specification": count, **runs(count), **RESULTS}


def with_other_words(source: str) -> str:
    """The same program with other comments, formatting and docstrings."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
            node.body[0] = ast.Expr(ast.Constant("Other words."))
    return f"# a comment\n{ast.unparse(tree)}\n"


def reversed_keys(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: reversed_keys(item) for key, item in reversed(value.items())}
    return value


# ---- nothing ---------------------------------------------------------------------------------------------------------


def test_nothing_after_nothing_or_a_touch(finished_copy: Path) -> None:
    assert planned(finished_copy) == {}
    reverse_ages(finished_copy)
    assert planned(finished_copy) == {}


def test_nothing_after_a_checkout_away_and_back(finished_copy: Path) -> None:
    def git(*arguments: str) -> None:
        command = ["git", "-c", "user.name=x", "-c", "user.email=x@x", *arguments]
        nobody = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
        subprocess.run(command, cwd=finished_copy, env={**os.environ, **nobody}, check=True, capture_output=True)

    git("init", "--initial-branch=main")
    git("add", "Snakefile", "workflow", "config", "envs", "src")
    git("commit", "--message=before")
    git("checkout", "-b", "other")
    edit(finished_copy, "src/longshort/training/trainer.py", "import argparse", "import abc\nimport argparse")
    edit(finished_copy, "workflow/rules/train.smk", "python -m", "python  -m")
    edit_study(finished_copy, arms=ARMS[:2])
    git("commit", "--all", "--message=after")
    git("checkout", "main")
    assert planned(finished_copy) == {}


def test_nothing_in_a_clone_that_the_results_were_copied_to(finished_copy: Path, tmp_path: Path) -> None:
    clone = make_project(tmp_path / "clone", TINY)
    shutil.copy(finished_copy / "config/studies/tiny.yaml", clone / "config/studies/tiny.yaml")
    for folder in ("modules", "results", "work", ".snakemake"):
        shutil.copytree(finished_copy / folder, clone / folder, symlinks=True)
    reverse_ages(clone)
    assert planned(clone) == {}


def test_nothing_after_another_notation(finished_copy: Path) -> None:
    study = yaml.safe_load((finished_copy / "config/studies/tiny.yaml").read_text())
    study["alignment"]["alpha"] = 1  # was 1.0
    study["data"]["validation"] = "1e-1"  # was 0.1
    study["training"]["learning_rate"] = "1e-2"  # was 0.01
    write_study(finished_copy, reversed_keys(study))
    arms = finished_copy / "config/arms.yaml"
    arms.write_text("# a comment\n" + yaml.safe_dump(reversed_keys(yaml.safe_load(arms.read_text())), sort_keys=False))
    assert planned(finished_copy) == {}


def test_nothing_after_other_comments_docstrings_or_formatting(finished_copy: Path) -> None:
    for module in finished_copy.glob("src/**/*.py"):
        module.write_text(with_other_words(module.read_text()))
    for rules in [finished_copy / "Snakefile", *finished_copy.glob("workflow/rules/*.smk")]:
        rules.write_text(
            "# a comment\n" + re.sub(r"^( +)input:\n", r"\1# another\n\g<0>", rules.read_text(), flags=re.M)
        )
    assert planned(finished_copy) == {}


def test_nothing_after_other_execution_or_libraries(finished_copy: Path) -> None:
    execution: dict[str, Any] = {"micro_batch": 1, "chunk_size": 64, "threads": 2, "logging_steps": 3}
    execution["gradient_checkpointing"] = True
    execution["report_to"] = ["tensorboard"]
    edit_study(finished_copy, **{f"training__{key}": value for key, value in execution.items()})
    with (finished_copy / "envs/requirements.lock").open("a") as lock:
        lock.write("another==1.0\n")
    assert planned(finished_copy) == {}
    shutil.copytree(ROOT / "slurm", finished_copy / "slurm")
    on_a_cluster = ("--dry-run", "--profile", "slurm", "--set-resources", "train:mem_mb=9000")
    assert "Nothing to be done" in run_snakemake(finished_copy, "all", *on_a_cluster).stdout


def test_nothing_after_other_code_that_runs_jobs(finished_copy: Path) -> None:
    """It computes no number."""
    names = [f"training/{name}" for name in ("__main__", "launch", "worker", "tracking")]
    names += [f"commands/{name}" for name in ("engine_run", "plan", "cost")]
    for module in [*names, *(f"jobs/{name}" for name in ("heartbeat", "ownership", "interruption", "slurm"))]:
        with (finished_copy / f"src/longshort/{module}.py").open("a") as file:
            file.write("\nimport abc\n")
    assert planned(finished_copy) == {}


# ---- code ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "jobs"),
    [
        ("results/plots", {"plots": 1, "report": 1}),
        ("results/tables", {"tables": 1, "report": 1}),
        ("results/report", {"report": 1}),
        ("collecting/numbers", AFTER),
        ("results/statistics", {"tables": 1, "plots": 1, "report": 1}),
        ("evaluation/misalignment", {"misalignment": 5, **AFTER}),
        ("evaluation/standin", {"longbench_stand_in": 1, "longbench_e": 5, **AFTER}),
        # Three runs align the output, one of them a layer, too. The base and the baseline align nothing.
        ("alignment/divergences/symmetric_kl", {**runs(3), **AFTER}),
        ("alignment/divergences/js", {}),  # no arm uses it
        ("alignment/divergences/__init__", {**runs(3), **AFTER}),
        ("alignment/objective", {**runs(3), **AFTER}),
        ("alignment/views", {**runs(3), **AFTER}),
        ("alignment/hidden", {**runs(1), **AFTER}),
        ("alignment/schedules", {}),  # what counts are its values
        ("models/adapters", {}),
        ("models/rope/yarn", {}),
        ("models/rope/shifted_sparse", {}),
        ("models/head", {**runs(5), **AFTER}),
        ("evaluation/longbench", {"longbench_e": 5, **AFTER}),
        ("training/trainer", {**runs(5), **AFTER}),
        ("training/log", {**runs(5), **AFTER}),
        ("models/load", {**runs(5), **AFTER}),
        ("data/__main__", {"data": 1, "longbench_stand_in": 1, **runs(5), **AFTER}),
    ],
)
def test_a_changed_module_reruns_what_it_computes(finished_copy: Path, module: str, jobs: dict[str, int]) -> None:
    with (finished_copy / f"src/longshort/{module}.py").open("a") as file:
        file.write("\nimport abc\n")
    assert planned(finished_copy) == jobs


def mend(project: Path, old: str, new: str) -> None:
    """In every import of the source and the workflow."""
    for path in [*(project / "src").rglob("*.py"), project / "Snakefile"]:
        path.write_text(path.read_text().replace(old, new))


def move_a_module(project: Path) -> None:
    source = project / "src/longshort"
    (source / "draws").mkdir()
    (source / "draws/__init__.py").touch()
    (source / "data/streams.py").rename(source / "draws/counted.py")
    mend(project, "longshort.data.streams", "longshort.draws.counted")


def merge_two_modules_into_a_package(project: Path) -> None:
    source = project / "src/longshort"
    (source / "text").mkdir()
    for name in ("windows", "splits"):
        (source / f"data/{name}.py").rename(source / f"text/{name}.py")
    (source / "text/__init__.py").write_text("from longshort.text.windows import TokenStream, Windows, collate\n")
    mend(project, "from longshort.data.windows import", "from longshort.text import")
    mend(project, "from longshort.data import splits", "from longshort.text import splits")
    mend(
        project,
        "from longshort.data import integrity, splits",
        "from longshort.data import integrity\nfrom longshort.text import splits",
    )


def import_in_another_way(project: Path) -> None:
    trainer = "src/longshort/training/trainer.py"
    edit(
        project,
        trainer,
        "from longshort.models import load, rope\n",
        "import longshort.models.load as load\nimport longshort.models.rope\n",
    )
    text = (project / trainer).read_text()
    (project / trainer).write_text(text.replace(" rope.", " longshort.models.rope."))


@pytest.mark.parametrize("tidy_up", [move_a_module, merge_two_modules_into_a_package, import_in_another_way])
def test_nothing_after_tidying_up(finished_copy: Path, tidy_up: Callable[[Path], None]) -> None:
    tidy_up(finished_copy)
    assert planned(finished_copy) == {}


@pytest.mark.parametrize(
    ("file", "old", "new", "jobs"),
    [
        ("data/streams.py", 'f"{name}/{seed}/{counter}"', 'f"{name}/{seed}:{counter}"', {**runs(5), **AFTER}),
        (
            "evaluation/misalignment.py",
            "import held_out_documents, last_log_probs",
            "import last_log_probs as held_out_documents, held_out_documents as last_log_probs",
            {"misalignment": 5, **AFTER},
        ),
    ],
)
def test_what_computes_something_else_reruns(
    finished_copy: Path, file: str, old: str, new: str, jobs: dict[str, int]
) -> None:
    edit(finished_copy, f"src/longshort/{file}", old, new)
    assert planned(finished_copy) == jobs


NEW_FIELD = 'shiny: int = Field(0, json_schema_extra={"neutral": 0}, description="x")'


@pytest.mark.parametrize(
    ("file", "old", "new", "jobs"),
    [
        ("config/arms.yaml", "{hidden: {alpha: 1.0, layers: [0.5]}}", "{hidden: {alpha: 0.9, layers: [0.5]}}", 1),
        ("src/longshort/alignment/schedules.py", "* progress(step, steps)\n", "* progress(step, steps) ** 2\n", 1),
        (
            TRAINING,
            "weight_decay: float = Field(0.0,",
            "weight_decay: float = Field(0.1,",
            5,
        ),
        # Three of the five runs weigh a divergence; the others have nothing to stop.
        (
            ALIGNMENT,
            '"none", description="which view',
            '"first", description="which view',
            3,
        ),
        (
            TRAINING,
            "    warmup_steps: int",
            f"    {NEW_FIELD}\n    warmup_steps: int",
            0,
        ),
    ],
    ids=["an-arm", "values-of-a-schedule", "a-default-of-training", "a-default-of-alignment", "a-neutral-field"],
)
def test_an_edit_makes_other_runs_until_it_is_taken_back(
    finished_copy: Path, file: str, old: str, new: str, jobs: int
) -> None:
    edit(finished_copy, file, old, new)
    assert planned(finished_copy) == (new_runs(jobs) if jobs else {})
    edit(finished_copy, file, new, old)
    assert planned(finished_copy) == {}


# ---- configuration ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "jobs"),
    [
        ({"seeds": [0, 1]}, new_runs(4)),
        ({"arms": [*ARMS, "hidden"]}, new_runs(1)),
        ({"arms": [arm for arm in ARMS if arm != "hidden+output"]}, RESULTS),
        # The base is measured at its own step, and no run has another name.
        ({"checkpoints": [2, 4, 6]}, {**runs(4), **RESULTS}),
        ({"training__steps": 9, "checkpoints": [2, 6, 9]}, new_runs(4)),
        ({"evaluations__perplexity__lengths": [16, 24, 32]}, {"specification": 1, "perplexity": 5, **RESULTS}),
    ],
    ids=["a-seed", "an-arm", "an-arm-less", "a-checkpoint", "a-later-last-step", "an-evaluation-length"],
)
def test_a_changed_setting_reruns_what_it_concerns(finished_copy: Path, change: dict, jobs: dict[str, int]) -> None:
    edit_study(finished_copy, **change)
    assert planned(finished_copy) == jobs


def test_what_changes_the_computation_of_an_arm_reruns_that_arm(finished_copy: Path) -> None:
    """One setting on each of four arms. (alpha-1x is left what it was, and so keeps the run that it shared.)"""
    edit_study(
        finished_copy,
        overrides__baseline={"training": {"precision": "bf16"}},
        overrides__constant={"training": {"processes": 2}},
        **{"overrides__hidden+output": {"training": {"batch": 2}}},
        **{"overrides__step-linear__training__deepspeed": "zero2"},
    )
    assert planned(finished_copy) == new_runs(4)


def test_equal_runs_are_trained_once(project: Path, finished_copy: Path) -> None:
    """Under two names, in two tables, in two studies."""
    tables = {name: {"title": name, "arms": ["baseline", name]} for name in ("constant", "alpha-1x")}
    write_study(project, {**TINY, "arms": ARMS[:3], "tables": tables})
    assert planned(project) == {
        "data": 1,
        "specification": 6,  # of the corpus, of three runs, the base one of them, and of two evaluations
        **dict.fromkeys(("train", "perplexity", "misalignment"), 3),
        **RESULTS,
    }
    study = yaml.safe_load((finished_copy / "config/studies/tiny.yaml").read_text())
    write_study(finished_copy, {**study, "arms": ARMS[:3], "overrides": {}}, "two")
    assert planned(finished_copy, "two") == RESULTS
