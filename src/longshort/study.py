"""The study, typed: what a person writes in config/, and what it resolves to. The one source of truth.

`load(name)` reads config/studies/<name>.yaml and config/arms.yaml, checks everything that can be checked before
anything runs, and resolves every arm x seed to a RunSpec. Imports no torch and no workflow engine.
"""

from __future__ import annotations

import difflib
import json
import math
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
PLOTS_OF_METRICS = ("perplexity", "misalignment")
PLOTS = ("training", "schedules")
NOT_IDENTITY: dict[str, Any] = {"identity": False}
MOST_SEEDS = 2**31  # every generator takes a seed below this
LONGEST_ANSWER = 512  # tokens, of LongBench-E's official lengths
LEAST_PROMPT = 16  # tokens


class StudyError(ValueError):
    """A mistake in the configuration, said with its place and its remedy."""


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _distinct(values: Any) -> Any:
    twice = sorted({value for value in values if values.count(value) > 1})
    if twice:
        raise ValueError(f"{twice[0]!r} stands there twice; name it once")
    return values


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
    seed: StrictInt = Field(0, ge=0, lt=MOST_SEEDS, description="seed of the base's weights and data order")
    max_length: int = Field(gt=0, description="longest input the model can take, tokens")

    @property
    def layers(self) -> int:
        return self.architecture.layers


class PretrainedModel(Strict):
    """A base that exists: a hub id or a local folder, safetensors only."""

    kind: Literal["pretrained"]
    name: str = Field(min_length=1, description="hub id or path of a local folder")
    revision: str | None = Field(
        None, min_length=1, description="commit of the hub repository; null for a local folder"
    )
    trust_remote_code: bool = Field(False, description="run code that comes with the model")
    layers: int = Field(  # this and max_length are for checks only: the model's own files say them
        gt=0,
        description="blocks of the model, so that layer choices are checked before it is loaded",
        json_schema_extra=NOT_IDENTITY,
    )
    max_length: int = Field(
        gt=0, description="longest input the model can take, tokens", json_schema_extra=NOT_IDENTITY
    )


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
    revision: str | None = Field(
        None, min_length=1, description="commit of the hub repository; null for a local folder"
    )


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
    lengths: list[Annotated[int, Field(gt=0)]] = Field(min_length=1, description="context lengths, tokens")
    documents: int = Field(gt=0, description="test documents of at least the longest length")

    _lengths_once = field_validator("lengths")(_distinct)

    @model_validator(mode="after")
    def _targets_fit(self) -> Perplexity:
        if self.protocol.kind == "same-targets" and self.protocol.targets > min(self.lengths):
            raise ValueError(f"protocol.targets {self.protocol.targets} is more than the shortest length; lower it")
        return self


class Misalignment(Strict):
    """Long-Short Misalignment of fixed held-out sequences."""

    sequences: int = Field(gt=0, description="sequences, shared by every arm")
    lengths_per_sequence: int = Field(4, ge=2, description="context lengths drawn from [l_train / 2, l_train] for each")
    beyond: list[Annotated[int, Field(gt=1)]] = Field([2, 4, 8], description="longer contexts, in multiples of l_train")

    _beyond_once = field_validator("beyond")(_distinct)


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

    @model_validator(mode="after")
    def _a_prompt_fits(self) -> LongBench:
        answer = min(self.max_new_tokens or LONGEST_ANSWER, LONGEST_ANSWER)
        if self.max_length < answer + LEAST_PROMPT:
            raise ValueError(
                f"max_length {self.max_length} leaves fewer than {LEAST_PROMPT} tokens for a prompt beside an "
                f"answer of {answer} tokens; give max_length {answer + LEAST_PROMPT} or more, or a lower max_new_tokens"
            )
        return self


class Evaluations(Strict):
    """What every run is measured by, at each checkpoint; null leaves a metric out."""

    perplexity: Perplexity | None = Field(None, description="perplexity on long sequences")
    misalignment: Misalignment | None = Field(None, description="Long-Short Misalignment")
    longbench_e: LongBench | None = Field(None, description="LongBench-E")

    @model_validator(mode="after")
    def _something_is_measured(self) -> Evaluations:
        if self.perplexity is None and self.misalignment is None and self.longbench_e is None:
            raise ValueError("nothing is measured; give perplexity, misalignment or longbench_e")
        return self


class Lengths(Strict):
    train: int = Field(gt=1, description="training length l_train, tokens")
    test: int | None = Field(None, gt=0, description="the test length that ratio schedules refer to, tokens")


