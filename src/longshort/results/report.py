"""The report of a study: one page with everything in it, made from its numbers and from how its runs were made.

`python -m longshort.results.report --metrics FILE --runs FILE --study FILE --plots PNG... --out FILE`
"""

from __future__ import annotations

import argparse
import base64
import json
import math
from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from longshort.errors import in_a_line
from longshort.identity.code import refuse_changed_code
from longshort.metrics.catalog import EFFECTS, scores_of
from longshort.metrics.record import Plot
from longshort.records import study_json
from longshort.records.publish import write_atomic
from longshort.results import (
    answers,
    compare,
    formats,
    long_table,
    notes,
    plots_compared,
    predictors,
    replicates,
    tables,
)
from longshort.results.long_table import BASE_SEED
from longshort.results.plots import plots_of_study

SCRIPT = """
document.querySelectorAll("thead button").forEach(button => button.addEventListener("click", () => {
  const head = button.parentElement, table = head.closest("table"), body = table.tBodies[0];
  const place = [...head.parentElement.children].indexOf(head);
  const up = head.getAttribute("aria-sort") !== "ascending";
  table.querySelectorAll("thead th").forEach(other => other.removeAttribute("aria-sort"));
  head.setAttribute("aria-sort", up ? "ascending" : "descending");
  const key = row => { const cell = row.children[place], number = cell.dataset.sort;
    return number === undefined ? cell.textContent : number === "" ? null : Number(number); };
  const order = (a, b) => a === null || b === null ? (a === null) - (b === null)
    : (up ? 1 : -1) * (typeof a === "number" ? a - b : a.localeCompare(b));
  [...body.rows].map(row => [key(row), row]).sort((a, b) => order(a[0], b[0])).forEach(pair => body.append(pair[1]));
}));
document.querySelectorAll("section.table input").forEach(input => input.addEventListener("input", () => {
  for (const row of input.closest("section").querySelectorAll("tbody tr"))
    row.hidden = !row.cells[1].textContent.toLowerCase().includes(input.value.trim().toLowerCase());
}));
const open = target => {
  for (let at = target; at; at = at.parentElement) if (at.tagName === "DETAILS") at.open = true; };
const follow = () => { const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (target) { open(target); target.querySelectorAll(":scope > details").forEach(open); target.scrollIntoView(); } };
addEventListener("hashchange", follow); follow();
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach(one => { one.open = true; }));
"""

STYLE = (
    formats.STYLE
    + """
figure { margin: 1.5rem 0; } figure img { max-width: 100%; height: auto; } figcaption { color: var(--soft); }
nav a { margin-right: 1rem; white-space: nowrap; } h1, header p { margin: .4rem 0; } .answer h2 { margin-top: 1rem; }
.answer p { margin: .35rem 0; } .answer figure { margin: .6rem 0; } .answer figcaption { display: none; }
details { margin: .3rem 0; } summary { cursor: pointer; }
pre { background: #f5f7fa; padding: .6rem; overflow-x: auto; font-size: 12px; white-space: pre-wrap;
  overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; font-size: .85rem; margin: .4rem 0; }
dd { margin: 0; overflow-wrap: anywhere; } td.left { text-align: left; white-space: normal; }
@media print { body { max-width: none; padding: 0; font-size: 10pt; } nav, input { display: none; }
  table { font-size: 6.5pt; }
  .scroll { overflow: visible; } th, td { padding: .08rem .25rem; } figure, tr { break-inside: avoid; }
  h2, h3 { break-after: avoid; } td a, tbody th a { text-decoration: none; } pre { font-size: 6.5pt; } }
"""
)


# ---- sections --------------------------------------------------------------------------------------------------------


