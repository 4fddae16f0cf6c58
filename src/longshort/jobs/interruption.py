"""A request to stop: SIGTERM, as SLURM sends it some time ahead of a limit, when a job is preempted, and on scancel.

A stage that can end at any place does so at once (`end_at_once`): what it has measured is kept. A training process only
notes the request (`watch`) and obeys it where it can save.
"""

from __future__ import annotations

import os
import signal
from typing import Any

from longshort.errors import Interrupted

_requested = False


def watch() -> None:
    """Notes SIGTERM from here on. Called before the slow imports: one that comes while they run must count."""
    signal.signal(signal.SIGTERM, _note)


def requested() -> bool:
    return _requested


def end_at_once() -> None:
    """From here on SIGTERM unwinds the process, so that its lock is given back and its heartbeat says why it ended."""
    signal.signal(signal.SIGTERM, _unwind)


def _note(number: int, frame: Any) -> None:
    global _requested
    _requested = True


def _unwind(number: int, frame: Any) -> None:
    signal.signal(number, signal.SIG_IGN)  # SLURM may say it twice, and what ends must end
    # Not by print, which fails where the signal comes in the midst of one.
    os.write(1, b"asked to stop (SIGTERM): ending; what is finished is kept, and the next attempt goes on there\n")
    raise Interrupted
