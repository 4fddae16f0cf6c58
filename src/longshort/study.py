"""The study, typed: what a person writes in config/, and what it resolves to. The one source of truth.

`load(name)` reads config/studies/<name>.yaml and config/arms.yaml, checks everything that can be checked before
anything runs, and resolves every arm x seed to a RunSpec. Imports no torch and no workflow engine.
"""

from __future__ import annotations

import difflib
import json
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, StrictInt, ValidationError, field_validator, model_validator

from longshort.alignment import schedules
from longshort.alignment.divergences import MODULES as DIVERGENCES
from longshort.data import corpora
from longshort.identity import canonical, code_hash, spec_id

CONFIG = Path("config")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+_-]*")

Divergence = Literal["sce", "symmetric-kl", "kl", "reverse-kl", "js", "l2"]
StopGradient = Literal["none", "first", "second", "targets"]
TABLE_KINDS = ("parquet", "csv", "md", "tex")
PLOTS = ("perplexity", "misalignment", "training", "schedules")
NOT_IDENTITY: dict[str, Any] = {"identity": False}


class StudyError(ValueError):
    """A mistake in the configuration, said with its place and its remedy."""


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


# ---- alignment: what an arm is --------------------------------------------------------------------------------------


class Constant(Strict):
    kind: Literal["constant"] = "constant"


class StepSchedule(Strict):
    """A multiplier that changes over the optimiser steps."""

    kind: Literal["linear", "cosine", "exponential"]
    start: float = Field(ge=0, description="multiplier at the first step")
    end: float = Field(ge=0, description="multiplier at the last step")
    mean: float | None = Field(
        None, gt=0, description="rescale the values so that their mean over all steps is this; null leaves them"
    )

    @model_validator(mode="after")
    def _exponential_is_positive(self) -> StepSchedule:
        if self.kind == "exponential" and (self.start <= 0 or self.end <= 0):
            raise ValueError("an exponential schedule needs start > 0 and end > 0; use linear to start from 0")
        if self.mean is not None and self.start == self.end == 0:
            raise ValueError("a schedule that is 0 throughout has no shape to scale; give start or end a value above 0")
        return self


class RatioSchedule(Strict):
    """A multiplier by the ratio of test to training length, constant (ratio) or growing to it (ratio-curriculum)."""

    kind: Literal["ratio", "ratio-curriculum"]
    l_test: int | None = Field(None, gt=0, description="test length in tokens; null takes the study's lengths.test")
    power: float = Field(1.0, ge=0, description="exponent of l_test / l_train")


class MeanOf(Strict):
    """The constant control of a schedule: its mean over training, at every step."""

    kind: Literal["mean-of"]
    schedule: Annotated[StepSchedule | RatioSchedule, Field(discriminator="kind")] = Field(
        description="the schedule whose mean is used"
    )


Schedule = Annotated[Constant | StepSchedule | RatioSchedule | MeanOf, Field(discriminator="kind")]


class OverlapAll(Strict):
    kind: Literal["all"] = "all"


class OverlapLast(Strict):
    kind: Literal["last"]


class OverlapLastK(Strict):
    kind: Literal["last-k"]
    k: int = Field(gt=0, description="how many positions at the end of the overlap, at most")


Overlap = Annotated[OverlapAll | OverlapLast | OverlapLastK, Field(discriminator="kind")]


class Hidden(Strict):
    """Alignment of intermediate layers between the two views."""

    alpha: float = Field(ge=0, description="weight of the mean distance over the chosen layers")
    layers: list[float] = Field(
        min_length=1,
        description="outputs of blocks 1..n-1: an index (1 and above) or a fraction of the depth n (below 1)",
    )
    distance: Literal["mse", "cosine", "logit-lens"] = Field(
        "mse",
        description="mse of RMS-normalised states (mean over features), 1 - cosine, or logit-lens: "
        "the output divergence after the final norm and the head",
    )


