"""Modules that a run's specification chooses by kind: imported by name and late, so that they join the code of those
runs alone. All of them stand here; study.run.RunSpec says which of them a run names."""

from __future__ import annotations

DIVERGENCES = {
    "sce": "longshort.alignment.divergences.sce",
    "symmetric-kl": "longshort.alignment.divergences.symmetric_kl",
    "kl": "longshort.alignment.divergences.kl",
    "reverse-kl": "longshort.alignment.divergences.reverse_kl",
    "js": "longshort.alignment.divergences.js",
    "l2": "longshort.alignment.divergences.l2",
}
ROPE = {
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
# What is aligned: the views' overlap, and the chosen layers.
ALIGNMENT = "longshort.alignment.objective"
HIDDEN = "longshort.alignment.hidden"
