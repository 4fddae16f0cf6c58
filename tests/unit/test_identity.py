"""Identity: what changes a hash and what must not."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest
from pydantic import BaseModel, Field

from longshort import identity, resolve
from longshort.errors import UserError


class Old(BaseModel):
    rate: float = 1.0


class WithNeutralField(Old):
    option: str = Field("off", json_schema_extra={"neutral": "off"})


class WithChangedDefault(BaseModel):
    rate: float = 2.0


class WithUnimportantField(Old):
    workers: int = Field(4, json_schema_extra={"identity": False})


def test_new_neutral_options_and_unimportant_fields_change_nothing() -> None:
    assert identity.spec_id(WithNeutralField()) == identity.spec_id(Old())
    assert identity.spec_id(WithUnimportantField(workers=9)) == identity.spec_id(Old())
    assert identity.spec_id(Old(rate=1)) == identity.spec_id(Old(rate=1.0))
    assert identity.spec_id(Old(rate=-0.0)) == identity.spec_id(Old(rate=0.0))


def test_values_and_changed_defaults_do() -> None:
    assert identity.spec_id(WithNeutralField(option="on")) != identity.spec_id(Old())
    assert identity.spec_id(WithChangedDefault()) != identity.spec_id(Old())


@pytest.fixture
def package(tmp_path: Path) -> Path:
    files = {
        "__init__.py": "",
        "stage.py": "from longshort.deep import helper\ndef run():\n    from longshort import late\n    late",
        "deep/__init__.py": "",
        "deep/helper.py": "def helper():\n    return 1",
        "late.py": "x = 1",
        "study.py": "y = 1",
        "chosen.py": "z = 1",
        "unrelated.py": "u = 1",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def fingerprint(package: Path, *chosen: str) -> str:
    for cached in (identity.closure, identity._tree_hash, identity._code_hash):
        cached.cache_clear()
    return identity.code_hash("longshort.stage", chosen, package)


def test_the_closure_holds_late_imports_and_packages(package: Path) -> None:
    fingerprint(package)
    assert identity.closure("longshort.stage", package) == (
        "longshort",
        "longshort.deep",
        "longshort.deep.helper",
        "longshort.late",
        "longshort.stage",
    )


@pytest.mark.parametrize(
    ("file", "text", "same"),
    [
        ("late.py", "# a comment\nx   =   1\n", True),
        ("deep/helper.py", 'def helper():\n    """What it does."""\n    return 1', True),
        ("unrelated.py", "u = 2", True),
        ("chosen.py", "z = 2", True),
        ("late.py", "x = 2", False),
        ("deep/helper.py", "def helper():\n    return 2", False),
        ("deep/__init__.py", "import os", False),
    ],
)
def test_only_what_is_imported_and_computes_counts(package: Path, file: str, text: str, same: bool) -> None:
    before = fingerprint(package)
    (package / file).write_text(textwrap.dedent(text))
    assert (fingerprint(package) == before) == same


def test_a_chosen_module_joins_the_closure_of_its_run(package: Path) -> None:
    before = fingerprint(package, "longshort.chosen")
    assert before != fingerprint(package)
    (package / "chosen.py").write_text("z = 2")
    assert fingerprint(package, "longshort.chosen") != before


def test_divergences_are_no_part_of_the_trainers_own_closure() -> None:
    trainer = identity.closure("longshort.training.trainer")
    assert "longshort.alignment.objective" in trainer and "longshort.data.windows" in trainer
    assert not [m for m in trainer if m.startswith(("longshort.alignment.divergences.", "longshort.results"))]
    assert not {"longshort.study", "longshort.alignment.schedules", "longshort.evaluation"} & set(trainer)


OF_TRAINING = ("training.log", "training.checkpoints", "data.windows")  # they shape its numbers


@pytest.mark.parametrize("outside", ["slurm", "heartbeat", "ownership", "interruption", "training.launch", "cli"])
def test_what_runs_jobs_is_no_part_of_what_they_compute(outside: str) -> None:
    for stage in (resolve.TRAINING, *resolve.EVALUATIONS.values()):
        assert f"longshort.{outside}" not in identity.closure(stage)
    assert {f"longshort.{module}" for module in OF_TRAINING} <= set(identity.closure(resolve.TRAINING))


def test_an_evaluation_is_no_part_of_another_one() -> None:
    for stage in resolve.EVALUATIONS.values():
        assert set(identity.closure(stage)) & set(resolve.EVALUATIONS.values()) == {stage}


def test_a_specification_is_the_one_that_its_folder_is_named_by(tmp_path: Path) -> None:
    text = '{"rate": 1.0}'
    path = tmp_path / identity.digest(identity.dumps({"rate": 1.0})) / "spec.json"
    path.parent.mkdir()
    path.write_text(f"{text}\n")
    assert identity.read_spec(path) == {"rate": 1.0}
    for wrong, words in ((text.replace("1", "2"), "is not the specification"), (text[:-1], "is no valid JSON")):
        path.write_text(wrong)
        with pytest.raises(UserError, match=rf"{path} {words}.* delete it and run snakemake again"):
            identity.read_spec(path)
    by_hand = tmp_path / "spec.json"
    by_hand.write_text('{"rate": 2.0}')
    assert identity.read_spec(by_hand) == {"rate": 2.0}


@pytest.mark.parametrize("text", ['[{"arm": "constant"', '[{"arm": "constant"}]', "{}", "3"])
def test_cut_or_edited_acceptances_are_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "accepted.json").write_text(text)
    with pytest.raises(ValueError, match="accepted.json is not what `longshort accept` wrote"):
        identity.accepted_changes(tmp_path / "accepted.json")


def test_a_job_with_another_python_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(identity.PLANNED, identity.source_as_planned())
    code = identity.code_hash(resolve.TRAINING)
    assert identity.refuse_changed_code(code, resolve.TRAINING) == code
    monkeypatch.setattr(identity, "_python", lambda: "3.99")
    with pytest.raises(UserError, match=r"runs with Python 3.99 and was planned with 3\.\d+"):
        identity.refuse_changed_code(code, resolve.TRAINING)


@pytest.mark.parametrize("remembered", [None, "", '["cut', '{"a": 1}', "[]"])
def test_what_is_remembered_of_the_source_changes_no_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, remembered: str | None
) -> None:
    monkeypatch.setattr(identity, "TREES", tmp_path / "trees.json")
    if remembered is not None:
        identity.TREES.write_text(remembered)

    def planned() -> str:
        identity._known_trees.cache_clear()
        return identity.source_as_planned()

    anew = planned()
    written = identity.TREES.stat().st_mtime_ns
    assert planned() == anew
    assert identity.TREES.stat().st_mtime_ns == written
    monkeypatch.setattr(identity, "_parse", None)  # nothing is parsed a second time
    assert planned() == anew


def test_a_stage_refuses_source_that_changed_after_planning() -> None:
    with pytest.raises(UserError, match="changed after this job was planned"):
        identity.refuse_changed_code("0" * 16, "longshort.training.trainer")


def test_what_was_planned_is_not_taken_from_a_person(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("x", "python=3.11 x", "a=b=c"):
        monkeypatch.setenv(identity.PLANNED, value)
        with pytest.raises(UserError, match="LONGSHORT_PLANNED is not what snakemake sets"):
            identity.refuse_changed_code("0" * 16, "longshort.training.trainer")
