"""What trackers are told without being asked."""

from __future__ import annotations

import pytest

from longshort.training import tracking


def test_a_tracker_is_told_what_its_user_has_not_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "of the user")
    monkeypatch.delenv("WANDB_RUN_GROUP", raising=False)
    told = tracking.environment("study/arm/seed-0", identity="0123")
    assert "WANDB_PROJECT" not in told and told["WANDB_RUN_GROUP"] == "study/arm"
