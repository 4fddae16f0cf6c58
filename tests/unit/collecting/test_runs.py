"""What a stage took, from its record and its heartbeat."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas
import pytest

from longshort.collecting import runs
from longshort.jobs import heartbeat
from longshort.records import layout
from longshort.records.publish import write_record

BEAT = {"state": heartbeat.FINISHED, "host": "h", "pid": 1, "began": 0.0, "beat": 1.0, "attempt": 2}
STUDY = {"name": "s", "base": "b", "base_steps": 4, "seeds": [0], "arms": [], "evaluations": {}, "steps_key": "6"}
SPENT = {"steps": 6, "seconds": 50.0, "cpu_seconds": 90.0}


@pytest.mark.parametrize(
    ("record", "beat", "cpu_seconds"),
    [
        ({"seconds": 10.0, "cpu_seconds": 8.0}, {"seconds_before": 0.0}, 8.0),
        ({"seconds": 10.0, "cpu_seconds": 8.0}, {"seconds_before": 4.0, "cpu_seconds_before": 3.0}, 11.0),
        ({"seconds": 10.0, "cpu_seconds": 8.0}, {"seconds_before": 4.0}, None),  # an older attempt
        ({"seconds": 10.0}, {}, None),
        ({"seconds": 0.0}, {}, 0.0),  # a pretrained base is only read
        ({"seconds": 1.0, "cpu_seconds": 1.0, "spent": SPENT}, {}, 90.0),  # published again
        ({"seconds": 1.0, "cpu_seconds": 1.0, "spent": {"steps": 6, "seconds": 50.0}}, {}, None),
    ],
)
def test_cpu_time_holds_all_attempts_or_is_unknown(
    tmp_path: Path, record: dict[str, Any], beat: dict[str, Any], cpu_seconds: float | None
) -> None:
    files = layout.training("b", "4", tmp_path)
    Path(files.record).parent.mkdir(parents=True)
    write_record(Path(files.record), record)
    heartbeat.path_of(Path(files.record)).write_text(json.dumps({**BEAT, **beat}))
    planned = Path(layout.planned("s", tmp_path))
    planned.parent.mkdir(parents=True)
    write_record(planned, {"b/training/4": {"operations": 7e12}})
    row = runs.collect_runs(STUDY, tmp_path).iloc[0]
    assert row["operations"] == 7e12 and pandas.isna(row["planned_seconds"])
    assert row["cpu_seconds"] == cpu_seconds or (cpu_seconds is None and pandas.isna(row["cpu_seconds"]))


@pytest.mark.parametrize(
    ("record", "beat", "seconds"),
    [
        ({"seconds": 10.0}, {}, 10.0),
        ({"seconds": 10.0}, {"seconds_before": 4.0}, 14.0),  # attempts that failed held the devices, too
        ({"seconds": 1.0, "spent": SPENT}, {}, 50.0),  # published again
    ],
)
def test_a_training_costs_its_time_on_each_device_that_it_held(
    tmp_path: Path, record: dict[str, Any], beat: dict[str, Any], seconds: float
) -> None:
    """Here 2 processes on each of 3 nodes. One that diverged cost as much, and is called that."""
    files = layout.training("b", "4", tmp_path)
    Path(files.record).parent.mkdir(parents=True)
    Path(layout.spec(layout.RUNS, "b", tmp_path)).write_text(json.dumps({"training": {"processes": 2, "nodes": 3}}))
    heartbeat.path_of(Path(files.record)).write_text(json.dumps({**BEAT, **beat}))
    for said, status in (({}, "ok"), ({"status": "diverged"}, "diverged")):
        write_record(Path(files.record), {**record, **said})
        row = runs.collect_runs(STUDY, tmp_path).iloc[0]
        assert (row["status"], row["device_seconds"]) == (status, 2 * 3 * seconds)


@pytest.mark.parametrize(("spec", "tokens"), [({}, 64), ({"alignment": {"alpha": 1.0}}, 128)])
def test_a_training_that_went_on_costs_all_the_steps_of_its_log(
    tmp_path: Path, spec: dict[str, Any], tokens: int
) -> None:
    """Its record knows the last attempt only. A step reads 4 texts of 16 tokens, two views of them where it aligns."""
    files = layout.training("b", "4", tmp_path)
    Path(files.record).parent.mkdir(parents=True)
    settings = {"length": 16, "training": {"batch": 4}, **spec}
    Path(layout.spec(layout.RUNS, "b", tmp_path)).write_text(json.dumps(settings))
    pandas.DataFrame({"tokens_per_second": [10.0, 20.0]}).to_parquet(files.numbers)
    write_record(Path(files.record), {"seconds": 1.0})
    row = runs.collect_runs(STUDY, tmp_path).iloc[0]
    assert row["device_seconds"] == pytest.approx(tokens / 10 + tokens / 20)
    assert row["tokens_per_second"] == 15


def test_the_memory_of_a_training_is_the_most_of_a_step_on_each_device(tmp_path: Path) -> None:
    """The log has that of the first process; here there are 2 on each of 3 nodes."""
    files = layout.training("b", "4", tmp_path)
    Path(files.record).parent.mkdir(parents=True)
    Path(layout.spec(layout.RUNS, "b", tmp_path)).write_text(json.dumps({"training": {"processes": 2, "nodes": 3}}))
    pandas.DataFrame({"device_memory_mb": [100.0, 300.0, 200.0]}).to_parquet(files.numbers)
    write_record(Path(files.record), {"seconds": 1.0})
    assert runs.collect_runs(STUDY, tmp_path).iloc[0]["device_memory_mb"] == 2 * 3 * 300
