"""A study of five arms whose numbers are known, as the long table holds them."""

from __future__ import annotations

import json
import math
from itertools import combinations
from pathlib import Path
from typing import Any

import pandas as pd

from longshort.collecting import runs as collecting_runs
from longshort.evaluation.prompts import TASKS
from longshort.metrics.catalog import BUCKETS
from longshort.results import long_table, plots, tables

STYLE = Path(plots.__file__).with_name("longshort.mplstyle")
LENGTHS = [8, 16, 32]
DOCUMENTS = ["a", "b", "c"]
SEEDS = [0, 1]
ARMS = ["baseline", "constant", "twin", "broken", "step_linear"]
# Perplexity at 32 tokens, step 4, seeds 0 and 1; `twin` is the same run as `constant`, seed 1 of `broken` diverges.
PERPLEXITY = {"baseline": (10.0, 12.0), "constant": (9.0, 10.0), "broken": (1.0, 1.0), "step_linear": (9.5, 9.0)}


def make_study() -> dict[str, Any]:
    arms = []
    for name in ARMS:
        run = "constant" if name == "twin" else name
        control = "constant" if name == "step_linear" else None
        runs = {str(seed): f"{run}-{seed}" for seed in SEEDS}
        settings = {"alignment": {"alpha": float(name != "baseline"), "hidden": None}, "training": {"steps": 4}}
        about = {"description": f"the arm {name}", "control": control, "settings": settings}
        arms.append({"name": name, "runs": runs, **about})
    return {
        "name": "tiny",
        "title": "Tiny & quick",
        "question": "?",
        "l_train": 8,
        "steps": 4,
        "checkpoints": [2, 4],
        "seeds": SEEDS,
        "bases": {str(seed): "base" for seed in SEEDS},
        "primary": "perplexity@32",
        "published": [],
        "settings": {"lengths": {"train": 8}},
        "arms": arms,
        "evaluations": {
            "perplexity": {"lengths": LENGTHS, "temperature_documents": 0},
            "misalignment": {"beyond": [2, 4], "grid_sequences": 3},
            "longbench_e": {},
        },
        "tables": [
            {"name": "main", "title": "All arms, 100 %", "arms": ARMS, "compare_with": "baseline"},
            {"name": "schedules", "title": "Schedules", "arms": ["constant", "step_linear"], "compare_with": "control"},
            *(
                {"name": kind, "title": kind, "arms": ARMS, "compare_with": "baseline", "columns": kind}
                for kind in ("tasks", "buckets", "lengths", "cost")
            ),
        ],
    }


