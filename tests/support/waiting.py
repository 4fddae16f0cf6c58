"""Waiting for what another process does."""

from __future__ import annotations

import time
from collections.abc import Callable

# Seconds after which what a test waits for will not come, however busy the machine is: no test tells how fast.
PATIENCE = 600.0


# Seconds between looks that start a process each, as one at squeue does.
BY_A_PROCESS = 0.3


def wait_until(condition: Callable[[], bool], complaint: Callable[[], str], every: float = 0.02) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"after {PATIENCE:.0f} s {complaint()}"
        time.sleep(every)
