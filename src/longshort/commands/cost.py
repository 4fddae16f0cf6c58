"""What planned work would cost: device-hours, wall-clock, storage. Every estimate names its source.

Finished runs of the same kind tell best; where there are none, operations are counted and divided by a stated
throughput. A forward and backward pass costs 6 operations per token and weight of the blocks (4 where only an adapter
is trained), a forward pass 2; no job takes less than its start, no step less than its overhead. The model's size, and
what a training takes of memory, are counted in memory.py.
"""

from __future__ import annotations

import copy
import json
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from longshort.commands import memory, storage
from longshort.commands.resuming import Resuming
from longshort.identity.spec import dumps
from longshort.metrics.catalog import METRICS
from longshort.metrics.settings import LongEvaluator, LongPPL, PretrainedEvaluator
from longshort.records import layout, shares
from longshort.records.publish import CHECKPOINTS, NUMBER, Altered, read_record, read_spec, whole_record, write_record
from longshort.study.wiring import ResolvedStudy

# What is read of the record of a training that took time.
OF_TRAINING = {"run": str, "checkpoints": CHECKPOINTS, "spent": {"steps": int, "seconds": NUMBER}}
# Operations per second of one device where no finished run tells: of a GPU 40 % of an A100's 312 TFLOP/s; of a CPU's
# thread what models of 0.4 M and 135 M weights reached in float32 on servers of 2023 (benchmarks/README.md).
THROUGHPUT = {"gpu": 1.25e14, "cpu": 4e10}
EVALUATOR_BLOCKS = 32  # of a pretrained evaluator that is not fetched yet
JOB_START, STEP_OVERHEAD = 10.0, 0.1  # seconds


class Work(NamedTuple):
    """A planned training or evaluation, or the search for LongPPL's key tokens (of the corpus, at no steps)."""

    rule: str
    run: str
    steps: str

    @property
    def wanted(self) -> list[int]:
        return [int(step) for step in self.steps.split("-")]


@dataclass
class Cost:
    """An estimate for a plan.

    Attributes:
        device_hours: the number of devices of each job times its hours, summed.
        wall_seconds: from the first job's start to the last one's end, with jobs_at_once jobs at a time.
        storage_bytes: of all new checkpoints, once they are trained.
        storage_peak_bytes: of these at most, while jobs_at_once trainings run.
        sources: how each part of the estimate is known, in words.
        memory: bytes of one process, by what they are for, in the training that needs most.
    """

    device_hours: float
    wall_seconds: float
    storage_bytes: float
    storage_peak_bytes: float
    jobs_at_once: int
    sources: list[str] = field(default_factory=list)
    memory: dict[str, float] = field(default_factory=dict)


def seconds_of(
    study: ResolvedStudy, work: list[Work], throughput: float | None = None, data_anew: bool = False
) -> dict[Work, tuple[float, str]]:
    """How long each planned job takes, and how that is known.

    Args:
        throughput: operations per second and device (a GPU, or a thread of a CPU), where no finished run tells; None:
            that of the study's kind of device.
        data_anew: whether the corpus is prepared again, so that no training can count on its checkpoints.

    Raises:
        Altered: the record of the corpus or of the base was edited or cut.
    """
    return _seconds_of(_Known(study, work, data_anew), work, throughput)


def estimate(
    study: ResolvedStudy,
    work: list[Work],
    jobs_at_once: int,
    throughput: float | None = None,
    data_anew: bool = False,
) -> Cost:
    """The cost of planned work; arguments and errors are those of seconds_of."""
    known = _Known(study, work, data_anew)
    seconds: dict[Work, float] = {}
    sources: dict[str, set[str]] = {}
    device_seconds = 0.0
    for one, (took, source) in _seconds_of(known, work, throughput).items():
        seconds[one] = took
        device_seconds += took * processes(study, one)
        sources.setdefault(source, set()).add("training" if one.rule == "train" else one.rule)
    kept, more, taken = 0.0, [], dict[str, float]()
    for one in (one for one in work if one.rule == "train"):
        if missing := known.missing(one):
            disk = storage.of_training(study, one.run, one.wanted, missing, _model(study), known.finished)
            kept += disk.kept
            more.append(disk.running - disk.kept)
            sources.setdefault(disk.source, set()).add("storage")
            parts, of = _memory(study, one.run)
            taken = max(taken, parts, key=lambda parts: sum(parts.values()))
            sources.setdefault(of, set()).add("memory")
    wall = _wall_seconds(study, seconds, jobs_at_once)
    said = [f"{', '.join(sorted(of))}: {source}" for source, of in sources.items()]
    peak = kept + sum(sorted(more)[-max(1, jobs_at_once) :])
    return Cost(device_seconds / 3600, wall, kept, peak, jobs_at_once, said, taken)


