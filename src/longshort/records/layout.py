"""Every path below results/ and work/, and every stage of a run, spelt once.

Paths are texts with forward slashes below the folder that Snakemake runs in, as the engine names files. Any part may be
a wildcard: `training("{run}", "{steps}").record` is the pattern that the rule takes. Where a command is told another
folder than results/ or work/, it passes that. What lies inside a folder of checkpoints is known to training.checkpoints
alone; results/accepted.json, which the wing below this one reads, to identity.accepted.
"""

from __future__ import annotations

from pathlib import PurePath
from typing import NamedTuple

Folder = str | PurePath
RESULTS, WORK = "results", "work"
# Folders of results/ that all studies share, and so no names of studies.
RUNS, DATA, EVALUATIONS = "runs", "data", "evaluations"
SHARED = (DATA, RUNS, EVALUATIONS)
# The stages of a run; the others are the metrics of the catalogue.
TRAINING, SYNTHETIC = "training", "synthetic"
# And what LongPPL needs of a corpus, once for all runs.
KEY_TOKENS = "key_tokens"
SPEC, MANIFEST = "spec.json", "manifest.json"
ITEMS, HEARTBEAT = ".items.parquet", ".heartbeat"


# ---- results/runs, results/data, results/evaluations: by the id of a specification -----------------------------------


def folder(kind: str, identity: str, results: Folder = RESULTS) -> str:
    """Of a specification of one of the kinds SHARED."""
    return f"{results}/{kind}/{identity}"


def spec(kind: str, identity: str, results: Folder = RESULTS) -> str:
    return f"{folder(kind, identity, results)}/{SPEC}"


def spec_log(kind: str, identity: str) -> str:
    return f"{folder(kind, identity)}/spec.log"


def data_folder(data: str) -> str:
    """Of a prepared corpus."""
    return folder(DATA, data)


def data_manifest(data: str) -> str:
    return f"{data_folder(data)}/{MANIFEST}"


def data_log(folder_of_data: Folder) -> str:
    return f"{folder_of_data}/prepare.log"


def standin(folder_of_data: Folder, items_per_task: int | str) -> str:
    """The folder of the stand-in for LongBench-E that is made from a corpus."""
    return f"{folder_of_data}/longbench-e-{items_per_task}"


def standin_manifest(folder_of_data: Folder, items_per_task: int | str) -> str:
    return f"{standin(folder_of_data, items_per_task)}/{MANIFEST}"


def standin_log(data: str, items_per_task: int | str) -> str:
    return f"{standin(data_folder(data), items_per_task)}.log"


class KeyTokens(NamedTuple):
    """What an evaluator found in a corpus for LongPPL."""

    folder: str

    @property
    def tokens(self) -> str:
        """The key tokens, as the evaluator's tokenizer cuts the texts."""
        return f"{self.folder}/tokens.parquet"

    @property
    def scored(self) -> str:
        """The tokens of the corpus that lie in them."""
        return f"{self.folder}/scored.parquet"

    @property
    def record(self) -> str:
        """How they were found; written last."""
        return f"{self.folder}/found.json"

    @property
    def log(self) -> str:
        return f"{self.folder}.log"


def key_tokens(folder_of_data: Folder, key: str) -> KeyTokens:
    """key: of what finds them."""
    return KeyTokens(f"{folder_of_data}/key-tokens-{key}")


class Stage(NamedTuple):
    """The files that one job of a run makes: all have the name of its record, less .json."""

    name: str

    @property
    def record(self) -> str:
        """How the result was made; written last of all, so that it is there when the rest is."""
        return f"{self.name}.json"

    @property
    def numbers(self) -> str:
        """The log of a training, the rows of an evaluation."""
        return f"{self.name}.parquet"

    @property
    def items(self) -> str:
        """What an evaluation keeps beside its rows."""
        return f"{self.name}{ITEMS}"

    @property
    def log(self) -> str:
        """What the job prints."""
        return f"{self.name}.log"

    @property
    def heartbeat(self) -> str:
        return f"{self.name}{HEARTBEAT}"

    def share(self, number: int | str, of: int | str) -> Stage:
        """Of one of the jobs that share out an evaluation's items, where several do."""
        return Stage(f"{self.name}.jobs/{number}-of-{of}")

    def attempt_log(self, attempt: int | str) -> str:
        """What an attempt before the present one printed."""
        return f"{self.name}.attempt-{attempt}.log"


def stage_of(file: Folder) -> Stage:
    """The stage that a record, numbers or items are of."""
    path = PurePath(file)
    return Stage(str(path.with_name(path.name.removesuffix(ITEMS)).with_suffix("")))