def page(metrics: pd.DataFrame, runs: pd.DataFrame, study: dict[str, Any], plots: list[Path]) -> str:
    """The whole report; nothing in it asks for anything outside."""
    links = {name: f"#arm-{name}" for name in [*replicates.models(study), *(arm["name"] for arm in study["arms"])]}
    numbers = compare.Numbers(metrics, study)
    made = {}
    for table in study["tables"]:
        tidy = tables.tidy_table(metrics, study, table, numbers)
        made[table["name"]] = tables.contents(metrics, study, table, runs, tidy)
    first = "main" if "main" in made else next(iter(made))
    pictures = {path.stem: path for path in plots}
    shown = [plot for plot in plots_of_study(study) if plot.name in pictures]
    sections = {
        "Answer": _sentences(answers.to_question(numbers, study))
        + "".join(_figure(plot, pictures[plot.name]) for plot in shown if plot == EFFECTS)
        + _primary(study)
        + _sentences(answers.besides(metrics, study, numbers)),
        "Main table": formats.fragment(made[first], links, folded=True),
        "Plots": "".join(_figure(plot, pictures[plot.name]) for plot in shown if plot != EFFECTS),
        "Tables": "".join(formats.fragment(table, links, folded=True) for name, table in made.items() if name != first)
        + _correlations(metrics, study),
        "What differs between the arms": _configuration(study),
        "Cost": _costs(runs, study),
        "Failures": _failures(runs),
        "Accepted changes of the code": _accepted(study),
        "Provenance": _provenance(runs, study),
        "How to reproduce": _reproduce(metrics, study),
    }
    body, menu = [], []
    for title, content in sections.items():
        if content:
            identity = title.lower().replace(" ", "-")
            extra = ' class="answer"' if title == "Answer" else ""
            body.append(f'<section id="{identity}"{extra}><h2>{escape(title)}</h2>{content}</section>')
            menu.append(f'<a href="#{identity}">{escape(title)}</a>')
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(study["title"])}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">\n'
        f"<style>{STYLE}</style></head>\n<body>\n<header><h1>{escape(study['title'])}</h1>"
        f"<p>{escape(study['question'])}</p><nav>{' '.join(menu)}</nav></header>\n<main>\n"
        + "\n".join(body)
        + f"\n</main>\n<script>{SCRIPT}</script>\n</body></html>\n"
    )


def _sentences(lines: list[str]) -> str:
    return "".join(f"<p>{escape(line)}</p>" for line in lines)


def _primary(study: dict[str, Any]) -> str:
    seeds, family = len(study["seeds"]), compare.comparisons(study)
    held = f"the {family} effects that the study claims" if study.get("claims") else f"all {family} comparisons"
    return (
        f'<p class="notes">{seeds} seed{"s" if seeds > 1 else ""}; intervals hold together for {held}. '
        f"{notes.exact_test(study)} Every number leads to the runs behind it.</p>"
    )


