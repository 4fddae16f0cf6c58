"""What is shown to a person may have been written by a job, a model or a corpus, and be shown anywhere."""

from __future__ import annotations

import io
import locale
import os
import sys
import unicodedata


def plain(text: str) -> str:
    """The text without control characters (terminal escapes among them), but for line ends and tabs."""
    return "".join(letter for letter in text if letter in "\n\t" or unicodedata.category(letter) not in ("Cc", "Cf"))


def begin_in_utf8() -> None:
    """Where the locale has another encoding, begins this program anew in Python's UTF-8 mode, which its jobs inherit.

    Files name their encoding, but names of files, and what the engine reads and writes itself, go by the locale.
    """
    if not sys.flags.utf8_mode and not _is_utf8(locale.getencoding()):
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def never_fail_to_print() -> None:
    """From here on letters that the locale lacks are shown by their number: a message must not end what it is about."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and not _is_utf8(stream.encoding):
            stream.reconfigure(errors="backslashreplace")


def _is_utf8(encoding: str) -> bool:
    return encoding.lower().replace("-", "") == "utf8"
