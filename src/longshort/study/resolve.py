"""From configuration files to runs: reads, checks, and resolves every arm x seed to its specification.

Imports no torch and no workflow engine: the Snakefile imports it, and every job parses the Snakefile.
"""

from __future__ import annotations

import difflib
import json
import math
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from longshort.alignment import schedules
from longshort.data import corpora
from longshort.errors import StudyError
from longshort.identity.accepted import accepted_changes
from longshort.identity.code import code_hash
from longshort.identity.spec import NAME, canonical, digest, dumps
from longshort.records.publish import sealed
from longshort.results.columns import KINDS, columns_of
from longshort.study import places, resources, zero
from longshort.study.files import yaml_mapping
from longshort.study.parsing import parse, parse_patch, short
from longshort.study.schema import (
    Alignment,
    Arm,
    Arms,
    Evaluation,
    HiddenTerm,
    OutputTerm,
    Override,
    RunSpec,
    Study,
    Table,
    TrainedModel,
    Training,
    TwoViews,
)

Read = TypeVar("Read")
CONFIG = Path("config")
# Folders of results/ that all studies share.
RESERVED = ("runs", "data", "evaluations")
TABLE_KINDS = ("parquet", "csv", "md", "tex", "html")
PLOTS_OF_METRICS = {"perplexity": "perplexity", "misalignment": "misalignment", "longbench_e": "tasks"}
PLOTS = ("training", "schedules", "gain")
OPTIONS = ("micro_batch", "chunk_size", "gradient_checkpointing", "logging_steps", "checkpoint_minutes", "threads")
# The kind of the study that is none of language models: longshort.synthetic.
SYNTHETIC = "synthetic"
# The entry modules of the stages.
TRAINING = "longshort.training.trainer"
EVALUATIONS = {
    "perplexity": "longshort.evaluation.perplexity",
    "misalignment": "longshort.evaluation.misalignment",
    "longbench_e": "longshort.evaluation.longbench",
    "harness": "longshort.evaluation.harness",
}


