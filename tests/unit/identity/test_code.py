"""The identity of code: what changes a hash, and what must not."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from longshort.errors import UserError
from longshort.identity import code, kinds, syntax
from longshort.metrics.catalog import METRICS
from longshort.study import wiring

STAGE = """
from longshort.deep import helper
from longshort.deep.helper import scale, shift

def run(late=1):
    from longshort import late
    import math
    return math.sqrt(scale(shift(helper.LEVEL))) + late.x
"""
FILES = {
    "__init__.py": "",
    "stage.py": STAGE,
    "deep/__init__.py": "",
    "deep/helper.py": "from longshort.base import LEVEL\n\ndef scale(x):\n    return 2 * x\n\n"
    "def shift(x):\n    return x + 1\n",
    "base.py": "LEVEL = 3",
    "late.py": "x = 1",
    "records/publish.py": "y = z = 1",
    "records/__init__.py": "",
    "chosen.py": "from longshort.records.publish import y\n\nz = y",
    "unrelated.py": "u = 1",
}


@pytest.fixture
def package(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        write(tmp_path, name, text)
    return tmp_path


def write(package: Path, name: str, text: str) -> None:
    (package / name).parent.mkdir(exist_ok=True)
    (package / name).write_text(textwrap.dedent(text))


def fingerprint(package: Path, *chosen: str) -> str:
    for cached in (code.closure, code._code_hash, code._Package.at):
        cached.cache_clear()
    return code.code_hash("longshort.stage", chosen, package)


def test_the_closure_holds_late_imports_and_what_is_passed_on(package: Path) -> None:
    fingerprint(package)
    names = ("base", "deep.helper", "late", "stage")
    assert code.closure("longshort.stage", package) == tuple(f"longshort.{name}" for name in names)


def replaced(name: str, old: str, new: str) -> Callable[[Path], None]:
    def change(package: Path) -> None:
        text = (package / name).read_text()
        assert old in text
        write(package, name, text.replace(old, new))

    return change


def moved(package: Path) -> None:
    (package / "deep/helper.py").rename(package / "tools.py")
    replaced("stage.py", "from longshort.deep import helper", "from longshort import tools as helper")(package)
    replaced("stage.py", "longshort.deep.helper", "longshort.tools")(package)


def merged_into_a_package(package: Path) -> None:
    """Its own modules, whose names the package passes on."""
    (package / "parts").mkdir()
    (package / "late.py").rename(package / "parts/late.py")
    (package / "deep/helper.py").rename(package / "parts/helper.py")
    write(
        package,
        "parts/__init__.py",
        "from longshort.parts import late\nfrom longshort.parts.helper import scale, shift",
    )
    replaced("stage.py", "from longshort.deep import helper", "from longshort.parts import helper")(package)
    replaced("stage.py", "longshort.deep.helper", "longshort.parts")(package)
    replaced("stage.py", "from longshort import late", "from longshort.parts import late")(package)


SAME = {
    "comments": replaced("late.py", "x = 1", "# a comment\nx   =   1\n"),
    "docstrings": replaced("deep/helper.py", "def shift(x):", 'def shift(x):\n    """What it does."""'),
    "annotations": replaced("deep/helper.py", "def shift(x):", "def shift(x: int) -> float:"),
    "unrelated": replaced("unrelated.py", "1", "2"),
    "chosen-by-others": replaced("chosen.py", "z = y", "z = 2 * y"),
    "moved": moved,
    "merged-into-a-package": merged_into_a_package,
    "order-of-imports": replaced("stage.py", "import scale, shift", "import shift, scale"),
    "by-module": lambda package: write(
        package,
        "stage.py",
        STAGE.replace("from longshort.deep.helper import scale, shift\n", "")
        .replace("scale(", "helper.scale(")
        .replace("shift(", "helper.shift("),
    ),
    "by-another-name": lambda package: write(
        package,
        "stage.py",
        STAGE.replace("import scale, shift", "import scale as a, shift as b").replace("scale(shift(", "a(b("),
    ),
    "by-the-whole-path": lambda package: write(
        package,
        "stage.py",
        STAGE.replace("from longshort import late", "import longshort.late").replace("late.x", "longshort.late.x"),
    ),
    "not-late": lambda package: write(package, "stage.py", "import math" + STAGE.replace("    import math\n", "")),
    "from-a-library": replaced(
        "stage.py", "    import math\n    return math.sqrt", "    from math import sqrt\n    return sqrt"
    ),
    "from-where-it-comes-from": lambda package: write(
        package,
        "stage.py",
        "from longshort.base import LEVEL"
        + STAGE.replace("helper.LEVEL", "LEVEL").replace("from longshort.deep import helper\n", ""),
    ),
    "what-does-not-count": replaced("stage.py", "def run", "import longshort.records.publish\n\ndef run"),
    "an-empty-package-around": lambda package: write(package, "deep/__init__.py", '"""Words."""'),
}
OTHER = {
    "a-constant-three-imports-away": replaced("base.py", "3", "4"),
    "a-late-import": replaced("late.py", "1", "2"),
    "two-functions-exchanged": replaced("stage.py", "import scale, shift", "import shift as scale, scale as shift"),
    "another-function": replaced("stage.py", "import scale, shift", "import scale, scale as shift"),
    "another-library": replaced("stage.py", "import math", "import cmath as math"),
    "a-default": replaced("stage.py", "late=1", "late=2"),
    "code-of-the-package-around": lambda package: write(package, "deep/__init__.py", "import os\nos.nice(1)"),
    "imported-for-its-effect": replaced("stage.py", "def run", "import longshort.unrelated\n\ndef run"),
    "a-local-name-in-the-way": replaced("stage.py", "def run(late=1):", "def run(late=1, scale=abs):"),
}


@pytest.mark.parametrize("change", SAME.values(), ids=SAME)
def test_what_tidies_up_changes_nothing(package: Path, change: Callable[[Path], None]) -> None:
    before = fingerprint(package)
    change(package)
    assert fingerprint(package) == before


@pytest.mark.parametrize("change", OTHER.values(), ids=OTHER)
def test_what_computes_something_else_does(package: Path, change: Callable[[Path], None]) -> None:
    """Of a module of its own, too: by those a job tells whether it runs what was planned, and a person what changed."""
    before, modules = fingerprint(package), code.modules("longshort.stage", (), package)
    change(package)
    assert fingerprint(package) != before
    assert code.modules("longshort.stage", (), package) != modules


def test_a_chosen_module_joins_the_code_of_its_run(package: Path) -> None:
    before = fingerprint(package, "longshort.chosen")
    assert before != fingerprint(package)
    (package / "chosen.py").write_text("z = 2")
    assert fingerprint(package, "longshort.chosen") != before


def test_which_name_of_what_does_not_count_is_used_does(package: Path) -> None:
    before = fingerprint(package, "longshort.chosen")
    replaced("records/publish.py", "y = z = 1", "y = z = 2")(package)
    assert fingerprint(package, "longshort.chosen") == before
    replaced("chosen.py", "import y", "import z as y")(package)
    assert fingerprint(package, "longshort.chosen") != before


@pytest.mark.parametrize("first", ["stage", "late"])
def test_modules_in_a_circle_have_a_hash(package: Path, first: str) -> None:
    write(package, "late.py", "x = 1\ndef back():\n    from longshort import stage\n    return stage.run()")
    before = fingerprint(package)
    replaced(f"{first}.py", "return", "return 1 +")(package)
    assert fingerprint(package) != before


def test_runs_that_align_nothing_depend_on_no_alignment() -> None:
    trainer = code.closure(wiring.TRAINING)
    assert {"longshort.models.head", "longshort.data.windows"} <= set(trainer)
    assert not [module for module in trainer if module.startswith(("longshort.alignment", "longshort.results"))]
    assert not {"longshort.study.schema", "longshort.evaluation"} & set(trainer)


OF_TRAINING = ("training.log", "training.checkpoints", "data.windows")  # they shape its numbers


@pytest.mark.parametrize("outside", ["jobs.slurm", "jobs.heartbeat", "jobs.ownership", "training.launch", "cli"])
def test_what_runs_jobs_is_no_part_of_what_they_compute(outside: str) -> None:
    for stage in (wiring.TRAINING, *(metric.module for metric in METRICS.values())):
        assert f"longshort.{outside}" not in code.closure(stage)
    assert {f"longshort.{module}" for module in OF_TRAINING} <= set(code.closure(wiring.TRAINING))


def test_what_counts_as_outside_is_there() -> None:
    assert code.OUTSIDE <= set(code._Package.at(code.SOURCE).files)


# Below the wings that compute: what only says what is asked, names or runs.
COMPUTES_NOTHING = """
alignment.schedules alignment.settings data.left_out data.seen data.settings evaluation.__main__ evaluation.sharing
metrics.settings models.settings training.__main__ training.launch training.tracking training.unpickling training.worker
synthetic.study
""".split()


def test_all_that_computes_numbers_is_part_of_what_they_are_known_by() -> None:
    """A module that were outside could be changed and leave the old numbers up to date."""
    stages = [wiring.TRAINING, wiring.KEY_TOKENS, *(metric.module for metric in METRICS.values())]
    stages += ["longshort.data.__main__", "longshort.evaluation.standin"]
    stages += ["longshort.synthetic.train", "longshort.synthetic.results"]
    chosen = [*kinds.DIVERGENCES.values(), *kinds.ROPE.values(), kinds.SHIFTED_SPARSE, kinds.ADAPTERS]
    chosen += [kinds.ALIGNMENT, kinds.HIDDEN]
    within = {module for entry in (*stages, *chosen) for module in code.closure(entry)}
    package = code._Package.at(code.SOURCE)
    wings = ("alignment", "data", "evaluation", "metrics", "models", "synthetic", "training")
    code_of = [m for m in package.files if m.startswith(tuple(f"longshort.{w}." for w in wings))]
    outside = {m for m in code_of if m not in within and package.parsed(m).tree != syntax.EMPTY}
    assert outside == {f"longshort.{module}" for module in COMPUTES_NOTHING}


def test_an_evaluation_is_no_part_of_another_one() -> None:
    for stage in (metric.module for metric in METRICS.values()):
        assert set(code.closure(stage)) & {metric.module for metric in METRICS.values()} == {stage}


def test_a_job_with_another_python_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(code.PLANNED, code.source_as_planned())
    planned = code.code_hash(wiring.TRAINING)
    assert code.refuse_changed_code(planned, wiring.TRAINING) == planned
    monkeypatch.setattr(syntax, "python_version", lambda: "3.99")
    with pytest.raises(UserError, match=r"runs with Python 3.99 and was planned with 3\.\d+"):
        code.refuse_changed_code(planned, wiring.TRAINING)


def test_a_stage_refuses_source_that_changed_after_planning() -> None:
    with pytest.raises(UserError, match="changed after this job was planned"):
        code.refuse_changed_code("0" * 16, "longshort.training.trainer")


def test_what_was_planned_is_not_taken_from_a_person(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("x", "python=3.11 x", "a=b=c"):
        monkeypatch.setenv(code.PLANNED, value)
        with pytest.raises(UserError, match="LONGSHORT_PLANNED is not what snakemake sets"):
            code.refuse_changed_code("0" * 16, "longshort.training.trainer")
