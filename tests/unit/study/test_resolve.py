"""What a study resolves to: which arms are which runs, and what makes another run."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from longshort.commands import cost
from longshort.data.streams import extra_length
from longshort.errors import StudyError
from longshort.identity import kinds
from longshort.study import resolve
from tests.support.project import ROOT
from tests.support.studies import LORA, POLYPYTHIAS, PRETRAINED, arms_yaml, check, load, refused


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


def test_each_seed_starts_from_a_base_of_its_own(config: Path) -> None:
    """Arms of one seed share it; a fixed base is what it was, whatever the study's seeds."""
    fixed = load(config, seeds=[0, 5])
    own = load(config, seeds=[0, 5], model__seed="per-run")
    assert fixed.bases == {0: own.bases[0], 5: own.bases[0]} and own.bases[5] != own.bases[0]
    assert [fixed.arm_runs[arm][0] for arm in fixed.arm_runs] == [own.arm_runs[arm][0] for arm in own.arm_runs]
    assert all(own.runs[runs[seed]].base == own.bases[seed] for runs in own.arm_runs.values() for seed in (0, 5))
    assert own.runs[own.bases[5]].seed == 5 and own.base_record(own.arm_runs["constant"][5]) == [
        own.record(own.bases[5])
    ]
    assert own.names()[own.bases[5]] == "base, 5" and "6 different runs (2 bases included)" in own.in_words()
    assert own.summary()["bases"] == {"0": own.bases[0], "5": own.bases[5]}
    shared = load(config, seeds=[3, 1, 2, 0], model__seed="per-run", model__seeds_per_base=2)
    assert shared.bases[3] == shared.bases[1] != shared.bases[2] == shared.bases[0]
    assert [shared.runs[run].seed for run in shared.first_seeds.values()] == [3, 2]


def test_pretrained_bases_go_by_the_order_of_the_seeds(config: Path) -> None:
    study = load(config, model=POLYPYTHIAS, seeds=[7, 3])
    alone = load(config, model={**PRETRAINED, **POLYPYTHIAS["bases"][1]}, seeds=[3])
    assert study.bases[3] == alone.bases[3] and study.arm_runs["constant"][3] == alone.arm_runs["constant"][3]
    assert study.runs[study.bases[7]].pretrained.name == "some/model-seed1"
    assert [part.name for part in study.hub_parts()] == ["some/model-seed1", "some/model-seed2"]
    assert study.external_paths()[:2] == ["some/model-seed1", "some/model-seed2"]
    several = load(config, model={**POLYPYTHIAS, "seeds_per_base": 2}, seeds=[7, 5, 3, 1])
    one, another = study.bases[7], study.bases[3]
    assert several.bases == {7: one, 5: one, 3: another, 1: another}


# Of studies that were finished before a seed could have a base of its own.
FORMER = {"base": "77feb5bb9f0f83d5", "baseline": "0fb9b8028bed4d5f", "constant": "68da98811f0cd14a"}


def test_runs_keep_the_names_that_they_had(config: Path) -> None:
    study = load(config)
    assert {"base": study.bases[0], **{arm: runs[0] for arm, runs in study.arm_runs.items()}} == FORMER


@pytest.mark.parametrize("layers", [[1, 2, 2], [2, 0.5, 1]])
def test_a_block_that_is_named_twice_is_told(config: Path, layers: list[float]) -> None:
    arms_yaml(config, chosen={"alignment": {"hidden": {"alpha": 1, "layers": layers}}})
    with pytest.raises(StudyError, match=r"hidden.layers = \[.*\]: two of them are block 2; name it once"):
        load(config, arms=["baseline", "chosen"])


def test_a_list_of_harness_tasks_is_short_for_the_mapping(config: Path) -> None:
    short = load(config, evaluations__harness=["hellaswag", "ruler@64"])
    identity, evaluation = short.evaluations["harness"]
    assert evaluation.settings.max_length == 128  # the model's
    assert cost.estimate(short, [cost.Work("harness", short.bases[0], "4")], jobs_at_once=1).device_hours > 0
    written = {"tasks": ["hellaswag", "ruler@64"], "max_length": 128}
    assert load(config, evaluations__harness=written).evaluations["harness"][0] == identity
    assert load(config, evaluations__harness={**written, "limit": 5}).evaluations["harness"][0] != identity
    assert load(config).evaluations.keys() == {"perplexity", "misalignment"}


def test_what_a_study_overrides_stands_above_what_its_arm_says(config: Path) -> None:
    arms_yaml(config, slow={"training": {"learning_rate": 0.001, "warmup_steps": 2}})

    def trained(**overrides: Any) -> tuple[float, int]:
        study = load(config, arms=["baseline", "slow"], overrides=overrides)
        training = study.runs[study.arm_runs["slow"][0]].training
        return training.learning_rate, training.warmup_steps

    assert trained() == (0.001, 2)
    assert trained(slow={"training": {"learning_rate": 0.002}}) == (0.002, 2)