class Table(Strict):
    title: str = Field(description="caption")
    arms: list[str] | Literal["all"] = Field(description="rows in order; all: every arm of the study")
    compare_with: Literal["baseline", "control"] = Field(
        "baseline", description="the reference of the differences: the arm baseline, or each arm's control"
    )

    @field_validator("arms")
    @classmethod
    def _rows_once(cls, values: list[str] | Literal["all"]) -> list[str] | Literal["all"]:
        if not values:
            raise ValueError("a table needs a row; name arms of the study, or all")
        return values if values == "all" else _distinct(values)


class Override(Strict):
    """What a study may change of one arm. What the arm is called and compared with is said in config/arms.yaml."""

    alignment: dict[str, Any] = Field({}, description="patch of the alignment")
    training: dict[str, Any] = Field({}, description="patch of the training")


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
    checkpoints: list[StrictInt] = Field(min_length=1, description="optimiser steps at which every run is evaluated")
    seeds: list[Annotated[StrictInt, Field(ge=0, lt=MOST_SEEDS)]] = Field(
        min_length=1, description="one run of every arm for each"
    )
    arms: list[str] = Field(min_length=1, description="names of config/arms.yaml, in the order of the tables")
    overrides: dict[str, Override] = Field({}, description="patches of single arms, for this study only")
    evaluations: Evaluations = Field(description="metrics")
    tables: dict[str, Table] = Field(min_length=1, description="tables by name")

    _all_once = field_validator("seeds", "arms", "checkpoints")(_distinct)


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
        """As results.plots draws them: those of a metric where it is evaluated."""
        plots = [plot for plot in PLOTS_OF_METRICS if plot in self.evaluations] + [*PLOTS]
        return [f"results/{self.name}/plots/{plot}.{kind}" for plot in plots for kind in ("pdf", "png")]

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
    _check_arms(f"{config}/arms.yaml", arms)
    study = _parse(Study, _read(config / "studies" / f"{name}.yaml"), f"study {name}", None)
    _check(name, study, arms)
    _check_places(f"study {name}", study)
    return _resolve(name, study, arms, config)


class _UniqueKeys(yaml.SafeLoader):
    """PyYAML takes the last of two equal keys without a word."""


def _mapping(loader: _UniqueKeys, node: yaml.MappingNode) -> dict[Any, Any]:
    seen = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        line = f"{key_node.start_mark.name}, line {key_node.start_mark.line + 1}"
        if not isinstance(key, str | int | float):
            raise StudyError(f"{line}: {_short(key)} is no key; use a word or a number")
        if key in seen:
            raise StudyError(f"{line}: {key!r} stands there twice; write it once")
        seen.add(key)
    return loader.construct_mapping(node, deep=True)


_UniqueKeys.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def _read(path: Path) -> Any:
    try:
        with path.open(encoding="utf-8") as file:
            content = yaml.load(file, _UniqueKeys)
    except StudyError:
        raise
    except FileNotFoundError:
        raise StudyError(f"{path} is missing; restore it from the repository") from None
    except UnicodeDecodeError as error:
        raise StudyError(f"{path} is no UTF-8 text ({error}); save it as UTF-8") from None
    except yaml.YAMLError as error:
        raise StudyError(f"{path} is no valid YAML: {error}") from None
    except ValueError as error:  # what looks like a date or a number and is none
        raise StudyError(f"{path}: {error}; put quotes around what is no date or number") from None
    if not isinstance(content, dict):
        raise StudyError(f"{path} holds no mapping of keys; see config/README.md")
    return content


def _parse(model: type[Any], values: Any, where: str, prefix: str | None) -> Any:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise StudyError("\n".join(_explain(item, model, where, prefix) for item in error.errors())) from None


def _parse_patch(model: type[BaseModel], values: Any, where: str, prefix: str) -> None:
    """Checks what a patch says by itself; what it leaves out comes from elsewhere."""
    try:
        model.model_validate(values)
    except ValidationError as error:
        said = [_explain(item, model, where, prefix) for item in error.errors() if item["type"] != "missing"]
        if said:
            raise StudyError("\n".join(said)) from None


# How pydantic's own messages are said here, by type and by how its types begin.
MUST = {
    "greater_than_equal": "must be at least {ge:g}",
    "greater_than": "must be above {gt:g}",
    "less_than_equal": "must be at most {le:g}",
    "less_than": "must be below {lt}",
    "string_too_short": "must not be empty",
    "too_short": "must have at least {min_length} entry",
    "literal_error": "must be {expected}",
    "finite_number": "must be a finite number",
    "int_": "must be an integer",
    "float_": "must be a number",
    "string_": "must be text; put quotes around it",
    "bool_": "must be true or false",
    "list_": "must be a list",
    "dict_": "must be a mapping of keys",
    "model_": "must be a mapping of keys",
}


