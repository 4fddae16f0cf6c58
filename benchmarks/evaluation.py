"""What the evaluations cost, beside the straightforward way to the same numbers.

python benchmarks/evaluation.py [--json FILE] [--rounds N] [--device cuda] [--toy]
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from functools import partial
from itertools import permutations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from side_by_side import alternate, arguments, ratio, report
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from longshort.evaluation import misalignment


class Shape(NamedTuple):
    features: int
    intermediate: int
    heads: int
    l_train: int
    sequences: int


DEMO = Shape(128, 352, 4, 128, 64)
TOY = Shape(16, 32, 2, 16, 4)
DRAWS = 4
BEYOND = [2, 4, 8]


def llama(shape: Shape, device: str) -> Any:
    """Two layers over bytes, with weights so large that what it predicts depends on the context."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=257,
        hidden_size=shape.features,
        intermediate_size=shape.intermediate,
        num_hidden_layers=2,
        num_attention_heads=shape.heads,
        max_position_embeddings=max(BEYOND) * shape.l_train,
        initializer_range=0.1,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).eval().to(device)  # type: ignore[arg-type]


def write_documents(folder: Path, shape: Shape) -> None:
    """A published data folder with 32 random test documents of twice the longest context."""
    tokens = torch.randint(0, 256, (32, 2 * max(BEYOND) * shape.l_train), generator=torch.Generator().manual_seed(1))
    names = [f"document-{number}" for number in range(len(tokens))]
    columns = {"name": names, "text": [""] * len(tokens), "input_ids": tokens.tolist()}
    Dataset.from_dict(columns).save_to_disk(str(folder / "test"))


def closed_form(model: Any, settings: dict[str, Any], data: Path, shape: Shape) -> dict[tuple[str, int], float]:
    rows = misalignment.evaluate(model, None, settings, data, shape.l_train).rows
    return {(row["metric"], row["length"]): row["value"] for row in rows}


def pair_by_pair(model: Any, settings: dict[str, Any], data: Path, shape: Shape) -> dict[tuple[str, int], float]:
    """The same contexts, from the definition: both contexts of every pair go through the model, one at a time."""

    @torch.inference_mode()
    def log_probs(context: NDArray[np.int64]) -> Tensor:
        input_ids = torch.from_numpy(context)[None].to(model.device)
        return model(input_ids=input_ids, use_cache=False).logits[0, -1].cpu().double().log_softmax(-1)

    def of_pair(one: misalignment.Drawn, l1: int, l2: int) -> Tensor:
        log_p, log_q = (log_probs(one.tokens[-length:]) for length in (l1, l2))
        p, q = log_p.exp(), log_q.exp()
        floor = -(p @ log_p) - q @ log_q
        sce = -(p @ log_q) - q @ log_p
        return torch.stack([sce, floor, sce - floor])

    window = max(BEYOND) * shape.l_train
    values = {}
    drawn = misalignment.sequences(data, shape.sequences, DRAWS, window, shape.l_train)
    for multiple in [1, *BEYOND]:
        means = []
        for one in drawn:
            beyond = [(length, multiple * shape.l_train) for length in one.lengths]
            pairs = list(permutations(one.lengths, 2)) if multiple == 1 else beyond
            means.append(torch.stack([of_pair(one, *pair) for pair in pairs]).mean(0))
        for metric, value in zip(misalignment.METRICS, torch.stack(means).mean(0).tolist(), strict=True):
            values[metric, multiple * shape.l_train] = value
    return values


def misalignment_figures(shape: Shape, rounds: int, device: str) -> tuple[dict[str, float], dict[str, str]]:
    """Raises AssertionError: the two ways differ by more than float32 in batches of other shapes does."""
    model = llama(shape, device)
    settings = {"sequences": shape.sequences, "lengths_per_sequence": DRAWS, "beyond": BEYOND}
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        data = Path(folder)
        write_documents(data, shape)
        ours, theirs = (way(model, settings, data, shape) for way in (closed_form, pair_by_pair))
        for key, value in theirs.items():
            assert abs(ours[key] - value) <= 1e-4 * abs(value), f"{key}: {ours[key]} by the closed form, not {value}"
        functions = {way.__name__: partial(way, model, settings, data, shape) for way in (closed_form, pair_by_pair)}
        seconds = alternate(functions, rounds, device)
    mean = {name: sum(values) / len(values) for name, values in seconds.items()}
    name = "misalignment_time_over_naive"
    what = f"{shape.sequences} sequences, K {DRAWS}, l_train {shape.l_train}, to {max(BEYOND)} x, d {shape.features}: "
    what += f"{mean['closed_form']:.3g} / {mean['pair_by_pair']:.3g} s"
    return {name: ratio(seconds, "closed_form", "pair_by_pair")}, {name: what}


def main() -> None:
    given = arguments(__doc__)
    shape = TOY if given.toy else DEMO
    figures, notes = misalignment_figures(shape, given.rounds, given.device)
    report("The evaluations", figures, notes, given)


if __name__ == "__main__":
    main()
