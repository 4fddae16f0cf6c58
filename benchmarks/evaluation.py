"""What an evaluation costs beside the plain way to the same numbers, on the demo's model.

    python benchmarks/evaluation.py [--json FILE] [--rounds N] [--toy]

Every comparison checks first that both ways give the same numbers.
"""

from __future__ import annotations

import contextlib
import statistics
import sys
import sysconfig
import tempfile
from collections.abc import Callable
from functools import partial
from itertools import permutations
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import Dataset
from longppl.longppl import compute_longppl
from numpy.typing import NDArray
from side_by_side import alternate, arguments, keep, peak_memory, ratio, report
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils.logging import set_verbosity_error

from longshort.data import tokenizers
from longshort.evaluation import (
    key_tokens,
    longbench,
    longbench_answers,
    longbench_items,
    longppl,
    misalignment,
    perplexity,
    standin,
    temperature,
)
from longshort.evaluation.journal import Journal
from longshort.metrics.settings import KeyTokenSearch, LongBench, Misalignment, Perplexity, PretrainedEvaluator, StandIn

Figures = tuple[dict[str, float], dict[str, str]]
Functions = dict[str, Callable[[], Any]]
BOS = 0
BYTES_EOS = 256
# A model whose texts tell something of the temperature that they were written at.
SPREAD, WRITTEN_AT = 0.2, 1.25


