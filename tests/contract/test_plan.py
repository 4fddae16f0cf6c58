"""`longshort plan`, `accept`, `why` and `prune` on a finished study, in words."""

from __future__ import annotations

import json
import re
import shutil
from base64 import urlsafe_b64encode
from pathlib import Path

import pandas
import pytest

from longshort.jobs import ownership
from longshort.records.publish import file_digest, read_record, write_record
from longshort.training import checkpoints
from tests.support.project import edit, edit_study, longshort, planned, run_python, run_snakemake
from tests.support.reruns import RESULTS

ARMS = ("baseline", "constant", "alpha-1x", "hidden+output", "step-linear")


def plan(project: Path) -> dict:
    return json.loads(longshort(project, "plan", "--study", "tiny", "--json").stdout)


def cell(project: Path, arm: str, column: str) -> float:
    table = pandas.read_parquet(project / "results/tiny/tables/main.parquet")
    return float(table[(table["arm"] == arm) & (table["column"] == column)].sort_values("step")["mean"].iloc[-1])


def each(*why: str) -> dict[str, list[str]]:
    """The same reasons for every arm; alpha-1x has no run of its own."""
    return {**dict.fromkeys(ARMS, [*why]), "alpha-1x": ["the same run as constant"]}


NUMBER = ("main", "constant", "PPL 32")
PERPLEXITY = {"lengths": [16, 32], "documents": 3}
LONGER = "evaluations.perplexity.lengths [16, 32] -> [16, 32, 64]"
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


def test_a_study_of_a_fixed_base_keeps_its_runs(finished_copy: Path) -> None:
    """Finished when study.json named one base; then each seed gets its own, and seed 0 has what it had."""
    path = finished_copy / "results/tiny/study.json"
    before = read_record(path)
    before["base"] = before.pop("bases")["0"]
    write_record(path, {key: value for key, value in before.items() if key != "seal"})
    made = plan(finished_copy)
    assert made["jobs"] == {} and set(made["stays"]) == {"(base)", *ARMS}
    edit_study(finished_copy, seeds=[0, 1], model__seed="per-run")
    made = plan(finished_copy)
    assert made["why"] == {"(base)": ["model.seed 0 -> per-run"], **each("new seed 1")}
    trained = {arm: {"train": 1, **EVALUATED} for arm in ("(base)", *ARMS)}
    assert made["jobs"] == {**trained, "alpha-1x": {}}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"seeds": [0, 1]}, each("new seed 1")),
        ({"arms": [*ARMS, "hidden"]}, {"hidden": ["new arm"]}),
        ({"checkpoints": [2, 4, 6]}, each("checkpoint 4 is new")),
        (
            {"training__steps": 8, "checkpoints": [2, 6, 8]},
            each(
                "training.steps 6 -> 8",
                "it starts anew: a schedule of its learning rate or alpha ends at the last step, or more has changed",
            ),
        ),
        ({"training__weight_decay": 0.5}, each("training.weight_decay 0 -> 0.5")),
        (
            {"evaluations__perplexity__lengths": [16, 32, 64]},
            {"(base)": [LONGER], **each(LONGER)},
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
            "src/longshort/models/head.py",
            "import torch\n",
            "import abc\nimport torch\n",
            {"(base)": ["models/head.py changed"], **each("models/head.py changed")},
        ),
        (
            "src/longshort/evaluation/misalignment.py",
            "import torch\n",
            "import abc\nimport torch\n",
            {"(base)": ["evaluation/misalignment.py changed"], **each("evaluation/misalignment.py changed")},
        ),
        (
            "src/longshort/alignment/schedules.py",
            "* progress(step, steps)\n",
            "* progress(step, steps) ** 2\n",
            {"step-linear": ["alpha of the output differs from step 1 on: 0.4 -> 0.109091"]},
        ),
    ],
    ids=["head", "evaluation", "schedule"],
)
def test_a_change_of_the_code_is_named(finished_copy: Path, file: str, old: str, new: str, why: dict) -> None:
    edit(finished_copy, file, old, new)
    assert plan(finished_copy)["why"] == why


def test_a_budget_is_kept(finished_copy: Path) -> None:
    edit_study(finished_copy, seeds=[0, 1])
    assert longshort(finished_copy, "plan", "--study", "tiny", "--budget", "100h").returncode == 0
    refused = longshort(finished_copy, "plan", "--study", "tiny", "--budget", "0.0001h", check=False)
    assert refused.returncode != 0 and "more than the budget of 0.0001" in refused.stderr
    assert "arms that fit, in the order of the file, whole: none" in refused.stderr
    for wrong in ("", "nan", "-1h", "200 hours"):
        refused = longshort(finished_copy, "plan", "--study", "tiny", f"--budget={wrong}", check=False)
        assert refused.returncode != 0 and f"--budget {wrong!r}: give device-hours" in refused.stderr


