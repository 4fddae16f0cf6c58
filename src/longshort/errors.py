"""What is wrong with what a person gave, edited, moved or lost: said in a line, and no traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from longshort.terminal import plain


class UserError(ValueError):
    """Says where it is, what is wrong, which value it is, and what to do instead."""


class StudyError(UserError):
    """A mistake in the configuration, said with its place and its remedy."""


@contextmanager
def in_a_line() -> Iterator[None]:
    """Around what a process does: a UserError ends it with its message and exit code 1.

    Raises:
        SystemExit: in place of a UserError.
    """
    try:
        yield
    except UserError as error:
        raise SystemExit(plain(str(error))) from None
