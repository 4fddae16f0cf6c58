"""A study of language models as rules and commands see it: paths, targets, resources and codes.

Imports no torch and no workflow engine: the Snakefile imports it, and every job parses the Snakefile.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from longshort.data import seen
from longshort.errors import StudyError
from longshort.identity.code import code_hash
from longshort.identity.spec import canonical, dumps
from longshort.jobs import engine
from longshort.metrics.catalog import METRICS, plots_of
from longshort.metrics.settings import LongEvaluator, LongPPL, PretrainedEvaluator
from longshort.records import hub, layout
from longshort.results import replicates
from longshort.results.columns import BEST_ALPHA
from longshort.study import resources
from longshort.study.run import Evaluation, RunSpec
from longshort.study.schema import Arm, Study, Table
from longshort.study.wired import Result, Wired

TABLE_KINDS = ("parquet", "csv", "md", "tex", "html")
OPTIONS = ("micro_batch", "chunk_size", "gradient_checkpointing", "logging_steps", "checkpoint_minutes", "threads")
# The rule whose jobs measure a run by all metrics.
EVALUATE = "evaluate"
# The entry module of a training's stage.
TRAINING = "longshort.training.trainer"
# What finds the key tokens of LongPPL.
KEY_TOKENS = "longshort.evaluation.key_tokens"


@dataclass(frozen=True)
class ResolvedStudy(Wired):
    """A study of language models: every specification by its id, and who needs which."""

    name: str
    study: Study
    arms: dict[str, Arm]
    runs: dict[str, RunSpec]
    arm_runs: dict[str, dict[int, str]]
    bases: dict[int, str]
    base_steps: int
    data: str
    evaluations: dict[str, tuple[str, Evaluation]]
    tables: dict[str, Table]
    texts: dict[str, str] = field(repr=False)
    extended_bases: dict[int, str] = field(default_factory=dict)
    long_base: str | None = None
    study_settings: dict[str, Any] = field(repr=False, default_factory=dict)
    settings: dict[str, dict[str, Any]] = field(repr=False, default_factory=dict)
    accepted: list[dict[str, Any]] = field(default_factory=list)
    site: resources.Site = field(default_factory=resources.Site)
    kind: ClassVar[Literal["language-models"]] = "language-models"
    stages: ClassVar[tuple[str, ...]] = ("specification", "data", "train", "evaluate", "tables")

    @property
    def steps_key(self) -> str:
        """The checkpoints as part of a file name: an added step asks for another file and invalidates none."""
        return "-".join(str(step) for step in sorted(self.study.checkpoints))

    def steps_of(self, run: str) -> str:
        return str(self.base_steps) if self.is_base(run) else self.steps_key

    def is_base(self, run: str) -> bool:
        """Whether it is no arm's: a base, as it is, extended or long."""
        return self.runs[run].base is None or self.runs[run].training is None

    @property
    def first_seeds(self) -> dict[int, str]:
        """The bases, each by the first seed that starts from it."""
        return replicates.by_first_seed(self.bases)

    @property
    def first_extended(self) -> dict[int, str]:
        """The same with their context extended; none where the study extends nothing."""
        return replicates.by_first_seed(self.extended_bases)

    def record(self, run: str) -> str:
        """The file that says how a run's training ended."""
        return self._training(run).record

    def evaluation_record(self, metric: str, run: str) -> str:
        """The file that says how an evaluation of a run was made."""
        return self._evaluation(metric, run).record

    def _training(self, run: str) -> layout.Stage:
        return layout.training(run, self.steps_of(run))

    def _evaluation(self, metric: str, run: str) -> layout.Stage:
        return layout.evaluation(run, metric, self.evaluations[metric][0], self.steps_of(run))

    def base_record(self, run: str) -> list[str]:
        """The record of the run that this one starts from; none for the base itself."""
        if (spec := self.runs.get(run)) is None:  # a job parses the study again when it starts
            raise StudyError(f"run {run} is of no arm of study {self.name} as it stands now: run snakemake again")
        return [self.record(spec.base)] if spec.base else []

    def training_code(self, run: str) -> str:
        return self._accepted(self.record(run), code_hash(TRAINING, self.runs[run].modules))

    def evaluation_code(self, metric: str, run: str) -> str:
        return self._accepted(self.evaluation_record(metric, run), code_hash(METRICS[metric].module))

    def evaluation_codes(self, metric: str) -> str | Callable[[Any], str]:
        """The code of a metric's jobs: one for all runs or, where a change was accepted for some, a function of a job's
        wildcards. (The engine's work grows with every function that a rule has.)"""
        if any(change["stage"] == METRICS[metric].module for change in self.accepted):
            return lambda wildcards: self.evaluation_code(metric, wildcards.run)
        return code_hash(METRICS[metric].module)

    def jobs_of(self, metric: str) -> int:
        """How many jobs share out the items of an evaluation of a run."""
        return int(getattr(self.evaluations[metric][1].settings, "jobs", 1)) if metric in self.evaluations else 1

    def shares(self, metric: str, stage: layout.Stage) -> list[str]:
        """The records of the jobs that share out the items of an evaluation; none where one job measures all."""
        jobs = self.jobs_of(metric)
        return [stage.share(number, jobs).record for number in range(jobs)] if jobs > 1 else []

    def measured_together(self) -> dict[str, Any]:
        """Inputs, outputs and parameter of the rule whose jobs measure a run by all metrics, as the engine's patterns.

        The parameter is the metrics as the command line takes them; a function where it depends on the run.
        """
        of_run = self._together("{run}", "{steps}")
        if any(change["stage"] == METRICS[metric].module for change in self.accepted for metric in self.evaluations):
            return {**of_run, "metrics": lambda wildcards: self._together(wildcards.run, wildcards.steps)["metrics"]}
        return of_run

    def _together(self, run: str, steps: str) -> dict[str, Any]:
        words = []
        inputs, outputs = [], []
        for metric in (name for name in METRICS if name in self.evaluations):  # whatever their order in the file
            identity = self.evaluations[metric][0]
            spec, stage = layout.spec(layout.EVALUATIONS, identity), layout.evaluation(run, metric, identity, steps)
            code = self.evaluation_code(metric, run) if run in self.runs else code_hash(METRICS[metric].module)
            words += ["--metric", metric, spec, stage.numbers, code, *self.items(metric)]
            inputs += [spec, *self.items(metric)]
            outputs += [stage.numbers, stage.record, *([stage.items] if METRICS[metric].keeps_items else [])]
        return {"inputs": inputs, "outputs": outputs, "metrics": words}

    def evaluation_jobs(self) -> list[engine.RememberedJob]:
        """The jobs that measure the runs, as the engine remembers them."""
        jobs = []
        for run in self.runs:
            steps = self.steps_of(run)
            of_run = [layout.training(run, steps).record, layout.data_manifest(self.data)]
            if self.study.needs.are_together:
                job = self._together(run, steps)
                jobs.append(engine.RememberedJob(EVALUATE, [*of_run, *job["inputs"]], job["outputs"], [job["metrics"]]))
                continue
            for metric, (identity, _) in self.evaluations.items():
                stage = self._evaluation(metric, run)
                given = [layout.spec(layout.EVALUATIONS, identity), *of_run, *self.items(metric)]
                given += self.shares(metric, stage)
                made = [stage.numbers, stage.record, *([stage.items] if METRICS[metric].keeps_items else [])]
                by = [self.evaluation_code(metric, run), METRICS[metric].module]
                jobs.append(engine.RememberedJob(metric, given, made, by))
        return jobs

    def results(self) -> list[Result]:
        results = []
        for run in self.runs:
            trained = self._training(run)
            results.append(Result(run, layout.TRAINING, trained.record, trained.log, self.training_code(run)))
            for metric in self.evaluations:
                measured, code = self._evaluation(metric, run), self.evaluation_code(metric, run)
                results.append(Result(run, metric, measured.record, measured.log, code, trained.record))
        return [*results, *self.key_tokens()]

    def key_tokens(self) -> list[Result]:
        """The job that finds the key tokens of LongPPL, which all runs share: it is the corpus'."""
        if "longppl" not in self.evaluations:
            return []
        made = layout.key_tokens(layout.data_folder(self.data), self._of_longppl().key_tokens.id)
        evaluator = self.evaluator_record()
        code = self._accepted(made.record, code_hash(KEY_TOKENS))
        return [Result(self.data, layout.KEY_TOKENS, made.record, made.log, code, evaluator[0] if evaluator else None)]

    def _of_longppl(self) -> LongPPL:
        settings = self.evaluations["longppl"][1].settings
        assert isinstance(settings, LongPPL)
        return settings

    def evaluator_record(self) -> list[str]:
        """The record of the run that finds the key tokens; none where the model exists already."""
        evaluator = self._of_longppl().evaluator
        return [self.record(str(evaluator.run))] if isinstance(evaluator, LongEvaluator) else []

    def names(self) -> dict[str, str]:
        """Run -> the arms and seeds that it belongs to."""
        names: dict[str, list[str]] = {}
        for base, of in {"base": self.first_seeds, "extended base": self.first_extended}.items():
            names |= {run: [base if len(of) == 1 else f"{base}, {seed}"] for seed, run in of.items()}
        for arm, runs in self.arm_runs.items():
            for seed, run in runs.items():
                names.setdefault(run, []).append(f"{arm}, {seed}")
        names |= {} if self.long_base is None else {self.long_base: ["long base"]}
        return {self.data: "all", **{run: "; ".join(given) for run, given in names.items()}}

    def identities(self) -> set[str]:
        return {*self.runs, self.data}

    def in_words(self) -> str:
        bases = self.first_seeds
        said = "the base" if len(bases) == 1 else f"{len(bases)} bases"
        said += ", extended too," * bool(self.extended_bases) + " and a long one" * bool(self.long_base)
        return (
            f"{len(self.arm_runs)} arms x {len(self.study.seeds)} seeds, {len(self.runs)} different runs "
            f"({said} included), checkpoints {self.steps_key}"
        )

    def _accepted(self, record: str, code: str) -> str:
        """The code that a result was made with, where a person declared that `code` would give the same."""
        said = (change for change in self.accepted if change["to"] == code and record in change["records"])
        return str(next(said, {"from": code})["from"])

    def cpus(self, run: str) -> int:
        training = self.runs[run].training
        return training.processes * training.threads if training else 1

    def training_resources(self) -> resources.Resources:
        """What rule train asks for; of bases that are taken as they are, only that their files are read."""
        needs, each, memory_mb, minutes = self.study.needs, {}, {}, {}
        for run, spec in self.runs.items():
            gpus = spec.training.processes if spec.training and needs.device == "gpu" else 0
            each[run] = resources.training(self.site, gpus, spec.training.nodes if spec.training else 1)
            asked = (needs.training_memory_mb, needs.training_minutes) if spec.training else resources.LITTLE
            memory_mb[run], minutes[run] = asked
        found = {**resources.memory_and_time(self.site, memory_mb, minutes), **resources.by_run(each)}
        return {**found, **resources.asked_to_save(needs.save_minutes)}

    def evaluation_resources(self) -> resources.Resources:
        needs = self.study.needs
        asked = needs.evaluation_memory_mb, needs.evaluation_minutes
        return resources.job(self.site, int(needs.device == "gpu"), *asked)

    def data_resources(self) -> resources.Resources:
        return resources.job(self.site, 0, *resources.LITTLE)

    def options(self, run: str) -> str:
        """The settings that are no part of the identity, as the training's command line takes them (0 for none)."""
        training = self.runs[run].training
        values = {key: int(getattr(training, key) or 0) if training else 0 for key in OPTIONS}
        words = [word for key, value in values.items() for word in (f"--{key.replace('_', '-')}", str(value))]
        if training and training.report_to:
            words += ["--report-to", *training.report_to, "--run-name", self.name_of(run)]
        return shlex.join(words)

    def name_of(self, run: str) -> str:
        """What a tracker shows a run as: study/arm/seed-n, by the first of its arms."""
        for arm, seeds in self.arm_runs.items():
            for seed, candidate in seeds.items():
                if candidate == run:
                    return f"{self.name}/{arm}/seed-{seed}"
        return f"{self.name}/{'long-base' if run == self.long_base else 'base'}/seed-{self.runs[run].seed}"

    def published(self) -> list[str]:
        stages = (
            stage
            for run in self.runs
            for stage in (self._training(run), *(self._evaluation(metric, run) for metric in self.evaluations))
        )
        return [file for stage in stages for file in (stage.record, stage.numbers)]

    def corpus_state(self) -> str:
        """Another word exactly if the corpora's own files hold something else than was prepared: see data.seen."""
        return seen.state(seen.paths(self.study.data), self._corpus_record)

    def renew_corpus_state(self) -> None:
        seen.renew(seen.paths(self.study.data), self._corpus_record)

    @property
    def _corpus_record(self) -> Path:
        return Path(layout.data_folder(self.data)) / seen.RECORD

    def external_paths(self) -> list[str]:
        model, data = self.study.model, self.study.data
        named = [one.name for one in model.each()] if model.kind == "pretrained" else []
        named += seen.paths(data).values()
        for metric, settings in self.study.evaluations.asked.items():
            named += METRICS[metric].named(settings.model_dump())
        return [path for path in named if path is not None]

    def hub_parts(self) -> list[hub.Part]:
        return hub_parts(self.study)

    def items(self, metric: str) -> list[str]:
        """The files besides the corpus that a metric is measured on."""
        return METRICS[metric].files(self.evaluations[metric][1].settings.model_dump(), self.data)

    def key_tokens_by(self) -> str:
        """What finds the key tokens of LongPPL, as the command line takes it."""
        return dumps(canonical(self._of_longppl().key_tokens))

    def table_files(self, *kinds: str) -> list[str]:
        folder = layout.tables(self.name)
        return [layout.table(folder, name, kind) for name in self.tables for kind in kinds or TABLE_KINDS]

    def plot_files(self, *kinds: str) -> list[str]:
        """As results.plots draws them."""
        asked = {metric: evaluation.settings.model_dump() for metric, (_, evaluation) in self.evaluations.items()}
        best_alpha = any(table.columns == BEST_ALPHA for table in self.tables.values())
        plots = [plot.name for plot in plots_of(asked, best_alpha, self.study.primary is not None)]
        return [layout.plot(self.name, plot, kind) for plot in plots for kind in kinds or ("pdf", "png")]

    def table_names(self) -> list[str]:
        return list(self.tables)

    def targets(self) -> list[str]:
        return [*self.table_files(), *self.plot_files(), layout.report(self.name)]

    def summary(self) -> dict[str, Any]:
        rope = self.study.model.rope
        # Those of another length stand beside the base.
        names = sorted(self.study.arms, key=lambda name: self.arms[name].lengths is None)
        return {
            "name": self.name,
            "title": self.study.title,
            "question": self.study.question,
            "l_train": self.study.lengths.train,
            "steps": self.study.training.steps,
            "checkpoints": sorted(self.study.checkpoints),
            "steps_key": self.steps_key,
            "seeds": list(self.study.seeds),
            "bases": _texts(self.bases),
            **({"extended_bases": _texts(self.extended_bases), "extended_by": rope.kind} if rope else {}),
            **({"long_base": self.long_base} if self.long_base else {}),
            "base_steps": self.base_steps,
            "device": self.study.needs.device,
            **self.study.model_dump(include={"primary", "margin", "claims"}),
            "published": [canonical(number) for number in self.study.published],
            "settings": self.study_settings,
            "accepted": [change for change in self.accepted if set(change["runs"]) & self.identities()],
            "arms": [
                {
                    "name": name,
                    "description": self.arms[name].description,
                    "control": self.arms[name].control,
                    "runs": _texts(self.arm_runs[name]),
                    "settings": self.settings[name],
                    **({"reference": True} if self.arms[name].lengths is not None else {}),
                }
                for name in names
            ],
            "evaluations": {
                metric: {"id": identity, **canonical(evaluation.settings), **_unusual_precision(evaluation)}
                for metric, (identity, evaluation) in self.evaluations.items()
            },
            "tables": [
                {
                    "name": name,
                    "title": table.title,
                    "arms": names if table.arms == "all" else table.arms,
                    "compare_with": table.compare_with,
                    "columns": table.columns,
                }
                for name, table in sorted(self.tables.items())  # their order in the files says nothing
            ],
        }


