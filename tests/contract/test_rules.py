"""What a study says reaches the jobs of every rule: what they ask for and their commands, as the engine plans them.

No run shows most of it: on one machine nothing limits memory, time or devices, and what is execution alone is no part
of any number.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from longshort.identity.strict import NOT_IDENTITY
from longshort.study.resources import VARIABLES
from longshort.study.schema.training import Training
from tests.support.project import edit_study, run_snakemake

NEEDS = {"data_cores": 3, "training_memory_mb": 7000, "training_minutes": 70}
NEEDS |= {"evaluation_memory_mb": 5000, "evaluation_minutes": 50}
EXECUTION = {"micro_batch": 1, "chunk_size": 64, "gradient_checkpointing": True, "threads": 4}
EXECUTION |= {"logging_steps": 3, "checkpoint_minutes": 7}
LONGPPL = {"evaluator": "long", "short": 16, "stride": 8, "lengths": [64], "documents": 3}
LONGBENCH = {"source": {"kind": "stand-in", "items_per_task": 1}, "max_length": 128, "max_new_tokens": 4}
Asked = tuple[int, dict[str, str]]

LITTLE = {"mem_mb": "4000", "runtime": "240", "slurm_partition": "cpus"}
TRAINING, EVALUATION = {"mem_mb": "7000", "runtime": "70"}, {"mem_mb": "5000", "runtime": "50"}
CPU = {"slurm_partition": "cpus"}
GPU = {"slurm_partition": "gpus", "gres": "gpu:1", "devices": "1"}
TWO = {**GPU, "gres": "gpu:2"}
OF_CORPUS: dict[str, list[Asked]] = {"data": [(3, LITTLE)], "longbench_stand_in": [(1, LITTLE)]}
APART = ("perplexity", "misalignment", "longppl", "longbench_e", "longbench_e_share", "key_tokens")
TOGETHER = ("evaluate", "key_tokens")


def trained(base: dict[str, str], arms: dict[str, str]) -> list[Asked]:
    """The bases by one process of one thread, the arms by two of four."""
    return [(1, {**TRAINING, **base}), (8, {**TRAINING, **arms})]


def measured(where: dict[str, str], *rules: str) -> dict[str, list[Asked]]:
    return {rule: [(1, {**EVALUATION, **where})] for rule in rules}


@pytest.mark.parametrize(
    ("device", "evaluations", "seen", "asked"),
    [
        ("gpu", "apart", "0,1", {**OF_CORPUS, "train": trained(GPU, TWO), **measured(GPU, *APART)}),
        ("cpu", "together", "", {**OF_CORPUS, "train": trained(CPU, CPU), **measured(CPU, *TOGETHER)}),
    ],
)
def test_jobs_ask_for_what_the_study_says(
    project: Path, device: str, evaluations: str, seen: str, asked: dict[str, list[Asked]]
) -> None:
    (project / "slurm").mkdir()
    (project / "slurm/site.yaml").write_text("partition: gpus\ncpu_partition: cpus\n")
    shared = {"jobs": 2} if evaluations == "apart" else {}
    edit_study(
        project,
        needs={**NEEDS, "device": device, "evaluations": evaluations},
        data__max_left_out=0.02,
        model__long_base=True,
        model__training__batch=8,
        training__processes=2,
        **{f"training__{key}": value for key, value in EXECUTION.items()},
        evaluations__longppl=LONGPPL,
        evaluations__longbench_e={**LONGBENCH, **shared},
    )
    # Jobs inherit the engine's environment.
    with (project / "Snakefile").open("a") as file:
        file.write("\nimport os\nprint('seen:', repr(os.environ['CUDA_VISIBLE_DEVICES']))\n")
    dry_run = ("all", "--dry-run", "--printshellcmds", "--cores", "8")
    of_no_site = dict.fromkeys(VARIABLES.values(), "")  # as a login node may have them
    said = run_snakemake(project, *dry_run, CUDA_VISIBLE_DEVICES="0,1", **of_no_site).stdout
    assert f"seen: {seen!r}\n" in said
    jobs = planned(said)
    found: dict[str, list[Asked]] = {}
    for rule, threads, resources, _ in sorted(jobs, key=lambda job: job[1]):
        if (threads, resources) not in found.setdefault(rule, []):
            found[rule].append((threads, resources))
    assert found == asked
    commands = {(rule, threads): command for rule, threads, _, command in jobs}
    execution = {f"--{key.replace('_', '-')}": str(int(value)) for key, value in EXECUTION.items()}
    assert options(commands["train", 8]).items() >= execution.items()
    assert options(commands["data", 3]).items() >= {"--max-left-out": "0.02", "--cores": "3"}.items()


def test_every_setting_of_a_training_that_is_no_part_of_its_identity_is_asked_for_here() -> None:
    """The others reach it in its specification; DeepSpeed's file as its content, trackers in words of their own."""
    marked = {name for name, field in Training.model_fields.items() if field.json_schema_extra == NOT_IDENTITY}
    assert marked == EXECUTION.keys() | {"deepspeed", "report_to"}


def planned(said: str) -> list[tuple[str, int, dict[str, str], str]]:
    """Rule, threads, resources and command of each job that a cluster would get, from what a dry run prints."""
    jobs = []
    for block in re.split(r"\n(?=\[)", said):
        facts = dict(re.findall(r"^    (\w+): (.*)$", block, re.MULTILINE))
        asked = dict(re.findall(r"\b(mem_mb|runtime|slurm_partition|gres|devices)=([^,]+)", facts.get("resources", "")))
        if asked and (rule := re.search(r"^rule (\w+):", block, re.MULTILINE)):
            jobs.append((rule[1], int(facts.get("threads", 1)), asked, block.partition("Shell command:")[2]))
    return jobs


def options(command: str) -> dict[str, str]:
    """Each option of a command with the word after it."""
    words = command.split()
    return dict(zip(words, words[1:], strict=False))
