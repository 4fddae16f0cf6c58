"""What a process of a training takes at its peak, estimated before it is submitted: weights, gradients and optimiser by
ZeRO stage (Rajbhandari et al., SC 2020, arXiv 1910.02054, section 3), activations by checkpointing, logits by chunk.
Activations go while the backward pass makes gradients, so that the larger of the two counts.

What Python and its imports take is not counted. Imports no torch. How far the estimate is off is measured by
benchmarks/memory.py.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from longshort.models.settings import Adapter
from longshort.records import hub
from longshort.records.publish import read_json
from longshort.study import model_files
from longshort.study.schema import Training

UNNAMED = 7e9  # weights of a model whose name says no number
# Of the logits that exist at a time (alignment/fused.py), and of their gradient's copy in the head's weight.
CHUNK_BYTES = {"cpu": 128 * 2**20, "cuda": 2**30}
# DeepSpeed's own, where its file names none: weights whose gradients are collected before they are reduced, and weights
# that ZeRO-3 leaves gathered.
BUCKET, LIVE = 500_000_000, 1_000_000_000
# A training tells the C library to keep freed memory (training/launch.py): what comes and goes within a step is there
# more than once, in pieces that do not fit. Of five trainings of 53 to 145 M weights it was 0.9 to 1.5 GB, whatever the
# size, and at most about three times what comes and goes (benchmarks/README.md); a GPU's allocator has it as a reserve
# that can be given back.
KEPT, MOST_KEPT = 3.0, 1.2e9


@dataclass(frozen=True)
class Model:
    """A decoder's shape: blocks, features, features of feed-forward layers, heads of keys to heads, vocabulary.

    counted: all weights, where their files are here: experts, of which a token uses a few, are in no other number.
    """

    layers: int
    width: int
    inner: int
    kv_share: float
    vocabulary: int
    tied: bool = False
    counted: int | None = None

    @staticmethod
    def of(config: dict[str, Any]) -> Model:
        """From a model's config.json.

        Raises:
            KeyError: it names its sizes otherwise.
        """
        heads = config["num_attention_heads"]
        return Model(
            layers=config["num_hidden_layers"],
            width=config["hidden_size"],
            inner=config["intermediate_size"],
            kv_share=(config.get("num_key_value_heads") or heads) / heads,
            vocabulary=config["vocab_size"],
            tied=bool(config.get("tie_word_embeddings")),
        )

    @property
    def block(self) -> float:
        """Weights of a block."""
        return self.width * (self.width * (2 + 2 * self.kv_share) + 3 * self.inner)

    @property
    def embeddings(self) -> float:
        """Weights of the embeddings and the head."""
        return self.vocabulary * self.width * (1 if self.tied else 2)

    @property
    def in_blocks(self) -> float:
        """Weights of all blocks: what a token's operations are counted from."""
        return self.layers * self.block

    @property
    def weights(self) -> float:
        return self.counted or self.in_blocks + self.embeddings


