"""The study, typed: what a person writes in config/, and what a run of it is. The one source of truth.

Imports no torch and no workflow engine.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictInt,
    field_validator,
    model_validator,
)

from longshort.identity.kinds import chosen
from longshort.identity.spec import canonical

Divergence = Literal["sce", "symmetric-kl", "kl", "reverse-kl", "js", "l2"]
# As transformers' Trainer names them.
Tracker = Literal["tensorboard", "wandb", "mlflow", "comet_ml", "clearml", "swanlab", "trackio", "dvclive"]
StopGradient = Literal["none", "first", "second", "targets"]
NOT_IDENTITY: dict[str, Any] = {"identity": False}
MOST_STEPS = 1_000_000  # alpha has a value for each
MOST_RUNS = 10_000
MOST_SEEDS = 2**31  # every generator takes a seed below this
LONGEST_ANSWER = 512  # tokens, of LongBench-E's official lengths
LEAST_PROMPT = 16  # tokens
COMMIT = r"^[0-9a-f]{40}$"  # a branch or a tag of the hub moves, and the study with it


class Strict(BaseModel):
    # Strict: pydantic would take "10" for 10, and true for 1.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True)


def distinct(values: Any) -> Any:
    twice = sorted(value for value, count in Counter(values).items() if count > 1)
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


def _no_head(targets: list[str]) -> list[str]:
    if heads := {"lm_head", "embed_out", "embed_tokens"} & set(targets):
        raise ValueError(f"{min(heads)!r} is the head or the embeddings, which get no adapter; take it out")
    return targets


class Adapter(Strict):
    """Small matrices beside the base's linear layers, trained in its place: LoRA; QLoRA: with the base in four bits."""

    kind: Literal["lora", "qlora"]
    rank: int = Field(gt=0, description="rank of the trained product")
    alpha: float = Field(gt=0, description="the product is multiplied by alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout of the adapter's input while training")
    targets: Annotated[list[str], AfterValidator(distinct), AfterValidator(_no_head)] = Field(
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        min_length=1,
        description="names of the linear layers that get one; never the head",
    )


