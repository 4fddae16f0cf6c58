"""Waiting for what another process does."""

from __future__ import annotations

import time
from collections.abc import Callable

# Seconds after which what a test waits for will not come, however busy the machine is: no test tells how fast.
PATIENCE = 600.0


def wait_until(condition: Callable[[], bool], complaint: Callable[[], str]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"after {PATIENCE:.0f} s {complaint()}"
        time.sleep(0.02)