def _explain(item: Any, model: type[BaseModel], where: str, prefix: str | None) -> str:
    # Of a union of plain types, pydantic puts the one that it tried into the path (list[str], literal['all']).
    location = [str(part) for part in item["loc"] if "[" not in str(part)]
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
    said_so = next((text for start, text in MUST.items() if kind.startswith(start)), None)
    message = said_so.format(**item.get("ctx", {})) if said_so else item["msg"].removeprefix("Value error, ")
    named = [part for part in location if not part.isdigit()]  # an entry of a list is described by the list
    described = fields.get(named[-1]) if named else None
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


def _check_arms(where: str, arms: Arms) -> None:
    """Every arm, whether a study uses it or not: a mistake is found by who makes it."""
    _parse(Alignment, arms.alignment, where, "alignment")
    for name, arm in arms.arms.items():
        _check_name(where, name)
        _parse(Alignment, _merge(arms.alignment, arm.alignment), f"{where}, arm {name}", "alignment")
        _parse_patch(Training, arm.training, f"{where}, arm {name}", "training")
        if arm.control == name:
            raise StudyError(
                f"{where}, arm {name}: control = {name!r}: an arm is no control of itself; name another arm, or none"
            )


def _check_name(where: str, name: str) -> None:
    if not NAME.fullmatch(name):
        raise StudyError(f"{where}: the name {name!r} would be a file name; use letters, digits and . + _ - only")


def _check_places(where: str, study: Study) -> None:
    """What the study takes from elsewhere is there, or named so that it stays the same."""
    if study.data.corpus.kind == "text":
        try:
            corpora.files(study.data.corpus.path)
        except ValueError as error:  # names key, value and remedy
            raise StudyError(f"{where}: {error}") from None
    longbench = study.evaluations.longbench_e
    if longbench is not None and longbench.source.kind == "folder" and not Path(longbench.source.path).is_dir():
        raise StudyError(
            f"{where}: evaluations.longbench_e.source.path = {longbench.source.path!r}: no folder there; "
            "give the folder of the official <task>_e.jsonl files"
        )
    for key, chosen in {"model": study.model, "data.tokenizer": study.data.tokenizer}.items():
        if not isinstance(chosen, PretrainedModel | PretrainedTokenizer) or Path(chosen.name).is_dir():
            continue
        if chosen.name.startswith((".", "/")) or Path(chosen.name).exists():
            raise StudyError(f"{where}: {key}.name = {chosen.name!r}: no folder there; give a folder or a hub id")
        if chosen.revision is None:
            raise StudyError(
                f"{where}: {key}.revision = null: {chosen.name!r} is no local folder, hence a hub id; "
                "give the commit, so that the study stays the same"
            )


def _check(name: str, study: Study, arms: Arms) -> None:
    """What concerns more than one key."""
    where = f"study {name}"
    for table_name in study.tables:
        _check_name(where, table_name)
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

    shared = _merge(arms.alignment, study.alignment)
    _parse(Alignment, shared, f"study {name}", "alignment")  # the study's mistake, not its first arm's
    arm_runs: dict[str, dict[int, str]] = {}
    for arm_name in study.arms:
        where = f"study {name}, arm {arm_name}"
        arm = arms.arms[arm_name]
        override = study.overrides.get(arm_name, Override())
        merged = _merge(_merge(shared, arm.alignment), override.alignment)
        alignment = _parse(Alignment, merged, where, "alignment")
        training_values = study.training.model_dump()
        for patch in (arm.training, override.training):
            training_values = _merge(training_values, patch)
        training = _parse(Training, training_values, where, "training")
        for step in study.checkpoints:
            if not 0 < step <= training.steps:
                raise StudyError(
                    f"{where}: checkpoints = {step}: outside 1..{training.steps} (training.steps); "
                    "lower it or train longer"
                )
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
    if not NAME.fullmatch(training.deepspeed) or not path.exists():
        known = ", ".join(sorted(file.stem for file in folder.glob("*.json")))
        raise StudyError(f"{where}: training.deepspeed = {training.deepspeed!r}: {folder} holds {known}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # JSONDecodeError, UnicodeDecodeError
        raise StudyError(f"{path} is no valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise StudyError(f"{path} holds no JSON object; see the other files of {folder}")
    for key in ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"):
        if content.get(key) != "auto":
            raise StudyError(
                f"{path}: {key} = {_short(content.get(key))}: the study's training says the batch; give 'auto'"
            )
    return content


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
    multipliers = _multipliers(where, alignment.schedule, study, steps)
    output = hidden = None
    # A weight of 0 at every step is no term, whether alpha or the schedule says so.
    if weights := _weights(alignment.alpha, multipliers):
        output = OutputTerm(
            alpha=weights,
            divergence=alignment.divergence,
            stop_gradient=alignment.stop_gradient,
        )
    if alignment.hidden is not None and (weights := _weights(alignment.hidden.alpha, multipliers)):
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
