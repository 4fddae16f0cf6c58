"""What planning a study costs beside the barest Snakefile with the same jobs: time and memory of `snakemake -n all`.

    python benchmarks/dag.py [--json FILE] [--rounds N] [--toy]

Studies of 10, 100, 500 and 1,000 runs: ten arms with 1, 10, 50 and 100 seeds, in a temporary copy of the project. A run
is five jobs: its specification, one training and three evaluations, for there are three metrics, and one job measures
all checkpoints. Base, data and tables are a few jobs more.

The bare Snakefile has the same rules with the same files, wildcards and one string of parameters a job, as literals and
patterns: no import, no function, no resources, no log. That both plan the same jobs with the same files is checked.

"Done" is what the engine takes for done. `snakemake --touch` sends the whole plan through the engine's own bookkeeping,
which writes a record of every output (rule, inputs, parameters, code) to .snakemake/metadata, as after a real run. It
touches existing files only, so all that a dry run names are made before, empty; and it does only what the engine wants
done, which files without a record are not, hence --forceall. That nothing is to be done and that no record is missing
is checked.

growth is what a job costs in the second half of the largest study over what it costs in the first half: the difference
of 500 and 1,000 runs over the difference of 10 and 500, each by the jobs that it adds.
"""

from __future__ import annotations

import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml
from side_by_side import Seconds, alternate, arguments, ratio, report

from longshort.commands import stale
from longshort.identity.code import code_hash
from longshort.records import layout
from longshort.records.publish import write_record
from longshort.study import resolve

ROOT = Path(__file__).resolve().parents[1]
STUDY = "benchmark"
# Ten different trainings; the specifications of four hold a weight for every step.
ARMS = ["baseline", "constant", "sce", "step-linear", "step-cosine", "step-exponential"]
ARMS += ["step-linear-1-to-8", "step-linear-1-to-8-control", "hidden", "hidden+output"]
SIZES = (10, 100, 500, 1000)
# Runs a command and writes its peak memory. A direct child would begin with the peak of this process, torch and all.
PEAK = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[2:]).returncode
open(sys.argv[1], "w").write(str(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss))
sys.exit(code)
"""
# `snakemake`, but --touch sleeps for a tenth of a second at each job otherwise: minutes.
SNAKEMAKE = """
from snakemake.cli import main
from snakemake.executors import touch
touch.Executor.SLEEPING_TIME = 0
main()
"""
PARSE = """
import sys, time
began = time.perf_counter()
from longshort.study import resolve
from longshort.identity import code
code.source_as_planned()
resolve.load("demo")
print(time.perf_counter() - began, int("torch" in sys.modules))
"""
BARE = """
STAGES = ["training", *(f"{metric}/{evaluation}" for metric, evaluation in METRICS.items())]
JOBS = [f"results/runs/{run}/{stage}/{STEPS}" for run in RUNS for stage in STAGES]
JOBS += [f"results/runs/{BASE}/{stage}/{BASE_STEPS}" for stage in STAGES]
PUBLISHED = [f"{job}.{kind}" for job in JOBS for kind in ("json", "parquet")]


wildcard_constraints:
    run="[0-9a-f]{16}",
    data="[0-9a-f]{16}",
    evaluation="[0-9a-f]{16}",
    steps=r"\\d+(-\\d+)*",


ruleorder: base > train


rule all:
    default_target: True
    input: PUBLISHED, TABLES, PLOTS, f"results/{NAME}/report.html"


rule specification:
    input: "workflow/templates/spec.json"
    output: "results/{kind}/{id}/spec.json"
    params: spec="{}"
    shell: "touch {output}"


rule data:
    input: "results/data/{data}/spec.json"
    output: "results/data/{data}/manifest.json"
    params: code="0123456789abcdef"
    shell: "touch {output}"


rule longbench_stand_in:
    input: "results/data/{data}/manifest.json"
    output: "results/data/{data}/longbench-e-{per_task}/manifest.json"
    params: code="0123456789abcdef"
    shell: "touch {output}"


