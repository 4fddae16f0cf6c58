"""Perplexity of fixed held-out documents as a function of the context length, and what calibration has to do with it.

PPL_L = exp(sum of NLL / number of scored tokens), summed in float64, every token with equal weight. The documents are
the first `documents` of the test split, in the order of the sha256 of their names, that are long enough. Which of their
tokens are scored, and with which context, is the protocol:

prefix-v2, the field's usual one: the model reads BOS + the first L - 1 tokens, and all of the first L tokens are
scored, so it never sees more than L positions. Its numbers mix positions with little and with much context.

same-targets-v2: one window of L_max + 1 tokens from each document, at a fixed place; the last `targets` tokens of the
window are scored with a context that begins L tokens before the window's end, and no BOS. So every length is measured
on the same tokens, and only the context differs: what a longer context does to a prediction.

block-v2, as CLEX and other scripts built on run_clm do it: the first `tokens` tokens of each document are cut into
blocks of exactly L, the rest is dropped, and each block is read by itself, without BOS; its first token is not scored.
(Its last token is read, as there: rotary frequencies may depend on how many are.)

sliding-v2: windows of L tokens that begin `stride` apart in the first `tokens` tokens of each document, each read after
BOS; of the first all tokens are scored, of every other one those that no window before it scored.

Beside the raw numbers stand the perplexity at a temperature fitted on documents of the validation split, once for the
checkpoint (all lengths together) and once for each length, next-token accuracy and the expected calibration error (15
bins of equal width, Guo et al. 2017): an objective that sharpens or flattens the output changes the raw perplexity
through calibration alone, and that must be seen.

v1 fitted temperatures on a sample that was not even over what is scored, read blocks without their last token, and
counted positions without BOS from one too low.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from longshort.data.streams import generator
from longshort.evaluation import stage
from longshort.evaluation.forward import (
    Scores,
    head_of,
    held_out_documents,
    rope_depends_on_length,
    score_tokens,
    scored_states,
    tokens_per_head,
)
from longshort.evaluation.journal import Journal, Measured, Part
from longshort.metrics.settings import Perplexity

BINS = 15
# At each length. One number is fitted to them, and a few per cent of it change the NLL by less than a thousandth.
FITTED_TOKENS = 1024
# Of each document, however many there are: the first tokens of documents alone are not what is scored.
LEAST_FITTED = 32
COLDEST, HOTTEST = 0.05, 20.0
Tokens = NDArray[np.int64]


class Windows(NamedTuple):
    """What the model reads, and what comes next, both [rows, length] (block: it reads a token more).

    last: so many tokens at each row's end are scored.
    before: how many tokens of the text a row has before its first target.
    """

    input_ids: Tensor
    targets: Tensor
    last: int
    before: int


def protocol(settings: dict[str, Any], l_train: int) -> str:
    chosen = settings["protocol"]
    given = {"docs": settings["documents"], "lengths": ",".join(str(length) for length in _lengths(settings))}
    given |= {key: chosen[key] for key in ("targets", "stride") if key in chosen}
    if "tokens" in chosen:
        given["tokens"] = _tokens_read(settings)
    given["temperature-docs"] = settings["temperature_documents"]
    return f"ppl/{chosen['kind']}-v2?{'&'.join(f'{key}={value}' for key, value in given.items())}"


def evaluate(
    model: Any, tokenizer: Any, settings: dict[str, Any], data: Path, l_train: int, journal: Part | None = None
) -> Measured:
    """Rows per length L: perplexity, perplexity_checkpoint_t, perplexity_length_t (at the two fitted temperatures),
    temperature (also one of the checkpoint, without a length), accuracy, ece (0..1); of each document nll (nats a
    token), nll_checkpoint_t and accuracy; nll_se (standard error of the documents' mean), and nll_by_position, whose
    `task` says which tokens: "16-31" have so many tokens before them in their window (BOS is not counted).

    Args:
        settings: `lengths` in tokens, `documents` how many test documents, `protocol` {kind} and what it needs,
            `temperature_documents` how many validation documents, 0 for no temperature.
        data: a published data folder; its `test` and `validation` splits are read.
        l_train: not used; all evaluations have one signature.
        journal: keeps each document; those that it has are not read again. The temperatures are one item, as the hidden
            states that they are fitted to are too large to be kept: a job killed there reads the validation documents
            again.

    Raises:
        ValueError: the tokenizer has no BOS token and the protocol needs one, or there are too few documents that are
            long enough.
    """
    journal = journal or Journal().of("perplexity")
    lengths = _lengths(settings)
    bos = tokenizer.bos_token_id
    if bos is None and settings["protocol"]["kind"] in ("prefix", "sliding"):
        raise ValueError(
            "the tokenizer has no BOS token, which perplexity needs before the first token: set its bos_token"
        )
    documents = _documents(data, settings["documents"], _tokens_read(settings), "test", "documents")
    journal.expect(len(documents) + bool(settings["temperature_documents"]))
    temperatures: dict[str, float] = {}
    if settings["temperature_documents"]:
        temperatures = journal.get("temperatures") or _temperatures(model, settings, data, bos, journal)
    measured = [
        journal.get(f"document {index}") or _document(model, settings, temperatures, token_ids, index, bos, journal)
        for index, (_, token_ids) in enumerate(documents)
    ]
    rows = [_row("temperature", None, temperatures["checkpoint"], 1)] if temperatures else []
    for length in lengths:
        rows += _rows(length, [name for name, _ in documents], [sums[str(length)] for sums in measured], temperatures)
    return Measured(rows)


# ---- which tokens ----------------------------------------------------------------------------------------------------


def windows(
    chosen: dict[str, Any], token_ids: Tokens, length: int, longest: int, start: int, bos: int
) -> list[Windows]:
    """What is read of one document at one length.

    Args:
        chosen: the protocol, {kind} and what it needs.
        token_ids: [tokens], those that the protocol reads.
        longest: the longest of all lengths, tokens.
        start: where the window of same-targets begins.
    """
    tokens = torch.from_numpy(np.asarray(token_ids, dtype=np.int64))
    if chosen["kind"] == "prefix":
        return [_after_bos(tokens[None, :length], bos, length)]
    if chosen["kind"] == "same-targets":
        window = tokens[None, start : start + longest + 1]
        return [Windows(window[:, -length - 1 : -1], window[:, -length:], chosen["targets"], before=1)]
    if chosen["kind"] == "block":
        blocks = tokens[: len(tokens) // length * length].view(-1, length)
        return [Windows(blocks, blocks[:, 1:], length - 1, before=1)]
    stride = min(chosen["stride"], length)
    others = (
        tokens[stride:].unfold(0, length, stride) if len(tokens) >= length + stride else tokens.new_empty(0, length)
    )
    found = [_after_bos(tokens[None, :length], bos, length)]
    if len(others):
        found.append(_after_bos(others, bos, stride))
    # The end, where less than a stride is left.
    if rest := (len(tokens) - length) % stride:
        found.append(_after_bos(tokens[None, -length:], bos, rest))
    return found


def _after_bos(tokens: Tensor, bos: int, last: int) -> Windows:
    before = torch.full((len(tokens), 1), bos)
    return Windows(torch.cat([before, tokens[:, :-1]], dim=1), tokens, last, before=0)


def _by_length(
    model: Any, settings: dict[str, Any], token_ids: Tokens, start: int, bos: int
) -> Iterator[tuple[list[int], Windows]]:
    """Every reading of a document, and the lengths that it serves: all of them where a prefix of it is one."""
    lengths, chosen = _lengths(settings), settings["protocol"]
    if chosen["kind"] == "prefix" and not rope_depends_on_length(model):
        yield lengths, windows(chosen, token_ids, lengths[-1], lengths[-1], start, bos)[0]
        return
    for length in lengths:
        for some in windows(chosen, token_ids, length, lengths[-1], start, bos):
            yield [length], some


def _documents(data: Path, count: int, at_least: int, split: str, key: str) -> list[tuple[str, Tokens]]:
    """Names and tokens of the first `count` documents of a split that are long enough."""
    documents = list(islice(held_out_documents(data, at_least, split), count))
    # Of the validation split, fewer will do.
    if not documents or (split == "test" and len(documents) < count):
        raise ValueError(
            f"perplexity needs {count} {split} documents of at least {at_least} tokens and {data} has "
            f"{len(documents)}: lower evaluations.perplexity.{key}, or the longest of "
            f"evaluations.perplexity.lengths, or give the {split} split longer documents"
        )
    return documents


def _start(settings: dict[str, Any], token_ids: Tokens, index: int, split: str) -> int:
    """Where the window of same-targets begins in a document."""
    if settings["protocol"]["kind"] != "same-targets":
        return 0
    stream = "perplexity/same-targets-v1" if split == "test" else "perplexity/same-targets-v1/validation"
    return int(generator(stream, 0, index).integers(0, len(token_ids) - _lengths(settings)[-1]))


def _lengths(settings: dict[str, Any]) -> list[int]:
    return sorted(set(settings["lengths"]))


def _tokens_read(settings: dict[str, Any]) -> int:
    """How many tokens a document must have; of all but same-targets, how many are read."""
    longest = _lengths(settings)[-1]
    if settings["protocol"]["kind"] == "same-targets":
        return longest + 1
    return settings["protocol"].get("tokens") or longest


# ---- scores ----------------------------------------------------------------------------------------------------------


def _document(
    model: Any,
    settings: dict[str, Any],
    temperatures: dict[str, float],
    token_ids: Tokens,
    index: int,
    bos: int,
    journal: Part,
) -> dict[str, Any]:
    """Sums over a document's scored tokens, by length."""
    start = _start(settings, token_ids, index, "test")
    if settings["protocol"]["kind"] != "same-targets":
        token_ids = token_ids[: _tokens_read(settings)]
    sums: dict[str, Any] = {}
    for served, some in _by_length(model, settings, token_ids, start, bos):
        fitted = [temperatures[key] for key in ("checkpoint", *map(str, served))] if temperatures else []
        scores = score_tokens(model, some.input_ids, some.targets, some.last, [1.0, *(1 / t for t in fitted)])
        for place, length in enumerate(served):
            # Of the fitted temperatures, the checkpoint's and the length's own.
            kept = [0, 1, 2 + place] if fitted else [0]
            first = some.before + some.targets.shape[1] - some.last
            part = Scores(scores.nll[kept], scores.correct, scores.confidence)
            if len(served) > 1:
                part = Scores(part.nll[..., :length], part.correct[..., :length], part.confidence[..., :length])
            _add(sums.setdefault(str(length), {}), _sums(part, first))
    journal.add(f"document {index}", sums)
    return sums


def _sums(scores: Scores, first: int) -> dict[str, list[float]]:
    """Sums over scored tokens whose first one in each row has `first` tokens before it in its window."""
    bins = (scores.confidence * BINS).long().clamp(0, BINS - 1).flatten()
    position = torch.arange(first, first + scores.correct.shape[1]).expand(scores.correct.shape).flatten()
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


# ---- temperature -----------------------------------------------------------------------------------------------------


def _temperatures(model: Any, settings: dict[str, Any], data: Path, bos: int, journal: Part) -> dict[str, float]:
    """The temperature of the checkpoint and of each length that fit the validation documents best."""
    count = settings["temperature_documents"]
    documents = _documents(data, count, _tokens_read(settings), "validation", "temperature_documents")
    states: dict[int, list[tuple[Tensor, Tensor]]] = {length: [] for length in _lengths(settings)}
    for index, (_, token_ids) in enumerate(documents):
        start = _start(settings, token_ids, index, "validation")
        if settings["protocol"]["kind"] != "same-targets":
            token_ids = token_ids[: _tokens_read(settings)]
        readings = list(_by_length(model, settings, token_ids, start, bos))
        taken = {length: _sample(readings, length, index, len(documents)) for length in states}
        for served, some in readings:
            hidden, came = (torch.cat(parts) for parts in zip(*_states(model, some), strict=True))
            for length in served:
                count = _scored(served, some, length)
                here = taken[length][(taken[length] >= 0) & (taken[length] < count)]
                taken[length] = taken[length] - count
                states[length].append((hidden[here], came[here]))
    head = head_of(model)
    size = tokens_per_head(model)
    fitted = {str(length): fit_temperature(head, some, size) for length, some in states.items()}
    # Of a sum of convex functions the minimum lies between theirs.
    between = (min(fitted.values()) * 0.999, max(fitted.values()) * 1.001)
    together = [pair for some in states.values() for pair in some]
    fitted["checkpoint"] = fit_temperature(head, together, size, between)
    print(f"temperatures from {len(documents)} validation documents: {fitted}", flush=True)
    journal.add("temperatures", fitted)
    return fitted


def _scored(served: list[int], some: Windows, length: int) -> int:
    """How many tokens a reading scores for a length: the first of them, where it serves several."""
    return length if len(served) > 1 else some.last * len(some.targets)


def _sample(readings: list[tuple[list[int], Windows]], length: int, document: int, documents: int) -> Tensor:
    """Places among all tokens that are scored of a document at a length, each as probable as another, ascending."""
    scored = sum(_scored(served, some, length) for served, some in readings if length in served)
    count = min(scored, max(LEAST_FITTED, FITTED_TOKENS // documents))
    stream = generator(f"perplexity/temperature/{length}", 0, document)
    return torch.from_numpy(np.sort(stream.choice(scored, count, replace=False)))


@torch.inference_mode()
def _states(model: Any, some: Windows) -> list[tuple[Tensor, Tensor]]:
    return list(scored_states(model, some.input_ids, some.targets, some.last))


@torch.inference_mode()
def fit_temperature(
    head: Any, states: list[tuple[Tensor, Tensor]], size: int, between: tuple[float, float] = (0.5, 2.0)
) -> float:
    """The T that minimises the NLL of logits / T, in COLDEST to HOTTEST; NaN where the logits are not finite.

    The NLL is convex in 1 / T, so that the only zero of its slope is the minimum.

    Args:
        head: logits of hidden states.
        states: hidden states [tokens, features] and the tokens that came [tokens].
        size: so many tokens have logits at a time.
        between: two temperatures that it probably lies between.
    """

    def rise(log_temperature: float) -> float:
        return -_slope(head, states, math.exp(-log_temperature), size)

    low, high = math.log(between[0]), math.log(between[1])
    at_low, at_high = rise(low), rise(high)
    if not (math.isfinite(at_low) and math.isfinite(at_high)):
        return math.nan
    if at_low == at_high == 0:  # logits that say nothing
        return 1.0
    while at_low >= 0 and low > math.log(COLDEST):
        high, at_high, low = low, at_low, max(low - math.log(4), math.log(COLDEST))
        at_low = rise(low)
    while at_high <= 0 and high < math.log(HOTTEST):
        low, at_low, high = high, at_high, min(high + math.log(4), math.log(HOTTEST))
        at_high = rise(high)
    if at_low >= 0 or at_high <= 0:
        return COLDEST if at_low >= 0 else HOTTEST
    from scipy.optimize import brentq  # late: of use only where a temperature is fitted

    return math.exp(brentq(rise, low, high, xtol=1e-8))


def _slope(head: Any, states: list[tuple[Tensor, Tensor]], factor: float, size: int) -> float:
    """Derivative of the mean NLL by the factor of the logits: the expected logit less the one that came."""
    total, count = 0.0, 0
    for some, came in states:
        for chunk, wanted in zip(some.split(size), came.split(size), strict=True):
            logits = head(chunk)
            logits = logits - logits.max(-1, keepdim=True).values
            weights = (factor * logits).exp()
            expected = torch.linalg.vecdot(weights, logits) / weights.sum(-1)
            total += float((expected - logits.gather(-1, wanted[:, None])[:, 0]).double().sum())
            count += len(wanted)
    return total / count


MEASUREMENT = stage.Measurement(
    metric="perplexity",
    module="longshort.evaluation.perplexity",
    asks=Perplexity,
    evaluate=evaluate,
    protocol=protocol,
)


if __name__ == "__main__":
    stage.main(MEASUREMENT)
