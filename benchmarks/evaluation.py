"""What an evaluation costs beside the plain way to the same numbers, on the demo's model.

    python benchmarks/evaluation.py [--json FILE] [--rounds N] [--toy]

Every comparison checks first that both ways give the same numbers.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from side_by_side import alternate, arguments, peak_memory, ratio, report
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils.logging import set_verbosity_error

from longshort.evaluation import perplexity

Figures = tuple[dict[str, float], dict[str, str]]
BOS = 0


def demo_model(vocabulary: int, device: str = "cpu") -> LlamaForCausalLM:
    """The shape of config/studies/demo.yaml with random weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=128, intermediate_size=352, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=4096,  bos_token_id=BOS, eos_token_id=BOS,
    )  # fmt: skip
    return LlamaForCausalLM(config).to(device).eval()  # type: ignore[arg-type]


# ---- perplexity ------------------------------------------------------------------------------------------------------


def write_documents(folder: Path, count: int, tokens: int, vocabulary: int) -> None:
    for number, split in enumerate(("test", "validation")):
        ids = np.random.default_rng(number).integers(1, vocabulary, (count, tokens)).tolist()
        rows = {"name": [f"d{place}" for place in range(count)], "text": [""] * count, "input_ids": ids}
        Dataset.from_dict(rows).save_to_disk(str(folder / split))


def ours(folder: Path, vocabulary: int, settings: dict[str, Any], device: str) -> Callable[[], dict[int, float]]:
    model, tokenizer = demo_model(vocabulary, device), SimpleNamespace(bos_token_id=BOS)

    def measure() -> dict[int, float]:
        rows = perplexity.evaluate(model, tokenizer, settings, folder, 128).rows
        return {row["length"]: row["value"] for row in rows if row["metric"] == "perplexity"}

    return measure


def papers(folder: Path, vocabulary: int, settings: dict[str, Any], device: str) -> Callable[[], dict[int, float]]:
    """A forward with all its logits for each length and document."""
    model = demo_model(vocabulary, device)
    documents = torch.tensor(Dataset.load_from_disk(str(folder / "test"))["input_ids"], device=device)

    @torch.inference_mode()
    def measure() -> dict[int, float]:
        found = {}
        for length in settings["lengths"]:
            losses = []
            for document in documents:
                read = torch.cat([document.new_tensor([BOS]), document[: length - 1]])[None]
                logits = model(input_ids=read, use_cache=False).logits.float()
                losses.append(torch.nn.functional.cross_entropy(logits[0], document[:length]).item())
            found[length] = float(np.exp(np.mean(losses)))
        return found

    return measure


def perplexity_figures(folder: Path, rounds: int, toy: bool, device: str) -> Figures:
    lengths, vocabulary = ([16, 32], 300) if toy else ([128, 256, 512, 1024, 2048], 32_000)
    write_documents(folder, 2, lengths[-1], vocabulary)
    settings = {"lengths": lengths, "documents": 2, "protocol": {"kind": "prefix"}, "temperature_documents": 0}
    plain = papers(folder, vocabulary, settings, device)
    functions = {
        "ours": ours(folder, vocabulary, settings, device),
        "with temperatures": ours(folder, vocabulary, {**settings, "temperature_documents": 2}, device),
        "papers": plain,
    }
    expected = plain()
    for name, function in functions.items():
        found = function()
        assert all(abs(found[length] / expected[length] - 1) < 1e-4 for length in lengths), (name, found, expected)
    seconds = alternate(functions, rounds, device)
    memory = {
        name: peak_memory(work, folder, vocabulary, settings, device, device=device)
        for name, work in {"ours": ours, "papers": papers}.items()
    }
    figures = {
        "ppl_time_over_papers": ratio(seconds, "ours", "papers"),
        "ppl_with_temperatures_time_over_papers": ratio(seconds, "with temperatures", "papers"),
        "ppl_memory_over_papers": memory["ours"] / memory["papers"],
    }
    median = {name: statistics.median(values) for name, values in seconds.items()}
    said = f"2 documents at {', '.join(map(str, lengths))}, V {vocabulary:,}"
    notes = {
        "ppl_time_over_papers": f"{said}: {median['ours']:.3g} / {median['papers']:.3g} s",
        "ppl_with_temperatures_time_over_papers": f"fitted on 2 more documents: {median['with temperatures']:.3g} s",
        "ppl_memory_over_papers": f"peak MiB {memory['ours'] / 2**20:.0f} / {memory['papers'] / 2**20:.0f}",
    }
    return figures, notes


def main() -> None:
    given = arguments(__doc__)
    set_verbosity_error()
    figures: dict[str, float] = {}
    notes: dict[str, str] = {}
    for measure in (perplexity_figures,):
        with tempfile.TemporaryDirectory(prefix="longshort-evaluation-") as folder:
            more, said = measure(Path(folder), given.rounds, given.toy, given.device)
        figures.update(more)
        notes.update(said)
    report("Evaluation", figures, notes, given)


if __name__ == "__main__":
    sys.exit(main())