def test_shared_tables_of_schedules_and_of_what_is_added_compare_each_arm_with_its_control(config: Path) -> None:
    """Against the baseline they would show the effect of alpha itself."""
    arms = ["baseline", "constant", "step-linear", "ratio-2x", "hidden+output", "alpha-0.3"]
    tables = load(config, arms=arms, tables={}).tables
    by_control = {name for name, table in tables.items() if table.compare_with == "control"}
    assert by_control == {"schedules", "ratios", "layers-added"}


# What has no default.
ROPE = {**dict.fromkeys(("pi", "ntk", "dynamic-ntk", "yarn"), {"factor": 4.0}), "abf": {"theta": 100_000.0}}


@pytest.mark.parametrize(
    ("changes", "module"),
    [
        *(({"model__rope": {"kind": kind, **ROPE.get(kind, {})}}, module) for kind, module in kinds.ROPE.items()),
        ({"training__attention": "shifted-sparse"}, kinds.SHIFTED_SPARSE),
        ({"training__adapter": LORA}, kinds.ADAPTERS),
    ],
)
def test_a_run_depends_on_the_code_of_what_it_chooses(config: Path, changes: dict[str, Any], module: str) -> None:
    study, plain = load(config, **changes), load(config)
    [run], [other] = study.arm_runs["baseline"].values(), plain.arm_runs["baseline"].values()
    assert set(study.runs[run].modules) - set(plain.runs[other].modules) == {module}


def test_equal_arms_are_one_run(config: Path) -> None:
    """As their values are, however they are written: the kind of a schedule is no part of a run."""
    by_ratio = {"alignment": {"alpha": 0.25, "schedule": {"kind": "ratio"}}}
    arms = ["baseline", "constant", "alpha-1x", "alpha-1.0", "alpha-2x", "ratio-2x", "alpha-0.5"]
    runs = load(config, arms=arms, overrides={"alpha-0.5": by_ratio}).arm_runs
    assert runs["alpha-1x"] == runs["constant"] == runs["alpha-1.0"] == runs["alpha-0.5"]
    assert runs["alpha-2x"] == runs["ratio-2x"] != runs["constant"]


def test_a_renamed_schedule_is_the_same_run(config: Path) -> None:
    """An arm ratio-curriculum with alpha_ref an eighth, as studies had it, is step-linear-1-to-8."""
    arms = ["baseline", "constant", "step-linear-1-to-8", "step-linear-1-to-8-control"]
    curriculum: dict[str, Any] = {"kind": "ratio-curriculum", "l_test": 128}
    overrides = {
        name: {"alignment": {"alpha": 0.125, "schedule": schedule}}
        for name, schedule in zip(arms[2:], (curriculum, {"kind": "mean-of", "schedule": curriculum}), strict=True)
    }
    now, before = (load(config, arms=arms, overrides=some).arm_runs for some in ({}, overrides))
    assert now == before and now["step-linear-1-to-8"] != now["step-linear-1-to-8-control"]


@pytest.mark.parametrize("kind", ["view-ratio", "view-gap"])
def test_alpha_by_the_views_goes_by_the_draws_of_the_training(config: Path, kind: str) -> None:
    resolved = load(config, arms=["baseline", "constant", kind], seeds=[0, 1])
    most = resolved.runs[resolved.arm_runs[kind][0]].alignment.max_extra
    values = {}
    for seed, run in resolved.arm_runs[kind].items():
        values[seed] = resolved.runs[run].alignment.output.alpha
        extras = [extra_length(seed, step, most) for step in range(6)]
        ratios = [extra / 16 if kind == "view-gap" else (16 + extra) / 16 for extra in extras]
        assert values[seed] == pytest.approx([one * 6 / math.fsum(ratios) for one in ratios], rel=1e-11)
    assert values[0] != values[1]
    with pytest.raises(StudyError, match=rf"arm {kind}: alignment.*{kind}.*one l_extra.*use sampling_per batch"):
        load(config, arms=["baseline", "constant", kind], alignment__sampling_per="row")


