"""`longshort why`: from a number or a result file to what it was made by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from longshort.errors import StudyError
from longshort.records import layout, study_json
from longshort.records.publish import Altered, file_digest, read_json, read_record


def of_file(path: Path) -> dict[str, Any]:
    """Where a file below results/runs or results/data comes from.

    Raises:
        StudyError: no such file, or none that a stage published.
        Altered: its record was cut.
    """
    if not path.is_file():
        what = "is no file" if path.exists() else "does not exist"
        raise StudyError(f"{path} {what}; give a file of results/, or TABLE ROW COLUMN")
    # Arms are links to runs: the run's own folder names it.
    path = path.resolve().relative_to(Path.cwd()) if path.resolve().is_relative_to(Path.cwd()) else path.resolve()
    record_path = Path(layout.stage_of(path).record)
    if not record_path.exists():  # of a group of synthetic models
        record_path = Path(layout.SyntheticStage(str(path.parent)).record)
    folder = next((parent for parent in path.parents if parent.parent.name in (layout.RUNS, layout.DATA)), None)
    if folder is None or not record_path.exists() or record_path.name == layout.SPEC:
        raise StudyError(
            f"{path} is no published result: give the .json or .parquet of a training or an evaluation below "
            "results/runs, or TABLE ROW COLUMN for a number of a table"
        )
    record = read_json(record_path, dict)
    if "code" not in record:
        raise StudyError(f"{record_path} names no code: give the record of a corpus, a training or an evaluation")
    machine = _part(record, "machine")
    said = {
        "result": str(path),
        "run": folder.name,
        "run id": record.get("run_id", ""),
        "status": record.get("status", "ok"),
        "specification": str(folder / layout.SPEC),
        "code": record["code"],
        "commit": _commit(str(record.get("commit", "unknown"))),
        "data": record.get("data", record.get("content", "")),
        "environment": record.get("environment", ""),
        "machine": f"{machine.get('host')} ({machine.get('processor')})",
        "job": machine.get("job") or "none (no scheduler)",
        "finished": record.get("finished", ""),
        "log": layout.data_log(folder) if folder.parent.name == layout.DATA else layout.stage_of(record_path).log,
    }
    try:
        read_record(record_path)
    except Altered:
        said["record"] = f"{record_path} WAS ALTERED since it was published: what stands here may be wrong"
    if path.name.endswith(layout.ITEMS):
        numbers, stated = path, record.get("items_sha256")
    else:
        numbers = path if path.suffix == ".parquet" else Path(layout.stage_of(record_path).numbers)
        stated = record.get("sha256") or _part(record, "log").get("sha256")
    if stated and numbers.exists():
        said["file"] = "as published" if file_digest(numbers) == stated else f"{numbers} WAS ALTERED since"
    return said


def of_cell(study: str, table: str, row: str, column: str, step: int | None = None) -> list[dict[str, Any]]:
    """Where a cell of a table comes from: one entry a seed, with its value.

    Raises:
        StudyError: no such table, row, column or step; it names what there is.
    """
    from longshort.metrics.catalog import of_row
    from longshort.results import long_table, tables
    from longshort.results.columns import columns_of, kind_of
    from longshort.results.replicates import NO_ARMS, models
    from longshort.study import resolve

    resolve.content_of(study)
    collected = Path(layout.metrics(layout.study_folder(study)))
    if not collected.exists():
        raise StudyError(f"{collected} does not exist yet; run `snakemake all --cores 2 --config study={study}`")
    path = Path(layout.study_json(study))
    if groups := read_record(path).get("groups"):
        raise StudyError(
            f"study {study} is synthetic: give a file of one of its groups, such as "
            f"{layout.synthetic(next(iter(groups))).numbers}"
        )
    summary = study_json.read(path)
    try:
        chosen = tables.table_of(summary, table)
    except ValueError as error:
        raise StudyError(str(error)) from None
    of_table = columns_of(summary, kind_of(chosen))
    columns = {name: some for some in of_table if some.compared for name in (some.key, some.header)}
    if column not in columns:
        known = dict.fromkeys(some.key for some in columns.values())
        raise StudyError(f"table {table} has no column {column!r}; it has {', '.join(known)}")
    others = models(summary)
    rows = [*others, *chosen["arms"]] if table == "main" else chosen["arms"]
    if row not in rows:
        raise StudyError(f"table {table} has no row {row!r}; it has {', '.join(rows)}")
    steps_there = [0] if row in NO_ARMS else summary["checkpoints"]
    step = max(steps_there) if step is None else step
    if step not in steps_there:
        raise StudyError(f"row {row} has no step {step}; it has {', '.join(map(str, steps_there))}")
    metrics = long_table.read(collected)
    shown = columns[column]
    behind = long_table.at(long_table.single(metrics), shown.metric, shown.length, shown.task)
    runs = {some["name"]: some["runs"] for some in summary["arms"]}
    runs |= {name: {str(seed): run for seed, run in some.items()} for name, some in others.items()}
    metric = of_row(columns[column].metric).name
    found = []
    for seed, run in runs[row].items():
        steps = str(summary["base_steps"]) if row in NO_ARMS else summary["steps_key"]
        measured = layout.evaluation(run, metric, summary["evaluations"][metric]["id"], steps)
        chosen_rows = behind["arm"].eq(row) & behind["step"].eq(step) & behind["seed"].eq(int(seed))
        there = behind[chosen_rows].to_dict("records")
        value = f"{there[0]['value']:.6g}" if there else "not there"
        said = {"number": f"{row}, {column}, step {step}, seed {seed}: {value}", **of_file(Path(measured.numbers))}
        if there and (there[0]["run_id"], there[0]["code"]) != (said["run id"], said["code"]):
            said["but"] = (
                f"the number is of run id {there[0]['run_id']} and code {there[0]['code']}: what stands here was made "
                "after it; run snakemake again"
            )
        found.append(said)
    return found


def _part(record: dict[str, Any], key: str) -> dict[str, Any]:
    """Empty where it is not there, or another thing: the record may have been altered, which is said beside it."""
    part = record.get(key)
    return part if isinstance(part, dict) else {}


def _commit(commit: str) -> str:
    return f"{commit.removesuffix('-dirty')} with uncommitted changes" if commit.endswith("-dirty") else commit
