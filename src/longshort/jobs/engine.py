"""All that is known of Snakemake's insides: where it keeps what, and how it prints, names and refuses jobs.

Neither Snakemake nor its SLURM plugin promises any of this. tests/contract/test_engine.py runs the real ones, and fails
where a new version does otherwise; the rest of the program asks here.
"""

from __future__ import annotations

import getpass
import inspect
import json
import os
import re
import subprocess
import sys
from base64 import urlsafe_b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from longshort.errors import StudyError
from longshort.records.publish import file_digest

# By the name of an output in base64: how it was made, and that its job has not ended.
RECORDS = (Path(".snakemake/metadata"), Path(".snakemake/incomplete"))
BACKUPS = Path(".snakemake/backups")
LONGEST_NAME = 254  # of a file there; a longer one is cut into folders, which begin with @
LARGEST_DIGESTED = 1_000_000  # bytes of an input whose content the engine compares
SLURM_LOGS = Path(".snakemake/slurm_logs")
REFUSED = re.compile(r"SLURM sbatch failed\. The error message was '(.*?)'\.?\n\s+sbatch call", re.DOTALL)
ID = re.compile("[0-9a-f]{16}")


class PlannedJob(NamedTuple):
    """A job that the engine would run, and why."""

    rule: str
    wildcards: dict[str, str]
    outputs: list[Path]
    reason: str

    @property
    def run(self) -> str:
        return self.wildcards["run"]

    @property
    def steps(self) -> str:
        return self.wildcards["steps"]

    @property
    def record(self) -> Path:
        return next(path for path in self.outputs if path.suffix == ".json")


class RememberedJob(NamedTuple):
    """A job as the engine remembers it, by each of its outputs: it runs again where one of these differs."""

    rule: str
    inputs: list[str]
    outputs: list[str]
    params: list[Any]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "snakemake", *arguments]


def name_the_user() -> None:
    """The engine, and what its jobs import, ask for the user's name and home. In a container, or where the directory
    service is not reached, there may be neither."""
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ["LOGNAME"] = str(os.getuid())
    if os.path.expanduser("~") == "~":
        os.environ["HOME"] = os.sep  # as containers have it


# ---- what would run --------------------------------------------------------------------------------------------------


def dry_run(study: str, target: str = "all") -> list[PlannedJob]:
    """The jobs that the engine would run for a target, read from what its dry run prints.

    Raises:
        StudyError: the engine refuses to plan, in its own words.
    """
    # What a killed job left is made again, as the next run of the engine will be told to.
    asked = command(target, "--dry-run", "--rerun-incomplete", "--config", f"study={study}")
    # A profile in the environment may have asked for less to be said.
    asked += ["--quiet", "host"]
    done = subprocess.run(asked, capture_output=True, encoding="utf-8", errors="replace")
    if done.returncode:
        raise StudyError(f"snakemake cannot plan {target}:\n{_error(done.stderr) or _error(done.stdout)}")
    blocks = re.split(r"\n(?=\[)", done.stdout + done.stderr)
    return [job for block in blocks if (job := _job(block))]


def planned(workflow: Any) -> list[PlannedJob]:
    """The jobs that an engine is about to run, before it has run any.

    workflow: as the engine's own files have it.
    """
    return [
        PlannedJob(job.rule.name, dict(job.wildcards_dict), list(map(Path, job.output)), str(workflow.dag.reason(job)))
        for job in workflow.dag.needrun_jobs()
    ]


def _job(block: str) -> PlannedJob | None:
    """A job from its printed lines: `rule train:` or `localrule all:`, then `    output: a, b` and the like."""
    rule = re.search(r"^(?:local)?rule (\w+):", block, re.MULTILINE)
    if not rule:
        return None
    said = dict(re.findall(r"^    (\w+): (.*)$", block, re.MULTILINE))
    wildcards = dict(pair.split("=", 1) for pair in said["wildcards"].split(", ")) if "wildcards" in said else {}
    named = said["output"].split(", ") if "output" in said else []
    outputs = [Path(path.removesuffix(" (update)")) for path in named]
    return PlannedJob(rule[1], wildcards, outputs, said.get("reason", ""))


def _error(output: str) -> str:
    """The engine's own error, without what it says before of its host and its progress."""
    error = re.search(r"^\w*(Error|Exception)\b.*", output, re.MULTILINE | re.DOTALL)
    return (error[0] if error else output).strip()


def forget_backup(output: Path) -> None:
    """Of an output that a job updates: where the job fails, the engine would give it back as it was, and remember it as
    made by what the job was asked. Without it the output is gone then, and made when the engine is run again."""
    (BACKUPS / (output.relative_to(output.anchor) if output.is_absolute() else output)).unlink(missing_ok=True)


# ---- what it is told -------------------------------------------------------------------------------------------------


