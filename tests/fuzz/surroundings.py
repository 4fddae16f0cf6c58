"""Variables of the environment, which a shell, a cluster or a colleague set."""

from __future__ import annotations

import random
from pathlib import Path

from tests.fuzz.engine import Kind, Mutation
from tests.fuzz.published import ASKED, stage

VALUES = ["", "x", "-1", "0", "1e9", "a b", "/nowhere", "é", "\x1b[2J", "$(touch PWNED)", "=", "1,2", "{}", "nan"]
# What ours read, and what their libraries do; what Python reads when it starts, a fork of one that runs would not see.
OURS = ["LONGSHORT_PLANNED", "LONGSHORT_TRUSTED_USERS", "LONGSHORT_CPU_PARTITION", "LONGSHORT_GPU_TYPE"]
SLURM = ["SBATCH_ACCOUNT", "SBATCH_PARTITION", "SBATCH_QOS", "SBATCH_CONSTRAINT", "SLURM_JOB_ID", "SLURMD_NODENAME"]
OTHERS = ["TERM", "COLUMNS", "NO_COLOR", "HOME", "USER"]
NAMES = [*OURS, *SLURM, *OTHERS]


def of_a_variable(draw: random.Random, project: Path) -> Mutation:
    variable, value = draw.choice(NAMES), draw.choice(VALUES)
    commands = {ask: ASKED[ask] for ask in ("plan", "status", "partial", "dry run")} | {"stage": stage(project, draw)}
    asked = draw.choice(list(commands))
    return Mutation(
        f"{variable}={value!r}; {asked}",
        "a variable is taken for what it says, refused by name, or of no matter",
        refused=variable,
        may_pass=True,
        commands=(commands[asked],),
        environment={variable: value},
        wrong=lambda project: "it ran" if (project / "PWNED").exists() else None,
    )


KINDS: dict[str, Kind] = {"a variable": of_a_variable}
