"""The sections `tables` and `published`: what is shown, and beside which numbers of the paper."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from longshort.identity.strict import Strict, distinct
from longshort.results.columns import KINDS


class Table(Strict):
    title: str = Field(description="caption")
    arms: list[str] | Literal["all"] = Field(description="rows in order; all: every arm of the study")
    compare_with: Literal["baseline", "control"] = Field(
        "baseline", description="the reference of the differences: the arm baseline, or each arm's control"
    )
    columns: str = Field(
        "headline",
        description="what is shown: headline: every metric; tasks, buckets: LongBench-E by task or by length of the "
        "document; lengths: perplexity and accuracy by length; alpha-by-length: the alpha that is best at each length; "
        "cost: hours, operations, speed and memory",
        json_schema_extra={"enum": [*KINDS]},
    )

    @field_validator("columns")
    @classmethod
    def _known_kind(cls, value: str) -> str:
        if value not in KINDS:
            raise ValueError(f"no such kind of table; give {', '.join(KINDS)}")
        return value

    @field_validator("arms")
    @classmethod
    def _rows_once(cls, values: list[str] | Literal["all"]) -> list[str] | Literal["all"]:
        if not values:
            raise ValueError("a table needs a row; name arms of the study, or all")
        return values if values == "all" else distinct(values)


class Published(Strict):
    """A number of the paper that one of the study's may be held against: same model, data, steps and protocol."""

    arm: str = Field(description="arm of the study")
    step: int = Field(description="checkpoint of the study")
    column: str = Field(description="column of the tables, as in the .csv: longbench_e, perplexity@4096, ...")
    value: float = Field(description="the published value, in the column's unit")
    source: str = Field(min_length=1, description="paper and table")
