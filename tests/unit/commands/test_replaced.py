"""Items that were replaced since they were measured on; models are in tests/workflow/test_study.py."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from longshort.commands import replaced
from longshort.data.settings import BytesTokenizer
from longshort.errors import StudyError
from longshort.evaluation import longbench
from longshort.evaluation.longbench_items import TASKS
from longshort.records.publish import write_record
from tests.support.studies import check


def write_items(folder: Path, text: str) -> None:
    """With a time long ago, as `mv`, `cp -p` and `rsync -a` leave it."""
    folder.mkdir(exist_ok=True)
    for task in TASKS:
        item = dict.fromkeys(["input", "context", "answers", "length", "all_classes", "_id"], text)
        (folder / f"{task}_e.jsonl").write_text(json.dumps(item))
        os.utime(folder / f"{task}_e.jsonl", (1e9, 1e9))


def test_items_that_were_exchanged_for_older_ones_are_not_kept_silently(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine looks at times, and measures anew only on what is newer than its results."""
    monkeypatch.chdir(project)
    write_items(project / "tasks", "first")
    asked = {"source": {"kind": "folder", "path": "tasks"}, "max_length": 128, "max_new_tokens": 4}
    study = check(project, evaluations={"longbench_e": asked})
    protocol = longbench.MEASUREMENT.protocol(study.evaluations["longbench_e"][1].settings, 16, BytesTokenizer())
    record = Path(study.evaluation_record("longbench_e", study.arm_runs["constant"][0]))
    time.sleep(0.01)  # so that the items changed before
    older = protocol.replace("longbench-e/", "longbench-e/of-an-earlier-version-")
    write_record(record, {"protocol": f"{older}&weights=bf16"})  # which is another matter
    replaced.refuse(study)
    write_items(project / "tasks", "first")  # again, so that only their content says that they are the same
    replaced.refuse(study)
    time.sleep(0.01)
    write_items(project / "tasks", "second")
    with pytest.raises(StudyError, match=r"though their files are older:\n  tasks: .*longbench_e"):
        replaced.refuse(study)
    (project / "tasks/trec_e.jsonl").touch()  # as the message says: then the engine sees it
    replaced.refuse(study)
