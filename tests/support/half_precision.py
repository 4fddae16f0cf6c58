"""What an engine of DeepSpeed makes of a model in bf16: `python -m tests.support.half_precision FOLDER ZERO` prints as
JSON, for each way to extend a context, how far cosines and sines at position 30,000 are from those of its formula."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import deepspeed
import torch
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers.integrations import HfDeepSpeedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from longshort.models import load, rope
from longshort.models.settings import ABF, CLEX, Interpolation, YaRN
from longshort.training import launch
from tests.support.project import ROOT

POSITION, ORIGINAL, FACTOR = 30_000, 4096, 8
THETA, SIZE = 10_000.0, 16  # of a head
EXTENSIONS: dict[str, Any] = {
    "none": None,
    "pi": Interpolation(kind="pi", factor=FACTOR),
    "ntk": Interpolation(kind="ntk", factor=FACTOR),
    "yarn": YaRN(kind="yarn", factor=FACTOR),
    "abf": ABF(kind="abf", theta=500_000.0),
    "clex": CLEX(kind="clex", max_factor=FACTOR, time_step=0.1, draws_per="step"),
}
# A base whose own configuration says YaRN: it is made while DeepSpeed divides what is loaded.
OWN = "yarn of the base"


def bases(folder: Path) -> dict[str, Path]:
    """Two models of a block, whose states are so small that the norms' epsilon tells."""
    shape: dict[str, Any] = {"hidden_size": 2 * SIZE, "intermediate_size": 32, "num_hidden_layers": 1}
    shape |= {"num_attention_heads": 2, "vocab_size": 64, "initializer_range": 1e-3, "pad_token_id": 0}
    own = {"rope_type": "yarn", "factor": FACTOR, "original_max_position_embeddings": ORIGINAL, "rope_theta": THETA}
    plain = {"rope_type": "default", "rope_theta": THETA}
    for name, length, parameters in (("plain", ORIGINAL, plain), ("own", FACTOR * ORIGINAL, own)):
        torch.manual_seed(0)
        config = LlamaConfig(**shape, max_position_embeddings=length, rope_parameters=parameters)
        LlamaForCausalLM(config).save_pretrained(folder / name)
    return {kind: folder / "plain" for kind in EXTENSIONS} | {OWN: folder / "own"}


def frequencies(kind: str, config: Any) -> torch.Tensor:
    """Of the formulas, [SIZE / 2]: by hand in float64, YaRN's by transformers in float32 on the CPU."""
    index = torch.arange(0, SIZE, 2, dtype=torch.float64)
    plain = THETA ** (-index / SIZE)
    stretched = {"ntk": FACTOR, "clex": 2 * FACTOR - 1}  # CLEX begins where NTK with 2 t - 1 is
    if kind in stretched:
        return plain * stretched[kind] ** (-index / (SIZE - 2))
    if "yarn" in kind:
        return ROPE_INIT_FUNCTIONS["yarn"](config, torch.device("cpu"))[0].double()
    return {"none": plain, "pi": plain / FACTOR, "abf": 500_000.0 ** (-index / SIZE)}[kind]


def seen(model: PreTrainedModel, run: Any) -> dict[str, Any]:
    """What a forward computes with: cosines and sines of POSITION, and the first norm's input, output and weight."""
    found: dict[str, Any] = {}
    decoder = model.get_decoder()

    def of_norm(norm: Any, given: Any, output: torch.Tensor) -> None:
        found.update(given=given[0].detach(), output=output.detach(), weight=norm.weight.detach().clone())

    hooks = [
        decoder.rotary_emb.register_forward_hook(lambda _, given, output: found.update(cos=output[0], sin=output[1])),
        decoder.layers[0].input_layernorm.register_forward_hook(of_norm),
    ]
    ids = torch.tensor([[0, 1, POSITION]])
    with torch.no_grad():
        run(input_ids=torch.tensor([[5, 6, 7]]), position_ids=ids, use_cache=False)
    for hook in hooks:
        hook.remove()
    return found


def measured(kind: str, model: PreTrainedModel, run: Any, config: Any) -> dict[str, Any]:
    """How far a forward's values are from those in float64, and of which type its weights are."""
    found = seen(model, run)
    angles = POSITION * torch.cat([frequencies(kind, config)] * 2)
    scale = ROPE_INIT_FUNCTIONS["yarn"](config, torch.device("cpu"))[1] if "yarn" in kind else 1.0
    moved = max((found[name][0, -1] - scale * of(angles)).abs().max().item() for name, of in WAVES.items())
    given = found["given"].double()
    norm = given * (given.square().mean(-1, keepdim=True) + config.rms_norm_eps).rsqrt() * found["weight"]
    relative = ((found["output"] - norm) / norm).abs().max().item()
    types = sorted({str(parameter.dtype) for parameter in model.parameters()})
    small = given.square().mean().item() < config.rms_norm_eps
    return {"moved": moved, "norm": relative, "types": types, "epsilon tells": small}


WAVES = {"cos": torch.cos, "sin": torch.sin}


def main() -> None:
    folder, zero = Path(sys.argv[1]), sys.argv[2]
    os.environ.update({**launch.environment(1), **launch.ALONE})
    deepspeed.init_distributed(dist_backend="gloo", verbose=False)
    content = json.loads((ROOT / f"config/deepspeed/{zero}.json").read_text())
    settings = {**content, "train_batch_size": 1, "train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1}
    settings |= {"gradient_clipping": 1.0, "bf16": {"enabled": True}}
    said: dict[str, Any] = {}
    for kind, base in bases(folder).items():
        config = AutoConfig.from_pretrained(base)
        told = HfDeepSpeedConfig(settings)  # as the Trainer's arguments do: ZeRO-3 divides what is loaded
        model = load.load(base, precision="bf16")
        del told
        if EXTENSIONS.get(kind):
            rope.extend(model, EXTENSIONS[kind], seed=0)
        optimizer = torch.optim.AdamW(model.parameters())
        engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)
        engine.eval()
        said[kind] = measured(kind, model, engine, model.config if kind == "yarn" else config)
        if kind == "none" and zero == "zero0":  # what the test would say if buffers were rounded with the weights
            rounded = LlamaForCausalLM.from_pretrained(base).to(torch.bfloat16).eval()
            said["rounded"] = measured("none", rounded, rounded, config)
    print("RESULT " + json.dumps(said))


if __name__ == "__main__":
    main()
