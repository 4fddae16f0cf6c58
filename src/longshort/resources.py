"""What the jobs of a rule ask a scheduler for."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any


def growing(amount: int) -> Callable[..., int]:
    """amount at the first attempt, twice that at the second, and so on: a job that failed may have had too little."""

    def grown(wildcards: Any, attempt: int) -> int:
        return amount * attempt

    # The engine asks for the signature of every function of every job; found here, planning is a tenth faster.
    grown.__signature__ = inspect.signature(grown)  # type: ignore[attr-defined]
    return grown
