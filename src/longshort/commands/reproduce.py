"""`longshort reproduce`: whether a study's numbers here are those that were published with the source."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd

from longshort.errors import StudyError
from longshort.records import provenance, study_json
from longshort.results import long_table, published
from longshort.results.columns import columns_of
from longshort.results.replicates import NO_ARMS, models
from longshort.study.wired import Wired

RESULTS = Path("results")
KEYS = ["arm", "seed", "step", "metric", "length", "task"]
COLUMNS = [*KEYS, "value"]
# A processor's other instructions add in another order: the demo's perplexities then differed by 5e-5.
TOLERANCE = 1e-3
OF_THE_PROCESSOR = {"processor", "torch's CPU capability"}


def published_file(study: str) -> Path:
    """Where a study's numbers are published; the demo's, whose runs others share, if none are."""
    own = (Path("docs") / f"{study}.parquet", Path("docs/findings") / f"{study}.parquet")
    return next((path for path in own if path.exists()), Path("docs/demo.parquet"))


def write(study: Wired, path: Path) -> str:
    """Publishes a study's numbers, with what they were made by.

    Raises:
        StudyError: they are not there, or of the study as it was; something else is at `path`.
    """
    count = published.write(path, _metrics(study), json.loads(study.summary_text()), made(study))
    return f"{count} numbers of study {study.name} are in {path}"


def compare(study: Wired, path: Path) -> list[str]:
    """Says in lines how many of the published numbers came out again, and what differs if some did not.

    Raises:
        StudyError: the study has no numbers yet, or `path` is no file that `write` made.
    """
    then = published.read(path)
    summary = json.loads(study.summary_text())
    # A part of a study, as demo-short is, has runs of the whole.
    runs, theirs = ({run for arm in one["arms"] for run in arm["runs"].values()} for one in (summary, then.study))
    if then.study["name"] != study.name and not runs & theirs:
        raise StudyError(f"{path} is of study {then.study['name']}, which shares no run with {study.name}")
    before, now = then.made, made(study)
    measured = _metrics(study)
    there, here = headline(then.metrics, summary), _seeds_as_in(then.study, summary, headline(measured, summary))
    # Of another choice of arms and seeds nothing is absent; of a run that diverged here, what was published is.
    ours = _seeds_as_in(then.study, summary, long_table.headlines(measured)[["arm", "seed"]].drop_duplicates())
    both = there.merge(ours, on=["arm", "seed"]).merge(here, on=KEYS, how="left", suffixes=("_published", ""))
    if both.empty:
        raise StudyError(f"{path} has no number of the arms and seeds of study {study.name}; publish it anew (--write)")
    away = (both["value"] - both["value_published"]).abs() / both["value_published"].abs().clip(lower=1e-12)
    away[both["value"].eq(both["value_published"])] = 0.0
    same = int((away <= TOLERANCE).sum())
    said = [
        f"{same} of {len(both)} published numbers came out again (to {TOLERANCE:.1%}; {int(away.eq(0).sum())} to the "
        f"last digit; {path})"
    ]
    if same == len(both):
        return [f"Reproduced: {said[0]}; the largest relative difference is {_worst(both, away)}"]
    if away.notna().any():
        said.append(f"the largest relative difference is {_worst(both, away)}")
    if absent := int(both["value"].isna().sum()):
        said.append(f"{absent} numbers are absent here: `longshort status --study {study.name}` says why")
    said += _by_metric(both["metric"], away)
    differs = _other_settings(then.study, summary)
    others = [what for what in now if what in before and before[what] != now[what]]
    differs += [f"{what}: {before[what]}; here {now[what]}" for what in others]
    if OF_THE_PROCESSOR & set(others):
        differs.append(
            "another processor rounds otherwise: of a sound run it moved perplexities by up to 0.1 %, calibration "
            "errors by 2 %, and by whole tokens what a threshold chooses, as LongPPL's are (docs/findings.md)"
        )
    verdict = "Reproduced in part" if same else "Not reproduced"
    return [f"{verdict}: {said[0]}", *said[1:], *(differs or ["nothing that is recorded differs"])]


def _other_settings(then: dict[str, Any], summary: dict[str, Any]) -> list[str]:
    """In which settings an arm is another one than that which was published by its name."""
    theirs, said = {arm["name"]: arm["settings"] for arm in then["arms"]}, []
    for arm in summary["arms"]:
        published, here = (_flat(one) for one in (theirs.get(arm["name"], arm["settings"]), arm["settings"]))
        others = [key for key in sorted({*published, *here}) if published.get(key) != here.get(key)]
        said += [f"{arm['name']}: {key}: {published.get(key)}; here {here.get(key)}" for key in others]
    return said


def _flat(settings: Any, name: str = "") -> dict[str, Any]:
    """Nested settings by dotted names."""
    if not isinstance(settings, dict):
        return {name: settings}
    parts = (_flat(value, f"{name}.{key}".lstrip(".")) for key, value in settings.items())
    return {key: value for part in parts for key, value in part.items()}


def _seeds_as_in(then: dict[str, Any], summary: dict[str, Any], rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of this study with the seeds that the published one gives to the same bases: the only base of a study has
    none, and each of several has the first seed that starts from it."""
    theirs = {(arm, run): seed for arm, runs in models(then).items() for seed, run in runs.items()}
    seed = rows["seed"].copy()
    for arm, runs in models(summary).items():
        for of_row, run in runs.items():
            seed[rows["arm"].eq(arm) & rows["seed"].eq(of_row)] = theirs.get((arm, run), of_row)
    return rows.assign(seed=seed)


