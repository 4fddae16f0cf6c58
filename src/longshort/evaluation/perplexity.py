"""Perplexity of fixed held-out documents as a function of the context length.

Two protocols, chosen by `protocol` in the settings:

prefix-v1, the field's usual one: the first `documents` test documents, in the order of the sha256 of their names,
that have at least L_max tokens. The model reads BOS + the first L - 1 tokens of each, and all of the first L tokens
are scored, so it never sees more than L positions. PPL_L = exp(sum of NLL / number of tokens), summed in float64,
every token with equal weight. Its numbers mix positions with little and with much context.

same-targets-v1: one window of L_max + 1 tokens from each of those documents, at a fixed place; the last `targets`
tokens of the window are scored with a context that begins L tokens before the window's end, and no BOS. So every
length is measured on the same tokens, and only the context differs: what a longer context does to a prediction.
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from longshort.data.streams import generator
from longshort.evaluation.forward import held_out_documents, rope_depends_on_length, token_nll
from longshort.evaluation.journal import Measured, Part


def protocol(settings: dict[str, Any]) -> str:
    lengths = ",".join(str(length) for length in _lengths(settings))
    kind = settings["protocol"]["kind"]
    targets = f"&targets={settings['protocol']['targets']}" if kind == "same-targets" else ""
    return f"ppl/{kind}-v1?docs={settings['documents']}&lengths={lengths}{targets}"


def evaluate(
    model: Any, tokenizer: Any, settings: dict[str, Any], data: Path, l_train: int, journal: Part | None = None
) -> Measured:
    """Rows of perplexity and next-token accuracy per length, NLL (nats per token) per length and document.

    Args:
        settings: `lengths` in tokens, `documents` how many test documents, `protocol` {kind} and what it needs.
        data: a published data folder; its `test` split is read.
        l_train: not used; all evaluations have one signature.

    Raises:
        ValueError: the tokenizer has no BOS token, or there are too few documents of the longest length.
    """
    lengths = _lengths(settings)
    chosen = settings["protocol"]
    score = _same_targets if chosen["kind"] == "same-targets" else _prefix
    names, scored = score(model, tokenizer, data, settings["documents"], lengths, chosen)
    rows: list[dict[str, Any]] = []
    for length, (nll, correct) in scored.items():
        # A diverged model can have a mean NLL whose exponential is beyond float64: infinite, not an error.
        rows.append(_row("perplexity", length, nll.mean().exp().item(), nll.numel()))
        rows.append(_row("accuracy", length, correct.double().mean().item(), correct.numel()))
        for name, mean in zip(names, nll.mean(dim=1).tolist(), strict=True):
            rows.append(_row("nll", length, mean, nll.shape[1], document=name))
    return Measured(rows)


Scored = dict[int, tuple[Tensor, Tensor]]


def _prefix(
    model: Any, tokenizer: Any, data: Path, count: int, lengths: list[int], chosen: dict[str, Any]
) -> tuple[list[str], Scored]:
    if tokenizer.bos_token_id is None:
        raise ValueError(
            "the tokenizer has no BOS token, which perplexity needs before the first token: set its bos_token"
        )
    documents = _documents(data, count, lengths[-1])
    tokens = torch.from_numpy(np.stack([token_ids[: lengths[-1]] for _, token_ids in documents]))
    bos = torch.full((len(tokens), 1), tokenizer.bos_token_id)
    input_ids = torch.cat([bos, tokens[:, :-1]], dim=1)
    if rope_depends_on_length(model):
        scored = {length: token_nll(model, input_ids[:, :length], tokens[:, :length]) for length in lengths}
    else:
        nll, correct = token_nll(model, input_ids, tokens)
        scored = {length: (nll[:, :length], correct[:, :length]) for length in lengths}
    return [name for name, _ in documents], scored


def _same_targets(
    model: Any, tokenizer: Any, data: Path, count: int, lengths: list[int], chosen: dict[str, Any]
) -> tuple[list[str], Scored]:
    targets = chosen["targets"]
    documents = _documents(data, count, lengths[-1] + 1)
    windows = []
    for index, (_, token_ids) in enumerate(documents):
        start = int(generator("perplexity/same-targets-v1", 0, index).integers(0, len(token_ids) - lengths[-1]))
        windows.append(token_ids[start : start + lengths[-1] + 1])
    window = torch.from_numpy(np.stack(windows))
    scored = {}
    for length in lengths:
        nll, correct = token_nll(model, window[:, -length - 1 : -1], window[:, -length:])
        scored[length] = (nll[:, -targets:], correct[:, -targets:])
    return [name for name, _ in documents], scored


def _lengths(settings: dict[str, Any]) -> list[int]:
    return sorted(set(settings["lengths"]))


def _documents(data: Path, count: int, at_least: int) -> list[tuple[str, NDArray[np.int64]]]:
    """Names and tokens of the first `count` documents that are long enough."""
    documents = list(islice(held_out_documents(data, at_least=at_least), count))
    if len(documents) < count:
        raise ValueError(
            f"perplexity needs {count} test documents of at least {at_least} tokens and {data} has "
            f"{len(documents)}: lower evaluations.perplexity.documents, or the longest of "
            "evaluations.perplexity.lengths, or give the test split longer documents"
        )
    return documents


def _row(metric: str, length: int, value: float, n: int, document: str | None = None) -> dict[str, Any]:
    return {"metric": metric, "length": length, "task": None, "document": document, "value": value, "n": n}


if __name__ == "__main__":
    from longshort.evaluation import stage

    stage.main("perplexity", evaluate, protocol)
