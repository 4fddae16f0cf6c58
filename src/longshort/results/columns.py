"""The columns of a study's tables. Imports no pandas: the configuration is checked against their names."""

from __future__ import annotations

from typing import Any, NamedTuple

TASKS = (
    *("qasper", "multifieldqa_en", "hotpotqa", "2wikimqa", "gov_report", "multi_news", "trec", "triviaqa", "samsum"),
    *("passage_count", "passage_retrieval_en", "lcc", "repobench-p"),
)
BUCKETS = ("0-4k", "4-8k", "8k+")
# What a table may show, and the evaluations that it needs.
KINDS: dict[str, tuple[str, ...]] = {
    "headline": (),
    "tasks": ("longbench_e",),
    "buckets": ("longbench_e",),
    "lengths": ("perplexity",),
    "cost": (),
}


class Column(NamedTuple):
    """One column: which number it shows, and how.

    task: of the number; None for one without a task. documents: the metric whose rows by document say how the number
    varies; None where there are none. relative: differences are in per cent of the reference. compared: whether there
    is a best value and a difference.
    """

    key: str
    metric: str
    length: int | None
    header: str
    higher_is_better: bool
    decimals: int
    block: str
    task: str | None = None
    documents: str | None = None
    relative: bool = False
    compared: bool = True


def columns_of(study: dict[str, Any], kind: str = "headline") -> list[Column]:
    """The columns of a kind of table, as far as the study evaluates them.

    Args:
        study: the resolved study (study.json); read are evaluations and l_train.
    """
    return {
        "headline": _headline,
        "tasks": _tasks,
        "buckets": _buckets,
        "lengths": _lengths,
        "cost": _cost,
    }[kind](study)


def _headline(study: dict[str, Any]) -> list[Column]:
    evaluations, l_train = study["evaluations"], int(study["l_train"])
    columns = []
    if "longbench_e" in evaluations:
        columns.append(_longbench("longbench_e", "LongBench-E (%)", "overall"))
    if "perplexity" in evaluations:
        lengths = _of_perplexity(evaluations)
        columns += [_perplexity("perplexity", "nll", length, "PPL {}", "quality") for length in lengths]
        columns.append(_accuracy(lengths[-1]))
        if evaluations["perplexity"]["temperature_documents"]:
            at_t = "perplexity_checkpoint_t", "nll_checkpoint_t"
            columns += [_perplexity(*at_t, length, "PPL {} at T", "calibration") for length in lengths]
        for length in (lengths[0], lengths[-1])[: len(lengths)]:
            columns.append(Column(f"ece@{length}", "ece", length, f"ECE {length}", False, 3, "calibration"))
    if "harness" in evaluations:
        for task in evaluations["harness"]["tasks"]:
            higher = task not in evaluations["harness"]["lower_is_better"]
            columns.append(Column(f"harness:{task}", f"harness:{task}", None, task, higher, 3, "quality"))
    if "misalignment" in evaluations:
        columns.append(_alignment("sce", l_train, "SCE {}"))
        longer = sorted(l_train * int(factor) for factor in evaluations["misalignment"]["beyond"])
        columns += [_alignment("symkl", length, "symKL {}") for length in [l_train, *longer]]
    return columns


def _tasks(study: dict[str, Any]) -> list[Column]:
    return [_longbench(f"longbench_e:{task}", task, task) for task in TASKS]


def _buckets(study: dict[str, Any]) -> list[Column]:
    # The mean of bucket means is another weighting of the items than the mean over all.
    columns = [
        _longbench(f"longbench_e:{bucket}", f"{bucket} words", f"overall:{bucket}")._replace(documents=None)
        for bucket in BUCKETS
    ]
    mean = _longbench("longbench_e:bucket-mean", "mean of buckets", "overall-bucket-mean")._replace(documents=None)
    return [*columns, mean, _longbench("longbench_e", "mean of documents", "overall")]


def _lengths(study: dict[str, Any]) -> list[Column]:
    evaluations = study["evaluations"]
    lengths = _of_perplexity(evaluations)
    columns = [_perplexity("perplexity", "nll", length, "PPL {}", "perplexity") for length in lengths]
    columns += [_accuracy(length)._replace(block="accuracy") for length in lengths]
    if evaluations["perplexity"]["temperature_documents"]:
        at_t = "perplexity_checkpoint_t", "nll_checkpoint_t"
        columns += [_perplexity(*at_t, length, "PPL {} at T", "calibration") for length in lengths]
    return columns


def _cost(study: dict[str, Any]) -> list[Column]:
    shown = {
        "training_hours": ("training (device-hours)", 4),
        "evaluation_hours": ("evaluation (device-hours)", 4),
        "planned_hours": ("planned (device-hours)", 4),
        "tokens_per_second": ("training tokens/s", 0),
        "memory_gib": ("memory (GiB)", 2),
        "device_memory_gib": ("device memory (GiB)", 2),
    }
    return [
        Column(f"cost/{key}", f"cost/{key}", None, header, key == "tokens_per_second", decimals, "cost", compared=False)
        for key, (header, decimals) in shown.items()
    ]


def _of_perplexity(evaluations: dict[str, Any]) -> list[int]:
    return sorted(int(length) for length in evaluations["perplexity"]["lengths"])


def _longbench(key: str, header: str, task: str) -> Column:
    return Column(key, "longbench_e", None, header, True, 1, "quality", task=task, documents="longbench_e")


def _perplexity(metric: str, documents: str, length: int, header: str, block: str) -> Column:
    key = f"{metric}@{length}"
    return Column(key, metric, length, header.format(length), False, 2, block, documents=documents, relative=True)


def _accuracy(length: int) -> Column:
    header = f"accuracy {length}"
    return Column(f"accuracy@{length}", "accuracy", length, header, True, 3, "quality", documents="accuracy")


def _alignment(metric: str, length: int, header: str) -> Column:
    key = f"{metric}@{length}"
    return Column(key, metric, length, header.format(length), False, 3, "alignment", documents=metric)
