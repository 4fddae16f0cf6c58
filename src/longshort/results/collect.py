"""The long table of a study: one row per number, from the records of its runs; beside it, in runs.parquet, one row per
arm, seed and stage: how it was made and what it cost. Links the runs by arm for people.

`python -m longshort.results.collect --study results/S/study.json --results results --out results/S/metrics.parquet`
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import pandas

from longshort.errors import in_a_line
from longshort.identity.code import refuse_changed_code
from longshort.identity.spec import NAME
from longshort.jobs import heartbeat
from longshort.records.publish import (
    Altered,
    file_digest,
    read_record,
    read_spec,
    text_of,
    whole_record,
    write_atomic,
    write_record,
)
from longshort.results.long_table import BASE, BASE_SEED

COLUMNS = [
    *("study", "arm", "seed", "step", "metric", "length", "task", "document", "value", "n", "status"),
    *("protocol", "run_id", "code", "data", "commit", "environment"),
]
# tokens_per_second is left out: it is another number each time the same run is computed.
TRAINED = ("loss", "ce", "divergence", "hidden", "alpha_output", "alpha_hidden", "learning_rate", "grad_norm")
TYPES = {"length": "Int64", "n": "Int64", "task": "string", "document": "string", "value": "float64"}
Codes = dict[str, dict[str, str]]
LOG_LINES = 40


def collect(study: dict[str, Any], results: Path, planned: Codes | None = None) -> pandas.DataFrame:
    """The rows of every arm and seed, and of the base model (arm "(base)", seed -1, step 0).

    Args:
        study: the resolved study (study.json).
        results: the folder that holds runs/.
        planned: to take what exists, run -> "training" or metric -> the code that makes it now. What is not there, or
            was made by other code, is one row a checkpoint and metric, or one for a training, with status "missing", or
            "running", "failed" or "interrupted" where its heartbeat says so.
    """
    frames = []
    for name, seed, run, steps in _runs(study):
        folder = results / "runs" / run
        frame = _run(study, folder, steps, training=name != BASE, planned=planned[run] if planned else None)
        if name == BASE:
            frame["step"] = 0
        frame["study"], frame["arm"], frame["seed"] = study["name"], name, seed
        frames.append(frame)
    return pandas.concat(frames, ignore_index=True)[COLUMNS]


def _runs(study: dict[str, Any]) -> list[tuple[str, int, str, str]]:
    """Arm, seed, run and steps of every run of a study, the base first."""
    runs = [(BASE, BASE_SEED, study["base"], str(study["base_steps"]))]
    for arm in study["arms"]:
        runs += [(arm["name"], int(seed), run, study["steps_key"]) for seed, run in arm["runs"].items()]
    return runs


def collect_runs(study: dict[str, Any], results: Path) -> pandas.DataFrame:
    """One row for each arm, seed and stage (training, or an evaluation), whether it is finished or not: RUNS."""
    planned = whole_record(results / study["name"] / "planned.json")
    rows = []
    for arm, seed, run, steps in _runs(study):
        stages = {"training": "training"}
        stages |= {metric: f"{metric}/{evaluation['id']}" for metric, evaluation in study["evaluations"].items()}
        spec_path = results / "runs" / run / "spec.json"
        spec = read_spec(spec_path) if spec_path.exists() else {}
        for stage, place in stages.items():
            out = results / "runs" / run / place / f"{steps}.json"
            row = _how_made(out, stage, spec)
            expected = planned.get(f"{run}/{stage}/{steps}", {})
            row |= {"planned_seconds": expected.get("seconds"), "planned_from": expected.get("source")}
            row |= {"run": run, "stage": stage, "steps": steps, "spec": text_of(spec_path)}
            rows.append({"arm": arm, "seed": seed, **row})
    return pandas.DataFrame(rows, columns=[*RUNS]).astype(RUNS)


RUNS = {
    **dict.fromkeys(("arm",), "string"),
    "seed": "int64",
    **dict.fromkeys(("run", "stage", "steps", "status", "run_id", "code", "commit", "data", "environment"), "string"),
    **dict.fromkeys(
        ("hardware", "host", "job", "finished", "path", "log", "log_tail", "spec", "planned_from"), "string"
    ),
    **dict.fromkeys(("device_seconds", "planned_seconds", "tokens_per_second"), "float64"),
    **dict.fromkeys(("peak_memory_mb", "device_memory_mb"), "float64"),
    "attempts": "Int64",
}


def _how_made(out: Path, stage: str, spec: dict[str, Any]) -> dict[str, Any]:
    """What the record, the heartbeat and the log of a stage say."""
    beat, log = heartbeat.read(heartbeat.path_of(out)), out.with_suffix(".log")
    said: dict[str, Any] = {
        "status": _unfinished(out),
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
    if stage == "training" and (training := spec.get("training")):
        devices = training.get("processes", 1) * training.get("nodes", 1)
        log_path = out.with_suffix(".parquet")
        steps = pandas.read_parquet(log_path) if log_path.exists() else pandas.DataFrame()
        if "tokens_per_second" in steps:
            tokens = (2 if spec.get("alignment") else 1) * spec["length"] * training["batch"]
            said["tokens_per_second"] = float(steps["tokens_per_second"].median())
            # Of a training that was resumed the record knows the last attempt only.
            seconds = max(seconds, float((tokens / steps["tokens_per_second"]).sum()))
        seconds = max(seconds, float((record.get("spent") or {}).get("seconds", 0.0)))
        if "device_memory_mb" in steps:
            said["device_memory_mb"] = float(steps["device_memory_mb"].max()) * devices
    said["device_seconds"] = devices * seconds
    return said


def _unfinished(out: Path) -> str:
    """What the heartbeat says of a result that is not there."""
    path = heartbeat.path_of(out)
    state = heartbeat.read(path).get("state")
    if state in (heartbeat.RUNNING, heartbeat.WAITING):
        return "running" if heartbeat.clock(path.parent) - path.stat().st_mtime < heartbeat.SILENT else "failed"
    return str(state) if state in (heartbeat.FAILED, heartbeat.INTERRUPTED) else "missing"


def _run(
    study: dict[str, Any], folder: Path, steps: str, *, training: bool, planned: dict[str, str] | None
) -> pandas.DataFrame:
    record_path = folder / "training" / f"{steps}.json"
    there = record_path.with_suffix(".parquet").exists()
    trained = planned is None or (there and _made_by(record_path, planned["training"]))
    record = _record_of(record_path, {"run": folder.name, "steps": steps}) if trained else {}
    frames = []
    for metric, evaluation in study["evaluations"].items():
        path = folder / metric / evaluation["id"] / f"{steps}.parquet"
        if planned is None or (trained and path.exists() and _made_by(path.with_suffix(".json"), planned[metric])):
            lies = {"run": folder.name, "evaluation": evaluation["id"], "steps": steps, "run_id": record["run_id"]}
            _refuse_altered(path, _record_of(path.with_suffix(".json"), lies)["sha256"])
            frames.append(pandas.read_parquet(path).astype(TYPES))
        else:
            frames.append(_missing(metric, steps, _unfinished(path)))
    if training:
        absent = _missing("train/loss", steps, _unfinished(record_path)).tail(1)
        frames.append(_training(record_path, record) if trained else absent)
    return pandas.concat(frames, ignore_index=True)


def _record_of(path: Path, lies: dict[str, str]) -> dict[str, Any]:
    """A record that says of itself what its place says.

    Raises:
        Altered: it was published for another run, training, evaluation or steps, and moved here.
    """
    record = read_record(path)
    for key, here in lies.items():
        if record.get(key) != here:
            raise Altered(
                f"{path} was published for another place: its {key} is {record.get(key)}, not {here}; "
                "delete it and run snakemake again"
            )
    return record


def _made_by(record: Path, code: str) -> bool:
    return record.exists() and read_record(record)["code"] == code


def _training(record_path: Path, record: dict[str, Any]) -> pandas.DataFrame:
    log_path = record_path.with_suffix(".parquet")
    _refuse_altered(log_path, record["log"]["sha256"])
    log = pandas.read_parquet(log_path)
    if log.empty:
        return _missing("train/loss", "0").iloc[:0]
    present = [part for part in TRAINED if part in log]
    rows = log.melt(id_vars="step", value_vars=present, var_name="metric", value_name="value")
    rows["metric"] = "train/" + rows["metric"]
    for column in ("length", "task", "document", "n"):
        rows[column] = None
    rows["status"], rows["protocol"] = "ok", "training-log-v1"
    for column in ("run_id", "code", "data", "commit", "environment"):
        rows[column] = record[column]
    return rows.astype(TYPES)


def _refuse_altered(path: Path, digest: str) -> None:
    if file_digest(path) != digest:
        raise Altered(f"{path} is not the file that was published; delete it and run snakemake again")


def _missing(metric: str, steps: str, status: str = "missing") -> pandas.DataFrame:
    rows = pandas.DataFrame({"step": [int(step) for step in steps.split("-")]})
    rows["metric"], rows["value"], rows["n"], rows["status"] = metric, float("nan"), 0, status
    for column in ("length", "task", "document"):
        rows[column] = None
    for column in ("protocol", "run_id", "code", "data", "commit", "environment"):
        rows[column] = ""
    return rows.astype(TYPES)


def link_arms(study: dict[str, Any], out: Path) -> None:
    """results/<study>/arms/<arm>/seed-<seed> and results/<study>/base -> results/runs/<id>, for people. Links of arms
    and seeds that the study no longer has are removed; what is no link stays."""
    for arm in study["arms"]:
        if not NAME.fullmatch(arm["name"]):
            raise Altered(f"the study's arm {arm['name']!r} is no name of a folder; run snakemake again")
    base = out / "base"
    base.unlink(missing_ok=True)
    base.symlink_to(os.path.join("..", "runs", study["base"]))
    wanted = {(arm["name"], f"seed-{seed}") for arm in study["arms"] for seed in arm["runs"]}
    for folder in (out / "arms").glob("*"):
        links = [link for link in folder.glob("*") if link.is_symlink()]
        for link in links:
            if (folder.name, link.name) not in wanted:
                link.unlink()
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
    for arm in study["arms"]:
        folder = out / "arms" / arm["name"]
        folder.mkdir(parents=True, exist_ok=True)
        for seed, run in arm["runs"].items():
            link = folder / f"seed-{seed}"
            link.unlink(missing_ok=True)
            link.symlink_to(os.path.join("..", "..", "..", "runs", run))


def publish(metrics: pandas.DataFrame, runs: pandas.DataFrame, out: Path) -> None:
    """Both tables, each with a record of its hash: tables are not made from numbers that were edited."""
    for path, frame in {out.with_name("runs.parquet"): runs, out: metrics}.items():
        write_atomic(path, frame.to_parquet(index=False))
        write_record(path.with_suffix(".json"), {"sha256": file_digest(path), "rows": len(frame)})


@in_a_line()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", type=Path, required=True, help="resolved study (JSON)")
    parser.add_argument("--results", type=Path, required=True, help="folder that holds runs/")
    parser.add_argument("--out", type=Path, required=True, help="parquet to write")
    parser.add_argument("--seal", help="refuse to run if the study's is another one")
    parser.add_argument("--code", help="refuse to run if the code's hash is another one")
    arguments = parser.parse_args()
    if arguments.code:
        refuse_changed_code(arguments.code, "longshort.results.collect")
    study = read_record(arguments.study, arguments.seal)
    frame = collect(study, arguments.results)
    publish(frame, collect_runs(study, arguments.results), arguments.out)
    link_arms(study, arguments.out.parent)
    print(f"{len(frame)} numbers of {frame['arm'].nunique()} arms: {arguments.out}")


if __name__ == "__main__":
    main()
