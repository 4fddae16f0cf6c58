"""An evaluation whose items several jobs share out: `evaluations.longbench_e.jobs` and the like.

Each job measures its share and keeps it in a journal of its own, below the folder of the evaluation's finished work; a
last one puts the journals together (--together), and the metric's own stage, which then finds every item measured,
makes the numbers of them. What shares a batch does not depend on how many jobs there are, so that the numbers do not.

`python -m longshort.evaluation.sharing --metric NAME --share 0-of-4 --spec FILE --data MANIFEST --run RECORD --steps
50-150 --out RECORD`
"""

from __future__ import annotations

import argparse
import re
import time
from importlib import import_module
from pathlib import Path
from typing import Any

from longshort.data import integrity
from longshort.errors import in_a_line
from longshort.evaluation import stage
from longshort.evaluation.journal import Journal, Measured
from longshort.evaluation.loaded import Models
from longshort.evaluation.share import Share
from longshort.identity.spec import digest, dumps, run_id
from longshort.jobs import heartbeat, interruption
from longshort.jobs.ownership import sole_owner
from longshort.metrics.catalog import METRICS
from longshort.records import hub, layout, provenance
from longshort.records.publish import write_atomic, write_record

# As stage.py calls them, and the folder of what the jobs have measured.
JOURNAL, FINISHED, SHARES = "journal", "finished.parquet", "shares"


@in_a_line()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--metric", required=True, help="which evaluation")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--share", type=_share, help="what this job measures, e.g. 0-of-4")
    what.add_argument("--together", action="store_true", help="put together what the jobs have measured")
    parser.add_argument("--spec", type=Path, required=True, help="specification of the evaluation (JSON)")
    parser.add_argument("--data", type=Path, required=True, help="manifest of the prepared corpus")
    parser.add_argument("--run", type=Path, required=True, help="record of the training")
    parser.add_argument("--steps", required=True, help="checkpoints to evaluate, e.g. 50-150")
    parser.add_argument("--out", type=Path, help="with --share: record to write")
    parser.add_argument("--code", help="refuse to run if the code's hash is another one")
    parser.add_argument("--items", type=Path, nargs="*", default=[], help="files that the items of the tasks come from")
    parser.add_argument("--work", type=Path, default=Path(layout.WORK), help="folder of finished evaluations")
    arguments = parser.parse_args()
    interruption.end_at_once()
    hub.refuse_network()
    if arguments.together:
        put_together(arguments)
        return
    with heartbeat.beating(arguments.out, arguments.metric) as beat:
        measure(arguments, beat)


def measure(arguments: argparse.Namespace, beat: heartbeat.Heartbeat) -> None:
    """Measures a share of the items at every checkpoint, and writes a record of it.

    Args:
        arguments: as main's.
    """
    module = import_module(METRICS[arguments.metric].module)
    # To give what stage.py has a public name would change the code of every evaluation, and have all made anew.
    asked, run, spec, code, content, inputs = stage._read(arguments, module.MEASUREMENT)
    of_all = Path(layout.finished_evaluation(run_id(asked, code, inputs), arguments.work))
    share: Share = arguments.share
    began, cpu_began = time.monotonic(), heartbeat.cpu_seconds()
    place = of_all / SHARES / f"{share.number}-of-{share.of}"
    with sole_owner(place) as owner:
        if not (place / JOURNAL).exists():  # what jobs of another number have measured need not be measured again
            write_atomic(place / JOURNAL, _all_measured(of_all))
        integrity.refuse_altered(arguments.data, "validation", "test", content=content)
        journal = Journal(place / JOURNAL)
        beat.watch(journal.progress)

        def evaluate(*given: Any) -> Measured:
            module.evaluate_share(*given, share)
            return Measured([])

        steps = [int(step) for step in arguments.steps.split("-")]
        measurement = module.MEASUREMENT._replace(evaluate=evaluate)
        stage._checkpoints(measurement, run, steps, spec, arguments.data.parent, journal, Models())
        owner.refuse_if_lost()
        record = {
            "run": run["run"],
            "run_id": run["run_id"],
            "evaluation": digest(dumps(asked)),
            "code": code,
            "data": content,
            "share": list(share),
            "machine": provenance.machine(),
            "seconds": time.monotonic() - began,
            "cpu_seconds": heartbeat.cpu_seconds() - cpu_began,
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        write_record(arguments.out, record)


def put_together(arguments: argparse.Namespace) -> None:
    """Hands the jobs' journals on to the metric's own stage, as its own.

    Args:
        arguments: as main's, and those of the stage.
    """
    module = import_module(METRICS[arguments.metric].module)
    asked, _, _, code, _, inputs = stage._read(arguments, module.MEASUREMENT)
    of_all = Path(layout.finished_evaluation(run_id(asked, code, inputs), arguments.work))
    with sole_owner(of_all):
        if not stage._sound(of_all / FINISHED) and (measured := _all_measured(of_all)):
            write_atomic(of_all / JOURNAL, measured)


def _all_measured(of_all: Path) -> bytes:
    """The whole lines of all journals of an evaluation: a line that another job is just writing is not one yet."""
    journals = [of_all / JOURNAL, *sorted((of_all / SHARES).glob(f"*/{JOURNAL}"))]
    contents = (journal.read_bytes() for journal in journals if journal.exists())
    return b"".join(content[: content.rfind(b"\n") + 1] for content in contents)


def _share(text: str) -> Share:
    found = re.fullmatch(r"(\d+)-of-(\d+)", text)
    if found is None or int(found[1]) >= int(found[2]):
        raise argparse.ArgumentTypeError(f"{text!r}: give such as 0-of-4, the first of four")
    return Share(int(found[1]), int(found[2]))


if __name__ == "__main__":
    main()
