"""Tests lie where their modules do, and share builders through tests/support alone."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from tests.support.project import ROOT

SOURCE, TESTS = ROOT / "src/longshort", ROOT / "tests"
# Modules without a test file of their own: below what they are tested, and why there.
ELSEWHERE = {
    # Processes: the real ones are started, by the engine or as it starts them.
    "jobs/engine.py": "contract/test_engine.py",
    "commands/plan.py": "contract/test_plan.py",
    "commands/why.py": "contract/test_plan.py",
    "commands/stale.py": "contract/test_stale.py",
    "commands/resuming.py": "contract/test_cost.py",
    "commands/new.py": "contract/test_new.py",
    "commands/fetch.py": "workflow/test_fetch.py",
    "records/hub.py": "workflow/test_fetch.py",
    "records/study_json.py": "contract/test_damaged.py",
    "training/__main__.py": "workflow/test_training.py",
    "training/log.py": "workflow/test_resume.py",
    "training/worker.py": "workflow/test_faults.py",
    "training/extensions.py": "workflow/test_faults.py",
    "collecting/__main__.py": "workflow/test_study.py",
    "collecting/links.py": "workflow/test_study.py",
    "collecting/numbers.py": "workflow/test_study.py",
    # Parts of what their wing's test tests as a whole.
    "terminal.py": "unit/commands/test_status.py",
    "identity/kinds.py": "unit/alignment/test_divergences.py",
    "identity/strict.py": "unit/study/test_parsing.py",
    "study/run.py": "unit/study/test_resolve.py",
    "study/wired.py": "contract/test_synthetic.py",
    "synthetic/study.py": "workflow/test_synthetic.py",
    "metrics/record.py": "unit/metrics/test_catalog.py",
    "metrics/settings.py": "unit/study/test_parsing.py",
    "alignment/settings.py": "unit/study/test_parsing.py",
    "data/settings.py": "unit/study/test_parsing.py",
    "models/settings.py": "unit/study/test_parsing.py",
    "data/splits.py": "unit/data/test_windows.py",
    "evaluation/__main__.py": "contract/test_together.py",
    "evaluation/sharing.py": "contract/test_shares.py",
    "records/shares.py": "contract/test_shares.py",
    "evaluation/journal.py": "unit/evaluation/test_longbench_answers.py",
    "evaluation/standin_tasks.py": "unit/evaluation/test_standin.py",
    "evaluation/standin_material.py": "unit/evaluation/test_standin.py",
    "results/columns.py": "unit/results/test_tables.py",
    "results/compare.py": "unit/results/test_tables.py",
}
# Of the repository, not of a module.
OF_NO_MODULE = {"test_environments.py", "test_findings.py", "test_mirror.py", "test_pages.py", "test_setup.py"}


def place_of(module: Path) -> Path:
    """Where the test of a module belongs, below tests/. A package within a wing has one file: its modules are a file a
    kind, or a file a section."""
    wing, *package = module.parts[:-1] or ("",)
    name = package[0] if package else module.stem.strip("_")
    return Path("unit") / wing / f"test_{name}.py"


def test_every_module_has_its_test_where_it_belongs() -> None:
    modules = {path.relative_to(SOURCE) for path in SOURCE.rglob("*.py") if path.read_text().strip()}
    modules = {module for module in modules if module.name != "__init__.py"}
    untested = [
        f"src/longshort/{module} has no test: write tests/{place_of(module)}, or say in ELSEWHERE what tests it"
        for module in sorted(modules)
        if not (TESTS / place_of(module)).exists() and str(module) not in ELSEWHERE
    ]
    assert not untested, "\n".join(untested)
    gone = {module for module, test in ELSEWHERE.items() if Path(module) not in modules or not (TESTS / test).exists()}
    assert not gone, "ELSEWHERE names what is not there"
    doubled = {module for module in ELSEWHERE if (TESTS / place_of(Path(module))).exists()}
    assert not doubled, "these have tests of their own: take them out of ELSEWHERE"


def test_every_unit_test_is_that_of_a_module() -> None:
    expected = {place_of(path.relative_to(SOURCE)) for path in SOURCE.rglob("*.py")}
    there = {path.relative_to(TESTS) for path in (TESTS / "unit").rglob("test_*.py")}
    assert sorted(there - expected - {Path("unit") / name for name in OF_NO_MODULE}) == []


def test_no_test_takes_anything_from_another_test() -> None:
    """What two of them need is a builder, in tests/support, or a fixture, in a conftest.py."""
    taken = [
        f"{path.relative_to(ROOT)}:{node.lineno} has `{ast.unparse(node)}`"
        for path in TESTS.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        and re.match(r"(from|import) tests\b.*\b(test_|conftest)", ast.unparse(node))
    ]
    assert not taken, "\n".join(taken)
