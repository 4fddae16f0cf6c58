"""The typed study: what resolves to what, and what a mistake is answered with."""

from __future__ import annotations

import copy
import math
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from longshort import studies
from longshort.commands import cost
from longshort.commands.schema import schema_files
from longshort.errors import StudyError
from longshort.study import resolve
from tests.support.project import ROOT, TINY, longshort, run_snakemake, write_study


@pytest.fixture
def config(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(project)
    return project / "config"


def load(config: Path, **changes: object) -> resolve.ResolvedStudy:
    values = copy.deepcopy(TINY)
    for path, value in changes.items():
        holder = values
        *parents, last = path.split("__")
        for parent in parents:
            holder = holder[parent]
        holder[last] = value
    write_study(config.parent, values)
    return resolve.load("tiny")


def arms_yaml(config: Path, **arms: dict) -> None:
    path = config / "arms.yaml"
    values = yaml.safe_load(path.read_text())
    for name, patch in arms.items():
        values["arms"][name] = {"description": name, **patch}
    path.write_text(yaml.safe_dump(values, sort_keys=False))


PRETRAINED = {"kind": "pretrained", "name": "some/model", "layers": 3, "max_length": 128}
ADAPTER = {"kind": "qlora", "rank": 4, "alpha": 8.0}
COMMIT = "give the commit, so that the study stays the same"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"lenghts": 1}, ["lenghts", "unknown key", "did you mean 'lengths'"]),
        ({"arms": ["baseline", "step-linaer"]}, ["'step-linaer'", "unknown arm", "did you mean 'step-linear'"]),
        ({"training__batch": "many"}, ["training.batch", "'many'", "windows per optimiser step"]),
        ({"alignment__alpha": -0.5}, ["study tiny: alignment.alpha = -0.5: must be at least 0 (weight"]),
        ({"alignment__sampling_range": 1.5}, ["study tiny: alignment.sampling_range = 1.5: must be at most 1 ("]),
        ({"alignment__sampling_range": 0.05}, ["alignment.sampling_range = 0.05", "less than one token", "0.0625"]),
        (
            {"overrides": {"constant": {"alignment": {"alpha": -0.5}}}},
            ["study tiny, arm constant: alignment.alpha = -0.5: must be at least 0 (weight"],
        ),
        ({"overrides": {"constant": {"alignment": {"alhpa": 1}}}}, ["arm constant", "alhpa", "did you mean 'alpha'"]),
        (
            {"overrides": {"constant": {"control": "baseline"}}},
            ["overrides.constant.control", "unknown key", "training"],
        ),
        ({"overrides": {"constant": {"training": {"steps": 4}}}}, ["arm constant", "checkpoints = 6", "1..4"]),
        (
            {"lengths": {"train": 16}, "arms": ["baseline", "ratio", "constant"]},
            ["arm ratio", "l_test", "lengths.test"],
        ),
        ({"tables__main__arms": ["baseline", "hidden"]}, ["tables.main.arms", "'hidden'", "add it to arms"]),
        ({"tables__main__arms": ["baseline", "baseline"]}, ["tables.main.arms", "'baseline' stands there twice"]),
        ({"tables__main__arms": []}, ["tables.main.arms = []", "needs a row"]),
        ({"tables__main__compare_with": "control"}, ["tables.main.compare_with", "'control'", "use baseline"]),
        ({"arms": ["baseline", "constant", "baseline"]}, ["arms", "'baseline'", "twice"]),
        ({"seeds": [0.5]}, ["seeds.0", "0.5", "integer"]),
        ({"seeds": [1.0]}, ["seeds.0 = 1.0: must be an integer (one run of every arm for each)"]),
        ({"seeds": ["one"]}, ["seeds.0", "'one'", "integer"]),
        ({"seeds": [-1]}, ["seeds.0 = -1: must be at least 0"]),
        ({"seeds": [2**31]}, ["seeds.0 = 2147483648: must be below 2147483648"]),
        ({"evaluations": {}}, ["evaluations", "nothing is measured", "give longbench_e"]),
        ({"evaluations__perplexity__lengths": [16, 16]}, ["evaluations.perplexity.lengths", "16 stands there twice"]),
        ({"evaluations__perplexity__lengths": [0]}, ["evaluations.perplexity.lengths.0 = 0: must be above 0"]),
        (
            {
                "evaluations__perplexity": {
                    "lengths": [16, 40],
                    "documents": 1,
                    "beside": {"kind": "block", "chunk": 16},
                }
            },
            ["evaluations.perplexity", "beside.chunk 16 does not divide the length 40", "change one of the two"],
        ),
        ({"evaluations__misalignment__beyond": [2, 2]}, ["evaluations.misalignment.beyond", "2 stands there twice"]),
        ({"evaluations__misalignment__beyond": [1]}, ["evaluations.misalignment.beyond.0 = 1: must be above 1"]),
        (
            {"evaluations__longbench_e": {"source": {"kind": "stand-in", "items_per_task": 1}, "max_length": 128}},
            ["evaluations.longbench_e", "max_length 128", "answer of 512", "give max_length 528"],
        ),
        (
            {
                "evaluations__longbench_e": {
                    "source": {"kind": "folder", "path": "gone"},
                    "max_length": 64,
                    "max_new_tokens": 4,
                }
            },
            ["evaluations.longbench_e.source.path = 'gone'", "no folder there"],
        ),
        ({"evaluations__harness": []}, ["evaluations.harness.tasks", "must have at least 1 entry"]),
        ({"evaluations__harness": ["my/task.yaml"]}, ["evaluations.harness.tasks", "'my/task.yaml'", "include_path"]),
        ({"evaluations__harness": ["ruler@4096", "ruler@4096"]}, ["'ruler@4096' stands there twice"]),
        (
            {"evaluations__harness": {"tasks": ["wikitext"], "lower_is_better": ["wikitxt"]}},
            ["evaluations.harness", "lower_is_better has 'wikitxt', which tasks has not"],
        ),
        (
            {"evaluations__harness": {"tasks": ["wikitext"], "max_length": 256}},
            ["evaluations.harness.max_length = 256", "model.max_length 128"],
        ),
        (
            {"evaluations__harness": {"tasks": ["own"], "include_path": "gone"}},
            ["evaluations.harness.include_path = 'gone'", "no .yaml file there"],
        ),
        ({"data__corpus__path": "gone"}, ["data.corpus.path = 'gone'", "no file there"]),
        ({"model": {**PRETRAINED, "name": "./gone"}}, ["model.name = './gone'", "no folder there"]),
        ({"model": PRETRAINED}, ["model.revision", "'some/model'", COMMIT]),
        ({"data__tokenizer": {"kind": "pretrained", "name": "some/model"}}, ["data.tokenizer.revision", COMMIT]),
        (
            {"data__corpus": {"kind": "hub", "dataset": "some/texts", "revision": "main"}},
            ["data.corpus.revision = 'main': must have the form ^[0-9a-f]{40}$ (commit of the", "40 hexadecimal"],
        ),
        (
            {"evaluations__longbench_e": {"source": {"kind": "hub", "revision": "v1"}, "max_length": 600}},
            ["evaluations.longbench_e.source.revision = 'v1': must have the form", "40 hexadecimal"],
        ),
        (
            {"data__tokenizer": {"kind": "pretrained", "name": "some/model", "revision": "main"}},
            ["data.tokenizer.revision = 'main': must have the form", "40 hexadecimal"],
        ),
        ({"model": {**PRETRAINED, "revision": "0123abc"}}, ["model.revision = '0123abc': must have", "40 hexadecimal"]),
        (
            {"evaluations__perplexity__lengths": [256]},
            ["evaluations.perplexity.lengths", "256", "model.max_length 128"],
        ),
        ({"evaluations__misalignment__beyond": [16]}, ["evaluations.misalignment.beyond", "256", "model.max_length"]),
        ({"checkpoints": [2, 7]}, ["checkpoints", "7", "training.steps"]),
        ({"checkpoints": [True]}, ["checkpoints.0 = True: must be an integer"]),
        ({"training__deepspeed": "../arms"}, ["training.deepspeed", "'../arms'", "zero1"]),
        ({"training__deepspeed": "zero9"}, ["training.deepspeed", "'zero9'", "zero1"]),
        ({"alignment__stop_gradient": "targets"}, ["alignment", "sce only"]),
        ({"alignment__schedule": {"kind": "step"}}, ["alignment.schedule.kind", "'step'", "linear"]),
        ({"alignment__schedule": {"start": 1}}, ["alignment.schedule", "kind"]),
        ({"model__kind": "made"}, ["model.kind", "'made'", "'trained'"]),
        ({"training__batch": 3, "training__micro_batch": 2}, ["training", "batch 3", "micro_batch 2"]),
        ({"arms": ["baseline", "step-linear"]}, ["arm step-linear", "control", "'constant'"]),
        (
            {"training__adapter": ADAPTER, "training__deepspeed": "zero3"},
            ["training.adapter = 'qlora': training.deepspeed = 'zero3' divides", "zero2"],
        ),
        (
            {"training__adapter": ADAPTER, "model__rope": {"kind": "clex"}},
            ["training.adapter = 'qlora': model.rope clex trains weights of its own", "train all weights"],
        ),
        ({"model__training__adapter": ADAPTER}, ["model.training", "trained whole"]),
        (
            {"training__attention": "shifted-sparse", "model__rope": {"kind": "eabf"}},
            ["training.attention = 'shifted-sparse': model.rope eabf", "use full"],
        ),
        (
            {"training__attention": "shifted-sparse", "lengths": {"train": 12}},
            ["training.attention = 'shifted-sparse': lengths.train 12 is no multiple of 8"],
        ),
    ],
)
def test_mistakes_are_named_with_place_value_and_remedy(config: Path, changes: dict, said: list[str]) -> None:
    with pytest.raises(StudyError) as error:
        load(config, **changes)
    for part in ["study tiny", *said]:
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("layer", "valid"), [(0.5, True), (1, True), (2.0, True), (3, False), (0, False), (1.5, False)]
)
def test_layers_are_blocks_or_fractions_of_the_depth(config: Path, layer: float, valid: bool) -> None:
    arms_yaml(config, chosen={"alignment": {"hidden": {"alpha": 1, "layers": [layer]}}})
    if valid:
        run = load(config, arms=["baseline", "chosen"]).arm_runs["chosen"][0]
        assert resolve.load("tiny").runs[run].alignment.hidden.layers == [{0.5: 2, 1: 1, 2.0: 2}[layer]]
    else:
        with pytest.raises(StudyError, match=r"arm chosen: alignment.hidden.layers = .* use 1..2"):
            load(config, arms=["baseline", "chosen"])


