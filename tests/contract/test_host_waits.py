"""A training step does not wait for its GPU, but to log: no value of a tensor is looked at, and nothing that the GPU
reads is made on the host. What a GPU itself says of it: `benchmarks/objective.py --device cuda`."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from longshort.alignment.divergences import with_slopes
from longshort.alignment.hidden import distance
from longshort.alignment.views import overlap
from longshort.identity.kinds import DIVERGENCES
from longshort.models.fused import Pairs, losses
from tests.support.project import ROOT

SOURCE = ROOT / "src/longshort"
STEP = [
    *sorted((SOURCE / "alignment").rglob("*.py")),
    *sorted((SOURCE / "models/rope").glob("*.py")),
    SOURCE / "models/fused.py",
    SOURCE / "models/head.py",
    SOURCE / "training/trainer.py",
]
LOOKS = {"item", "tolist", "cpu", "numpy", "nonzero", "argwhere", "unique", "masked_select", "cuda"}
MAKES = {"tensor", "as_tensor", "from_numpy", "arange", "zeros", "ones", "empty", "full", "linspace", "eye", "rand"}
# Function -> why it may.
ALLOWED = {
    "training/trainer.py _row": "the log's: once a step, after it",
    "models/rope/__init__.py set_parameters": "before the training",
    "models/rope/__init__.py rotary_size": "of its shape",
    "models/rope/clex.py __init__": "before the training",
    "models/rope/clex.py restore": "before an evaluation",
    "models/rope/clex.py forward": "evaluations; a training turns to _random_angles first",
    "models/rope/clex.py _random_angles": "the frequencies are where CLEX's weights are, which is there",
    "models/rope/clex.py _random_positions": "drawn on the host; _random_angles sends them from pinned memory",
}


def functions(path: Path) -> Iterator[tuple[str, ast.AST]]:
    """Every function of a module and its name; of the trainer those of the step."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ClassDef) and path.name == "trainer.py":
            yield from ((part.name, part) for part in node.body if isinstance(part, ast.FunctionDef))
        elif isinstance(node, ast.FunctionDef) and path.name != "trainer.py":
            yield node.name, node


def waits(function: ast.AST) -> Iterator[str]:
    for node in ast.walk(function):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        of_torch = isinstance(node.func, ast.Attribute) and ast.unparse(node.func.value) == "torch"
        given = {keyword.arg for keyword in node.keywords}
        if name in LOOKS and isinstance(node.func, ast.Attribute) and not of_torch:
            yield ast.unparse(node)
        if of_torch and name in MAKES and "device" not in given:
            yield ast.unparse(node)
        moved = name == "to" and any(ast.unparse(part).endswith("device") for part in node.args)
        if moved and "non_blocking" not in given:
            yield ast.unparse(node)
        if isinstance(node.func, ast.Name) and name in ("int", "float", "bool") and not plain(node):
            yield ast.unparse(node)


def plain(call: ast.Call) -> bool:
    """Whether a conversion is one of a constant or of a text."""
    return all(isinstance(part, ast.Constant | ast.JoinedStr) for part in call.args)


def test_no_function_of_the_step_looks_at_a_tensor_or_makes_one_on_the_host() -> None:
    found: dict[str, list[str]] = {}
    for path in STEP:
        for name, function in functions(path):
            if said := sorted(set(waits(function))):
                found.setdefault(f"{path.relative_to(SOURCE)} {name}", []).extend(said)
    unknown = [f"{place}: {', '.join(said)}" for place, said in found.items() if place not in ALLOWED]
    assert not unknown, "\n".join(unknown)
    assert found.keys() == ALLOWED.keys(), "ALLOWED names what waits no more"


@pytest.mark.parametrize("kind", DIVERGENCES)
@pytest.mark.parametrize("positions", ["all", "last", "last-k"])
def test_the_loss_is_computed_where_no_value_can_be_looked_at(kind: str, positions: str) -> None:
    """On torch's meta device, which has none: any branch on a value, or index by a mask, is an error there."""
    meta: dict[str, Any] = {"device": "meta", "requires_grad": True}
    hidden, weight = torch.empty(2 * 2 * 16, 8, **meta), torch.empty(50, 8, **meta)
    targets = torch.empty(2, 2, 16, dtype=torch.long, device="meta")
    at = overlap(targets, [3, 5], positions, 2)
    pairs = [Pairs(at.in_a, at.in_b, at.weight, 0.1, with_slopes(kind))]
    found = losses(hidden, weight, None, targets.flatten(), pairs, at.alone)
    apart = torch.stack([distance(how, hidden[at.in_a], hidden[at.in_b]).mean() for how in ("mse", "cosine")])
    (found.loss + apart.sum()).backward()
    assert hidden.grad is not None and weight.grad is not None
    with pytest.raises((RuntimeError, NotImplementedError)):
        bool(found.loss > 0)
