"""Models: made from a small configuration, or loaded from a folder or the hub (safetensors only)."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from longshort.errors import UserError
from longshort.identity.kinds import ADAPTERS
from longshort.models import rope
from longshort.models.settings import Architecture

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def from_scratch(
    architecture: Architecture, *, vocabulary: int, separator: int, length: int, seed: int
) -> PreTrainedModel:
    """A Llama-style decoder with random weights drawn from seed, in float32."""
    _no_bars_in_logs()
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=architecture.hidden_size,
        intermediate_size=architecture.intermediate_size,
        num_hidden_layers=architecture.layers,
        num_attention_heads=architecture.heads,
        num_key_value_heads=architecture.heads,
        max_position_embeddings=length,
        rope_parameters={"rope_type": "default", "rope_theta": architecture.rope_theta},
        bos_token_id=separator,
        eos_token_id=separator,
        pad_token_id=separator,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def load(
    path: str | Path, *, precision: str = "fp32", adapts: str | Path | None = None, four_bits: bool = False
) -> PreTrainedModel:
    """The model at path, on the CPU; one in four bits on this process's GPU, where there is one.

    Args:
        precision: floating point type of its weights.
        adapts: the base, where path holds an adapter: the two are added up.
        four_bits: quantises all weights but those of embeddings and head.

    Raises:
        UserError: the weights are not those that the configuration asks for, by name.
    """
    _no_bars_in_logs()
    if adapts is not None:
        model: PreTrainedModel = import_module(ADAPTERS).merged(Path(path), Path(adapts), precision)
        return model
    quantised = {}
    if four_bits:
        device = torch.cuda.current_device() if torch.cuda.is_available() else "cpu"
        quantised = {"quantization_config": import_module(ADAPTERS).four_bits(precision), "device_map": {"": device}}
    model = whole(path, precision, **quantised)
    rope.restore(model, Path(path))
    # On some CPUs bitsandbytes rearranges four bits for a forward outside training, and trains on them no more.
    return model.train() if four_bits else model


def whole(path: str | Path, precision: str, **options: Any) -> PreTrainedModel:
    """A model all of whose weights come from its files. transformers draws those that are missing at random, and says
    so in a warning.

    Harmless, and not looked at, is what transformers' own class of the model calls so: rotary frequencies that old
    checkpoints hold, and a head that is tied to the embeddings.

    Raises:
        UserError: a weight is missing, not asked for, or of another shape; or its configuration is none.
    """
    remedy = "take a whole copy of the model, or mend its config.json"
    # transformers' default asks whether to run code that comes with a model.
    how: dict[str, Any] = {"use_safetensors": True, "trust_remote_code": False, "output_loading_info": True, **options}
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(str(path), dtype=DTYPES[precision], **how)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # of whatever kind: what a configuration says is taken for granted there
        if "ignore_mismatched_sizes" in str(error):
            raise UserError(
                f"{path}: weights have other shapes than its config.json says (see above); {remedy}"
            ) from None
        what = f"{type(error).__name__}: {error}"
        raise UserError(
            f"{path}: transformers makes no model of its config.json and weights ({what}); {remedy}"
        ) from error
    model: PreTrainedModel
    model, report = loaded
    wrong = {"lacks": report["missing_keys"], "has no place for": report["unexpected_keys"]}
    wrong["has in another shape"] = report["mismatched_keys"]
    said = [f"{what} {listed(sorted(map(str, names)))}" for what, names in wrong.items() if names]
    if said or report["error_msgs"]:
        raise UserError(f"{path}: the model {'; '.join([*said, *report['error_msgs']])}; {remedy}")
    return model


def listed(names: list[str], most: int = 6) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _no_bars_in_logs() -> None:
    """transformers' bars, of which a log would get a line for each state."""
    if not sys.stderr.isatty():
        disable_progress_bar()


@dataclass(frozen=True)
class LogitChange:
    """What some models do to their logits after the head: times scale, then cap * tanh(logits / cap)."""

    scale: float = 1.0
    cap: float | None = None

    def __call__(self, logits: Tensor) -> Tensor:
        """The changed logits, in float32 at least."""
        logits = logits if logits.element_size() >= 4 else logits.float()
        if self.scale != 1.0:
            logits = logits * self.scale
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)


# How configurations name it; the number joins the scale with this exponent, or is the cap.
LOGIT_SCALES = {"logit_scale": 1, "lm_head_multiplier": 1, "logits_scaling": -1}
LOGIT_CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
LOOKS_LIKE_A_CHANGE = re.compile(
    r"^(?!.*(attn|attention|router|init)).*(logit.*(scal|cap|mult)|lm_head_mult|output_mult)"
)


def logit_change(config: PretrainedConfig) -> LogitChange:
    """What a model of this configuration does to its logits after the head (Gemma, Cohere, Granite, Falcon-H1, ...).

    Names tell what it is for the models that are known, and mean other things elsewhere: whoever relies on it compares
    with what the model does (alignment/objective.py, evaluation/forward.py).

    Raises:
        UserError: the configuration names a change that is not known here.
    """
    scale, cap = 1.0, None
    for name, value in vars(config.get_text_config()).items():
        if not isinstance(value, int | float) or not LOOKS_LIKE_A_CHANGE.search(name):
            continue
        if name in LOGIT_SCALES:
            scale *= value ** LOGIT_SCALES[name]
        elif name in LOGIT_CAPS:
            cap = value
        elif value != 1:
            raise UserError(
                f"model type {config.model_type} changes its logits after the head ({name} = {value}), which is not "
                "known here: add it to logit_change in models/load.py"
            )
    return LogitChange(scale, cap)


def blocks(model: PreTrainedModel) -> torch.nn.ModuleList:
    """The decoder's blocks in order.

    Raises:
        UserError: the decoder keeps them elsewhere than in `layers`.
    """
    decoder = model.get_decoder()
    layers = getattr(decoder, "layers", None)
    if not isinstance(layers, torch.nn.ModuleList):
        raise UserError(f"{type(model).__name__} keeps no list of blocks in `layers`; hidden alignment needs one")
    return layers


def final_norm(model: PreTrainedModel) -> torch.nn.Module:
    """The norm between the last block and the head."""
    norm = getattr(model.get_decoder(), "norm", None)
    if not isinstance(norm, torch.nn.Module):
        raise UserError(f"{type(model).__name__} has no final `norm`; the logit lens needs one")
    return norm
