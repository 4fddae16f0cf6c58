"""What every evaluation stage does: load each checkpoint of a run, measure it, publish one parquet for all of them, and
a record (JSON) beside it.

`python -m longshort.evaluation.perplexity --spec FILE --data MANIFEST --run RECORD --steps 50-150 --out FILE`
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from longshort import provenance
from longshort.identity import code_hash, modules, refuse_changed_code, run_id
from longshort.publish import altered, file_digest, read_json, read_record, write_atomic, write_record

COLUMNS = ["step", "metric", "length", "task", "document", "value", "n", "status", "protocol"]
Evaluate = Callable[..., list[dict[str, Any]]]


def main(metric: str, evaluate: Evaluate, protocol: Callable[[dict[str, Any]], str]) -> None:
    """The command line of one metric's stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spec", type=Path, required=True, help="specification of the evaluation (JSON)")
    parser.add_argument("--data", type=Path, required=True, help="manifest of the prepared corpus")
    parser.add_argument("--run", type=Path, required=True, help="record of the training")
    parser.add_argument("--steps", required=True, help="checkpoints to evaluate, e.g. 50-150")
    parser.add_argument("--out", type=Path, required=True, help="parquet to write")
    parser.add_argument("--code", help="refuse to run if the code's hash is another one")
    parser.add_argument("--items", type=Path, nargs="*", default=[], help="files that the items of the tasks come from")
    parser.add_argument("--work", type=Path, default=Path("work"), help="folder of finished evaluations")
    arguments = parser.parse_args()

    entry = f"longshort.evaluation.{'longbench' if metric == 'longbench_e' else metric}"
    code = refuse_changed_code(arguments.code, entry) if arguments.code else code_hash(entry)
    spec, record = read_json(arguments.spec), read_record(arguments.run)
    manifest = read_json(arguments.data)
    inputs = {
        "checkpoints": {step: checkpoint["files"] for step, checkpoint in record["checkpoints"].items()},
        "steps": arguments.steps,
        "status": record["status"],
        "data": manifest["content"],
        "items": {path.name: file_digest(path) for path in arguments.items},
    }
    finished = arguments.work / "evaluations" / f"{run_id(spec, code, inputs)}.parquet"
    if finished.exists() and _sound(finished):
        print(f"found finished: {finished}")
        publish(arguments.out, finished.read_bytes(), read_record(finished.with_suffix(".json")))
        return
    began_all = time.monotonic()

    rows: list[dict[str, Any]] = []
    said = protocol(spec["settings"])
    tokenizer = None
    for step in (int(step) for step in arguments.steps.split("-")):
        checkpoint = record["checkpoints"].get(str(step))
        if checkpoint is None:
            print(f"step {step}: {record['status']}, nothing to measure", flush=True)
            rows.append({"step": step, "metric": metric, "value": float("nan"), "n": 0, "status": record["status"]})
            continue
        if tokenizer is None:
            from longshort.data import tokenizers

            tokenizer = tokenizers.load(spec["data"]["tokenizer"])
        began = time.monotonic()
        model = _load(checkpoint)
        try:
            measured = evaluate(model, tokenizer, spec["settings"], arguments.data.parent, spec["length"])
        except ValueError as error:
            raise SystemExit(f"{metric}, step {step}: {error}") from None
        rows += [{"step": step, "status": _status(row), **row} for row in measured]
        print(f"step {step}: {len(measured)} numbers in {time.monotonic() - began:.1f} s", flush=True)

    import pandas

    frame = pandas.DataFrame([{**row, "protocol": said} for row in rows], columns=COLUMNS)
    frame = frame.astype({"length": "Int64", "n": "Int64", "task": "string", "document": "string", "value": "float64"})
    frame["run_id"], frame["code"], frame["data"] = record["run_id"], code, manifest["content"]
    frame["commit"], frame["environment"] = provenance.commit(), provenance.environment()
    published = {
        "run_id": record["run_id"],
        "code": code,
        "modules": modules(entry),
        "data": manifest["content"],
        "commit": provenance.commit(),
        "environment": provenance.environment(),
        "machine": provenance.machine(),
        "protocol": said,
        "seconds": time.monotonic() - began_all,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    numbers = frame.to_parquet(index=False)
    publish(finished, numbers, published)
    publish(arguments.out, numbers, published)


def publish(out: Path, numbers: bytes, record: dict[str, Any]) -> None:
    """The numbers, then beside them the record that holds their hash."""
    write_atomic(out, numbers)
    write_record(out.with_suffix(".json"), {**record, "sha256": file_digest(out)})


def _sound(numbers: Path) -> bool:
    record = numbers.with_suffix(".json")
    return record.exists() and read_record(record)["sha256"] == file_digest(numbers)


def _status(row: dict[str, Any]) -> str:
    """A number that is not finite comes from weights that are not: the training diverged at its last step."""
    return "ok" if not row["n"] or math.isfinite(row["value"]) else "diverged"


def _load(checkpoint: dict[str, Any]) -> Any:
    """The model of a checkpoint whose weights are the ones that the training recorded."""
    import torch

    from longshort.evaluation.forward import refuse_unknown_logits
    from longshort.models import load

    folder = Path(checkpoint["path"])
    if trouble := altered(folder, checkpoint["files"]):
        raise SystemExit(
            f"the weights are not those that were trained: {folder}: {trouble}; "
            "delete the run's record and run snakemake again, which trains it anew"
        )
    model = load.load(folder)
    model.eval()
    model.to("cuda" if torch.cuda.is_available() else "cpu")  # type: ignore[arg-type]
    refuse_unknown_logits(model)
    return model
