"""What checkpoints are estimated to take of the disk, against sums that are done by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from longshort.commands import memory, storage
from longshort.records.publish import folder_digests
from longshort.study import resolve
from tests.support.project import ROOT

MODEL = memory.Model(layers=1, width=8, inner=16, kv_share=1.0, vocabulary=100)
COUNT = 4 * 8 * 8 + 3 * 8 * 16 + 2 * 100 * 8


@pytest.mark.parametrize(
    ("study", "arm", "goes_on"),
    [
        ("llama2-7b-clex-pg19", "constant", False),  # its learning rate falls to 0 at the last step
        ("llama3-8b-yarn-pg19", "constant", True),
        ("llama3-8b-yarn-pg19", "step-linear", False),
    ],
)
def test_weights_are_kept_and_the_states_of_a_last_step_that_more_can_follow(
    study: str, arm: str, goes_on: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bf16: 2 bytes a weight, and 2 of DeepSpeed's copy, 4 of the master copy, 8 of AdamW's moments."""
    monkeypatch.chdir(ROOT)
    resolved = resolve.load(study)
    run = resolved.arm_runs[arm][0]
    assert resolved.study.checkpoints == [50, 100, 200]

    def taken(missing: list[int]) -> tuple[float, float]:
        disk = storage.of_training(resolved, run, [50, 100, 200], missing, (MODEL, "by hand"), [])
        assert "by hand" in disk.source
        return disk.kept / COUNT, disk.running / COUNT

    assert taken([50, 100, 200]) == (3 * 2 + goes_on * 14, 2 * 2 + 3 * 16)
    assert taken([100]) == (2, 3 * 16)  # what goes on from 200 is there


def test_the_weights_of_a_finished_checkpoint_tell_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    resolved = resolve.load("llama2-7b-clex-pg19")
    run = resolved.arm_runs["constant"][0]
    (tmp_path / "model.safetensors").write_bytes(bytes(400))
    spec: dict[str, Any] = {"base": resolved.runs[run].base, "training": {"precision": "fp32"}}
    record = {"checkpoints": {"50": {"path": str(tmp_path), "files": folder_digests(tmp_path)}}}
    (tmp_path / "optimizer.pt").write_bytes(bytes(4000))
    disk = storage.of_training(resolved, run, [50, 200], [50, 200], (MODEL, ""), [(spec, record)])
    assert disk.kept == 2 * 100 * 2 and "of a finished checkpoint" in disk.source
