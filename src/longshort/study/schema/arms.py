"""config/arms.yaml: the arms, which all studies share."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from longshort.identity.strict import Strict
from longshort.study.schema.tables import Table


class Arm(Strict):
    """One entry of config/arms.yaml: a patch, and what it is compared with."""

    description: str = Field(description="what the arm is, for tables and people")
    control: str | None = Field(None, description="the arm with the same amount of alpha, for the schedules table")
    alignment: dict[str, Any] = Field({}, description="patch of the alignment")
    training: dict[str, Any] = Field({}, description="patch of the training")
    rope: dict[str, Any] = Field({}, description="patch of the study's model.rope, which stays of its kind")


class Arms(Strict):
    """config/arms.yaml"""

    alignment: dict[str, Any] = Field(description="what every arm starts from")
    arms: dict[str, Arm] = Field(description="the arms by name")
    tables: dict[str, Table] = Field(
        {}, description="shared tables: a study makes those of whose arms it has more than baseline and constant"
    )
