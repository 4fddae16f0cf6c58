"""`longshort new`: a study of one's own, its values read from the model, the texts and the machine, with reasons."""

from __future__ import annotations

import json
import math
import os
import re
import textwrap
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

from longshort.commands import choices, survey
from longshort.commands.choices import Fit, Lengths, Split
from longshort.commands.survey import Machine, OwnModel, OwnTexts
from longshort.errors import StudyError
from longshort.identity.spec import canonical
from longshort.records import hub
from longshort.records.publish import file_in_place, in_words
from longshort.study import checks, resolve
from longshort.study.files import text, yaml_mapping
from longshort.study.parsing import parse
from longshort.study.schema import Arms

OF_HIDDEN_LAYERS = ("hidden", "hidden+output")
ARMS = ("baseline", "constant", "step-linear", *OF_HIDDEN_LAYERS)
STEPS = {"gpu": 200, "cpu": 40}
SEQUENCES, GRID = {"gpu": 512, "cpu": 64}, {"gpu": 128, "cpu": 0}
WORD = re.compile(r"[A-Za-z][A-Za-z0-9+-]*")
IMPORTS = 1500  # MB of a process once torch and transformers are imported


class Asked(NamedTuple):
    """What a person typed; None: to be chosen."""

    name: str
    model: str
    corpus: str
    revision: str | None = None
    layers: int | None = None
    positions: int | None = None
    corpus_revision: str | None = None
    column: str = "text"
    train_length: int | None = None
    test_length: int | None = None
    device: str | None = None
    memory: float | None = None
    processes: int = 1
    arms: tuple[str, ...] = ARMS


class Chosen(NamedTuple):
    """What was asked and found, and what is chosen for it; batch: windows a step."""

    asked: Asked
    machine: Machine
    model: OwnModel
    texts: OwnTexts
    documents: Split
    lengths: Lengths
    batch: int
    fit: Fit

    @property
    def precision(self) -> str:
        return choices.precision(self.model, self.machine.device)

    @property
    def tested(self) -> int | None:
        """How many documents can be read at the test length; None where that is not known."""
        return self.documents.at_least("test", self.lengths.test)


def write(asked: Asked, config: Path = resolve.CONFIG) -> tuple[Path, list[str]]:
    """Writes config/studies/NAME.yaml, which `longshort check` takes as it is.

    Returns:
        The file, and what was chosen and why, a line each.

    Raises:
        StudyError: the name is taken or none; the model or the corpus is not what it must be; or no lengths and batch
            fit. Nothing is written then.
    """
    resolve.check_name(asked.name, config)
    path = config / "studies" / f"{asked.name}.yaml"
    if os.path.lexists(path):
        raise StudyError(f"{path} is there already and is not overwritten: give another name, or delete it first")
    chosen = _chosen(asked, config)
    reasons = _reasons(chosen)
    indented = ("corpus", "model")  # below `data` and `model`
    why = {f"why_{key}": _comment(reason, 2 if key in indented else 0) for key, reason in reasons.items()}
    template = Template(text(config / "templates/study.yaml"))
    with file_in_place(path) as part:
        part.write_text(template.substitute({**_values(chosen), **why}), encoding="utf-8")
        resolve.of_content(asked.name, yaml_mapping(part), config)
    return path, list(reasons.values())


def next_steps(asked: Asked) -> list[str]:
    """What a person types next, a line each."""
    lacking = [part for part in resolve.load(asked.name).hub_parts() if not hub.was_fetched(part)]
    machine = survey.machine(asked.device, asked.memory)
    # One job at a time on a GPU, as each begins at the first one; on CPUs as many as there is memory for.
    limit = "devices=1" if machine.device == "gpu" else f"mem_mb={machine.memory / 1e6:.0f}"
    fetch = [f"longshort fetch --study {asked.name}      # once, where there is a network"] if lacking else []
    return [
        *fetch,
        f"longshort check --study {asked.name}",
        f"longshort plan --study {asked.name}       # what would run, and what it would cost",
        f"snakemake all --cores {survey.cores()} --resources {limit} --config study={asked.name}",
    ]