def headline(metrics: pd.DataFrame, summary: dict[str, Any]) -> pd.DataFrame:
    """The numbers of a study's headline columns at the last checkpoint, and of the bases: COLUMNS."""
    rows = long_table.headlines(metrics)
    rows = rows[rows["step"].eq(int(summary["checkpoints"][-1])) | rows["arm"].isin(NO_ARMS)]
    found = [long_table.at(rows, each.metric, each.length, each.task) for each in columns_of(summary)]
    return pd.concat(found)[COLUMNS].drop_duplicates(KEYS).dropna(subset=["value"]).reset_index(drop=True)


def made(study: Wired) -> dict[str, str]:
    """What numbers depend on besides the study: corpus, code, lock, processor, and what torch uses of it, where this is
    the machine that made them."""
    from torch.backends.cpu import get_cpu_capability

    metrics = _metrics(study)
    runs = long_table.read_runs(RESULTS / study.name / "runs.parquet")
    found = {
        "corpus": _joined(metrics["data"]),
        "lock and versions": _joined(metrics["environment"]),
        "processor": _joined(runs["hardware"]),
        "torch's CPU capability": get_cpu_capability(),
        "commit": _joined(metrics["commit"]),
    }
    if found["processor"] != provenance.machine()["device"]:
        del found["torch's CPU capability"]
    return found


def _metrics(study: Wired) -> pd.DataFrame:
    path = RESULTS / study.name / "metrics.parquet"
    if study.kind != "language-models":
        raise StudyError(f"study {study.name} is synthetic: its numbers are not published; name another study")
    run = f"run `snakemake all --cores 2 --config study={study.name}`"
    if not path.exists():
        raise StudyError(f"{path} does not exist yet; {run}")
    summary = json.loads(study.summary_text())
    if study_json.is_another(path, {key: value for key, value in summary.items() if key != "seal"}):
        raise StudyError(f"{path} is of the study as it was before it was changed: {run}")
    return long_table.read(path)


def _joined(values: pd.Series) -> str:
    return ", ".join(sorted(set(values.dropna().astype(str)) - {""}))


def _by_metric(metric: pd.Series, away: pd.Series) -> list[str]:
    """Which metrics came out again: what hangs on a threshold, as key tokens do, moves more than a perplexity."""
    said = []
    for name, differences in away.groupby(metric, sort=False):
        came_out = int((differences <= TOLERANCE).sum())
        said.append(f"    {name}: {came_out} of {len(differences)}")
        if came_out < len(differences) and differences.notna().any():
            said[-1] += f", the largest difference {differences.max():.2g}"
    return said


def _worst(both: pd.DataFrame, away: pd.Series) -> str:
    row = both.iloc[int(away.fillna(0.0).argmax())]
    place = "" if pd.isna(row["length"]) else f" at length {int(row['length'])}"
    return (
        f"{away.max():.2g} ({row['metric']}{place}, arm {row['arm']}, seed {row['seed']}: {row['value']:.6g}, "
        f"published {row['value_published']:.6g})"
    )
