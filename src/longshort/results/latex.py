"""Any text as LaTeX, for every engine. pdfLaTeX knows the letters of few scripts: what it has not becomes a command
where there is one, and is shown by its number where there is none."""

from __future__ import annotations

import re
import unicodedata

from longshort.terminal import plain

# pdfLaTeX stops at a letter that it has not; XeLaTeX and LuaLaTeX, which know \Umathchar, take all.
LETTER = r"\DeclareRobustCommand\unicodeletter[2]{\ifdefined\Umathchar#2\else\texttt{U+#1}\fi}"

_GREEK = "αβγδεζηθικλμνξπρστυφχψωΓΔΘΛΞΠΣΥΦΨΩ"
_COMMANDS = """
alpha beta gamma delta varepsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau upsilon varphi chi psi
omega Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega
"""
_SIGNS = {
    **dict(zip(_GREEK, _COMMANDS.split(), strict=True)),
    **{"≤": "leq", "≥": "geq", "≠": "neq", "≈": "approx", "∞": "infty", "×": "times", "·": "cdot", "÷": "div"},
    **{"±": "pm", "→": "rightarrow", "←": "leftarrow", "↑": "uparrow", "↓": "downarrow", "∈": "in", "∑": "sum"},
    **{"∂": "partial", "√": "surd", "∇": "nabla", "ℓ": "ell", "µ": "mu", "∼": "sim", "∝": "propto", "‖": "Vert"},
}
_TEXT = {
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$"},
    **{sign: "\\" + sign for sign in "&%$#_{}"},
    "|": r"\textbar{}",
    **{"†": r"$^\dagger$", "°": r"$^\circ$", "²": "$^2$", "³": "$^3$", "−": "$-$", "\u00a0": "~", "…": r"\dots{}"},
    **{"–": "--", "—": "---", "‘": "`", "’": "'", "“": "``", "”": "''"},
    **{"ß": r"\ss{}", "ø": r"\o{}", "Ø": r"\O{}", "æ": r"\ae{}", "Æ": r"\AE{}", "œ": r"\oe{}", "Œ": r"\OE{}"},
    **{"ł": r"\l{}", "Ł": r"\L{}", "ı": r"\i{}", "å": r"\aa{}", "Å": r"\AA{}", "§": r"\S{}"},
    **{sign: f"$\\{command}$" for sign, command in _SIGNS.items()},
}
# Of letters that Unicode takes apart: the mark that follows the letter.
_MARKS = dict(zip("\u0300\u0301\u0302\u0303\u0308\u0304\u0307\u030c\u0306\u030b\u0327", "`'^~\"=.vuHc", strict=True))


def one_line(text: str) -> str:
    """Without line ends, at which the argument of a command would end, and without control characters."""
    return plain(re.sub(r"\s*[\n\r\v\f\u2028\u2029]\s*", " ", text))


def escape(text: str) -> str:
    """Text as LaTeX shows it; a minus before a number is one."""
    escaped = "".join(map(_letter, unicodedata.normalize("NFC", one_line(text))))
    return re.sub(r"(^|[ \[])-(?=\d)", r"\1$-$", escaped)


def _letter(letter: str) -> str:
    if letter in _TEXT:
        return _TEXT[letter]
    if letter.isascii():
        return letter
    base, *marks = list(unicodedata.normalize("NFD", letter))
    if len(marks) == 1 and marks[0] in _MARKS and base.isascii() and base.isalpha():
        return f"\\{_MARKS[marks[0]]}{{{base}}}"
    return f"\\unicodeletter{{{ord(letter):04X}}}{{{letter}}}"
