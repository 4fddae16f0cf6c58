"""What docs/findings.md and the README say of the study `laptop` is what its published numbers say."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import pandas as pd
import pytest

from longshort.results import agreement, compare, published
from tests.support import findings
from tests.support.project import ROOT

INTERVAL = re.compile(r"[+-]?\d+\.\d+ % \[[^\]]+\]")


class Said(NamedTuple):
    metrics: pd.DataFrame
    study: dict[str, Any]
    findings: str
    readme: str


@pytest.fixture(scope="module")
def said() -> Said:
    """The pages with single spaces between words."""
    there = published.read(ROOT / "docs/findings/laptop.parquet")
    pages = [" ".join((ROOT / page).read_text(encoding="utf-8").split()) for page in ("docs/findings.md", "README.md")]
    return Said(there.metrics, there.study, *pages)


def test_its_answers_stand_in_the_findings(said: Said) -> None:
    for sentence in findings.sentences(said.metrics, said.study):
        assert sentence in said.findings


def test_its_table_does(said: Said) -> None:
    for row in findings.rows(said.metrics, said.study):
        assert " ".join(row.split()) in said.findings


def test_the_registered_questions_are_answered_by_their_rules(said: Said) -> None:
    for question, verdict in findings.verdicts(said.metrics, said.study).items():
        assert re.search(rf"\| \({question}\) [^|]+ \| \*\*{verdict}\*\* \|", said.findings), (question, verdict)
    assert f"| **{findings.way(said.metrics, said.study, 'constant')}** |" in said.findings


def test_what_it_says_beside_its_rules(said: Said) -> None:
    """The exact test of the dynamic alpha whose interval leaves 0 out, against Holm's second bound; LongPPL's lead."""
    numbers = compare.Numbers(said.metrics, said.study)
    found = {arm: findings.compared(numbers, said.study, arm, to) for arm, to in compare.claims(said.study)}
    p = sorted(one.p for one in found.values())
    assert found["view-ratio"].p == p[1] > 0.05 / (len(found) - 1) and f"(p = {p[1]:.2g})" in said.findings
    for arm, reference in (("hidden", "baseline"), ("hidden+output", "constant")):
        one = findings.compared(numbers, said.study, arm, reference, "longppl@1024")
        assert f"{arm} to {reference} {one.mean:+.1f} % [{one.low:+.1f}, {one.high:+.1f}]" in said.findings


@pytest.mark.parametrize("other", ["laptop-networkx", "laptop-wide"])
def test_another_corpus_and_another_size_agree_as_they_say(said: Said, other: str) -> None:
    sides = [agreement.read(ROOT / f"docs/findings/{name}.parquet") for name in ("laptop", other)]
    frame, overall = agreement.against(sides[0], sides[1])
    lines = agreement.text(frame, overall, *sides).splitlines()
    table = {tuple(cell.strip() for cell in line.split("|")[1:-1]) for line in lines if line.startswith("| ")}
    shown = [row for row in table if f"| {row[0]} | {row[1]} | {row[3]} | {row[4]} | {row[5]} |" in said.findings]
    assert len(shown) == 5 == overall["effects"]
    assert frame["agree"].all() and f"overall p = {overall['p']:.2g}" in said.findings


def test_a_second_size(said: Said) -> None:
    """Its table, what it claims, and what it costs at the training length beside the first."""
    wide = published.read(ROOT / "docs/findings/laptop-wide.parquet")
    for row in findings.rows(wide.metrics, wide.study):
        assert " ".join(row.split()) in said.findings
    quoted = [one for one in findings.sentences(wide.metrics, wide.study) if "Hidden" in one or "constant alpha" in one]
    for sentence in [*quoted, *(one for one in findings.sentences(wide.metrics, wide.study) if "A dynamic" in one)]:
        assert sentence in said.findings
    for side in (wide, said):
        numbers = compare.Numbers(side.metrics, side.study)
        one = findings.compared(numbers, side.study, "ratio-4x", "constant", "perplexity@128")
        assert f"{one.mean:+.1f} % [{one.low:+.1f}, {one.high:+.1f}]" in said.findings


def test_a_model_that_others_trained(said: Said) -> None:
    """Its table, its claims, and what is said beside them."""
    there = published.read(ROOT / "docs/findings/smollm2-cpu.parquet")
    shown = {"perplexity@512": 2, "perplexity@2048": 2, "symkl@512": 3, "symkl@2048": 3}
    for row in findings.rows(there.metrics, there.study, shown, effect=(4, 3)):
        assert " ".join(row.split()) in said.findings
    claims = [one for one in findings.sentences(there.metrics, there.study) if ", by symKL 2048 at step 12: " in one]
    assert len(claims) == 4 and all(one in said.findings for one in claims)
    numbers = compare.Numbers(there.metrics, there.study)
    for length in (512, 2048):
        for arm in ("constant", "ratio-4x"):
            one = findings.compared(numbers, there.study, arm, "baseline", f"perplexity@{length}")
            assert f"{one.mean:+.1f} % [{one.low:+.1f}, {one.high:+.1f}]" in said.findings
    one = findings.compared(numbers, there.study, "constant", "baseline", "symkl@512")
    assert f"{one.mean:+.3f} [{one.low:+.3f}, {one.high:+.3f}] nats" in said.findings


def test_the_readme_says_the_same(said: Said) -> None:
    first = said.readme.partition("## Try it")[0]
    quoted = INTERVAL.findall(first)
    assert len(quoted) >= 6
    for interval in quoted:
        assert interval in said.findings
    assert f"It goes {findings.way(said.metrics, said.study, 'constant').partition(' [')[0]} of the way" in first
