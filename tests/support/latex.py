"""Tables as LaTeX takes them: each alone, and all of them in a paper of two columns."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

PAPER = r"""\documentclass[twocolumn]{article}
\usepackage{booktabs,graphicx}
\begin{document}
Text before. %s Text after, see Table~\ref{%s}.
\end{document}
"""


def assert_compiles(folder: Path, label: str) -> None:
    """Every .tex of a folder; the paper refers to a table by its label, so it is compiled twice."""
    program = shutil.which("pdflatex")
    assert program is not None, "needs pdflatex (Debian: apt-get install texlive-latex-recommended)"
    names = sorted(path.name for path in folder.glob("*.tex"))
    assert names
    (folder / "paper.tex").write_text(PAPER % (" ".join(rf"\input{{{name}}}" for name in names), label))
    for name in [*names, "paper.tex", "paper.tex"]:
        command = [program, "-interaction=nonstopmode", "-halt-on-error", name]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-3000:]
        assert (folder / name).with_suffix(".pdf").stat().st_size > 10_000
    assert "undefined" not in done.stdout and "Overfull" not in done.stdout
