"""The formats of a table hold the same cells, and can be read."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from longshort.results import formats, long_table, tables
from longshort.results.columns import columns_of
from tests.support.latex import assert_compiles
from tests.support.results import make_runs, tidy_of


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (-2.25, 2.0, "differs by less than 2.3 %"),
        (-0.1, 99.1, "differs by less than 100 %"),
        (-0.00121, -0.001, "differs by less than 0.0013 %"),
        (0.0, 0.0, ""),
        (-1.0, 1e300, ""),
        (-1.0, math.inf, ""),
        (math.nan, math.nan, ""),
    ],
)
def test_an_equivalence_is_rounded_up(low: float, high: float, said: str) -> None:
    assert formats.equivalence(low, high, " %") == said


def test_what_is_not_compared_has_no_difference(metrics: pd.DataFrame, study: dict[str, Any]) -> None:
    columns = [column._replace(compared=column.key != "accuracy@32") for column in columns_of(study)]
    *values, differences = formats.panels(tidy_of(metrics, study), columns[:6], "baseline")
    (header,) = (column.header for column in columns if not column.compared)
    assert header in values[0].headers and header not in differences.headers


def test_the_primary_number_is_read_first(metrics: pd.DataFrame, study: dict[str, Any]) -> None:
    first = [
        formats.panels(tidy_of(metrics, study), columns_of(study), "baseline", primary)[0].headers
        for primary in ("perplexity@32", "symkl@16", None)
    ]
    assert "PPL 32" in first[0] and "symKL 16" in first[1] and "PPL 32" not in first[1] and first[2] == first[0]


def test_an_arrow_points_to_where_numbers_are_better() -> None:
    panel = formats.Panel(
        "", ["PPL", "score", "hours"], [False, True, None], [(4, "constant", [formats.Cell("1")] * 3)]
    )
    table = formats.PrintedTable("main", "Main", [panel], [])
    assert "| PPL ↓ | score ↑ | hours |" in formats.markdown(table)
    assert r"PPL $\downarrow$ & score $\uparrow$ & hours" in formats.latex(table, "main")
    page = formats.fragment(table)
    assert all(f">{header}<" in page for header in ("PPL ↓", "score ↑", "hours"))


def test_the_formats_agree(metrics: pd.DataFrame, study: dict[str, Any], tmp_path: Path) -> None:
    together = long_table.with_costs(metrics, make_runs(), 4)
    paths = tables.write_tables(together, study, tmp_path, make_runs())
    assert sorted(path.name for path in paths) == sorted(path.name for path in tmp_path.iterdir())
    for table in study["tables"]:
        name = table["name"]
        parquet = pd.read_parquet(tmp_path / f"{name}.parquet")
        csv = pd.read_csv(tmp_path / f"{name}.csv").astype(parquet.dtypes.to_dict())
        pd.testing.assert_frame_equal(parquet, csv, check_dtype=False)
        # The same cells; on a terminal what is too wide is divided.
        markdown = formats.markdown(tables.contents(together, study, table, make_runs()), 10**6)
        latex = (tmp_path / f"{name}.tex").read_text()
        assert latex.count("{") == latex.count("}")
        plain = latex.replace("$-$", "-").replace(r"$\pm$", "±").replace(r"\_", "_").replace(r"\%", "%")
        plain = re.sub(r"\\textbf{([^}]*)}", r"**\1**", plain)
        plain = re.sub(r"\\underline{([^}]*)}", r"_\1_", plain)
        rows = [line.split(" & ") for line in plain.splitlines() if line.endswith(r"\\") and " & " in line]
        written = [[text.strip(" \\") for text in row] for row in rows if row[1] != "arm"]
        lines = [line.strip("|").split("|") for line in markdown.splitlines() if line.startswith("|")]
        read = [[" ".join(text.split()) for text in line] for line in lines if line[1].strip(" -") not in ("arm", "")]
        assert written == [[text.strip() for text in line] for line in read]
        page = (tmp_path / f"{name}.html").read_text()
        cells = re.findall(r"<t[dh] (?:data-sort|scope=\"row\")[^>]*>(.*?)</t[dh]>", page)
        assert len(cells) == sum(len(row) for row in written)
        assert "http" not in page and "<script" not in page
    assert r"100 \%" in (tmp_path / "main.tex").read_text() and r"step\_linear" in (tmp_path / "main.tex").read_text()


@pytest.mark.latex
def test_latex_compiles_alone_and_in_a_paper(metrics: pd.DataFrame, study: dict[str, Any], tmp_path: Path) -> None:
    together = long_table.with_costs(metrics, make_runs(), 4)
    tables.write_tables(together, study, tmp_path, make_runs())
    assert_compiles(tmp_path, "tab:tiny-main")


def test_markdown_is_aligned_and_fits_a_terminal(metrics: pd.DataFrame, study: dict[str, Any]) -> None:
    long = {"perplexity": {"lengths": [2**power for power in range(3, 17)], "temperature_documents": 4}}
    wide = study | {"evaluations": study["evaluations"] | long}
    for block in tables.format_table(metrics, wide).split("\n\n")[1:-1]:
        widths = {len(line) for line in block.splitlines()}
        assert len(widths) == 1 and max(widths) <= formats.WIDTH
