"""`longshort why`: from a number or a result file to what it was made by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from longshort.publish import file_digest, read_json
from longshort.study import StudyError

RESULTS = Path("results")


def of_file(path: Path) -> dict[str, Any]:
    """Where a file below results/runs or results/data comes from.

    Raises:
        StudyError: no such file, or none that a stage published.
    """
    if not path.exists():
        raise StudyError(f"{path} does not exist; give a file of results/, or TABLE ROW COLUMN")
    # Arms are links to runs: the run's own folder names it.
    path = path.resolve().relative_to(Path.cwd()) if path.resolve().is_relative_to(Path.cwd()) else path.resolve()
    record_path = path if path.suffix == ".json" else path.with_suffix(".json")
    folder = next((parent for parent in path.parents if parent.parent.name in ("runs", "data")), None)
    if folder is None or not record_path.exists() or record_path.name == "spec.json":
        raise StudyError(
            f"{path} is no published result: give the .json or .parquet of a training or an evaluation below "
            "results/runs, or TABLE ROW COLUMN for a number of a table"
        )
    record = read_json(record_path)
    if "code" not in record:
        raise StudyError(f"{record_path} names no code: it was made by an older version; run snakemake again")
    machine = record.get("machine", {})
    said = {
        "result": str(path),
        "run": folder.name,
        "run id": record.get("run_id", ""),
        "status": record.get("status", "ok"),
        "specification": str(folder / "spec.json"),
        "code": record["code"],
        "commit": _commit(record.get("commit", "unknown")),
        "data": record.get("data", record.get("content", "")),
        "environment": record.get("environment", ""),
        "machine": f"{machine.get('host')} ({machine.get('processor')})",
        "job": machine.get("job") or "none (no scheduler)",
        "finished": record.get("finished", ""),
        "log": str(record_path.with_suffix(".log")),
    }
    stated = record.get("sha256") or (record.get("log") or {}).get("sha256")
    numbers = record_path.with_suffix(".parquet")
    if stated and numbers.exists():
        said["file"] = "as published" if file_digest(numbers) == stated else f"{numbers} WAS ALTERED since"
    return said


def of_cell(study: str, table: str, row: str, column: str, step: int | None = None) -> list[dict[str, Any]]:
    """Where a cell of a table comes from: one entry a seed, with its value.

    Raises:
        StudyError: no such table, row or column; it names what there is.
    """
    import pandas

    from longshort.results import long_table, tables
    from longshort.results.columns import columns_of
    from longshort.results.long_table import BASE, BASE_SEED

    folder = RESULTS / study
    if not (folder / "metrics.parquet").exists():
        raise StudyError(f"{folder}/metrics.parquet does not exist yet; run `snakemake all --config study={study}`")
    summary = read_json(folder / "study.json")
    try:
        chosen = tables.table_of(summary, table)
    except ValueError as error:
        raise StudyError(str(error)) from None
    of_table = columns_of(summary, tables.kind_of(chosen))
    columns = {name: some for some in of_table if some.compared for name in (some.key, some.header)}
    if column not in columns:
        raise StudyError(f"table {table} has no column {column!r}; it has {', '.join(c.key for c in columns.values())}")
    rows = [BASE, *chosen["arms"]] if table == "main" else chosen["arms"]
    if row not in rows:
        raise StudyError(f"table {table} has no row {row!r}; it has {', '.join(rows)}")
    step = 0 if row == BASE else step or max(summary["checkpoints"])
    metrics = long_table.read(folder / "metrics.parquet")
    shown = columns[column]
    behind = long_table.at(long_table.single(metrics), shown.metric, shown.length, shown.task)
    runs = {some["name"]: some["runs"] for some in summary["arms"]}
    runs[BASE] = {str(BASE_SEED): summary["base"]}
    metric = long_table.evaluation_of(columns[column].metric)
    found = []
    for seed, run in runs[row].items():
        values = long_table.by_seed(behind, row, step, [int(seed)])
        steps = str(summary["base_steps"]) if row == BASE else summary["steps_key"]
        numbers = RESULTS / "runs" / run / metric / summary["evaluations"][metric]["id"] / f"{steps}.parquet"
        value = next((v for v in pandas.Series(values).tolist()), float("nan"))
        found.append({"number": f"{row}, {column}, step {step}, seed {seed}: {value:.6g}", **of_file(numbers)})
    return found


def _commit(commit: str) -> str:
    return f"{commit.removesuffix('-dirty')} with uncommitted changes" if commit.endswith("-dirty") else commit
