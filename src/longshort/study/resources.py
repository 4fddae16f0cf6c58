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
from longshort.study.schema.study import PROFILE_MINUTES

SITE_FILE = Path("slurm/site.yaml")
# Field of the site -> environment variable; the first four are sbatch's own.
VARIABLES = {
    "account": "SBATCH_ACCOUNT",
    "partition": "SBATCH_PARTITION",
    "qos": "SBATCH_QOS",
    "constraint": "SBATCH_CONSTRAINT",
    "cpu_partition": "LONGSHORT_CPU_PARTITION",
    "cpu_qos": "LONGSHORT_CPU_QOS",
    "cpu_constraint": "LONGSHORT_CPU_CONSTRAINT",
    "gpu_type": "LONGSHORT_GPU_TYPE",
    "most_minutes": "LONGSHORT_MOST_MINUTES",
    "most_memory_mb": "LONGSHORT_MOST_MEMORY_MB",
}
NAMES = r"^[\w.,:+-]+$"
FEATURES = r"^[\w.,:+&|*\[\]()-]+$"
# What a job needs that trains nothing and measures nothing: a corpus', or of a base that is taken as it is.
LITTLE = 4000, 240
Resources = dict[str, Any]


class Site(BaseModel):
    """slurm/site.yaml: what SLURM wants to know on this cluster; what is left out is left to SLURM."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    # No pattern but of what a shell would take for more than a name.
    account: str | None = Field(None, pattern=NAMES, description="who pays")
    partition: str | None = Field(None, pattern=NAMES, description="where jobs run")
    qos: str | None = Field(None, pattern=NAMES, description="quality of service")
    constraint: str | None = Field(None, pattern=FEATURES, description="features of the nodes")
    cpu_partition: str | None = Field(None, pattern=NAMES, description="where jobs without a GPU run")
    cpu_qos: str | None = Field(None, pattern=NAMES, description="their quality of service there")
    cpu_constraint: str | None = Field(None, pattern=FEATURES, description="features of the nodes there")
    gpu_type: str | None = Field(None, pattern=r"^[\w.]+$", description="as in gres: a100 of gpu:a100:4")
    most_minutes: int | None = Field(None, gt=0, description="to which the time of further attempts grows")
    most_memory_mb: int | None = Field(None, gt=0, description="to which their memory grows")

    def resources(self, gpus: int) -> Resources:
        """gpus: on each node."""
        where = self.partition, self.qos, self.constraint
        if not gpus and self.cpu_partition:
            where = self.cpu_partition, self.cpu_qos, self.cpu_constraint
        partition, qos, constraint = where
        found: Resources = {
            "slurm_account": self.account,
            "slurm_partition": partition,
            "qos": qos,
            "constraint": constraint,
        }
        if gpus:
            # The plugin would ask for a task a GPU otherwise; there is one launcher a node.
            found |= {"gres": f"gpu:{self.gpu_type + ':' if self.gpu_type else ''}{gpus}", "tasks_per_gpu": 0}
            # Of no meaning to SLURM. Without it each job begins at the first GPU: `--resources devices=1` lets one in.
            found["devices"] = 1
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
    return {**memory_and_time(site, memory_mb, minutes), **site.resources(gpus)}


def memory_and_time(site: Site, memory_mb: int | dict[str, int], minutes: int | dict[str, int]) -> Resources:
    """The same for all jobs of a rule, or those of each run."""
    return {"mem_mb": growing(memory_mb, site.most_memory_mb), "runtime": growing(minutes, site.most_minutes)}


def training(site: Site, gpus: int, nodes: int) -> Resources:
    """Where a training runs: one launcher a node, which srun starts where there are several."""
    several = {"nodes": nodes, "tasks": nodes, "mpi": "srun"} if nodes > 1 else {}
    return {**site.resources(gpus), **several}


def asked_to_save(minutes: int) -> Resources:
    """When SLURM asks a training to end; without more, when the profile says."""
    return {} if minutes == PROFILE_MINUTES else {"slurm_extra": f"--signal=TERM@{60 * minutes}"}


def growing(asked: int | dict[str, int], most: int | None = None) -> Callable[..., int]:
    """What is asked, or asked for each run, at the first attempt, twice that at the second, and so on, as a job that
    failed may have had too little; up to most."""

    def grown(wildcards: Any, attempt: int) -> int:
        amount = asked[wildcards.run] if isinstance(asked, dict) else asked
        return amount * attempt if most is None else min(amount * attempt, max(amount, most))

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
