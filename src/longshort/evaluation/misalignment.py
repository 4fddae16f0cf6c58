"""Long-Short Misalignment: how much the next-token distribution changes with the length of the context.

arXiv 2506.11769, section 4: E over x and l1, l2 ~ U[l_train/2, l_train] of SCE(p(.|x[-l1:]), p(.|x[-l2:])).
SCE(p, q) = H(p) + H(q) + symKL(p, q) and nearly all of it is entropy, so the floor H(p) + H(q) and symKL
stand beside it.

Protocol suffix-v1: every sequence is a window of a test document, and its K lengths are drawn with it from a
stream that is part of the protocol, so all arms, seeds and checkpoints are measured on the same contexts,
without BOS. Inside the training range the value of a sequence is the mean over the ordered pairs of different
draws (a U-statistic); beyond it, the mean over the same K draws against one context of m x l_train tokens.
Rows are means over the sequences, in nats.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from longshort.evaluation.forward import held_out_documents, last_log_probs
from longshort.evaluation.journal import Measured, Part

STREAM_KEY = 250611769
METRICS = ("sce", "entropy_floor", "symkl")
# Bounds memory: distributions of so many sequences exist at a time.
SEQUENCES_AT_ONCE = 64


def protocol(settings: dict[str, Any]) -> str:
    beyond = ",".join(str(multiple) for multiple in _multiples(settings)) or "none"
    return f"lsm/suffix-v1?seqs={settings['sequences']}&k={settings['lengths_per_sequence']}&beyond={beyond}"


def evaluate(
    model: Any, tokenizer: Any, settings: dict[str, Any], data: Path, l_train: int, journal: Part | None = None
) -> Measured:
    """Rows of sce, entropy_floor and symkl (nats): length l_train (inside), m x l_train for m in `beyond`.

    Args:
        tokenizer: not used; all evaluations have one signature.
        settings: `sequences`; `lengths_per_sequence`, K >= 2; `beyond`, multiples of l_train, may be empty.
        data: a published data folder; its `test` split is read.
        l_train: training length in tokens.

    Raises:
        ValueError: K is below 2, `beyond` has 1, or no test document is as long as the longest context.
    """
    draws = settings["lengths_per_sequence"]
    if draws < 2:
        raise ValueError(f"evaluations.misalignment.lengths_per_sequence is {draws}: pairs need at least 2")
    long_lengths = [multiple * l_train for multiple in _multiples(settings)]
    if l_train in long_lengths:
        raise ValueError("evaluations.misalignment.beyond has 1, the training length itself: take it out")
    windows, lengths = sequences(data, settings["sequences"], draws, max([l_train, *long_lengths]), l_train)
    values: dict[int, list[Tensor]] = {length: [] for length in [l_train, *long_lengths]}
    for start in range(0, len(windows), SEQUENCES_AT_ONCE):
        block = slice(start, start + SEQUENCES_AT_ONCE)
        contexts = [
            window[-length:]
            for window, drawn in zip(windows[block], lengths[block], strict=True)
            for length in [*drawn, *long_lengths]
        ]
        log_probs = last_log_probs(model, contexts)
        for log_p in log_probs.split(draws + len(long_lengths)):
            values[l_train].append(inside_range(log_p[:draws]))
            for length, log_long in zip(long_lengths, log_p[draws:], strict=True):
                values[length].append(against_long(log_p[:draws], log_long))
    rows: list[dict[str, Any]] = [
        {
            "metric": metric,
            "length": length,
            "task": None,
            "document": None,
            "value": value,
            "n": len(windows),
        }
        for length, per_sequence in values.items()
        for metric, value in zip(METRICS, torch.stack(per_sequence).mean(0).tolist(), strict=True)
    ]
    return Measured(rows)


def inside_range(log_p: Tensor) -> Tensor:
    """Means over ordered pairs of different rows of log_p [K, vocabulary]: (sce, entropy floor, symkl), nats.

    Closed form, O(K) instead of O(K^2): with P = sum p_i and LP = sum log p_i the sum of SCE over ordered
    pairs is 2 (-P.LP + sum p_i.log p_i). symkl: the same of rows less their mean; nothing large cancels.
    """
    count = len(log_p)
    p = log_p.exp()
    own = (p * log_p).sum()
    sce = 2 * (own - p.sum(0) @ log_p.sum(0)) / (count * (count - 1))
    symkl = 2 * ((p - p.mean(0)) * (log_p - log_p.mean(0))).sum() / (count - 1)
    return torch.stack([sce, -2 * own / count, symkl])


def against_long(log_p: Tensor, log_long: Tensor) -> Tensor:
    """Means over the rows of log_p [K, vocabulary], each with log_long [vocabulary], as in inside_range."""
    p, long = log_p.exp(), log_long.exp()
    sce = -(p * log_long).sum(-1) - (long * log_p).sum(-1)
    floor = -(p * log_p).sum(-1) - (long * log_long).sum()
    symkl = ((p - long) * (log_p - log_long)).sum(-1)
    return torch.stack([sce, floor, symkl], dim=-1).mean(0)


def sequences(
    data: Path, count: int, draws: int, window: int, l_train: int
) -> tuple[list[NDArray[np.int64]], list[list[int]]]:
    """`count` windows of `window` tokens, and for each `draws` context lengths from U[l_train/2, l_train].

    Sequence i has its own Philox stream (STREAM_KEY, i) and takes raw 64-bit words: more sequences keep the
    first ones, and no version of numpy draws others.
    """
    documents = [token_ids for _, token_ids in held_out_documents(data, at_least=window)]
    if not documents:
        raise ValueError(
            f"misalignment needs test documents of at least {window} tokens and {data} has none: "
            "lower evaluations.misalignment.beyond, or give the test split longer documents"
        )
    shortest = (l_train + 1) // 2
    windows, lengths = [], []
    for index in range(count):
        stream = np.random.Philox(key=np.array([STREAM_KEY, index], dtype=np.uint64))
        words = [int(word) for word in stream.random_raw(2 + draws)]
        document = documents[words[0] % len(documents)]
        offset = words[1] % (len(document) - window + 1)
        windows.append(document[offset : offset + window])
        lengths.append([shortest + word % (l_train - shortest + 1) for word in words[2:]])
    return windows, lengths


def _multiples(settings: dict[str, Any]) -> list[int]:
    return sorted(set(settings["beyond"]))


if __name__ == "__main__":
    from longshort.evaluation import stage

    stage.main("misalignment", evaluate, protocol)
