"""A table as text: what stands in each cell, and the same for a terminal, a paper and a browser.

HTML and LaTeX are written here, not by pandas' Styler: it has no attribute for a cell (data-sort, by which the page
sorts), no button or link in a header, and no mark on a part of a cell (a bold mean beside a plain ± sd), so that each
cell would be written by hand all the same. Nor does its LaTeX shrink a wide table to the line, or compile alone.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Sequence
from decimal import ROUND_CEILING, Context
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from longshort.metrics.record import Column
from longshort.results import latex as latex_text

MOST_DECIMALS = 6
BEYOND_READING = 1e5  # a number is shown as a power of ten from here on
WIDTH = 200  # characters of the widest .md table
DAGGER = "†"


class Cell(NamedTuple):
    """number is marked as best or second; after is the rest of the cell; sort: what a sorted column goes by."""

    number: str
    after: str = ""
    best: bool = False
    second: bool = False
    sort: float = math.nan


class Panel(NamedTuple):
    """A block of columns with one row for each checkpoint and arm, or what else `of` calls it."""

    caption: str
    headers: list[str]
    higher_is_better: list[bool | None]
    rows: list[tuple[int, str, list[Cell]]]
    of: str = "arm"


class PrintedTable(NamedTuple):
    name: str
    title: str
    panels: list[Panel]
    notes: list[str]


def panels(
    tidy: pd.DataFrame, columns: Sequence[Column], compared_with: str, primary: str | None = None
) -> list[Panel]:
    """The values, then the differences at the last checkpoint, each in blocks of columns that belong together, that of
    the primary number first."""
    blocks: dict[str, list[Column]] = {column.block: [] for column in columns if column.key == primary}
    for column in columns:
        if column.compared or tidy.loc[tidy["column"].eq(column.key), "mean"].notna().any():
            blocks.setdefault(column.block, []).append(column)
    blocks = {name: block for name, block in blocks.items() if block}
    found = [_values(tidy, block) for block in blocks.values()]
    last = int(tidy["step"].max())
    rows = tidy[tidy["step"].eq(last) & tidy["reference"].notna()]
    if rows.empty:
        return found
    caption = f"Step {last}: difference to {compared_with.split(' (')[0]}"
    compared = [[column for column in block if column.compared] for block in blocks.values()]
    return found + [_differences(rows, block, caption) for block in compared if block]


def _values(tidy: pd.DataFrame, columns: list[Column]) -> Panel:
    headers, better = list[str](), list[bool | None]()
    cells: list[list[Cell]] = []
    for column in columns:
        rows = tidy[tidy["column"].eq(column.key)]
        headers.append(column.header)
        better.append(column.higher_is_better if column.compared else None)
        decimals = _decimals(rows, column)
        cells.append([_value(row, decimals) for row in rows.itertuples()])
        if rows["paper"].notna().any():
            headers.append("paper")
            better.append(None)
            cells.append([Cell("" if math.isnan(v) else number(v, decimals), sort=v) for v in rows["paper"]])
    return Panel("", headers, better, _by_row(tidy, cells))


def _differences(tidy: pd.DataFrame, columns: list[Column], caption: str) -> Panel:
    cells = []
    for column in columns:
        rows = tidy[tidy["column"].eq(column.key)]
        # Per cents are read to one decimal, whatever the column's own unit.
        decimals = 1 if column.relative else _decimals(rows, column)
        cells.append([_difference(row, decimals) for row in rows.itertuples()])
    headers = [f"{column.header} (%)" if column.relative else column.header for column in columns]
    return Panel(caption, headers, [column.higher_is_better for column in columns], _by_row(tidy, cells))


def _by_row(tidy: pd.DataFrame, columns: list[list[Cell]]) -> list[tuple[int, str, list[Cell]]]:
    keys = list(dict.fromkeys(zip(tidy["step"], tidy["arm"], strict=True)))
    return [(int(step), arm, list(row)) for (step, arm), row in zip(keys, zip(*columns, strict=True), strict=True)]


def _value(row: Any, decimals: int) -> Cell:
    """mean ± sd"""
    said = number(row.mean, decimals)
    if row.status != "ok":
        return Cell(row.status if row.n == 0 else f"{said}, {row.status}", sort=row.mean)
    spread = "" if math.isnan(row.sd) else f" ± {number(row.sd, decimals)}"
    return Cell(said, spread, bool(row.best), bool(row.second), row.mean)


def _difference(row: Any, decimals: int) -> Cell:
    """difference [low, high]; of the primary number the joint interval, and whether it leaves 0 out"""
    if row.status != "ok":
        return Cell(row.status)
    if math.isnan(row.difference):
        return Cell("no pair")
    judged = isinstance(row.verdict, str)
    low, high = (row.joint_low, row.joint_high) if judged else (row.low, row.high)
    decimals = shown_decimals(low, high, decimals)
    shown, *ends = (number(one, decimals, sign=True) for one in (row.difference, low, high))
    after = "" if math.isnan(low) else f" [{', '.join(ends)}]"
    after += {"yes": f" {DAGGER}", "no": " n. s."}[row.verdict] if judged else ""
    return Cell(shown, after + (f" (n = {row.difference_n})" if row.difference_n < row.n else ""), sort=row.difference)


def _decimals(rows: pd.DataFrame, column: Column) -> int:
    """Enough digits for three significant ones of the smallest symKL or cost, which span orders of magnitude."""
    means = rows["mean"].abs()
    means = means[np.isfinite(means) & means.gt(0)]
    if not (column.metric == "symkl" or column.metric.endswith(("_hours", "_operations"))) or means.empty:
        return column.decimals
    wanted = 2 - math.floor(math.log10(means.min()))
    return min(max(column.decimals, wanted), 5) if column.metric == "symkl" else min(max(1, wanted), 5)


def equivalence(low: float, high: float, unit: str) -> str:
    """The least margin that holds the interval of a difference, in words; empty where there is none.

    Within every larger margin the two arms are equivalent by two one-sided tests (Schuirmann 1987). Two significant
    digits, rounded up.
    """
    margin = max(-low, high)
    if not 0 < margin < BEYOND_READING:
        return ""
    return f"differs by less than {Context(prec=2, rounding=ROUND_CEILING).create_decimal(margin):f}{unit}"


def number(value: float, decimals: int, sign: bool = False) -> str:
    if math.isinf(value) or math.isnan(value):
        return str(value)
    if abs(value) >= BEYOND_READING:
        return f"{value:+.2e}" if sign else f"{value:.2e}"
    text = f"{value:+.{decimals}f}" if sign else f"{value:.{decimals}f}"
    return text if float(text) else text.lstrip("+-")


def shown_decimals(low: float, high: float, decimals: int) -> int:
    """Of an interval: more where an end that is not 0 would be shown as 0, as it matters on which side of it."""
    ends = [end for end in (low, high) if math.isfinite(end) and end]
    enough = (more for more in range(decimals, MOST_DECIMALS) if all(float(f"{end:.{more}f}") for end in ends))
    return next(enough, max(decimals, MOST_DECIMALS))


def effect(mean: float, low: float, high: float, decimals: int, unit: str = "") -> str:
    """A difference, and its interval if it has one."""
    shown, *ends = (number(one, shown_decimals(low, high, decimals), sign=True) for one in (mean, low, high))
    return f"{shown}{unit}" + (f" [{', '.join(ends)}]" if math.isfinite(low) and math.isfinite(high) else "")


# ---- for a terminal --------------------------------------------------------------------------------------------------


def markdown(table: PrintedTable, width: int = WIDTH) -> str:
    """Aligned for a terminal; what is wider than `width` characters is divided, one block below the other."""
    parts, said = [f"### {latex_text.one_line(table.title)}"], ""
    for panel in table.panels:
        if panel.caption != said:
            parts.append(f"**{panel.caption}**")
            said = panel.caption
        parts += [_aligned(some) for some in _divided(panel, width)]
    return "\n\n".join([*parts, "\n".join(f"- {latex_text.one_line(note)}" for note in table.notes)]) + "\n"


def _divided(panel: Panel, limit: int) -> list[list[list[str]]]:
    """The panel's columns as texts, with step and arm before each division."""
    head = [["step", *(str(step) for step, _, _ in panel.rows)], [panel.of, *(arm for _, arm, _ in panel.rows)]]
    body = []
    for place, header in enumerate(panel.headers):
        arrow = {None: "", True: " ↑", False: " ↓"}[panel.higher_is_better[place]]
        body.append([header + arrow, *_column([cells[place] for _, _, cells in panel.rows])])
    widths = [sum(3 + max(map(len, column)) for column in some) for some in (head, body)]
    parts = -(-widths[1] // max(1, limit - widths[0])) if sum(widths) > limit else 1
    return [head + [body[place] for place in places] for places in np.array_split(np.arange(len(body)), parts)]


def _column(cells: list[Cell]) -> list[str]:
    """Digits below digits: the marks of best and second take the same room as none."""
    marked = any(cell.best or cell.second for cell in cells)
    texts = []
    for cell in cells:
        plain = f"  {cell.number}  " if marked else cell.number
        texts.append(f"**{cell.number}**" if cell.best else f" _{cell.number}_ " if cell.second else plain)
    whole = [text for text, cell in zip(texts, cells, strict=True) if cell.after]
    before = max(map(len, whole or texts), default=0)
    after = max((len(cell.after) for cell in cells), default=0)
    return [
        (text.rjust(before) + cell.after.ljust(after)) if cell.after or not after else text.strip()
        for text, cell in zip(texts, cells, strict=True)
    ]


def _aligned(columns: list[list[str]]) -> str:
    steps = columns[0]
    columns = [
        [step if step != before else "" for step, before in zip(steps, ["", *steps], strict=False)],
        *columns[1:],
    ]
    drawn = []
    for column in columns:
        width = max(map(len, column))
        words = column is columns[1]
        texts = [text.ljust(width) if words else text.rjust(width) for text in column]
        drawn.append([texts[0], "-" * width if words else "-" * (width - 1) + ":", *texts[1:]])
    return "\n".join("| " + " | ".join(line) + " |" for line in zip(*drawn, strict=True))


# ---- for a paper -----------------------------------------------------------------------------------------------------

# A whole document when LaTeX starts with it, a float where a document has begun.
ALONE = r"""% In a paper: \usepackage{booktabs,graphicx}, then \input this file. It also compiles alone.
% By pdfLaTeX, XeLaTeX or LuaLaTeX. Of a letter that pdfLaTeX has not (CJK, say) it shows the number, U+957F; the other
% two show it in a font that has it.
\newif\ifalone
\makeatletter
\ifx\@nodocument\relax\alonefalse\else\alonetrue\fi
\makeatother
\ifalone
\documentclass[twocolumn]{article}
\usepackage{booktabs,graphicx}
\begin{document}
\fi
"""


def latex(table: PrintedTable, label: str) -> str:
    """A float over both columns; a panel is shrunk to the line where it is wider."""
    notes = " ".join(_breakable(latex_text.escape(note)) for note in table.notes)
    drawn = []
    for panel in table.panels:
        caption = f"{latex_text.escape(panel.caption)}\\par\\smallskip\n" if panel.caption else ""
        shrink = "\\resizebox{\\ifdim\\width>\\linewidth\\linewidth\\else\\width\\fi}{!}{"
        drawn.append(caption + shrink + _tabular(panel) + "}\n")
    return (
        f"{ALONE}{latex_text.LETTER}\n\\begin{{table*}}\n\\centering\n\\scriptsize\n\\setlength{{\\tabcolsep}}{{4pt}}\n"
        f"\\caption{{{latex_text.escape(table.title)}}}\n\\label{{tab:{label}}}\n"
        + "\\par\\medskip\n".join(drawn)
        + f"\\par\\medskip\n\\parbox{{\\linewidth}}{{\\raggedright {notes}}}\n\\end{{table*}}\n"
        "\\ifalone\\end{document}\\fi\n"
    )


def _tabular(panel: Panel) -> str:
    arrows = {None: "", True: r" $\uparrow$", False: r" $\downarrow$"}
    headers = [
        latex_text.escape(header) + arrows[better]
        for header, better in zip(panel.headers, panel.higher_is_better, strict=True)
    ]
    lines, before = [], None
    for step, arm, cells in panel.rows:
        if before is not None and step != before:
            lines.append(r"\midrule")
        texts = ["" if step == before else str(step), latex_text.escape(arm), *(_latex_cell(cell) for cell in cells)]
        lines.append(" & ".join(texts) + r" \\")
        before = step
    head = " & ".join(["step", panel.of, *headers]) + r" \\"
    layout = "rl" + "r" * len(headers)
    rows = "\n".join(["\\toprule", head, "\\midrule", *lines, "\\bottomrule"])
    return f"\\begin{{tabular}}{{{layout}}}\n{rows}\n\\end{{tabular}}"


def _latex_cell(cell: Cell) -> str:
    mark = r"\textbf{%s}" if cell.best else r"\underline{%s}" if cell.second else "%s"
    return mark % latex_text.escape(cell.number) + latex_text.escape(cell.after)


def _breakable(text: str) -> str:
    """Lets LaTeX break the long protocol names."""
    return re.sub(r"(\\&|(?<!\\)[/?=,])(?=\S)", r"\1\\allowbreak{}", text)


# ---- for a browser ---------------------------------------------------------------------------------------------------


def fragment(table: PrintedTable, links: dict[str, str] | None = None, folded: bool = False) -> str:
    """The table as HTML without a page around it.

    Args:
        links: arm -> where its runs are described; its cells lead there.
        folded: headers sort, a field filters the rows by arm, and what is not read first is folded: earlier
            checkpoints, and all columns but the first block's values and differences. The page brings the script.
    """
    parts = [f'<section class="table" id="table-{html.escape(table.name)}"><h3>{html.escape(table.title)}</h3>']
    if folded:
        parts.append(f'<input type="search" placeholder="only the {table.panels[0].of}s with ..." aria-label="filter">')
    shown: set[str] = set()
    for panel in table.panels:
        if not folded:
            parts.append(_html_panel(panel, links or {}, False))
        elif panel.caption in shown:
            about = f"{panel.caption + ': ' if panel.caption else ''}{', '.join(panel.headers)}"
            parts.append(_fold(about, _html_panel(panel, links or {}, True)))
        else:
            shown.add(panel.caption)
            parts += _by_checkpoint(panel, links or {})
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in table.notes)
    return "\n".join([*parts, f'<ul class="notes">{notes}</ul></section>'])


