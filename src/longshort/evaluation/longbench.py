"""LongBench-E: greedy answers to its 13 tasks, and their official scores.

Its questions come from longbench_items.py, the answers from longbench_answers.py, both as the official code makes them
(THUDM/LongBench, pred.py): official prompts without a chat template, the tokenizer's usual special tokens.

One choice differs. The official max_length holds for the prompt alone and is set by hand some 600 tokens below the
model's length; here max_length is prompt and answer together, and each task's prompt gets max_length less its answer.

`python -m longshort.evaluation.longbench score` scores predictions from elsewhere: see longbench_score.py.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

from longshort.data.settings import Tokenizer
from longshort.evaluation import stage
from longshort.evaluation.journal import Measured, Section
from longshort.evaluation.longbench_answers import predict, predict_share
from longshort.evaluation.longbench_items import protocol as protocol_of_items
from longshort.evaluation.longbench_items import questions
from longshort.evaluation.scoring import BUCKETS, score_prediction, summarise
from longshort.evaluation.share import Share
from longshort.metrics.settings import LongBench


def protocol(settings: LongBench, l_train: int, tokenizer: Tokenizer) -> str:
    return protocol_of_items(settings, settings.max_new_tokens)


def evaluate(
    model: Any, tokenizer: Any, settings: LongBench, data: Path, l_train: int, journal: Section | None = None
) -> Measured:
    """Scores in per cent per task, per task and bucket, over tasks ("overall", "overall-bucket-mean", and
    "overall:0-4k", the mean over the tasks that have items in a bucket), and of each item (`document` is its
    id, with its number where it is not the first of that id).

    Args:
        data: a published data folder, with the folder longbench-e-<items> if the source is the stand-in.
        l_train: not used; all evaluations have one signature.
        journal: keeps each prediction; those that it has are not generated again.

    Raises:
        ValueError: a task or a field is missing in the data.
    """
    predicted = predictions(model, tokenizer, settings, data, journal)
    result = summarise(predicted)
    rows = []
    for task, means in result["tasks"].items():
        rows.append(_row(task, means["all"], means["n"]["all"]))
        rows.extend(_row(f"{task}:{bucket}", means[bucket], means["n"][bucket]) for bucket in BUCKETS)
    rows.append(_row("overall", result["overall"], len(predicted)))
    rows.append(_row("overall-bucket-mean", result["overall_bucket_mean"], len(predicted)))
    for bucket in BUCKETS:
        inside = [means for means in result["tasks"].values() if means[bucket] is not None]
        mean = sum(means[bucket] for means in inside) / len(inside) if inside else None
        rows.append(_row(f"overall:{bucket}", mean, sum(means["n"][bucket] for means in inside)))
    times = Counter[tuple[str, str]]()
    for item in predicted:
        times[key := (item["task"], item["id"])] += 1
        document = item["id"] if times[key] == 1 else f"{item['id']}#{times[key]}"
        rows.append(_row(item["task"], 100 * item["score"], 1, document=document))
    return Measured(rows, predicted)


def evaluate_share(
    model: Any, tokenizer: Any, settings: LongBench, data: Path, l_train: int, journal: Section, share: Share
) -> None:
    """Answers a share of the batches, for evaluate to find in the journal; arguments are its."""
    predict_share(model, tokenizer, questions(tokenizer, settings, settings.max_new_tokens, data), journal, share)


def predictions(
    model: Any, tokenizer: Any, settings: LongBench, data: Path, journal: Section | None = None
) -> list[dict[str, Any]]:
    """One row per item: task, id, prediction, references, all_classes, length (words), score (0..1), truncated, tokens.

    `truncated` says whether the prompt lost its middle; `tokens` counts the prompt as the model read it.
    """
    asked = questions(tokenizer, settings, settings.max_new_tokens, data)
    rows = []
    for question, prediction in zip(asked, predict(model, tokenizer, asked, journal), strict=True):
        rows.append(
            {
                "task": question.task,
                "id": question.id,
                "prediction": prediction,
                "references": question.answers,
                "all_classes": question.all_classes,
                "length": question.length,
                "score": score_prediction(question.task, prediction, question.answers, question.all_classes),
                "truncated": question.truncated,
                "tokens": len(question.input_ids),
            }
        )
    return rows


def _row(task: str, value: float | None, n: int, document: str | None = None) -> dict[str, Any]:
    return {"metric": "longbench_e", "length": None, "task": task, "document": document, "value": value, "n": n}


MEASUREMENT = stage.Measurement(
    metric="longbench_e",
    module="longshort.evaluation.longbench",
    asks=LongBench,
    evaluate=evaluate,
    protocol=protocol,
    keeps_items=True,
)


if __name__ == "__main__":
    if sys.argv[1:2] == ["score"]:
        from longshort.evaluation import longbench_score

        longbench_score.main(sys.argv[2:])
    else:
        stage.main(MEASUREMENT)
