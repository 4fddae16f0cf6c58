"""The report as a reader has it: in a browser, without a network, by mouse or keyboard, and on paper."""

from __future__ import annotations

import asyncio
import base64
import re
from pathlib import Path
from typing import Any

import pytest

from longshort.results import long_table, plots, report
from tests.support import browser
from tests.support.results import STYLE, make_metrics, make_runs, make_study

pytestmark = pytest.mark.page


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, study, runs = tmp_path_factory.mktemp("report"), make_study(), make_runs()
    metrics = long_table.with_costs(make_metrics(), runs, 4)
    pictures = [path for path in plots.write_plots(metrics, study, folder, STYLE) if path.suffix == ".png"]
    (folder / "report.html").write_text(report.page(metrics, runs, study, pictures))
    return folder / "report.html"


def visit(file: Path, profile: Path, what: Any) -> Any:
    async def session() -> Any:
        async with browser.opened(file, profile) as page:
            result = await what(page)
            return result, page.requests, page.complaints

    return asyncio.run(session())


def test_it_is_whole_and_asks_for_nothing(file: Path, tmp_path: Path) -> None:
    async def look(page: browser.Page) -> dict[str, Any]:
        return {
            "pictures": await page.run("[...document.images].map(i => i.complete && i.naturalWidth)"),
            "rows": await page.run("document.querySelector('#table-main tbody').rows.length"),
            "dead": await page.run(
                "[...document.querySelectorAll('a')].filter(a => !document.getElementById("
                "decodeURIComponent(a.hash.slice(1)))).map(a => a.outerHTML)"
            ),
            "wide": await page.run("document.documentElement.scrollWidth - document.documentElement.clientWidth"),
        }

    seen, requests, complaints = visit(file, tmp_path / "profile", look)
    assert len(seen["pictures"]) == 9 and all(width == 2100 for width in seen["pictures"])
    assert seen["rows"] == 1 + 5 and seen["dead"] == [] and seen["wide"] <= 0
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == [] and complaints == []
    assert not re.search(r"(src|href)=\"(?!data:|#)", file.read_text())


def test_it_opens_with_its_answer_and_the_effects(file: Path, tmp_path: Path) -> None:
    """Both are seen without scrolling; earlier checkpoints and further columns are folded, and rows can be filtered."""

    async def look(page: browser.Page) -> dict[str, Any]:
        await page.call("Emulation.setDeviceMetricsOverride", width=1400, height=900, deviceScaleFactor=1, mobile=False)
        main = "document.querySelector('#table-main')"
        seen = {
            "end": await page.run("document.querySelector('#plot-effects img').getBoundingClientRect().bottom"),
            "shown": await page.run(
                f"[...{main}.querySelectorAll('table')].filter(t => !t.closest('details')).map(t => "
                "[...new Set([...t.tBodies[0].rows].map(r => r.cells[0].textContent))].join())"
            ),
            "folds": await page.run(f"[...{main}.querySelectorAll('summary')].map(s => s.textContent)"),
        }
        await page.run(
            f"{{ const field = {main}.querySelector('input'); field.value = 'Const';"
            " field.dispatchEvent(new Event('input')) }"
        )
        kept = f"[...{main}.querySelectorAll('tbody tr')].filter(r => !r.hidden).map(r => r.cells[1].textContent)"
        return seen | {"kept": set(await page.run(kept))}

    seen, _, complaints = visit(file, tmp_path / "profile", look)
    assert seen["end"] <= 900 and seen["shown"] == ["0,4", "4"] and complaints == []
    assert seen["folds"][0] == "Earlier: step 2" and any("symKL" in fold for fold in seen["folds"])
    assert seen["kept"] == {"constant"}


def test_it_is_used_without_a_mouse(file: Path, tmp_path: Path) -> None:
    """Tab reaches a column's header, Enter sorts by it; a number leads to its run, whose folds open."""

    async def use(page: browser.Page) -> dict[str, Any]:
        await page.run("document.querySelector('#table-main thead button').focus()")
        for _ in range(3):
            await page.press("Tab", 9)
        header = await page.run("document.activeElement.textContent")
        await page.press("Enter", 13)
        values = "[...document.querySelector('#table-main tbody').rows].map(r => Number(r.cells[3].dataset.sort))"
        sorted_up = await page.run(values)
        await page.run("document.querySelector('#table-main tbody a[href=\"#arm-constant\"]').focus()")
        await page.press("Enter", 13)
        await page.wait("[...document.querySelectorAll('#arm-constant > details')].every(d => d.open)")
        return {
            "header": header,
            "values": sorted_up,
            "said": await page.run("document.querySelector('#table-main th[aria-sort]').ariaSort"),
            "hash": await page.run("location.hash"),
            "open": await page.run("[...document.querySelectorAll('#arm-constant > details')].map(d => d.open)"),
        }

    seen, _, complaints = visit(file, tmp_path / "profile", use)
    assert seen["header"].startswith("PPL 8") and seen["said"] == "ascending"
    assert seen["values"] == sorted(seen["values"]) and len(set(seen["values"])) > 3
    assert seen["hash"] == "#arm-constant" and seen["open"] == [True, True] and complaints == []


def test_it_prints(file: Path, tmp_path: Path) -> None:
    async def print_it(page: browser.Page) -> dict[str, Any]:
        printed = await page.call("Page.printToPDF", preferCSSPageSize=True)
        return {
            "pdf": printed["data"],
            "open": await page.run("[...document.querySelectorAll('details')].every(d => d.open)"),
        }

    seen, _, _ = visit(file, tmp_path / "profile", print_it)
    pdf = base64.b64decode(seen["pdf"])
    assert pdf.startswith(b"%PDF") and pdf.count(b"/Type /Page\n") + pdf.count(b"/Type /Page ") >= 5
    assert seen["open"]