def test_the_engine_starts_nothing_beyond_a_budget(finished_copy: Path) -> None:
    """What is finished costs nothing, so that an empty budget does for a finished study."""
    engine = ["-m", "snakemake", "all", "--cores", "2", "--config", "study=tiny"]
    assert run_python(finished_copy, *engine, "budget=0").returncode == 0
    edit_study(finished_copy, seeds=[0, 1])
    before = {path for path in finished_copy.rglob("*") if ".snakemake" not in path.parts}
    done = run_python(finished_copy, *engine, "budget=0.0001h", check=False)
    assert done.returncode != 0 and "more than the budget of 0.0001" in done.stderr and "Traceback" not in done.stderr
    assert {path for path in finished_copy.rglob("*") if ".snakemake" not in path.parts} == before
    planned_alike = longshort(finished_copy, "plan", "--study", "tiny", "--budget", "0.0001", check=False)
    assert planned_alike.stderr.strip() in done.stderr
    slow = ["--throughput", "1e6", "--budget", "0.0001"]
    planned_alike = longshort(finished_copy, "plan", "--study", "tiny", *slow, check=False)
    done = run_python(finished_copy, *engine, "budget=0.0001h", "throughput=1e6", check=False)
    assert planned_alike.stderr.strip() in done.stderr
    done = run_python(finished_copy, *engine, "budget=much", "--dry-run", check=False)
    assert done.returncode != 0 and "--config budget='much': give device-hours" in done.stdout + done.stderr


def test_a_run_of_two_arms_is_counted_once(finished_copy: Path) -> None:
    edit_study(finished_copy, training__weight_decay=0.5)
    said = longshort(finished_copy, "plan", "--study", "tiny").stdout
    counts = [line for line in said.splitlines() if "1 train" in line]
    assert "\n  alpha-1x: the same run as constant\n" in said and len(counts) == 1 and "alpha-1x" not in counts[0]


@pytest.mark.wide
def test_of_one_target_nothing_is_said_of_the_others(finished_copy: Path) -> None:
    edit(finished_copy, "src/longshort/evaluation/misalignment.py", "import torch\n", "import abc\nimport torch\n")
    assert longshort(finished_copy, "plan", "results/tiny/study.json", "--study", "tiny").stdout == (
        "study tiny: nothing to do for results/tiny/study.json\n"
    )
    numbers = next((finished_copy / "results/tiny/arms/constant/seed-0").resolve().glob("misalignment/*/2-6.parquet"))
    said = longshort(finished_copy, "plan", str(numbers.relative_to(finished_copy)), "--study", "tiny").stdout
    assert "  constant: 1 misalignment\n" in said and "stays" not in said
    refused = longshort(finished_copy, "plan", "nonsense", "--study", "tiny", check=False)
    assert refused.stderr.startswith("snakemake cannot plan nonsense:\nMissingRuleException")


def test_what_a_killed_job_left_is_planned(finished_copy: Path) -> None:
    record = next(finished_copy.glob("results/runs/*/perplexity/*/2-6.json"))
    name = urlsafe_b64encode(str(record.relative_to(finished_copy)).encode()).decode()
    (finished_copy / ".snakemake/incomplete" / name).write_text("{}")
    assert sum(jobs.get("perplexity", 0) for jobs in plan(finished_copy)["jobs"].values()) == 1


@pytest.mark.wide
def test_a_training_goes_on_only_where_what_it_went_on_from_is_there(finished_copy: Path) -> None:
    edit_study(finished_copy, arms=["baseline"], overrides={}, evaluations={"perplexity": PERPLEXITY})
    edit_study(finished_copy, training__learning_rate_schedule="constant")
    run_snakemake(finished_copy, "metrics")
    edit_study(finished_copy, training__steps=8, checkpoints=[2, 6, 8])
    steps = "training.steps 6 -> 8"
    goes_on, anew = (
        "it goes on from the checkpoint of step 6",
        "it starts anew: no checkpoint of the present code, corpus and base is there to go on from",
    )
    assert plan(finished_copy)["why"]["baseline"] == [steps, goes_on]
    module = "src/longshort/models/head.py"
    edit(finished_copy, module, "import torch\n", "import abc\nimport torch\n")
    assert plan(finished_copy)["why"]["baseline"] == [steps, anew]
    edit(finished_copy, module, "import abc\nimport torch\n", "import torch\n")
    shutil.rmtree(finished_copy / "work")
    assert plan(finished_copy)["why"]["baseline"] == [steps, anew]


