"""Perplexity of fixed held-out documents as a function of the context length, and what calibration has to do with it.

PPL_L = exp(sum of NLL / number of scored tokens), summed in float64, every token with equal weight. The documents are
the first `documents` of the test split, in the order of the sha256 of their names, that are long enough. Which of their
tokens are scored, and with which context, is the protocol (protocols.py).

Beside the raw numbers stand the perplexity at a temperature fitted on documents of the validation split, once for the
checkpoint (all lengths together) and once for each length, next-token accuracy and the expected calibration error (15
bins of equal width, Guo et al. 2017): an objective that sharpens or flattens the output changes the raw perplexity
through calibration alone, and that must be seen.

v1 fitted temperatures on a sample that was not even over what is scored, read blocks without their last token, and
counted positions without BOS from one too low. v2 without `temperature-tokens` fitted them on 1,024 tokens a length.
Of documents with more than 32,768 it once took no more than these, and without `temperature-lengths` short lengths
weighed too much in the checkpoint's own.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from longshort.data.settings import BytesTokenizer, Tokenizer
from longshort.evaluation import stage, temperature
from longshort.evaluation.forward import Scores, score_tokens
from longshort.evaluation.journal import Journal, Measured, Section
from longshort.evaluation.protocols import (
    Tokens,
    by_length,
    documents_of,
    lengths_of,
    scored_for,
    start_of,
    tokens_read,
)
from longshort.metrics.settings import Blocks, Perplexity, Prefix, SameTargets, Sliding

BINS = 15
# What is also published of a second protocol.
BESIDE = {"perplexity": "perplexity_block", "nll": "nll_block"}


def protocol(settings: Perplexity, l_train: int, tokenizer: Tokenizer) -> str:
    """The name of what is done; with `bos=none` where a protocol begins with BOS and the tokenizer has none."""
    chosen = settings.protocol
    given: dict[str, Any] = {"docs": settings.documents, "lengths": ",".join(map(str, lengths_of(settings)))}
    if isinstance(chosen, SameTargets):
        given["targets"] = chosen.targets
    if isinstance(chosen, Sliding):
        given["stride"] = chosen.stride
    if isinstance(chosen, Blocks) and chosen.chunk is not None:
        given["chunk"] = chosen.chunk
    if isinstance(chosen, Blocks | Sliding):
        given["tokens"] = tokens_read(settings)
    if isinstance(chosen, Prefix | Sliding) and not _has_bos(tokenizer):
        given["bos"] = "none"
    given["temperature-docs"] = settings.temperature_documents
    if settings.temperature_documents:
        given["temperature-tokens"] = temperature.most_fitted(settings)
        if temperature.most_fitted(settings) > temperature.FORMERLY_FITTED:
            given["temperature-lengths"] = "as-scored"
    if settings.beside is not None:
        given["beside"] = f"block-v2,tokens={tokens_read(_second(settings, settings.beside))}"
        given["beside"] += f",chunk={settings.beside.chunk}" if settings.beside.chunk is not None else ""
    return f"ppl/{chosen.kind}-v2?{'&'.join(f'{key}={value}' for key, value in given.items())}"


def _has_bos(tokenizer: Tokenizer) -> bool:
    if isinstance(tokenizer, BytesTokenizer):
        return True
    from longshort.data import tokenizers  # late: of use only here

    return tokenizers.load(tokenizer).bos_token_id is not None


def _second(settings: Perplexity, protocol: Blocks) -> Perplexity:
    """The settings with the protocol that is measured beside the first."""
    return settings.model_copy(update={"protocol": protocol, "beside": None})


def evaluate(
    model: Any, tokenizer: Any, settings: Perplexity, data: Path, l_train: int, journal: Section | None = None
) -> Measured:
    """Rows per length L: perplexity, perplexity_checkpoint_t, perplexity_length_t (at the two fitted temperatures),
    temperature (also one of the checkpoint, without a length), accuracy, ece (0..1); of each document nll (nats a
    token), nll_checkpoint_t and accuracy; nll_se (standard error of the documents' mean), and nll_by_position, whose
    `task` says which tokens: "16-31" have so many tokens before them in their window (BOS is not counted).

    Args:
        settings: with `beside`, perplexity_block and nll_block are published, too. Which tokens of the
            temperature_documents are fitted: temperature.py.
        data: a published data folder; its `test` and `validation` splits are read.
        l_train: not used; all evaluations have one signature.
        journal: keeps each document; those that it has are not read again. The temperatures are one item, as the hidden
            states that they are fitted to are too large to be kept: a job killed there reads the validation documents
            again.

    Raises:
        ValueError: there are too few documents that are long enough.
    """
    journal = journal or Journal().of("perplexity")
    lengths = lengths_of(settings)
    bos = tokenizer.bos_token_id
    second = _second(settings, settings.beside) if settings.beside else None
    at_least = max(tokens_read(each) for each in (settings, second) if each)
    documents = documents_of(data, settings.documents, at_least, "test", "documents")
    names = [name for name, _ in documents]
    journal.expect(len(documents) * (1 + bool(second)) + bool(settings.temperature_documents))
    temperatures: dict[str, float] = {}
    if settings.temperature_documents:
        temperatures = journal.get("temperatures") or temperature.fit(model, settings, data, bos, journal)

    def rows_by(how: Perplexity, fitted: dict[str, float], item: str) -> list[dict[str, Any]]:
        sums = [
            journal.get(f"{item} {index}")
            or _document(model, how, fitted, token_ids, index, bos, journal, f"{item} {index}")
            for index, (_, token_ids) in enumerate(documents)
        ]
        return [
            row
            for length in lengths
            for row in _rows(length, names, [of_document[str(length)] for of_document in sums], fitted)
        ]

    rows = [_row("temperature", None, temperatures["checkpoint"], 1)] if temperatures else []
    rows += rows_by(settings, temperatures, "document")
    if second:
        beside = [row for row in rows_by(second, {}, "block document") if row["metric"] in BESIDE]
        rows += [{**row, "metric": BESIDE[row["metric"]]} for row in beside]
    return Measured(rows)


def _document(
    model: Any,
    settings: Perplexity,
    temperatures: dict[str, float],
    token_ids: Tokens,
    index: int,
    bos: int | None,
    journal: Section,
    item: str,
) -> dict[str, Any]:
    """Sums over a document's scored tokens, by length."""
    start = start_of(settings, token_ids, index, "test")
    if not isinstance(settings.protocol, SameTargets):
        token_ids = token_ids[: tokens_read(settings)]
    sums: dict[str, Any] = {}
    for served, reading in by_length(model, settings, token_ids, start, bos):
        fitted = []
        if temperatures:
            fitted = [(temperatures["checkpoint"], scored_for(served, reading, served[-1]))]
            fitted += [(temperatures[str(length)], scored_for(served, reading, length)) for length in served]
        scores = score_tokens(model, reading.input_ids, reading.targets, reading.scored, fitted, reading.chunk)
        for place, length in enumerate(served):
            # Of the fitted temperatures, the checkpoint's and the length's own.
            kept = [0, 1, 2 + place] if fitted else [0]
            part = Scores(scores.nll[kept], scores.correct, scores.confidence)
            if len(served) > 1:
                first = slice(length - reading.before)
                part = Scores(part.nll[..., first], part.correct[..., first], part.confidence[..., first])
            _add(
                sums.setdefault(str(length), {}), _sums(part, reading.before + reading.scored[: part.correct.shape[1]])
            )
    journal.add(item, sums)
    return sums


def _sums(scores: Scores, before: Tensor) -> dict[str, list[float]]:
    """Sums over the scored tokens of each row, which have so many tokens before them in their window: [scored]."""
    bins = (scores.confidence * BINS).long().clamp(0, BINS - 1).flatten()
    position = before.expand(scores.correct.shape).flatten()
    # 0, 1, 2-3, 4-7, ...: the number of binary digits
    bucket = torch.tensor([int(place).bit_length() for place in range(int(position.max()) + 1)])[position]
    ones = torch.ones(len(bins), dtype=torch.float64)

    def by(group: Tensor, values: Tensor) -> list[float]:
        size = BINS if group is bins else int(group.max()) + 1
        return torch.zeros(size, dtype=torch.float64).index_add_(0, group, values.flatten().double()).tolist()

    return {
        "n": [float(len(bins))],
        "nll": scores.nll.sum(dim=(1, 2)).tolist(),
        "correct": [float(scores.correct.sum())],
        "bin_n": by(bins, ones),
        "bin_confidence": by(bins, scores.confidence),
        "bin_correct": by(bins, scores.correct),
        "position_n": by(bucket, ones),
        "position_nll": by(bucket, scores.nll[0]),
    }


def _add(total: dict[str, list[float]], more: dict[str, list[float]]) -> None:
    for key, values in more.items():
        old = total.get(key, [])
        size = max(len(old), len(values))
        padded = [some + [0.0] * (size - len(some)) for some in (old, values)]
        total[key] = [a + b for a, b in zip(*padded, strict=True)]


def _rows(
    length: int, names: list[str], documents: list[dict[str, list[float]]], temperatures: dict[str, float]
) -> list[dict[str, Any]]:
    total: dict[str, list[float]] = {}
    for sums in documents:
        _add(total, sums)
    n = int(total["n"][0])
    metrics = ["perplexity", "perplexity_checkpoint_t", "perplexity_length_t"]
    # A diverged model can have a mean NLL whose exponential is beyond float64: infinite, not an error.
    rows = [_row(metric, length, _exp(nll / n), n) for metric, nll in zip(metrics, total["nll"], strict=False)]
    if temperatures:
        rows.append(_row("temperature", length, temperatures[str(length)], 1))
    # A model of NaN is not wrong about a token: it has not answered.
    right = math.nan if math.isnan(total["nll"][0]) else total["correct"][0]
    rows.append(_row("accuracy", length, right / n, n))
    gaps = np.abs(np.array(total["bin_confidence"]) - np.array(total["bin_correct"]))
    rows.append(_row("ece", length, float(gaps.sum()) / n, n))
    means = [sums["nll"][0] / sums["n"][0] for sums in documents]
    if len(means) > 1:
        rows.append(_row("nll_se", length, float(np.std(means, ddof=1)) / math.sqrt(len(means)), len(means)))
    for name, mean, sums in zip(names, means, documents, strict=True):
        n = int(sums["n"][0])
        rows.append(_row("nll", length, mean, n, document=name))
        if temperatures:
            rows.append(_row("nll_checkpoint_t", length, sums["nll"][1] / n, n, document=name))
        if math.isfinite(mean):
            rows.append(_row("accuracy", length, sums["correct"][0] / n, n, document=name))
    for digits, (count, nll) in enumerate(zip(total["position_n"], total["position_nll"], strict=True)):
        if count:
            task = f"{2**digits // 2}-{2**digits - 1}" if digits > 1 else str(digits)
            rows.append(_row("nll_by_position", length, nll / count, int(count), task=task))
    return rows


def _exp(value: float) -> float:
    return math.exp(value) if value < 709 else math.inf if value == value else math.nan


def _row(
    metric: str, length: int | None, value: float, n: int, document: str | None = None, task: str | None = None
) -> dict[str, Any]:
    return {"metric": metric, "length": length, "task": task, "document": document, "value": value, "n": n}


MEASUREMENT = stage.Measurement(
    metric="perplexity",
    module="longshort.evaluation.perplexity",
    asks=Perplexity,
    evaluate=evaluate,
    protocol=protocol,
)


if __name__ == "__main__":
    stage.main(MEASUREMENT)
