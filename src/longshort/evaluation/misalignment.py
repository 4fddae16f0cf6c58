"""Long-Short Misalignment: how much the next-token distribution changes with the length of the context.

arXiv 2506.11769, section 4: E over x and l1, l2 ~ U[l_train/2, l_train] of SCE(p(.|x[-l1:]), p(.|x[-l2:])).
SCE(p, q) = H(p) + H(q) + symKL(p, q) and nearly all of it is entropy, so the floor H(p) + H(q) and symKL
stand beside it.

Protocol suffix-v1: every sequence is a window of a test document, and its K lengths are drawn with it from a
stream that is part of the protocol, so all arms, seeds and checkpoints are measured on the same contexts,
without BOS. Inside the training range the value of a sequence is the mean over the ordered pairs of different
draws (a U-statistic); beyond it, the mean over the same K draws against one context of m x l_train tokens.
Rows are means over the sequences, in nats, each with its standard error (`sce_se` and so on).

The grid, sce_grid and symkl_grid: the first `grid_sequences` sequences, every pair l1 < l2 of the context lengths
l_train / 4, l_train / 2 and l_train times powers of two; `length` is l2, `task` is l1.
"""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from longshort.data.settings import Tokenizer
from longshort.evaluation import stage
from longshort.evaluation.forward import held_out_documents, last_log_probs
from longshort.evaluation.journal import Journal, Measured, Section
from longshort.metrics.settings import Misalignment

STREAM_KEY = 250611769
METRICS = ("sce", "entropy_floor", "symkl")
# What is measured at a time and kept whole: batches form within it, so a resumed job's numbers are the same to the
# bit. Bounds memory and what a kill loses; at demo scale more at a time is no faster.
SEQUENCES_AT_ONCE = 16


class Drawn(NamedTuple):
    """A window of a test document, and its context lengths inside the training range (tokens)."""

    document: str
    offset: int
    tokens: NDArray[np.int64]
    lengths: list[int]


def protocol(settings: Misalignment, l_train: int, tokenizer: Tokenizer) -> str:
    beyond = ",".join(str(multiple) for multiple in sorted(settings.beyond)) or "none"
    grid = f"&grid={_in_grid(settings)}" if _in_grid(settings) else ""
    given = f"train={l_train}&seqs={settings.sequences}&k={settings.lengths_per_sequence}&beyond={beyond}{grid}"
    return f"lsm/suffix-v1?{given}"


def evaluate(
    model: Any, tokenizer: Any, settings: Misalignment, data: Path, l_train: int, journal: Section | None = None
) -> Measured:
    """Rows of sce, entropy_floor and symkl (nats): length l_train (inside), m x l_train for m in `beyond`.

    Each has its standard error beside it, with `n` the number of documents (none if all sequences are of one
    document), and its means over each document's sequences; then the grid, if it is wanted.

    Args:
        tokenizer: not used; all evaluations have one signature.
        data: a published data folder; its `test` split is read.
        l_train: training length in tokens.
        journal: keeps the values of every block of SEQUENCES_AT_ONCE sequences; those it has are not measured again.

    Raises:
        ValueError: no test document is as long as the longest context.
    """
    multiples = sorted(settings.beyond)
    long_lengths = [multiple * l_train for multiple in multiples]
    drawn = sequences(data, settings.sequences, settings.lengths_per_sequence, max([l_train, *long_lengths]), l_train)
    grid = grid_lengths(l_train, max([1, *multiples]))
    journal = journal or Journal().of("misalignment")
    starts = range(0, len(drawn), SEQUENCES_AT_ONCE)
    journal.expect(len(starts))
    at_lengths: list[list[list[float]]] = []
    in_grid: list[list[list[float]]] = []
    for start in starts:
        key = f"sequences from {start}"
        values = journal.get(key)
        if values is None:
            block = drawn[start : start + SEQUENCES_AT_ONCE]
            values = _measure(model, block, long_lengths, grid, max(0, _in_grid(settings) - start))
            journal.add(key, values)
        at_lengths.extend(values["at_lengths"])
        in_grid.extend(values["in_grid"])
    rows = _of_lengths([l_train, *long_lengths], torch.tensor(at_lengths, dtype=torch.float64), drawn)
    if in_grid:
        means = torch.tensor(in_grid, dtype=torch.float64).mean(0).tolist()
        for (short, long), (sce, _, symkl) in zip(combinations(grid, 2), means, strict=True):
            rows.append(_row("sce_grid", long, sce, len(in_grid), task=str(short)))
            rows.append(_row("symkl_grid", long, symkl, len(in_grid), task=str(short)))
    return Measured(rows)


