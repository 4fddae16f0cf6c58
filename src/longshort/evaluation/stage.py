"""What every evaluation stage does: load each checkpoint of a run, measure it, publish one parquet for all of them, and
a record (JSON) beside it. What is measured is kept item by item, so that a killed job goes on where it was.

`python -m longshort.evaluation.perplexity --spec FILE --data MANIFEST --run RECORD --steps 50-150 --out FILE`
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from longshort.data import integrity, splits
from longshort.data.settings import Tokenizer
from longshort.errors import UserError, in_a_line
from longshort.evaluation.journal import Journal, Measured, Section
from longshort.evaluation.loaded import Models
from longshort.identity.code import code_hash, modules, refuse_changed_code
from longshort.identity.spec import digest, dumps, restored, run_id
from longshort.identity.strict import Strict
from longshort.jobs import heartbeat, interruption
from longshort.jobs.ownership import sole_owner
from longshort.metrics.settings import StandIn
from longshort.records import hub, layout, provenance
from longshort.records.publish import (
    CHECKPOINTS,
    HASHES,
    LATE,
    altered,
    file_digest,
    read_json,
    read_record,
    read_spec,
    wait_for_files,
    write_atomic,
    write_record,
)
from longshort.study.run import Evaluation

if TYPE_CHECKING:
    from pandas import DataFrame

# What is read of the record of a training.
OF_TRAINING = {"run": str, "run_id": str, "status": str, "checkpoints": CHECKPOINTS}
COLUMNS = ["step", "metric", "length", "task", "document", "value", "n", "status"]
Settings = TypeVar("Settings", bound=Strict)


class Measurement(NamedTuple, Generic[Settings]):
    """How a metric of the catalogue is measured.

    Attributes:
        metric: its name in the catalogue.
        module: the module that is run, which its code's hash begins with.
        asks: the model of its settings.
        evaluate: measures one checkpoint: (model, tokenizer, settings, folder of the data, l_train, what is measured
            already) -> rows, items.
        protocol: (settings, l_train, the study's tokenizer) -> the id of what is done.
        keeps_items: whether it also publishes its items, beside the numbers, as <steps>.items.parquet.
        uses_network: some tasks of lm_eval fetch their texts anew each time, and not from the hub.
    """

    metric: str
    module: str
    asks: type[Settings]
    evaluate: Callable[[Any, Any, Settings, Path, int, Section], Measured]
    protocol: Callable[[Settings, int, Tokenizer], str]
    keeps_items: bool = False
    uses_network: bool = False


@in_a_line()
def main(measurement: Measurement[Any]) -> None:
    """The command line of one metric's stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spec", type=Path, required=True, help="specification of the evaluation (JSON)")
    parser.add_argument("--data", type=Path, required=True, help="manifest of the prepared corpus")
    parser.add_argument("--run", type=Path, required=True, help="record of the training")
    parser.add_argument("--steps", required=True, help="checkpoints to evaluate, e.g. 50-150")
    parser.add_argument("--out", type=Path, required=True, help="parquet to write")
    parser.add_argument("--code", help="refuse to run if the code's hash is another one")
    parser.add_argument("--items", type=Path, nargs="*", default=[], help="files that the items of the tasks come from")
    parser.add_argument("--work", type=Path, default=Path(layout.WORK), help="folder of finished evaluations")
    arguments = parser.parse_args()
    interruption.end_at_once()
    if not measurement.uses_network:
        hub.refuse_network()
    with heartbeat.beating(arguments.out, measurement.metric) as beat:
        make(arguments, measurement, beat)


def make(
    arguments: argparse.Namespace,
    measurement: Measurement[Any],
    beat: heartbeat.Heartbeat,
    models: Models | None = None,
) -> None:
    """Publishes a metric's numbers of a run: those that were finished before, or measured now.

    Args:
        arguments: as main's; `items` and `work` included.
        models: the checkpoints that are loaded, where several metrics are measured by one process.
    """
    asked, run, spec, code, content, inputs = _read(arguments, measurement)
    place = Path(layout.finished_evaluation(run_id(asked, code, inputs), arguments.work))
    with sole_owner(place) as owner:
        finished = place / "finished.parquet"
        if _sound(finished):
            print(f"found finished: {finished}")
        else:
            integrity.refuse_altered(arguments.data, "validation", "test", content=content)
            began, cpu_began = time.monotonic(), heartbeat.cpu_seconds()
            journal = Journal(place / "journal")
            steps = [int(step) for step in arguments.steps.split("-")]
            beat.watch(journal.progress)
            models = models or Models()
            measured = _checkpoints(measurement, run, steps, spec, arguments.data.parent, journal, models)
            made = {
                "run_id": run["run_id"],
                "code": code,
                "data": content,
                "commit": provenance.commit(),
                "environment": inputs["environment"],
                "protocol": inputs["protocol"],
            }
            about = {
                "run": run["run"],
                "evaluation": digest(dumps(asked)),
                "inputs": _whichever_libraries(inputs),
                "steps": arguments.steps,
                "modules": modules(measurement.module),
                "machine": provenance.machine(),
                "seconds": time.monotonic() - began,
                "cpu_seconds": heartbeat.cpu_seconds() - cpu_began,
                "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            }
            owner.refuse_if_lost()
            items = _parquet(_frame(measured.items)) if measurement.keeps_items else None
            _publish(finished, _parquet(_numbers(measured.rows, made)), items, {**made, **about})
            (place / "journal").unlink(missing_ok=True)
        items = _items(finished).read_bytes() if measurement.keeps_items else None
        _publish(arguments.out, finished.read_bytes(), items, read_record(finished.with_suffix(".json")))


def stands(arguments: argparse.Namespace, measurement: Measurement[Any]) -> bool:
    """Whether what is published is what make() would publish, be it by other versions of the libraries: these have
    nothing measured again, as where each metric is a job of its own."""
    if not _sound(arguments.out):
        return False
    asked, _, _, code, _, inputs = _read(arguments, measurement)
    now = {"code": code, "evaluation": digest(dumps(asked)), "inputs": _whichever_libraries(inputs)}
    return now.items() <= read_record(arguments.out.with_suffix(".json")).items()


class _Read(NamedTuple):
    """What a stage was given: the specification as it is named and as it is restored, the record of the training,
    its own code, the content of the corpus, and all that finished work must have been made from."""

    asked: dict[str, Any]
    run: dict[str, Any]
    spec: Evaluation
    code: str
    content: str
    inputs: dict[str, Any]


def _read(arguments: argparse.Namespace, measurement: Measurement[Any]) -> _Read:
    metric, entry = measurement.metric, measurement.module
    code = refuse_changed_code(arguments.code, entry) if arguments.code else code_hash(entry)
    asked, run = read_spec(arguments.spec), read_record(arguments.run, like=OF_TRAINING)
    spec = restored(Evaluation, {**asked, "settings": restored(measurement.asks, asked.get("settings"))})
    manifest = read_record(arguments.data, like={"content": str, "files": HASHES})
    wait_for_files(arguments.data.parent, manifest["files"])
    for digests in _made_items(spec, arguments.data):
        if trouble := altered(digests.parent, read_json(digests), patience=LATE):
            raise UserError(f"{metric}: {digests.parent}: {trouble}; delete {digests} and run snakemake again")
    inputs = _inputs(arguments, measurement, spec, run, manifest["content"])
    return _Read(asked, run, spec, code, manifest["content"], inputs)


def _whichever_libraries(inputs: dict[str, Any]) -> str:
    return digest(dumps({name: value for name, value in inputs.items() if name != "environment"}))


def _inputs(
    arguments: argparse.Namespace, measurement: Measurement[Any], spec: Evaluation, run: dict[str, Any], content: str
) -> dict[str, Any]:
    """What finished work must have been made from to be found again, besides the specification and the code."""
    return {
        # The numbers say whose they are, also where another run has the same weights.
        "run": [run["run"], run["run_id"]],
        "checkpoints": {step: _content(checkpoint) for step, checkpoint in run["checkpoints"].items()},
        "steps": arguments.steps,
        "status": run["status"],
        "data": content,
        "items": [[path.name, file_digest(path)] for path in [*arguments.items, *_made_items(spec, arguments.data)]],
        # Its digests of local items hold where no --items is given.
        "protocol": _protocol(measurement, spec),
        # Finished items of other library versions do not stand beside new ones.
        "environment": provenance.environment(),
    }


def _content(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """All that a checkpoint is made of."""
    more = {"adapts": checkpoint["adapts"]["files"]} if "adapts" in checkpoint else {}
    if "extended" in checkpoint:
        more["extended"] = checkpoint["extended"]
    return {**checkpoint["files"], **more}


def _protocol(measurement: Measurement[Any], spec: Evaluation) -> str:
    try:
        protocol = measurement.protocol(spec.settings, spec.length, spec.data.tokenizer)
        return protocol if spec.precision == "fp32" else f"{protocol}&weights={spec.precision}"
    except (OSError, ValueError) as error:
        raise UserError(f"{measurement.metric}: {error}") from None


def _made_items(spec: Evaluation, data: Path) -> list[Path]:
    """The digests of the items that were made from the corpus, where these are asked."""
    source = getattr(spec.settings, "source", None)
    return [Path(layout.standin_manifest(data.parent, source.items_per_task))] if isinstance(source, StandIn) else []


def _checkpoints(
    measurement: Measurement[Any],
    run: dict[str, Any],
    steps: list[int],
    spec: Evaluation,
    data: Path,
    journal: Journal,
    models: Models,
) -> Measured:
    """Rows and items of every checkpoint, with its step; an empty row for one that a diverged training lacks."""
    together = Measured([], [])
    tokenizer = None
    for step in steps:
        checkpoint = run["checkpoints"].get(str(step))
        if checkpoint is None:
            print(f"step {step}: {run['status']}, nothing to measure", flush=True)
            together.rows.append(_nothing(measurement.metric, step, run["status"]))
            continue
        if tokenizer is None:
            from longshort.data import tokenizers

            tokenizer = tokenizers.load(spec.data.tokenizer)
        began = time.monotonic()
        model = models.of(checkpoint, spec.precision)
        if not _answers(model, data, spec.length):
            print(f"step {step}: the model's logits are not finite: it diverged, nothing to measure", flush=True)
            together.rows.append(_nothing(measurement.metric, step, "diverged"))
            continue
        try:
            measured = measurement.evaluate(
                model, tokenizer, spec.settings, data, spec.length, journal.of(f"step {step}")
            )
        except ValueError as error:
            raise UserError(f"{measurement.metric}, step {step}: {error}") from None
        together.rows.extend({"step": step, "status": _status(row), **row} for row in measured.rows)
        together.items.extend({"step": step, **item} for item in measured.items)
        print(f"step {step}: {len(measured.rows)} numbers in {time.monotonic() - began:.1f} s", flush=True)
    return together


def _nothing(metric: str, step: int, status: str) -> dict[str, Any]:
    return {"step": step, "metric": metric, "value": float("nan"), "n": 0, "status": status}


def _answers(model: Any, data: Path, length: int) -> bool:
    """Whether a model's logits are numbers, after the first tokens of a held-out text. One whose logits are not would
    still choose answers, and have scores for them."""
    import torch

    from longshort.evaluation.forward import head_of, hidden_states

    texts = splits.load(data / "test").column("input_ids")
    read = next((text.values[:length].to_pylist() for text in texts if len(text)), [0])
    with torch.inference_mode():
        logits = head_of(model)(hidden_states(model, torch.tensor([read]))[:, -1])
    return bool(logits.isfinite().all())


def _frame(rows: list[dict[str, Any]], columns: list[str] | None = None) -> DataFrame:
    # Late: slow to import, and not needed before there is something to write.
    from pandas import DataFrame

    return DataFrame(rows, columns=columns)


def _numbers(rows: list[dict[str, Any]], made: dict[str, Any]) -> DataFrame:
    frame = _frame(rows, COLUMNS)
    frame = frame.astype({"length": "Int64", "n": "Int64", "task": "string", "document": "string", "value": "float64"})
    return frame.assign(**made)


def _parquet(frame: DataFrame) -> bytes:
    content: bytes = frame.to_parquet(index=False)
    return content


def _items(numbers: Path) -> Path:
    return numbers.with_suffix(layout.ITEMS)


def _publish(out: Path, numbers: bytes, items: bytes | None, record: dict[str, Any]) -> None:
    """The items and the numbers, then beside them the record that holds their hashes."""
    if items is not None:
        write_atomic(_items(out), items)
        record = {**record, "items_sha256": file_digest(_items(out))}
    write_atomic(out, numbers)
    write_record(out.with_suffix(".json"), {**record, "sha256": file_digest(out)})


def _sound(numbers: Path) -> bool:
    if not numbers.with_suffix(".json").exists():
        return False
    try:
        record = read_record(numbers.with_suffix(".json"), like={"sha256": str})
    except ValueError:
        return False
    hashes = {numbers: record["sha256"], _items(numbers): record.get("items_sha256")}
    return all(digest is None or (path.exists() and file_digest(path) == digest) for path, digest in hashes.items())


def _status(row: dict[str, Any]) -> str:
    """Where a model's logits are numbers for a text, and then a number is not: for another text they are not.

    But lm_eval has metrics that some answers leave undefined, say a correlation of equal ones.
    """
    if not row["n"] or math.isfinite(row["value"]):
        return "ok"
    return "undefined" if row["metric"].startswith("harness") and math.isnan(row["value"]) else "diverged"