@pytest.mark.wide
def test_an_edit_that_was_run_and_taken_back_costs_nothing(finished_copy: Path) -> None:
    edit_study(finished_copy, arms=["baseline"], overrides={}, evaluations={"perplexity": PERPLEXITY})
    run_snakemake(finished_copy, "metrics")
    edit_study(finished_copy, training__weight_decay=0.5)
    run_snakemake(finished_copy, "metrics")
    edit_study(finished_copy, training__weight_decay=0.0)
    assert planned(finished_copy) == RESULTS
    assert not plan(finished_copy)["jobs"]


@pytest.mark.parametrize(
    ("pattern", "commands"),
    [
        ("results/accepted.json", [["plan", "--study", "tiny"], ["prune"]]),
        ("results/tiny/study.json", [["plan", "--study", "tiny"], ["why", "main", "constant", "PPL 32"]]),
        ("results/runs/*/training/2-6.json", [["plan", "--study", "tiny"], ["prune"]]),
    ],
)
def test_a_file_that_was_cut_is_named(finished_copy: Path, pattern: str, commands: list[list[str]]) -> None:
    accepted = finished_copy / "results/accepted.json"
    accepted.write_text("[{}]")
    path = next(finished_copy.glob(pattern))
    if path != accepted:
        accepted.unlink()
    path.write_text(path.read_text()[:-3])
    for command in commands:
        study = ["--study", "tiny"] if command[0] == "why" else []
        done = longshort(finished_copy, *command, *study, check=False)
        assert done.returncode != 0 and "Traceback" not in done.stderr
        assert str(path.relative_to(finished_copy)) in done.stderr


def test_an_accepted_change_reruns_nothing_and_stands_in_the_notes(finished_copy: Path) -> None:
    edit(finished_copy, "src/longshort/models/head.py", "import torch\n", "import abc\nimport torch\n")
    assert set(plan(finished_copy)["why"]) == {"(base)", *ARMS}
    said = longshort(finished_copy, "accept", "constant", "--study", "tiny", "--because", "an unused import").stdout
    assert "models/head.py" in said
    assert "constant" in plan(finished_copy)["stays"] and "baseline" not in plan(finished_copy)["stays"]
    for arm in ARMS:
        if arm not in ("constant", "alpha-1x"):  # alpha-1x is the same run as constant
            longshort(finished_copy, "accept", arm, "--study", "tiny", "--because", "an unused import")
    assert not plan(finished_copy)["jobs"]
    run_snakemake(finished_copy, "results/tiny/tables/main.md")
    notes = (finished_copy / "results/tiny/tables/main.md").read_text()
    assert "Accepted by hand for constant" in notes and "because: an unused import" in notes

    again = longshort(finished_copy, "accept", "constant", "--study", "tiny", "--because", "twice", check=False)
    assert again.returncode != 0 and "nothing to accept" in again.stderr
    edit_study(finished_copy, training__weight_decay=0.5)
    refused = longshort(finished_copy, "accept", "constant", "--study", "tiny", "--because", "no", check=False)
    assert refused.returncode != 0 and "never made with these parameters" in refused.stderr

    # Another edit is another change: what was accepted does not cover it.
    edit_study(finished_copy, training__weight_decay=0.0)
    edit(finished_copy, "src/longshort/models/head.py", "import abc\n", "import abc\nimport bisect\n")
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
    record = numbers.with_suffix(".json")
    record.write_text(record.read_text().replace('"host"', '"guest"'))
    assert "WAS ALTERED since it was published" in longshort(finished_copy, "why", entry["result"]).stdout
    items = next(
        (finished_copy / "results/tiny/arms/constant/seed-0").resolve().glob("longbench_e/*/2-6.items.parquet")
    )
    assert "as published" in longshort(finished_copy, "why", str(items)).stdout
    manifest = next(finished_copy.glob("results/data/*/manifest.json"))
    assert "/prepare.log" in longshort(finished_copy, "why", str(manifest)).stdout
    for step in ("0", "4"):
        said = longshort(finished_copy, "why", *NUMBER, "--study", "tiny", "--step", step, check=False)
        assert said.returncode != 0 and f"row constant has no step {step}; it has 2, 6" in said.stderr
    for wrong in (["main", "constant", "PPL 7"], ["main", "nobody", "PPL 32"], ["config/arms.yaml"], ["nowhere"]):
        done = longshort(finished_copy, "why", *wrong, "--study", "tiny", check=False)
        assert done.returncode != 0 and ("has no" in done.stderr or "give" in done.stderr)