class Training(Strict):
    """Optimisation of one run."""

    steps: int = Field(gt=0, le=MOST_STEPS, description="optimiser steps")
    batch: int = Field(gt=0, description="windows per optimiser step, over all processes")
    micro_batch: int | None = Field(
        None, gt=0, description="windows per forward and process; null: all at once", json_schema_extra=NOT_IDENTITY
    )
    chunk_size: int | None = Field(
        None,
        gt=0,
        description="positions whose logits exist at a time; null: chosen from the vocabulary and a memory budget",
        json_schema_extra=NOT_IDENTITY,
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
    attention: Literal["full", "shifted-sparse"] = Field(
        "full",
        description="attention while training; shifted-sparse: inside groups of a quarter of the tokens (LongLoRA). "
        "Evaluations always attend fully",
        json_schema_extra={"neutral": "full"},
    )
    adapter: Adapter | None = Field(
        None,
        description="what is trained in place of all weights; null: all weights",
        json_schema_extra={"neutral": None},
    )
    threads: int = Field(1, gt=0, description="CPU threads of each process", json_schema_extra=NOT_IDENTITY)
    checkpoint_minutes: int = Field(
        30,
        ge=0,
        description="minutes between checkpoints that serve only to resume after a kill; 0: after every step",
        json_schema_extra=NOT_IDENTITY,
    )
    logging_steps: int = Field(
        10, gt=0, description="optimiser steps between progress lines", json_schema_extra=NOT_IDENTITY
    )
    report_to: Annotated[list[Tracker], AfterValidator(distinct)] = Field(
        [], description="experiment trackers that are told every step, too", json_schema_extra=NOT_IDENTITY
    )

    @property
    def world_size(self) -> int:
        return self.processes * self.nodes

    @model_validator(mode="after")
    def _batch_divides(self) -> Training:
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


class Interpolation(Strict):
    """Positions or frequencies stretched by a factor: pi (all alike), ntk (by theta), dynamic-ntk (by the input)."""

    kind: Literal["pi", "ntk", "dynamic-ntk"]
    factor: float = Field(gt=1, description="new over original context length")


class YaRN(Strict):
    """Low frequencies stretched, high ones left, attention scaled."""

    kind: Literal["yarn"]
    factor: float = Field(gt=1, description="new over original context length")
    beta_fast: float = Field(32.0, gt=0, description="frequencies of more turns than this in the original length stay")
    beta_slow: float = Field(1.0, gt=0, description="frequencies with fewer turns than this are stretched in full")


class ABF(Strict):
    """Another base of the rotary frequencies."""

    kind: Literal["abf"]
    theta: float = Field(gt=0, description="base of the rotary frequencies")


class EABF(Strict):
    """ABF, with queries scaled by the logarithm of their position."""

    kind: Literal["eabf"]
    theta: float = Field(500000.0, gt=0, description="base of the rotary frequencies")
    plain_layers: int = Field(2, ge=0, description="so many first blocks are not scaled")


class CLEX(Strict):
    """Frequencies as a learned continuous function of the length."""

    kind: Literal["clex"]
    max_factor: StrictInt = Field(16, gt=1, description="longest length trained for, over the original one")
    time_step: float = Field(0.01, gt=0, description="step of the integration, in units of the original length")
    width_factor: StrictInt = Field(1, gt=0, description="width of the learned function over the size of a head")
    activation: Literal["tanh", "silu"] = Field("tanh", description="of the learned function")


Rope = Annotated[Interpolation | YaRN | ABF | EABF | CLEX, Field(discriminator="kind")]


class TrainedModel(Strict):
    """A base that a rule trains once, by plain next-token prediction; every arm starts from it."""

    kind: Literal["trained"]
    architecture: Architecture = Field(description="what is trained")
    training: Training = Field(description="how the base is trained")
    seed: StrictInt = Field(0, ge=0, lt=MOST_SEEDS, description="seed of the base's weights and data order")
    max_length: int = Field(gt=0, description="longest input the model can take, extended, tokens")
    rope: Rope | None = Field(
        None,
        description="context extension, before the arms are trained; null: none",
        json_schema_extra=NOT_IDENTITY,  # of the base; each run of an arm names it
    )

    @field_validator("training")
    @classmethod
    def _trained_whole(cls, training: Training) -> Training:
        if training.adapter is not None:
            raise ValueError("a base that begins with random weights is trained whole; leave adapter to the arms")
        return training

    @property
    def layers(self) -> int:
        return self.architecture.layers


class PretrainedModel(Strict):
    """A base that exists: a hub id or a local folder, safetensors only."""

    kind: Literal["pretrained"]
    name: str = Field(min_length=1, description="hub id or path of a local folder")
    revision: str | None = Field(
        None,
        pattern=COMMIT,
        description="commit of the hub repository, its 40 hexadecimal digits; null for a local folder",
    )
    trust_remote_code: Literal[False] = Field(
        False, description="code that comes with a model is never run; the key stands in the names of finished runs"
    )
    layers: int = Field(  # this and max_length are for checks only: the model's own files say them
        gt=0,
        description="blocks of the model, so that layer choices are checked before it is loaded",
        json_schema_extra=NOT_IDENTITY,
    )
    max_length: int = Field(
        gt=0, description="longest input the model can take, extended, tokens", json_schema_extra=NOT_IDENTITY
    )
    rope: Rope | None = Field(
        None,
        description="context extension, before the arms are trained; null: none",
        json_schema_extra=NOT_IDENTITY,  # of the base; each run of an arm names it
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
    revision: str = Field(
        pattern=COMMIT, description="commit of the dataset repository, its 40 hexadecimal digits; no branch, no tag"
    )
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
        None,
        pattern=COMMIT,
        description="commit of the hub repository, its 40 hexadecimal digits; null for a local folder",
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


class Blocks(Strict):
    """The first tokens of each document in blocks of exactly L, without BOS, as CLEX's and similar scripts do it."""

    kind: Literal["block"]
    tokens: int | None = Field(None, gt=0, description="tokens read of each document; null: the longest length")


class Sliding(Strict):
    """The first tokens of each document in windows of L that begin a stride apart."""

    kind: Literal["sliding"]
    stride: int = Field(gt=0, description="tokens between the beginnings of two windows")
    tokens: int | None = Field(None, gt=0, description="tokens read of each document; null: the longest length")


class Perplexity(Strict):
    """Perplexity of fixed held-out documents."""

    protocol: Annotated[Prefix | SameTargets | Blocks | Sliding, Field(discriminator="kind")] = Field(
        Prefix(), description="which tokens are scored with which context"
    )
    lengths: list[Annotated[int, Field(gt=0)]] = Field(min_length=1, description="context lengths, tokens")
    documents: int = Field(gt=0, description="test documents of at least the longest length")
    temperature_documents: int = Field(
        8, ge=0, description="validation documents that the temperatures are fitted on, at most; 0: no temperatures"
    )

    _lengths_once = field_validator("lengths")(distinct)

    @model_validator(mode="after")
    def _targets_fit(self) -> Perplexity:
        if self.protocol.kind == "same-targets" and self.protocol.targets > min(self.lengths):
            raise ValueError(f"protocol.targets {self.protocol.targets} is more than the shortest length; lower it")
        if self.protocol.kind == "block" and min(self.lengths) < 2:
            raise ValueError("a block of 1 token scores none; give lengths of 2 and more")
        if self.protocol.kind in ("block", "sliding"):
            tokens = self.protocol.tokens
            if tokens is not None and tokens < max(self.lengths):
                raise ValueError(f"protocol.tokens {tokens} is less than the longest length; raise it")
        return self


class Misalignment(Strict):
    """Long-Short Misalignment of fixed held-out sequences."""

    sequences: int = Field(gt=0, description="sequences, shared by every arm")
    lengths_per_sequence: int = Field(4, ge=2, description="context lengths drawn from [l_train / 2, l_train] for each")
    beyond: list[Annotated[int, Field(gt=1)]] = Field([2, 4, 8], description="longer contexts, in multiples of l_train")

    grid_sequences: int = Field(
        128,
        ge=0,
        description="the first so many (at most all) also fill the grid of pairs of context lengths; 0: no grid",
        json_schema_extra={"neutral": 0},
    )

    _beyond_once = field_validator("beyond")(distinct)


class StandIn(Strict):
    """Tasks of LongBench-E's shape made from the test documents; needs no network."""

    kind: Literal["stand-in"]
    items_per_task: int = Field(gt=0, description="items per task, spread over the three length buckets")


class TaskFolder(Strict):
    """A local folder of the official <task>_e.jsonl files."""

    kind: Literal["folder"]
    path: str = Field(min_length=1, description="the folder")


class TaskZip(Strict):
    """A local copy of the official data.zip."""

    kind: Literal["zip"]
    path: str = Field(min_length=1, description="the file")


class TaskHub(Strict):
    """The official data.zip of a dataset repository of the hub."""

    kind: Literal["hub"]
    dataset: str = Field("THUDM/LongBench", min_length=1, description="dataset id")
    revision: str = Field(
        pattern=COMMIT, description="commit of the dataset repository, its 40 hexadecimal digits; no branch, no tag"
    )


class LongBench(Strict):
    """LongBench-E."""

    source: Annotated[StandIn | TaskFolder | TaskZip | TaskHub, Field(discriminator="kind")] = Field(
        description="where the items are"
    )
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


def _harness_task(value: str) -> str:
    # lm_eval also takes the path of a task file, whose content no identity would hold.
    if not re.fullmatch(r"[^\s/,@]+(@\d+[kM]?)?", value):
        raise ValueError(
            "no name of a task; write task, or task@4096 where it takes a length; own task files go into include_path"
        )
    return value


class Harness(Strict):
    """Tasks of lm_eval (the LM Evaluation Harness)."""

    tasks: list[Annotated[str, AfterValidator(_harness_task)]] = Field(
        min_length=1, description="lm_eval's names, a column each; name@length for tasks that take a length (RULER)"
    )
    max_length: int | None = Field(
        None, gt=0, description="longest prompt and answer together, tokens; null: the model's max_length"
    )
    limit: int | None = Field(None, gt=0, description="first items of each task, at most; null: all")
    num_fewshot: int | None = Field(None, ge=0, description="examples in a prompt; null: as each task says")
    include_path: str | None = Field(
        None, min_length=1, description="folder of one's own task files (YAML); null: none"
    )
    lower_is_better: list[str] = Field([], description="those of the tasks whose main metric is better when lower")

    _tasks_once = field_validator("tasks", "lower_is_better")(distinct)

    @model_validator(mode="after")
    def _directions_are_of_tasks(self) -> Harness:
        for task in self.lower_is_better:
            if task not in self.tasks:
                raise ValueError(f"lower_is_better has {task!r}, which tasks has not; add it there or take it out")
        return self


def _as_tasks(values: Any) -> Any:
    return {"tasks": values} if isinstance(values, list) else values


class Evaluations(Strict):
    """What every run is measured by, at each checkpoint; null leaves a metric out."""

    precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="floating point type of the weights that are measured; part of every protocol"
    )
    perplexity: Perplexity | None = Field(None, description="perplexity on long sequences")
    misalignment: Misalignment | None = Field(None, description="Long-Short Misalignment")
    longbench_e: LongBench | None = Field(None, description="LongBench-E")
    harness: Annotated[Harness, BeforeValidator(_as_tasks, json_schema_input_type=Harness | list[str])] | None = Field(
        None, description="tasks of lm_eval; a list of names is short for {tasks: [...]}"
    )

    @model_validator(mode="after")
    def _something_is_measured(self) -> Evaluations:
        if not (self.perplexity or self.misalignment or self.longbench_e or self.harness):
            raise ValueError("nothing is measured; give perplexity, misalignment, longbench_e or harness")
        return self


class Lengths(Strict):
    train: int = Field(gt=1, description="training length l_train, tokens")
    test: int | None = Field(None, gt=0, description="the test length that ratio schedules refer to, tokens")

    @model_validator(mode="after")
    def _test_is_longer(self) -> Lengths:
        if self.test is not None and self.test < self.train:
            raise ValueError(f"test {self.test} is below train {self.train}; give a longer one, or null")
        return self


class Table(Strict):
    title: str = Field(description="caption")
    arms: list[str] | Literal["all"] = Field(description="rows in order; all: every arm of the study")
    compare_with: Literal["baseline", "control"] = Field(
        "baseline", description="the reference of the differences: the arm baseline, or each arm's control"
    )
    columns: Literal["headline", "tasks", "buckets", "lengths", "cost"] = Field(
        "headline",
        description="what is shown: headline: every metric; tasks, buckets: LongBench-E by task or by length of the "
        "document; lengths: perplexity and accuracy by length; cost: device-hours, speed and memory",
    )

    @field_validator("arms")
    @classmethod
    def _rows_once(cls, values: list[str] | Literal["all"]) -> list[str] | Literal["all"]:
        if not values:
            raise ValueError("a table needs a row; name arms of the study, or all")
        return values if values == "all" else distinct(values)


class Published(Strict):
    """A number of the paper that one of the study's may be held against: same model, data, steps and protocol."""

    arm: str = Field(description="arm of the study")
    step: int = Field(description="checkpoint of the study")
    column: str = Field(description="column of the tables, as in the .csv: longbench_e, perplexity@4096, ...")
    value: float = Field(description="the published value, in the column's unit")
    source: str = Field(min_length=1, description="paper and table")


class Override(Strict):
    """What a study may change of one arm. What the arm is called and compared with is said in config/arms.yaml."""

    alignment: dict[str, Any] = Field({}, description="patch of the alignment")
    training: dict[str, Any] = Field({}, description="patch of the training")


class Needs(Strict):
    """What the jobs of a study ask a scheduler for at their first attempt; the next one gets as much again."""

    device: Literal["cpu", "gpu"] = Field(
        "cpu", description="gpu: one for each process of a training, one for an evaluation"
    )
    data_cores: int = Field(2, gt=0, description="cores that tokenise the corpus")
    training_memory_mb: int = Field(4000, gt=0, description="main memory of a training on each node, MB")
    training_minutes: int = Field(240, gt=0, description="time limit of a training, minutes")
    evaluation_memory_mb: int = Field(4000, gt=0, description="main memory of an evaluation, MB")
    evaluation_minutes: int = Field(240, gt=0, description="time limit of an evaluation, minutes")


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
    tables: dict[str, Table] = Field(
        {}, description="tables of this study alone, or in place of a shared one of config/arms.yaml"
    )
    primary: str | None = Field(
        None,
        description="the one number that effects are claimed of, at the last checkpoint, as a column of the tables "
        "(longbench_e, perplexity@4096, ...); null: every number is descriptive",
    )
    published: list[Published] = Field(
        [], description="the paper's numbers, shown beside this study's where the two are comparable"
    )
    needs: Needs = Field(Needs(), description="devices, memory and time of the jobs; no part of the identity")

    _all_once = field_validator("seeds", "arms", "checkpoints")(distinct)

    @model_validator(mode="after")
    def _runs_are_few(self) -> Study:
        if len(self.seeds) * len(self.arms) > MOST_RUNS:
            raise ValueError(
                f"{len(self.seeds)} seeds times {len(self.arms)} arms are more than {MOST_RUNS} runs; give fewer seeds"
            )
        return self


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
    tables: dict[str, Table] = Field(
        {}, description="shared tables: a study makes those of whose arms it has more than baseline and constant"
    )


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
    rope: Rope | None = Field(None, description="extends the base's context", json_schema_extra={"neutral": None})
    training: Training | None = Field(None, json_schema_extra={"neutral": None})
    deepspeed: dict[str, Any] | None = Field(None, json_schema_extra={"neutral": None})
    alignment: TwoViews | None = Field(
        None, description="null: one view, cross-entropy", json_schema_extra={"neutral": None}
    )

    @property
    def modules(self) -> tuple[str, ...]:
        """The modules chosen by kind that this run's code identity holds."""
        return chosen(
            {
                "alignment": canonical(self.alignment) if self.alignment else None,
                "rope": {"kind": self.rope.kind} if self.rope else None,
                "training": {"attention": self.training.attention, "adapter": bool(self.training.adapter)}
                if self.training
                else None,
            }
        )


class Evaluation(Strict):
    metric: Literal["perplexity", "misalignment", "longbench_e", "harness"]
    length: int = Field(description="l_train, tokens")
    data: Data
    precision: Literal["fp32", "bf16"] = Field("fp32", json_schema_extra={"neutral": "fp32"})
    settings: Perplexity | Misalignment | LongBench | Harness


# ---- the schema for editors -----------------------------------------------------------------------------------------
