"""What a stage costs before it begins: a study at laptop size pays it at each of its eighty jobs.

    python benchmarks/startup.py [--json FILE] [--toy] [--rounds N] [--detail]

Seconds of processors (user and system), not of the clock, of a stage's process and all that it started, until the first
line that it prints about its own work, over those of a process that only runs

    import torch, transformers; from transformers import LlamaForCausalLM

until it says so. All is measured alternately. The first lines are:

perplexity, misalignment: how many held-out documents are too short. The checkpoint is verified and loaded, its logits
are finite, and the first document is read next.
longbench: how many questions there are. The same, and all prompts are tokenised.
training: how many windows the corpus has. Its one process is up, in a world of its own, and the model is made next.

The stages are those of a study of seconds, called as Snakemake's rules do, on the finished base and corpus.
"""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from side_by_side import Seconds, arguments, ratio, report  # noqa: E402
from tests.support.project import TINY, make_project, run_snakemake  # noqa: E402

IMPORTS = "import torch, transformers; from transformers import LlamaForCausalLM; print('imported', flush=True)"
FIRST_LINES = {
    "imports": "imported",
    "perplexity": r"\d+ of \d+ test documents",
    "misalignment": r"\d+ of \d+ test documents",
    "longbench": r"\d+ questions",
    "training": r"\d+ windows of",
}
# What `longshort` makes of a study, for those that call its stages themselves.
PLAN = """
import json
from longshort.study import resolve
study = resolve.load("tiny")
run = study.arm_runs["baseline"][0]
print(json.dumps({
    "data": f"results/data/{study.data}/manifest.json",
    "base": study.base_record(run)[0],
    "items": study.items("longbench_e"),
    "run": f"results/runs/{run}/spec.json",
    "evaluations": {
        metric: f"results/evaluations/{identity}/spec.json" for metric, (identity, _) in study.evaluations.items()
    },
}))
"""


def prepare(folder: Path) -> dict[str, list[str]]:
    """A project with corpus, base and specifications; the options of each stage."""
    study = copy.deepcopy(TINY)
    study["arms"] = ["baseline"]
    study["data"]["corpus"] = {"kind": "stdlib"}  # enough text for the stand-in
    study["evaluations"]["longbench_e"] = {
        "source": {"kind": "stand-in", "items_per_task": 1},
        "max_length": 128,
        "max_new_tokens": 4,
    }
    make_project(folder, study)
    said = subprocess.run(
        [sys.executable, "-c", PLAN], cwd=folder, env=environment(folder), check=True, capture_output=True, text=True
    )
    made = json.loads(said.stdout)
    run_snakemake(
        folder, made["base"], made["run"], *made["items"], *made["evaluations"].values(), python=sys.executable
    )
    step = Path(made["base"]).stem
    measured = ["--data", made["data"], "--run", made["base"], "--steps", step]
    specs = made["evaluations"]
    return {
        "perplexity": ["longshort.evaluation.perplexity", "--spec", specs["perplexity"], *measured],
        "misalignment": ["longshort.evaluation.misalignment", "--spec", specs["misalignment"], *measured],
        "longbench": [
            *("longshort.evaluation.longbench", "--spec", specs["longbench_e"], *measured),
            *("--items", *made["items"]),
        ],
        "training": [
            *("longshort.training", "--spec", made["run"], "--data", made["data"], "--base", made["base"]),
            *("--steps", "6"),
        ],
    }


def environment(folder: Path) -> dict[str, str]:
    """As the engine gives it to a rule, on one thread."""
    return {**os.environ, "PYTHONPATH": str(folder / "src"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def seconds_to(line: str, command: list[str], folder: Path) -> float:
    """Seconds of processors until a line that begins so; the process and all its children end there."""
    process = psutil.Popen(
        command,
        cwd=folder,
        env=environment(folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    said = []
    try:
        for printed in process.stdout:
            said.append(printed)
            if re.match(line, printed):
                return sum(sum(one.cpu_times()[:4]) for one in [process, *process.children(recursive=True)])
    finally:
        for one in [*process.children(recursive=True), process]:
            one.kill()
        process.wait()
        process.stdout.close()
    raise SystemExit(f"{' '.join(command)} printed no {line!r}:\n{''.join(said)}")


def stage(name: str, options: list[str], folder: Path) -> float:
    """A stage that finds nothing of its work finished."""
    place = folder / "startup"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    command = [sys.executable, "-m", *options, "--out", str(place / "out.parquet"), "--work", str(place / "work")]
    return seconds_to(FIRST_LINES[name], command, folder)


def alternate(functions: dict[str, Callable[[], float]], rounds: int, toy: bool) -> Seconds:
    """As side_by_side does it, of functions that say themselves how many seconds it was. A toy's first round counts."""
    seconds: Seconds = {name: [] for name in functions}
    order = list(functions.items())
    for number in range(int(toy), rounds + 1):
        first = number % len(order)
        for name, function in order[first:] + order[:first]:
            took = function()
            if number:
                seconds[name].append(took)
        print(f"round {number} of {rounds}", file=sys.stderr, flush=True)
    return seconds


def main() -> None:
    given = arguments(__doc__)
    with tempfile.TemporaryDirectory(prefix="longshort-startup-") as place:
        folder = Path(place) / "project"
        functions: dict[str, Callable[[], float]] = {
            "imports": partial(seconds_to, FIRST_LINES["imports"], [sys.executable, "-c", IMPORTS], Path(place))
        }
        functions |= {name: partial(stage, name, options, folder) for name, options in prepare(folder).items()}
        seconds = alternate(functions, given.rounds, given.toy)
    if given.detail:
        for name, values in seconds.items():
            print(name, " ".join(f"{value:.2f}" for value in values))
    median = {name: statistics.median(values) for name, values in seconds.items()}
    stages = [name for name in functions if name != "imports"]
    figures = {f"startup_{name}_over_imports": ratio(seconds, name, "imports") for name in stages}
    notes = {
        f"startup_{name}_over_imports": f"{median[name]:.3g} / {median['imports']:.3g} s of processors"
        for name in stages
    }
    report("Start-up", figures, notes, given)


if __name__ == "__main__":
    main()