def _by_checkpoint(panel: Panel, links: dict[str, str]) -> list[str]:
    """The last checkpoint, with the models before any; the others folded."""
    last = max((step for step, _, _ in panel.rows), default=0)
    earlier = [row for row in panel.rows if row[0] not in (0, last)]
    now = [row for row in panel.rows if row[0] in (0, last)]
    found = [_html_panel(panel._replace(rows=now), links, True)]
    if earlier:
        steps = ", ".join(map(str, dict.fromkeys(step for step, _, _ in earlier)))
        found.append(_fold(f"Earlier: step {steps}", _html_panel(panel._replace(rows=earlier), links, True)))
    return found


def _fold(summary: str, content: str) -> str:
    return f"<details><summary>{html.escape(summary)}</summary>{content}</details>"


def _html_panel(panel: Panel, links: dict[str, str], sortable: bool) -> str:
    arrows = {None: "", True: " ↑", False: " ↓"}
    headers = ["step", panel.of]
    headers += [header + arrows[better] for header, better in zip(panel.headers, panel.higher_is_better, strict=True)]
    tag = 'button type="button"' if sortable else "span"
    head = "".join(f'<th scope="col"><{tag}>{html.escape(header)}</{tag.split()[0]}></th>' for header in headers)
    body = []
    for step, arm, cells in panel.rows:
        where = links.get(arm)
        row = [f'<td data-sort="{step}">{step}</td>', f'<th scope="row">{_linked(html.escape(arm), where)}</th>']
        for cell in cells:
            tag = "strong" if cell.best else "u" if cell.second else "span"
            text = f"<{tag}>{html.escape(cell.number)}</{tag}>{html.escape(cell.after)}"
            sort = "" if math.isnan(cell.sort) else repr(float(cell.sort))
            row.append(f'<td data-sort="{sort}">{_linked(text, where)}</td>')
        body.append(f"<tr>{''.join(row)}</tr>")
    caption = f"<caption>{html.escape(panel.caption)}</caption>" if panel.caption else ""
    return (
        f'<div class="scroll" tabindex="0"><table>{caption}<thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _linked(text: str, where: str | None) -> str:
    return f'<a href="{html.escape(where)}">{text}</a>' if where else text


STYLE = """
:root { color-scheme: light; --ink: #1a1a1a; --soft: #5b5b5b; --line: #d5d5d5; --link: #0b5394; }
body { font: 16px/1.5 Georgia, "Times New Roman", serif; color: var(--ink); margin: 0 auto; max-width: 72rem;
  padding: 1rem 1.25rem 4rem; background: #fff; }
h1 { font-size: 1.7rem; line-height: 1.2; } h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
h3 { margin: 1.6rem 0 .4rem; } a { color: var(--link); } td a, tbody th a { color: inherit; text-decoration: none; }
td a:hover, td a:focus, tbody th a:hover, tbody th a:focus { text-decoration: underline; color: var(--link); }
:focus-visible { outline: 2px solid var(--link); outline-offset: 1px; }
.scroll { overflow-x: auto; margin: .6rem 0; }
input[type=search] { font: 13px system-ui, sans-serif; padding: .2rem .4rem; border: 1px solid var(--line); }
table { border-collapse: collapse; font: 13px/1.35 system-ui, sans-serif; font-variant-numeric: tabular-nums;
  border-top: 2px solid var(--ink); border-bottom: 2px solid var(--ink); }
caption { text-align: left; font-weight: 600; padding: .3rem 0; }
th, td { padding: .22rem .6rem; text-align: right; white-space: nowrap; }
tbody th { text-align: left; font-weight: 400; }
thead th { border-bottom: 1px solid var(--ink); padding: 0; }
thead span { padding: .3rem .6rem; }
thead button { font: inherit; font-weight: 600; border: 0; background: none; padding: .3rem .6rem; cursor: pointer;
  color: inherit; width: 100%; text-align: right; }
thead th:nth-child(2) button { text-align: left; }
th[aria-sort=ascending] button::after { content: " ▲"; } th[aria-sort=descending] button::after { content: " ▼"; }
tbody tr:hover { background: #f5f7fa; }
.notes { color: var(--soft); font-size: .85rem; padding-left: 1.1rem; overflow-wrap: anywhere; }
"""


def page(table: PrintedTable) -> str:
    """The table as a page of its own."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(table.title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{STYLE}</style></head>\n<body>\n{fragment(table)}\n</body></html>\n"
    )
