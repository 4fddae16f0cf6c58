"""What a study asks of each metric: the keys below `evaluations.<metric>`."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from longshort.identity.spec import canonical, digest, dumps
from longshort.identity.strict import COMMIT, NOT_IDENTITY, Strict, distinct

LONGEST_ANSWER = 512  # tokens, of LongBench-E's official lengths
LEAST_PROMPT = 16  # tokens
MOST_JOBS = 256  # of one evaluation


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
    chunk: int | None = Field(
        None,
        gt=1,
        description="tokens read at a time, as CLEX does: the original length; null: whole blocks",
        json_schema_extra={"neutral": None},
    )


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
    beside: Blocks | None = Field(
        None,
        description="a second protocol, published as perplexity_block; null: none",
        json_schema_extra={"neutral": None},
    )

    _lengths_once = field_validator("lengths")(distinct)

    @model_validator(mode="after")
    def _targets_fit(self) -> Perplexity:
        if self.protocol.kind == "same-targets" and self.protocol.targets > min(self.lengths):
            raise ValueError(f"protocol.targets {self.protocol.targets} is more than the shortest length; lower it")
        for key, one in {"protocol": self.protocol, "beside": self.beside}.items():
            if isinstance(one, Blocks):
                self._blocks_fit(f"{key}.chunk", one)
            if isinstance(one, Blocks | Sliding) and one.tokens is not None and one.tokens < max(self.lengths):
                raise ValueError(f"{key}.tokens {one.tokens} is less than the longest length; raise it")
        return self

    def _blocks_fit(self, key: str, blocks: Blocks) -> None:
        if min(self.lengths) < 2:
            raise ValueError("a block of 1 token scores none; give lengths of 2 and more")
        for length in self.lengths:
            # The last chunk would be a short one, whose tokens CLEX's script counts otherwise.
            if blocks.chunk is not None and length > blocks.chunk and length % blocks.chunk:
                raise ValueError(f"{key} {blocks.chunk} does not divide the length {length}; change one of the two")


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


class PretrainedEvaluator(Strict):
    """A model that exists, and its tokenizer: a hub id or a local folder, safetensors only."""

    kind: Literal["pretrained"]
    name: str = Field(min_length=1, description="hub id or path of a local folder")
    revision: str | None = Field(
        None,
        pattern=COMMIT,
        description="commit of the hub repository, its 40 hexadecimal digits; null for a local folder",
    )
    precision: Literal["fp32", "bf16"] = Field("fp32", description="floating point type of its weights")


class LongEvaluator(Strict):
    """The study's own base that was trained at the test length (model.long_base), and the study's tokenizer."""

    kind: Literal["long"]
    run: str | None = Field(None, description="id of its run, which the program fills in")
    steps: str | None = Field(None, description="its last optimiser step, which the program fills in")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="floating point type of its weights")


def _as_long(value: Any) -> Any:
    return {"kind": "long"} if value == "long" else value


Evaluator = PretrainedEvaluator | LongEvaluator


class KeyTokenSearch(Strict):
    """What finds the key tokens of a corpus: what they depend on, of the settings of LongPPL."""

    evaluator: Annotated[Evaluator, Field(discriminator="kind")]
    short: int
    stride: int
    gain: float
    below: float
    documents: int
    length: int = Field(description="tokens of a document that are looked at")

    @property
    def id(self) -> str:
        """What names their folder."""
        return digest(dumps(canonical(self)))


class LongPPL(Strict):
    """Perplexity on key tokens, those that an evaluator predicts much better with a long context (LongPPL)."""

    evaluator: Annotated[
        Annotated[Evaluator, Field(discriminator="kind")],
        BeforeValidator(_as_long, json_schema_input_type=PretrainedEvaluator | LongEvaluator | Literal["long"]),
    ] = Field(
        description="the model that finds the key tokens; long: the base that was trained at the test length, of a "
        "study with model.long_base"
    )
    short: int = Field(4096, gt=0, description="least tokens before a token in its short context")
    stride: int = Field(1024, gt=0, description="so many tokens share the beginning of their short context")
    gain: float = Field(2.0, ge=0, description="a key token's loss falls by more than this with the long context, nats")
    below: float = Field(2.0, gt=0, description="a key token's loss is below this with the long context, nats")
    lengths: list[Annotated[int, Field(gt=0)]] = Field(min_length=1, description="long contexts, tokens")
    documents: int = Field(gt=0, description="test documents of at least the longest length")

    _lengths_once = field_validator("lengths")(distinct)

    @property
    def key_tokens(self) -> KeyTokenSearch:
        """What finds the tokens that are scored."""
        shared = {key: getattr(self, key) for key in KeyTokenSearch.model_fields.keys() & LongPPL.model_fields.keys()}
        return KeyTokenSearch(length=max(self.lengths), **shared)

    @model_validator(mode="after")
    def _longer_than_short(self) -> LongPPL:
        if min(self.lengths) <= self.short:
            raise ValueError(
                f"lengths has {min(self.lengths)}, and a context of short = {self.short} tokens is no long one there; "
                "raise the length, or lower short"
            )
        return self


class StandIn(Strict):
    """Tasks of LongBench-E's shape made from the test documents; needs no network."""

    kind: Literal["stand-in"]
    items_per_task: int = Field(gt=0, description="items per task, spread over the three length buckets")


# What an item of LongBench-E has, besides `input`, which some mirrors call `question`.
LONGBENCH_FIELDS = ("context", "answers", "length", "all_classes", "_id")


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


LongBenchSource = StandIn | TaskFolder | TaskZip | TaskHub


class LongBenchItems(Strict):
    """The items of LongBench-E, however they are measured."""

    source: Annotated[LongBenchSource, Field(discriminator="kind")] = Field(description="where the items are")
    max_length: int = Field(gt=0, description="longest prompt and answer together, tokens")
    jobs: int = Field(
        1,
        gt=0,
        le=MOST_JOBS,
        description="jobs that share out the items, each with a device of its own, before one puts them together",
        json_schema_extra=NOT_IDENTITY,
    )


class LongBench(LongBenchItems):
    """LongBench-E."""

    max_new_tokens: int | None = Field(None, gt=0, description="cap on the answer, tokens; null: the official lengths")

    @model_validator(mode="after")
    def _a_prompt_fits(self) -> LongBench:
        _refuse_no_prompt(self.max_length, "max_new_tokens", self.max_new_tokens)
        return self


class LongBenchLikelihood(LongBenchItems):
    """LongBench-E by the likelihood of the reference answers, without generation."""

    answer_tokens: int | None = Field(
        None, gt=0, description="so many first tokens of an answer are scored, at most; null: the official lengths"
    )

    @model_validator(mode="after")
    def _a_prompt_fits(self) -> LongBenchLikelihood:
        _refuse_no_prompt(self.max_length, "answer_tokens", self.answer_tokens)
        return self


def _refuse_no_prompt(max_length: int, key: str, cap: int | None) -> None:
    answer = min(cap or LONGEST_ANSWER, LONGEST_ANSWER)
    if max_length < answer + LEAST_PROMPT:
        raise ValueError(
            f"max_length {max_length} leaves fewer than {LEAST_PROMPT} tokens for a prompt beside an "
            f"answer of {answer} tokens; give max_length {answer + LEAST_PROMPT} or more, or a lower {key}"
        )


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


# A list of names is short for {tasks: [...]}.
HarnessOrTasks = Annotated[Harness, BeforeValidator(_as_tasks, json_schema_input_type=Harness | list[str])]
