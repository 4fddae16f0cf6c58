"""The training stage, run by hand, and killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas

from tests.support import forkserver
from tests.support.waiting import wait_until


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


def ranks(group: int) -> list[int]:
    """The training processes: those that torchrun, the leader of its group, has started, or the leader itself."""
    command = Path(f"/proc/{group}/cmdline").read_text().split("\0")
    if "torch.distributed.run" not in command:
        return [group]
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(group)], capture_output=True, text=True, check=True)
    return [int(pid) for pid in listed.stdout.split()]


def wait_for_step(work: Path, step: int) -> int:
    """Waits until a training below work has logged a step; its process group."""

    def logged() -> bool:
        return any(json.loads(line)["step"] >= step for log in work.glob("*/log.jsonl") for line in whole_lines(log))

    wait_until(logged, lambda: f"no step {step} in {list(work.glob('*/*'))}")
    return int(json.loads(next(work.glob("*/owner.json")).read_text())["group"])


def whole_lines(log: Path) -> list[str]:
    return [line for line in log.read_text().splitlines() if line.endswith("}")]


def kill_everything(stage: subprocess.Popen[str], group: int) -> None:
    training = ranks(group)
    stage.kill()
    os.killpg(group, signal.SIGKILL)
    # They end with their torchrun.
    wait_until(lambda: not any(Path(f"/proc/{rank}").exists() for rank in training), lambda: f"{training}")
