"""What no study needs, by what is on the disk; the command itself is tested in tests/contract/test_plan.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from longshort.commands import prune
from longshort.records import layout
from longshort.records.publish import write_record
from longshort.study import resolve


def test_checkpoints_are_needed_if_any_run_that_names_them_is(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the last step of a constant learning rate was raised: the run of before, which no study needs, has
    trained in the same folder. Its id may come first or last."""
    monkeypatch.chdir(project)
    for other in Path("config/studies").glob("*.yaml"):
        if other.stem != "tiny":
            other.unlink()
    before, needed, after, shared = "0" * 16, resolve.load("tiny").arm_runs["constant"][0], "f" * 16, "a" * 16
    for run in (before, needed, after):
        record = Path(layout.training(run, "2-6").record)
        record.parent.mkdir(parents=True)
        write_record(record, {"run_id": shared, "checkpoints": {}})
    Path(layout.WORK, shared).mkdir(parents=True)
    found = {folder.path.name: folder.needed_by for folder in prune.kept()}
    assert found == {before: [], needed: ["tiny"], after: [], shared: ["tiny"]}
