"""A request to stop."""

from __future__ import annotations

import signal

import pytest

from longshort.errors import Exit, in_a_line
from longshort.jobs import interruption


def test_a_request_to_stop_passes_what_catches_failures() -> None:
    before = signal.getsignal(signal.SIGTERM)
    interruption.end_at_once()
    try:
        with pytest.raises(SystemExit) as ended, in_a_line():
            try:
                signal.raise_signal(signal.SIGTERM)
            except Exception:
                pytest.fail("taken for a failure")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ended.value.code == Exit.INTERRUPTED == 143