def _chosen(asked: Asked, config: Path) -> Chosen:
    """
    Raises:
        StudyError: as write.
    """
    where = f"study {asked.name}"
    arms = parse(Arms, yaml_mapping(config / "arms.yaml"), f"{config}/arms.yaml", None)
    for arm in asked.arms:
        checks.refuse_unknown_arm(where, arm, arms)
    longer = any(arms.arms[arm].lengths is not None for arm in asked.arms)  # trained at the test length
    machine = survey.machine(asked.device, asked.memory)
    model = survey.model(where, asked.model, asked.revision, asked.layers, asked.positions)
    if asked.arms == ARMS and not model.names_its_blocks:
        asked = asked._replace(arms=tuple(arm for arm in ARMS if arm not in OF_HIDDEN_LAYERS))
    texts = survey.texts(where, asked.corpus, asked.corpus_revision, asked.column, model.tokenizer)
    documents = choices.split(texts)
    train = asked.train_length
    while True:
        lengths = choices.lengths(where, model, documents, machine.device, train, asked.test_length)
        longest = lengths.test if longer else lengths.train
        batch = _batch(machine.device, asked.processes, lengths.train, longest)
        fit = choices.training(where, model, machine, lengths.train, longest, batch, asked.processes, config)
        if fit is not None:
            return Chosen(asked, machine, model, texts, documents, lengths, batch, fit)
        if asked.train_length is not None or lengths.train <= choices.SHORTEST:
            raise choices.too_large(where, model, machine, lengths.train, asked.processes)
        train = lengths.train // 2


def _batch(device: str, processes: int, train: int, longest: int) -> int:
    """Windows a step that all processes share evenly, as many tokens in windows of the longest arm too."""
    together = longest * processes
    each = together // math.gcd(together, train)
    return each * math.ceil(choices.BATCH[device] / each)


