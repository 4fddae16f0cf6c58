"""Random kills in a small study, again and again: is a number wrong or lost, does anything hang, what is done twice?

    python benchmarks/chaos.py --kills N [--seed S] [--mode local|slurm] [--json FILE]

A study of two arms x two seeds with a checkpoint after every step, one arm trained by two processes, is run once
undisturbed, and then as often as it takes for N kills. Every few seconds, and every second time not before a training
has made a further step, as most of so small a study is the start of jobs, something that runs is sent SIGKILL: the
driver (Snakemake), a job with all its processes, or one training process; in the mode slurm, on the cluster of
tests/slurm, also a node with all that runs on it, a node's daemon alone, the controller, and accounting; and a job is
ended by scancel. What an init or an administrator would start again is started again seconds later; so is the driver,
as a person would. No study is killed more than 25 times.

kills: how many. wrong: numbers that differ from the undisturbed study's. lost: those that are not there. hanging:
studies of which nothing moved for ten minutes, or whose driver failed again and again. needless_steps_share: steps that
were trained again, of all steps.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pandas
import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from side_by_side import report  # noqa: E402
from tests.slurm.cluster import NODES, Cluster  # noqa: E402
from tests.support.project import TINY, make_project  # noqa: E402

STEPS = 120
KILLS_A_STUDY = 25
SECONDS_BETWEEN = 2.0, 12.0
PATIENCE = 600.0
# How often more than something was killed a study's driver may be started.
MOST_STARTS = 10
KEYS = ["arm", "seed", "step", "metric", "length", "task", "document"]


class Study:
    """One study in a folder of its own, its driver, and what can be killed of it."""

    def __init__(self, folder: Path, cluster: Cluster | None) -> None:
        study = copy.deepcopy(TINY)
        study.update(seeds=[0, 1], checkpoints=[STEPS])
        study["training"].update(steps=STEPS, checkpoint_minutes=0)
        study["overrides"] = {"constant": {"training": {"processes": 2}}}
        self.folder, self.cluster = make_project(folder, study), cluster
        shutil.copytree(ROOT / "slurm", self.folder / "slurm", ignore=shutil.ignore_patterns("site.yaml"))
        self.driver: subprocess.Popen[bytes] | None = None
        self.steps: dict[Path, int] = {}
        self.again = self.starts = 0

    def start(self) -> None:
        self.starts += 1
        environment = {**os.environ, "PYTHONPATH": str(self.folder / "src"), "OMP_NUM_THREADS": "1"}
        environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment["PATH"]])
        options = ["all", "--cores", "2", "--retries", "3", "--keep-going", "--rerun-incomplete", "--nolock"]
        if self.cluster is not None:
            environment.update(self.cluster.environment)
            environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment["PATH"]])
            options = ["--profile", "slurm", "all", "--slurm-init-seconds-before-status-checks", "2"]
            options += ["--seconds-between-status-checks", "2"]
        with (self.folder / "driver.log").open("ab") as out:
            self.driver = subprocess.Popen(
                [sys.executable, "-m", "snakemake", *options, "--config", "study=tiny"],
                cwd=self.folder,
                env=environment,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )

    def ended(self) -> bool:
        return self.driver is not None and self.driver.poll() == 0

    def numbers(self) -> pandas.DataFrame:
        table = pandas.read_parquet(self.folder / "results/tiny/metrics.parquet")
        table.index = pandas.Index([" ".join(map(str, row)) for row in table[KEYS].itertuples(index=False)])
        return table[["value", "n", "status"]].map(repr)  # to the last digit, and NaN equals NaN

    def look(self) -> None:
        """Counts the steps that an attempt takes out of a training's log, because it trains them again."""
        for log in self.folder.glob("work/*/log.jsonl"):
            with contextlib.suppress(FileNotFoundError):
                lines = log.read_bytes().count(b"\n")
                self.again += max(0, self.steps.get(log, 0) - lines)
                self.steps[log] = lines

    def sleep(self, seconds: float) -> None:
        """Looks all the time: a log is shorter for as long as a training needs to start."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and not self.ended():
            self.look()
            time.sleep(0.2)

    def wait_for_a_step(self) -> bool:
        """Whether a training made one within a minute."""
        self.look()
        before, until = sum(self.steps.values()), time.monotonic() + 60
        while sum(self.steps.values()) <= before and time.monotonic() < until and not self.ended():
            time.sleep(0.05)
            self.look()
        return sum(self.steps.values()) > before

    def moved(self) -> float:
        """When something last changed; a beating heart alone is no movement."""
        times = [0.0]
        for folder, _, files in os.walk(self.folder):  # which passes over what vanishes meanwhile
            for path in (Path(folder, name) for name in files):
                if path.suffix in (".log", ".jsonl", ".json", ".parquet") and path.name != "owner.json":
                    with contextlib.suppress(FileNotFoundError):
                        times.append(path.stat().st_mtime)
        return max(times)

    # ---- what can be killed; each says whether there was something

    def kill_driver(self) -> bool:
        if self.driver is None or self.driver.poll() is not None:
            return False
        self.driver.kill()
        self.driver.wait()
        return True

    def kill_job(self, chance: random.Random) -> bool:
        """A stage with everything below it."""
        stages = self._processes(lambda command: "-m longshort." in command and "worker" not in command)
        if not stages:
            return False
        stage = chance.choice(stages)
        with contextlib.suppress(psutil.Error):
            for process in [*stage.children(recursive=True), stage]:
                process.kill()
        return True

    def kill_rank(self, chance: random.Random) -> bool:
        ranks = self._processes(lambda command: "longshort.training.worker" in command and "distributed" not in command)
        if not ranks:
            return False
        with contextlib.suppress(psutil.Error):
            chance.choice(ranks).kill()
        return True

    def _processes(self, chosen: Callable[[str], bool]) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                command = process.cmdline()
                is_python = bool(command) and Path(command[0]).name.startswith("python")
                if is_python and process.cwd() == str(self.folder) and chosen(" ".join(command)):
                    found.append(process)
        return sorted(found, key=lambda process: process.pid)


def cancel(cluster: Cluster, chance: random.Random) -> bool:
    jobs = [job for job, state in cluster.squeue().items() if state == "RUNNING"]
    if jobs:
        cluster.run("scancel", chance.choice(jobs))
    return bool(jobs)


def lose_node(study: Study, cluster: Cluster, chance: random.Random, alone: bool) -> bool:
    """alone: its daemon dies, and what runs there runs on. It is back before or after the controller gives it up."""
    node = chance.choice(NODES)
    (cluster.kill_daemon if alone else cluster.stop_node)(node)
    study.sleep(chance.choice([1, 30]))
    cluster.start_node(node)
    return True


def lose_controller(study: Study, cluster: Cluster, chance: random.Random) -> bool:
    cluster.stop_controller(signal.SIGKILL)
    study.sleep(chance.choice([2, 20]))
    cluster.start_controller()
    return True


def lose_accounting(study: Study, cluster: Cluster, chance: random.Random) -> bool:
    cluster.stop_database(signal.SIGKILL)
    study.sleep(chance.choice([2, 20]))
    cluster.start_database()
    return True


def faults(study: Study, chance: random.Random) -> dict[str, Callable[[], bool]]:
    found: dict[str, Callable[[], bool]] = {
        "driver": study.kill_driver,
        "job": lambda: study.kill_job(chance),
        "rank": lambda: study.kill_rank(chance),
    }
    if (cluster := study.cluster) is not None:
        found |= {
            "scancel": lambda: cancel(cluster, chance),
            "node": lambda: lose_node(study, cluster, chance, alone=False),
            "slurmd": lambda: lose_node(study, cluster, chance, alone=True),
            "slurmctld": lambda: lose_controller(study, cluster, chance),
            "accounting": lambda: lose_accounting(study, cluster, chance),
        }
    return found


def disturb(study: Study, kills: int, chance: random.Random) -> tuple[Counter[str], bool]:
    """Runs a study to its end with so many kills; which ones there were, and whether it came to an end."""
    done: Counter[str] = Counter()
    study.start()
    while not study.ended():
        study.sleep(chance.uniform(*SECONDS_BETWEEN))
        if study.ended():
            break
        if done.total() < kills:
            training = chance.random() < 0.5 and study.wait_for_a_step()
            name, fault = chance.choice(sorted(faults(study, chance).items()))
            done[f"{name} in training" if training else name] += fault()
        if study.driver is not None and study.driver.poll() not in (None, 0):
            study.start()
        for_ever = study.starts > done.total() + MOST_STARTS
        if for_ever or time.time() - study.moved() > PATIENCE:
            study.kill_driver()
            return done, False
    return done, True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, required=True, help="how many in all")
    parser.add_argument("--seed", type=int, default=0, help="of what is killed, and when")
    parser.add_argument("--mode", choices=["local", "slurm"], default="local")
    parser.add_argument("--json", type=Path, help="file to write figures and context to")
    given = argparse.Namespace(**vars(parser.parse_args()), device="cpu", rounds=1, toy=False)
    chance = random.Random(given.seed)
    done: Counter[str] = Counter()
    wrong = lost = hanging = again = steps = studies = 0
    place = Path(tempfile.mkdtemp(prefix="longshort-chaos-"))
    with contextlib.ExitStack() as held:
        cluster = held.enter_context(Cluster(place)) if given.mode == "slurm" else None
        quiet = Study(place / "undisturbed", None)
        quiet.start()
        assert quiet.driver is not None
        if quiet.driver.wait():
            raise SystemExit((quiet.folder / "driver.log").read_text()[-5000:])
        right = quiet.numbers()
        assert right.index.is_unique
        while done.total() < given.kills:
            studies += 1
            study = Study(place / f"study-{studies}", cluster)
            more, came_to_an_end = disturb(study, min(KILLS_A_STUDY, given.kills - done.total()), chance)
            done += more
            if came_to_an_end:
                now = study.numbers()
                common = right.index.intersection(now.index)
                same = (right.loc[common] == now.loc[common]).all(axis=1)
                wrong += int((~same).sum()) + len(now.index.difference(right.index))
                lost += len(right.index.difference(now.index))
                again += study.again
                steps += sum(study.steps.values())
            hanging += not came_to_an_end
            print(
                f"study {studies}: {dict(more)}, {wrong} wrong, {lost} lost, {hanging} hanging, {again} steps again",
                flush=True,
            )
    if wrong or lost or hanging:
        print(f"what there was is in {place}", flush=True)
    else:
        shutil.rmtree(place, ignore_errors=True)
    figures = {
        "kills": done.total(),
        "wrong": wrong,
        "lost": lost,
        "hanging": hanging,
        "needless_steps_share": again / (again + steps),
    }
    said = ", ".join(f"{name} {number}" for name, number in sorted(done.items()))
    notes = {
        "kills": f"{given.mode}, seed {given.seed}, {studies} studies: {said}",
        "wrong": f"of {len(right)} numbers of each study",
        "needless_steps_share": f"{again} of {again + steps}",
    }
    report("Kills", figures, notes, given)


if __name__ == "__main__":
    main()
