"""What people write in titles and notes, as LaTeX takes it."""

from __future__ import annotations

from pathlib import Path

import pytest

from longshort.results import formats, latex
from tests.support.latex import assert_compiles

WRITTEN = "Größe α ≤ 0.5 ± ∞, «é» — Łódź, Erdős, piñata,\n\n長さ の 研究 \u202e 🙂 100 % of {a_b}\\c ~ x^2 #1\n\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("α ≤ 5", r"$\alpha$ $\leq$ 5"),
        ("Größe, e\u0301", r"Gr\"{o}\ss{}e, \'{e}"),
        ("長", r"\unicodeletter{9577}{長}"),
        ("one\n\n two\x07", "one two"),
        ("a | b", r"a \textbar{} b"),
        ("-3 [-1, a-2]", "$-$3 [$-$1, a-2]"),
    ],
)
def test_text_is_escaped(text: str, said: str) -> None:
    assert latex.escape(text) == said


def test_a_line_breaks_at_signs_of_a_protocol_and_not_within_a_letter() -> None:
    assert formats._breakable(latex.escape("a/b?c=ā")) == r"a/\allowbreak{}b?\allowbreak{}c=\allowbreak{}\={a}"


@pytest.mark.latex
def test_any_title_and_note_compiles(tmp_path: Path) -> None:
    panel = formats.Panel(WRITTEN, ["PPL ≥ 32"], [True], [(2, "baseline", [formats.Cell("1.0", " ± 0.1")])])
    table = formats.PrintedTable("main", WRITTEN, [panel], [WRITTEN, "", "a\n\nb"])
    (tmp_path / "main.tex").write_text(formats.latex(table, "tiny-main"), encoding="utf-8")
    assert_compiles(tmp_path, "tab:tiny-main")