@dataclass(frozen=True)
class ResolvedStudy:
    """What the workflow wires: every specification by its id, and who needs which."""

    name: str
    study: Study
    arms: dict[str, Arm]
    runs: dict[str, RunSpec]
    arm_runs: dict[str, dict[int, str]]
    base: str
    base_steps: int
    data: str
    evaluations: dict[str, tuple[str, Evaluation]]
    tables: dict[str, Table]
    texts: dict[str, str] = field(repr=False)
    settings: dict[str, Any] = field(repr=False, default_factory=dict)
    accepted: list[dict[str, Any]] = field(default_factory=list)
    site: resources.Site = field(default_factory=resources.Site)
    stages = ("specification", "data", "train", "evaluate", "tables")

    @property
    def steps_key(self) -> str:
        """The checkpoints as part of a file name: an added step asks for another file and invalidates none."""
        return "-".join(str(step) for step in sorted(self.study.checkpoints))

    def steps_of(self, run: str) -> str:
        return str(self.base_steps) if run == self.base else self.steps_key

    def record(self, run: str) -> str:
        """The file that says how a run's training ended."""
        return f"results/runs/{run}/training/{self.steps_of(run)}.json"

    def evaluation_record(self, metric: str, run: str) -> str:
        """The file that says how an evaluation of a run was made."""
        return f"results/runs/{run}/{metric}/{self.evaluations[metric][0]}/{self.steps_of(run)}.json"

    def base_record(self, run: str) -> list[str]:
        """The record of the run that this one starts from; none for the base itself."""
        base = self.runs[run].base
        return [self.record(base)] if base else []

    def training_code(self, run: str) -> str:
        return self._accepted(self.record(run), code_hash(TRAINING, self.runs[run].modules))

    def evaluation_code(self, metric: str, run: str) -> str:
        return self._accepted(self.evaluation_record(metric, run), code_hash(EVALUATIONS[metric]))

    def evaluation_codes(self, metric: str) -> str | Callable[[Any], str]:
        """The code of a metric's jobs: one for all runs or, where a change was accepted for some, a function of a job's
        wildcards. (The engine's work grows with every function that a rule has.)"""
        if any(change["stage"] == EVALUATIONS[metric] for change in self.accepted):
            return lambda wildcards: self.evaluation_code(metric, wildcards.run)
        return code_hash(EVALUATIONS[metric])

    def codes(self) -> dict[str, dict[str, str]]:
        """Run -> "training" or metric -> the code that makes it."""
        return {
            run: {"training": self.training_code(run)}
            | {metric: self.evaluation_code(metric, run) for metric in self.evaluations}
            for run in self.runs
        }

    def _accepted(self, record: str, code: str) -> str:
        """The code that a result was made with, where a person declared that `code` would give the same."""
        for change in self.accepted:
            if change["to"] == code and record in change["records"]:
                return str(change["from"])
        return code

    def cpus(self, run: str) -> int:
        training = self.runs[run].training
        return training.processes * training.threads if training else 1

    def training_resources(self) -> resources.Resources:
        """What rule train asks for."""
        needs, site = self.study.needs, self.site
        each = {}
        for run, spec in self.runs.items():
            gpus = spec.training.processes if spec.training and needs.device == "gpu" else 0
            each[run] = resources.training(site, gpus, spec.training.nodes if spec.training else 1)
        grown = resources.job(resources.Site(), 0, needs.training_memory_mb, needs.training_minutes)
        return {**grown, **resources.by_run(each)}

    def evaluation_resources(self) -> resources.Resources:
        needs = self.study.needs
        gpus = int(needs.device == "gpu")
        return resources.job(self.site, gpus, needs.evaluation_memory_mb, needs.evaluation_minutes)

    def data_resources(self) -> resources.Resources:
        return resources.job(self.site, 0, 4000, 240)

    def options(self, run: str) -> str:
        """The settings that are no part of the identity, as the training's command line takes them (0 for none)."""
        training = self.runs[run].training
        values = {key: int(getattr(training, key) or 0) if training else 0 for key in OPTIONS}
        said = [word for key, value in values.items() for word in (f"--{key.replace('_', '-')}", str(value))]
        if training and training.report_to:
            said += ["--report-to", *training.report_to, "--run-name", self.name_of(run)]
        return shlex.join(said)

    def name_of(self, run: str) -> str:
        """What a tracker shows a run as: study/arm/seed-n, by the first of its arms."""
        for arm, seeds in self.arm_runs.items():
            for seed, candidate in seeds.items():
                if candidate == run:
                    return f"{self.name}/{arm}/seed-{seed}"
        return f"{self.name}/base/seed-{self.runs[run].seed}"

    def published(self) -> list[str]:
        """What the results stages read of every run: the record of each job, and its numbers beside it."""
        stages = ["training", *(f"{metric}/{identity}" for metric, (identity, _) in self.evaluations.items())]
        return [
            f"results/runs/{run}/{stage}/{self.steps_of(run)}.{kind}"
            for run in self.runs
            for stage in stages
            for kind in ("json", "parquet")
        ]

    def corpus_files(self) -> list[str]:
        """The files that the corpus is read from, where they are local and can change."""
        corpus = self.study.data.corpus
        return [str(path) for path in corpora.files(corpus.path)] if corpus.kind == "text" else []

    def items(self) -> list[str]:
        """The files that LongBench-E's items come from, besides the corpus."""
        settings = self.study.evaluations.longbench_e
        if settings is None:
            return []
        if settings.source.kind == "folder":
            return sorted(str(path) for path in Path(settings.source.path).glob("*_e.jsonl"))
        if settings.source.kind == "zip":
            return [settings.source.path]
        if settings.source.kind == "hub":
            return []  # its revision says what is in it
        return [f"results/data/{self.data}/longbench-e-{settings.source.items_per_task}/manifest.json"]

    def harness_files(self) -> list[str]:
        """One's own task files of the harness, with what lies beside them."""
        settings = self.study.evaluations.harness
        return (
            [str(path) for path in places.task_files(settings.include_path)]
            if settings and settings.include_path
            else []
        )

    def table_files(self, *kinds: str) -> list[str]:
        return [f"results/{self.name}/tables/{table}.{kind}" for table in self.tables for kind in kinds or TABLE_KINDS]

    def plot_files(self, *kinds: str) -> list[str]:
        """As results.plots draws them: those of a metric where it is evaluated."""
        plots = [plot for metric, plot in PLOTS_OF_METRICS.items() if metric in self.evaluations] + [*PLOTS]
        misalignment = self.study.evaluations.misalignment
        if misalignment and misalignment.grid_sequences:
            plots.append("misalignment-grid")
        if misalignment and {"perplexity", "longbench_e"} & set(self.evaluations):
            plots.append("correlation")
        return [f"results/{self.name}/plots/{plot}.{kind}" for plot in plots for kind in kinds or ("pdf", "png")]

    def targets(self) -> list[str]:
        return [*self.table_files(), *self.plot_files(), f"results/{self.name}/report.html"]

    def summary_text(self) -> str:
        return json.dumps(sealed(self.summary()), indent=2, allow_nan=False, ensure_ascii=False)

    @property
    def seal(self) -> str:
        """What tells study.json from an edited one that was sealed anew."""
        return str(sealed(self.summary())["seal"])

    def summary(self) -> dict[str, Any]:
        """All that the results stages know of the study."""
        names = list(self.study.arms)
        return {
            "name": self.name,
            "title": self.study.title,
            "question": self.study.question,
            "l_train": self.study.lengths.train,
            "steps": self.study.training.steps,
            "checkpoints": sorted(self.study.checkpoints),
            "steps_key": self.steps_key,
            "seeds": list(self.study.seeds),
            "base": self.base,
            "base_steps": self.base_steps,
            "primary": self.study.primary,
            "published": [canonical(one) for one in self.study.published],
            "settings": self.settings["study"],
            "accepted": [change for change in self.accepted if set(change["runs"]) & set(self.runs)],
            "arms": [
                {
                    "name": name,
                    "description": self.arms[name].description,
                    "control": self.arms[name].control,
                    "runs": {str(seed): run for seed, run in self.arm_runs[name].items()},
                    "settings": self.settings[name],
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


def load(name: str, config: Path = CONFIG) -> ResolvedStudy:
    """Reads, checks and resolves a study of language models.

    Raises:
        StudyError: with study, arm, key, value and remedy of every mistake found.
    """
    content = content_of(name, config)
    if content.get("kind") == SYNTHETIC:
        raise StudyError(
            f"study {name} is synthetic: it is run by `snakemake all --config study={name}` and read in "
            f"results/{name}; only studies of language models have this command"
        )
    arms = parse(Arms, yaml_mapping(config / "arms.yaml"), f"{config}/arms.yaml", None)
    _check_arms(f"{config}/arms.yaml", arms)
    study = parse(Study, content, f"study {name}", None)
    tables = _tables(study, arms)
    _check(name, study, arms, tables)
    places.check(f"study {name}", study)
    resolved = _resolve(name, study, arms, tables, config)
    _check_columns(resolved)
    return resolved


def content_of(name: str, config: Path = CONFIG) -> dict[str, Any]:
    """What a study's file holds, whatever kind of study it is.

    Raises:
        StudyError: there is no such study, its name is none, or its file is no YAML.
    """
    studies = sorted(path.stem for path in (config / "studies").glob("*.yaml"))
    if name not in studies:
        close = difflib.get_close_matches(str(name), studies, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise StudyError(f"study {name!r} is unknown: {hint}{config}/studies holds {', '.join(studies) or 'nothing'}")
    _check_name(f"{config}/studies/{name}.yaml", name)
    if name in RESERVED:
        raise StudyError(
            f"study {name!r} would write into results/{name}, which all studies share; call its file otherwise"
        )
    return yaml_mapping(config / "studies" / f"{name}.yaml")


def _merge(base: Any, patch: Any) -> Any:
    """Mappings merge key by key; one of another kind, and anything else, replaces."""
    if not isinstance(base, dict) or not isinstance(patch, dict):
        return patch
    if "kind" in patch and patch["kind"] != base.get("kind"):
        return patch
    return {**base, **{key: _merge(base.get(key), value) for key, value in patch.items()}}


def _check_arms(where: str, arms: Arms) -> None:
    """Every arm, whether a study uses it or not: a mistake is found by who makes it."""
    parse(Alignment, arms.alignment, where, "alignment")
    for name, arm in arms.arms.items():
        _check_name(where, name)
        parse(Alignment, _merge(arms.alignment, arm.alignment), f"{where}, arm {name}", "alignment")
        parse_patch(Training, arm.training, f"{where}, arm {name}", "training")
        chain = [name]
        while (control := arms.arms[chain[-1]].control) is not None:
            if control not in arms.arms:
                raise StudyError(f"{where}, arm {chain[-1]}: control = {control!r}: no such arm here; add it")
            if control in chain:
                raise StudyError(
                    f"{where}, arm {chain[-1]}: control = {control!r}: an arm is no control of itself, nor of its own "
                    "control; name another arm, or none"
                )
            chain.append(control)
    for name, table in arms.tables.items():
        for arm_name in table.arms if table.arms != "all" else []:
            if arm_name not in arms.arms:
                raise StudyError(
                    f"{where}: tables.{name}.arms = {arm_name!r}: no such arm here; add it, or take it out"
                )


def _check_name(where: str, name: str) -> None:
    if not NAME.fullmatch(name):
        raise StudyError(
            f"{where}: the name {short(name)} would be a file name; use at most 64 letters, digits and . + _ -, "
            "a letter or a digit first"
        )


def _tables(study: Study, arms: Arms) -> dict[str, Table]:
    """The study's tables: the shared ones that have something to show here, and its own."""
    tables = {}
    for name, table in arms.tables.items():
        if any(getattr(study.evaluations, metric) is None for metric in KINDS[table.columns]):
            continue
        if table.arms == "all":
            tables[name] = table
            continue
        rows = [arm for arm in table.arms if arm in study.arms]
        if set(rows) - {"baseline", "constant"}:
            tables[name] = table.model_copy(update={"arms": rows})
    return {**tables, **study.tables}


def _check(name: str, study: Study, arms: Arms, tables: dict[str, Table]) -> None:
    """What concerns more than one key."""
    where = f"study {name}"
    for arm in study.arms:
        if arm not in arms.arms:
            close = difflib.get_close_matches(arm, arms.arms, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise StudyError(f"{where}: arms = {arm!r}: unknown arm; {hint}config/arms.yaml has {', '.join(arms.arms)}")
        control = arms.arms[arm].control
        if control is not None and control not in study.arms:
            raise StudyError(f"{where}, arm {arm}: control = {control!r} is not among the study's arms; add it there")
    for arm in study.overrides:
        if arm not in study.arms:
            raise StudyError(
                f"{where}: overrides.{arm}: the study has no such arm; add it to arms or take the override out"
            )
    if not tables:
        raise StudyError(f"{where}: tables is empty and config/arms.yaml has none that fits; give one")
    for table_name, table in tables.items():
        _check_name(where, table_name)
        for arm in table.arms if table.arms != "all" else []:
            if arm not in study.arms:
                raise StudyError(
                    f"{where}: tables.{table_name}.arms = {arm!r}: the study has no such arm; "
                    f"add it to arms, or name one of {', '.join(study.arms)}"
                )
        for metric in KINDS[table.columns]:
            if getattr(study.evaluations, metric) is None:
                raise StudyError(
                    f"{where}: tables.{table_name}.columns = {table.columns!r}: the study does not measure {metric}; "
                    "add it to evaluations, or show the headline"
                )
        rows = study.arms if table.arms == "all" else table.arms
        if table.compare_with == "control" and not any(arms.arms[arm].control for arm in rows):
            raise StudyError(
                f"{where}: tables.{table_name}.compare_with = 'control': none of its arms has a control; "
                "use baseline, or give an arm of it a control in config/arms.yaml"
            )
        if table.compare_with == "baseline" and "baseline" not in study.arms:
            raise StudyError(f"{where}: tables.{table_name}: compares with the arm baseline; add baseline to arms")
    reach = study.model.max_length
    asked = {"lengths.train": study.lengths.train}
    ev = study.evaluations
    if ev.perplexity:
        asked["evaluations.perplexity.lengths"] = max(ev.perplexity.lengths)
    if ev.misalignment and ev.misalignment.beyond:
        asked["evaluations.misalignment.beyond"] = max(ev.misalignment.beyond) * study.lengths.train
    if ev.longbench_e:
        asked["evaluations.longbench_e.max_length"] = ev.longbench_e.max_length
    if ev.harness and ev.harness.max_length:
        asked["evaluations.harness.max_length"] = ev.harness.max_length
    for key, length in asked.items():
        if length > reach:
            raise StudyError(
                f"{where}: {key} = {length} tokens: longer than the model can take (model.max_length {reach}); "
                "lower it, or extend the model"
            )


def _check_columns(resolved: ResolvedStudy) -> None:
    """The numbers that the study names are among those that it measures."""
    known = [column.key for column in columns_of(resolved.summary())]
    named = {"primary": resolved.study.primary} if resolved.study.primary is not None else {}
    for place, one in enumerate(resolved.study.published):
        where = f"study {resolved.name}: published[{place}]"
        if one.arm not in resolved.arm_runs:
            raise StudyError(
                f"{where}.arm = {one.arm!r}: the study has no such arm; take the number out, or add the arm"
            )
        if one.step not in resolved.study.checkpoints:
            raise StudyError(f"{where}.step = {one.step}: no checkpoint of the study; give one of checkpoints")
        named[f"published[{place}].column"] = one.column
    for key, column in named.items():
        if column not in known:
            close = difflib.get_close_matches(column, known, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise StudyError(
                f"study {resolved.name}: {key} = {column!r}: no such column; {hint}there are {', '.join(known)}"
            )


def _resolve(name: str, study: Study, arms: Arms, tables: dict[str, Table], config: Path) -> ResolvedStudy:
    length = study.lengths.train
    runs: dict[str, RunSpec] = {}

    if isinstance(study.model, TrainedModel):
        base_spec = RunSpec(
            data=study.data,
            length=length,
            seed=study.model.seed,
            architecture=study.model.architecture,
            training=study.model.training,
            deepspeed=zero.read(f"study {name}: model.training", study.model.training, config),
        )
        base_steps = study.model.training.steps
    else:
        base_spec = RunSpec(data=study.data, length=length, seed=0, pretrained=study.model)
        base_steps = 0
    base, base_text = _named(base_spec)
    runs[base] = base_spec
    texts = {base: base_text}

    shared = _merge(arms.alignment, study.alignment)
    parse(Alignment, shared, f"study {name}", "alignment")  # the study's mistake, not its first arm's
    arm_runs: dict[str, dict[int, str]] = {}
    arm_settings: dict[str, Any] = {}
    for arm_name in study.arms:
        where = f"study {name}, arm {arm_name}"
        arm = arms.arms[arm_name]
        override = study.overrides.get(arm_name, Override())
        merged = _merge(_merge(shared, arm.alignment), override.alignment)
        alignment = parse(Alignment, merged, where, "alignment")
        training_values = study.training.model_dump()
        for patch in (arm.training, override.training):
            training_values = _merge(training_values, patch)
        training = parse(Training, training_values, where, "training")
        for step in study.checkpoints:
            if not 0 < step <= training.steps:
                raise StudyError(
                    f"{where}: checkpoints = {step}: outside 1..{training.steps} (training.steps); "
                    "lower it or train longer"
                )
        deepspeed = zero.read(where, training, config)
        _check_attention(where, training, study)
        _check_adapter(where, training, study, deepspeed)
        two_views = _two_views(where, alignment, study, training.steps)
        arm_runs[arm_name] = {}
        arm_settings[arm_name] = {"alignment": canonical(alignment), "training": canonical(training)}
        for seed in study.seeds:
            spec = RunSpec(
                data=study.data,
                length=length,
                seed=seed,
                base=base,
                rope=study.model.rope,
                training=training,
                deepspeed=deepspeed,
                alignment=two_views,
            )
            identity, text = _named(spec)
            runs.setdefault(identity, spec)
            texts[identity] = text
            arm_runs[arm_name][seed] = identity

    evaluations = {}
    for metric in EVALUATIONS:
        settings = getattr(study.evaluations, metric)
        if settings is not None:
            if metric == "harness" and settings.max_length is None:
                settings = settings.model_copy(update={"max_length": study.model.max_length})
            precision = study.evaluations.precision
            evaluation = Evaluation.model_validate(
                {
                    "metric": metric,
                    "length": length,
                    "data": study.data,
                    "precision": precision,
                    "settings": settings,
                }
            )
            identity, text = _named(evaluation)
            evaluations[metric] = (identity, evaluation)
            texts[identity] = text

    data, text = _named(study.data)
    texts[data] = text
    resolved_arms = {arm_name: arms.arms[arm_name] for arm_name in study.arms}
    return ResolvedStudy(
        name,
        study,
        resolved_arms,
        runs,
        arm_runs,
        base,
        base_steps,
        data,
        evaluations,
        tables,
        texts,
        {"study": _study_settings(study), **arm_settings},
        or_study_error(accepted_changes),
        or_study_error(resources.site),
    )


def _unusual_precision(evaluation: Evaluation) -> dict[str, str]:
    return {} if evaluation.precision == "fp32" else {"precision": evaluation.precision}


def _check_attention(where: str, training: Training, study: Study) -> None:
    if training.attention == "full":
        return
    if study.model.rope and study.model.rope.kind == "eabf":
        raise StudyError(
            f"{where}: training.attention = {training.attention!r}: model.rope eabf scales the queries of full "
            "attention; use full, or another method"
        )
    if study.lengths.train % 8:  # four groups, shifted by half of one
        raise StudyError(
            f"{where}: training.attention = {training.attention!r}: lengths.train {study.lengths.train} is no multiple "
            "of 8, that is, of four groups of tokens and half a one; change one of the two"
        )


def _check_adapter(where: str, training: Training, study: Study, deepspeed: dict[str, Any]) -> None:
    if training.adapter is None:
        return
    said = f"{where}: training.adapter = {training.adapter.kind!r}"
    if study.model.rope and study.model.rope.kind == "clex":
        raise StudyError(
            f"{said}: model.rope clex trains weights of its own, which no adapter holds; train all weights, or take "
            "another method"
        )
    if (deepspeed.get("zero_optimization") or {}).get("stage") == 3:
        raise StudyError(
            f"{said}: training.deepspeed = {training.deepspeed!r} divides the base's weights (ZeRO-3), which "
            "bitsandbytes cannot quantise and an adapter does not need; give zero2"
        )
    places.check_adapter(where, training.adapter.targets, study.model)


def or_study_error(read: Callable[[], Read]) -> Read:
    try:
        return read()
    except ValueError as error:
        raise StudyError(str(error)) from None


def _study_settings(study: Study) -> dict[str, Any]:
    """What all arms share, as a plan compares it with what it was."""
    return {"data": canonical(study.data), "model": canonical(study.model), "lengths": canonical(study.lengths)}


def _named(spec: BaseModel) -> tuple[str, str]:
    """A specification's name, as spec_id says it, and its text: one pass over its values for both."""
    content = canonical(spec)
    text = json.dumps(content, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False)
    return digest(dumps(content)), text


def _two_views(where: str, alignment: Alignment, study: Study, steps: int) -> TwoViews:
    length = study.lengths.train
    # 0.29 * 100 is 28.999...: a product that is a whole number but for its last bit is that number.
    reach = math.floor(alignment.sampling_range * length + 1e-9)
    if reach < 1:
        raise StudyError(
            f"{where}: alignment.sampling_range = {alignment.sampling_range:g}: less than one token of lengths.train "
            f"{length}; give {math.ceil(1e6 / length) / 1e6:g} or more"
        )
    max_extra = min(reach, length - 1)
    try:
        multipliers = _multipliers(where, alignment.schedule, study, steps)
        finite = all(math.isfinite(value) for value in multipliers)
    except (OverflowError, ValueError, ZeroDivisionError) as error:
        if isinstance(error, StudyError):
            raise
        finite = False
    if not finite:
        raise StudyError(
            f"{where}: alignment.schedule = {short(canonical(alignment.schedule))}: its values leave the range of "
            "numbers; give a lower power, start or end"
        )
    output = hidden = None
    # A weight of 0 at every step is no term, whether alpha or the schedule says so.
    if weights := _weights(where, alignment.alpha, multipliers):
        output = OutputTerm(
            alpha=weights,
            divergence=alignment.divergence,
            stop_gradient=alignment.stop_gradient,
        )
    if alignment.hidden is not None and (weights := _weights(where, alignment.hidden.alpha, multipliers)):
        lens = alignment.hidden.distance == "logit-lens"
        hidden = HiddenTerm(
            alpha=weights,
            layers=_layers(where, alignment.hidden.layers, study.model.layers),
            distance=alignment.hidden.distance,
            divergence=alignment.divergence if lens else None,
            # A distance of states has no targets to hold constant.
            stop_gradient="none" if alignment.stop_gradient == "targets" and not lens else alignment.stop_gradient,
        )
    # Without a term to weigh nothing of the overlap is used: all such arms are the same run.
    overlap = alignment.overlap if output or hidden else None
    return TwoViews(
        max_extra=max_extra, sampling_per=alignment.sampling_per, overlap=overlap, output=output, hidden=hidden
    )


def _weights(where: str, alpha: float, multipliers: list[float]) -> float | list[float]:
    products = [alpha * multiplier for multiplier in multipliers]
    if not all(math.isfinite(value) for value in products):
        raise StudyError(f"{where}: alignment.alpha = {alpha:g} times its schedule is no number; lower one of the two")
    values = schedules.rounded(products)
    return values[0] if len(set(values)) == 1 else values


def _multipliers(where: str, schedule: Any, study: Study, steps: int) -> list[float]:
    if schedule.kind == "constant":
        return [1.0] * steps
    if schedule.kind == "mean-of":
        return [schedules.mean(_multipliers(where, schedule.schedule, study, steps))] * steps
    if schedule.kind in ("ratio", "ratio-curriculum"):
        l_test = schedule.l_test or study.lengths.test
        if l_test is None:
            raise StudyError(
                f"{where}: alignment.schedule.l_test = null: a {schedule.kind} schedule needs a test length; "
                "give l_test there or lengths.test in the study"
            )
        l_train = study.lengths.train
        if schedule.kind == "ratio":
            return [schedules.ratio(l_test, l_train, schedule.power)] * steps
        return [schedules.ratio_curriculum(step, steps, l_test, l_train, schedule.power) for step in range(steps)]
    shape = {"linear": schedules.linear, "cosine": schedules.cosine, "exponential": schedules.exponential}[
        schedule.kind
    ]
    values = [shape(step, steps, schedule.start, schedule.end) for step in range(steps)]
    return values if schedule.mean is None else schedules.scaled_to_mean(values, schedule.mean)


def _layers(where: str, chosen: list[float], depth: int) -> list[int]:
    layers = []
    for value in chosen:
        layer = max(1, min(depth - 1, round(value * depth))) if 0 < value < 1 else int(value)
        if (value >= 1 and value != int(value)) or not 1 <= layer <= depth - 1:
            raise StudyError(
                f"{where}: alignment.hidden.layers = {value:g}: out of range; the model has {depth} blocks, "
                f"use 1..{depth - 1}, or a fraction of the depth between 0 and 1"
            )
        layers.append(layer)
    if len(set(layers)) < len(layers):
        raise StudyError(
            f"{where}: alignment.hidden.layers = {chosen}: two of them are block {layers[0]}; name it once"
        )
    return layers