def make_metrics() -> pd.DataFrame:
    rows: list[dict[str, Any]] = []

    def add(
        arm: str, seed: int, step: int, metric: str, value: float, length: int | None = None, task: str | None = None,
        document: str | None = None,
    ) -> None:  # fmt: skip
        run = "constant" if arm == "twin" else arm
        lost = run == "broken" and seed == 1 and step > 2
        rows.append(
            {
                "study": "tiny", "arm": arm, "seed": seed, "step": step, "metric": metric, "length": length,
                "task": task, "document": document, "value": float("nan") if lost else value, "n": 3,
                "status": "diverged" if lost else "ok", "protocol": f"{metric}/v1", "run_id": f"{run}-{seed}",
                "code": "c0de" * 8, "data": "da7a" * 8, "commit": "0123456789abcdef" * 2, "environment": "e" * 32,
            }
        )  # fmt: skip

    def evaluate(arm: str, seed: int, step: int, perplexity: float) -> None:
        for length in LENGTHS:
            scale = length / 32
            add(arm, seed, step, "perplexity", perplexity * scale**0.3 if length < 32 else perplexity, length)
            for place, document in enumerate(DOCUMENTS):  # their mean is that of all
                of_all = math.log(perplexity * scale**0.3 if length < 32 else perplexity)
                add(arm, seed, step, "nll", of_all + 0.1 * (place - 1), length, document=document)
            add(arm, seed, step, "accuracy", 1 / perplexity, length)
            add(arm, seed, step, "sce", 2 + perplexity * scale, length)
            add(arm, seed, step, "symkl", perplexity * scale / 100, length)
            add(arm, seed, step, "symkl_se", perplexity * scale / 1000, length)
        for short, long in combinations([4, *LENGTHS], 2):
            add(arm, seed, step, "sce_grid", 2 + perplexity * long / short, long, task=str(short))
            add(arm, seed, step, "symkl_grid", perplexity * long / short / 1000, long, task=str(short))
        add(arm, seed, step, "longbench_e", 2 * perplexity, task="overall")
        for task in TASKS:
            add(arm, seed, step, "longbench_e", 2 * perplexity, task=task)
            for place, document in enumerate(DOCUMENTS):
                add(arm, seed, step, "longbench_e", 2 * perplexity + place - 1, task=task, document=document)
        for bucket in BUCKETS:
            add(arm, seed, step, "longbench_e", 3 * perplexity, task=f"overall:{bucket}")

    evaluate(long_table.BASE, long_table.BASE_SEED, 0, 0.5)
    for arm in ARMS:
        for seed in (0, 1):
            perplexity = PERPLEXITY["constant" if arm == "twin" else arm][seed]
            for step in (2, 4):
                evaluate(arm, seed, step, perplexity + (4 - step))
            for step in range(1, 5):
                add(arm, seed, step, "train/ce", 3 - 0.1 * step - 0.01 * perplexity)
                add(arm, seed, step, "train/divergence", 0.1 / step)
                add(
                    arm,
                    seed,
                    step,
                    "train/alpha_output",
                    step / 4 if arm == "step_linear" else float(arm != "baseline"),
                )
                add(arm, seed, step, "train/alpha_hidden", 0.0)
    metrics = pd.DataFrame(rows)
    metrics["length"] = metrics["length"].astype("Int64")
    return metrics


def make_runs() -> pd.DataFrame:
    rows = []
    for arm, seed in [(long_table.BASE, long_table.BASE_SEED), *((arm, seed) for arm in ARMS for seed in SEEDS)]:
        for place, stage in enumerate(("training", "perplexity", "misalignment", "longbench_e")):
            lost = arm == "broken" and seed == 1
            rows.append(
                {
                    "arm": arm, "seed": seed, "run": f"{'constant' if arm == 'twin' else arm}-{seed}", "stage": stage,
                    "steps": "2-4", "status": "diverged" if lost else "ok", "spec": '{"seed": 0}', "log": "a.log",
                    "log_tail": "loss <nan>\nended" if lost else "finished", "hardware": "a processor",
                    "device_seconds": 360.0 * (1 + place), "cpu_seconds": 180.0 * (1 + place), "operations": 3e15,
                    "planned_seconds": 300.0, "planned_from": "counted",
                    "tokens_per_second": 1000.0, "peak_memory_mb": 2048.0, "path": f"{stage}.json",
                }
            )  # fmt: skip
    return pd.DataFrame(rows, columns=[*collecting_runs.RUNS]).astype(collecting_runs.RUNS)


def tidy_of(metrics: pd.DataFrame, study: dict[str, Any], name: str = "main") -> pd.DataFrame:
    """Of the module's own metrics and study, which no test changes, each table once."""
    key = id(metrics), json.dumps(study), name
    if key not in TIDY:
        TIDY[key] = metrics, tables.tidy_table(metrics, study, tables.table_of(study, name))
    return TIDY[key][1].copy()


TIDY: dict[tuple[int, str, str], tuple[pd.DataFrame, pd.DataFrame]] = {}


def cell(tidy: pd.DataFrame, arm: str, column: str = "perplexity@32", step: int = 4) -> pd.Series:
    found = tidy[tidy["arm"].eq(arm) & tidy["column"].eq(column) & tidy["step"].eq(step)]
    assert len(found) == 1
    return found.iloc[0]


def line_of(markdown: str, arm: str, step: int) -> list[str]:
    """The cells of the arm's line at a checkpoint, in the first block of the table (or of what follows)."""
    at = None
    for line in markdown.split("\n\n")[1].splitlines():
        cells = [text.strip() for text in line.strip("|").split("|")]
        at = cells[0] or at
        if at == str(step) and cells[1] == arm:
            return cells
    raise AssertionError(f"no line of {arm} at step {step}")
