"""Which modules a run's specification names by kind: they join the code identity of that run alone."""

from __future__ import annotations

from typing import Any

from longshort.alignment import kinds as divergences
from longshort.models import kinds as extensions


def chosen(spec: dict[str, Any]) -> tuple[str, ...]:
    """Names of the modules that the specification of a run, as its file holds it, chooses."""
    return tuple(sorted({*divergences.chosen(spec.get("alignment")), *extensions.chosen(spec)}))