def _values(chosen: Chosen) -> dict[str, str]:
    """What the template asks for, as YAML."""
    asked, model, lengths, fit = chosen.asked, chosen.model, chosen.lengths, chosen.fit
    device, steps = chosen.machine.device, STEPS[chosen.machine.device]
    ratios = [ratio for ratio in (2, 4, choices.LONGEST_RATIO) if ratio * lengths.train <= lengths.test]
    validated, most = chosen.documents.at_least("validation", lengths.test), choices.MANY[device]
    # A model is loaded into main memory, and is there twice while it is moved or saved.
    loaded = 2 * (4 if chosen.precision == "fp32" else 2) * model.shape[0].weights / 1e6
    training = asked.processes * (IMPORTS + (loaded if device == "gpu" else fit.bytes / 1e6))
    values = {
        "title": f"Long-short alignment of {asked.model} on {asked.corpus}",
        "corpus": canonical(chosen.texts.corpus),
        "tokenizer": {"kind": "pretrained", "name": asked.model, "revision": model.weights.revision},
        "validation": chosen.documents.validation,
        "test": chosen.documents.test,
        "model": asked.model,
        "revision": model.weights.revision,
        "layers": model.layers,
        "max_length": lengths.max_length,
        "rope": lengths.factor and {"kind": "yarn", "factor": lengths.factor},
        "l_train": lengths.train,
        "l_test": lengths.test,
        "steps": steps,
        "batch": chosen.batch,
        "micro_batch": fit.micro_batch,
        "warmup": max(1, round(0.03 * steps)),
        "precision": chosen.precision,
        "processes": asked.processes,
        "threads": max(1, survey.cores() // asked.processes) if device == "cpu" else 1,
        "deepspeed": fit.deepspeed,
        "checkpointing": fit.checkpointing,
        "checkpoints": [steps // 2, steps],
        "arms": list(asked.arms),
        "lengths": sorted({lengths.train, lengths.test, *(ratio * lengths.train for ratio in ratios)}),
        "documents": most if chosen.tested is None else min(most, chosen.tested),
        "temperatures": 8 if validated is None else min(8, validated),
        "sequences": SEQUENCES[device],
        "beyond": ratios,
        "grid": GRID[device],
        "device": device,
        "training_memory": 1000 * math.ceil(training / 1000),
        "evaluation_memory": 1000 * math.ceil((IMPORTS + loaded) / 1000),
    }
    return {"name": asked.name, **{key: _yaml(value) for key, value in values.items()}}


def _yaml(value: Any) -> str:
    """JSON is YAML, but for words, which read better without quotes."""
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {_yaml(some)}' for key, some in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_yaml, value))}]"
    if isinstance(value, str) and value.lower() not in ("true", "false", "null") and WORD.fullmatch(value):
        return value
    return json.dumps(value, ensure_ascii=False)


# ---- in words --------------------------------------------------------------------------------------------------------


def _reasons(chosen: Chosen) -> dict[str, str]:
    """Section of the file -> what was chosen for it, and why."""
    return {
        "corpus": _of_corpus(chosen.texts, chosen.documents),
        "model": _of_model(chosen.model, chosen.lengths),
        "lengths": _of_lengths(chosen),
        "training": _of_training(chosen),
        "evaluations": _of_evaluations(chosen),
        "needs": (f"needs: {chosen.machine.device}, {_why_device(chosen)}; main memory in MB, by the same estimate."),
    }


def _why_device(chosen: Chosen) -> str:
    if chosen.asked.device:
        return "as asked"
    return "as no GPU is here" if chosen.machine.device == "cpu" else "as one is here"


def _of_corpus(texts: OwnTexts, documents: Split) -> str:
    if documents.tokens is None:
        return (
            "corpus: it is not here before `longshort fetch`, so that the length of its documents is not known. An "
            "evaluation that finds too few long ones says so: lower its `documents`, or the lengths."
        )
    counts = {name: len(tokens) for name, tokens in documents.tokens.items()}
    total = sum(map(sum, documents.tokens.values()))
    looked_at = "" if texts.whole else f" Only its first documents were looked at, of about {texts.documents:,}."
    return (
        f"corpus: {counts['train']} documents for training, {counts['validation']} for validation, {counts['test']} "
        f"for tests; {total:,} tokens, counted {texts.counted}.{looked_at}"
    )


def _of_model(model: OwnModel, lengths: Lengths) -> str:
    reach = model.reach
    positions = f"{reach.tokens:,} positions ({reach.key})" if reach.tokens else "positions without a stated end"
    if model.tokenizer is None:
        read = (
            "as was said: its files are not here. `longshort fetch` brings them, and `longshort check` then holds them "
            "against this"
        )
    else:
        bos = (
            "BOS" if model.tokenizer.bos_token_id is not None else "no BOS, so that a text's first token is not scored"
        )
        read = f"by its own files; weights in {model.dtype}, a tokenizer with {bos}"
    extended = "It is not extended, as the lengths are within them."
    if lengths.factor is not None:
        extended = (
            f"The test length is beyond them: YaRN stretches them by {lengths.factor}, as it adds no weights; other "
            "ways stand in config/README.md."
        )
    hidden = "" if model.names_its_blocks else " Its blocks are not in `layers`, so that no arm aligns hidden layers."
    return f"model: {model.layers} blocks, {positions}, {read}. {extended}{hidden}"


def _of_lengths(chosen: Chosen) -> str:
    asked, lengths = chosen.asked, chosen.lengths
    limits = [f"{choices.LENGTH[chosen.machine.device]} to train on a {chosen.machine.device}"]
    limits += ["the model's positions"] if chosen.model.reach.tokens else []
    limits += ["the documents"] if chosen.documents.tokens else []
    train, test = ("as asked" if given else "chosen" for given in (asked.train_length, asked.test_length))
    return (
        f"lengths: train {lengths.train} ({train}), test {lengths.test} ({test}), {lengths.test / lengths.train:g} "
        f"times as long, where up to {choices.LONGEST_RATIO} is usual. Limits are {', '.join(limits)} and the memory."
    )


def _of_training(chosen: Chosen) -> str:
    fit, machine, device = chosen.fit, chosen.machine, chosen.machine.device
    recomputing = ", activations recomputed" if fit.checkpointing else ""
    precision = "as CPUs gain little by less" if device == "cpu" else "as far as the files tell what its weights are"
    steps = "a first look; raise them" if device == "cpu" else "as many as in the paper"
    shape, source = chosen.model.shape
    return (
        f"training: {chosen.batch} windows a step, {fit.micro_batch} at a time in a process, with {fit.deepspeed}"
        f"{recomputing}: the first of the known ways, from the fastest to the leanest, that fits. A process takes "
        f"about {in_words(fit.bytes)} ({shape.weights:.3g} weights, {source}); {choices.SHARE:.0%} of "
        f"{machine.source} may be taken. {chosen.precision}, {precision}. {STEPS[device]} steps are {steps}."
    )


def _of_evaluations(chosen: Chosen) -> str:
    device = chosen.machine.device
    there = "" if chosen.tested is None else f", of {chosen.tested} there are"
    fewer = "fewer than the 512 that a claim needs" if device == "cpu" else "as many as a claim needs"
    return (
        f"evaluations: perplexity of at most {choices.MANY[device]} test documents that are as long as the test length"
        f"{there}; misalignment of {SEQUENCES[device]} sequences, {fewer}."
    )


def _comment(reason: str, indent: int) -> str:
    margin = " " * indent + "# "
    return textwrap.fill(reason, 120, initial_indent=margin, subsequent_indent=margin, break_on_hyphens=False)
