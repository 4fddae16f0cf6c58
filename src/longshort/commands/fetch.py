"""`longshort fetch`: brings what a study takes from the Hugging Face hub into $HF_HOME, for jobs without a network."""

from __future__ import annotations

import glob
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from longshort.errors import StudyError
from longshort.metrics.catalog import METRICS
from longshort.records import hub
from longshort.records.publish import file_digest, in_words, write_json
from longshort.study import external
from longshort.study.schema import Study
from longshort.study.wiring import hub_parts

PATTERNS = {
    "weights": ["*.safetensors", "*.json"],
    "tokenizer": ["*.json", "*.model", "*.txt", "*.jinja", "tokenizer*"],
    "data.zip": ["data.zip"],
}
# The same weights once more, as the authors' own programs read them.
IGNORED = ["original/*", "consolidated*"]


def fetch(study: Study, say: Callable[[str], None]) -> None:
    """Fetches what is not here, or not as it was fetched.

    Raises:
        StudyError: something cannot be had, is not what the hub has, or not what the study says.
    """
    from huggingface_hub.errors import GatedRepoError
    from huggingface_hub.utils import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    parts = hub_parts(study)
    if not parts and not study.evaluations.harness:
        say("this study takes nothing from the hub")
    for part in parts:
        try:
            if part.kind != hub.LM_EVAL:
                _fetch(part, say)
        except GatedRepoError:
            raise StudyError(
                f"{part} is not fetched: its owner asks for an agreement. Accept it on the page of {part.name} and "
                "give the token of the same account (HF_TOKEN, or `hf auth login`)"
            ) from None
        except StudyError:
            raise
        except Exception as error:  # of the hub, the network, the data set's own format: nothing joins them
            raise StudyError(
                f"{part} is not fetched ({type(error).__name__}): {error} "
                "(if there is no network here, fetch where there is one)"
            ) from error
    external.check_models("what was fetched", study, fetched=True)
    if study.evaluations.harness:
        _fetch_tasks(study, say)


def _fetch(part: hub.Part, say: Callable[[str], None]) -> None:
    from huggingface_hub import HfApi, RepoFile, snapshot_download
    from huggingface_hub.utils import filter_repo_objects

    with suppress(hub.NotFetched):
        hub.folder(part)
        say(f"there, and verified: {part}")
        return
    about: Any = {"repo_type": part.kind, "revision": part.revision}
    patterns = PATTERNS.get(part.what) or _data_files(part)
    tree = HfApi().list_repo_tree(part.name, recursive=True, **about)
    there = {entry.path: entry.size for entry in tree if isinstance(entry, RepoFile)}
    names = sorted(filter_repo_objects(there, allow_patterns=patterns, ignore_patterns=IGNORED))
    if not names:
        raise StudyError(f"{part} is not fetched: the repository has no file like {', '.join(patterns)}")
    say(f"{part}: {len(names)} files, {in_words(sum(there[name] for name in names))}")
    folder = Path(snapshot_download(part.name, **about, allow_patterns=[glob.escape(name) for name in names]))
    for wrong in HfApi().verify_repo_checksums(part.name, **about).mismatches:
        if wrong["path"] in names:
            # The client takes a file of the right length for the right one.
            (folder / wrong["path"]).resolve().unlink()
            raise StudyError(
                f"{part}: {wrong['path']} is damaged: its {wrong['algorithm']} is {wrong['actual']}, the hub says "
                f"{wrong['expected']}. It is deleted; fetch again"
            )
    digests = {name: file_digest(folder / name) for name in names}
    write_json(hub.record(part), {"snapshot": str(folder.relative_to(hub.cache())), "files": digests})


def _data_files(part: hub.Part) -> list[str]:
    """The files of a configuration of a data set, all its splits, and what describes them."""
    from datasets import load_dataset_builder

    configuration = part.what.removeprefix(hub.CONFIGURATION)
    builder = load_dataset_builder(part.name, configuration or None, revision=part.revision)
    urls = [url for split in (builder.config.data_files or {}).values() for url in split]
    names = [url.split("@", 1)[1].split("/", 1)[1] for url in urls]
    return [glob.escape(name) for name in ("README.md", *names)]


def _fetch_tasks(study: Study, say: Callable[[str], None]) -> None:
    """What the tasks of lm_eval load, they load now, into the caches that they use later."""
    from longshort.data import tokenizers
    from longshort.evaluation import harness

    settings = METRICS["harness"].resolved(study.evaluations.harness, study.model.max_length)
    say(f"the data of {len(settings.tasks)} tasks of lm_eval")
    try:
        entries = harness.entries(tokenizers.load(study.data.tokenizer), settings)
        parts = set(hub_parts(study))
        digests = {task: entry.documents for entry in entries if (task := hub.task(entry.name)) in parts}
    except Exception as error:  # as above
        raise StudyError(f"the data of lm_eval's tasks is not fetched ({type(error).__name__}): {error}") from error
    for task, documents in digests.items():
        write_json(hub.record(task), {"documents": documents})