def demo_model(vocabulary: int, device: str = "cpu", spread: float = 0.02) -> LlamaForCausalLM:
    """The shape of config/studies/demo.yaml with random weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=128, intermediate_size=352, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=4096, bos_token_id=BOS, eos_token_id=BOS, initializer_range=spread,
    )  # fmt: skip
    return LlamaForCausalLM(config).to(device).eval()  # type: ignore[arg-type]


# ---- perplexity ------------------------------------------------------------------------------------------------------


def write_documents(folder: Path, split: str, ids: list[list[int]]) -> None:
    rows = {"name": [f"d{place}" for place in range(len(ids))], "text": [""] * len(ids), "input_ids": ids}
    Dataset.from_dict(rows).save_to_disk(str(folder / split))


@torch.inference_mode()
def written_by_the_model(count: int, tokens: int, vocabulary: int, seed: int) -> list[list[int]]:
    """Texts of which the model that is measured is a little too sure, as temperatures are there to correct. Of texts at
    random no temperature is right, and the search for one goes on for longer."""
    model = demo_model(vocabulary, spread=SPREAD)
    torch.manual_seed(seed)
    begun = torch.full((count, 1), BOS)
    written: Any = model.generate(
        begun, attention_mask=torch.ones_like(begun), do_sample=True, temperature=WRITTEN_AT, top_k=0,
        min_new_tokens=tokens, max_new_tokens=tokens, pad_token_id=BOS,
    )  # fmt: skip
    found: list[list[int]] = written[:, 1:].tolist()
    return found


def ours(folder: Path, vocabulary: int, settings: Perplexity, device: str) -> Callable[[], dict[int, float]]:
    model, tokenizer = demo_model(vocabulary, device, SPREAD), SimpleNamespace(bos_token_id=BOS)

    def measure() -> dict[int, float]:
        rows = perplexity.evaluate(model, tokenizer, settings, folder, 128).rows
        return {row["length"]: row["value"] for row in rows if row["metric"] == "perplexity"}

    return measure


def papers(folder: Path, vocabulary: int, settings: Perplexity, device: str) -> Callable[[], dict[int, float]]:
    """A forward with all its logits for each length and document."""
    model = demo_model(vocabulary, device, SPREAD)
    documents = torch.tensor(Dataset.load_from_disk(str(folder / "test"))["input_ids"], device=device)

    @torch.inference_mode()
    def measure() -> dict[int, float]:
        found = {}
        for length in settings.lengths:
            losses = []
            for document in documents:
                read = torch.cat([document.new_tensor([BOS]), document[: length - 1]])[None]
                logits = model(input_ids=read, use_cache=False).logits.float()
                losses.append(torch.nn.functional.cross_entropy(logits[0], document[:length]).item())
            found[length] = float(np.exp(np.mean(losses)))
        return found

    return measure


# Documents measured, and those that temperatures are fitted on, once: as the demo has, and as is the default.
DOCUMENTS = {"": (64, 4), "_100": (100, 8)}


def fitted_and_measured(folder: Path, vocabulary: int, settings: Perplexity, device: str) -> Functions:
    """The parts of an evaluation with temperatures: their fits, and documents measured at them."""
    model, tokenizer = demo_model(vocabulary, device, SPREAD), SimpleNamespace(bos_token_id=BOS)
    # Any: what it takes to measure at them does not depend on their values.
    known = {"checkpoint": 1.1, **{str(length): 1 + length / 10_000 for length in settings.lengths}}

    def fit(documents: int) -> None:
        asked = settings.model_copy(update={"temperature_documents": documents})
        temperature.fit(model, asked, folder, BOS, Journal().of("fit"))

    def measure() -> dict[int, float]:
        journal = Journal().of("measure")
        journal.keep("temperatures", known)
        asked = settings.model_copy(update={"temperature_documents": 1})
        rows = perplexity.evaluate(model, tokenizer, asked, folder, 128, journal).rows
        return {row["length"]: row["value"] for row in rows if row["metric"] == "perplexity"}

    fits = {f"fit on {fitted}": partial(fit, fitted) for _, fitted in DOCUMENTS.values()}
    return {**fits, "at temperatures": measure}


def perplexity_figures(folder: Path, rounds: int, toy: bool, device: str) -> Figures:
    lengths, vocabulary = ([16, 32], 300) if toy else ([128, 256, 512, 1024, 2048], 32_000)
    counts = {"test": 2, "validation": max(fitted for _, fitted in DOCUMENTS.values())}
    for seed, (split, count) in enumerate(counts.items()):
        write_documents(folder, split, written_by_the_model(count, lengths[-1], vocabulary, seed))
    settings = Perplexity(lengths=lengths, documents=2, temperature_documents=0)
    functions = {
        "ours": ours(folder, vocabulary, settings, device),
        "papers": papers(folder, vocabulary, settings, device),
        **fitted_and_measured(folder, vocabulary, settings, device),
    }
    expected = functions["papers"]()
    for name in ("ours", "at temperatures"):
        found = functions[name]()
        assert all(abs(found[length] / expected[length] - 1) < 1e-4 for length in lengths), (name, found, expected)
    with contextlib.redirect_stdout(sys.stderr):
        seconds = alternate(functions, rounds, device)
    memory = {
        name: peak_memory(work, folder, vocabulary, settings, device, device=device)
        for name, work in {"ours": ours, "papers": papers}.items()
    }
    median = {name: statistics.median(values) for name, values in seconds.items()}
    figures = {
        "ppl_time_over_papers": ratio(seconds, "ours", "papers"),
        "ppl_memory_over_papers": memory["ours"] / memory["papers"],
    }
    said = f"2 documents at {', '.join(map(str, lengths))}, V {vocabulary:,}"
    notes = {
        "ppl_time_over_papers": f"{said}: {median['ours']:.3g} / {median['papers']:.3g} s",
        "ppl_memory_over_papers": f"peak MiB {memory['ours'] / 2**20:.0f} / {memory['papers'] / 2**20:.0f}",
    }
    for name, (documents, fitted) in DOCUMENTS.items():
        figure = f"ppl_with_temperatures_time_over_papers{name}"
        pairs = zip(seconds[f"fit on {fitted}"], seconds["at temperatures"], strict=True)
        seconds[figure] = [fit * 2 / documents + measured for fit, measured in pairs]
        figures[figure] = ratio(seconds, figure, "papers")
        notes[figure] = f"of {documents} documents: {median['at temperatures']:.3g} s for each 2, and once, on "
        notes[figure] += f"{fitted} others, {median[f'fit on {fitted}']:.3g} s"
    return figures, notes


# ---- misalignment ----------------------------------------------------------------------------------------------------

DRAWS = 4
BEYOND = [2, 4, 8]


class Misaligned(NamedTuple):
    l_train: int
    sequences: int


def closed_form(model: Any, settings: Misalignment, data: Path, shape: Misaligned) -> dict[tuple[str, int], float]:
    rows = misalignment.evaluate(model, None, settings, data, shape.l_train).rows
    return {(row["metric"], row["length"]): row["value"] for row in rows if row["document"] is None}


def pair_by_pair(model: Any, settings: Misalignment, data: Path, shape: Misaligned) -> dict[tuple[str, int], float]:
    """The same contexts, from the definition: both contexts of every pair go through the model, one at a time."""

    @torch.inference_mode()
    def log_probs(context: NDArray[np.int64]) -> Tensor:
        input_ids = torch.from_numpy(context)[None].to(model.device)
        return model(input_ids=input_ids, use_cache=False).logits[0, -1].cpu().double().log_softmax(-1)

    def of_pair(one: misalignment.Drawn, l1: int, l2: int) -> Tensor:
        log_p, log_q = (log_probs(one.tokens[-length:]) for length in (l1, l2))
        p, q = log_p.exp(), log_q.exp()
        floor = -(p @ log_p) - q @ log_q
        sce = -(p @ log_q) - q @ log_p
        return torch.stack([sce, floor, sce - floor])

    window = max(BEYOND) * shape.l_train
    values = {}
    drawn = misalignment.sequences(data, shape.sequences, DRAWS, window, shape.l_train)
    for multiple in [1, *BEYOND]:
        means = []
        for one in drawn:
            beyond = [(length, multiple * shape.l_train) for length in one.lengths]
            pairs = list(permutations(one.lengths, 2)) if multiple == 1 else beyond
            means.append(torch.stack([of_pair(one, *pair) for pair in pairs]).mean(0))
        for metric, value in zip(misalignment.METRICS, torch.stack(means).mean(0).tolist(), strict=True):
            values[metric, multiple * shape.l_train] = value
    return values


def misalignment_figures(folder: Path, rounds: int, toy: bool, device: str) -> Figures:
    """Raises AssertionError: the two ways differ by more than float32 in batches of other shapes does, or the context
    makes no difference to the model."""
    shape = Misaligned(16, 4) if toy else Misaligned(128, 64)
    at_random = np.random.default_rng(0).integers(1, 257, (32, 2 * max(BEYOND) * shape.l_train))
    write_documents(folder, "test", at_random.tolist())
    # Weights so large that what it predicts depends on the context.
    model = demo_model(257, device, spread=0.1)
    settings = Misalignment(
        sequences=shape.sequences, lengths_per_sequence=DRAWS, beyond=list(BEYOND), grid_sequences=0
    )
    with contextlib.redirect_stdout(sys.stderr):
        ours, theirs = (way(model, settings, folder, shape) for way in (closed_form, pair_by_pair))
        for key, value in theirs.items():
            assert abs(ours[key] - value) <= 1e-4 * abs(value), f"{key}: {ours[key]} by the closed form, not {value}"
        least = min(value for (metric, _), value in theirs.items() if metric == "symkl")
        assert least > 0.1, f"symkl is {least}: a model that hardly heeds its context has nothing to be compared by"
        functions = {way.__name__: partial(way, model, settings, folder, shape) for way in (closed_form, pair_by_pair)}
        seconds = alternate(functions, rounds, device)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    name = "misalignment_time_over_naive"
    what = f"{shape.sequences} sequences, K {DRAWS}, l_train {shape.l_train}, to {max(BEYOND)} x: "
    what += f"{median['closed_form']:.3g} / {median['pair_by_pair']:.3g} s"
    return {name: ratio(seconds, "closed_form", "pair_by_pair")}, {name: what}


# ---- LongPPL ---------------------------------------------------------------------------------------------------------


def longppl_figures(folder: Path, rounds: int, toy: bool, device: str) -> Figures:
    """One model on one evaluator's key tokens, these included, at every length. Raises AssertionError: a number of the
    package differs."""
    vocabulary, lengths = (300, [48, 80]) if toy else (32_000, [512, 1024, 2048])
    short, stride = (16, 8) if toy else (256, 128)
    # Random models gain little by a context: what counts as much is set lower than the paper does.
    search = KeyTokenSearch(
        evaluator=PretrainedEvaluator(kind="pretrained", name="at random"), documents=1, length=lengths[-1],
        short=short, stride=stride, gain=0.05, below=20.0,
    )  # fmt: skip
    tokenizer = tokenizers.byte_tokenizer()
    letters = np.random.default_rng(0).integers(97, 123, (1, lengths[-1])).astype(np.uint8)
    texts = [bytes(some).decode() for some in letters]
    evaluator = demo_model(vocabulary, device, spread=0.1)
    model = demo_model(vocabulary, device, spread=0.11)

    def ours() -> list[float]:
        found = []
        for text in texts:
            ids = tokenizer(text, add_special_tokens=False).input_ids
            spans = key_tokens.merged(key_tokens.find(evaluator, tokenizer, text, search).spans)
            inside = key_tokens.tokens_inside(key_tokens.offsets_of(tokenizer, text, ids), spans)
            sums = longppl.of_document(model, torch.tensor(ids), torch.tensor(inside), lengths, search)
            found += [float(np.exp(sums[str(length)][1] / sums[str(length)][0])) for length in lengths]
        return found

    def official() -> list[float]:
        return [
            float(
                compute_longppl(
                    text[:length], model, evaluator, tokenizer, tokenizer,
                    trunc_len=short, sliding_window=stride, alpha=search.gain, beta=-search.below,
                )["longppl"]
            )
            for text in texts
            for length in lengths
        ]  # fmt: skip

    for one, other in zip(ours(), official(), strict=True):
        assert abs(one / other - 1) < 1e-4, (one, other)
    seconds = alternate({"ours": ours, "official": official}, rounds, device)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    what = f"a document at {', '.join(map(str, lengths))}, short {short}, stride {stride}, V {vocabulary:,}: "
    what += f"{median['ours']:.3g} / {median['official']:.3g} s"
    return {"longppl_time_over_official": ratio(seconds, "ours", "official")}, {"longppl_time_over_official": what}


# ---- LongBench-E -----------------------------------------------------------------------------------------------------


def official_loop(model: Any, tokenizer: Any, asked: list[longbench_items.Question]) -> list[str]:
    """As the official pred.py: one question at a time, to the end of the answer's length; samsum ends at a newline."""
    newline = tokenizer.encode("\n", add_special_tokens=False)[-1]
    answers = []
    for question in asked:
        input_ids = torch.tensor([question.input_ids], device=model.device)
        more = {"eos_token_id": [BYTES_EOS, newline], "min_new_tokens": 1} if question.task == "samsum" else {}
        with torch.inference_mode():
            output = model.generate(
                input_ids,
                attention_mask=torch.ones_like(input_ids),
                max_new_tokens=question.answer_length,
                num_beams=1,
                do_sample=False,
                pad_token_id=BYTES_EOS,
                **more,
            )[0]
        answers.append(tokenizer.decode(output[len(question.input_ids) :], skip_special_tokens=True))
    return answers


