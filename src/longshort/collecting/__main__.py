"""Collects a study's numbers into metrics.parquet, how each was made into runs.parquet, and links the runs by arm.

`python -m longshort.collecting --study results/S/study.json --results results --out results/S/metrics.parquet`
"""

from __future__ import annotations

import argparse
from pathlib import Path

from longshort.collecting import links, numbers, runs
from longshort.errors import in_a_line
from longshort.identity.code import refuse_changed_code
from longshort.records import study_json


@in_a_line()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", type=Path, required=True, help="resolved study (JSON)")
    parser.add_argument("--results", type=Path, required=True, help="folder that holds runs/")
    parser.add_argument("--out", type=Path, required=True, help="parquet to write")
    parser.add_argument("--seal", help="refuse to run if the study's is another one")
    parser.add_argument("--code", help="refuse to run if the code's hash is another one")
    arguments = parser.parse_args()
    if arguments.code:
        refuse_changed_code(arguments.code, "longshort.collecting.__main__")
    study = study_json.read(arguments.study, arguments.seal)
    frame = numbers.collect(study, arguments.results)
    numbers.publish(frame, runs.collect_runs(study, arguments.results), arguments.out, study)
    links.link_arms(study, arguments.out.parent)
    print(f"{len(frame)} numbers of {frame['arm'].nunique()} arms: {arguments.out}")


if __name__ == "__main__":
    main()