class Alignment(Strict):
    """CE + alpha s(u) D + hidden.alpha s(u) mean over layers of d."""

    alpha: float = Field(ge=0, description="weight of the divergence of the output distributions; 0 leaves it out")
    divergence: Divergence = Field(description="divergence of the next-token distributions of the two views")
    stop_gradient: StopGradient = Field(
        "none", description="which view's distribution is a constant; targets (sce only): the weights of both terms"
    )
    overlap: Overlap = Field(OverlapAll(), description="which positions of the overlap are aligned")
    sampling_range: float = Field(
        0.5, gt=0, le=1, description="l_extra ~ U{1..sampling_range * l_train}, as a fraction of l_train"
    )
    sampling_per: Literal["batch", "row"] = Field("batch", description="one l_extra per optimiser step or per window")
    schedule: Schedule = Field(Constant(), description="multiplies alpha and hidden.alpha over training")
    hidden: Hidden | None = Field(None, description="alignment of hidden layers; null: none")

    @model_validator(mode="after")
    def _targets_is_for_sce(self) -> Alignment:
        if self.stop_gradient == "targets" and self.divergence != "sce":
            raise ValueError("stop_gradient targets is defined for sce only; use none, first or second")
        return self


# ---- training, model, data, evaluation ------------------------------------------------------------------------------


