"""One cluster for all tests of a process, and a quiet study for those of all. Faults are mended by the test that makes
them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster
from tests.slurm.study import faulty_study, without
from tests.support.project import edit_study, make_project, once, run_snakemake


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("slurm")) as running:
        yield running


@pytest.fixture(scope="session")
def reference(shared: Path) -> Path:
    """The study on this machine, without SLURM. Not to be changed."""

    def run(project: Path) -> None:
        make_project(project, faulty_study(minutes=30))
        run_snakemake(project, "metrics")

    return once(shared, "reference", run)


@pytest.fixture
def without_constant(reference: Path, tmp_path: Path) -> Path:
    """The finished study, but for the arm `constant`. Its training is what a fault can cost; evaluations and tables
    after faults: the first test."""
    project = without(reference, tmp_path, "constant")
    edit_study(project, training__checkpoint_minutes=0)
    return project
