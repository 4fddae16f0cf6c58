"""What every section of a study is made from: no key that is not known, no value of another type."""

from __future__ import annotations

from collections import Counter
from typing import Any

from pydantic import BaseModel, ConfigDict

NOT_IDENTITY: dict[str, Any] = {"identity": False}
MOST_SEEDS = 2**31  # every generator takes a seed below this
COMMIT = r"^[0-9a-f]{40}$"  # a branch or a tag of the hub moves, and the study with it


class Strict(BaseModel):
    # Strict: pydantic would take "10" for 10, and true for 1.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True)


def distinct(values: Any) -> Any:
    twice = sorted(value for value, count in Counter(values).items() if count > 1)
    if twice:
        raise ValueError(f"{twice[0]!r} stands there twice; name it once")
    return values
