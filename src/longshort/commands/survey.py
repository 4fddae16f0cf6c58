"""What can be read of a person's own model, texts and machine, before there is a study of them: for `longshort new`."""

from __future__ import annotations

import glob
import math
import os
import shutil
import subprocess
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import psutil

from longshort.commands import memory
from longshort.data import corpora, text_files
from longshort.data.left_out import LeftOut
from longshort.data.settings import HubCorpus, PretrainedTokenizer, TextCorpus
from longshort.errors import StudyError, UserError
from longshort.models.settings import Weights
from longshort.records import hub
from longshort.records.publish import in_words
from longshort.study import model_files
from longshort.study.model_files import Reach
from longshort.study.parsing import parse

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Of a corpus so much is looked at, in the order in which it is read.
MOST_DOCUMENTS, MOST_CHARACTERS = 5_000, 20_000_000
# Of one document: more tokens than any length that is chosen here.
OF_A_DOCUMENT = 1_000_000
CHARACTERS_A_TOKEN = 5  # where the tokenizer is not here: rather too many than too few, as then a text has few tokens
ASSUMED_GPU = 80e9


class OwnModel(NamedTuple):
    """A model that exists.

    Attributes:
        weights: the folder or hub id, and its commit.
        folder: of its files; None where they are not here.
        layers: its blocks.
        dtype: floating point type of its weights, as its configuration has it; None where it is not here.
        shape: what its memory is counted from, and how that is known.
        tokenizer: None where it is not here.
        names_its_blocks: whether hidden alignment finds them.
    """

    weights: Weights
    folder: Path | None
    layers: int
    reach: Reach
    dtype: str | None
    shape: tuple[memory.Model, str]
    tokenizer: PreTrainedTokenizerBase | None
    names_its_blocks: bool = True


class OwnTexts(NamedTuple):
    """A corpus as far as it was looked at.

    Attributes:
        corpus: the study's data.corpus.
        tokens: name of a document -> its tokens, at least; None where the corpus is not here.
        whole: whether all of its documents were looked at.
        counted: how tokens are known, in words.
        documents: about how many it has in all, at least.
    """

    corpus: TextCorpus | HubCorpus
    tokens: dict[str, int] | None
    whole: bool
    counted: str
    documents: int = 0


class Machine(NamedTuple):
    """Where a training would run: bytes of one device's memory, and how that is known."""

    device: str
    memory: float
    source: str


def model(where: str, name: str, revision: str | None, layers: int | None, positions: int | None) -> OwnModel:
    """
    Args:
        layers, positions: what a model that is not here says of itself.

    Raises:
        StudyError: it is no whole model; or it is one of the hub, and what its files would say is not given.
    """
    local = Path(name).is_dir()
    if not local and (name.startswith((".", "/")) or Path(name).exists()):
        raise StudyError(f"{where}: --model {name}: no folder there; give the folder of a model, or a hub id")
    if not local and revision is None:
        raise StudyError(
            f"{where}: --model {name}: no folder there, hence a hub id: give --revision with the commit, all 40 "
            "digits, as its page on the hub shows it under Files and versions"
        )
    weights = parse(Weights, {"name": name, "revision": None if local else revision}, f"{where}: --model", None)
    part = hub.weights(weights)
    if part is None or hub.record(part).exists():
        return _model_here(where, weights, Path(name) if part is None else hub.snapshot(part))
    if layers is None or positions is None:
        raise StudyError(
            f"{where}: --model {name}: it is not here, and nothing is fetched before a study asks for it. Give "
            "--layers (num_hidden_layers in its config.json) and --positions (max_position_embeddings), as its page on "
            "the hub has them; `longshort fetch` then brings it, and `longshort check` holds both against its files"
        )
    reach = Reach(positions, "--positions", learnt=False, extended="")
    return OwnModel(weights, None, layers, reach, None, memory.existing(weights, layers), None)


def _model_here(where: str, weights: Weights, folder: Path) -> OwnModel:
    given = f"{where}: --model {weights.name}"
    tensors = model_files.check_whole(given, folder)
    config = model_files.config_of(folder)
    layers = next((config[key] for key in model_files.LAYERS if isinstance(config.get(key), int)), None)
    if layers is None:
        raise StudyError(
            f"{given}: {folder / 'config.json'} says none of {', '.join(model_files.LAYERS)}: give the folder of a "
            "language model"
        )
    model_files.tokens_of(given, folder)
    from longshort.data import tokenizers  # late: as slow to import as all else together

    try:
        tokenizer = tokenizers.load(
            PretrainedTokenizer(kind="pretrained", name=weights.name, revision=weights.revision)
        )
    except UserError:  # it was fetched, and is not as it was
        raise
    except Exception as error:  # of whatever kind: what its files say is taken for granted there
        raise StudyError(f"{given}: transformers makes no tokenizer of {folder} ({error}); take a whole copy") from None
    dtype = str(config.get("dtype") or config.get("torch_dtype") or "float32").removeprefix("torch.")
    reach = model_files.reach_of(config, tensors)
    shape = memory.existing(weights, layers)
    named = model_files.names_its_blocks(tensors)
    return OwnModel(weights, folder, layers, reach, dtype, shape, tokenizer, named)


