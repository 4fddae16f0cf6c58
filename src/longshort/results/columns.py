"""The columns of a study's tables. Imports no pandas: the configuration is checked against their names."""

from __future__ import annotations

from typing import Any

from longshort.metrics.catalog import METRICS
from longshort.metrics.record import Column

# The kind of table that results.best_alpha makes.
BEST_ALPHA = "alpha-by-length"
# What a table may show, and the evaluation that it needs.
KINDS: dict[str, str | None] = {
    "headline": None,
    **{kind: metric.name for metric in METRICS.values() for kind in metric.tables},
    "cost": None,
    BEST_ALPHA: "perplexity",
}


def kind_of(table: dict[str, Any]) -> str:
    """The kind of columns that a table of a study shows."""
    return str(table.get("columns", "headline"))


def columns_of(study: dict[str, Any], kind: str = "headline") -> list[Column]:
    """The columns of a kind of table, as far as the study evaluates them.

    Args:
        study: the resolved study (study.json); read are evaluations and l_train.
    """
    if kind == "cost":
        return _cost()
    if kind == BEST_ALPHA:
        return [column for column in columns_of(study) if column.length is not None and column.compared]
    evaluations = study["evaluations"]
    if (metric := KINDS[kind]) is not None:
        return METRICS[metric].tables[kind](evaluations[metric])
    measured = (metric for metric in METRICS.values() if metric.name in evaluations)
    return [column for metric in measured for column in metric.columns(evaluations[metric.name], int(study["l_train"]))]


def _cost() -> list[Column]:
    shown = {
        "training_cpu_hours": ("training (CPU-hours)", 4),
        "training_hours": ("training (device-hours)", 4),
        "training_operations": ("training operations (10^15)", 4),
        "evaluation_cpu_hours": ("evaluation (CPU-hours)", 4),
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
