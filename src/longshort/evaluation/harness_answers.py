"""One task of lm_eval on the model that the other evaluations load.

Rows go through the model one by one, so no number depends on what shares a batch with it, and the answer to each is
kept as it comes: a killed job goes on after the last one.
"""

from __future__ import annotations

import json
import math
import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeGuard

import numpy as np

from longshort.evaluation.harness_tasks import OTHER_SEED, RANDOM_SEED, directions
from longshort.evaluation.journal import Section
from longshort.metrics.settings import Harness


def wrapped(model: Any, tokenizer: Any, max_length: int, journal: Section) -> Any:
    """The model as lm_eval calls it; its bars, one a call, would hide that of the journal."""
    from lm_eval.models.huggingface import HFLM

    from longshort.evaluation.forward import rope_depends_on_length

    answers = Answers(journal)

    class Journalled(HFLM):
        def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[Any]:
            return answers.to("loglikelihood", requests, partial(super().loglikelihood, disable_tqdm=True))

        def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = True) -> list[Any]:
            ask = partial(super().loglikelihood_rolling, disable_tqdm=True)

            # lm_eval would hand over no answer before it has all of them.
            def one_by_one(absent: list[Any]) -> list[Any]:
                return [answer for request in absent for answer in ask([request])]

            return answers.to("loglikelihood_rolling", requests, one_by_one)

        def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> list[Any]:
            return answers.to("generate_until", requests, partial(super().generate_until, disable_tqdm=True))

        def _loglikelihood_tokens(self, requests: Any, disable_tqdm: bool = True, **others: Any) -> list[Any]:
            found: list[Any] = super()._loglikelihood_tokens(requests, disable_tqdm=True, **others)
            return found

    class Resetting(Journalled):
        """transformers' dynamic NTK keeps the frequencies of the longest input seen until a short one resets them."""

        def _model_call(self, inps: Any, **kwargs: Any) -> Any:
            self.model(inps[:1, :1], use_cache=False)
            return super()._model_call(inps, **kwargs)

        def _model_generate(self, context: Any, **kwargs: Any) -> Any:
            import torch

            with torch.inference_mode():
                self.model(context[:1, :1], use_cache=False)
            return super()._model_generate(context, **kwargs)

    # lm_eval says how long prompt and answer are together, which a checkpoint's own max_new_tokens would override.
    model.generation_config.max_new_tokens = None
    kind = Resetting if rope_depends_on_length(model) else Journalled
    lm = kind(pretrained=model, tokenizer=tokenizer, max_length=max_length, batch_size=1)
    lm.set_cache_hook(answers)
    return lm


class Answers:
    """The model's answers, each in the journal from the moment that lm_eval has it and calls its cache hook."""

    def __init__(self, journal: Section) -> None:
        self._journal = journal
        self._task, self._done, self._total = "", 0, 0

    def to(self, kind: str, requests: list[Any], ask: Callable[[list[Any]], list[Any]]) -> list[Any]:
        """The answers in the order of the requests (lm_eval's instances).

        Args:
            kind: lm_eval's name for what is asked, that of the model's method.
            ask: answers those requests that the journal has no answer to.
        """
        keys = [_answer_key(kind, request.args) for request in requests]
        answers = [self._journal.peek(key) for key in keys]
        absent = [place for place, answer in enumerate(answers) if answer is None]
        self._done, self._total = len(requests) - len(absent), len(requests)
        if absent:
            self._task = requests[0].task_name
            for place, answer in zip(absent, ask([requests[place] for place in absent]), strict=True):
                answers[place] = answer
        # JSON has no tuples.
        return [tuple(answer) if isinstance(answer, list) else answer for answer in answers]

    def add_partial(self, kind: str, arguments: tuple[Any, ...], answer: Any) -> None:
        """What lm_eval calls with each answer."""
        # Drawn answers depend on those drawn before them: a resumed job draws them all again.
        if kind != "generate_until" or not _is_drawn(arguments[1]):
            self._journal.keep(_answer_key(kind, arguments), answer)
        self._done += 1
        self._journal.within(self._task, self._done, self._total)


def _answer_key(kind: str, arguments: tuple[Any, ...]) -> str:
    from lm_eval.api.model import hash_args

    return f"answer/{hash_args(kind, arguments)}"


def _is_drawn(generation: dict[str, Any]) -> bool:
    """Whether an answer is a random sample, so that the same request can have another one."""
    from lm_eval.models.utils import normalize_gen_kwargs

    return bool(normalize_gen_kwargs(generation)["do_sample"])


def measure(lm: Any, label: str, task: Any, settings: Harness) -> dict[str, Any]:
    """What lm_eval makes of one task: {"result": by metric, "n": items, "items": one row an item and filter}.

    lm_eval.evaluate and not simple_evaluate, which asks the machine for its programs each time (5 s).
    """
    import lm_eval
    import torch

    # As simple_evaluate: a task that says 0 keeps it.
    own = task.get_config("num_fewshot")
    if own is None or (own != 0 and settings.num_fewshot is not None):
        task.set_config(key="num_fewshot", value=settings.num_fewshot or 0)
    name = task.task_name
    # A pool of all processors would fork the process that holds the model.
    os.environ["DISABLE_MULTIPROC"] = "1"

    def evaluated() -> Any:
        random.seed(RANDOM_SEED)
        np.random.seed(OTHER_SEED)
        torch.manual_seed(OTHER_SEED)
        task.set_fewshot_seed(seed=OTHER_SEED)
        return lm_eval.evaluate(
            lm=lm,
            task_dict={"tasks": {name: task}, "groups": {}},
            limit=settings.limit,
        )

    try:
        done = evaluated()
    except OverflowError:  # math.exp of the nats of a diverged model; lm_eval then gives no metric at all
        with _infinite_where_too_large(task):
            done = evaluated()
    result = done["results"][name]
    items = [
        {
            "task": label,
            "id": str(sample["doc_id"]),
            "filter": sample["filter"],
            "response": _text(sample["filtered_resps"]),
            "target": _text(sample["target"]),
            "metrics": _text({metric: sample[metric] for metric in sample["metrics"]}),
        }
        for sample in done["samples"][name]
    ]
    listed = list(directions(task))

    def place(key: str) -> int:
        metric = key.split(",")[0].removesuffix("_stderr")
        return listed.index(metric) if metric in listed else len(listed)

    numbers = {key: float(result[key]) for key in sorted(result, key=place) if is_number(result[key])}
    return {"result": numbers, "n": int(result["sample_len"]), "items": items}


@contextmanager
def _infinite_where_too_large(task: Any) -> Iterator[None]:
    """The means over items that can overflow are infinite then (and have no standard error, which lm_eval has for its
    own functions only)."""
    from lm_eval.api.metrics import mean

    def safe(total: Any) -> Any:
        def or_infinite(values: Any) -> Any:
            try:
                return total(values)
            except OverflowError:
                return math.inf

        return total if total is mean else or_infinite

    totals = {metric: safe(total) for metric, total in task.aggregation().items()}
    task.aggregation = lambda: totals
    try:
        yield
    finally:
        del task.aggregation  # the class's again: the task is kept for other checkpoints


def _text(value: Any) -> str:
    """A text as it is, and the only one of a list; all else as JSON, as its type is one in no two tasks."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)