def train_on(model: Any, tokenizer: Any, text: str, steps: int) -> None:
    """Enough that it says words and lines."""
    tokens = torch.tensor(tokenizer.encode(text, add_special_tokens=False), device=model.device)
    draw = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(steps):
        starts = torch.randint(len(tokens) - 128, (16,), generator=draw).tolist()
        windows = torch.stack([tokens[start : start + 128] for start in starts])
        model(input_ids=windows, labels=windows).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def longbench_figures(folder: Path, rounds: int, toy: bool, device: str) -> Figures:
    """Raises AssertionError: a score differs."""
    tokenizer = tokenizers.byte_tokenizer()
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))[:: 4 if not toy else 2]
    documents = [(file.name, file.read_text(encoding="utf-8")) for file in files]
    items = 1 if toy else 3
    standin.write(standin.build(documents, items), folder / f"longbench-e-{items}")
    settings = LongBench(
        source=StandIn(kind="stand-in", items_per_task=items),
        max_length=128 if toy else 1024,
        max_new_tokens=4 if toy else None,
    )
    asked = longbench_items.questions(tokenizer, settings, settings.max_new_tokens, folder)
    model = demo_model(257, device)
    model.generation_config.eos_token_id = BYTES_EOS
    train_on(model.train(), tokenizer, "".join(text for _, text in documents[:50]), 2 if toy else 150)
    model.eval()
    functions = {
        "ours": lambda: longbench_answers.predict(model, tokenizer, asked),
        "official": lambda: official_loop(model, tokenizer, asked),
    }
    scores = {
        name: [
            longbench.score_prediction(question.task, answer, question.answers, question.all_classes)
            for question, answer in zip(asked, function(), strict=True)
        ]
        for name, function in functions.items()
    }
    assert scores["ours"] == scores["official"], scores
    seconds = alternate(functions, rounds, device)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    name = "longbench_time_over_official"
    what = f"{len(asked)} items of the stand-in, prompt and answer to {settings.max_length} tokens: "
    what += f"{median['ours']:.3g} / {median['official']:.3g} s"
    return {name: ratio(seconds, "ours", "official")}, {name: what}


