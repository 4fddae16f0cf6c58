"""The sbatch line of each kind of job, as the plugin itself writes it, and what a cluster may want to be told."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from snakemake_executor_plugin_slurm import ExecutorSettings
from snakemake_executor_plugin_slurm.submit_string import get_submit_command
from snakemake_executor_plugin_slurm.utils import set_gres_string
from snakemake_executor_plugin_slurm.validation import validate_slurm_extra

from longshort.commands import engine_run
from longshort.models import load
from longshort.study import resolve, resources
from tests.support.models import ARCHITECTURE
from tests.support.project import ROOT, edit_study, run_snakemake

PROFILE = yaml.safe_load((ROOT / "slurm/config.yaml").read_text())


class Resources(dict[str, Any]):
    """As the engine hands them to a plugin: by attribute and by key."""

    __getattr__ = dict.__getitem__


@pytest.fixture
def study_of(project: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(project)
    for name in resources.VARIABLES.values():
        monkeypatch.delenv(name, raising=False)

    def make(site: str = "", **changes: object) -> resolve.ResolvedStudy:
        (project / "slurm").mkdir(exist_ok=True)
        (project / "slurm/site.yaml").write_text(site)
        edit_study(project, **changes)
        return resolve.load("tiny")

    return make


def sbatch(asked: resources.Resources, threads: int, run: str | None = None, attempt: int = 1) -> str:
    """What follows the job's name, log and comment in the call of sbatch."""
    wildcards = SimpleNamespace(run=run)
    values = {}
    for name, value in {**PROFILE["default-resources"], **asked}.items():
        if callable(value):
            value = value(wildcards, attempt) if "attempt" in value.__signature__.parameters else value(wildcards)
        if value is not None:
            values[name] = value.strip("'") if isinstance(value, str) else value
    job = SimpleNamespace(resources=Resources(values), threads=threads, is_group=lambda: False)
    validate_slurm_extra(job)
    given = {"run_uuid": "U", "slurm_logfile": "L", "comment_str": "C", "workdir": "/w"}
    given["account"] = f"-A {values['slurm_account']}" if "slurm_account" in values else ""
    given["partition"] = f"-p {values['slurm_partition']}" if "slurm_partition" in values else ""
    settings = ExecutorSettings(no_requeue=PROFILE["slurm-no-requeue"])
    line = get_submit_command(job, given, settings=settings) + set_gres_string(job)
    return " ".join(line.partition("--comment C")[2].split())


def training(study: resolve.ResolvedStudy, attempt: int = 1) -> str:
    run = next(iter(study.arm_runs["constant"].values()))
    return sbatch(study.training_resources(), study.cpus(run), run, attempt)


COMMON = "--no-requeue --ntasks=1"
END = "--signal=TERM@120 -D /w"
GPU = {"needs": {"device": "gpu"}}
EARLIER = {"needs": {"save_minutes": 15}}


@pytest.mark.parametrize(
    ("site", "changes", "line"),
    [
        ("", {}, f"-t 240 --mem 4000 {COMMON} --cpus-per-task=1 {END}"),
        ("", EARLIER, f"-t 240 --mem 4000 {COMMON} --cpus-per-task=1 --signal=TERM@900 -D /w"),
        ("", GPU, f"-t 240 --mem 4000 --no-requeue --cpus-per-task=1 {END} --gres=gpu:1"),
        (
            "partition: long\naccount: me",
            {**GPU, "training__processes": 8, "training__threads": 4, "training__batch": 8},
            f"-A me -p long -t 240 --mem 4000 --no-requeue --cpus-per-task=32 {END} --gres=gpu:8",
        ),
        (
            "",
            {**GPU, "training__processes": 8, "training__nodes": 2, "training__batch": 16},
            f"-t 240 --mem 4000 --nodes=2 --no-requeue --ntasks=2 --cpus-per-task=8 {END} --gres=gpu:8",
        ),
        ("gpu_type: a100", GPU, f"-t 240 --mem 4000 --no-requeue --cpus-per-task=1 {END} --gres=gpu:a100:1"),
        (
            "constraint: 'fast&big'\nqos: high",
            {"needs": {"training_memory_mb": 9000, "training_minutes": 30}},
            f"-t 30 -C 'fast&big' --qos=high --mem 9000 {COMMON} --cpus-per-task=1 {END}",
        ),
    ],
    ids=["cpu", "asked-earlier", "gpu", "8 gpus", "2 x 8 gpus", "typed gpu", "constraint"],
)
def test_a_training_asks_for(study_of: Any, site: str, changes: dict[str, Any], line: str) -> None:
    assert training(study_of(site, **changes)) == line


def test_the_next_attempt_gets_more_memory_and_time(study_of: Any) -> None:
    assert training(study_of(), attempt=3).startswith("-t 720 --mem 12000")