def more_while_running(study: ResolvedStudy) -> float:
    """Bytes that one training of a study takes at most beyond what is kept of it."""
    finished, model, more = _finished_trainings(), _model(study), [0.0]
    for run in (run for run, spec in study.runs.items() if spec.training):
        steps = Work("train", run, study.steps_of(run)).wanted
        disk = storage.of_training(study, run, steps, steps, model, finished)
        more.append(disk.running - disk.kept)
    return max(more)


def write_down(study: ResolvedStudy) -> None:
    """Keeps what each job of a study was expected to take when it was first asked for, in device-seconds, and its
    operations: for tables and report, in results/<study>/planned.json. Seconds of jobs that are done, or written down
    already, are left as they are.

    Raises:
        Altered: as seconds_of.
    """
    path = Path(layout.planned(study.name))
    known = whole_record(path, {str: dict})
    before, in_blocks = copy.deepcopy(known), _model(study)[0].in_blocks
    work = {}
    for run in study.runs:
        steps = study.steps_of(run)
        records = {layout.TRAINING: study.record(run)}
        records |= {metric: study.evaluation_record(metric, run) for metric in study.evaluations}
        for stage, record in records.items():
            one = Work("train" if stage == layout.TRAINING else stage, run, steps)
            if "seconds" not in known.get(f"{run}/{stage}/{steps}", {}) and not Path(record).exists():
                work[one] = f"{run}/{stage}/{steps}"
            known.setdefault(f"{run}/{stage}/{steps}", {})["operations"] = _operations(study, one, in_blocks)
    for one, (seconds, source) in seconds_of(study, list(work)).items():
        known[work[one]] |= {"seconds": seconds * processes(study, one), "source": source}
    if known != before:
        write_record(path, known)


def _wall_seconds(study: ResolvedStudy, seconds: dict[Work, float], jobs_at_once: int) -> float:
    """The longest jobs first, each when a place is free and what it waits for is done."""
    places = [0.0] * max(1, min(jobs_at_once, sum(study.jobs_of(one.rule) for one in seconds)))
    ready: dict[str, float] = {}
    waves = (
        lambda one: one.rule == "train" and study.is_base(one.run),
        lambda one: one.rule == "train",
        lambda one: one.rule == layout.KEY_TOKENS,
        lambda _: True,
    )
    waiting = dict(seconds)
    for wave in waves:
        for one in sorted((one for one in waiting if wave(one)), key=lambda one: -seconds[one]):
            after = max((ready.get(run, 0.0) for run in _waits_for(study, one)), default=0.0)
            jobs = study.jobs_of(one.rule)
            for took in [waiting.pop(one) / jobs] * jobs:
                place = places.index(min(places))
                places[place] = max(places[place], after) + took
            if one.rule in ("train", layout.KEY_TOKENS):
                ready[one.run] = places[place]
    return max(places)


def _waits_for(study: ResolvedStudy, one: Work) -> list[str]:
    """The runs, or the corpus for its key tokens, that a job waits for."""
    if one.rule == "train":
        return [base] if (base := study.runs[one.run].base) else []
    if one.rule == layout.KEY_TOKENS:
        evaluator = _longppl(study).evaluator
        return [str(evaluator.run)] if isinstance(evaluator, LongEvaluator) else []
    return [one.run, study.data] if one.rule == "longppl" else [one.run]


def _longppl(study: ResolvedStudy) -> LongPPL:
    settings = study.evaluations["longppl"][1].settings
    assert isinstance(settings, LongPPL)
    return settings


