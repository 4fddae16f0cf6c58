"""Context extension: how a model's rotary positions are changed before it is trained, one file per method.

Every file has one function:

    extend(model, settings, seed) -> None

It changes the model in place and its configuration with it, so that a saved model is loaded as it was: by transformers
alone where `rope_parameters` says all, otherwise by the file's second function, `restore(model, kept, folder)`: `kept`
is what the method keeps in config.json.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from longshort.errors import UserError
from longshort.identity.kinds import ROPE
from longshort.models.settings import Rope

# Where config.json keeps what rope_parameters cannot say.
KEY = "longshort_rope"


def extend(model: PreTrainedModel, settings: Rope, seed: int = 0) -> None:
    """Extends the context of a model with plain rotary positions.

    Args:
        seed: of the weights that a method adds.

    Raises:
        UserError: the model has no rotary positions, or some that were extended before.
    """
    parameters = getattr(model.config, "rope_parameters", None) or {}
    if "rope_theta" not in parameters or not hasattr(model.get_decoder(), "rotary_emb"):
        raise UserError(
            f"model.rope = {settings.kind}: {type(model).__name__} has no single set of rotary frequencies; "
            "take a model of the Llama, Mistral or Qwen family, or leave model.rope out"
        )
    if parameters.get("rope_type", "default") != "default" or hasattr(model.config, KEY):
        extended = getattr(model.config, KEY, {}).get("kind") or parameters["rope_type"]
        raise UserError(
            f"model.rope = {settings.kind}: the model's rotary frequencies are extended already ({extended}); "
            "start from a model that is not, or leave model.rope out"
        )
    import_module(ROPE[settings.kind]).extend(model, settings, seed)


def restore(model: PreTrainedModel, folder: Path) -> None:
    """Gives a model that was just loaded from folder what its configuration alone does not."""
    if kept := getattr(model.config, KEY, None):
        import_module(ROPE[kept["kind"]]).restore(model, kept, folder)


def set_parameters(model: PreTrainedModel, parameters: dict[str, Any], longest: int | None = None) -> None:
    """Gives a model other `rope_parameters`, and new rotary frequencies by them.

    longest: its new max_position_embeddings, tokens; None leaves it.
    """
    # Some families turn a part of each head alone, which their parameters say, too.
    model.config.rope_parameters = {**model.config.rope_parameters, **parameters}
    if longest is not None:
        model.config.max_position_embeddings = longest
    decoder = model.get_decoder()
    decoder.rotary_emb = type(decoder.rotary_emb)(model.config).to(model.device)


def rotary_size(model: PreTrainedModel) -> int:
    """Features of an attention head that are turned, d of the papers' formulas: all of them in most families."""
    return 2 * int(model.get_decoder().rotary_emb.inv_freq.numel())


def at_forward(model: PreTrainedModel, seed: int) -> Callable[[int, Sequence[int]], None]:
    """What must be called ahead of every forward of a training with the optimiser step and the global indices of its
    windows: methods that draw something, draw it by the seed and one of the two."""
    draw = getattr(model.get_decoder().rotary_emb, "draw", None) if hasattr(model.get_decoder(), "rotary_emb") else None
    return lambda step, samples: draw(seed, step, samples) if draw else None
