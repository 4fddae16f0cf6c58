"""From a study's name to what the workflow wires: the one place that knows both kinds of study."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

from longshort.errors import StudyError
from longshort.jobs import engine
from longshort.study import external, resolve, resources
from longshort.study.resolve import CONFIG, SYNTHETIC
from longshort.study.wiring import ResolvedStudy
from longshort.synthetic import study as synthetic
from longshort.synthetic.study import ResolvedSynthetic

# Both answer what Wired asks; `kind` tells one from the other where a command needs more.
Resolved = ResolvedStudy | ResolvedSynthetic


class Budget(NamedTuple):
    """What the engine may plan for.

    Attributes:
        hours: device-hours.
        throughput: operations a second of a device, where no finished run tells; None: those that are stated.
    """

    hours: float
    throughput: float | None


def of_config(config: dict[str, Any]) -> Resolved:
    """The study that the engine was given: `--config study=NAME`.

    Raises:
        StudyError: as load; or a key that is not known, of which nothing would come; or a budget that is none.
    """
    if unknown := sorted(set(config) - {"study", "budget", "throughput"}):
        raise StudyError(
            f"--config {unknown[0]}={config[unknown[0]]}: unknown key; only study=NAME, budget=HOURS and, for that, "
            f"throughput=OPERATIONS are known here, all else stands in {CONFIG}/studies/NAME.yaml"
        )
    if config and "study" not in config:  # what is typed takes the place of all that a profile says under `config`
        key = sorted(config)[0]
        raise StudyError(f"--config {key}={config[key]}: of which study? Give study=NAME beside it")
    study = load(engine.as_typed(config.get("study", "demo"), resolve.names()))
    budget_of(config, study)
    return study


def budget_of(config: dict[str, Any], study: Resolved) -> Budget | None:
    """What the engine may plan for: `--config study=NAME budget=HOURS throughput=OPERATIONS`; None: anything.

    Raises:
        StudyError: it is no number of hours, or of operations, or the study's cost is not counted.
    """
    if "budget" not in config:
        if "throughput" in config:
            raise StudyError(
                f"--config throughput={config['throughput']!r} is for a budget; give budget=HOURS beside it"
            )
        return None
    hours = hours_of("--config budget=", config["budget"], study)
    if (typed := config.get("throughput")) is None:
        return Budget(hours, None)
    throughput = _number(typed)
    if not 1 <= throughput <= 1e30:
        raise StudyError(f"--config throughput={typed!r}: give operations a second of a device, such as 4e14")
    return Budget(hours, throughput)


def hours_of(given: str, value: Any, study: Resolved) -> float:
    """A budget as it was typed, with or without an h behind it.

    Args:
        given: where it was typed.

    Raises:
        StudyError: as budget_of.
    """
    hours = _number(value.removesuffix("h") if isinstance(value, str) else value)
    if not hours >= 0:  # nan neither
        raise StudyError(f"{given}{value!r}: give device-hours, such as 200h")
    if study.kind == "synthetic":
        raise StudyError(f"study {study.name} is synthetic: its cost is not counted; leave the budget out")
    return hours


def _number(typed: Any) -> float:
    """nan where it is none."""
    try:
        return math.nan if isinstance(typed, bool) else float(typed)
    except (TypeError, ValueError):
        return math.nan


def load(name: str, config: Path = CONFIG, here: bool = True) -> Resolved:
    """A study of either kind.

    Args:
        here: what it takes from elsewhere is looked at, too, and has to be there.

    Raises:
        StudyError: with study, arm, key, value and remedy of every mistake found.
    """
    content = resolve.content_of(name, config)
    if content.get("kind") == SYNTHETIC:
        return synthetic.resolve(name, content, resolve.or_study_error(resources.site))
    return resolve.load(name, config, here)


def every(config: Path = CONFIG) -> dict[str, Resolved]:
    """All studies in config/studies, by name, whether or not their models and corpora are here.

    Raises:
        StudyError: one of them is wrong, or there is none: then this is another folder than the repository's.
    """
    if not resolve.names(config):
        raise StudyError(resolve.nothing_here(config))
    return {path.stem: load(path.stem, config, here=False) for path in sorted((config / "studies").glob("*.yaml"))}


def check_fetched(study: Resolved) -> None:
    """What was fetched is what the study says; what lies in a folder was looked at when the study was read.

    Raises:
        StudyError: names folder, fault and remedy.
    """
    if study.kind == "language-models":
        external.check_models(f"study {study.name}", study.study, fetched=True)
