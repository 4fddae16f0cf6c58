"""What is shown to a person may have been written by a job, a model or a corpus."""

from __future__ import annotations

import unicodedata


def plain(text: str) -> str:
    """The text without control characters (terminal escapes among them), but for line ends and tabs."""
    return "".join(letter for letter in text if letter in "\n\t" or unicodedata.category(letter) not in ("Cc", "Cf"))
