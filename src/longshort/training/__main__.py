"""Stage: one run, trained. `python -m longshort.training --spec FILE --data MANIFEST --steps 50-150 --out FILE`

Checkpoints live in work/<run-id>/ and are no declared output, so a failed job resumes; --out is written last.
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from pathlib import Path
from typing import Any

from longshort.errors import UserError, in_a_line
from longshort.identity.code import code_hash, files_now, modules, refuse_changed_code
from longshort.identity.spec import digest, dumps, restored
from longshort.jobs import heartbeat, interruption
from longshort.jobs.ownership import sole_owner
from longshort.models.settings import Rope, Weights
from longshort.records import hub, layout, provenance
from longshort.records.publish import (
    CHECKPOINTS,
    HASHES,
    LATE,
    altered,
    file_digest,
    folder_digests,
    read_json,
    read_record,
    read_spec,
    wait_for_files,
    write_atomic,
    write_record,
)
from longshort.study.run import RunSpec
from longshort.training import checkpoints, launch, log

ENTRY = "longshort.training.trainer"
OF_CORPUS = {"content": str, "files": HASHES, "splits": {"train": {"sha256": str}}}
RESTORE = "delete its record and run snakemake again, which trains it anew"


@in_a_line()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spec", type=Path, required=True, help="specification of the run (JSON)")
    parser.add_argument("--data", type=Path, required=True, help="manifest of the prepared corpus")
    parser.add_argument("--base", type=Path, nargs="?", help="record of the base's training; none for the base itself")
    parser.add_argument("--steps", required=True, help="steps at which weights are wanted, e.g. 50-150")
    parser.add_argument("--out", type=Path, required=True, help="record to write; the log goes beside it as .parquet")
    parser.add_argument("--code", help="refuse to run if the code's hash is another one")
    parser.add_argument("--work", type=Path, default=Path(layout.WORK), help="folder of checkpoints")
    parser.add_argument("--micro-batch", type=int, default=0, help="windows per forward and process; 0: all at once")
    parser.add_argument("--chunk-size", type=int, default=0, help="positions whose logits exist at a time; 0: chosen")
    parser.add_argument("--gradient-checkpointing", type=int, default=0, help="1 to recompute activations")
    parser.add_argument("--logging-steps", type=int, default=10, help="steps between progress lines")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each process")
    parser.add_argument(
        "--checkpoint-minutes", type=float, default=30.0, help="a checkpoint to resume from at least so often"
    )
    parser.add_argument("--report-to", nargs="*", default=[], help="trackers, as transformers' Trainer names them")
    parser.add_argument("--run-name", help="the run's name there: study/arm/seed-n")
    arguments = parser.parse_args()
    interruption.end_at_once()
    with heartbeat.beating(arguments.out, "training") as beat:
        make(arguments, beat)


def make(arguments: argparse.Namespace, beat: heartbeat.Heartbeat) -> None:
    source = files_now()  # before the code is looked at: what changes later is found changed
    asked = read_spec(arguments.spec)
    spec = restored(RunSpec, asked)
    code = refuse_changed_code(arguments.code, ENTRY, spec.modules) if arguments.code else None
    code = code or code_hash(ENTRY, spec.modules)
    manifest = read_record(arguments.data, like=OF_CORPUS)
    wait_for_files(arguments.data.parent, manifest["files"])
    wanted = [int(step) for step in arguments.steps.split("-")]
    base = read_record(arguments.base, like={"checkpoints": CHECKPOINTS}) if arguments.base else None
    files: dict[str, str] | None = None
    base_path: Path | None = None
    if base and (last := checkpoints.last_of(base)):
        base_path, files = Path(last["path"]), last["files"]
    taken = taken_as_it_is(spec.pretrained) if spec.pretrained else {}
    files = taken["checkpoints"]["0"]["files"] if taken else files
    identity = checkpoints.identity_of(asked, code, manifest, files)
    record = {
        "run": digest(dumps(asked)),
        "steps": arguments.steps,
        "run_id": identity,
        "code": code,
        "modules": modules(ENTRY, spec.modules),
        "data": manifest["content"],
        "commit": provenance.commit(),
        "environment": provenance.environment(),
        "machine": provenance.machine(),
    }
    if taken:
        publish(arguments.out, {**record, **taken}, [])
        return
    if base and not files:
        print(f"its base diverged: {arguments.base}; nothing is trained from it")
        nothing: dict[str, Any] = {"status": "diverged", "diverged": base.get("diverged"), "checkpoints": {}}
        publish(arguments.out, {**record, **nothing}, [])
        return
    if base_path and (trouble := altered(base_path, files or {}, patience=LATE)):
        raise UserError(f"the base is not the one that was trained: {base_path}: {trouble}; {RESTORE}")
    if base_path and spec.rope and not spec.training:
        made = extended(spec.rope, spec.seed, base_path, files or {}, arguments.steps)
        publish(arguments.out, {**record, **made}, [])
        return

    # An adapter is nothing without the weights that it was trained beside.
    adapts = {"adapts": {"path": str(base_path), "files": files}} if spec.optimisation.adapter else {}
    work = Path(layout.checkpoints(identity, arguments.work))
    job = {**job_of(arguments, base_path, work), "end": checkpoints.end_of(asked), "content": manifest["content"]}
    job["source"] = {module: source[module] for module in record["modules"]}
    job["made"] = {key: record[key] for key in ("commit", "environment", "machine")}
    beat.note(run_id=identity)
    with sole_owner(work) as owner:
        beat.watch(partial(progress, work / log.NAME, max(wanted)))
        cpu_began = heartbeat.cpu_seconds()
        there, trained, seconds = launch.complete(job, work, wanted, spec.optimisation, owner)
        ended = checkpoints.diverged_at(work)
        diverged = read_json(work / checkpoints.DIVERGED, {"step": int}) if ended <= max(wanted) else None
        record["checkpoints"] = {str(step): {**weights_of(work, step), **adapts} for step in there}
        record.update(status="diverged" if diverged else "ok", diverged=diverged, trained=trained, seconds=seconds)
        record["spent"] = launch.spent(work)
        record.update(launch.made(work, there))
        record["cpu_seconds"] = heartbeat.cpu_seconds() - cpu_began if spec.optimisation.nodes == 1 else None
        rows = whole_log(work / log.NAME, int(min(max(wanted), ended - 1)), max(wanted))
        owner.refuse_if_lost()
        publish(arguments.out, record, rows)
    print(f"{'diverged' if diverged else 'finished'}: {arguments.out} (run {identity})")


def job_of(arguments: argparse.Namespace, base: Path | None, work: Path) -> dict[str, Any]:
    """What the training processes are told, whichever piece of the run they train."""
    return {
        "spec": str(arguments.spec),
        "data": str(arguments.data.parent),
        "base": base and str(base),
        "work": str(work),
        "micro_batch": arguments.micro_batch,
        "chunk_size": arguments.chunk_size,
        "gradient_checkpointing": bool(arguments.gradient_checkpointing),
        "logging_steps": arguments.logging_steps,
        "checkpoint_minutes": arguments.checkpoint_minutes,
        "threads": arguments.threads,
        "report_to": arguments.report_to,
        "run_name": arguments.run_name or work.name,
    }


def weights_of(work: Path, step: int) -> dict[str, Any]:
    """A sealed checkpoint as a record names it."""
    folder = checkpoints.folder(work, step)
    return {"path": str(folder), "files": checkpoints.weights(folder)}


def taken_as_it_is(model: Weights) -> dict[str, Any]:
    """A pretrained base as a run of zero steps: its files, verified to be there, by their hashes."""
    part = hub.weights(model)
    try:
        path = hub.folder(part) if part else Path(model.name)
    except hub.NotFetched as error:
        raise UserError(f"model: {error}") from None
    everything = hub.files(part) if part else folder_digests(path)
    files = {name: sha for name, sha in everything.items() if name.endswith((".safetensors", "config.json"))}
    if not any(name.endswith(".safetensors") for name in files):
        raise UserError(f"model.name = {model.name!r}: {path} holds no .safetensors file; only those are loaded")
    checkpoint = {"path": str(path), "files": files}
    return {"status": "ok", "diverged": None, "checkpoints": {"0": checkpoint}, "seconds": 0.0}


def extended(extension: Rope, seed: int, base: Path, files: dict[str, str], step: str) -> dict[str, Any]:
    """A base whose context is extended, before any training, as a checkpoint of the base's own step: its weights and
    what extends them, where who loads it does so (evaluation.loaded). No second copy of the weights is written."""
    checkpoint = {"path": str(base), "files": files, "extended": {"rope": extension.model_dump(), "seed": seed}}
    return {"status": "ok", "diverged": None, "checkpoints": {step: checkpoint}, "seconds": 0.0}


def progress(path: Path, last: int) -> dict[str, Any]:
    """How far a training is, from the last line of its log."""
    row = log.newest(path)
    found = {"loss": row.get("loss"), "tokens_per_second": row.get("tokens_per_second")} if row["step"] else {}
    return {"done": min(row["step"], last), "total": last, "unit": "steps", **found}


def whole_log(path: Path, trained: int, last: int) -> list[dict[str, float]]:
    """The rows of a training's log up to the last step.

    Raises:
        UserError: one of the steps that were trained lacks.
    """
    rows = log.read(path, last)
    lacking = trained - sum(row["step"] <= trained for row in rows)
    if lacking:
        raise UserError(
            f"{path} lacks {lacking} of the {trained} steps that were trained: it was edited or cut; delete "
            f"{path.parent} and run snakemake again, which trains anew"
        )
    return rows


def publish(out: Path, record: dict[str, Any], rows: list[dict[str, float]]) -> None:
    """The log as parquet, then the record that names its hash."""
    table = Path(layout.stage_of(out).numbers)
    write_atomic(table, log.as_parquet(rows))
    finished = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    write_record(out, {**record, "finished": finished, "log": {"path": str(table), "sha256": file_digest(table)}})


if __name__ == "__main__":
    main()
