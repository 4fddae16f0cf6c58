"""What a cluster costs beside this machine alone: a study through SLURM and through plain Snakemake, on one machine.

    python benchmarks/slurm.py [--json FILE] [--toy]

The cluster is the one of tests/slurm: two nodes on loopback, as root, from Debian's packages. Both runs begin with
nothing and end with the same numbers, which is checked. The local one has a job for each core; the cluster may run
twice as many, since a job of a cluster spends seconds in starting.

job_overhead_s is the time from sbatch to the first line of our code, the mean over the study's jobs: the queue, then
the two Snakemakes that the plugin starts in each job (one in the batch script, one in its step) and the imports.

Of ways to submit, single jobs, arrays and groups are compared with jobs that do nothing.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pandas
import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from side_by_side import arguments, report  # noqa: E402
from tests.slurm.cluster import Cluster  # noqa: E402
from tests.support.project import TINY, write_corpus  # noqa: E402

NOTHING = """
rule all:
    input:
        expand("{k}.done", k=range(%d)),


rule nothing:
    output:
        "{k}.done",
    resources:
        mem_mb=500,
        runtime=5,
    shell:
        "touch {output}"
"""


def project(folder: Path, toy: bool) -> Path:
    folder.mkdir()
    for name in ("Snakefile", "workflow", "config", "envs", "src", "slurm"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(
                source, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info", "site.yaml")
            )
        else:
            shutil.copy(source, folder / name)
    if toy:
        study = copy.deepcopy(TINY)
        study["evaluations"] = {"perplexity": TINY["evaluations"]["perplexity"]}
        write_corpus(folder / "corpus")
        (folder / "config/studies/demo.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    return folder


def run(folder: Path, cluster: Cluster, *options: str) -> float:
    """Seconds."""
    environment = {**os.environ, **cluster.environment, "PYTHONPATH": str(folder / "src"), "OMP_NUM_THREADS": "1"}
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment["PATH"]])
    command = [sys.executable, "-m", "snakemake", *options]
    began = time.perf_counter()
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout[-3000:]}\n{done.stderr[-5000:]}")
    return time.perf_counter() - began


def numbers(folder: Path) -> pandas.DataFrame:
    table = pandas.read_parquet(folder / "results/demo/metrics.parquet").drop(columns="commit")
    return table.sort_values(list(table.columns[:8])).reset_index(drop=True)


def job_parts(folder: Path, cluster: Cluster) -> dict[str, float]:
    """Seconds from submission to our code, by part, of each job that has a heartbeat; means."""
    # SLURM's clock has seconds, the mean of many jobs has more.
    lines = cluster.run("sacct", "-nPX", "--starttime=now-1day", "--format=JobID,Submit,Start").splitlines()
    times = {job: (_seconds(submit), _seconds(start)) for job, submit, start in (line.split("|") for line in lines)}
    queue, engines = [], []
    for path in (folder / "results/runs").glob("**/*.heartbeat"):
        beat = json.loads(path.read_text())
        submit, start = times[beat["job"]]
        queue.append(start - submit)
        engines.append(beat["began"] - start)
    return {"queue": statistics.mean(queue), "engines and imports": statistics.mean(engines)}


def _seconds(stamp: str) -> float:
    return time.mktime(time.strptime(stamp, "%Y-%m-%dT%H:%M:%S"))


def submission_figures(folder: Path, cluster: Cluster, jobs: int) -> tuple[dict[str, float], dict[str, str]]:
    """Jobs that do nothing, submitted one by one, as an array, and in groups of five."""
    seconds = {}
    ways = {
        "single": [],
        "array": ["--slurm-array-jobs", "nothing"],
        "groups": ["--groups", "nothing=g", "--group-components", "g=5"],
    }
    for way, options in ways.items():
        place = folder / way
        place.mkdir()
        (place / "Snakefile").write_text(NOTHING % jobs)
        # Plugin 2.8 submits an array when all its jobs are at hand: with fewer --jobs than those it waits for ever.
        common = ["--executor", "slurm", "--jobs", str(jobs), "--cores", "4", "--slurm-status-command", "squeue"]
        common += ["--slurm-init-seconds-before-status-checks", "2", "--seconds-between-status-checks", "2"]
        seconds[way] = run(place, cluster, "all", *common, *options)
    figures = {f"{way}_over_single": seconds[way] / seconds["single"] for way in ("array", "groups")}
    return figures, {
        name: f"{jobs} jobs: {seconds[name.split('_')[0]]:.3g} / {seconds['single']:.3g} s" for name in figures
    }


def main() -> None:
    given = arguments(__doc__)
    with tempfile.TemporaryDirectory(prefix="longshort-slurm-") as place, Cluster(Path(place)) as cluster:
        cores = os.cpu_count() or 1
        here, there = project(Path(place) / "local", given.toy), project(Path(place) / "slurm-project", given.toy)
        local = run(here, cluster, "all", "--cores", str(cores), "--config", "study=demo")
        print(f"local: {local:.0f} s", file=sys.stderr, flush=True)
        through = run(there, cluster, "--profile", "slurm", "all", "--jobs", str(2 * cores), "--config", "study=demo")
        print(f"slurm: {through:.0f} s", file=sys.stderr, flush=True)
        pandas.testing.assert_frame_equal(numbers(here), numbers(there), check_exact=True)
        parts = job_parts(there, cluster)
        more, said = submission_figures(Path(place), cluster, 4 if given.toy else 20)
    figures: dict[str, Any] = {"slurm_over_local": through / local, "job_overhead_s": sum(parts.values()), **more}
    notes = {
        "slurm_over_local": f"{'a toy' if given.toy else 'the demo'}: {through:.0f} / {local:.0f} s",
        "job_overhead_s": ", ".join(f"{part} {seconds:.1f}" for part, seconds in parts.items()),
        **said,
    }
    report("SLURM", figures, notes, given)


if __name__ == "__main__":
    main()
