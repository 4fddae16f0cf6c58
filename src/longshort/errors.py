"""What ends a process, said in a line and without a traceback, and the exit code of each family.

Stages and the library raise; only `cli.py`, the stages' `main` and the Snakefile's handlers exit, through in_a_line().
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum

from longshort.terminal import never_fail_to_print, plain


class Exit(IntEnum):
    """Exit codes of stages and of `longshort`.

    DONE: the result is published. That a training diverged is a result, too.
    FAILED: what a LongshortError says, or an error that nobody foresaw, with its traceback. A job that lost its folder
        to another one, or found it owned, is one of these: it has published nothing.
    USAGE: the command line is wrong, as argparse and typer have it.
    INTERRUPTED: asked to stop by SIGTERM (a time limit, preemption, scancel, a person), as a shell reports it. What is
        finished is kept, and the next attempt goes on there.

    Where a signal ended the processes of a training, its number + 128, as a shell reports it: 137 after SIGKILL.
    """

    DONE = 0
    FAILED = 1
    USAGE = 2
    INTERRUPTED = 128 + signal.SIGTERM


class LongshortError(Exception):
    """What ends a process with a message instead of a traceback."""

    exit_code: int = Exit.FAILED


class UserError(LongshortError, ValueError):
    """What a person gave, edited, moved or lost: where it is, what is wrong, which value it is, what to do instead."""


class StudyError(UserError):
    """A mistake in the configuration, said with its place and its remedy."""


class JobFailed(LongshortError):
    """What a job started has failed."""

    def __init__(self, message: str, exit_code: int = Exit.FAILED) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Interrupted(SystemExit):
    """The job was asked to stop. Raised by a signal's handler, between any two lines: no `except Exception` may take it
    for a failure of what it interrupts, and it ends processes that have no in_a_line(), too."""

    def __init__(self) -> None:
        super().__init__(int(Exit.INTERRUPTED))


@contextmanager
def in_a_line() -> Iterator[None]:
    """Around what a process does: a LongshortError ends it with its message and exit code.

    Raises:
        SystemExit: in place of a LongshortError.
    """
    never_fail_to_print()
    try:
        yield
    except LongshortError as error:
        print(plain(str(error)), file=sys.stderr, flush=True)
        raise SystemExit(int(error.exit_code)) from None
