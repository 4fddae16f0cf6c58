"""What the jobs of a rule ask a scheduler for, in the words of Snakemake's SLURM plugin.

What is true of a cluster (account, partition, quality of service, constraint, name of its GPUs) stands in
slurm/site.yaml or in the environment, by the names that sbatch reads; what a study needs stands in its `needs`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from longshort.jobs import engine
from longshort.study.files import yaml_mapping
from longshort.study.parsing import parse

SITE_FILE = Path("slurm/site.yaml")
# Field of the site -> environment variable; the first four are sbatch's own.
VARIABLES = {
    "account": "SBATCH_ACCOUNT",
    "partition": "SBATCH_PARTITION",
    "qos": "SBATCH_QOS",
    "constraint": "SBATCH_CONSTRAINT",
    "cpu_partition": "LONGSHORT_CPU_PARTITION",
    "gpu_type": "LONGSHORT_GPU_TYPE",
}
Resources = dict[str, Any]


class Site(BaseModel):
    """slurm/site.yaml: what SLURM wants to know on this cluster; what is left out is left to SLURM."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    # No pattern but of what a shell would take for more than a name.
    account: str | None = Field(None, pattern=r"^[\w.,:+-]+$", description="who pays")
    partition: str | None = Field(None, pattern=r"^[\w.,:+-]+$", description="where jobs run")
    cpu_partition: str | None = Field(None, pattern=r"^[\w.,:+-]+$", description="where those without a GPU do")
    qos: str | None = Field(None, pattern=r"^[\w.,:+-]+$", description="quality of service")
    constraint: str | None = Field(None, pattern=r"^[\w.,:+&|*\[\]()-]+$", description="features of the nodes")
    gpu_type: str | None = Field(None, pattern=r"^[\w.]+$", description="as in gres: a100 of gpu:a100:4")

    def resources(self, gpus: int) -> Resources:
        """gpus: on each node."""
        partition = self.partition if gpus or not self.cpu_partition else self.cpu_partition
        found: Resources = {
            "slurm_account": self.account,
            "slurm_partition": partition,
            "qos": self.qos,
            "constraint": self.constraint,
        }
        if gpus:
            # The plugin would ask for a task a GPU otherwise; there is one launcher a node.
            found |= {"gres": f"gpu:{self.gpu_type + ':' if self.gpu_type else ''}{gpus}", "tasks_per_gpu": 0}
        return {name: value for name, value in found.items() if value is not None}


def site(folder: Path = Path(), environment: Mapping[str, str] = os.environ) -> Site:
    """The file, and over it the environment.

    Raises:
        StudyError: a key or a value that cannot be meant; names it.
    """
    file = folder / SITE_FILE
    # As typed: an account 0123 is no number, and no partition is a truth.
    given = _as_typed(file) if os.path.lexists(file) else {}
    exported = {field: environment[name] for field, name in VARIABLES.items() if environment.get(name)}
    for field, value in exported.items():
        parse(Site, {field: value}, f"${VARIABLES[field]}", None)
    return Site(**{**parse(Site, given, str(file), None).model_dump(), **exported})


def _as_typed(file: Path) -> dict[str, str | None]:
    keys = f"write one `key: value` a line, with the keys {', '.join(VARIABLES)}"
    values = yaml_mapping(file, typed=False, remedy=keys)
    return {key: None if value in ("", "~", "null") else value for key, value in values.items()}


def job(site: Site, gpus: int, memory_mb: int, minutes: int) -> Resources:
    """A job on one node."""
    return {"mem_mb": growing(memory_mb), "runtime": growing(minutes), **site.resources(gpus)}


def training(site: Site, gpus: int, nodes: int) -> Resources:
    """Where a training runs: one launcher a node, which srun starts where there are several."""
    several = {"nodes": nodes, "tasks": nodes, "mpi": "srun"} if nodes > 1 else {}
    return {**site.resources(gpus), **several}


def growing(amount: int) -> Callable[..., int]:
    """amount at the first attempt, twice that at the second, and so on: a job that failed may have had too little."""

    def grown(wildcards: Any, attempt: int) -> int:
        return amount * attempt

    return engine.signed(grown)


def by_run(values: dict[str, Resources]) -> Resources:
    """Resources of a rule from those of each run: where all agree a constant, else a function of the wildcards."""
    names = {name for resources in values.values() for name in resources}
    found: Resources = {}
    for name in sorted(names):
        each = {run: resources.get(name) for run, resources in values.items()}
        # The engine's work grows with every function that a rule has; None asks for nothing.
        found[name] = next(iter(each.values())) if len(set(each.values())) == 1 else _of_run(each)
    return found


def _of_run(each: dict[str, Any]) -> Callable[..., Any]:
    def of_run(wildcards: Any) -> Any:
        return each[wildcards.run]

    return engine.signed(of_run)