def _of_lengths(lengths: list[int], values: Tensor, drawn: list[Drawn]) -> list[dict[str, Any]]:
    """Rows of the means over sequences of values [sequences, lengths, METRICS], of their standard errors, and of the
    means over each document's sequences (`n` of them): the documents' differences between arms are paired."""
    documents = [sequence.document for sequence in drawn]
    count = len(set(documents))
    means, errors = values.mean(0).tolist(), standard_error(values, documents).tolist()
    rows = []
    for length, mean, error in zip(lengths, means, errors, strict=True):
        rows += [_row(metric, length, value, len(drawn)) for metric, value in zip(METRICS, mean, strict=True)]
        # One document does not say how much documents differ, and a row that is no number would mean a divergence.
        if count > 1:
            rows += [_row(f"{metric}_se", length, value, count) for metric, value in zip(METRICS, error, strict=True)]
    for document in dict.fromkeys(documents):
        of_document = values[[place for place, name in enumerate(documents) if name == document]]
        for length, mean in zip(lengths, of_document.mean(0).tolist(), strict=True):
            rows += [
                _row(metric, length, value, len(of_document), document=document)
                for metric, value in zip(METRICS, mean, strict=True)
            ]
    return rows


def _measure(
    model: Any, block: list[Drawn], long_lengths: list[int], grid: list[int], in_grid: int
) -> dict[str, list[list[list[float]]]]:
    """(sce, entropy floor, symkl) of every sequence: at l_train and each long length, and of every pair of the grid.

    Args:
        in_grid: the first so many of the block are in the grid, too.
    """
    wanted = [
        sorted({*sequence.lengths, *long_lengths, *(grid if place < in_grid else [])})
        for place, sequence in enumerate(block)
    ]
    contexts = [
        sequence.tokens[-length:] for sequence, lengths in zip(block, wanted, strict=True) for length in lengths
    ]
    log_probs = last_log_probs(model, contexts).split([len(lengths) for lengths in wanted])
    at_lengths, of_pairs = [], []
    for place, (sequence, lengths, rows) in enumerate(zip(block, wanted, log_probs, strict=True)):
        log_p = dict(zip(lengths, rows, strict=True))
        short = torch.stack([log_p[length] for length in sequence.lengths])
        long = [against_long(short, log_p[length]) for length in long_lengths]
        at_lengths.append(torch.stack([inside_range(short), *long]).tolist())
        if place < in_grid:
            pairs = [against_long(log_p[l1][None], log_p[l2]) for l1, l2 in combinations(grid, 2)]
            of_pairs.append(torch.stack(pairs).tolist())
    return {"at_lengths": at_lengths, "in_grid": of_pairs}


def grid_lengths(l_train: int, longest: int) -> list[int]:
    """Context lengths of the grid, tokens: l_train / 4 and / 2, then l_train times the powers of two to `longest`."""
    doubled = {l_train << power for power in range(longest.bit_length())}
    return sorted((doubled | {l_train // 2, l_train // 4}) - {0})


def standard_error(values: Tensor, documents: list[str]) -> Tensor:
    """Standard errors [...] of the means over the sequences of values [sequences, ...], in their unit.

    Sequences of one document resemble each other, so it is the documents that vary independently: residuals are
    summed by document, and the variance of the mean is G / (G - 1) x the sum of the squares of these sums / n^2, with
    G documents and n sequences. With one sequence a document this is sd / sqrt(n), n - 1 in the sd. It is an
    estimate for texts like these, of one model; with few documents (below about 20) it tends to be too small.
    NaN with a single document.
    """
    names = sorted(set(documents))
    place = torch.tensor([names.index(document) for document in documents])
    sums = torch.zeros(len(names), *values.shape[1:], dtype=values.dtype)
    sums.index_add_(0, place, values - values.mean(0))
    return (sums.square().sum(0) * len(names) / (len(names) - 1)).sqrt() / len(values)


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


def sequences(data: Path, count: int, draws: int, window: int, l_train: int) -> list[Drawn]:
    """`count` windows of `window` tokens, and for each `draws` context lengths from U[l_train/2, l_train].

    Sequence i has its own Philox stream (STREAM_KEY, i) and takes raw 64-bit words: more sequences keep the
    first ones, and no version of numpy draws others.
    """
    documents = list(held_out_documents(data, at_least=window))
    if not documents:
        raise ValueError(
            f"misalignment needs test documents of at least {window} tokens and {data} has none: "
            "lower evaluations.misalignment.beyond, or give the test split longer documents"
        )
    shortest = (l_train + 1) // 2
    drawn = []
    for index in range(count):
        stream = np.random.Philox(key=np.array([STREAM_KEY, index], dtype=np.uint64))
        words = [int(word) for word in stream.random_raw(2 + draws)]
        name, tokens = documents[words[0] % len(documents)]
        offset = words[1] % (len(tokens) - window + 1)
        lengths = [shortest + word % (l_train - shortest + 1) for word in words[2:]]
        drawn.append(Drawn(name, offset, tokens[offset : offset + window], lengths))
    return drawn


def _row(
    metric: str, length: int, value: float, n: int, task: str | None = None, document: str | None = None
) -> dict[str, Any]:
    return {"metric": metric, "length": length, "task": task, "document": document, "value": value, "n": n}


def _in_grid(settings: Misalignment) -> int:
    """How many of the sequences the grid is measured on."""
    return min(settings.grid_sequences, settings.sequences)


MEASUREMENT = stage.Measurement(
    metric="misalignment",
    module="longshort.evaluation.misalignment",
    asks=Misalignment,
    evaluate=evaluate,
    protocol=protocol,
)


if __name__ == "__main__":
    stage.main(MEASUREMENT)
