"""All that is due of a run's evaluations, in one job: the libraries and each checkpoint are loaded once for them all.

Each metric is measured as its own stage would (see stage.py), with a heartbeat, a log and a record of its own, and is
published as soon as it is whole. What is published and would come out the same is left as it is. One that fails does
not keep the others from being measured; the job then ends with the names of those that failed.

`python -m longshort.evaluation --data MANIFEST --run RECORD --steps 50-150 --metric NAME SPEC OUT CODE [ITEMS ...]`
"""

from __future__ import annotations

import argparse
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import Any

from longshort.errors import JobFailed, LongshortError, in_a_line
from longshort.evaluation import stage
from longshort.evaluation.loaded import Models
from longshort.jobs import engine, heartbeat, interruption
from longshort.metrics.catalog import METRICS
from longshort.records import hub, layout


@in_a_line()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="manifest of the prepared corpus")
    parser.add_argument("--run", type=Path, required=True, help="record of the training")
    parser.add_argument("--steps", required=True, help="checkpoints to evaluate, e.g. 50-150")
    parser.add_argument("--work", type=Path, default=Path(layout.WORK), help="folder of finished evaluations")
    parser.add_argument(
        "--metric",
        nargs="+",
        action="append",
        required=True,
        metavar="WORD",
        help="a metric, its specification (JSON), the parquet to write, its code's hash, and the files of its items",
    )
    arguments = parser.parse_args()
    interruption.end_at_once()
    parts = [_part(arguments, *words) for words in arguments.metric]
    failed = measure(parts)
    if failed:
        raise JobFailed(
            f"failed: {', '.join(failed)}; its log stands beside its result, and what the others measured is kept "
            "in work/evaluations"
        )


def _part(
    of_all: argparse.Namespace, metric: str, spec: str, out: str, code: str, *items: str
) -> tuple[stage.Measurement[Any], argparse.Namespace]:
    """A metric, and the arguments of its own stage."""
    measurement: stage.Measurement[Any] = import_module(METRICS[metric].module).MEASUREMENT
    paths = {"spec": Path(spec), "out": Path(out), "items": [Path(item) for item in items]}
    return measurement, argparse.Namespace(**{**vars(of_all), **paths, "code": code})


def measure(parts: list[tuple[stage.Measurement[Any], argparse.Namespace]]) -> list[str]:
    """Measures what is due, one metric after the other, and returns the names of those that failed."""
    models, failed, refused, due = Models(), [], False, []
    for measurement, arguments in parts:
        if _stands(arguments, measurement):
            print(f"{measurement.metric}: published already, and up to date", flush=True)
            continue
        due.append((measurement, arguments))
        for kind in (".parquet", ".json", layout.ITEMS):
            engine.forget_backup(arguments.out.with_suffix(kind))
    # Once refused, the network is refused for good.
    for measurement, arguments in sorted(due, key=lambda part: not part[0].uses_network):
        if not measurement.uses_network and not refused:
            hub.refuse_network()
            refused = True
        print(f"{measurement.metric}: see {_log(arguments)}", flush=True)
        try:
            with _logged(arguments), heartbeat.beating(arguments.out, measurement.metric) as beat:
                stage.make(arguments, measurement, beat, models)
        except Exception as error:
            said = str(error) if isinstance(error, LongshortError) else f"{type(error).__name__}: {error}"
            print(f"{measurement.metric} failed: {said}", flush=True)
            failed.append(measurement.metric)
    return failed


def _stands(arguments: argparse.Namespace, measurement: stage.Measurement[Any]) -> bool:
    try:
        return stage.stands(arguments, measurement)
    except (OSError, ValueError):  # what is wrong, the metric's own attempt will say
        return False


def _log(arguments: argparse.Namespace) -> Path:
    return Path(layout.stage_of(arguments.out).log)


@contextmanager
def _logged(arguments: argparse.Namespace) -> Iterator[None]:
    """What is printed, and an error, go to the metric's own log, where they would stand if it were a job of its own."""
    log = _log(arguments)
    log.parent.mkdir(parents=True, exist_ok=True)
    log.unlink(missing_ok=True)  # an attempt before keeps it by its second name
    with log.open("a", encoding="utf-8") as file, redirect_stdout(file), redirect_stderr(file):
        try:
            yield
        except LongshortError as error:
            print(error, flush=True)
            raise
        except Exception:
            traceback.print_exc()
            raise


if __name__ == "__main__":
    main()
