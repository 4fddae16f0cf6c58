"""The training stage, run by hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas

from tests.support import forkserver


class Stage:
    """`python -m longshort.training` on the finished study's corpus and base, with a specification of its own."""

    def __init__(self, finished: Path, folder: Path, arm: str = "hidden+output") -> None:
        self.finished, self.folder = finished, folder
        self.spec: dict[str, Any] = json.loads((finished / f"results/tiny/arms/{arm}/seed-0/spec.json").read_text())
        self.base = next(finished.glob("results/runs/*/training/4.json"))
        self.data = next(finished.glob("results/data/*/manifest.json"))

    def arguments(self, steps: str, work: str, *options: str) -> list[str]:
        (self.folder / "spec.json").write_text(json.dumps(self.spec))
        arguments = ["-m", "longshort.training", "--spec", self.folder / "spec.json", "--base", self.base]
        arguments += ["--data", self.data, "--steps", steps]
        arguments += ["--out", self.folder / f"{work}-{steps}.json", "--work", self.folder / work, *options]
        return [str(part) for part in arguments]

    def command(self, steps: str, work: str = "work", *options: str) -> list[str]:
        """For a process of its own, which can be killed."""
        return [sys.executable, *self.arguments(steps, work, *options)]

    def start(self, steps: str, work: str = "work", *options: str) -> subprocess.Popen[str]:
        return self.popen(self.command(steps, work, *options))

    def popen(self, command: list[str]) -> subprocess.Popen[str]:
        return subprocess.Popen(
            command,
            cwd=self.finished,
            env={**os.environ, "PYTHONPATH": str(self.finished / "src")},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, steps: str, work: str = "work", *options: str) -> tuple[dict[str, Any], pandas.DataFrame, str]:
        """Record, log without its timing, and what was printed."""
        process = self.popen([forkserver.python(), *self.arguments(steps, work, *options)])
        printed, _ = process.communicate()
        assert process.returncode == 0, printed
        out = self.folder / f"{work}-{steps}.json"
        log = pandas.read_parquet(out.with_suffix(".parquet"))
        return json.loads(out.read_text()), log.drop(columns="tokens_per_second", errors="ignore"), printed
