"""The models of checkpoints that a process measures, each loaded as seldom as its memory allows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from longshort.errors import UserError
from longshort.identity.spec import dumps
from longshort.models.settings import Rope
from longshort.records.publish import LATE, altered

HELD = 2**28  # bytes of weights beside which another checkpoint may be loaded


class Models:
    """Models of checkpoints, kept for the metrics that one process measures after each other.

    The one that was asked for last is kept in any case. Where the others take more than HELD together, they are given
    up before the next one is loaded: small models are loaded once, and large ones take no more memory than one metric
    alone would.
    """

    def __init__(self) -> None:
        self._held: dict[tuple[str, str, str], Any] = {}

    def of(self, checkpoint: dict[str, Any], precision: str) -> Any:
        """The model of a checkpoint, as the record of its training has it.

        Raises:
            UserError: its weights are not those that were trained.
        """
        key = str(checkpoint["path"]), dumps(checkpoint.get("extended")), precision
        if key not in self._held:
            if sum(map(_size, self._held.values())) > HELD:
                self._held.clear()
            self._held[key] = load(checkpoint, precision)
        return self._held[key]


def _size(model: Any) -> int:
    """Bytes of a model's weights."""
    return sum(weight.numel() * weight.element_size() for weight in model.parameters())


def load(checkpoint: dict[str, Any], precision: str) -> Any:
    """The model of a checkpoint whose weights are the ones that the training recorded."""
    import torch

    from longshort.evaluation.forward import refuse_unknown_logits
    from longshort.models import load as models
    from longshort.models import rope

    base = checkpoint.get("adapts")
    for part in [checkpoint, *([base] if base else [])]:
        if trouble := altered(Path(part["path"]), part["files"], patience=LATE):
            raise UserError(
                f"the weights are not those that were trained: {part['path']}: {trouble}; "
                "delete the run's record and run snakemake again, which trains it anew"
            )
    model = models.load(checkpoint["path"], precision=precision, adapts=base and base["path"])
    if extended := checkpoint.get("extended"):
        rope.extend(model, TypeAdapter(Rope).validate_python(extended["rope"]), extended["seed"])
    model.eval()
    model.to("cuda" if torch.cuda.is_available() else "cpu")  # type: ignore[arg-type]
    refuse_unknown_logits(model)
    return model