@pytest.mark.parametrize("layers", [[1, 2, 2], [2, 0.5, 1]])
def test_a_block_that_is_named_twice_is_told(config: Path, layers: list[float]) -> None:
    arms_yaml(config, chosen={"alignment": {"hidden": {"alpha": 1, "layers": layers}}})
    with pytest.raises(StudyError, match=r"hidden.layers = \[.*\]: two of them are block 2; name it once"):
        load(config, arms=["baseline", "chosen"])


@pytest.mark.parametrize(
    ("added", "said"),
    [
        (b"title: Another", r"tiny.yaml, line \d+: 'title' stands there twice"),
        (b"[1, 2]: x", r"tiny.yaml, line \d+: \[1, 2\] is no key"),
        (b"name: caf\xe9", r"tiny.yaml is no UTF-8 text"),
        (b"a: b: c", r"tiny.yaml is no valid YAML"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(config: Path, added: bytes, said: str) -> None:
    path = config / "studies" / "tiny.yaml"
    path.write_bytes(path.read_bytes() + b"\n" + added + b"\n")
    with pytest.raises(StudyError, match=said):
        resolve.load("tiny")


@pytest.mark.parametrize(
    ("patch", "said"),
    [
        ({"alignment": {"alhpa": 1}}, r"alignment.alhpa = 1: unknown key; did you mean 'alpha'"),
        ({"training": {"step": 1}}, r"training.step = 1: unknown key; did you mean 'steps'"),
        ({"control": "unused"}, r"control = 'unused': an arm is no control of itself"),
    ],
)
def test_an_arm_that_no_study_uses_is_checked_too(config: Path, patch: dict, said: str) -> None:
    arms_yaml(config, unused=patch)
    with pytest.raises(StudyError, match=r"config/arms.yaml, arm unused: " + said):
        resolve.load("tiny")


@pytest.mark.parametrize("content", ['{"train_batch_size": 8}', "[]", "{"])
def test_a_deepspeed_file_leaves_the_batch_to_the_study(config: Path, content: str) -> None:
    (config / "deepspeed" / "mine.json").write_text(content)
    with pytest.raises(StudyError, match=r"mine.json.*('auto'|no JSON object|no valid JSON)"):
        load(config, training__deepspeed="mine")


def test_plots_are_those_of_the_metrics(config: Path) -> None:
    files = load(config, evaluations__perplexity=None).plot_files()
    assert {Path(file).stem for file in files} == {"misalignment", "misalignment-grid", "training", "schedules", "gain"}
    files = load(config, evaluations__misalignment__grid_sequences=0).plot_files()
    assert {Path(file).stem for file in files} == {
        "perplexity",
        "misalignment",
        "training",
        "schedules",
        "gain",
        "correlation",
    }


def test_a_list_of_harness_tasks_is_short_for_the_mapping(config: Path) -> None:
    short = load(config, evaluations__harness=["hellaswag", "ruler@64"])
    identity, evaluation = short.evaluations["harness"]
    assert evaluation.settings.max_length == 128  # the model's
    assert cost.estimate(short, [cost.Work("harness", short.base, "4")], jobs_at_once=1).device_hours > 0
    written = {"tasks": ["hellaswag", "ruler@64"], "max_length": 128}
    assert load(config, evaluations__harness=written).evaluations["harness"][0] == identity
    assert load(config, evaluations__harness={**written, "limit": 5}).evaluations["harness"][0] != identity
    assert load(config).evaluations.keys() == {"perplexity", "misalignment"}


def test_own_harness_tasks_are_inputs_with_names_of_their_own(config: Path) -> None:
    for name in ("own.yaml", "items.jsonl", "__pycache__/utils.pyc"):
        (config.parent / "tasks" / name).parent.mkdir(parents=True, exist_ok=True)
        (config.parent / "tasks" / name).write_text("task: own")
    harness = {"tasks": ["own"], "include_path": "tasks"}
    assert load(config, evaluations__harness=harness).items("harness") == ["tasks/items.jsonl", "tasks/own.yaml"]
    (config.parent / "tasks" / "more").mkdir()
    (config.parent / "tasks" / "more" / "items.jsonl").write_text("")
    with pytest.raises(StudyError, match=r"include_path = 'tasks': two files there are called items.jsonl"):
        load(config, evaluations__harness=harness)


def test_a_mistake_stops_the_workflow_before_anything_is_written(project: Path) -> None:
    write_study(project, {**TINY, "seeds": ["one"]})
    done = run_snakemake(project, "all", check=False)
    assert done.returncode != 0
    assert "study tiny: seeds.0 = 'one'" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (project / "results").exists()


@pytest.mark.parametrize("command", [["check"], ["tables", "--partial"]])
def test_the_command_line_answers_a_mistake_without_a_traceback(project: Path, command: list[str]) -> None:
    done = longshort(project, *command, "--study", "tinny", check=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "study 'tinny' is unknown: did you mean 'tiny'?" in done.stderr
    assert not (project / "results").exists()


def test_equal_arms_are_one_run(config: Path) -> None:
    alignment = {"overrides": {"ratio": {"alignment": {"alpha": 0.25}}}}
    resolved = load(config, arms=["baseline", "constant", "ratio", "alpha-1.0"], **alignment)
    assert resolved.arm_runs["ratio"] == resolved.arm_runs["constant"] == resolved.arm_runs["alpha-1.0"]
    assert len(resolved.runs) == 3


def test_an_arm_may_change_the_context_extension(config: Path) -> None:
    arms_yaml(config, scaled={"rope": {"plain_layers": 0}}, far={"rope": {"max_factor": 8}})
    eabf = {"kind": "eabf", "theta": 1000.0}
    resolved = load(config, arms=["baseline", "constant", "scaled"], model__rope=eabf)
    ropes = {arm: resolved.runs[runs[0]].rope.model_dump() for arm, runs in resolved.arm_runs.items()}
    usual = {**eabf, "plain_layers": 2}
    assert ropes == {"baseline": usual, "constant": usual, "scaled": {**usual, "plain_layers": 0}}
    with pytest.raises(
        StudyError, match=r"arm scaled: rope = .*: the study has no model\.rope to change; take the arm"
    ):
        load(config, arms=["baseline", "scaled"])
    with pytest.raises(StudyError, match=r"arm far: rope\.max_factor"):
        load(config, arms=["baseline", "far"], model__rope=eabf)


def test_what_has_no_effect_makes_no_other_run(config: Path) -> None:
    hidden = {"alpha": 0, "hidden": {"alpha": 1, "layers": [0.5]}}
    arms_yaml(
        config,
        never={"alignment": {"schedule": {"kind": "linear", "start": 0, "end": 0}}},
        states={"alignment": hidden},
        targets={"alignment": {**hidden, "stop_gradient": "targets"}},
        first={"alignment": {**hidden, "stop_gradient": "first"}},
    )
    runs = load(config, alignment={}, arms=["baseline", "never", "states", "targets", "first"]).arm_runs
    assert runs["never"] == runs["baseline"]
    assert runs["targets"] == runs["states"] != runs["first"]


def test_what_is_only_checked_of_a_pretrained_model_is_no_part_of_a_run(config: Path) -> None:
    named = {**PRETRAINED, "revision": "0123abcd" * 5}
    runs = load(config, model=named).arm_runs
    assert load(config, model={**named, "layers": 4, "max_length": 256}).arm_runs == runs
    assert load(config, model={**named, "revision": "4567abcd" * 5}).arm_runs != runs


@pytest.mark.parametrize(("share", "most"), [(0.29, 29), (0.5, 50), (1, 99)])
def test_the_sampling_range_is_rounded_down_to_tokens(config: Path, share: float, most: int) -> None:
    resolved = load(config, lengths={"train": 100}, evaluations__misalignment=None, alignment__sampling_range=share)
    assert resolved.runs[resolved.arm_runs["constant"][0]].alignment.max_extra == most


def test_a_shared_table_is_made_of_the_arms_that_the_study_has(config: Path) -> None:
    tables = load(config, arms=["baseline", "constant", "alpha-1.0", "alpha-0.3"], tables={}).tables
    assert list(tables) == ["main", "lengths", "cost", "alpha"]
    assert tables["alpha"].arms == ["baseline", "alpha-0.3", "alpha-1.0"]


def test_baseline_does_not_depend_on_what_it_leaves_out(config: Path) -> None:
    plain = load(config).arm_runs["baseline"]
    other = load(
        config, alignment={"alpha": 1.0, "divergence": "js", "schedule": {"kind": "linear", "start": 0, "end": 1}}
    )
    assert other.arm_runs["baseline"] == plain


def test_notation_does_not_matter_and_values_do(config: Path) -> None:
    runs = load(config, alignment={"alpha": 0.1, "divergence": "sce"}).arm_runs
    assert load(config, alignment={"divergence": "sce", "alpha": "1e-1"}).arm_runs == runs
    sce = {"alignment": {"alpha": 0.1, "divergence": "sce"}}
    execution = {"training__micro_batch": 2, "training__chunk_size": 64, "training__logging_steps": 5}
    assert load(config, **sce, **execution).arm_runs == runs
    assert load(config, alignment={"alpha": 0.1000001, "divergence": "sce"}).arm_runs["constant"] != runs["constant"]
    assert load(config, training__learning_rate=0.02).arm_runs["baseline"] != runs["baseline"]


@pytest.mark.parametrize("name", ["step-linear", "step-cosine", "step-exponential", "ratio-curriculum"])
def test_a_schedule_uses_as_much_alpha_as_its_control(config: Path, name: str) -> None:
    resolved = load(config, arms=["baseline", "constant", "ratio-curriculum-control", name])
    spent, control = (
        resolved.runs[resolved.arm_runs[arm][0]].alignment.output.alpha for arm in (name, resolved.arms[name].control)
    )
    assert isinstance(control, float) and len(spent) == 6 and len(set(spent)) == 6
    assert math.fsum(spent) / 6 == pytest.approx(control, rel=1e-11)


def test_shipped_studies_load_and_the_demo_keeps_its_floors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for path in (ROOT / "config" / "studies").glob("*.yaml"):
        studies.load(path.stem)
    demo = resolve.load("demo").study
    assert demo.lengths.train >= 128 and demo.model.training.steps >= 500 and demo.training.steps >= 150
    assert sorted(demo.checkpoints) == [demo.training.steps // 3, demo.training.steps]
    assert max(demo.evaluations.perplexity.lengths) == 8 * demo.lengths.train


def test_editor_schemas_are_up_to_date() -> None:
    for path, text in schema_files().items():
        assert (ROOT / path).read_text() == text, f"{path} is old; run: python -m longshort.commands.schema"


def test_reading_a_study_imports_no_torch_and_no_engine() -> None:
    code = (
        "import sys; from longshort.study import resolve; resolve.load('demo'); "
        "sys.exit(bool({'torch', 'transformers', 'snakemake', 'pandas'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
