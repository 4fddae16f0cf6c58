"""Modules that a run's specification chooses by kind: imported by name and late, so that they join the code of those
runs alone. All of them stand here."""

from __future__ import annotations

from typing import Any

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


def chosen(spec: dict[str, Any]) -> tuple[str, ...]:
    """The modules that the specification of a run, as its file holds it, chooses."""
    rope, training, alignment = spec.get("rope"), spec.get("training") or {}, spec.get("alignment") or {}
    terms = [alignment.get(term) or {} for term in ("output", "hidden")]
    names = {DIVERGENCES[term["divergence"]] for term in terms if term.get("divergence")}
    if any(terms):
        names.add(ALIGNMENT)
    if alignment.get("hidden"):
        names.add(HIDDEN)
    if rope:
        names.add(ROPE[rope["kind"]])
    if training.get("attention") == "shifted-sparse":
        names.add(SHIFTED_SPARSE)
    if training.get("adapter"):
        names.add(ADAPTERS)
    return tuple(sorted(names))
