"""Names of modules that some runs use. No part of any code identity: a run's specification names those it uses."""

from __future__ import annotations

from typing import Any

# Imported by name and late, so that a run depends on the module of its own method only.
MODULES = {
    "pi": "longshort.models.rope.position_interpolation",
    "ntk": "longshort.models.rope.ntk",
    "dynamic-ntk": "longshort.models.rope.dynamic_ntk",
    "yarn": "longshort.models.rope.yarn",
    "abf": "longshort.models.rope.abf",
    "eabf": "longshort.models.rope.eabf",
    "clex": "longshort.models.rope.clex",
}
SHIFTED_SPARSE = "longshort.models.rope.shifted_sparse"
ADAPTERS = "longshort.models.adapters"


def chosen(spec: dict[str, Any]) -> tuple[str, ...]:
    """The modules that a run's specification names."""
    rope, training = spec.get("rope"), spec.get("training") or {}
    names = [MODULES[rope["kind"]]] if rope else []
    if training.get("attention") == "shifted-sparse":
        names.append(SHIFTED_SPARSE)
    if training.get("adapter"):
        names.append(ADAPTERS)
    return tuple(names)
