"""A request to stop."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from longshort.errors import Exit, in_a_line
from longshort.jobs import interruption


def test_a_request_to_stop_passes_what_catches_failures() -> None:
    before = signal.getsignal(signal.SIGTERM)
    interruption.end_at_once()
    unwound = False
    try:
        with pytest.raises(SystemExit) as ended, in_a_line():
            try:
                try:
                    signal.raise_signal(signal.SIGTERM)
                finally:
                    signal.raise_signal(signal.SIGTERM)  # once more, while locks are given back
                    unwound = True
            except Exception:
                pytest.fail("taken for a failure")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ended.value.code == Exit.INTERRUPTED == 143 and unwound


PRINTS = """
import io, signal, sys
from longshort.jobs import interruption

class Output(io.RawIOBase):
    asked = False

    def writable(self):
        return True

    def write(self, content):
        if not self.asked:
            self.asked = True
            signal.raise_signal(signal.SIGTERM)
        return len(content)

interruption.end_at_once()
sys.stdout = io.TextIOWrapper(io.BufferedWriter(Output()))
print("a line of progress", flush=True)
"""


def test_a_request_in_the_midst_of_a_line_is_heeded() -> None:
    """A second print would be refused there."""
    done = subprocess.run([sys.executable, "-c", PRINTS], capture_output=True, text=True)
    assert done.returncode == Exit.INTERRUPTED and done.stdout.startswith("asked to stop (SIGTERM)"), done.stderr
