"""config/arms.yaml: the arms, which all studies share."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from longshort.identity.strict import Strict
from longshort.study.schema.tables import Table


class ArmLengths(Strict):
    """Another training length of an arm, with fewer or more windows a step, so that a step has as many tokens."""

    train: int | Literal["test"] = Field(description="training length, tokens; test: the study's lengths.test")

    @field_validator("train", mode="before")
    @classmethod
    def _tokens_or_a_word(cls, value: Any) -> Any:
        if value != "test" and (type(value) is not int or value < 2):
            raise ValueError("must be an integer above 1, or test")
        return value


class Arm(Strict):
    """One entry of config/arms.yaml: a patch, and what it is compared with."""

    description: str = Field(description="what the arm is, for tables and people")
    control: str | None = Field(None, description="the arm with the same amount of alpha, for the schedules table")
    alignment: dict[str, Any] = Field({}, description="patch of the alignment")
    training: dict[str, Any] = Field({}, description="patch of the training")
    rope: dict[str, Any] = Field({}, description="patch of the study's model.rope, which stays of its kind")
    lengths: ArmLengths | None = Field(
        None,
        description="another training length: the arm is then a reference beside the base, which no arm is judged by; "
        "null: the study's",
    )


class Arms(Strict):
    """config/arms.yaml"""

    alignment: dict[str, Any] = Field(description="what every arm starts from")
    arms: dict[str, Arm] = Field(description="the arms by name")
    tables: dict[str, Table] = Field(
        {}, description="shared tables: a study makes those of whose arms it has more than baseline and constant"
    )