def answering_figures(folder: Path, rounds: int, toy: bool, device: str) -> Figures:
    """What batches, and one cache that is allocated once a batch, gain a larger model: two questions of each of four
    lengths. On a GPU a model of a billion weights, and the tokens that it answers a second.

    Raises AssertionError: an answer differs; a GPU's products may round otherwise in another batch.
    """
    on_gpu = device == "cuda"
    lengths, answer, vocabulary = ([8, 12, 16, 24], 2, 257) if toy else ([64, 128, 256, 512], 16, 8192)
    if on_gpu and not toy:
        lengths, answer, vocabulary = [1024, 2048, 4096, 7936], 64, 128_256
    features, inner, layers, heads = (32, 64, 2, 2) if toy else (2048, 8192, 16, 32) if on_gpu else (768, 2048, 12, 12)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=features, intermediate_size=inner, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=8 if heads == 32 else heads, max_position_embeddings=8192,
        bos_token_id=BOS, eos_token_id=None, initializer_range=0.1,
    )  # fmt: skip
    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(config).to(device).eval()  # type: ignore[arg-type]
    draw, tokenizer = np.random.default_rng(0), tokenizers.byte_tokenizer()
    asked = [
        longbench_items.Question("lcc", "", draw.integers(1, 256, length).tolist(), answer, False, [], None, 0)
        for length in lengths
        for _ in range(2)
    ]

    def predict(groups: list[list[longbench_items.Question]]) -> list[str]:
        return [text for group in groups for text in longbench_answers.predict(model, tokenizer, group)]

    functions = {
        "single": lambda: predict([[one] for one in asked]),
        "equal lengths": lambda: predict([asked[place : place + 2] for place in range(0, len(asked), 2)]),
        "padded": lambda: predict([asked]),
        "default cache": lambda: official_loop(model, tokenizer, asked),
    }
    said = {name: function() for name, function in functions.items()}
    assert on_gpu or all(answers == said["single"] for answers in said.values()), said
    seconds = alternate(functions, rounds, device)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    figures, notes = {}, {}
    if on_gpu:
        figures["longbench_answered_tokens_per_s"] = len(asked) * answer / median["equal lengths"]
    for figure, (one, other) in {
        "longbench_equal_lengths_time_over_single": ("equal lengths", "single"),
        "longbench_padded_time_over_single": ("padded", "single"),
        "longbench_static_time_over_default_cache": ("single", "default cache"),
    }.items():
        figures[figure] = ratio(seconds, one, other)
        notes[figure] = (
            f"2 prompts of each of {lengths} tokens, {answer} answered: {median[one]:.3g} / {median[other]:.3g} s"
        )
    return figures, notes


def main() -> None:
    given = arguments(__doc__)
    set_verbosity_error()
    figures: dict[str, float] = {}
    notes: dict[str, str] = {}
    measures = (answering_figures, perplexity_figures, misalignment_figures, longppl_figures, longbench_figures)
    for measure in measures[:1] if given.device == "cuda" else measures:
        with tempfile.TemporaryDirectory(prefix="longshort-evaluation-") as folder:
            more, said = measure(Path(folder), given.rounds, given.toy, given.device)
        figures.update(more)
        notes.update(said)
        keep(figures, notes, given)
    report("Evaluation", figures, notes, given)


if __name__ == "__main__":
    sys.exit(main())