def test_the_next_attempt_gets_no_more_than_there_is(study_of: Any) -> None:
    """What asks for more waits for ever, or is refused. A first attempt asks for what its study says."""
    study = study_of("most_minutes: 300\nmost_memory_mb: '3000'")
    first, second, third = (training(study, attempt) for attempt in (1, 2, 3))
    assert first.startswith("-t 240 --mem 4000 ")
    assert second == third and second.startswith("-t 300 --mem 4000 ")


def test_a_study_goes_on_whatever_one_of_its_jobs_or_engines_does() -> None:
    """Overnight: a job that fails is tried again, one that failed for good lets all others run, an engine that was
    killed bars no other one (its lock is our own), and slurmctld may restart, for an hour."""
    assert (PROFILE["keep-going"], PROFILE["nolock"], PROFILE["rerun-incomplete"]) == (True, True, True)
    assert PROFILE["retries"] >= 1 and PROFILE["slurm-status-attempts"] >= 60


def test_an_evaluation_takes_one_gpu_and_data_none(study_of: Any) -> None:
    """Nodes without GPUs have another quality of service, and none of the features of those with them."""
    site = "partition: gpus\nqos: high\nconstraint: a100\ncpu_partition: cpus"
    study = study_of(site, **GPU, training__processes=4)
    line = sbatch(study.evaluation_resources(), 1)
    assert line.startswith("-p gpus -t 240 -C a100 --qos=high") and line.endswith("--gres=gpu:1")
    assert sbatch(study.data_resources(), 1).startswith("-p cpus -t 240 --mem 4000")
    line = sbatch(study_of(f"{site}\ncpu_qos: low\ncpu_constraint: big", **GPU).data_resources(), 1)
    assert line.startswith("-p cpus -t 240 -C big --qos=low --mem 4000") and "gres" not in line


def test_a_base_that_is_taken_as_it_is_asks_for_no_training(study_of: Any) -> None:
    load.from_scratch(ARCHITECTURE, vocabulary=257, separator=256, length=128, seed=0).save_pretrained("model")
    model = {"kind": "pretrained", "name": "model", "layers": 3, "max_length": 128}
    needs = {"device": "gpu", "training_memory_mb": 200_000, "training_minutes": 600}
    study = study_of("partition: gpus\ncpu_partition: cpus", model=model, needs=needs)
    asked = sbatch(study.training_resources(), 1, study.bases[0], attempt=2)
    assert asked.startswith("-p cpus -t 480 --mem 8000") and training(study).startswith("-p gpus -t 600 --mem 200000")


def test_runs_of_one_study_may_ask_for_different_things(study_of: Any) -> None:
    """The base is trained by one process, the arms by two on two nodes."""
    study = study_of(**GPU, training__nodes=2)
    base = sbatch(study.training_resources(), study.cpus(study.bases[0]), study.bases[0])
    assert base.endswith(f"--no-requeue --cpus-per-task=1 {END} --gres=gpu:1")
    assert "--nodes=2 --no-requeue --ntasks=2" in training(study)


def test_the_environment_stands_above_the_site_file(study_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SBATCH_ACCOUNT", "other")
    assert training(study_of("account: me\nqos: high")).startswith("-A other -t 240 --qos=high")


@pytest.mark.parametrize(
    ("site", "said"),
    [
        (
            "acount: me",
            "slurm/site.yaml: acount = 'me': unknown key; did you mean 'account'? known here: account, constraint",
        ),
        ("account: me; rm -rf .", "slurm/site.yaml: account = 'me; rm -rf .': must have the form"),
        (
            "just words",
            "slurm/site.yaml holds no mapping of keys; write one `key: value` a line, with the keys a",
        ),
    ],
)
def test_a_site_that_cannot_be_meant_is_refused_before_anything_runs(project: Path, site: str, said: str) -> None:
    (project / "slurm").mkdir()
    (project / "slurm/site.yaml").write_text(site)
    done = run_snakemake(project, "-n", "all", check=False)
    assert done.returncode != 0 and said in done.stdout + done.stderr and "Traceback" not in done.stderr


def test_a_refusal_of_slurm_is_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The message as plugin 2.8 logs it; the refusal itself is seen on the cluster of tests/slurm."""
    message = "sbatch: error: Batch job submission failed: Invalid account or account/partition combination specified"
    (tmp_path / "log").write_text(
        f"SLURM sbatch failed. The error message was '{message}'.\n    sbatch call:\n        sbatch --parsable\n"
    )
    engine_run.explain([str(tmp_path / "log")])
    said = capsys.readouterr().err
    assert message in said and "slurm/site.yaml" in said and "account ($SBATCH_ACCOUNT)" in said
