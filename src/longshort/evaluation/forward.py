"""What perplexity and misalignment share: held-out documents, batches, and a model without full logits."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from longshort.data import splits
from longshort.evaluation import chunks
from longshort.models import rope
from longshort.models.load import logit_change

# Small enough for a CPU cache at demo scale (faster there than 2048 and more); long contexts go one by one anyway.
TOKENS_PER_FORWARD = 1024
TOKENS_PER_HEAD = 512
# 16 MiB: enough rows for a fast product, and below the 32 MiB from which glibc maps fresh pages for every array.
LOGITS_AT_A_TIME = 4 * 2**20
LOGITS_IN_CACHE = 2**18
LOG2_E = math.log2(math.e)
# An unknown type counts as dependent: the slow way is right for every model.
ROPE_FREE_OF_LENGTH = {"default", "linear", "yarn", "llama3"}


def held_out_documents(data: Path, at_least: int, split: str = "test") -> Iterator[tuple[str, NDArray[np.int64]]]:
    """Name and token ids of the documents of a split of at least so many tokens, by the sha256 of the name."""
    documents = splits.load(data / split)
    names, token_ids = documents.column("name").to_pylist(), documents.column("input_ids")
    lengths = [length for chunk in token_ids.chunks for length in chunk.value_lengths().to_pylist()]
    short = sum(length < at_least for length in lengths)
    print(f"{short} of {len(names)} {split} documents are shorter than {at_least} tokens and not used", flush=True)
    for index in sorted(range(len(names)), key=lambda i: (hashlib.sha256(names[i].encode()).hexdigest(), i)):
        if lengths[index] >= at_least:
            yield names[index], token_ids[index].values.to_numpy().astype(np.int64)


def rope_depends_on_length(model: Any) -> bool:
    """Whether the rotary frequencies change with the length of the input (dynamic NTK, longrope, CLEX).

    Then one forward gives the numbers of one length only, and a batch must hold rows of one length only.
    """
    if getattr(model.config, rope.KEY, {}).get("kind") == "clex":
        return True
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
    # Where weights are not finite both are NaN: what is measured of them says so.
    if ours.shape != theirs.shape or not torch.allclose(ours, theirs, rtol=1e-2, atol=1e-2, equal_nan=True):
        raise ValueError(
            f"{type(model).__name__} makes its logits otherwise than by its head and {logit_change(model.config)}: "
            "add what it does to models/load.py"
        )


def hidden_states(model: Any, input_ids: Tensor, chunk: int | None = None) -> Tensor:
    """Final hidden states [batch, length, features] of input_ids [batch, length], plain causal attention.

    No mask is passed: rows padded on the right are exact before their padding, because attention is causal.

    Args:
        chunk: so many tokens are read at a time, as chunks.py says; None: all of them.
    """
    backbone = model.get_decoder()
    input_ids = input_ids.to(model.device)
    turns = rope_depends_on_length(model)
    if turns:
        # transformers' dynamic NTK keeps the frequencies of the longest input seen until a short one comes.
        backbone(input_ids=input_ids[:1, :1], use_cache=False)
    if chunk is not None and chunk < input_ids.shape[1]:
        return chunks.hidden_states(backbone, input_ids, chunk, turns)
    states: Tensor = backbone(input_ids=input_ids, use_cache=False).last_hidden_state
    return states


class Scores(NamedTuple):
    """How a model predicted the tokens that came next in a text; all on the CPU.

    nll: nats, float64 [1 + temperatures, rows, scored]; NaN where a temperature was not asked for.
    correct: whether the most probable token came, bool [rows, scored].
    confidence: the probability of the most probable token, float64 [rows, scored].
    """

    nll: Tensor
    correct: Tensor
    confidence: Tensor


@torch.inference_mode()
def score_tokens(
    model: Any,
    input_ids: Tensor,
    targets: Tensor,
    scored: Tensor,
    temperatures: Sequence[tuple[float, int]] = (),
    chunk: int | None = None,
) -> Scores:
    """Scores some of targets [rows, length], the next tokens of input_ids [rows, length or more].

    Batched by TOKENS_PER_FORWARD; logits exist for tokens_per_head tokens at a time.

    Args:
        scored: which columns of targets are scored, [scored].
        chunk: as of hidden_states.
        temperatures: besides 1, what the logits are also divided by, and for how many of the scored tokens, counted
            from the first of the first row. Confidence is that at 1.
    """
    head = head_of(model)
    count = len(targets) * len(scored)
    asked = [(1.0, count), *temperatures]
    # From the most tokens to the fewest, so that logits can be divided where they are.
    narrowing = sorted(range(len(asked)), key=lambda place: -asked[place][1])
    # Made once: small arrays kept between the large ones would split the memory that these take turns in.
    nll = torch.full((len(asked), count), math.nan, dtype=torch.float64)
    correct = torch.empty(count, dtype=torch.bool)
    confidence = torch.empty(count, dtype=torch.float64)
    done = 0
    for states, came_next in scored_states(model, input_ids, targets, scored, chunk):
        for logits, wanted in in_cache(head(states), came_next):
            here = slice(done, done := done + len(wanted))
            highest = logits.amax(-1, keepdim=True)
            came = logits.gather(-1, wanted[:, None])
            # A prediction is right where the token that came is the argmax: where its logit is the highest, and no
            # token before it has the same. Only for those candidates the argmax, which is slow, is looked for.
            right = (came == highest)[:, 0]
            right[right.clone()] = logits[right].argmax(-1) == wanted[right]
            correct[here] = right
            # In place: at a large vocabulary each copy of the logits costs as much as making them.
            logits.sub_(highest)
            came = (came - highest)[:, 0]
            # Without temperatures nothing needs the logits again.
            scale, powers = 1.0, torch.empty_like(logits) if temperatures else logits
            for place in narrowing:
                temperature, tokens = asked[place]
                if (rows := min(len(wanted), tokens - here.start)) <= 0:
                    break
                # Powers of 2, as exp takes four times as long on a CPU.
                logits[:rows].mul_(LOG2_E / temperature / scale)
                scale = LOG2_E / temperature
                total = torch.exp2(logits[:rows], out=powers[:rows]).sum(-1)
                nll[place, here.start : here.start + rows] = total.log() - came[:rows] / temperature
                if place == 0:
                    confidence[here] = total.double().reciprocal()
    shape = (len(targets), len(scored))
    return Scores(nll.view(-1, *shape), correct.view(shape), confidence.view(shape))


def tokens_per_head(model: Any) -> int:
    """How many tokens have logits at a time."""
    if model.device.type != "cpu":
        return TOKENS_PER_HEAD
    return min(TOKENS_PER_FORWARD, max(16, LOGITS_AT_A_TIME // int(model.config.get_text_config().vocab_size)))


def in_cache(logits: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Splits logits [tokens, vocabulary], and what else there is of each token, into parts that stay in a core's cache
    while they are worked on; a GPU works on all at once."""
    size = max(1, LOGITS_IN_CACHE // logits.shape[-1]) if logits.device.type == "cpu" else len(logits)
    return zip(*(some.split(size) for some in (logits, *others)), strict=True)


def scored_states(
    model: Any, input_ids: Tensor, targets: Tensor, scored: Tensor, chunk: int | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """In pieces of tokens_per_head tokens: final hidden states [tokens, features], and the tokens that came next."""
    size = tokens_per_head(model)
    rows_per_forward = max(1, TOKENS_PER_FORWARD // input_ids.shape[1])
    for some_ids, some_targets in zip(input_ids.split(rows_per_forward), targets.split(rows_per_forward), strict=True):
        states = hidden_states(model, some_ids, chunk)[:, scored].flatten(0, 1)
        wanted = some_targets[:, scored].flatten().to(states.device)
        yield from zip(states.split(size), wanted.split(size), strict=True)


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