def of_training(
    model: Model,
    training: Training,
    length: int,
    deepspeed: dict[str, Any],
    micro_batch: int,
    checkpointing: bool,
    device: str,
    views: int = 2,
) -> dict[str, float]:
    """Bytes of one process by what they are for.

    Args:
        length: l_train, tokens.
        micro_batch: windows per forward and process.
    """
    each = 2 if training.precision == "bf16" else 4
    zero = deepspeed.get("zero_optimization") or {}
    stage, processes = zero.get("stage", 0), training.world_size
    offloads = {key for key in ("optimizer", "param") if (zero.get(f"offload_{key}") or {}).get("device") == "cpu"}
    adapter = training.adapter
    trained = adapted(model, adapter) if adapter else model.weights
    parts = {"weights": each * model.weights, "gradients": each * trained, "optimiser": 8.0 * trained}
    if adapter and adapter.kind == "qlora":  # four bits and the scale of each 64
        parts["weights"] = each * model.embeddings + (0.5 + 1 / 64) * (model.weights - model.embeddings)
    if stage or each == 2:
        # A step is computed in float32, on a copy of the weights and of their gradients.
        parts["optimiser"] += 8.0 * trained
    accumulated = parts["gradients"]
    if stage >= 1:
        bucket = min(trained, zero.get("reduce_bucket_size", BUCKET))
        accumulated = each * trained / (processes if stage >= 2 else 1)
        # ZeRO-1 keeps all, the others a bucket and their share; overlapped, one is filled while another is reduced.
        filled = each * bucket * (stage >= 2) + each * bucket * bool(zero.get("overlap_comm"))
        parts["gradients"] = accumulated + filled
        parts["optimiser"] /= processes
    gathered = 0.0
    if stage == 3:
        gathered = each * min(model.weights, zero.get("stage3_max_live_parameters", LIVE))
        parts["weights"] = parts["weights"] / processes + gathered
    if device == "cuda":
        parts["optimiser"] *= "optimizer" not in offloads
        parts["weights"] *= "param" not in offloads
    tokens = views * micro_batch * length
    one = _activations(model, tokens, each)
    activations = model.layers * each * tokens * model.width + one if checkpointing else model.layers * one
    if training.batch > micro_batch * processes:  # the gradients of earlier micro-batches are there, too
        activations += accumulated
    parts["activations or gradients"] = max(activations, parts.pop("gradients"))
    chunk = min(CHUNK_BYTES[device], each * tokens * model.vocabulary)
    # Final states and their gradient; a chunk of logits and its probabilities; the gradient of the head's weight.
    parts["head"] = 4 * each * tokens * model.width + 2 * chunk + each * model.vocabulary * model.width
    if device == "cpu":
        # The gradients of a step's float32 copies, which are in the optimiser's part.
        copied = 4.0 * trained / (processes if stage else 1) if each == 2 else 0.0
        come_and_go = parts["activations or gradients"] + parts["head"] + gathered + copied
        parts["kept by the C library"] = min(KEPT * come_and_go, MOST_KEPT)
    return parts


def _activations(model: Model, tokens: int, each: int) -> float:
    """What the backward pass of a block needs of its forward: inputs of the norms (and their float32 copies), of the
    products, of the attention, and of the feed-forward layers' product."""
    norms = 2 * (4 + 2 * each) * model.width
    attention = each * model.width * (3 + 2 * model.kv_share)
    feed_forward = each * (model.width + 4 * model.inner)
    return tokens * (norms + attention + feed_forward)


def adapted(model: Model, adapter: Adapter) -> float:
    """Weights of an adapter: rank x (inputs + outputs) of each layer that gets one."""
    keys = model.kv_share * model.width
    outputs = {
        "q_proj": 2 * model.width,
        "k_proj": model.width + keys,
        "v_proj": model.width + keys,
        "o_proj": 2 * model.width,
        "gate_proj": model.width + model.inner,
        "up_proj": model.width + model.inner,
        "down_proj": model.width + model.inner,
    }
    return float(model.layers * adapter.rank * sum(outputs.get(name, 0) for name in adapter.targets))


def existing(model: hub.HubModel, layers: int) -> tuple[Model, str]:
    """The shape of a model that exists: a guess where its configuration names its sizes otherwise, and where only its
    name is known, as before it is fetched."""
    name = model.name
    for path in (Path(name) / "config.json", *hub.fetched_config(model)):
        if path.exists():
            count = model_files.count(path.parent)
            try:
                return replace(Model.of(read_json(path)), counted=count or None), f"from {path}"
            except KeyError:
                return guessed(count, layers), f"guessed, {count:.3g} weights in {path.parent}, in {layers} blocks"
    named = re.search(r"(\d+(?:\.\d+)?)\s*([bBmM])(?![a-zA-Z])", name)
    weights = float(named[1]) * {"b": 1e9, "m": 1e6}[named[2].lower()] if named else UNNAMED
    source = f"from the name {name}" if named else f"as {name} names none"
    return guessed(weights, layers), f"guessed, {weights:.3g} weights {source}, in {layers} blocks"


def guessed(weights: float, layers: int) -> Model:
    """A shape of so many weights (with embeddings of 32,000 tokens) and blocks: 12 x width^2 each, as of Llama."""
    vocabulary = 32_000
    width = (math.sqrt(vocabulary**2 + 48 * layers * weights) - vocabulary) / (24 * layers)
    return Model(layers, round(width), round(8 / 3 * width), 1.0, vocabulary, tied=True)