def texts(
    where: str, name: str, revision: str | None, column: str, tokenizer: PreTrainedTokenizerBase | None
) -> OwnTexts:
    """
    Args:
        name: a folder, a file or a glob, or the id of a dataset of the hub.
        tokenizer: None where it is not here.

    Raises:
        StudyError: there is no document in it that can be used, or too many cannot; or it is one of the hub, and no
            commit is given.
    """
    local = Path(name).exists() or glob.has_magic(name) or name.startswith((".", "/"))
    if local:
        values: dict[str, Any] = {"kind": "text", "path": name, "column": column}
        corpus = parse(TextCorpus, values, f"{where}: --corpus", None)
    elif revision is None:
        raise StudyError(
            f"{where}: --corpus {name}: nothing there, hence the id of a dataset of the hub: give --corpus-revision "
            "with the commit, all 40 digits; or give a folder, a file or a glob of texts"
        )
    else:
        values = {"kind": "hub", "dataset": name, "revision": revision, "column": column}
        corpus = parse(HubCorpus, values, f"{where}: --corpus", None)
        if (part := hub.corpus(corpus)) is not None and not hub.record(part).exists():
            return OwnTexts(corpus, None, False, "the corpus is not here")
    try:
        tokens, whole = _counted(corpus, tokenizer)
        documents = len(tokens) if whole else _estimated(corpus, tokens)
    except (OSError, ValueError) as error:  # names key, value and remedy
        raise StudyError(f"{where}: --corpus {name}: {error}") from None
    counted = "by the model's tokenizer" if tokenizer else f"at {CHARACTERS_A_TOKEN} characters a token"
    return OwnTexts(corpus, tokens, whole, counted, documents)


def _counted(corpus: TextCorpus | HubCorpus, tokenizer: PreTrainedTokenizerBase | None) -> tuple[dict[str, int], bool]:
    """Name -> tokens, and whether that is the whole corpus."""
    from longshort.data import shards

    tokens: dict[str, int] = {}
    left_out, read, whole = LeftOut(), 0, True
    for name, text in corpora.documents(corpus, left_out):
        if len(tokens) == MOST_DOCUMENTS or read > MOST_CHARACTERS:
            whole = False
            break
        text = text[:OF_A_DOCUMENT]
        read += len(text)
        tokens[name] = len(shards.token_ids(tokenizer, [text])[0]) if tokenizer else len(text) // CHARACTERS_A_TOKEN
    if not tokens:
        raise ValueError(f"no document there that can be used. Left out:\n{left_out.in_lines()}")
    left_out.refuse_too_many(len(tokens), 0.05)  # as the study would, by data.max_left_out
    return tokens, whole


def _estimated(corpus: TextCorpus | HubCorpus, looked_at: Collection[str]) -> int:
    """How many documents a corpus has, by the size of its files and of those that the documents are in."""
    if not isinstance(corpus, TextCorpus):
        return len(looked_at)
    root = text_files.root_of(corpus.path)
    sizes = {file.relative_to(root).as_posix(): file.stat().st_size for file in text_files.find(corpus.path, LeftOut())}
    begun = {name if name in sizes else name.rpartition("#")[0] for name in looked_at}
    return round(len(looked_at) * sum(sizes.values()) / sum(sizes[name] for name in begun))


def machine(device: str | None, gigabytes: float | None) -> Machine:
    """The device that a training is meant for: by what is asked, else by what is here.

    Raises:
        StudyError: there is no such kind of device.
    """
    if device not in (None, "cpu", "gpu"):
        raise StudyError(f"--device {device}: give cpu or gpu")
    found = _gpu_memory() if device != "cpu" else None
    device = device or ("gpu" if found else "cpu")
    if gigabytes is not None:
        return Machine(device, gigabytes * 1e9, f"{gigabytes:g} GB (--memory)")
    if device == "cpu":
        total, allowed = float(psutil.virtual_memory().total), _allowed_memory()
        if allowed < total:
            return Machine(device, allowed, f"the {in_words(allowed)} of main memory that this process may take")
        return Machine(device, total, f"the {in_words(total)} of main memory here")
    if found:
        return Machine(device, found, f"the {in_words(found)} of the GPU here")
    return Machine(device, ASSUMED_GPU, f"{in_words(ASSUMED_GPU)} (assumed, as no GPU is here; --memory says another)")


def cores() -> int:
    """Those that compute, of which this process may use so many: a job or a container may have fewer than a machine."""
    mine = len(os.sched_getaffinity(0))
    return min(psutil.cpu_count(logical=False) or mine, mine)


def _allowed_memory(root: Path = Path("/sys/fs/cgroup"), mine: Path = Path("/proc/self/cgroup")) -> float:
    """Bytes that the control groups of this process leave it (cgroup v2); infinity where none limits it."""
    try:
        groups = mine.read_text(encoding="utf-8").splitlines()
    except OSError:
        return math.inf
    name = next((line.removeprefix("0::/") for line in groups if line.startswith("0::/")), "")
    limits = [math.inf]
    for group in (root / name, *(root / name).parents):
        with suppress(OSError, ValueError):  # no such file; or "max"
            limits.append(float(int((group / "memory.max").read_text(encoding="utf-8"))))
    return min(limits)


def _gpu_memory() -> float | None:
    """Bytes of the first GPU that the driver's own program names."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    asked = [program, "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    lines = subprocess.run(asked, capture_output=True, text=True).stdout.split()
    return float(lines[0]) * 2**20 if lines and lines[0].isdigit() else None
