"""What perplexity and misalignment share: held-out documents, batches, and a model without full logits."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from longshort.models.load import logit_change

# Small enough for a CPU cache at demo scale (faster there than 2048 and more); long contexts go one by one anyway.
TOKENS_PER_FORWARD = 1024
TOKENS_PER_HEAD = 512
# An unknown type counts as dependent: the slow way is right for every model.
ROPE_FREE_OF_LENGTH = {"default", "linear", "yarn", "llama3"}


def held_out_documents(data: Path, at_least: int) -> Iterator[tuple[str, NDArray[np.int64]]]:
    """Name and token ids of the test documents of at least so many tokens, by the sha256 of the name."""
    from datasets import load_from_disk

    split = load_from_disk(str(data / "test")).with_format("numpy", columns=["input_ids"])
    names = [str(name) for name in split.with_format(None)["name"]]
    short = sum(len(token_ids) < at_least for token_ids in split.with_format(None)["input_ids"])
    print(f"{short} of {len(names)} test documents are shorter than {at_least} tokens and not used", flush=True)
    for index in sorted(range(len(names)), key=lambda i: (hashlib.sha256(names[i].encode()).hexdigest(), i)):
        token_ids = np.asarray(split[index]["input_ids"], dtype=np.int64)
        if len(token_ids) >= at_least:
            yield names[index], token_ids


def rope_depends_on_length(model: Any) -> bool:
    """Whether the rotary frequencies change with the length of the input (dynamic NTK, longrope, CLEX).

    Then one forward gives the numbers of one length only, and a batch must hold rows of one length only.
    """
    parameters = getattr(model.config.get_text_config(), "rope_parameters", None) or {}
    # Models with several kinds of layers keep one dict per kind: {"full_attention": {"rope_type": ...}, ...}.
    per_kind = parameters.values() if "rope_type" not in parameters else [parameters]
    return any(kind.get("rope_type") not in ROPE_FREE_OF_LENGTH for kind in per_kind if isinstance(kind, dict))


def head_of(model: Any) -> Callable[[Tensor], Tensor]:
    """Logits of final hidden states, in float32 at least, as the whole model would give them.

    Raises:
        ValueError: the model changes its logits after the head in a way that is not known.
    """
    head, change = model.get_output_embeddings(), logit_change(model.config)
    return lambda states: change(head(states))


@torch.inference_mode()
def refuse_unknown_logits(model: Any) -> None:
    """Compares a few logits that are made here, from hidden states, with the model's own.

    Raises:
        ValueError: they differ: the model does something between its states and its logits that is not known here.
    """
    tokens = torch.arange(4, device=model.device)[None] % model.config.get_text_config().vocab_size
    ours = head_of(model)(hidden_states(model, tokens)).float()
    theirs = model(input_ids=tokens, use_cache=False).logits.float()
    if ours.shape != theirs.shape or not torch.allclose(ours, theirs, rtol=1e-2, atol=1e-2):
        raise ValueError(
            f"{type(model).__name__} makes its logits otherwise than by its head and {logit_change(model.config)}: "
            "add what it does to models/load.py"
        )


def hidden_states(model: Any, input_ids: Tensor) -> Tensor:
    """Final hidden states [batch, length, features] of input_ids [batch, length], plain causal attention.

    No mask is passed: rows padded on the right are exact before their padding, because attention is causal.
    """
    backbone = model.get_decoder()
    input_ids = input_ids.to(model.device)
    if rope_depends_on_length(model):
        # transformers' dynamic NTK keeps the frequencies of the longest input seen until a short one comes.
        backbone(input_ids=input_ids[:1, :1], use_cache=False)
    states: Tensor = backbone(input_ids=input_ids, use_cache=False).last_hidden_state
    return states


@torch.inference_mode()
def token_nll(model: Any, input_ids: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Scores targets [rows, length], the next token of each of input_ids [rows, length].

    Batched by TOKENS_PER_FORWARD; logits exist for TOKENS_PER_HEAD tokens at a time.

    Returns:
        nll: nats, float64 on the CPU, [rows, length].
        correct: whether the most probable token is the target, bool on the CPU, [rows, length].
    """
    head = head_of(model)
    nll, correct = [], []
    rows_per_forward = max(1, TOKENS_PER_FORWARD // input_ids.shape[1])
    for some_ids, some_targets in zip(input_ids.split(rows_per_forward), targets.split(rows_per_forward), strict=True):
        states = hidden_states(model, some_ids).flatten(0, 1)
        flat = some_targets.flatten().to(states.device)
        for chunk, wanted in zip(states.split(TOKENS_PER_HEAD), flat.split(TOKENS_PER_HEAD), strict=True):
            logits = head(chunk)
            nll.append(nn.functional.cross_entropy(logits, wanted, reduction="none").double().cpu())
            correct.append((logits.argmax(-1) == wanted).cpu())
    return torch.cat(nll).view(targets.shape), torch.cat(correct).view(targets.shape)


def batches(lengths: Sequence[int], equal: bool) -> list[list[int]]:
    """Row numbers by batch, shortest rows first, at most TOKENS_PER_FORWARD tokens a batch with its padding.

    equal: rows of one batch have one length.
    """
    result: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda r: lengths[r]):
        length = lengths[row]
        last = result[-1] if result else []
        fits = bool(last) and (len(last) + 1) * length <= TOKENS_PER_FORWARD
        if fits and (length == lengths[last[0]] or not equal):
            last.append(row)
        else:
            result.append([row])
    return result


@torch.inference_mode()
def last_log_probs(model: Any, contexts: Sequence[NDArray[np.int64]]) -> Tensor:
    """Log-probabilities of the token after each context, float64 on the CPU, [contexts, vocabulary]."""
    head = head_of(model)
    result: list[Tensor] = [torch.empty(0)] * len(contexts)
    for rows in batches([len(context) for context in contexts], equal=rope_depends_on_length(model)):
        ends = torch.tensor([len(contexts[row]) - 1 for row in rows])
        input_ids = torch.zeros(len(rows), int(ends.max()) + 1, dtype=torch.long)
        for place, row in enumerate(rows):
            input_ids[place, : len(contexts[row])] = torch.from_numpy(contexts[row])
        states = hidden_states(model, input_ids)
        last = states[torch.arange(len(rows), device=states.device), ends.to(states.device)]
        log_probs = head(last).cpu().double().log_softmax(-1)
        for place, row in enumerate(rows):
            result[row] = log_probs[place]
    return torch.stack(result)