class Training(Strict):
    """Optimisation of one run."""

    steps: int = Field(gt=0, description="optimiser steps")
    batch: int = Field(gt=0, description="windows per optimiser step, over all processes")
    micro_batch: int | None = Field(
        None, gt=0, description="windows per forward and process; null: all at once", json_schema_extra=NOT_IDENTITY
    )
    learning_rate: float = Field(gt=0, description="peak learning rate of AdamW")
    learning_rate_schedule: Literal["constant", "linear", "cosine"] = Field(
        "cosine", description="shape after warm-up; linear and cosine fall to 0 at the last step"
    )
    warmup_steps: int = Field(0, ge=0, description="optimiser steps of linear warm-up")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's weight decay")
    adam_beta1: float = Field(0.9, ge=0, lt=1, description="AdamW's beta 1")
    adam_beta2: float = Field(0.95, ge=0, lt=1, description="AdamW's beta 2")
    adam_epsilon: float = Field(1e-8, gt=0, description="AdamW's epsilon")
    max_gradient_norm: float = Field(1.0, gt=0, description="gradients are clipped to this global norm")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="floating point type of forward and backward")
    processes: int = Field(1, gt=0, description="processes (GPUs) on each node")
    nodes: int = Field(1, gt=0, description="nodes")
    deepspeed: str = Field(  # no part of the identity: the content of the file is
        "zero1", description="file in config/deepspeed, without .json", json_schema_extra=NOT_IDENTITY
    )
    gradient_checkpointing: bool = Field(
        False, description="recompute activations in the backward pass", json_schema_extra=NOT_IDENTITY
    )
    threads: int = Field(1, gt=0, description="CPU threads of each process", json_schema_extra=NOT_IDENTITY)
    logging_steps: int = Field(
        10, gt=0, description="optimiser steps between progress lines", json_schema_extra=NOT_IDENTITY
    )

    @property
    def world_size(self) -> int:
        return self.processes * self.nodes

    @model_validator(mode="after")
    def _batch_divides(self) -> Training:
        if self.nodes > 1:
            raise ValueError(f"nodes = {self.nodes}: one training on several nodes is not supported yet; use nodes: 1")
        micro = self.micro_batch or max(1, self.batch // self.world_size)
        if self.batch % (micro * self.world_size):
            raise ValueError(
                f"batch {self.batch} is no multiple of micro_batch {micro} x {self.world_size} processes; "
                "choose numbers that divide"
            )
        if self.warmup_steps > self.steps:
            raise ValueError(f"warmup_steps {self.warmup_steps} is more than steps {self.steps}; lower it")
        return self


class Architecture(Strict):
    """A small Llama-style decoder."""

    hidden_size: int = Field(gt=0, description="width")
    intermediate_size: int = Field(gt=0, description="width of the feed-forward layers")
    layers: int = Field(gt=0, description="blocks")
    heads: int = Field(gt=0, description="attention heads")
    rope_theta: float = Field(10000.0, gt=0, description="base of the rotary frequencies")

    @model_validator(mode="after")
    def _heads_divide(self) -> Architecture:
        if self.hidden_size % (2 * self.heads):
            raise ValueError(f"hidden_size {self.hidden_size} is no multiple of 2 x heads {self.heads}")
        return self


class TrainedModel(Strict):
    """A base that a rule trains once, by plain next-token prediction; every arm starts from it."""

    kind: Literal["trained"]
    architecture: Architecture = Field(description="what is trained")
    training: Training = Field(description="how the base is trained")
    seed: StrictInt = Field(0, ge=0, description="seed of the base's weights and data order")
    max_length: int = Field(gt=0, description="longest input the model can take, tokens")

    @property
    def layers(self) -> int:
        return self.architecture.layers


class PretrainedModel(Strict):
    """A base that exists: a hub id or a local folder, safetensors only."""

    kind: Literal["pretrained"]
    name: str = Field(min_length=1, description="hub id or path of a local folder")
    revision: str | None = Field(None, description="commit of the hub repository; null for a local folder")
    trust_remote_code: bool = Field(False, description="run code that comes with the model")
    layers: int = Field(gt=0, description="blocks of the model, so that layer choices are checked before it is loaded")
    max_length: int = Field(gt=0, description="longest input the model can take, tokens")


Model = Annotated[TrainedModel | PretrainedModel, Field(discriminator="kind")]


class StdlibCorpus(Strict):
    """The Python sources of the running interpreter's standard library, one document a file."""

    kind: Literal["stdlib"]


class TextCorpus(Strict):
    """Local files: .txt (one document a file), .jsonl or .parquet (one document a row)."""

    kind: Literal["text"]
    path: str = Field(min_length=1, description="a folder, a file or a glob")
    column: str = Field("text", description="text column of .jsonl and .parquet files")


class HubCorpus(Strict):
    """A dataset of the hub."""

    kind: Literal["hub"]
    dataset: str = Field(min_length=1, description="dataset id")
    revision: str = Field(min_length=1, description="commit of the dataset repository")
    configuration: str | None = Field(None, description="configuration name; null for the default")
    split: str = Field("train", description="split to read")
    column: str = Field("text", description="text column")


class BytesTokenizer(Strict):
    """One token a byte, and one separator."""

    kind: Literal["bytes"] = "bytes"


class PretrainedTokenizer(Strict):
    kind: Literal["pretrained"]
    name: str = Field(min_length=1, description="hub id or path of a local folder")
    revision: str | None = Field(None, description="commit of the hub repository; null for a local folder")


class Data(Strict):
    """A corpus, its tokens and its division by document."""

    corpus: Annotated[StdlibCorpus | TextCorpus | HubCorpus, Field(discriminator="kind")] = Field(
        description="where the documents come from"
    )
    tokenizer: Annotated[BytesTokenizer | PretrainedTokenizer, Field(discriminator="kind")] = Field(
        BytesTokenizer(), description="how text becomes tokens"
    )
    validation: float = Field(0.05, ge=0, lt=1, description="share of the documents held out for validation")
    test: float = Field(0.1, gt=0, lt=1, description="share of the documents held out for evaluation")

    @model_validator(mode="after")
    def _something_is_left(self) -> Data:
        if self.validation + self.test >= 1:
            raise ValueError("validation + test leave no document for training; lower one of them")
        return self


class Prefix(Strict):
    """The first L tokens of each document, all scored."""

    kind: Literal["prefix"] = "prefix"


class SameTargets(Strict):
    """The same last tokens of a window, scored with contexts of different length."""

    kind: Literal["same-targets"]
    targets: int = Field(gt=0, description="scored tokens at the end of each window")


class Perplexity(Strict):
    """Perplexity of fixed held-out documents."""

    protocol: Annotated[Prefix | SameTargets, Field(discriminator="kind")] = Field(
        Prefix(), description="which tokens are scored with which context"
    )
    lengths: list[int] = Field(min_length=1, description="context lengths, tokens")
    documents: int = Field(gt=0, description="test documents of at least the longest length")

    @model_validator(mode="after")
    def _targets_fit(self) -> Perplexity:
        if self.protocol.kind == "same-targets" and self.protocol.targets > min(self.lengths):
            raise ValueError(f"protocol.targets {self.protocol.targets} is more than the shortest length; lower it")
        return self


class Misalignment(Strict):
    """Long-Short Misalignment of fixed held-out sequences."""

    sequences: int = Field(gt=0, description="sequences, shared by every arm")
    lengths_per_sequence: int = Field(4, ge=2, description="context lengths drawn from [l_train / 2, l_train] for each")
    beyond: list[int] = Field([2, 4, 8], description="longer contexts, in multiples of l_train")


class StandIn(Strict):
    """Tasks of LongBench-E's shape made from the test documents; needs no network."""

    kind: Literal["stand-in"]
    items_per_task: int = Field(gt=0, description="items per task, spread over the three length buckets")


class TaskFolder(Strict):
    """A local folder of the official <task>_e.jsonl files."""

    kind: Literal["folder"]
    path: str = Field(min_length=1, description="the folder")


class LongBench(Strict):
    """LongBench-E."""

    source: Annotated[StandIn | TaskFolder, Field(discriminator="kind")] = Field(description="where the items are")
    max_length: int = Field(gt=0, description="longest prompt and answer together, tokens")
    max_new_tokens: int | None = Field(None, gt=0, description="cap on the answer, tokens; null: the official lengths")


class Evaluations(Strict):
    """What every run is measured by, at each checkpoint; null leaves a metric out."""

    perplexity: Perplexity | None = Field(None, description="perplexity on long sequences")
    misalignment: Misalignment | None = Field(None, description="Long-Short Misalignment")
    longbench_e: LongBench | None = Field(None, description="LongBench-E")


class Lengths(Strict):
    train: int = Field(gt=1, description="training length l_train, tokens")
    test: int | None = Field(None, gt=0, description="the test length that ratio schedules refer to, tokens")


class Table(Strict):
    title: str = Field(description="caption")
    arms: list[str] | Literal["all"] = Field(description="rows in order; all: every arm of the study")
    compare_with: Literal["baseline", "control"] = Field(
        "baseline", description="the reference of the differences: the arm baseline, or each arm's control"
    )


class Study(Strict):
    """config/studies/<name>.yaml"""

    title: str = Field(description="one line")
    question: str = Field(description="what the study asks, in a sentence or two")
    data: Data = Field(description="corpus and tokens")
    model: Model = Field(description="the base that every arm starts from")
    lengths: Lengths = Field(description="training and test length")
    training: Training = Field(description="fine-tuning; an arm may patch it")
    alignment: dict[str, Any] = Field(
        {}, description="replaces parts of the alignment that config/arms.yaml starts from"
    )
    checkpoints: list[int] = Field(min_length=1, description="optimiser steps at which every run is evaluated")
    seeds: list[StrictInt] = Field(min_length=1, description="one run of every arm for each")
    arms: list[str] = Field(min_length=1, description="names of config/arms.yaml, in the order of the tables")
    overrides: dict[str, dict[str, Any]] = Field({}, description="patches of single arms, for this study only")
    evaluations: Evaluations = Field(description="metrics")
    tables: dict[str, Table] = Field(min_length=1, description="tables by name")

    @field_validator("seeds", "arms", "checkpoints")
    @classmethod
    def _no_duplicates(cls, values: list[Any]) -> list[Any]:
        twice = sorted({value for value in values if values.count(value) > 1})
        if twice:
            raise ValueError(f"{twice[0]!r} stands there twice; name it once")
        return values

    @field_validator("seeds")
    @classmethod
    def _seeds_count_up(cls, values: list[int]) -> list[int]:
        if min(values) < 0:
            raise ValueError("a seed is negative; use 0 and above")
        return values


class Arm(Strict):
    """One entry of config/arms.yaml: a patch, and what it is compared with."""

    description: str = Field(description="what the arm is, for tables and people")
    control: str | None = Field(None, description="the arm with the same amount of alpha, for the schedules table")
    alignment: dict[str, Any] = Field({}, description="patch of the alignment")
    training: dict[str, Any] = Field({}, description="patch of the training")


class Arms(Strict):
    """config/arms.yaml"""

    alignment: dict[str, Any] = Field(description="what every arm starts from")
    arms: dict[str, Arm] = Field(description="the arms by name")


# ---- what a run is --------------------------------------------------------------------------------------------------


class OutputTerm(Strict):
    alpha: float | list[float] = Field(description="weight at every step, or one for all")
    divergence: Divergence
    stop_gradient: StopGradient = Field("none", json_schema_extra={"neutral": "none"})


class HiddenTerm(Strict):
    alpha: float | list[float]
    layers: list[int] = Field(description="outputs of blocks 1..n-1")
    distance: Literal["mse", "cosine", "logit-lens"]
    divergence: Divergence | None = Field(None, description="of the logit lens", json_schema_extra={"neutral": None})
    stop_gradient: StopGradient = Field("none", json_schema_extra={"neutral": "none"})


class TwoViews(Strict):
    """The alignment as one run computes it: values, no schedules."""

    max_extra: int = Field(description="l_extra ~ U{1..max_extra}, tokens")
    sampling_per: Literal["batch", "row"] = Field("batch", json_schema_extra={"neutral": "batch"})
    overlap: Overlap | None = None
    output: OutputTerm | None = None
    hidden: HiddenTerm | None = None


class RunSpec(Strict):
    """One run, resolved: all that its computation depends on besides code and content."""

    data: Data
    length: int = Field(description="l_train, tokens")
    seed: int
    architecture: Architecture | None = Field(
        None, description="trained from scratch", json_schema_extra={"neutral": None}
    )
    pretrained: PretrainedModel | None = Field(None, description="taken as it is", json_schema_extra={"neutral": None})
    base: str | None = Field(None, description="id of the run that it starts from", json_schema_extra={"neutral": None})
    training: Training | None = Field(None, json_schema_extra={"neutral": None})
    deepspeed: dict[str, Any] | None = Field(None, json_schema_extra={"neutral": None})
    alignment: TwoViews | None = Field(
        None, description="null: one view, cross-entropy", json_schema_extra={"neutral": None}
    )

    @property
    def modules(self) -> tuple[str, ...]:
        """The modules chosen by kind that this run's code identity holds."""
        views = self.alignment
        kinds = {
            term.divergence for term in (views and views.output, views and views.hidden) if term and term.divergence
        }
        return tuple(sorted(DIVERGENCES[kind] for kind in kinds))


class Evaluation(Strict):
    metric: Literal["perplexity", "misalignment", "longbench_e"]
    length: int = Field(description="l_train, tokens")
    data: Data
    settings: Perplexity | Misalignment | LongBench


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
    texts: dict[str, str] = field(repr=False)

    @property
    def steps_key(self) -> str:
        """The checkpoints as part of a file name: an added step asks for another file and invalidates none."""
        return "-".join(str(step) for step in sorted(self.study.checkpoints))

    def steps_of(self, run: str) -> str:
        return str(self.base_steps) if run == self.base else self.steps_key

    def record(self, run: str) -> str:
        """The file that says how a run's training ended."""
        return f"results/runs/{run}/training/{self.steps_of(run)}.json"

    def base_record(self, run: str) -> list[str]:
        """The record of the run that this one starts from; none for the base itself."""
        base = self.runs[run].base
        return [self.record(base)] if base else []

    def training_code(self, run: str) -> str:
        return code_hash("longshort.training.trainer", self.runs[run].modules)

    def cpus(self, run: str) -> int:
        training = self.runs[run].training
        return training.processes * training.threads if training else 1

    def execution(self, run: str, key: str) -> int:
        """A setting that is no part of the identity, as the command line takes it (0 for none)."""
        training = self.runs[run].training
        return int(getattr(training, key) or 0) if training else 0

    def measured(self) -> list[str]:
        """Every evaluation of every run."""
        return [
            f"results/runs/{run}/{metric}/{identity}/{self.steps_of(run)}.parquet"
            for run in self.runs
            for metric, (identity, _) in self.evaluations.items()
        ]

    def corpus_files(self) -> list[str]:
        """The files that the corpus is read from, where they are local and can change."""
        corpus = self.study.data.corpus
        return [str(path) for path in corpora.files(corpus.path)] if corpus.kind == "text" else []

    def items(self) -> list[str]:
        """What LongBench-E needs besides the corpus: the stand-in's items."""
        settings = self.study.evaluations.longbench_e
        if settings is None or settings.source.kind != "stand-in":
            return []
        return [f"results/data/{self.data}/longbench-e-{settings.source.items_per_task}/manifest.json"]

    def table_files(self) -> list[str]:
        return [f"results/{self.name}/tables/{table}.{kind}" for table in self.study.tables for kind in TABLE_KINDS]

    def plot_files(self) -> list[str]:
        return [f"results/{self.name}/plots/{plot}.{kind}" for plot in PLOTS for kind in ("pdf", "png")]

    def summary_text(self) -> str:
        return json.dumps(self.summary(), indent=2, allow_nan=False, ensure_ascii=False)

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
            "arms": [
                {
                    "name": name,
                    "description": self.arms[name].description,
                    "control": self.arms[name].control,
                    "runs": {str(seed): run for seed, run in self.arm_runs[name].items()},
                }
                for name in names
            ],
            "evaluations": {
                metric: {"id": identity, **canonical(evaluation.settings)}
                for metric, (identity, evaluation) in self.evaluations.items()
            },
            "tables": [
                {
                    "name": name,
                    "title": table.title,
                    "arms": names if table.arms == "all" else table.arms,
                    "compare_with": table.compare_with,
                }
                for name, table in self.study.tables.items()
            ],
        }