class _Known:
    """What finished work tells, read once for all planned jobs."""

    def __init__(self, study: ResolvedStudy, work: list[Work], data_anew: bool) -> None:
        self.study, self.bases = study, set(study.bases.values())
        self.resuming = Resuming(study, {one.run for one in work if one.rule == "train"}, data_anew)
        self.finished = _finished_trainings()
        each: dict[str, list[float]] = {}
        for spec, record in self.finished:
            spent = record["spent"]
            each.setdefault(self.kind(spec), []).append(spent["seconds"] / (spent["steps"] * _tokens_per_step(spec)))
        # Kind of training -> seconds a token, and of how many trainings that is the median.
        self.trainings = {kind: (statistics.median(some), len(some)) for kind, some in each.items()}
        self.reached = self._reached()
        # Metric -> seconds a checkpoint, and of how many evaluations that is the median.
        self.evaluations: dict[str, tuple[float, int]] = {}
        for metric in {one.rule for one in work} - {"train", layout.KEY_TOKENS}:
            if measured := _finished_evaluations(metric, study.evaluations[metric][0]):
                self.evaluations[metric] = statistics.median(measured), len(measured)

    def _reached(self) -> tuple[float, int] | None:
        """Operations per second and device of this study's finished trainings, and how many there are."""
        in_blocks, each = _model(self.study)[0].in_blocks, []
        for spec, record in self.finished:
            if record["run"] in self.study.runs:
                operations = _operations_a_step(spec, in_blocks) * record["spent"]["steps"]
                each.append(operations / record["spent"]["seconds"] / _devices(self.study, record["run"]))
        return (statistics.median(each), len(each)) if each else None

    def kind(self, spec: dict[str, Any]) -> str:
        """What a token's cost depends on: model, length, processes, precision, what is trained."""
        training = spec["training"]
        kind = {key: training.get(key) for key in ("processes", "nodes", "precision", "attention", "adapter")}
        model = {key: spec.get(key) for key in ("architecture", "pretrained", "base", "rope", "length", "deepspeed")}
        if model["base"] in self.bases:  # they differ by chance alone
            model["base"] = "one of this study"
        return dumps({**model, "training": kind})

    def pieces(self, one: Work) -> list[tuple[int, list[int]]]:
        spec = self.study.runs[one.run]
        return self.resuming.pieces(one.run, one.wanted) if spec.training else []

    def missing(self, one: Work) -> list[int]:
        """The checkpoints that a training would write."""
        return [step for _, steps in self.pieces(one) for step in steps]


def _seconds_of(known: _Known, work: list[Work], throughput: float | None) -> dict[Work, tuple[float, str]]:
    throughput, found = throughput or THROUGHPUT[known.study.study.needs.device], {}
    kinds = {"train": _training_seconds, layout.KEY_TOKENS: _key_tokens_seconds}
    for one in work:
        found[one] = kinds.get(one.rule, _evaluation_seconds)(known, one, throughput)
    return found


def _operations(study: ResolvedStudy, one: Work, in_blocks: float) -> float:
    """Of a whole training, or of an evaluation at all its checkpoints. in_blocks: weights of the model's blocks."""
    if one.rule == "train":
        spec = json.loads(study.texts[one.run])
        if not spec.get("training"):
            return 0.0
        return _operations_a_step(spec, in_blocks) * int(one.steps.split("-")[-1])
    evaluation = study.evaluations[one.rule][1]
    tokens = METRICS[one.rule].tokens(evaluation.settings.model_dump(), evaluation.length)
    return 2 * in_blocks * tokens * len(one.steps.split("-"))


def _operations_a_step(spec: dict[str, Any], in_blocks: float) -> float:
    return (4 if spec["training"].get("adapter") else 6) * in_blocks * _tokens_per_step(spec)


# ---- trainings -------------------------------------------------------------------------------------------------------


def _training_seconds(known: _Known, one: Work, throughput: float) -> tuple[float, str]:
    study = known.study
    spec = json.loads(study.texts[one.run])
    if not spec.get("training"):
        return JOB_START, "a pretrained base is only read"
    missing = sum(max(targets) - resume for resume, targets in known.pieces(one))
    if not missing:
        return JOB_START, "its checkpoints are there, it is only published"
    tokens = missing * _tokens_per_step(spec)
    if alike := known.trainings.get(known.kind(spec)):
        return alike[0] * tokens, f"from {alike[1]} finished trainings of this model"
    operations = _operations_a_step(spec, _model(study)[0].in_blocks) * missing
    if known.reached:
        return JOB_START + operations / known.reached[0] / _devices(study, one.run), _counted(study, *known.reached)
    least = missing * STEP_OVERHEAD if study.study.needs.device == "gpu" else 0.0
    return JOB_START + max(operations / throughput / _devices(study, one.run), least), _counted(study, throughput)


def _counted(
    study: ResolvedStudy, throughput: float, trainings: int = 0, of: tuple[memory.Model, str] | None = None
) -> str:
    """In words; trainings: how many finished ones reached that throughput, 0 where it is a stated one; of: a model's
    shape and how it is known, where it is not the study's."""
    model, source = of or _model(study)
    on_gpu = study.study.needs.device == "gpu"
    least = f"at least {STEP_OVERHEAD:g} s a step and {JOB_START:g} s a job" if on_gpu else f"{JOB_START:g} s a job"
    reached = f", as {trainings} finished trainings of this study reached" if trainings else ""
    return (
        f"counted, {model.in_blocks:.3g} weights without embeddings ({source}), "
        f"{throughput:.3g} operations/s a {'device' if on_gpu else 'CPU thread'}{reached}, {least}"
    )


