"""From a study's name to what the workflow wires: the one place that knows both kinds of study."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from longshort.errors import StudyError
from longshort.jobs import engine
from longshort.study import external, resolve, resources
from longshort.study.resolve import CONFIG, SYNTHETIC
from longshort.study.wiring import ResolvedStudy
from longshort.synthetic import study as synthetic
from longshort.synthetic.study import ResolvedSynthetic

# Both answer what Wired asks; `kind` tells one from the other where a command needs more.
Resolved = ResolvedStudy | ResolvedSynthetic


def of_config(config: dict[str, Any]) -> Resolved:
    """The study that the engine was given: `--config study=NAME`.

    Raises:
        StudyError: as load; or a key that is not known, of which nothing would come.
    """
    if unknown := sorted(set(config) - {"study"}):
        raise StudyError(
            f"--config {unknown[0]}={config[unknown[0]]}: unknown key; only study=NAME is known here, all else "
            f"stands in {CONFIG}/studies/NAME.yaml"
        )
    return load(engine.as_typed(config.get("study", "demo"), resolve.names()))


def load(name: str, config: Path = CONFIG) -> Resolved:
    """A study of either kind.

    Raises:
        StudyError: with study, arm, key, value and remedy of every mistake found.
    """
    content = resolve.content_of(name, config)
    if content.get("kind") == SYNTHETIC:
        return synthetic.resolve(name, content, resolve.or_study_error(resources.site))
    return resolve.load(name, config)


def every(config: Path = CONFIG) -> dict[str, Resolved]:
    """All studies in config/studies, by name.

    Raises:
        StudyError: one of them is wrong.
    """
    return {path.stem: load(path.stem, config) for path in sorted((config / "studies").glob("*.yaml"))}


def check_fetched(study: Resolved) -> None:
    """What was fetched is what the study says; what lies in a folder was looked at when the study was read.

    Raises:
        StudyError: names folder, fault and remedy.
    """
    if study.kind == "language-models":
        external.check_models(f"study {study.name}", study.study, fetched=True)
