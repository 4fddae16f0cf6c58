"""`python -m tests.fuzz --mutations 1000 --seed 1`: what is edited by hand, cut, exchanged or set beside a study is
refused by name or taken for what it says: no traceback, no hang, nothing half-written, no number from what was altered.

Prints a line a mutation that went wrong, and a table of the outcomes by kind; exits with 1 where one went wrong.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tests.fuzz import configuration, corpora, engine, models, published, surroundings
from tests.support import forkserver
from tests.support.project import ROOT, UNFINISHED, run_whole_study

KINDS: dict[str, engine.Kind] = {
    **configuration.KINDS,
    **models.KINDS,
    **corpora.KINDS,
    **published.KINDS,
    **surroundings.KINDS,
}


def mutations(count: int, seed: int, only: str = "") -> list[tuple[str, int]]:
    """Kind and number of each, every kind as often as it has weight."""
    kinds = [kind for kind in KINDS if only in kind]
    weights = [configuration.WEIGHTS.get(kind, 1) for kind in kinds]
    return list(enumerate_kinds(random.Random(seed), kinds, weights, count))


def enumerate_kinds(draw: random.Random, kinds: list[str], weights: list[int], count: int) -> Iterator[tuple[str, int]]:
    seen: Counter[str] = Counter()
    # Each kind once, then by weight.
    for kind in (kinds + draw.choices(kinds, weights, k=max(0, count - len(kinds))))[:count]:
        yield kind, seen[kind]
        seen[kind] += 1


def fuzz(finished: Path, folder: Path, count: int, seed: int, only: str = "") -> Iterator[engine.Outcome]:
    """Runs the mutations on copies of a finished study."""
    template = folder / "template"
    shutil.copytree(finished, template, symlinks=True, ignore=shutil.ignore_patterns("src", "*.egg-info", *UNFINISHED))
    (template / "src").symlink_to(ROOT / "src")
    models.write(template)
    configuration.write(template)
    bare = folder / "bare"
    shutil.copytree(template, bare, symlinks=True, ignore=lambda path, names: {"results", "work", ".snakemake"})
    for kind, number in mutations(count, seed, only):
        whole = kind in models.KINDS or kind in published.KINDS or kind in surroundings.KINDS
        yield engine.run(kind, KINDS[kind], number, seed, template if whole else bare, folder / "project")


def table(found: list[engine.Outcome]) -> str:
    counts = Counter((one.kind, one.outcome) for one in found)
    shown = [outcome for outcome in engine.OUTCOMES if any(counts[kind, outcome] for kind in KINDS)]
    lines = [f"{'':40}" + "".join(f"{outcome:>13}" for outcome in shown)]
    for kind in KINDS:
        if any(counts[kind, outcome] for outcome in shown):
            lines.append(f"{kind:40}" + "".join(f"{counts[kind, outcome]:13}" for outcome in shown))
    lines.append(f"{'all':40}" + "".join(f"{sum(counts[kind, o] for kind in KINDS):13}" for o in shown))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutations", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", help="kinds whose name has this in it")
    parser.add_argument("--finished", type=Path, help="a finished study of the tests; default: one is made")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    forkserver.use(folder)
    finished = arguments.finished or folder / "finished"
    if not arguments.finished:
        run_whole_study(finished)
    found = []
    for one in fuzz(finished, folder, arguments.mutations, arguments.seed, arguments.only):
        found.append(one)
        if not one.good:
            print(f"{one.kind} {one.number}: {one.what}: {one.outcome}: {one.said}\n", flush=True)
        if len(found) % 50 == 0:
            print(f"{len(found)} of {arguments.mutations} mutations", flush=True)
    shutil.rmtree(folder)
    print(table(found))
    bad = sum(not one.good for one in found)
    print(f"{len(found)} mutations, seed {arguments.seed}: {bad} went wrong")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
