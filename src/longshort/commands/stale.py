"""Results that were made by other code than the present one, where the engine does not know it.

The engine compares the code of a job with its own record below .snakemake. Where that is gone, as in a checkout that
results/ was copied to, it looks at the ages of the files only, and takes numbers of other code for up to date.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from longshort.data import seen
from longshort.errors import StudyError
from longshort.identity.code import code_hash
from longshort.jobs import engine
from longshort.records import layout
from longshort.records.publish import Altered, read_record
from longshort.study.wired import Result, Wired
from longshort.study.wiring import ResolvedStudy

SHOWN = 10
DATA = "longshort.data.__main__"


def refuse_unnoticed(study: Wired) -> None:
    """To be called where the engine plans: looks at the results that it has no record of, which are none or all.

    Raises:
        StudyError: some are not of the present code.
    """
    remembered = engine.remembered()
    refuse(study, lambda record: not remembered(record))


def refuse(study: Wired, concerns: Callable[[str], bool]) -> None:
    """Looks at those of a study's records that `concerns` chooses.

    Raises:
        StudyError: some are not of the present code, or were altered; it names them.
    """
    try:
        stale = [f"{record}: {why}" for record, why in found(study, concerns)]
    except Altered as error:
        raise StudyError(str(error)) from None
    if stale:
        rest = [f"and {len(stale) - SHOWN} more"] if len(stale) > SHOWN else []
        shown = "".join(f"\n  {line}" for line in stale[:SHOWN] + rest)
        raise StudyError(
            f"study {study.name}: {len(stale)} results are not of the present code, and snakemake would keep them, as "
            f"its own record of them, below .snakemake, is gone or says otherwise:{shown}\n"
            "Delete them (`longshort prune --stale`) and run snakemake again, which makes them anew; or bring "
            ".snakemake along from where they were made; or, where the change leaves results as they are, declare it "
            "with `longshort accept`"
        )


def keep_together_or_apart(study: ResolvedStudy, shells: dict[str, str]) -> None:
    """Where the evaluations of a run are one job now and were several, or the other way round, or were one with other
    metrics, the engine would make them again for that. It is told that those that are of the present code, and measured
    the present training, are what the present rules make; but for those that read a file which is another one now.

    shells: rule -> its command, as it is written there.

    Raises:
        StudyError: the engine takes results of other code for those of the present one: `snakemake --touch` told it to,
            or a job failed to update them, and it gave them back.
    """
    results = {result.record: result for result in study.results()}
    taken_for_present = []
    for job in study.evaluation_jobs():
        made = [results[output] for output in job.outputs if output in results]
        remembered = engine.remembers(job, shells[job.rule])
        if remembered and engine.is_done(job):
            taken_for_present += [result.record for result in made if _is_of_other_code(result)]
        if remembered is not False:
            continue
        current = all(map(os.path.exists, job.outputs)) and all(map(_is_current, made))
        if current and not engine.reads_others(job, layout.RESULTS):
            engine.tell(job, shells[job.rule])
    refuse(study, lambda record: record in taken_for_present)


def _is_of_other_code(result: Result) -> bool:
    try:
        return bool(read_record(Path(result.record), like={"code": str})["code"] != result.code)
    except Altered:  # who reads it says so
        return False


def _is_current(result: Result) -> bool:
    try:
        return not _why(result)
    except Altered:
        return False


def found(study: Wired, concerns: Callable[[str], bool] = lambda record: True) -> Iterator[tuple[str, str]]:
    """The records of a study that are not of the present code, and why; of another corpus, all that rest on it: the
    engine makes no corpus anew that nothing asks for.

    Raises:
        Altered: a record was edited or cut.
    """
    of_corpus = ""
    if isinstance(study, ResolvedStudy) and concerns(manifest := layout.data_manifest(study.data)):
        if os.path.exists(manifest) and (why := _why_corpus(study, Path(manifest))):
            yield manifest, why
            of_corpus = f"it rests on {manifest}"
    for result in study.results():
        if concerns(result.record) and os.path.exists(result.record) and (why := _why(result) or of_corpus):
            yield result.record, why


def _why_corpus(study: ResolvedStudy, manifest: Path) -> str:
    made, now = read_record(manifest, like={"code": str})["code"], code_hash(DATA)
    if made != now:
        return f"code {made}, now {now}"
    read = seen.recorded(Path(layout.data_folder(study.data), seen.RECORD))
    try:
        return "" if study.corpus_state() == read else "the corpus' own files hold something else now"
    except ValueError:  # they are not here, as where a study's results are kept longer than what it read
        return ""


def _why(result: Result) -> str:
    """Why a result that is there is not of the present code; empty where it is."""
    measured = {"run_id": str} if result.measured else {}
    made = read_record(Path(result.record), like={"code": str, **measured})
    if made["code"] != result.code:
        return f"code {made['code']}, now {result.code}"
    if result.measured and os.path.exists(result.measured):
        now = read_record(Path(result.measured), like={"run_id": str})["run_id"]
        if made["run_id"] != now:
            return f"it measured the training {made['run_id']}, now {now}"
    return ""
