"""`longshort plan`, `accept`, `why` and `prune` on a finished study, in words."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pandas
import pytest

from tests.conftest import edit, edit_study, planned, run_snakemake

ARMS = ("baseline", "constant", "ratio", "hidden+output", "step-linear")


def longshort(project: Path, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "longshort.cli", *arguments],
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(project / "src"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert not check or done.returncode == 0, done.stderr
    return done


def plan(project: Path) -> dict:
    return json.loads(longshort(project, "plan", "--study", "tiny", "--json").stdout)


def cell(project: Path, arm: str, column: str) -> float:
    table = pandas.read_parquet(project / "results/tiny/tables/main.parquet")
    return float(table[(table["arm"] == arm) & (table["column"] == column)].sort_values("step")["mean"].iloc[-1])


EVALUATED = {"perplexity": 1, "misalignment": 1, "longbench_e": 1}


def test_nothing_to_do_is_said(finished_copy: Path) -> None:
    assert longshort(finished_copy, "plan", "--study", "tiny").stdout == (
        "study tiny: nothing to do, every result is up to date\n"
    )


def test_a_parameter_is_named_with_both_values_and_the_rest_stays(finished_copy: Path) -> None:
    edit(
        finished_copy,
        "config/arms.yaml",
        "{hidden: {alpha: 1.0, layers: [0.5]}}",
        "{hidden: {alpha: 0.9, layers: [0.5]}}",
    )
    made = plan(finished_copy)
    assert made["why"] == {"hidden+output": ["alignment.hidden.alpha 1 -> 0.9"]}
    assert made["jobs"] == {"hidden+output": {"train": 1, **EVALUATED}}
    assert set(made["stays"]) == {"(base)", *ARMS} - {"hidden+output"}
    assert any("finished trainings of this model" in source for source in made["cost"]["sources"])
    assert made["cost"]["device_hours"] > 0 and made["cost"]["storage_bytes"] > 1000


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"seeds": [0, 1]}, dict.fromkeys(ARMS, ["new seed 1"])),
        ({"arms": [*ARMS, "hidden"]}, {"hidden": ["new arm"]}),
        ({"checkpoints": [2, 4, 6]}, dict.fromkeys(ARMS, ["checkpoint 4 is new"])),
        (
            {"training__steps": 8, "checkpoints": [2, 6, 8]},
            dict.fromkeys(
                ARMS,
                [
                    "training.steps 6 -> 8",
                    "it starts anew: a schedule of its learning rate or alpha ends at the last step, "
                    "or more has changed",
                ],
            ),
        ),
        ({"training__weight_decay": 0.5}, dict.fromkeys(ARMS, ["training.weight_decay 0 -> 0.5"])),
        (
            {"evaluations__perplexity__lengths": [16, 32, 64]},
            dict.fromkeys(["(base)", *ARMS], ["evaluations.perplexity.lengths [16, 32] -> [16, 32, 64]"]),
        ),
    ],
    ids=["seed", "arm", "checkpoint", "last-step", "training", "evaluation"],
)
def test_what_is_new_is_said(finished_copy: Path, change: dict, why: dict) -> None:
    edit_study(finished_copy, **change)
    assert plan(finished_copy)["why"] == why


@pytest.mark.parametrize(
    ("file", "old", "new", "why"),
    [
        (
            "src/longshort/alignment/objective.py",
            "import torch\n",
            "import abc\nimport torch\n",
            dict.fromkeys(["(base)", *ARMS], ["alignment/objective.py changed"]),
        ),
        (
            "src/longshort/evaluation/misalignment.py",
            "import torch\n",
            "import abc\nimport torch\n",
            dict.fromkeys(["(base)", *ARMS], ["evaluation/misalignment.py changed"]),
        ),
        (
            "src/longshort/alignment/schedules.py",
            "* progress(step, steps)\n",
            "* progress(step, steps) ** 2\n",
            {"step-linear": ["alpha of the output differs from step 1 on: 0.4 -> 0.109091"]},
        ),
    ],
    ids=["objective", "evaluation", "schedule"],
)
def test_a_change_of_the_code_is_named(finished_copy: Path, file: str, old: str, new: str, why: dict) -> None:
    edit(finished_copy, file, old, new)
    assert plan(finished_copy)["why"] == why


def test_a_budget_is_kept(finished_copy: Path) -> None:
    edit_study(finished_copy, seeds=[0, 1])
    assert longshort(finished_copy, "plan", "--study", "tiny", "--budget", "100h").returncode == 0
    refused = longshort(finished_copy, "plan", "--study", "tiny", "--budget", "0.0001h", check=False)
    assert refused.returncode != 0 and "more than the budget of 0.0001" in refused.stderr


def test_an_accepted_change_reruns_nothing_and_stands_in_the_notes(finished_copy: Path) -> None:
    edit(finished_copy, "src/longshort/alignment/objective.py", "import torch\n", "import abc\nimport torch\n")
    assert set(plan(finished_copy)["why"]) == {"(base)", *ARMS}
    said = longshort(finished_copy, "accept", "constant", "--study", "tiny", "--because", "an unused import").stdout
    assert "alignment/objective.py" in said
    assert "constant" in plan(finished_copy)["stays"] and "baseline" not in plan(finished_copy)["stays"]
    for arm in ARMS:
        if arm not in ("constant", "ratio"):  # ratio is the same run as constant
            longshort(finished_copy, "accept", arm, "--study", "tiny", "--because", "an unused import")
    assert not plan(finished_copy)["jobs"]
    run_snakemake(finished_copy, "all")
    notes = (finished_copy / "results/tiny/tables/main.md").read_text()
    assert "Accepted by hand for constant" in notes and "because: an unused import" in notes

    again = longshort(finished_copy, "accept", "constant", "--study", "tiny", "--because", "twice", check=False)
    assert again.returncode != 0 and "nothing to accept" in again.stderr
    edit_study(finished_copy, training__weight_decay=0.5)
    refused = longshort(finished_copy, "accept", "constant", "--study", "tiny", "--because", "no", check=False)
    assert refused.returncode != 0 and "never made with these parameters" in refused.stderr

    # Another edit is another change: what was accepted does not cover it.
    edit_study(finished_copy, training__weight_decay=0.0)
    edit(finished_copy, "src/longshort/alignment/objective.py", "import abc\n", "import abc\nimport bisect\n")
    assert planned(finished_copy)["train"] == 5


def test_why_leads_from_a_number_to_what_made_it(finished_copy: Path) -> None:
    said = longshort(finished_copy, "why", "main", "constant", "PPL 32", "--study", "tiny").stdout
    entry = dict(line.split("  ", 1) for line in said.splitlines() if "  " in line)
    entry = {key: value.strip() for key, value in entry.items()}
    value = float(entry["number"].rsplit(" ", 1)[1])
    assert value == pytest.approx(cell(finished_copy, "constant", "perplexity@32"), rel=1e-5)
    assert (finished_copy / entry["specification"]).exists() and (finished_copy / entry["log"]).exists()
    assert entry["file"] == "as published" and "lock=" in entry["environment"] and entry["job"] and entry["commit"]

    numbers = finished_copy / entry["result"]
    numbers.write_bytes(numbers.read_bytes()[:-1] + b"?")
    assert "WAS ALTERED" in longshort(finished_copy, "why", entry["result"]).stdout
    for wrong in (["main", "constant", "PPL 7"], ["main", "nobody", "PPL 32"], ["config/arms.yaml"], ["nowhere"]):
        done = longshort(finished_copy, "why", *wrong, "--study", "tiny", check=False)
        assert done.returncode != 0 and ("has no" in done.stderr or "give" in done.stderr)


def test_prune_shows_what_is_needed_and_deletes_what_is_named(finished_copy: Path) -> None:
    for other in (finished_copy / "config/studies").glob("*.yaml"):
        if other.stem != "tiny":
            other.unlink()
    said = longshort(finished_copy, "prune").stdout
    assert re.search(r"study tiny needs [\d.]+ MB in \d+ folders, [\d.]+ MB of it checkpoints", said)
    assert "0 folders that no study" in said
    run = (finished_copy / "results/tiny/arms/hidden+output/seed-0").resolve().relative_to(finished_copy)
    work = Path("work") / json.loads((finished_copy / run / "training/2-6.json").read_text())["run_id"]
    # A training that was killed has no record yet, and goes on from what it has.
    record = (finished_copy / "results/tiny/arms/constant/seed-0").resolve() / "training/2-6.json"
    record.rename(finished_copy / "aside")
    assert "0 folders that no study" in longshort(finished_copy, "prune").stdout
    (finished_copy / "aside").rename(record)

    refused = longshort(finished_copy, "prune", str(run), "--yes", check=False)
    assert refused.returncode != 0 and f"{run} is not deleted: study tiny needs it" in refused.stderr
    edit_study(finished_copy, arms=[arm for arm in ARMS if arm != "hidden+output"])
    said = longshort(finished_copy, "prune").stdout
    assert str(run) in said and str(work) in said and "2 folders that no study" in said
    refused = longshort(finished_copy, "prune", str(run), "work/nothing", "--yes", check=False)
    assert "work/nothing is not deleted: it is none of those that are listed" in refused.stderr
    assert str(run) in longshort(finished_copy, "prune", "--all", "--yes", "--dry-run").stdout
    assert (finished_copy / run).exists()
    longshort(finished_copy, "prune", str(run), "--yes")
    assert not (finished_copy / run).exists() and (finished_copy / work).exists()
    longshort(finished_copy, "prune", "--all", "--yes")
    assert not (finished_copy / work).exists()
    assert planned(finished_copy).keys() <= {"study", "metrics", "tables", "plots"}
