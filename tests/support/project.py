"""A temporary project with a tiny study: the real workflow, a corpus of a few files, a few thousand weights."""

from __future__ import annotations

import copy
import os
import re
import shutil
import subprocess
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock

from tests.support import forkserver

ROOT = Path(__file__).resolve().parents[2]
os.environ["HF_HUB_OFFLINE"] = "1"
# What another process is just writing, and renames while a tree is copied.
UNFINISHED = ("*.pyc.*", "*.part")

TINY = yaml.safe_load("""
title: A study of seconds
question: Does it run?
data:
  corpus: {kind: text, path: corpus}
  validation: 0.1
  test: 0.3
model:
  kind: trained
  architecture: {hidden_size: 16, intermediate_size: 32, layers: 3, heads: 2}
  training: {steps: 4, batch: 4, learning_rate: 0.01}
  max_length: 128
lengths: {train: 16, test: 64}
training: {steps: 6, batch: 4, learning_rate: 0.01, logging_steps: 1}
checkpoints: [2, 6]
seeds: [0]
alignment: {alpha: 1.0, divergence: symmetric-kl}
arms: [baseline, constant]
evaluations:
  perplexity: {lengths: [16, 32], documents: 3}
  misalignment: {sequences: 4, lengths_per_sequence: 3, beyond: [2]}
needs: {evaluations: apart}  # so that the engine's jobs bear the names of the metrics
tables:
  main: {title: Main, arms: all}
""")


SYNTHETIC = {
    "kind": "synthetic",
    "title": "Tiny",
    "question": "Does it run?",
    "tasks": ["mean", "length"],
    "encodings": ["none", "rope"],
    "parameterisations": ["identity", "log"],
    "alpha": 0.1,
    "seeds": [0, 1],
    "lengths": {"train": 4, "test": 8},
    "model": {"features": 8, "layers": 1, "heads": 2},
    "training": {"steps": 6, "batch": 8, "learning_rate": 0.01, "warmup_steps": 1},
    "test_sequences": 5,
    "cap": 100,
}


def write_corpus(folder: Path, documents: int = 24) -> None:
    folder.mkdir()
    for number in range(documents):
        words = " ".join(f"{(number * 7 + k * k) % 97}" for k in range(40 + 5 * number))
        (folder / f"document-{number:02}.txt").write_text(words)


def make_project(folder: Path, study: dict) -> Path:
    """The workflow as it stands, with the study `tiny` and no results."""
    folder.mkdir()
    for name in ("Snakefile", "workflow", "config", "envs", "src"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns(*UNFINISHED, "*.egg-info"))
        else:
            shutil.copy(source, folder / name)
    write_corpus(folder / "corpus")
    write_study(folder, study)
    return folder


def write_study(project: Path, study: dict, name: str = "tiny") -> None:
    (project / "config" / "studies" / f"{name}.yaml").write_text(yaml.safe_dump(study, sort_keys=False))


def on_a_small_disk(folder: Path, size: int, command: list[str]) -> list[str]:
    """The command, run where folder is a file system of so many bytes, and once more where that has grown."""
    script = """
    folder="$1"; size="$2"; shift 2
    mount -t tmpfs -o size="$size" small "$folder" && "$@"; echo "exit code $?"
    mount -o remount,size=100m "$folder" && exec "$@"
    """
    folder.mkdir(exist_ok=True)
    return ["unshare", "--map-root-user", "--mount", "sh", "-c", script, "sh", str(folder), str(size), *command]


def run_python(
    project: Path, *arguments: str, python: str | None = None, check: bool = True, **environment: str
) -> subprocess.CompletedProcess[str]:
    """A Python in the project, on the project's own copy of the source: a fork, unless another one is given."""
    if python is None:
        python, environment = forkserver.python(), {"HF_HOME": forkserver.hugging_face(), **environment}
    done = subprocess.run(
        [python, *arguments],
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(project / "src"), **environment},
        capture_output=True,
        text=True,
    )
    if check and done.returncode:
        logs = "\n".join(f"== {log}\n{log.read_text()[-2000:]}" for log in project.glob("results/**/*.log"))
        raise AssertionError(f"{' '.join(arguments)}\n{done.stdout}\n{done.stderr}\n{logs}")
    return done


def run_snakemake(
    project: Path, *arguments: str, study: str = "tiny", **options: Any
) -> subprocess.CompletedProcess[str]:
    """The real engine."""
    command = ["-m", "snakemake", "--cores", "2", *arguments, "--config", f"study={study}"]
    return run_python(project, *command, **options)


def longshort(project: Path, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return run_python(project, "-m", "longshort.cli", *arguments, **options)


def planned(project: Path, study: str = "tiny") -> dict[str, int]:
    """How many jobs of which rule the engine would run."""
    output = run_snakemake(project, "all", "--dry-run", study=study).stdout
    stats = re.search(r"Job stats:\n.*\n-+.*\n((?:\S+ +\d+\n)+)", output)
    jobs = {rule: int(count) for rule, count in re.findall(r"(\S+) +(\d+)\n", stats[1])} if stats else {}
    return {rule: count for rule, count in jobs.items() if rule not in ("total", "all")}


def edit(project: Path, file: str, old: str, new: str) -> None:
    text, before = (project / file).read_text(), (project / file).stat().st_mtime
    assert old in text
    (project / file).write_text(text.replace(old, new, 1))
    # Python tells what it compiled by whole seconds, and takes an edit within one for none.
    os.utime(project / file, (max(time.time(), before + 1),) * 2)


def edit_study(project: Path, **changed: object) -> None:
    path = project / "config/studies/tiny.yaml"
    study = yaml.safe_load(path.read_text())
    for key, value in changed.items():
        *parents, last = key.split("__")
        place = study
        for parent in parents:
            place = place[parent]
        place[last] = value
    path.write_text(yaml.safe_dump(study))


def run_whole_study(project: Path) -> None:
    study = copy.deepcopy(TINY)
    study["data"]["corpus"] = {"kind": "text", "path": "modules"}
    study["model"]["training"]["processes"] = 2
    study["arms"] = ["baseline", "constant", "alpha-1x", "hidden+output", "step-linear"]
    study["overrides"] = {"step-linear": {"training": {"learning_rate": 1e30}}}
    study["evaluations"]["longbench_e"] = {
        "source": {"kind": "stand-in", "items_per_task": 1},
        "max_length": 128,
        "max_new_tokens": 4,
    }
    make_project(project, study)
    write_modules(project / "modules")
    run_snakemake(project, "all")


def once(shared: Path, name: str, make: Callable[[Path], None]) -> Path:
    """A project that the first process to ask for it makes, for all processes of a test run."""
    folder = shared / name
    with FileLock(shared / f"{name}.lock"):
        if not folder.exists():
            folder.mkdir()
            make(folder / "project")
            (folder / "made").touch()
    assert (folder / "made").exists(), f"making {folder} failed, for this process or before"
    return folder / "project"


def write_modules(folder: Path, documents: int = 120) -> None:
    """Documents that items of LongBench-E's kinds can be made from: modules of the standard library."""
    folder.mkdir()
    found = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    for path in [path for path in found if 2000 < path.stat().st_size < 40_000][:documents]:
        shutil.copy(path, folder / f"{path.stem}.txt")