def as_typed(value: Any, names: list[str]) -> Any:
    """The name that was typed as `--config key=NAME`, of which the engine makes a number where it can: 2024 of 2024,
    202411 of 2024_11. The value itself where none of the names, or several, become it."""
    if isinstance(value, str):
        return value
    typed = [name for name in names if repr(_taken_for(name)) == repr(value)]
    return typed[0] if len(typed) == 1 else value


def _taken_for(word: str) -> int | float | bool | str:
    for number in (int, float):
        try:
            return number(word)
        except ValueError:
            continue
    return {"True": True, "False": False}.get(word, word)


# ---- what it remembers -----------------------------------------------------------------------------------------------


def remembered() -> Callable[[str], bool]:
    """A test of whether the engine knows how an output was made, so that it notices other parameters or code."""
    known = {name for folder in RECORDS if folder.is_dir() for name in os.listdir(folder)}
    return lambda output: _record_name(output) in known


def _record_name(output: str) -> str:
    return _record_parts(output)[0]


def _record_parts(output: str) -> list[str]:
    name = urlsafe_b64encode(output.encode()).decode()
    parts = [name[start : start + LONGEST_NAME] for start in range(0, len(name), LONGEST_NAME)]
    return [*(f"@{part}" for part in parts[:-1]), parts[-1]]


def remembers(job: RememberedJob, shell: str) -> bool | None:
    """Whether the engine knows each output of a job as made by its parameters, inputs and command as they are now; None
    where it does not know them all. shell: the command of its rule, as it is written there."""
    told = _told(job, shell)
    known = [_memory_of(output) for output in job.outputs]
    return all(said.get(key) == value for said in known for key, value in told.items()) if all(known) else None


def is_done(job: RememberedJob) -> bool:
    """Whether all outputs of a job are there, and none was left by one that was killed."""
    left = any(RECORDS[1].joinpath(*_record_parts(output)).exists() for output in job.outputs)
    return all(map(os.path.exists, job.outputs)) and not left


def tell(job: RememberedJob, shell: str) -> None:
    """Lets the engine remember the outputs of a job as made by its rule as it stands now, from its inputs as they are
    now: as `snakemake --touch` would, but with ages and all other jobs left alone."""
    told = _told(job, shell)
    small = [path for path in map(Path, job.inputs) if path.is_file() and path.stat().st_size <= LARGEST_DIGESTED]
    digests = {str(path): f"sha256:{file_digest(path)}" for path in small}
    for output in job.outputs:
        said = {**_memory_of(output), **told, "rule": job.rule, "input_checksums": digests}
        RECORDS[0].joinpath(*_record_parts(output)).write_text(json.dumps(said), encoding="utf-8")


def reads_others(job: RememberedJob, made_here: str) -> bool:
    """Whether a job would read other files than its outputs were made from, as far as the engine remembers these: one
    came, is gone, or holds something else. (Of a large one it compares the age, and goes on doing so.)

    made_here: the folder of what jobs make, of which other files may come and go.
    """
    known = [_memory_of(output) for output in job.outputs]
    read = {path for said in known for path in said.get("input", [])}
    digests = {(path, sha) for said in known for path, sha in (said.get("input_checksums") or {}).items()}
    outside = [path for path in read.symmetric_difference(job.inputs) if Path(path).parts[0] != made_here]
    came_or_gone = [path for path in outside if path not in read or not Path(path).exists()]
    there = [(path, sha) for path, sha in digests if path in job.inputs and Path(path).is_file()]
    return bool(came_or_gone) or any(sha != f"sha256:{file_digest(Path(path))}" for path, sha in there)


def _told(job: RememberedJob, shell: str) -> dict[str, Any]:
    return {"code": shell, "input": sorted(job.inputs), "params": sorted(map(repr, job.params))}


def _memory_of(output: str) -> dict[str, Any]:
    try:
        said = json.loads(RECORDS[0].joinpath(*_record_parts(output)).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return said if isinstance(said, dict) else {}


# ---- what it asks functions for --------------------------------------------------------------------------------------


def signed(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, for a rule's resources. The engine asks for the signature of every function of every job: written
    down, planning is a tenth faster."""
    function.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]
    return function


# ---- its SLURM plugin ------------------------------------------------------------------------------------------------


def slurm_logs(job: str) -> list[Path]:
    """Where the plugin lets SLURM write what SLURM itself says in a job."""
    return list(SLURM_LOGS.glob(f"**/{job}.log"))


def ids_in(comment: str) -> set[str]:
    """The ids of the runs and corpora that a job of the queue makes, from the comment that the plugin gave it."""
    return set(ID.findall(comment)) if comment.startswith("rule_") else set()


def rule_in(comment: str) -> str:
    """The rule that a job of the queue runs, from the comment that the plugin gave it."""
    return comment.removeprefix("rule_").partition("_wildcards_")[0]


def refusals(log: str) -> list[str]:
    """What SLURM said to each submission that it refused, as the engine's log quotes it."""
    return REFUSED.findall(log)