# ---- loading --------------------------------------------------------------------------------------------------------


def load(name: str, config: Path = CONFIG) -> ResolvedStudy:
    """Reads, checks and resolves a study.

    Raises:
        StudyError: with study, arm, key, value and remedy of every mistake found.
    """
    studies = sorted(path.stem for path in (config / "studies").glob("*.yaml"))
    if name not in studies:
        close = difflib.get_close_matches(str(name), studies, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise StudyError(f"study {name!r} is unknown: {hint}{config}/studies holds {', '.join(studies) or 'nothing'}")
    arms = _parse(Arms, _read(config / "arms.yaml"), f"{config}/arms.yaml", None)
    study = _parse(Study, _read(config / "studies" / f"{name}.yaml"), f"study {name}", None)
    _check(name, study, arms)
    return _resolve(name, study, arms, config)


class _UniqueKeys(yaml.SafeLoader):
    """PyYAML takes the last of two equal keys without a word."""


def _mapping(loader: _UniqueKeys, node: yaml.MappingNode) -> dict[Any, Any]:
    seen = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node)
        if key in seen:
            raise StudyError(
                f"{key_node.start_mark.name}, line {key_node.start_mark.line + 1}: {key!r} stands there twice"
            )
        seen.add(key)
    return loader.construct_mapping(node, deep=True)