rule base:
    input: f"results/runs/{BASE}/spec.json", f"results/data/{DATA}/manifest.json"
    output: multiext(f"results/runs/{BASE}/training/{BASE_STEPS}", ".json", ".parquet")
    params: code="0123456789abcdef"
    shell: "touch {output}"


rule train:
    input:
        "results/runs/{run}/spec.json",
        f"results/data/{DATA}/manifest.json",
        f"results/runs/{BASE}/training/{BASE_STEPS}.json",
    output: multiext("results/runs/{run}/training/{steps}", ".json", ".parquet")
    params: code="0123456789abcdef"
    shell: "touch {output}"


rule perplexity:
    input:
        "results/evaluations/{evaluation}/spec.json",
        "results/runs/{run}/training/{steps}.json",
        f"results/data/{DATA}/manifest.json",
    output: multiext("results/runs/{run}/perplexity/{evaluation}/{steps}", ".parquet", ".json")
    params: code="0123456789abcdef"
    shell: "touch {output}"


rule misalignment:
    input:
        "results/evaluations/{evaluation}/spec.json",
        "results/runs/{run}/training/{steps}.json",
        f"results/data/{DATA}/manifest.json",
    output: multiext("results/runs/{run}/misalignment/{evaluation}/{steps}", ".parquet", ".json")
    params: code="0123456789abcdef"
    shell: "touch {output}"


rule longbench_e:
    input:
        "results/evaluations/{evaluation}/spec.json",
        "results/runs/{run}/training/{steps}.json",
        f"results/data/{DATA}/manifest.json",
        ITEMS,
    output: multiext("results/runs/{run}/longbench_e/{evaluation}/{steps}", ".parquet", ".json", ".items.parquet")
    params: code="0123456789abcdef"
    shell: "touch {output}"


rule study:
    input: "workflow/templates/spec.json"
    output: f"results/{NAME}/study.json"
    params: spec="{}"
    shell: "touch {output}"


rule metrics:
    input:
        f"results/{NAME}/study.json",
        PUBLISHED,
    output: f"results/{NAME}/metrics.parquet", f"results/{NAME}/runs.parquet"
    params: code="0123456789abcdef"
    shell: "touch {output}"


rule tables:
    input:
        f"results/{NAME}/study.json",
        f"results/{NAME}/metrics.parquet",
        f"results/{NAME}/runs.parquet",
    output: TABLES
    params: code="0123456789abcdef"
    shell: "touch {output}"


rule plots:
    input:
        f"results/{NAME}/study.json",
        f"results/{NAME}/metrics.parquet",
        f"results/{NAME}/runs.parquet",
        "src/longshort/results/longshort.mplstyle",
    output: PLOTS
    params: code="0123456789abcdef"
    shell: "touch {output}"


rule report:
    input:
        f"results/{NAME}/study.json",
        f"results/{NAME}/metrics.parquet",
        f"results/{NAME}/runs.parquet",
        PLOTS_FOR_REPORT,
    output: f"results/{NAME}/report.html"
    params: code="0123456789abcdef"
    shell: "touch {output}"
"""


class Planned:
    """A folder with a Snakefile to plan with; remembers the peak memory of each plan."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.peaks: list[int] = []

    def snakemake(self, *arguments: str) -> str:
        peak = self.folder / "peak"
        command = [sys.executable, "-c", PEAK, str(peak), sys.executable, "-c", SNAKEMAKE, *arguments]
        done = subprocess.run(
            [*command, "--config", f"study={STUDY}"],
            cwd=self.folder,
            env=environment(self.folder),
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise SystemExit(f"{self.folder}: {done.stdout[-3000:]}\n{done.stderr[-3000:]}")
        self.peaks.append(int(peak.read_text()) * 1024)
        return done.stdout + done.stderr

    def plan(self) -> str:
        return self.snakemake("-n", "all")

    def plan_in_words(self) -> None:
        """`longshort plan`: the engine's dry run, explained."""
        command = [sys.executable, "-m", "longshort.cli", "plan", "--study", STUDY]
        subprocess.run(command, cwd=self.folder, env=environment(self.folder), check=True, capture_output=True)

    def finished(self, files: set[str]) -> Planned:
        """A copy in which the engine takes everything for done."""
        done = Planned(self.folder.with_name(f"{self.folder.name}-done"))
        shutil.copytree(self.folder, done.folder, ignore=shutil.ignore_patterns(".snakemake"))
        for file in files:
            path = done.folder / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        for file, record in records(self.folder).items():
            write_record(done.folder / file, record)
        done.snakemake("--touch", "--forceall", "all", "--cores", "1")
        said = done.plan()
        assert "Nothing to be done" in said and "missing metadata" not in said, said[-3000:]
        done.peaks.clear()
        return done


def environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(folder / "src"), "OMP_NUM_THREADS": "1"}