def _texts(runs: dict[int, str]) -> dict[str, str]:
    """Keys as JSON has them."""
    return {str(seed): run for seed, run in runs.items()}


def hub_parts(study: Study) -> list[hub.Part]:
    """All that the jobs of a study of language models take from the hub."""
    data, model, asked = study.data, study.model, study.evaluations
    parts = [
        hub.tokenizer(data.tokenizer) if data.tokenizer.kind == "pretrained" else None,
        *(hub.corpus(corpus) for corpus in data.corpora.values() if corpus.kind == "hub"),
    ]
    if model.kind == "pretrained":
        parts += [hub.weights(base.weights) for base in model.each()]
    parts += [
        hub.longbench(settings.source)
        for settings in (asked.longbench_e, asked.longbench_likelihood)
        if settings and settings.source.kind == "hub"
    ]
    if asked.longppl and isinstance(evaluator := asked.longppl.evaluator, PretrainedEvaluator):
        parts += [hub.weights(evaluator), hub.tokenizer(evaluator)]
    if asked.harness and not asked.harness.include_path:  # one's own tasks may need nothing
        parts += [hub.task(task) for task in asked.harness.tasks]
    return list(dict.fromkeys(part for part in parts if part is not None))


def _unusual_precision(evaluation: Evaluation) -> dict[str, str]:
    return {} if evaluation.precision == "fp32" else {"precision": evaluation.precision}
