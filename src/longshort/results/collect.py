"""The long table of a study: one row per number, from the records of its runs. Links the runs by arm for people.

`python -m longshort.results.collect --study results/S/study.json --results results --out results/S/metrics.parquet`
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import pandas

from longshort.identity import refuse_changed_code
from longshort.publish import file_digest, read_json, read_record, write_atomic
from longshort.results.long_table import BASE, BASE_SEED

COLUMNS = [
    *("study", "arm", "seed", "step", "metric", "length", "task", "document", "value", "n", "status"),
    *("protocol", "run_id", "code", "data", "commit", "environment"),
]
# tokens_per_second is left out: it is another number each time the same run is computed.
TRAINED = ("loss", "ce", "divergence", "hidden", "alpha_output", "alpha_hidden", "learning_rate", "grad_norm")
TYPES = {"length": "Int64", "n": "Int64", "task": "string", "document": "string", "value": "float64"}
Codes = dict[str, dict[str, str]]


def collect(study: dict[str, Any], results: Path, planned: Codes | None = None) -> pandas.DataFrame:
    """The rows of every arm and seed, and of the base model (arm "(base)", seed -1, step 0).

    Args:
        study: the resolved study (study.json).
        results: the folder that holds runs/.
        planned: to take what exists, run -> "training" or metric -> the code that makes it now. What is not there, or
            was made by other code, is one row a checkpoint and metric, or one for a training, with status "missing".
    """
    runs = [(BASE, BASE_SEED, study["base"], str(study["base_steps"]))]
    for arm in study["arms"]:
        runs += [(arm["name"], int(seed), run, study["steps_key"]) for seed, run in arm["runs"].items()]
    frames = []
    for name, seed, run, steps in runs:
        folder = results / "runs" / run
        frame = _run(study, folder, steps, training=name != BASE, planned=planned[run] if planned else None)
        if name == BASE:
            frame["step"] = 0
        frame["study"], frame["arm"], frame["seed"] = study["name"], name, seed
        frames.append(frame)
    return pandas.concat(frames, ignore_index=True)[COLUMNS]


def _run(
    study: dict[str, Any], folder: Path, steps: str, *, training: bool, planned: dict[str, str] | None
) -> pandas.DataFrame:
    record_path = folder / "training" / f"{steps}.json"
    trained = planned is None or _made_by(record_path, planned["training"])
    frames = []
    for metric, evaluation in study["evaluations"].items():
        path = folder / metric / evaluation["id"] / f"{steps}.parquet"
        if planned is None or (trained and _made_by(path.with_suffix(".json"), planned[metric])):
            _refuse_altered(path, read_record(path.with_suffix(".json"))["sha256"])
            frames.append(pandas.read_parquet(path).astype(TYPES))
        else:
            frames.append(_missing(metric, steps))
    if training:
        frames.append(_training(record_path) if trained else _missing("train/loss", steps).tail(1))
    return pandas.concat(frames, ignore_index=True)


def _made_by(record: Path, code: str) -> bool:
    return record.exists() and read_record(record)["code"] == code


def _training(record_path: Path) -> pandas.DataFrame:
    record = read_record(record_path)
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
        raise ValueError(f"{path} is not the file that was published; delete it and run snakemake again")


def _missing(metric: str, steps: str) -> pandas.DataFrame:
    rows = pandas.DataFrame({"step": [int(step) for step in steps.split("-")]})
    rows["metric"], rows["value"], rows["n"], rows["status"] = metric, float("nan"), 0, "missing"
    for column in ("length", "task", "document"):
        rows[column] = None
    for column in ("protocol", "run_id", "code", "data", "commit", "environment"):
        rows[column] = ""
    return rows.astype(TYPES)


def link_arms(study: dict[str, Any], out: Path) -> None:
    """results/<study>/arms/<arm>/seed-<seed> and results/<study>/base -> results/runs/<id>, for people. Links of arms
    and seeds that the study no longer has are removed; what is no link stays."""
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", type=Path, required=True, help="resolved study (JSON)")
    parser.add_argument("--results", type=Path, required=True, help="folder that holds runs/")
    parser.add_argument("--out", type=Path, required=True, help="parquet to write")
    parser.add_argument("--code", help="refuse to run if the code's hash is another one")
    arguments = parser.parse_args()
    if arguments.code:
        refuse_changed_code(arguments.code, "longshort.results.collect")
    study = read_json(arguments.study)
    frame = collect(study, arguments.results)
    write_atomic(arguments.out, frame.to_parquet(index=False))
    link_arms(study, arguments.out.parent)
    print(f"{len(frame)} numbers of {frame['arm'].nunique()} arms: {arguments.out}")


if __name__ == "__main__":
    main()
