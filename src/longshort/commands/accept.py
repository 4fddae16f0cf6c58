"""`longshort accept`: a person declares that a change of the code leaves the results of finished runs as they are.

The results of an arm, of the bases and of LongPPL's key tokens keep the code that they were made with; reason, time and
both hashes stand in results/accepted.json and in the notes of the tables. A changed parameter, an evaluation's too,
and an added checkpoint have other results and are never accepted.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from longshort.errors import StudyError
from longshort.identity.accepted import ACCEPTED, accepted_changes
from longshort.identity.code import changed_modules, code_hash, modules
from longshort.metrics.catalog import METRICS
from longshort.records.publish import HASHES, Altered, read_record, write_json
from longshort.study.wiring import KEY_TOKENS, TRAINING, ResolvedStudy


def accept(study: ResolvedStudy, arm: str, because: str) -> list[dict[str, Any]]:
    """Records the changes of the code behind an arm's finished results, and returns them.

    Raises:
        StudyError: no such arm, no reason, a run that is not finished, or nothing that changed.
    """
    where = f"study {study.name}, arm {arm}"
    if arm not in study.arm_runs:
        raise StudyError(f"{where}: no such arm; the study has {', '.join(study.arm_runs)}")
    if not because.strip():
        raise StudyError(f"{where}: give a reason with --because: it stands in the tables' notes")
    changes: dict[tuple[str, str, str], dict[str, Any]] = {}
    bases = [*study.first_seeds.values(), *study.first_extended.values(), *filter(None, [study.long_base])]
    for run in [*bases, *study.arm_runs[arm].values(), study.data]:
        for stage, path, record in _records(study, run, where):
            chosen = study.runs[run].modules if stage == TRAINING else ()
            now = code_hash(stage, chosen)
            if record["code"] == now:
                continue
            change = changes.setdefault(
                (stage, record["code"], now),
                {
                    "arm": arm,
                    "runs": [],
                    "records": [],
                    "stage": stage,
                    "from": record["code"],
                    "to": now,
                    "modules": changed_modules(record["modules"], modules(stage, chosen)),
                    "because": because.strip(),
                    "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                },
            )
            if run not in change["runs"]:
                change["runs"].append(run)
            change["records"].append(str(path))
    known = accepted_changes()
    new = [
        change
        for change in changes.values()
        if not any(
            all(old[key] == change[key] for key in ("stage", "from", "to"))
            and set(change["records"]) <= set(old["records"])
            for old in known
        )
    ]
    if not new:
        raise StudyError(f"{where}: the code behind its results is the present one: there is nothing to accept")
    write_json(ACCEPTED, known + new)
    return new


def _records(study: ResolvedStudy, run: str, where: str) -> list[tuple[str, Path, dict[str, Any]]]:
    """Stage, path and content of the record of every finished result of a run that the study needs; of the corpus, of
    its key tokens."""
    if run == study.data:
        paths = [(KEY_TOKENS, Path(made.record)) for made in study.key_tokens()]
    else:
        paths = [(TRAINING, Path(study.record(run)))]
        paths += [(METRICS[metric].module, Path(study.evaluation_record(metric, run))) for metric in study.evaluations]
    found = []
    for stage, path in paths:
        if not path.exists() and run in (study.data, study.long_base):  # not every arm rests on them
            continue
        if not path.exists():
            raise StudyError(
                f"{where}: {path} does not exist: a run that was never made with these parameters cannot be accepted; "
                "run it, or take the change of its parameters back"
            )
        try:
            found.append((stage, path, read_record(path, like={"code": str, "modules": HASHES})))
        except Altered as error:
            raise StudyError(f"{where}: {error}") from None
    return found
