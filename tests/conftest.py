"""A temporary project with a tiny study: the real workflow, a corpus of a few files, a few thousand weights."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
os.environ["HF_HUB_OFFLINE"] = "1"

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
tables:
  main: {title: Main, arms: all}
""")


def write_corpus(folder: Path, documents: int = 24) -> None:
    folder.mkdir()
    for number in range(documents):
        words = " ".join(f"{(number * 7 + k * k) % 97}" for k in range(40 + 5 * number))
        (folder / f"document-{number:02}.txt").write_text(words)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The workflow as it stands, with the study `tiny` and no results."""
    for name in ("Snakefile", "workflow", "config", "envs", "src"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        else:
            shutil.copy(source, tmp_path / name)
    write_corpus(tmp_path / "corpus")
    write_study(tmp_path, TINY)
    return tmp_path


def write_study(project: Path, study: dict, name: str = "tiny") -> None:
    (project / "config" / "studies" / f"{name}.yaml").write_text(yaml.safe_dump(study, sort_keys=False))


@pytest.fixture
def snakemake(project: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs the real engine in the project, on the project's own copy of the source."""

    def run(*arguments: str, study: str = "tiny", check: bool = True) -> subprocess.CompletedProcess[str]:
        environment = {
            **os.environ,
            "PYTHONPATH": str(project / "src"),
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
        }
        command = [sys.executable, "-m", "snakemake", "--cores", "2", *arguments, "--config", f"study={study}"]
        done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True)
        if check and done.returncode:
            logs = "\n".join(f"== {log}\n{log.read_text()[-2000:]}" for log in project.glob("results/**/*.log"))
            raise AssertionError(f"{' '.join(command)}\n{done.stdout}\n{done.stderr}\n{logs}")
        return done

    return run
