"""What two documents have in common, by sets of words in a row."""

from __future__ import annotations

import random

import pytest

from longshort.data.near_copies import HeldOut, passages


def words(count: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    return [f"w{draw.randrange(10**6)}" for _ in range(count)]


def by_definition(text: str, other: str) -> float:
    """Shared runs of 13 words over those of the document that has fewer."""
    mine, theirs = ({tuple(all[i : i + 13]) for i in range(len(all) - 12)} for all in (text.split(), other.split()))
    return len(mine & theirs) / min(len(mine), len(theirs))


def test_the_share_is_that_of_the_shorter_document_whichever_that_is() -> None:
    story = words(400, 1)
    held_out = {"story": " ".join(story), "other": " ".join(words(300, 2)), "short": "fewer than thirteen words"}
    index = HeldOut()
    for name, text in held_out.items():
        index.add(name, text)
    collection = " ".join([*words(3000, 3), *story[50:250], *words(3000, 4)])
    excerpt = " ".join([*story[100:160], *words(40, 5)])
    for text in (collection, excerpt):
        closest = index.closest(passages(text))
        assert closest is not None and closest.name == "story"
        assert closest.share == pytest.approx(by_definition(text, held_out["story"]), abs=1e-12)
    assert index.closest(passages(" ".join(words(500, 6)))) is None
    assert index.closest(passages("fewer than thirteen words")) is None and HeldOut().closest(passages(excerpt)) is None


def test_a_passage_that_both_repeat_counts_once() -> None:
    """As a line of a licence, or of a table: ten times in each, it makes no copies of them."""
    line, index = words(13, 1), HeldOut()
    held_out, text = (" ".join([*line * 10, *words(300, seed)]) for seed in (2, 3))
    index.add("held out", held_out)
    closest = index.closest(passages(text))
    share = by_definition(text, held_out)
    assert closest is not None and closest.share == pytest.approx(share, abs=1e-12) and share < 0.1


def test_a_passage_that_several_held_out_documents_have_counts_for_each() -> None:
    common, index = words(60, 1), HeldOut()
    index.add("first", " ".join([*common, *words(140, 2)]))
    index.add("second", " ".join([*common, *words(20, 3)]))
    closest = index.closest(passages(" ".join([*common, *words(500, 4)])))
    assert closest is not None and closest.name == "second" and closest.share == 48 / 68


def test_case_and_what_stands_between_words_do_not_count() -> None:
    text = "Im Anfang war das Wort, und das Wort war bei Gott; — GRÖSSE zählt nicht."
    same = "im anfang\nwar das wort und das wort war bei gott größe zählt nicht".replace("größe", "grösse")
    assert len(passages(text)) == 2 and (passages(text) == passages(same)).all()
    assert len(passages(text.replace("Wort", "Ort"))) == 2
    assert not set(passages(text)) & set(passages(text.replace("Wort", "Ort")))