def _figure(plot: Plot, path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    caption = escape(plot.caption)
    return (
        f'<figure id="plot-{plot.name}"><img src="data:image/png;base64,{data}" alt="{caption}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _rows(head: Iterable[str], rows: Iterable[Iterable[str]], caption: str = "") -> str:
    """A table of words; the cells are HTML."""
    top = "".join(f'<th scope="col"><button type="button">{escape(name)}</button></th>' for name in head)
    body = "".join("<tr>" + "".join(f'<td class="left">{cell}</td>' for cell in row) + "</tr>" for row in rows)
    said = f"<caption>{escape(caption)}</caption>" if caption else ""
    table = f"<table>{said}<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="scroll" tabindex="0">{table}</div>'


def _correlations(metrics: pd.DataFrame, study: dict[str, Any]) -> str:
    if "misalignment" not in study["evaluations"] or not scores_of(study["evaluations"]):
        return ""
    rows, labels = [], predictors.explaining(study)
    for explaining, explained, one in predictors.correlations(metrics, study):
        ends = [plots_compared.interval(part) for part in (one[:3], one[3:6])]
        rows.append([labels[explaining], explained.label, *ends, str(one.runs), str(one.points)])
    head = ["of", "with", "Pearson", "Spearman", "runs", "checkpoints"]
    drawn = "bases" if predictors.over_bases(study) else "runs"
    caption = f"Correlation with long-context scores (95 % bootstrap intervals over {drawn})"
    return f'<section id="table-correlation"><h3>Correlations</h3>{_rows(head, rows, caption)}</section>'


def _configuration(study: dict[str, Any]) -> str:
    """The settings in which not all arms agree, one column each."""
    flat = {arm["name"]: _flat(arm["settings"]) for arm in study["arms"]}
    keys = list(dict.fromkeys(key for settings in flat.values() for key in settings))
    differing = [key for key in keys if len({json.dumps(settings.get(key)) for settings in flat.values()}) > 1]
    about = {arm["name"]: arm["description"] for arm in study["arms"]}
    rows = [
        [escape(name), escape(about[name]), *(escape(_short(settings.get(key))) for key in differing)]
        for name, settings in flat.items()
    ]
    shared = {key: value for key, value in next(iter(flat.values())).items() if key not in differing}
    text = "\n".join(f"{key}: {_short(value)}" for key, value in [*shared.items(), *_flat(study["settings"]).items()])
    return (
        _rows(["arm", "what it is", *differing], rows)
        + f"<details><summary>What all arms share</summary><pre>{escape(text)}</pre></details>"
    )


def _flat(settings: dict[str, Any], before: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{before}{key}.")
        else:
            found[f"{before}{key}"] = value
    return found


def _short(value: Any) -> str:
    return "–" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _costs(runs: pd.DataFrame, study: dict[str, Any]) -> str:
    """Cost planned against spent, by arm."""
    by_processor = study.get("device") == "cpu" and long_table.knows_cpu_time(runs)
    measured, unit = ("cpu_seconds", "CPU-hours") if by_processor else ("device_seconds", "device-hours")
    rows = []
    for arm, stages in runs.groupby("arm", sort=False):
        spent = stages[measured].sum(min_count=1) / 3600
        planned = stages["planned_seconds"].sum(min_count=len(stages)) / 3600
        taken = stages["device_seconds"].sum(min_count=1) / 3600
        sources = "; ".join(str(source) for source in stages["planned_from"].dropna().unique())
        rows.append(
            [
                escape(str(arm)),
                "not recorded" if math.isnan(planned) else f"{planned:.4f}",
                "none yet" if math.isnan(spent) else f"{spent:.4f}",
                "" if math.isnan(planned) or not planned else f"{taken / planned:.2f}",
                escape(sources),
            ]
        )
    head = ["arm", "planned (device-hours)", f"spent ({unit})", "device-hours / planned", "planned from"]
    note = "Planned: the estimate of longshort plan when the jobs were first asked for. "
    if by_processor:
        note += "CPU-hours: time on processors, whatever else the machine did meanwhile. "
    note += "An arm that shares runs with another one shows their cost, too."
    return _rows(head, rows) + f'<p class="notes">{note}</p>'


def _failures(runs: pd.DataFrame) -> str:
    failed = runs[runs["status"].ne("ok")]
    if failed.empty:
        return "<p>None: every training and every evaluation ended as it should.</p>"
    rows = [
        [_to(str(one.arm)), str(one.seed), escape(str(one.stage)), escape(str(one.status)), _tail(one)]
        for one in failed.itertuples()
    ]
    return _rows(["arm", "seed", "stage", "ended", "last lines of its log"], rows)


def _tail(one: Any, lines: int = 6) -> str:
    text = str(one.log_tail) if isinstance(one.log_tail, str) else ""
    return f"<pre>{escape(chr(10).join(text.splitlines()[-lines:]))}</pre>"


def _to(arm: str) -> str:
    return f'<a href="#arm-{escape(arm)}">{escape(arm)}</a>'


def _accepted(study: dict[str, Any]) -> str:
    rows = [
        [escape(one["arm"]), escape(one["time"]), escape(", ".join(one["modules"])), escape(one["because"])]
        for one in study.get("accepted", [])
    ]
    return _rows(["arm", "when", "modules", "because"], rows) if rows else ""


FACTS = {
    "run": "run", "status": "status", "run_id": "run id", "code": "code", "commit": "commit", "data": "data",
    "environment": "environment", "hardware": "hardware", "host": "host", "job": "job", "finished": "finished",
    "attempts": "attempts", "path": "record", "log": "log",
}  # fmt: skip


def _provenance(runs: pd.DataFrame, study: dict[str, Any]) -> str:
    """Of every arm and seed, how each of its numbers was made."""
    parts = []
    for arm, of_arm in runs.groupby("arm", sort=False):
        inside = []
        for seed, stages in of_arm.groupby("seed", sort=False):
            label = f"seed {seed}" if seed != BASE_SEED else "base model"
            spec = str(stages["spec"].iloc[0])
            about = "".join(_stage(one) for one in stages.itertuples())
            about += f"<details><summary>specification</summary><pre>{escape(spec)}</pre></details>"
            inside.append(
                f"<details><summary>{escape(label)}: run {escape(stages['run'].iloc[0])}</summary>{about}</details>"
            )
        name = escape(str(arm))
        parts.append(f'<section id="arm-{name}" tabindex="-1"><h3>{name}</h3>{"".join(inside)}</section>')
    return "".join(parts)


def _stage(one: Any) -> str:
    facts = "".join(
        f"<dt>{escape(word)}</dt><dd>{escape(str(getattr(one, name)))}</dd>"
        for name, word in FACTS.items()
        if not pd.isna(getattr(one, name))
    )
    tail = one.log_tail if isinstance(one.log_tail, str) else ""
    log = f"<details><summary>last lines of the log</summary><pre>{escape(tail)}</pre></details>" if tail else ""
    return f"<h4>{escape(one.stage)}</h4><dl>{facts}</dl>{log}"


def _reproduce(metrics: pd.DataFrame, study: dict[str, Any]) -> str:
    commits = sorted({str(commit) for commit in metrics["commit"].dropna() if commit})
    environments = sorted({str(one) for one in metrics["environment"].dropna() if one})
    first = commits[0].removesuffix("-dirty") if commits else "COMMIT"
    commands = (
        f"git checkout {first}\nmake demo        # makes .venv from envs/requirements.lock\n"
        f".venv/bin/snakemake all --cores 2 --config study={study['name']}\n"
        f".venv/bin/longshort why main {study['arms'][0]['name']} COLUMN --study {study['name']}"
    )
    said = [f"Commits: {', '.join(commits) or 'unknown'}", *(f"Environment: {one}" for one in environments)]
    if any(commit.endswith("-dirty") for commit in commits):
        said.append("A commit that ends in -dirty had uncommitted changes: it does not hold the whole source.")
    return f"<pre>{escape(commands)}</pre>" + "".join(f'<p class="notes">{escape(line)}</p>' for line in said)


@in_a_line()
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Writes a study's report.")
    parser.add_argument("--metrics", type=Path, required=True, help="the study's metrics.parquet")
    parser.add_argument("--runs", type=Path, required=True, help="the study's runs.parquet")
    parser.add_argument("--study", type=Path, required=True, help="the study's study.json")
    parser.add_argument("--plots", type=Path, nargs="+", required=True, help="the study's plots (png)")
    parser.add_argument("--out", type=Path, required=True, help="HTML to write")
    parser.add_argument("--seal", help="refuse to run if the study's is another one")
    parser.add_argument("--code", help="refuse to run if the code's hash is another one")
    options = parser.parse_args(arguments)
    if options.code:
        refuse_changed_code(options.code, "longshort.results.report")
    study = study_json.read(options.study, options.seal)
    metrics, runs = long_table.read_with_costs(options.metrics, options.runs, study)
    write_atomic(options.out, page(metrics, runs, study, options.plots))


if __name__ == "__main__":
    main()