def _devices(study: ResolvedStudy, run: str) -> int:
    """What computes at a time in a training: GPUs, or threads of CPUs."""
    training = study.runs[run].training
    threads = training.threads if training and study.study.needs.device == "cpu" else 1
    return threads * (training.world_size if training else 1)


def _tokens_per_step(spec: dict[str, Any]) -> int:
    views = 2 if spec.get("alignment") else 1
    tokens: int = views * spec["length"] * spec["training"]["batch"]
    return tokens


def _finished_trainings() -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Specification and record of every training that took time; one that cannot be read tells nothing."""
    found = []
    for path in sorted(Path().glob(layout.training("*", "*").record)):
        try:
            record, spec = read_record(path, like=OF_TRAINING), read_spec(path.parents[1] / layout.SPEC)
        except Altered:
            continue
        if record["spent"]["steps"]:
            found.append((spec, record))
    return found


def processes(study: ResolvedStudy, one: Work) -> int:
    """That a job is of, which is how many GPUs it holds where the study is for them."""
    training = study.runs[one.run].training if one.rule == "train" else None
    return training.world_size if training else 1


def _memory(study: ResolvedStudy, run: str) -> tuple[dict[str, float], str]:
    """What a process of a training takes, by what it is for, and how the model's shape is known."""
    spec, training = study.runs[run], study.runs[run].training
    assert training is not None
    model, source = _model(study)
    parts = memory.of_training(
        model,
        training,
        spec.length,
        spec.deepspeed or {},
        training.micro_batch or max(1, training.batch // training.world_size),
        training.gradient_checkpointing,
        "cuda" if study.study.needs.device == "gpu" else "cpu",
        views=2 if spec.alignment else 1,
    )
    return parts, f"counted, {source}"


def _model(study: ResolvedStudy) -> tuple[memory.Model, str]:
    """The model's shape, and how it is known."""
    model = study.study.model
    if model.kind == "trained":
        shape = model.architecture
        vocabulary = 257 if study.study.data.tokenizer.kind == "bytes" else 32_000
        sizes = (shape.layers, shape.hidden_size, shape.intermediate_size)
        return memory.Model(*sizes, 1.0, vocabulary), "from the architecture"
    return memory.existing(model.each()[0].weights, model.layers)  # all bases have one shape


# ---- evaluations -----------------------------------------------------------------------------------------------------


def _finished_evaluations(metric: str, identity: str) -> list[float]:
    """Seconds a checkpoint of every evaluation with these settings; one that cannot be read tells nothing."""
    found = []
    for path in Path().glob(layout.evaluation("*", metric, identity, "*").record):
        try:
            made = read_record(path, like={"seconds": NUMBER})
            found.append(shares.seconds_of(path, made) / len(path.stem.split("-")))
        except (OSError, ValueError):
            continue
    return found


def _key_tokens_seconds(known: _Known, one: Work, throughput: float) -> tuple[float, str]:
    """The evaluator reads what a model that is measured reads at most."""
    study = known.study
    evaluator, asked = _longppl(study).evaluator, study.evaluations["longppl"][1]
    of = _model(study)
    if isinstance(evaluator, PretrainedEvaluator):
        of = memory.existing(evaluator, EVALUATOR_BLOCKS)
    operations = 2 * of[0].in_blocks * METRICS["longppl"].tokens(asked.settings.model_dump(), asked.length)
    reached, trainings = known.reached or (throughput, 0)
    return JOB_START + operations / reached, _counted(study, reached, trainings, of)


def _evaluation_seconds(known: _Known, one: Work, throughput: float) -> tuple[float, str]:
    study = known.study
    checkpoints = len(one.steps.split("-"))
    if measured := known.evaluations.get(one.rule):
        return measured[0] * checkpoints, f"from {measured[1]} finished evaluations"
    operations = _operations(study, one, _model(study)[0].in_blocks)
    start = JOB_START / (len(study.evaluations) if study.study.needs.are_together else 1)  # as their job starts once
    if known.reached:
        return start + operations / known.reached[0], _counted(study, *known.reached)
    return start + operations / throughput, _counted(study, throughput)