def training(run: str, steps: str, results: Folder = RESULTS) -> Stage:
    return Stage(f"{folder(RUNS, run, results)}/{TRAINING}/{steps}")


def evaluation(run: str, metric: str, evaluation: str, steps: str, results: Folder = RESULTS) -> Stage:
    return Stage(f"{folder(RUNS, run, results)}/{metric}/{evaluation}/{steps}")


def evaluations_log(run: str, steps: str) -> str:
    """What the one job says that measures a run by several metrics, each of which has its own log beside its record."""
    return f"{folder(RUNS, run)}/{EVALUATIONS}/{steps}.log"


class SyntheticStage(NamedTuple):
    """The files of a group of synthetic models."""

    folder: str

    @property
    def record(self) -> str:
        return f"{self.folder}/record.json"

    @property
    def numbers(self) -> str:
        return f"{self.folder}/numbers.parquet"

    @property
    def log(self) -> str:
        return f"{self.folder}/train.log"


def synthetic(group: str) -> SyntheticStage:
    return SyntheticStage(f"{folder(RUNS, group)}/{SYNTHETIC}")


# ---- results/<study> -------------------------------------------------------------------------------------------------


def study_folder(study: str, results: Folder = RESULTS) -> str:
    return f"{results}/{study}"


def study_json(study: str) -> str:
    """The resolved study, as the results stages read it."""
    return f"{study_folder(study)}/study.json"


def study_log(study: str, rule: str) -> str:
    return f"{study_folder(study)}/logs/{rule}.log"


def metrics(folder: Folder) -> str:
    """The long table of numbers, in a study's folder or that of its partial tables."""
    return f"{folder}/metrics.parquet"


def runs(folder: Folder) -> str:
    """How every run was made, beside the numbers."""
    return f"{folder}/runs.parquet"


def tables(study: str) -> str:
    return f"{study_folder(study)}/tables"


def partial(study: str) -> str:
    """The folder of the tables from what exists."""
    return f"{study_folder(study)}/partial"


def table(folder: Folder, name: str, kind: str) -> str:
    return f"{folder}/{name}.{kind}"


def plots(study: str) -> str:
    return f"{study_folder(study)}/plots"


def plot(study: str, name: str, kind: str) -> str:
    return f"{plots(study)}/{name}.{kind}"


def report(study: str) -> str:
    return f"{study_folder(study)}/report.html"


def planned(study: str, results: Folder = RESULTS) -> str:
    """What each job was expected to take."""
    return f"{study_folder(study, results)}/planned.json"


def arms(folder_of_study: Folder) -> str:
    """The folder of links to runs."""
    return f"{folder_of_study}/arms"


def arm(folder_of_study: Folder, name: str, seed: int | str) -> str:
    """The link to the run of an arm and a seed."""
    return f"{arms(folder_of_study)}/{name}/seed-{seed}"


def base(folder_of_study: Folder, seed: str | None = None) -> str:
    """The link to the base's run; seed: the first that starts from it, where there are several bases."""
    return f"{folder_of_study}/base" if seed is None else f"{folder_of_study}/base-{seed}"


def extended_base(folder_of_study: Folder, seed: str | None = None) -> str:
    """The link to the run of the base with its context extended; seed: as base."""
    return f"{folder_of_study}/extended-base" if seed is None else f"{folder_of_study}/extended-base-{seed}"


def long_base(folder_of_study: Folder) -> str:
    """The link to the run of the base that was trained at the test length."""
    return f"{folder_of_study}/long-base"


def tensorboard(study: str, arm_and_seed: str) -> str:
    return f"{study_folder(study)}/tensorboard/{arm_and_seed}"


# ---- work/ -----------------------------------------------------------------------------------------------------------


def checkpoints(run_id: str, work: Folder = WORK) -> str:
    """The folder of a training's checkpoints."""
    return f"{work}/{run_id}"


def finished_evaluations(work: Folder = WORK) -> str:
    """Finished evaluations, by what they are made of: a job that runs again finds its own there."""
    return f"{work}/evaluations"


def finished_evaluation(run_id: str, work: Folder = WORK) -> str:
    return f"{finished_evaluations(work)}/{run_id}"


def engine_run(study: str) -> str:
    """The folder that the engine owns as long as it runs a study."""
    return f"{WORK}/drivers/{study}"


def made_by_engine_run(study: str) -> str:
    """The specifications of what its jobs make."""
    return f"{engine_run(study)}/makes.json"
