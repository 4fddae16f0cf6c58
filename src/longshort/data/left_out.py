"""What of a corpus is not used: counted by reason, and the first of each reason named."""

from __future__ import annotations

from typing import NamedTuple

from longshort.terminal import plain

# Of each reason so many are named, and so many documents may always be lost.
NAMED = FEWEST = 3


class Reason(NamedTuple):
    """Why something is not used, and what to do. lost: it is a document that the corpus should have had."""

    words: str
    remedy: str
    lost: bool = True


EMPTY = Reason("empty", "nothing needs to be done", lost=False)
NO_VALUE = Reason("null in place of a text", "nothing needs to be done", lost=False)
HIDDEN = Reason("hidden", "rename it, without the dot in front, if it belongs to the corpus", lost=False)
OTHER_KIND = Reason("of another kind", "convert it to .txt, .jsonl or .parquet if it belongs to the corpus", lost=False)
FOLDER = Reason("a folder with the name of a file", "the files in it are read; rename it", lost=False)
LOOP = Reason("a link to a folder that it lies in", "delete the link", lost=False)
NOT_UTF8 = Reason("not UTF-8", "convert it, e.g. iconv -f LATIN1 -t UTF-8, or delete it")
SURROGATE = Reason("half a surrogate pair", "it is half a letter: write the text anew, or delete it")
NOT_JSON = Reason("not JSON", "write one JSON object a line; it may have been cut")
NO_COLUMN = Reason("without the column", "set the column of the corpus, or delete it")
NO_TEXT = Reason("no text in the column", "set the column of the corpus to one of texts, or convert it")
DAMAGED = Reason("cut or damaged", "take a whole copy of the file")
UNREADABLE = Reason("not readable", "check its permissions")
NO_FILE = Reason("no file", "it is a link to nothing, a pipe or a device: delete it")
NAME = Reason("with a name that is not UTF-8", "rename it")


class LeftOut:
    """Filled while a corpus is read.

    Attributes:
        before: what stands before every name, where more than one corpus is read.
    """

    def __init__(self) -> None:
        self.before = ""
        self._found: dict[Reason, tuple[int, list[str]]] = {}

    def add(self, reason: Reason, where: str, more: str = "") -> None:
        """where: file and row. more: what is there instead."""
        count, named = self._found.get(reason, (0, []))
        if len(named) < NAMED:
            words = (self.before + (f"{where} ({more})" if more else where)).replace("\n", " ")
            named = [*named, plain(words).encode(errors="backslashreplace").decode()]
        self._found[reason] = count + 1, named

    def refuse_too_many(self, documents: int, share: float) -> None:
        """
        Args:
            documents: that can be used.
            share: of all documents that may be lost.

        Raises:
            ValueError: more are lost than that, and than FEWEST.
        """
        lost = sum(count for reason, (count, _) in self._found.items() if reason.lost)
        if lost > max(FEWEST, share * (documents + lost)):
            raise ValueError(
                f"{lost} of {documents + lost} documents cannot be used, more than data.max_left_out = {share:g} "
                f"allows; mend them, or raise it:\n{self.in_lines()}"
            )

    def in_lines(self) -> str:
        """A line a reason: how many, which ones first, and what to do."""
        return "\n".join(
            f"  {count} {reason.words}: {'; '.join(named)}{' ...' if count > NAMED else ''} -> {reason.remedy}"
            for reason, (count, named) in self._found.items()
        )

    def record(self) -> dict[str, dict[str, object]]:
        return {
            reason.words: {"count": count, "first": named, "remedy": reason.remedy}
            for reason, (count, named) in self._found.items()
        }

    def __len__(self) -> int:
        return sum(count for count, _ in self._found.values())
