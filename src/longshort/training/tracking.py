"""What experiment trackers are told of a run: they group by study and arm, and a resumed run goes on where it was."""

from __future__ import annotations

import os

from longshort.records import layout


def environment(name: str, identity: str) -> dict[str, str]:
    """The variables that trackers read; what the user has set stays.

    Args:
        name: study/arm/seed-n.
        identity: the same in every attempt at this training.
    """
    study, _, arm_and_seed = name.partition("/")
    chosen = {
        "TENSORBOARD_LOGGING_DIR": layout.tensorboard(study, arm_and_seed),
        "WANDB_PROJECT": "longshort",
        "WANDB_RUN_GROUP": name.rpartition("/")[0],
        "WANDB_RUN_ID": identity,
        "WANDB_RESUME": "allow",
        "MLFLOW_EXPERIMENT_NAME": study,
        "COMET_PROJECT_NAME": study,
    }
    return {key: value for key, value in chosen.items() if key not in os.environ}
