"""Adapters of low rank: the base stays as it is, a small product of two matrices is trained beside each linear layer.

LoRA (Hu et al., ICLR 2022, arXiv 2106.09685) through peft. QLoRA (Dettmers et al., NeurIPS 2023, arXiv 2305.14314): the
same on a base in four bits (NF4, double quantisation) through bitsandbytes. A checkpoint holds the adapter alone;
whatever reads one adds it to the base's weights in full precision, those of a QLoRA too (as LongQLoRA's merge_lora.py).
"""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors import safe_open
from transformers import AutoConfig, BitsAndBytesConfig, PreTrainedModel

from longshort.errors import UserError
from longshort.models import load, rope
from longshort.models.settings import Adapter


def four_bits(precision: str) -> BitsAndBytesConfig:
    """How a base is quantised as it is loaded; the head and the embeddings are not.

    Args:
        precision: floating point type that four bits are expanded to, `fp32` or `bf16`.
    """
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=load.DTYPES[precision],
    )


def attach(model: PreTrainedModel, settings: Adapter, seed: int) -> PeftModel:
    """The model with an adapter, which alone is trained.

    Args:
        seed: of the adapter's first weights.

    Raises:
        UserError: the model has no linear layer of a name.
    """
    linear = {name.rpartition(".")[2] for name, part in model.named_modules() if isinstance(part, torch.nn.Linear)}
    if absent := sorted(set(settings.targets) - linear):  # peft passes over them if there is another one
        raise UserError(
            f"training.adapter.targets: the model has no linear layer called {load.listed(absent)}; "
            f"it has {load.listed(sorted(linear), 20)}"
        )
    how = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]  # it only divides by the rank
        lora_dropout=settings.dropout,
        target_modules=list(settings.targets),
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        adapted = get_peft_model(model, how)
    assert isinstance(adapted, PeftModel)
    # peft made a set of them, whose order in the saved file differs from process to process.
    how.target_modules = sorted(settings.targets)
    return adapted


def save_config(model: PreTrainedModel, folder: Path) -> None:
    """Adds to an adapter's checkpoint what the base's own configuration does not say: how its context was extended."""
    config = deepcopy(model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.save_pretrained(folder)


def merged(folder: Path, base: Path, precision: str) -> PreTrainedModel:
    """The base, its weights and the adapter's of folder added up.

    Raises:
        UserError: weights of the base or of the adapter are missing, or nobody asks for them.
    """
    model = load.whole(base, precision, config=AutoConfig.from_pretrained(str(folder), trust_remote_code=False))
    rope.restore(model, base)
    adapted = PeftModel.from_pretrained(model, str(folder))
    with safe_open(folder / "adapter_model.safetensors", "pt") as file:
        trained, asked = set(file.keys()), set(get_peft_model_state_dict(adapted))
    if trained != asked:  # peft would leave those that are missing as they begin, which is to do nothing
        raise UserError(
            f"{folder}: the adapter's weights are not those that its configuration asks for: they differ in "
            f"{load.listed(sorted(trained ^ asked))}; delete the folder and train again"
        )
    whole = adapted.merge_and_unload()
    assert isinstance(whole, PreTrainedModel)
    return whole
