"""The long table of a study: one row per number, from the records of its runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas

from longshort.jobs import heartbeat
from longshort.records import layout, study_json
from longshort.records.publish import Altered, file_digest, read_record, write_atomic, write_record
from longshort.results.replicates import NO_ARMS, models

COLUMNS = [
    *("study", "arm", "seed", "step", "metric", "length", "task", "document", "value", "n", "status"),
    *("protocol", "run_id", "code", "data", "commit", "environment"),
]
# tokens_per_second is left out: it is another number each time the same run is computed.
TRAINED = ("loss", "ce", "divergence", "hidden", "alpha_output", "alpha_hidden", "learning_rate", "grad_norm")
TYPES = {"length": "Int64", "n": "Int64", "task": "string", "document": "string", "value": "float64"}
Codes = dict[str, dict[str, str]]
# What is read of the records of a training and of an evaluation.
OF_TRAINING = {
    "log": {"sha256": str},
    **dict.fromkeys(("run_id", "code", "data", "commit", "environment"), str),
}
OF_EVALUATION = {"sha256": str}


def collect(study: dict[str, Any], results: Path, planned: Codes | None = None) -> pandas.DataFrame:
    """The rows of every arm and seed, and at step 0 of the base, "(base)", of the same with its context extended,
    "(extended base)", and of the one that was trained at the test length, "(long base)": seed -1, or one a base, by
    first seed.

    Args:
        study: the resolved study (study.json).
        results: the folder that holds runs/.
        planned: to take what exists, run -> "training" or metric -> the code that makes it now. What is not there, or
            was made by other code, is one row a checkpoint and metric, or one for a training, with status "missing", or
            "running", "waiting", "lost", "failed" or "interrupted" where its heartbeat says so.
    """
    frames = []
    for name, seed, run, steps in runs_of(study):
        codes = planned[run] if planned else None
        frame = _run(study, results, run, steps, training=name not in NO_ARMS, planned=codes)
        if name in NO_ARMS:
            frame["step"] = 0
        frame["study"], frame["arm"], frame["seed"] = study["name"], name, seed
        frames.append(frame)
    return pandas.concat(frames, ignore_index=True)[COLUMNS]


def runs_of(study: dict[str, Any]) -> list[tuple[str, int, str, str]]:
    """Arm, seed, run and steps of every run of a study, the bases first."""
    steps = str(study["base_steps"])
    runs = [(name, seed, run, steps) for name, some in models(study).items() for seed, run in some.items()]
    for arm in study["arms"]:
        runs += [(arm["name"], int(seed), run, study["steps_key"]) for seed, run in arm["runs"].items()]
    return runs


def unfinished(out: Path) -> str:
    """How the job stands that is to make a result which is not there."""
    state = heartbeat.verdict(out).state
    return "missing" if state in (heartbeat.PENDING, heartbeat.DONE, heartbeat.ALTERED) else state


def _run(
    study: dict[str, Any], results: Path, run: str, steps: str, *, training: bool, planned: dict[str, str] | None
) -> pandas.DataFrame:
    job = layout.training(run, steps, results)
    record_path, log = Path(job.record), Path(job.numbers)
    trained = planned is None or (log.exists() and _made_by(record_path, planned[layout.TRAINING]))
    record = _record_of(record_path, {"run": run, "steps": steps}, OF_TRAINING) if trained else {}
    frames = []
    for metric, evaluation in study["evaluations"].items():
        job = layout.evaluation(run, metric, evaluation["id"], steps, results)
        path, measured = Path(job.numbers), Path(job.record)
        of_training = record.get("run_id")
        if planned is None or (trained and path.exists() and _made_by(measured, planned[metric], of_training)):
            lies = {"run": run, "evaluation": evaluation["id"], "steps": steps, "run_id": record["run_id"]}
            _refuse_altered(path, _record_of(measured, lies, OF_EVALUATION)["sha256"])
            frames.append(pandas.read_parquet(path).astype(TYPES))
        else:
            frames.append(_missing(metric, steps, unfinished(measured)))
    if training:
        absent = _missing("train/loss", steps, unfinished(record_path)).tail(1)
        frames.append(_training(log, record) if trained else absent)
    return pandas.concat(frames, ignore_index=True)


def _record_of(path: Path, lies: dict[str, str], like: Any) -> dict[str, Any]:
    """A record that says of itself what its place says.

    Raises:
        Altered: it was published for another run, training, evaluation or steps, and moved here.
    """
    record = read_record(path, like=like)
    for key, here in lies.items():
        if record.get(key) != here:
            raise Altered(
                f"{path} was published for another place: its {key} is {record.get(key)}, not {here}; "
                "delete it and run snakemake again"
            )
    return record


def _made_by(record: Path, code: str, run_id: str | None = None) -> bool:
    """run_id: of the training that it measured."""
    if not record.exists():
        return False
    made = read_record(record, like={"code": str})
    return bool(made["code"] == code and run_id in (None, made.get("run_id")))


def _training(log_path: Path, record: dict[str, Any]) -> pandas.DataFrame:
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


def publish(metrics: pandas.DataFrame, runs: pandas.DataFrame, out: Path, study: dict[str, Any]) -> None:
    """Both tables, each with a record of its hash, and of the study that it was collected for: tables are not made from
    numbers that were edited, and none are shown as those of another study."""
    collected_for = study_json.seal_of(study)
    for path, frame in {Path(layout.runs(out.parent)): runs, out: metrics}.items():
        write_atomic(path, frame.to_parquet(index=False))
        record = {"sha256": file_digest(path), "rows": len(frame), "study": collected_for}
        write_record(path.with_suffix(".json"), record)
