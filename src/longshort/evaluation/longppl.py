"""LongPPL: perplexity on key tokens, those that need a long context.

arXiv 2410.23771, section 3.2, as in the authors' package longppl 0.3.0: LongPPL = exp of the mean loss of the measured
model on the key tokens, each given all tokens before it, without BOS. Which tokens these are, an evaluator says once
for the corpus (key_tokens.py): all arms, seeds and checkpoints are measured on the same.

Here the mean is over the key tokens of all documents. A length L has those among the first L tokens of a document; the
evaluator reads documents at the longest length. A document without any is counted, and is in no mean.

Beside it stands the gain from the long context of the measured model itself, the paper's LSD (equation 3): its loss in
the short context less that in the long one, by the settings `short` and `stride` in its own tokens. It is 0 for a token
whose whole context is a short one, which another tokenizer's tokens may have.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from longshort.data.settings import Tokenizer
from longshort.evaluation import key_tokens, stage
from longshort.evaluation.forward import held_out_documents, rope_depends_on_length
from longshort.evaluation.journal import Journal, Measured, Section
from longshort.metrics.settings import KeyTokenSearch, LongPPL


def protocol(settings: LongPPL, l_train: int, tokenizer: Tokenizer) -> str:
    evaluator = settings.evaluator
    given = {
        "evaluator": f"{key_tokens.name_of(evaluator)}@{key_tokens.content_of(evaluator)},{evaluator.precision}",
        "short": settings.short,
        "stride": settings.stride,
        "gain": f"{settings.gain:g}",
        "below": f"{settings.below:g}",
        "docs": settings.documents,
        "lengths": ",".join(str(length) for length in sorted(settings.lengths)),
    }
    return f"longppl/v1?{'&'.join(f'{key}={value}' for key, value in given.items())}"


def evaluate(
    model: Any, tokenizer: Any, settings: LongPPL, data: Path, l_train: int, journal: Section | None = None
) -> Measured:
    """Rows per length: longppl, lsd (nats), each with n key tokens; key_tokens, how many there are, of n documents;
    documents_without_key_tokens; longppl_nll_se and lsd_se, standard errors by document of the mean loss and gain; of
    each document with key tokens longppl_nll (nats a token) and lsd.

    Args:
        tokenizer, l_train: not used; all evaluations have one signature.
        data: a published data folder, with the key tokens.
        journal: keeps each document; those that it has are not read again.

    Raises:
        ValueError: the key tokens are not there, or are another evaluator's.
    """
    journal = journal or Journal().of("longppl")
    scored = key_tokens.scored(data, settings.key_tokens)
    lengths = sorted(settings.lengths)
    journal.expect(len(scored))
    texts = {name: ids[: lengths[-1]] for name, ids in held_out_documents(data, lengths[-1]) if name in scored}
    sums = {}
    for name, positions in scored.items():
        value = journal.get(name)
        if value is None:
            value = of_document(
                model, torch.from_numpy(texts[name]), torch.tensor(positions), lengths, settings.key_tokens
            )
            journal.add(name, value)
        sums[name] = value
    return Measured([row for length in lengths for row in _rows(length, {n: v[str(length)] for n, v in sums.items()})])


def of_document(
    model: Any, ids: torch.Tensor, positions: torch.Tensor, lengths: list[int], search: KeyTokenSearch
) -> dict[str, list[float]]:
    """By length: how many of positions there are, and the sums of their losses and of their gains (nats).

    One forward at the longest length gives all lengths, unless the rotary frequencies depend on it.
    """
    if not len(positions):
        return {str(length): [0, 0.0, 0.0] for length in lengths}
    by_length = rope_depends_on_length(model)
    at_longest = None if by_length else key_tokens.long_losses(model, ids, positions)
    beyond = positions >= search.short
    short = torch.full((len(positions),), math.nan, dtype=torch.float64)
    short[beyond] = key_tokens.short_losses(model, ids, positions[beyond], search.short, search.stride)
    found = {}
    for length in lengths:
        here = positions < length
        if not here.any():
            found[str(length)] = [0, 0.0, 0.0]
            continue
        if at_longest is None:
            long = key_tokens.long_losses(model, ids[:length], positions[here])
        else:
            long = at_longest[here]
        gains = (short[here] - long)[beyond[here]]
        found[str(length)] = [int(here.sum()), float(long.sum()), float(gains.sum())]
    return found


def _rows(length: int, documents: dict[str, list[float]]) -> list[dict[str, Any]]:
    """documents: name -> key tokens, sum of losses, sum of gains."""
    inside = {name: values for name, values in documents.items() if values[0]}
    count = int(sum(n for n, _, _ in inside.values()))
    rows = [
        _row("key_tokens", length, count, len(documents)),
        _row("documents_without_key_tokens", length, len(documents) - len(inside), len(documents)),
    ]
    if not count:  # of this length: the mean of nothing is no number
        return [*rows, _row("longppl", length, None, 0), _row("lsd", length, None, 0)]
    for metric, error, place in (("longppl_nll", "longppl_nll_se", 1), ("lsd", "lsd_se", 2)):
        mean = sum(values[place] for values in inside.values()) / count
        if metric == "lsd":
            rows.append(_row(metric, length, mean, count))
        else:
            rows.append(_row("longppl", length, _exp(mean), count))
        if len(inside) > 1:
            residuals = [values[place] - values[0] * mean for values in inside.values()]
            spread = sum(residual**2 for residual in residuals) * len(inside) / (len(inside) - 1)
            rows.append(_row(error, length, math.sqrt(spread) / count, len(inside)))
        rows += [
            _row(metric, length, values[place] / values[0], int(values[0]), document=name)
            for name, values in inside.items()
        ]
    return rows


def _exp(value: float) -> float:
    return math.exp(value) if value < 709 else math.inf if value == value else math.nan


def _row(metric: str, length: int, value: float | None, n: int, document: str | None = None) -> dict[str, Any]:
    return {"metric": metric, "length": length, "task": None, "document": document, "value": value, "n": n}


MEASUREMENT = stage.Measurement(
    metric="longppl",
    module="longshort.evaluation.longppl",
    asks=LongPPL,
    evaluate=evaluate,
    protocol=protocol,
)


if __name__ == "__main__":
    stage.main(MEASUREMENT)
