"""How every run of a study was made, and what it cost: one row per arm, seed and stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas

from longshort.collecting.numbers import runs_of, unfinished
from longshort.jobs import heartbeat
from longshort.records import layout, shares
from longshort.records.publish import read_record, read_spec, text_of, whole_record

LOG_LINES = 40
RUNS = {
    **dict.fromkeys(("arm",), "string"),
    "seed": "int64",
    **dict.fromkeys(("run", "stage", "steps", "status", "run_id", "code", "commit", "data", "environment"), "string"),
    **dict.fromkeys(
        ("hardware", "host", "job", "finished", "path", "log", "log_tail", "spec", "planned_from"), "string"
    ),
    **dict.fromkeys(("device_seconds", "cpu_seconds", "planned_seconds", "operations", "tokens_per_second"), "float64"),
    **dict.fromkeys(("peak_memory_mb", "device_memory_mb"), "float64"),
    "attempts": "Int64",
}


def collect_runs(study: dict[str, Any], results: Path) -> pandas.DataFrame:
    """One row for each arm, seed and stage (training, or an evaluation), whether it is finished or not: RUNS."""
    planned = whole_record(Path(layout.planned(study["name"], results)), {str: dict})
    rows = []
    for arm, seed, run, steps in runs_of(study):
        stages = {layout.TRAINING: layout.training(run, steps, results)}
        for metric, evaluation in study["evaluations"].items():
            stages[metric] = layout.evaluation(run, metric, evaluation["id"], steps, results)
        spec_path = Path(layout.spec(layout.RUNS, run, results))
        spec = read_spec(spec_path) if spec_path.exists() else {}
        for stage, files in stages.items():
            row = _how_made(files, stage, spec)
            expected = planned.get(f"{run}/{stage}/{steps}", {})
            row |= {"planned_seconds": expected.get("seconds"), "planned_from": expected.get("source")}
            row["operations"] = expected.get("operations")
            row |= {"run": run, "stage": stage, "steps": steps, "spec": text_of(spec_path)}
            rows.append({"arm": arm, "seed": seed, **row})
    return pandas.DataFrame(rows, columns=[*RUNS]).astype(RUNS)


def _how_made(files: layout.Stage, stage: str, spec: dict[str, Any]) -> dict[str, Any]:
    """What the record, the heartbeat and the log of a stage say."""
    out, log = Path(files.record), Path(files.log)
    beat = heartbeat.read(heartbeat.path_of(out))
    said: dict[str, Any] = {
        "status": unfinished(out),
        "path": str(out),
        "log": str(log),
        "log_tail": "\n".join(text_of(log).splitlines()[-LOG_LINES:]),
        "attempts": beat.get("attempt"),
        "peak_memory_mb": beat.get("peak_memory_mb"),
    }
    if not out.exists():
        return said
    record = read_record(out)
    machine = record.get("machine", {})
    said |= {name: record.get(name) for name in ("run_id", "code", "commit", "data", "environment", "finished")}
    said |= {"status": record.get("status", "ok"), "host": machine.get("host"), "job": machine.get("job")}
    said["hardware"] = machine.get("device") or machine.get("processor")
    devices, seconds = 1, float(record.get("seconds") or 0.0) + float(beat.get("seconds_before") or 0.0)
    if stage == layout.TRAINING and (training := spec.get("training")):
        devices = training.get("processes", 1) * training.get("nodes", 1)
        log_path = Path(files.numbers)
        steps = pandas.read_parquet(log_path) if log_path.exists() else pandas.DataFrame()
        if "tokens_per_second" in steps:
            tokens = (2 if spec.get("alignment") else 1) * spec["length"] * training["batch"]
            said["tokens_per_second"] = float(steps["tokens_per_second"].median())
            # Of a training that was resumed the record knows the last attempt only.
            seconds = max(seconds, float((tokens / steps["tokens_per_second"]).sum()))
        seconds = max(seconds, float((record.get("spent") or {}).get("seconds", 0.0)))
        if "device_memory_mb" in steps:
            said["device_memory_mb"] = float(steps["device_memory_mb"].max()) * devices
    said |= {"device_seconds": devices * seconds, "cpu_seconds": _cpu_seconds(record, beat)}
    for share in shares.of(out, record):
        said["device_seconds"] += share["seconds"]
        said["cpu_seconds"] = None if said["cpu_seconds"] is None else said["cpu_seconds"] + share["cpu_seconds"]
    return said


def _cpu_seconds(record: dict[str, Any], beat: dict[str, Any]) -> float | None:
    """What a stage took of the processors, attempts that failed included; None where one of them did not record it."""
    own = record.get("cpu_seconds", None if record.get("seconds") else 0.0)
    before = beat.get("cpu_seconds_before") if beat.get("seconds_before") else 0.0
    spent = (record.get("spent") or {"cpu_seconds": 0.0}).get("cpu_seconds")
    return None if own is None or before is None or spent is None else float(max(own + before, spent))