_UniqueKeys.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def _read(path: Path) -> Any:
    try:
        with path.open() as file:
            content = yaml.load(file, _UniqueKeys)
    except FileNotFoundError:
        raise StudyError(f"{path} is missing; restore it from the repository") from None
    except yaml.YAMLError as error:
        raise StudyError(f"{path} is no valid YAML: {error}") from None
    if not isinstance(content, dict):
        raise StudyError(f"{path} holds no mapping of keys; see config/README.md")
    return content


def _parse(model: type[Any], values: Any, where: str, prefix: str | None) -> Any:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise StudyError("\n".join(_explain(item, model, where, prefix) for item in error.errors())) from None


def _explain(item: Any, model: type[BaseModel], where: str, prefix: str | None) -> str:
    location = [str(part) for part in item["loc"]]
    kind = item["type"]
    value = item["input"]
    # pydantic puts the tag of a chosen union member into the path; a person looks for the key.
    fields, shown = _fields_at(model, location)
    key = ".".join(([prefix] if prefix else []) + shown) or "(whole file)"
    said = f"{where}: {key}"
    if kind == "extra_forbidden":
        known = sorted(fields)
        close = difflib.get_close_matches(location[-1], known, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        return f"{said} = {_short(value)}: unknown key; {hint}known here: {', '.join(known)}"
    if kind == "missing":
        described = fields.get(location[-1])
        return f"{said} is missing; give {described.description if described is not None else 'it'}"
    if kind == "union_tag_not_found":
        return f"{said} = {_short(value)}: it has no kind; say kind: and one of the kinds in config/README.md"
    if kind == "union_tag_invalid":
        return f"{said}.kind = {item['ctx']['tag']!r}: unknown kind; use one of {item['ctx']['expected_tags']}"
    message = item["msg"].removeprefix("Value error, ")
    described = fields.get(location[-1]) if location else None
    about = f" ({described.description})" if described is not None and described.description else ""
    shown_value = "" if isinstance(value, dict | BaseModel) else f" = {_short(value)}"
    return f"{said}{shown_value}: {message}{about}"


def _fields_at(model: type[BaseModel], location: list[str]) -> tuple[dict[str, Any], list[str]]:
    """The fields known where the location ends, and the location without the tags of unions."""
    current: Any = model
    shown: list[str] = []
    owner: type[BaseModel] = model
    for part in location:
        members = _models_in(current)
        tagged = [m for m in members if part in _tags(m)]
        if tagged and not any(part in m.model_fields for m in members):
            current = tagged[0]
            owner = tagged[0]
            continue
        shown.append(part)
        holder = next((m for m in members if part in m.model_fields), members[0] if members else None)
        if holder is None:
            continue
        owner = holder
        current = holder.model_fields[part].annotation if part in holder.model_fields else current
    return dict(owner.model_fields), shown


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in getattr(annotation, "__args__", ()) for model in _models_in(argument)]