def records(project: Path) -> dict[str, dict[str, str]]:
    """What the results of a study say of themselves, as far as its plan reads it; none in the bare folder."""
    if not (project / "config").exists():
        return {}
    study = resolve.load(STUDY, project / "config")
    found = {layout.data_manifest(study.data): {"code": code_hash(stale.DATA)}}
    for run, codes in study.codes().items():
        found[study.record(run)] = {"code": codes["training"], "run_id": run}
        for metric in study.evaluations:
            found[study.evaluation_record(metric, run)] = {"code": codes[metric], "run_id": run}
    return found


def jobs(plan: str) -> set[tuple[str, frozenset[str], frozenset[str]]]:
    """Rule, inputs and outputs of every job of a dry run."""
    found = set()
    for block in re.split(r"\n(?=\[)", plan):
        if rule := re.search(r"^(?:local)?rule (\w+):", block, re.MULTILINE):
            said = dict(re.findall(r"^    (\w+): (.*)$", block, re.MULTILINE))
            files = [frozenset(said[key].split(", ")) if key in said else frozenset() for key in ("input", "output")]
            found.add((rule[1], *files))
    return found


LONGBENCH = {
    "longbench_e": {"source": {"kind": "stand-in", "items_per_task": 6}, "max_length": 256, "max_new_tokens": 32}
}


