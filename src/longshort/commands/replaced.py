"""Local models, and files of items, that were replaced since results were made of them.

A model is no input that the engine knows: it compares files by their times, and a model is copied, moved and linked.
Items are inputs, but a file that comes with an old time (`mv`, `cp -p`) is not newer than what was measured on the one
before. In both cases the engine would keep the numbers of the old ones under the name of the new ones.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import Any

from longshort.errors import StudyError
from longshort.metrics.catalog import METRICS
from longshort.metrics.settings import PretrainedEvaluator
from longshort.records import hub, layout
from longshort.records.publish import CHECKPOINTS, Altered, file_digest, read_json, read_record, write_json
from longshort.study.wiring import ResolvedStudy

SEEN = ".seen"  # beside a record: the times of files that were touched, and are those that it names


def refuse(study: ResolvedStudy) -> None:
    """To be called where the engine plans.

    Raises:
        StudyError: a base, the evaluator that chose LongPPL's key tokens, or the items of an evaluation are others than
            its record says.
    """
    _refuse_models(study)
    replaced = [record for metric in study.evaluations for record in _measured_on_others(study, metric)]
    if replaced:
        listed = "".join(f"\n  {where}: {record}" for record, where in replaced)
        raise StudyError(
            f"study {study.name}: items are not those that these results were measured on, though their files are "
            f"older:{listed}\nPut them back; or `touch` a file of them and run snakemake again, which then measures on "
            "them"
        )


def _refuse_models(study: ResolvedStudy) -> None:
    replaced = []
    for run, spec in study.runs.items():
        record = Path(study.record(run))
        if spec.pretrained and hub.weights(spec.pretrained) is None and record.exists():
            [checkpoint] = read_record(record, like={"checkpoints": CHECKPOINTS})["checkpoints"].values()
            replaced += [(checkpoint["path"], record)] if _is_replaced(record, checkpoint) else []
    asked = study.study.evaluations.longppl
    if asked and isinstance(asked.evaluator, PretrainedEvaluator) and hub.weights(asked.evaluator) is None:
        evaluator = asked.evaluator
        record = Path(study.key_tokens()[0].record)
        files = [file for file in Path(evaluator.name).rglob("*") if file.is_file()]
        if record.exists() and _differ(record, files, lambda: _found_by(record, evaluator)):
            replaced.append((evaluator.name, record))
    if replaced:
        listed = "".join(f"\n  {folder}: {record}" for folder, record in replaced)
        raise StudyError(
            f"study {study.name}: a model in a local folder is not the one that these results were made of:{listed}\n"
            "Put it back; or delete the record that stands beside it and run snakemake again, which makes anew what "
            "comes of it; or give the other model another name"
        )


def _measured_on_others(study: ResolvedStudy, metric: str) -> list[tuple[Path, str]]:
    """The records of a metric's results whose items were replaced without the engine's notice, and where these are. A
    result that is older than one of them is made anew."""
    files = [Path(file) for file in study.items(metric) if Path(file).parts[0] != layout.RESULTS]
    there = [file for file in files if file.is_file()]
    newest = max((file.stat().st_mtime_ns for file in there), default=0)
    records = [record for run in study.runs if (record := Path(study.evaluation_record(metric, run))).exists()]
    unnoticed = [record for record in records if there and newest <= record.stat().st_mtime_ns]

    @cache
    def content() -> str | None:
        measurement = importlib.import_module(METRICS[metric].module).MEASUREMENT  # late: it brings torch
        asked = study.evaluations[metric][1].settings, study.study.lengths.train, study.study.data.tokenizer
        try:
            return _content_in(measurement.protocol(*asked))
        except (OSError, ValueError):  # a task is not there any more, or damaged
            return None

    def are_equal(record: Path) -> bool:
        return _content_in(read_record(record, like={"protocol": str})["protocol"]) == content()

    where = str(there[0] if len(there) == 1 else there[0].parent) if there else ""
    return [(record, where) for record in unnoticed if _differ(record, there, partial(are_equal, record))]


def _content_in(protocol: str) -> str | None:
    """What the name of a protocol says of the items' content, whatever else it says."""
    found = re.search(r"[?&](?:data|own)=([0-9a-f]+)", protocol)
    return found and found[1]


def _is_replaced(record: Path, checkpoint: dict[str, Any]) -> bool:
    folder, files = Path(checkpoint["path"]), checkpoint["files"]
    weights = {file.relative_to(folder).as_posix() for file in folder.rglob("*.safetensors")}
    there = [folder / name for name in files]
    if weights - files.keys() or not all(file.exists() for file in there):
        return True
    return _differ(record, there, lambda: all(file_digest(folder / name) == sha for name, sha in files.items()))


def _found_by(record: Path, evaluator: PretrainedEvaluator) -> bool:
    from longshort.evaluation.key_tokens import content_of  # late: it brings torch, and is seldom asked

    return bool(read_record(record, like={"evaluator": str})["evaluator"] == content_of(evaluator))


def _differ(record: Path, files: list[Path], are_equal: Callable[[], bool]) -> bool:
    """Whether files hold something else than when a record was written. Their times only say where to look; those that
    were touched and are equal are not read at every look."""
    times = {
        str(file): [status.st_size, status.st_mtime_ns, status.st_ctime_ns] for file in files if (status := file.stat())
    }
    seen, written = record.with_suffix(SEEN), record.stat().st_mtime_ns
    if all(max(changed) <= written for _, *changed in times.values()):
        return False
    with suppress(OSError, Altered):
        if read_json(seen, dict) == times:
            return False
    if not are_equal():
        return True
    with suppress(OSError):  # a folder that is only read
        write_json(seen, times)
    return False
