"""The metrics: one record each, all that the rest of the program knows of it.

A new metric is a module that measures (see stage.py) and a record here, from which its rule, checks, cost, columns and
plots follow. Imports no torch: everything that parses the Snakefile imports it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from longshort.metrics import settings
from longshort.metrics.record import Column, Metric, Plot, Score, Settings
from longshort.records import layout

TASKS = (
    *("qasper", "multifieldqa_en", "hotpotqa", "2wikimqa", "gov_report", "multi_news", "trec", "triviaqa", "samsum"),
    *("passage_count", "passage_retrieval_en", "lcc", "repobench-p"),
)
BUCKETS = ("0-4k", "4-8k", "8k+")
OFFICIAL_ITEMS = 3668  # of the 13 tasks of LongBench-E
HARNESS_ITEMS = 1000  # of a task of lm_eval without a limit: only the task's own data would tell


# ---- perplexity ------------------------------------------------------------------------------------------------------


def _perplexity_column(metric: str, documents: str, length: int, header: str, block: str) -> Column:
    key = f"{metric}@{length}"
    return Column(key, metric, length, header.format(length), False, 2, block, documents=documents, relative=True)


def _raw_and_fitted(asked: Settings, block: str) -> tuple[list[Column], list[Column]]:
    """Perplexities at every length as the model answers, and at the temperature that fits it."""
    lengths = sorted(asked["lengths"])
    raw = [_perplexity_column("perplexity", "nll", length, "PPL {}", block) for length in lengths]
    at_t = "perplexity_checkpoint_t", "nll_checkpoint_t"
    fitted = [_perplexity_column(*at_t, length, "PPL {} at T", "calibration") for length in lengths]
    return raw, fitted if asked["temperature_documents"] else []


def _blocks(asked: Settings, block: str) -> list[Column]:
    """Perplexities by the second protocol, where one is asked for."""
    read = "perplexity_block", "nll_block"
    lengths = sorted(asked["lengths"]) if asked.get("beside") else []
    return [_perplexity_column(*read, length, "PPL {} in blocks", block) for length in lengths]


def _accuracy(length: int, block: str) -> Column:
    header = f"accuracy {length}"
    return Column(f"accuracy@{length}", "accuracy", length, header, True, 3, block, documents="accuracy")


def _perplexity_columns(asked: Settings, l_train: int) -> list[Column]:
    lengths = sorted(asked["lengths"])
    raw, fitted = _raw_and_fitted(asked, "quality")
    ece = [
        Column(f"ece@{length}", "ece", length, f"ECE {length}", False, 3, "calibration")
        for length in dict.fromkeys((lengths[0], lengths[-1]))
    ]
    return [*raw, *_blocks(asked, "quality"), _accuracy(lengths[-1], "quality"), *fitted, *ece]


def _lengths(asked: Settings) -> list[Column]:
    raw, fitted = _raw_and_fitted(asked, "perplexity")
    accuracies = [_accuracy(length, "accuracy") for length in sorted(asked["lengths"])]
    return [*raw, *_blocks(asked, "perplexity"), *accuracies, *fitted]


def _perplexity_scores(asked: Settings) -> list[Score]:
    longest = max(asked["lengths"])
    return [Score("perplexity", longest, None, f"log perplexity at {longest}", log=True)]


def _perplexity_tokens(asked: Settings, l_train: int) -> float:
    protocols = [asked["protocol"], *([asked["beside"]] if asked["beside"] else [])]
    return float(asked["documents"] * sum(_read_of_a_document(one, asked["lengths"]) for one in protocols))


def _read_of_a_document(protocol: Settings, lengths: list[int]) -> int:
    if protocol["kind"] not in ("block", "sliding"):
        return sum(lengths)
    whole = protocol.get("tokens") or max(lengths)
    if protocol["kind"] == "block":
        return sum(whole // length * length for length in lengths)
    return sum(length * (1 + math.ceil(max(0, whole - length) / min(protocol["stride"], length))) for length in lengths)


PERPLEXITY = Metric(
    name="perplexity",
    description="perplexity on long sequences",
    settings=settings.Perplexity,
    module="longshort.evaluation.perplexity",
    rows=(
        *("perplexity", "perplexity_checkpoint_t", "perplexity_length_t", "temperature", "accuracy", "ece"),
        *("nll", "nll_checkpoint_t", "nll_se", "nll_by_position", "perplexity_block", "nll_block"),
    ),
    columns=_perplexity_columns,
    tokens=_perplexity_tokens,
    longest=lambda asked, l_train: ("lengths", max(asked["lengths"])),
    tables={"lengths": _lengths},
    legend={
        "perplexity": "PPL L: perplexity at a context of L tokens. accuracy: next token, 0 to 1.",
        "perplexity_block": "PPL L in blocks: the first tokens of each document in blocks of L, each read by itself.",
        "perplexity_checkpoint_t": "PPL L at T: with the logits divided by the temperature that fits validation "
        "documents best, one for each checkpoint. A difference that is gone there was calibration alone.",
        "ece": "ECE L: expected calibration error of the next token, 15 bins, 0 to 1.",
    },
    plots=lambda asked: [
        Plot(
            name="perplexity",
            drawing="against-length",
            caption="Perplexity against context length, and its difference to the baseline.",
            row="perplexity",
        )
    ],
    scores=_perplexity_scores,
)

# ---- misalignment ----------------------------------------------------------------------------------------------------


def _misalignment_column(metric: str, length: int, header: str) -> Column:
    key = f"{metric}@{length}"
    return Column(key, metric, length, header.format(length), False, 3, "alignment", documents=metric)


def _misalignment_columns(asked: Settings, l_train: int) -> list[Column]:
    longer = sorted(l_train * int(factor) for factor in asked["beyond"])
    symkl = [_misalignment_column("symkl", length, "symKL {}") for length in [l_train, *longer]]
    return [_misalignment_column("sce", l_train, "SCE {}"), *symkl]


def _misalignment_tokens(asked: Settings, l_train: int) -> float:
    contexts = asked["lengths_per_sequence"] + sum(asked["beyond"])
    # The grid's own contexts are l_train / 4, / 2 and l_train.
    in_grid = min(asked["grid_sequences"], asked["sequences"])
    return float(asked["sequences"] * contexts + 1.75 * in_grid) * l_train


def _misalignment_plots(asked: Settings) -> list[Plot]:
    plots = [Plot("misalignment", "misalignment", "Long-Short Misalignment inside the training range and beyond it.")]
    if asked.get("grid_sequences", 0):
        plots.append(Plot("misalignment-grid", "misalignment-grid", "Symmetric KL of every pair of context lengths."))
    return plots


MISALIGNMENT = Metric(
    name="misalignment",
    description="Long-Short Misalignment",
    settings=settings.Misalignment,
    module="longshort.evaluation.misalignment",
    rows=(
        *("misalignment", "sce", "entropy_floor", "symkl", "sce_se", "entropy_floor_se", "symkl_se"),
        *("sce_grid", "symkl_grid"),
    ),
    columns=_misalignment_columns,
    tokens=_misalignment_tokens,
    longest=lambda asked, l_train: ("beyond", max(asked["beyond"], default=1) * l_train),
    tables={},
    legend={
        "symkl": "SCE and symKL in nats; {l_train}: both contexts between {half} and {l_train} tokens; longer: one of "
        "the two contexts has that many tokens. SCE is mostly entropy: judge alignment by symKL.",
    },
    plots=_misalignment_plots,
)

# ---- LongPPL ---------------------------------------------------------------------------------------------------------


def _longppl_columns(asked: Settings, l_train: int) -> list[Column]:
    lengths = sorted(asked["lengths"])
    block = "quality"
    return [
        *(_perplexity_column("longppl", "longppl_nll", length, "LongPPL {}", block) for length in lengths),
        *(
            Column(f"lsd@{length}", "lsd", length, f"LSD {length}", True, 3, block, documents="lsd")
            for length in lengths
        ),
        *(
            Column(f"key_tokens@{length}", "key_tokens", length, f"key tokens {length}", True, 0, block, compared=False)
            for length in lengths
        ),
    ]


def _longppl_tokens(asked: Settings, l_train: int) -> float:
    """At most: a short context is read where it has key tokens."""
    longest = max(asked["lengths"])
    contexts = -(-(longest - asked["short"]) // asked["stride"])
    return float(asked["documents"] * (longest + contexts * (asked["short"] + asked["stride"])))


def _longppl_scores(asked: Settings) -> list[Score]:
    longest = max(asked["lengths"])
    return [Score("longppl", longest, None, f"log LongPPL at {longest}", log=True)]


def _longppl_files(asked: Settings, data: str) -> list[str]:
    search = settings.LongPPL.model_validate(asked).key_tokens
    return [layout.key_tokens(layout.data_folder(data), search.id).record]


LONGPPL = Metric(
    name="longppl",
    description="perplexity on the tokens that need a long context (LongPPL)",
    settings=settings.LongPPL,
    module="longshort.evaluation.longppl",
    rows=("longppl", "longppl_nll", "longppl_nll_se", "lsd", "lsd_se", "key_tokens", "documents_without_key_tokens"),
    columns=_longppl_columns,
    tokens=_longppl_tokens,
    longest=lambda asked, l_train: ("lengths", max(asked["lengths"])),
    tables={},
    legend={
        "longppl": "LongPPL L: perplexity, at a context of L tokens, on the key tokens alone, which a fixed evaluator "
        "predicts much better with a long context. key tokens L: how many these are.",
        "lsd": "LSD L: nats that the long context gains the measured model on a key token, on average.",
    },
    scores=_longppl_scores,
    files=_longppl_files,
    named=lambda asked: [asked["evaluator"]["name"]] if asked["evaluator"]["kind"] == "pretrained" else [],
)

# ---- LongBench-E -----------------------------------------------------------------------------------------------------


def _longbench_column(key: str, header: str, task: str) -> Column:
    return Column(key, "longbench_e", None, header, True, 1, "quality", task=task, documents="longbench_e")


def _buckets(asked: Settings) -> list[Column]:
    # The mean of bucket means is another weighting of the items than the mean over all.
    columns = [
        _longbench_column(f"longbench_e:{bucket}", f"{bucket} words", f"overall:{bucket}")._replace(documents=None)
        for bucket in BUCKETS
    ]
    mean = _longbench_column("longbench_e:bucket-mean", "mean of buckets", "overall-bucket-mean")
    overall = _longbench_column("longbench_e", "mean of documents", "overall")
    return [*columns, mean._replace(documents=None), overall]


def _longbench_tokens(asked: Settings, l_train: int) -> float:
    source = asked["source"]
    items = len(TASKS) * source["items_per_task"] if source["kind"] == "stand-in" else OFFICIAL_ITEMS
    return float(items * asked["max_length"])


def _longbench_files(asked: Settings, data: str) -> list[str]:
    source = asked["source"]
    match source["kind"]:
        case "folder":
            return sorted(str(path) for path in Path(source["path"]).glob("*_e.jsonl"))
        case "zip":
            return [source["path"]]
        case "stand-in":
            return [layout.standin_manifest(layout.data_folder(data), source["items_per_task"])]
    return []  # a repository's revision says what is in it


LONGBENCH_E = Metric(
    name="longbench_e",
    description="LongBench-E",
    settings=settings.LongBench,
    module="longshort.evaluation.longbench",
    rows=("longbench_e",),
    columns=lambda asked, l_train: [_longbench_column("longbench_e", "LongBench-E (%)", "overall")],
    tokens=_longbench_tokens,
    longest=lambda asked, l_train: ("max_length", asked["max_length"]),
    tables={
        "tasks": lambda asked: [_longbench_column(f"longbench_e:{task}", task, task) for task in TASKS],
        "buckets": _buckets,
    },
    legend={},
    plots=lambda asked: [Plot("tasks", "tasks", "LongBench-E by task, as differences to the baseline.")],
    scores=lambda asked: [Score("longbench_e", None, "overall", "LongBench-E (%)")],
    files=_longbench_files,
    named=lambda asked: [asked["source"]["path"]] if "path" in asked["source"] else [],
    keeps_items=True,
)

# ---- LongBench-E by likelihood ---------------------------------------------------------------------------------------


def _likelihood_column(metric: str, header: str, higher_is_better: bool) -> Column:
    return Column(metric, metric, None, header, higher_is_better, 3, "quality", task="overall", documents=metric)


LONGBENCH_LIKELIHOOD = Metric(
    name="longbench_likelihood",
    description="LongBench-E by the likelihood of the reference answers",
    settings=settings.LongBenchLikelihood,
    module="longshort.evaluation.longbench_likelihood",
    rows=("longbench_likelihood", "longbench_quarter", "longbench_gain"),
    columns=lambda asked, l_train: [
        _likelihood_column("longbench_likelihood", "LongBench-E answers (nats)", False),
        _likelihood_column("longbench_gain", "gain from context (nats)", True),
    ],
    tokens=lambda asked, l_train: 1.25 * _longbench_tokens(asked, l_train),
    longest=lambda asked, l_train: ("max_length", asked["max_length"]),
    tables={},
    legend={
        "longbench_likelihood": "LongBench-E answers: mean loss of a token of the reference answer, given the prompt. "
        "gain from context: how much higher it is given the last quarter of the prompt alone. Means over tasks.",
    },
    scores=lambda asked: [Score("longbench_likelihood", None, "overall", "LongBench-E answers (nats)")],
    files=_longbench_files,
    named=LONGBENCH_E.named,
)

# ---- tasks of lm_eval ------------------------------------------------------------------------------------------------


def _harness_columns(asked: Settings, l_train: int) -> list[Column]:
    return [
        Column(f"harness:{task}", f"harness:{task}", None, task, task not in asked["lower_is_better"], 3, "quality")
        for task in asked["tasks"]
    ]


def task_files(folder: str) -> list[Path]:
    """One's own task files of the harness, with what lies beside them (prompts, functions; lm_eval reads hidden files,
    too), but not what Python, an editor, a file manager or git keeps there."""
    root, others = Path(folder), {"__pycache__", ".git", ".ipynb_checkpoints", ".DS_Store"}
    files = (path for path in root.rglob("*") if path.is_file() and not path.name.endswith((".pyc", ".swp", "~")))
    return sorted(path for path in files if not others & set(path.relative_to(root).parts))


HARNESS = Metric(
    name="harness",
    description="tasks of lm_eval; a list of names is short for {tasks: [...]}",
    settings=settings.HarnessOrTasks,
    module="longshort.evaluation.harness",
    rows=("harness",),
    columns=_harness_columns,
    tokens=lambda asked, l_train: len(asked["tasks"]) * (asked["limit"] or HARNESS_ITEMS) * asked["max_length"],
    longest=lambda asked, l_train: ("max_length", asked["max_length"]) if asked["max_length"] else None,
    tables={},
    legend={},
    files=lambda asked, data: (
        [str(path) for path in task_files(asked["include_path"])] if asked["include_path"] else []
    ),
    named=lambda asked: [asked["include_path"]] if asked["include_path"] else [],
    resolved=lambda asked, max_length: asked.model_copy(update={"max_length": asked.max_length or max_length}),
    keeps_items=True,
)

# In the order of a table's columns.
METRICS = {
    metric.name: metric for metric in (LONGBENCH_E, LONGBENCH_LIKELIHOOD, PERPLEXITY, LONGPPL, HARNESS, MISALIGNMENT)
}


def of_row(metric: str) -> Metric:
    """The record of the metric that a row of the long table holds.

    Raises:
        ValueError: no record has such rows.
    """
    for record in METRICS.values():
        if metric.split(":")[0] in record.rows:
            return record
    raise ValueError(f"no evaluation of the catalogue measures {metric!r}; collect the results again")


# Of every study.
EFFECTS = Plot("effects", "effects", "The effects that the study claims, with intervals that hold together.")
_TRAINING = (
    Plot("gain", "gain", "What each arm costs against what it gains."),
    Plot("schedules", "schedules", "The weights of the alignment as they were used."),
    Plot("training", "training", "Training curves."),
)
_BEST_ALPHA = Plot(
    name="alpha-by-length",
    drawing="alpha-by-length",
    caption="The best alpha by the length that is tested, beside what two claims predict.",
)
_CORRELATION = Plot(
    name="correlation",
    drawing="correlation",
    caption="Misalignment and training loss against long-context scores, over the checkpoints of all runs.",
)


def scores_of(evaluations: Mapping[str, Settings]) -> list[Score]:
    """The long-context results among a study's numbers; evaluations: metric -> what is asked of it."""
    return [score for metric, asked in evaluations.items() for score in METRICS[metric].scores(asked)]


def plots_of(evaluations: Mapping[str, Settings], best_alpha: bool, effects: bool) -> list[Plot]:
    """A study's plots in the order of the report: its effects, those of its metrics, what explains them, training.

    best_alpha: the study has a table of that, hence the plot. effects: it names a primary number.
    """
    plots = [plot for metric, asked in evaluations.items() for plot in METRICS[metric].plots(asked)]
    explained = "misalignment" in evaluations and bool(scores_of(evaluations))
    first = [EFFECTS] if effects else []
    more = ([_CORRELATION] if explained else []) + ([_BEST_ALPHA] if best_alpha else [])
    return [*first, *plots, *more, *_TRAINING]