def _tags(model: type[BaseModel]) -> tuple[str, ...]:
    kind = model.model_fields.get("kind")
    return getattr(kind.annotation, "__args__", ()) if kind is not None else ()


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _merge(base: Any, patch: Any) -> Any:
    """Mappings merge key by key; one of another kind, and anything else, replaces."""
    if not isinstance(base, dict) or not isinstance(patch, dict):
        return patch
    if "kind" in patch and patch["kind"] != base.get("kind"):
        return patch
    return {**base, **{key: _merge(base.get(key), value) for key, value in patch.items()}}


def _check(name: str, study: Study, arms: Arms) -> None:
    """What concerns more than one key."""
    where = f"study {name}"
    for arm in [*arms.arms, *study.tables]:
        if not NAME.fullmatch(arm):
            raise StudyError(f"{where}: the name {arm!r} would be a file name; use letters, digits and . + _ - only")
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
    for table_name, table in study.tables.items():
        for arm in table.arms if table.arms != "all" else []:
            if arm not in study.arms:
                raise StudyError(
                    f"{where}: tables.{table_name}.arms = {arm!r}: the study has no such arm; "
                    f"add it to arms, or name one of {', '.join(study.arms)}"
                )
        if table.compare_with == "baseline" and "baseline" not in study.arms:
            raise StudyError(f"{where}: tables.{table_name}: compares with the arm baseline; add baseline to arms")
    for step in study.checkpoints:
        if not 0 < step <= study.training.steps:
            raise StudyError(
                f"{where}: checkpoints = {step}: outside 1..{study.training.steps} (training.steps); "
                "lower it or train longer"
            )
    reach = study.model.max_length
    asked = {"lengths.train": study.lengths.train}
    ev = study.evaluations
    if ev.perplexity:
        asked["evaluations.perplexity.lengths"] = max(ev.perplexity.lengths)
    if ev.misalignment and ev.misalignment.beyond:
        asked["evaluations.misalignment.beyond"] = max(ev.misalignment.beyond) * study.lengths.train
    if ev.longbench_e:
        asked["evaluations.longbench_e.max_length"] = ev.longbench_e.max_length
    for key, length in asked.items():
        if length > reach:
            raise StudyError(
                f"{where}: {key} = {length} tokens: longer than the model can take (model.max_length {reach}); "
                "lower it, or extend the model"
            )


