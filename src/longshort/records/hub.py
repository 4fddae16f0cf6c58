"""What a study takes from the Hugging Face hub: `longshort fetch` brings it, jobs read it from disk and nowhere else.

It lies in the hub's own cache ($HF_HOME), and $HF_HOME/longshort/ says which files were fetched for what, with their
SHA-256: a job reads no file that is not in there, and none that has changed since.
"""

from __future__ import annotations

import functools
import socket
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from longshort.errors import UserError
from longshort.records.publish import Altered, altered, read_json

CONFIGURATION = "documents "
LM_EVAL = "lm_eval"  # kind of what the tasks of lm_eval load
SELF = {"localhost", "127.0.0.1", "::1", "", None}


class HubModel(Protocol):
    """A model or a tokenizer, as a study names it: `revision` is null for a local folder."""

    @property
    def name(self) -> str: ...

    @property
    def revision(self) -> str | None: ...


class Dataset(Protocol):
    """A dataset, as a study names it."""

    @property
    def dataset(self) -> str: ...

    @property
    def revision(self) -> str: ...


class Corpus(Dataset, Protocol):
    @property
    def configuration(self) -> str | None: ...


class Part(NamedTuple):
    """Files of a repository that are used together; or (kind lm_eval) the data of a task."""

    kind: str  # model, dataset or lm_eval
    name: str
    revision: str
    what: str

    def __str__(self) -> str:
        return f"{self.what.strip()} of {self.kind} {self.name} at revision {self.revision}"


class NotFetched(UserError):
    """A part is not here, or not as it was fetched."""


class NoNetwork(ConnectionError):
    """A job asked for another machine."""


def weights(model: HubModel) -> Part | None:
    """The part that holds a model's weights; None where the model is a local folder, of which nothing is fetched."""
    return _of_model(model, "weights")


def tokenizer(tokenizer: HubModel) -> Part | None:
    """The part that holds a tokenizer; None where it is in a local folder."""
    return _of_model(tokenizer, "tokenizer")


def corpus(corpus: Corpus) -> Part | None:
    """The part that holds the documents of a dataset; None where it is a local folder."""
    if Path(corpus.dataset).is_dir():
        return None
    return Part("dataset", corpus.dataset, corpus.revision, f"{CONFIGURATION}{corpus.configuration or ''}")


def longbench(source: Dataset) -> Part:
    """The part that holds the items of LongBench-E."""
    return Part("dataset", source.dataset, source.revision, "data.zip")


def task(name: str) -> Part:
    """The part that holds the documents of an entry of the harness' `tasks`."""
    return Part(LM_EVAL, name, version("lm_eval"), "data")


@functools.cache
def documents(task: Part) -> str | None:
    """The digest of a task's documents as they were fetched, the same one as long as this process lives; None where
    they were not, or by a version that noted none."""
    return read_json(record(task), {"documents": str})["documents"] if was_fetched(task) else None


def was_fetched(part: Part) -> bool:
    """Whether it is noted as fetched; of a task, with a digest of its documents."""
    if not record(part).exists():
        return False
    return part.kind != LM_EVAL or isinstance(read_json(record(part), dict).get("documents"), str)


def _of_model(model: HubModel, what: str) -> Part | None:
    if Path(model.name).is_dir():
        if model.revision is not None:
            raise UserError(
                f"{model.name}: there is a folder of that name here, and a revision of the hub's is asked for; take "
                "the revision out, or give the folder another name"
            )
        return None
    if model.revision is None:
        raise UserError(f"{model.name}: no folder there, and a model of the hub has a revision; give one of the two")
    return Part("model", model.name, model.revision, what)


def home() -> Path:
    """Where everything is fetched to."""
    from huggingface_hub import constants

    return Path(constants.HF_HOME)


def cache() -> Path:
    """Where the hub's own client keeps repositories, most often below home()."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def record(part: Part) -> Path:
    """What was fetched of a part: `snapshot`, its folder below cache(), and `files`, the SHA-256 of each."""
    names = [text.replace("/", "--") for text in part]
    return home() / "longshort" / f"{'_'.join(names)}.json"


def folder(part: Part) -> Path:
    """The folder of a fetched part, its files verified.

    Raises:
        NotFetched: it was not fetched, or a file has changed since.
    """
    place = snapshot(part)
    if trouble := altered(place, files(part)):
        raise NotFetched(f"{part} is not as it was fetched: {place}: {trouble}; fetch it again")
    return place


def snapshot(part: Part) -> Path:
    """The folder of a fetched part, its files unverified.

    Raises:
        NotFetched: it was not fetched.
    """
    return cache() / str(_fetched(part)["snapshot"])


def fetched_config(model: HubModel) -> list[Path]:
    """The config.json of a model that was fetched, unverified; none for one that was not, or for a local folder."""
    part = weights(model)
    return [snapshot(part) / "config.json"] if part and record(part).exists() else []


def files(part: Part) -> dict[str, str]:
    """The SHA-256 of each file of a fetched part, by its path in the repository."""
    return dict(_fetched(part)["files"])


def _fetched(part: Part) -> dict[str, Any]:
    if not record(part).exists():
        raise NotFetched(f"not here: {missing_in_words([part])}")
    try:
        fetched: dict[str, Any] = read_json(record(part), {"snapshot": str, "files": {str: str}})
    except Altered as error:
        raise NotFetched(f"{error}; that is, {missing_in_words([part])}") from None
    return fetched


def missing_in_words(parts: list[Part]) -> str:
    """What lacks, and what to do."""
    return (
        f"{'; '.join(map(str, parts))}. Jobs use no network: run `longshort fetch --study NAME` where there is one, "
        f"with HF_HOME={home()}, as here"
    )


def refuse_network() -> None:
    """From here on this process reaches no other machine: an air-gapped node would let it wait for minutes."""
    sys.addaudithook(_refuse)


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "socket.getaddrinfo":
        host = arguments[0]
    elif event == "socket.connect" and isinstance(arguments[1], tuple):
        host = arguments[1][0]
    else:
        return
    if host not in SELF and host != socket.gethostname():
        raise NoNetwork(f"asks for {host}, but jobs use no network: what it wants there must be fetched before")