def make_study(folder: Path, runs: int) -> Planned:
    """The project with a study of so many runs."""
    folder.mkdir()
    for name in ("Snakefile", "workflow", "config", "envs", "src"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        else:
            shutil.copy(source, folder / name)
    demo = yaml.safe_load((ROOT / "config/studies/demo.yaml").read_text())
    demo["model"] |= {"seed": 0, "long_base": False}
    evaluations = {name: demo["evaluations"][name] for name in ("perplexity", "misalignment")} | LONGBENCH
    study = {**demo, "arms": ARMS, "overrides": {}, "seeds": list(range(runs // len(ARMS))), "evaluations": evaluations}
    study["needs"] = {"evaluations": "apart"}
    (folder / f"config/studies/{STUDY}.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    return Planned(folder)


def make_bare(folder: Path, project: Path, runs: int) -> Planned:
    """The bare Snakefile with the jobs of a study."""
    study = resolve.load(STUDY, project / "config")
    assert len(study.runs) == runs + 1, "two arms are the same run"
    (base,) = study.first_seeds.values()
    names = {
        "NAME": study.name,
        "DATA": study.data,
        "BASE": base,
        "BASE_STEPS": str(study.base_steps),
        "RUNS": [run for run in study.runs if run != base],
        "STEPS": study.steps_key,
        "METRICS": {metric: identity for metric, (identity, _) in study.evaluations.items()},
        "ITEMS": study.items("longbench_e"),
        "TABLES": study.table_files(),
        "PLOTS": study.plot_files(),
        "PLOTS_FOR_REPORT": study.plot_files("png"),
    }
    folder.mkdir()
    (folder / "Snakefile").write_text("\n".join(f"{name} = {value!r}" for name, value in names.items()) + "\n" + BARE)
    for file in ("workflow/templates/spec.json", "src/longshort/results/longshort.mplstyle"):
        (folder / file).parent.mkdir(parents=True)
        shutil.copy(ROOT / file, folder / file)
    return Planned(folder)


def size_figures(folder: Path, runs: int, rounds: int, last: bool) -> tuple[dict[str, float], dict[str, str], Seconds]:
    """Figures, notes and, for the growth, all seconds: per job in `todo`, `bare_todo` and `done`."""
    folder.mkdir()
    study = make_study(folder / "study", runs)
    bare = make_bare(folder / "bare", study.folder, runs)
    planned = jobs(study.plan())
    assert planned == {("train" if rule == "base" else rule, *files) for rule, *files in jobs(bare.plan())}
    outputs = {file for _, _, files in planned for file in files}
    study_done, bare_done = study.finished(outputs), bare.finished(outputs)
    functions = {
        "todo": study.plan,
        "bare_todo": bare.plan,
        "done": study_done.plan,
        "bare_done": bare_done.plan,
    }
    if last:
        functions["words"] = study.plan_in_words
    seconds = alternate(functions, rounds, "cpu")
    median = {name: statistics.median(values) for name, values in seconds.items()}
    figures, notes = {}, {}
    for state in ("done", "todo"):
        figures[f"dag_over_bare_{state}_{runs}"] = ratio(seconds, state, f"bare_{state}")
        notes[f"dag_over_bare_{state}_{runs}"] = (
            f"{len(planned)} jobs: {median[state]:.3g} / {median[f'bare_{state}']:.3g} s"
        )
    if last:
        peaks = max(study.peaks), max(bare.peaks)
        figures[f"dag_memory_over_bare_todo_{runs}"] = peaks[0] / peaks[1]
        notes[f"dag_memory_over_bare_todo_{runs}"] = f"peak {peaks[0] / 2**20:.0f} / {peaks[1] / 2**20:.0f} MiB"
        figures[f"plan_over_bare_{runs}"] = ratio(seconds, "words", "bare_todo")
        notes[f"plan_over_bare_{runs}"] = f"`longshort plan`, everything to do: {median['words']:.3g} s"
    return figures, notes, {**seconds, "jobs": [len(planned)]}


def growth_figures(smallest: Seconds, half: Seconds, largest: Seconds) -> tuple[dict[str, float], dict[str, str]]:
    figures, notes = {}, {}
    for name, state in {"growth": "todo", "growth_done": "done", "growth_bare": "bare_todo"}.items():
        first, second = _seconds_a_job(smallest, half, state), _seconds_a_job(half, largest, state)
        figures[name] = second / first
        notes[name] = f"{1000 * second:.3g} / {1000 * first:.3g} ms a job"
    return figures, notes


def _seconds_a_job(smaller: Seconds, larger: Seconds, state: str) -> float:
    added: float = larger["jobs"][0] - smaller["jobs"][0]
    return (statistics.median(larger[state]) - statistics.median(smaller[state])) / added


def parse_figures(rounds: int) -> tuple[dict[str, float], dict[str, str]]:
    """The Snakefile's own Python in a fresh process."""
    seconds = []
    for _ in range(rounds + 1):
        done = subprocess.run(
            [sys.executable, "-c", PARSE], cwd=ROOT, env=environment(ROOT), check=True, capture_output=True, text=True
        )
        took, torch = done.stdout.split()
        assert torch == "0", "parsing the Snakefile imports torch"
        seconds.append(float(took))
    said = "import, hash the source, load the demo; that torch is not imported is checked"
    return {"parse_seconds": statistics.median(seconds[1:])}, {"parse_seconds": said}


def main() -> None:
    given = arguments(__doc__)
    figures, notes = parse_figures(given.rounds)
    sizes = SIZES[:1] if given.toy else SIZES
    measured = []
    with tempfile.TemporaryDirectory(prefix="longshort-dag-") as folder:
        for runs in sizes:
            # Plans of two seconds scatter most, and are soon made.
            rounds = 1 if given.toy else given.rounds if runs >= 500 else 3 * given.rounds
            more, said, seconds = size_figures(Path(folder) / str(runs), runs, rounds, runs == sizes[-1])
            figures.update(more)
            notes.update(said)
            measured.append(seconds)
    if not given.toy:  # a toy's few jobs are less than the noise of the start
        more, said = growth_figures(measured[0], *measured[-2:])
        figures.update(more)
        notes.update(said)
    report("Planning", figures, notes, given)


if __name__ == "__main__":
    main()
