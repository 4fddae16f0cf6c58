"""How each family of errors ends a process: its message in a line, no traceback, its exit code."""

from __future__ import annotations

import errno
import os
import signal

import pytest

from longshort.errors import Exit, JobFailed, StudyError, UserError, in_a_line
from longshort.jobs.ownership import Lost, Owned
from longshort.records.hub import NotFetched
from longshort.records.publish import Altered, NoSpace


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UserError("words"), Exit.FAILED),
        (StudyError("words"), Exit.FAILED),
        (Altered("words"), Exit.FAILED),
        (NotFetched("words"), Exit.FAILED),
        (NoSpace(errno.ENOSPC, "words"), Exit.FAILED),
        (Owned("words"), Exit.FAILED),
        (Lost("words"), Exit.FAILED),
        (JobFailed("words"), Exit.FAILED),
        (JobFailed("words", 128 + signal.SIGKILL), 137),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_error_of_ours_is_a_line_and_an_exit_code(
    error: Exception, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended, in_a_line():
        raise error
    said = capsys.readouterr().err
    assert ended.value.code == code and said.endswith("words\n") and said.count("\n") == 1


def test_an_error_that_nobody_foresaw_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError), in_a_line():
        os.getpid() / 0