def _resolve(name: str, study: Study, arms: Arms, config: Path) -> ResolvedStudy:
    length = study.lengths.train
    runs: dict[str, RunSpec] = {}

    if isinstance(study.model, TrainedModel):
        base_spec = RunSpec(
            data=study.data,
            length=length,
            seed=study.model.seed,
            architecture=study.model.architecture,
            training=study.model.training,
            deepspeed=_deepspeed(f"study {name}: model.training", study.model.training, config),
        )
        base_steps = study.model.training.steps
    else:
        base_spec = RunSpec(data=study.data, length=length, seed=0, pretrained=study.model)
        base_steps = 0
    base = spec_id(base_spec)
    runs[base] = base_spec

    arm_runs: dict[str, dict[int, str]] = {}
    for arm_name in study.arms:
        where = f"study {name}, arm {arm_name}"
        arm = arms.arms[arm_name]
        override = _parse(
            Arm, {"description": arm.description, **study.overrides.get(arm_name, {})}, where, "overrides"
        )
        merged = arms.alignment
        for patch in (study.alignment, arm.alignment, override.alignment):
            merged = _merge(merged, patch)
        alignment = _parse(Alignment, merged, where, "alignment")
        training_values = study.training.model_dump()
        for patch in (arm.training, override.training):
            training_values = _merge(training_values, patch)
        training = _parse(Training, training_values, where, "training")
        two_views = _two_views(where, alignment, study, training.steps)
        arm_runs[arm_name] = {}
        for seed in study.seeds:
            spec = RunSpec(
                data=study.data,
                length=length,
                seed=seed,
                base=base,
                training=training,
                deepspeed=_deepspeed(where, training, config),
                alignment=two_views,
            )
            identity = spec_id(spec)
            runs.setdefault(identity, spec)
            arm_runs[arm_name][seed] = identity

    evaluations = {}
    for metric in ("perplexity", "misalignment", "longbench_e"):
        settings = getattr(study.evaluations, metric)
        if settings is not None:
            evaluation = Evaluation(metric=metric, length=length, data=study.data, settings=settings)
            evaluations[metric] = (spec_id(evaluation), evaluation)

    data = spec_id(study.data)
    texts = {data: _text(study.data), **{identity: _text(spec) for identity, spec in runs.items()}}
    texts.update({identity: _text(evaluation) for identity, evaluation in evaluations.values()})
    resolved_arms = {arm_name: arms.arms[arm_name] for arm_name in study.arms}
    return ResolvedStudy(name, study, resolved_arms, runs, arm_runs, base, base_steps, data, evaluations, texts)


