"""Fixtures of all tests; what they are built with lies in tests/support."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import hypothesis
import pytest

from tests.support import forkserver, golden
from tests.support.project import TINY, UNFINISHED, make_project, once, run_whole_study

# What tests are marked for that `make test` cannot count on, or takes too long for it.
NEEDS = {
    "slurm": "needs Debian's SLURM; .ci/run",
    "page": "needs Chromium; .ci/run",
    "latex": "needs pdflatex; .ci/run",
    "real": "needs a model of 93 MB from a package; make real, .ci/run",
    "wide": "shipped studies and benchmarks at a small size, what has a like that was run; .ci/run",
    "long": "takes hours; make long",
}
FOREIGN = {"COLUMNS", "FORCE_COLOR", "PY_COLORS", "GITHUB_ACTIONS", "SNAKEMAKE_PROFILE"}
FOREIGN |= {"HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-golden", action="store_true", help="write down what protocols give now (tests/golden)")


def pytest_configure(config: pytest.Config) -> None:
    # Of several processes on a few cores, each with a thread a core, most threads only wait for one another.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # Where no byte code is to be written, each of the many processes of tests would compile our source anew.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False
    golden.write = config.getoption("--write-golden")
    # What whoever runs the tests has set for other work: a job of theirs, colours, a proxy, a GPU that only some
    # processes would use.
    for name in list(os.environ):
        if name.startswith(("SLURM_", "SBATCH_")) or name in FOREIGN:
            del os.environ[name]
    os.environ.update(CUDA_VISIBLE_DEVICES="", NO_PROXY="127.0.0.1,localhost", no_proxy="127.0.0.1,localhost")
    # A test that fails once in many runs, or on a busy machine, says nothing of the change that it stops.
    hypothesis.settings.register_profile("every run alike", derandomize=True, deadline=None, database=None)
    hypothesis.settings.load_profile("every run alike")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest begins first: the clusters' tests wait for clocks, and the demo is a whole study. While one
    process makes the finished study, the others begin with what needs none."""
    first = ["slurm/test_study", "slurm/test_training", "slurm/test_cluster", "page/test_demo", "real"]
    first += ["contract/test_plan.py", "unit/evaluation/test_harness", "unit/results", "workflow", "contract"]
    order = [f"tests/{file}" for file in first]
    items.sort(key=lambda item: next((n for n, file in enumerate(order) if item.nodeid.startswith(file)), len(order)))


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    chosen = config.getoption("-m")
    out = [f"{mark} ({what})" for mark, what in NEEDS.items() if f"not {mark}" in chosen]
    if out:
        terminalreporter.write_line(f"not run: {'; '.join(out)}")


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of all processes of a test run."""
    here = tmp_path_factory.getbasetemp()
    return here.parent if "PYTEST_XDIST_WORKER" in os.environ else here


@pytest.fixture(scope="session", autouse=True)
def forks_lie_in_the_shared_folder(shared: Path) -> None:
    forkserver.use(shared)


@pytest.fixture(autouse=True)
def what_is_drawn_does_not_depend_on_the_tests_before() -> None:
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return make_project(tmp_path / "project", TINY)


@pytest.fixture(scope="session")
def finished(shared: Path) -> Path:
    """A whole study: all stages, the base by two processes, one arm that diverges. Tests that change it take a copy."""
    return once(shared, "finished", run_whole_study)


@pytest.fixture
def finished_copy(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "copy", symlinks=True, ignore=shutil.ignore_patterns(*UNFINISHED)))