def test_a_number_of_an_earlier_run_is_not_taken_for_one_of_the_present(finished_copy: Path) -> None:
    metrics = finished_copy / "results/tiny/metrics.parquet"
    rows = pandas.read_parquet(metrics)
    rows.loc[rows["arm"].eq("constant"), "run_id"] = "0" * 16
    rows.to_parquet(metrics, index=False)
    edited = longshort(finished_copy, "why", *NUMBER, "--study", "tiny", check=False)
    assert edited.returncode != 0 and "metrics.parquet is not the file that was collected" in edited.stderr
    assert "Traceback" not in edited.stderr
    write_record(metrics.with_suffix(".json"), {"sha256": file_digest(metrics)})
    said = longshort(finished_copy, "why", *NUMBER, "--study", "tiny").stdout
    assert f"the number is of run id {'0' * 16}" in said and "run snakemake again" in said


def test_prune_shows_what_is_needed_and_deletes_what_is_named(finished_copy: Path) -> None:
    for other in (finished_copy / "config/studies").glob("*.yaml"):
        if other.stem != "tiny":
            other.unlink()
    said = longshort(finished_copy, "prune").stdout
    assert re.search(r"study tiny needs [\d.]+ MB in \d+ folders, [\d.]+ kB of it checkpoints", said)
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
    assert planned(finished_copy).keys() <= RESULTS.keys()


@pytest.mark.wide
def test_prune_takes_the_states_that_an_older_version_kept(finished_copy: Path) -> None:
    """A study that was finished then is read as it is; what is trained on from there is tested with the stage."""
    for other in (finished_copy / "config/studies").glob("*.yaml"):
        if other.stem != "tiny":
            other.unlink()
    said = longshort(finished_copy, "prune").stdout
    assert re.search(r"each of its trainings takes up to [\d.]+ [kM]B more while it runs", said)
    assert "states" not in said
    record = read_record((finished_copy / "results/tiny/arms/constant/seed-0").resolve() / "training/2-6.json")
    before = {}
    for checkpoint in record["checkpoints"].values():
        folder = finished_copy / checkpoint["path"]
        before |= {path: path.read_bytes() for path in folder.iterdir()}
        (folder / "global_step").mkdir()
        (folder / "global_step/optim_states.pt").write_bytes(bytes(10**6))
        checkpoints.seal(folder)
    assert planned(finished_copy) == {}
    said = longshort(finished_copy, "prune", "--states", "--dry-run").stdout
    assert "2 MB of it are states that no training goes on from" in said and "deleted" not in said
    work = (finished_copy / checkpoint["path"]).parent
    with ownership.sole_owner(work):
        assert "states" not in longshort(finished_copy, "prune", "--states", "--yes").stdout
    assert "deleted 2 MB of states" in longshort(finished_copy, "prune", "--states", "--yes").stdout
    left = {path: path.read_bytes() for folder in work.glob("checkpoint-*") for path in folder.iterdir()}
    assert left == before and planned(finished_copy) == {}


def test_prune_touches_nothing_but_what_the_layout_made_and_nobody_uses(finished_copy: Path) -> None:
    for other in (finished_copy / "config/studies").glob("*.yaml"):
        if other.stem != "tiny":
            other.unlink()
    work = finished_copy / "work"
    # Named like one of the layout's own, and by the study.
    (finished_copy / "corpus").rename(work / "0123456789abcdef")
    edit_study(finished_copy, data__corpus={"kind": "text", "path": "work/0123456789abcdef"})
    (work / "texts").mkdir()
    (finished_copy / "results/runs/notes").mkdir()
    (work / "fedcba9876543210").symlink_to(work / "texts")
    (work / "aaaaaaaaaaaaaaaa").mkdir()
    # As of a corpus the runs of old are needed no more, but one of them is being trained, and one evaluated.
    arms = {arm: finished_copy / f"results/tiny/arms/{arm}/seed-0" for arm in ("baseline", "constant")}
    runs = {arm: folder.resolve() for arm, folder in arms.items()}
    trained = work / json.loads((runs["baseline"] / "training/2-6.json").read_text())["run_id"]
    (runs["constant"] / "training/2-6.heartbeat").write_text(json.dumps({"state": "running"}))
    with ownership.sole_owner(trained):
        said = longshort(finished_copy, "prune", "--all", "--yes").stdout
    assert "to be deleted: " in said and f"{(work / 'aaaaaaaaaaaaaaaa').relative_to(finished_copy)}" in said
    assert not (work / "aaaaaaaaaaaaaaaa").exists()
    left = [*runs.values(), trained, work / "texts", work / "fedcba9876543210", work / "0123456789abcdef"]
    assert all(path.exists() for path in [*left, finished_copy / "results/runs/notes"])
    assert list((work / "0123456789abcdef").glob("*.txt"))
