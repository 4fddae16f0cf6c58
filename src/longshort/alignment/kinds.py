"""Names of the divergences. No part of any code identity: a run's specification names the one module that it uses."""

from __future__ import annotations

from typing import Any

# Imported by name and late, so that a run depends on the module of its own divergence only.
MODULES = {
    "sce": "longshort.alignment.divergences.sce",
    "symmetric-kl": "longshort.alignment.divergences.symmetric_kl",
    "kl": "longshort.alignment.divergences.kl",
    "reverse-kl": "longshort.alignment.divergences.reverse_kl",
    "js": "longshort.alignment.divergences.js",
    "l2": "longshort.alignment.divergences.l2",
}
STOP_GRADIENTS = ("none", "first", "second", "targets")


def chosen(alignment: dict[str, Any] | None) -> tuple[str, ...]:
    """The modules that the `alignment` of a run's specification names."""
    terms = [(alignment or {}).get(term) or {} for term in ("output", "hidden")]
    return tuple(sorted({MODULES[term["divergence"]] for term in terms if term.get("divergence")}))