def _text(spec: BaseModel) -> str:
    return json.dumps(canonical(spec), indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False)


def _deepspeed(where: str, training: Training, config: Path) -> dict[str, Any]:
    folder = config / "deepspeed"
    path = folder / f"{training.deepspeed}.json"
    if not path.exists():
        known = ", ".join(sorted(file.stem for file in folder.glob("*.json")))
        raise StudyError(f"{where}: training.deepspeed = {training.deepspeed!r}: {folder} holds {known}")
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise StudyError(f"{path} is no valid JSON: {error}") from None
    return content


def _two_views(where: str, alignment: Alignment, study: Study, steps: int) -> TwoViews:
    length = study.lengths.train
    max_extra = max(1, min(int(alignment.sampling_range * length), length - 1))
    multipliers = _multipliers(where, alignment.schedule, study, steps)
    output = hidden = None
    if alignment.alpha > 0:
        output = OutputTerm(
            alpha=_weights(alignment.alpha, multipliers),
            divergence=alignment.divergence,
            stop_gradient=alignment.stop_gradient,
        )
    if alignment.hidden is not None and alignment.hidden.alpha > 0:
        lens = alignment.hidden.distance == "logit-lens"
        hidden = HiddenTerm(
            alpha=_weights(alignment.hidden.alpha, multipliers),
            layers=_layers(where, alignment.hidden.layers, study.model.layers),
            distance=alignment.hidden.distance,
            divergence=alignment.divergence if lens else None,
            stop_gradient=alignment.stop_gradient,
        )
    # Without a term to weigh nothing of the overlap is used: all such arms are the same run.
    overlap = alignment.overlap if output or hidden else None
    return TwoViews(
        max_extra=max_extra, sampling_per=alignment.sampling_per, overlap=overlap, output=output, hidden=hidden
    )


def _weights(alpha: float, multipliers: list[float]) -> float | list[float]:
    values = schedules.rounded([alpha * multiplier for multiplier in multipliers])
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


# ---- the schema for editors -----------------------------------------------------------------------------------------


def schema_files() -> dict[str, str]:
    """JSON schemas for editors by path: generated, never edited."""
    models: dict[str, type[BaseModel]] = {"study": Study, "arms": Arms}
    return {
        f"config/schema/{name}.json": json.dumps(model.model_json_schema(), indent=2, sort_keys=True) + "\n"
        for name, model in models.items()
    }


if __name__ == "__main__":
    if sys.argv[1:] != ["schema"]:
        raise SystemExit("usage: python -m longshort.study schema    (writes config/schema)")
    for file_name, text in schema_files().items():
        Path(file_name).write_text(text)