def test_a_curriculum_ends_at_the_sampling_range_and_has_its_control_s_mean(config: Path) -> None:
    arms = ["baseline", "constant", "curriculum", "curriculum-control"]
    resolved = load(config, arms=arms, training__steps=60, lengths={"train": 64, "test": 64})
    ranges, control = (resolved.runs[resolved.arm_runs[arm][0]].alignment.max_extra for arm in arms[2:])
    assert (ranges[0], ranges[-1], control) == (8, 32, 20) and ranges == sorted(ranges)
    assert sum(ranges) / 60 == pytest.approx(control)
    same = {"curriculum": {"alignment": {"sampling_start": 0.5}}}
    runs = load(config, arms=arms, overrides=same).arm_runs
    assert runs["curriculum"] == runs["constant"]
    with pytest.raises(StudyError, match=r"sampling_start = 0\.01: less than one token .*; give 0\.0625"):
        load(config, alignment__sampling_start=0.01)


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
    """A distance of states has no targets to hold constant; a divergence through the logit lens has."""
    hidden: dict[str, Any] = {"alpha": 0, "hidden": {"alpha": 1, "layers": [0.5]}}
    lens = {"alpha": 0, "divergence": "sce", "hidden": {**hidden["hidden"], "distance": "logit-lens"}}
    arms_yaml(
        config,
        never={"alignment": {"schedule": {"kind": "linear", "start": 0, "end": 0}}},
        states={"alignment": hidden},
        targets={"alignment": {**hidden, "stop_gradient": "targets"}},
        first={"alignment": {**hidden, "stop_gradient": "first"}},
        lens={"alignment": lens},
        lens_targets={"alignment": {**lens, "stop_gradient": "targets"}},
    )
    arms = ["baseline", "never", "states", "targets", "first", "lens", "lens_targets"]
    runs = load(config, alignment={}, arms=arms).arm_runs
    assert runs["never"] == runs["baseline"]
    assert runs["targets"] == runs["states"] != runs["first"]
    assert runs["lens_targets"] != runs["lens"]


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
    assert tables["alpha"].arms == ["baseline", "constant", "alpha-0.3", "alpha-1.0"]


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
    assert load(config, checkpoints=[6, 2]).results() == load(config, checkpoints=[2, 6]).results()


def test_a_single_view_reads_as_many_tokens_a_step(config: Path) -> None:
    both = {"steps": 6, "batch": 4, "micro_batch": 2, "learning_rate": 0.01}
    resolved = load(config, arms=["baseline", "baseline-single-view", "constant"], training=both)
    two, one = (resolved.runs[resolved.arm_runs[arm][0]] for arm in ("baseline", "baseline-single-view"))
    assert two.alignment is not None and one.alignment is None
    assert one.training is not None and (one.training.batch, one.training.micro_batch) == (8, 4)
    with pytest.raises(StudyError, match="views 1 leaves nothing to align; give alpha 0"):
        load(config, arms=["baseline", "constant"], overrides={"constant": {"alignment": {"views": 1}}})


@pytest.mark.parametrize("name", ["step-linear", "step-cosine", "step-exponential", "step-linear-1-to-8", "view-ratio"])
def test_a_schedule_uses_as_much_alpha_as_its_control(config: Path, name: str) -> None:
    resolved = load(config, arms=["baseline", "constant", "step-linear-1-to-8-control", name])
    spent, control = (
        resolved.runs[resolved.arm_runs[arm][0]].alignment.output.alpha for arm in (name, resolved.arms[name].control)
    )
    assert isinstance(control, float) and len(spent) == 6 and len(set(spent)) > 4
    assert math.fsum(spent) / 6 == pytest.approx(control, rel=1e-11)


def test_reading_a_study_imports_no_torch_and_no_engine() -> None:
    code = (
        "import sys; from longshort.study import resolve; resolve.load('demo'); "
        "sys.exit(bool({'torch', 'transformers', 'snakemake', 'pandas'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"runs": []}, "do not name the same runs"),
        ({"records": []}, "do not name the same runs"),
        ({"runs": ["b" * 16]}, "do not name the same runs"),
        ({"because": " "}, "because is no text"),
        ({"from": 7}, "from is no text"),
        ({"modules": "all"}, "modules is no list of texts"),
    ],
)
def test_an_acceptance_that_was_edited_is_refused(folder: Path, changed: dict[str, Any], said: str) -> None:
    run = "a" * 16
    whole = {"arm": "constant", "runs": [run], "records": [f"results/runs/{run}/training/2-6.json"], "stage": "s"}
    whole |= {"from": "f", "to": "t", "modules": ["m.py"], "because": "a comment", "time": "now"}
    (folder / "results").mkdir()
    (folder / "results/accepted.json").write_text(json.dumps([whole]))
    assert check(folder).accepted == [whole]
    (folder / "results/accepted.json").write_text(json.dumps([{**whole, **changed}]))
    refused(folder, said)


def test_the_best_alpha_is_looked_for_among_three_or_more(config: Path) -> None:
    assert "alpha-by-length" not in load(config, arms=["baseline", "constant", "alpha-2x"]).tables
    assert "alpha-by-length" in load(config, arms=["baseline", "constant", "alpha-2x", "alpha-4x"]).tables
