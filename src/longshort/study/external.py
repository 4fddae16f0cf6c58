"""What a study takes from elsewhere is there, and is what the study says: looked at before anything runs."""

from __future__ import annotations

import difflib
import importlib.util
import json
import re
import zlib
from collections.abc import Iterable
from functools import cache
from itertools import count
from pathlib import Path
from typing import IO, Any
from zipfile import BadZipFile, ZipFile, is_zipfile

from longshort.data import packages, text_files
from longshort.data.left_out import LeftOut
from longshort.errors import StudyError
from longshort.metrics.catalog import task_files
from longshort.metrics.settings import LONGBENCH_FIELDS, Harness, LongBench, LongBenchItems, PretrainedEvaluator
from longshort.records import hub
from longshort.study import model_files
from longshort.study.schema import (
    PretrainedModel,
    PretrainedTokenizer,
    Study,
)

# The linear layers of the decoder that a study trains from the start.
OF_A_TRAINED_MODEL = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def check(where: str, study: Study) -> None:
    """
    Raises:
        StudyError: something is missing, empty, or not what the study says; names key, value and remedy.
    """
    for key, corpus in study.data.corpora.items():
        try:
            if corpus.kind == "package":
                packages.refuse_another(corpus, f"data.{key}")
            if corpus.kind == "text":
                text_files.find(corpus.path, LeftOut(), f"data.{key}")
        except (OSError, ValueError) as error:  # names key, value and remedy
            raise StudyError(f"{where}: {error}") from None
    for settings in study.evaluations.asked.values():
        if isinstance(settings, LongBenchItems):
            _check_longbench(where, settings)
        if isinstance(settings, Harness):
            _check_harness(where, settings)
    chosen: list[tuple[str, PretrainedModel | PretrainedTokenizer | PretrainedEvaluator]] = []
    if isinstance(study.model, PretrainedModel):
        several = study.model.bases is not None
        places = (f"model.bases[{place}]" if several else "model" for place in count())
        chosen += zip(places, study.model.each(), strict=False)
    if isinstance(study.data.tokenizer, PretrainedTokenizer):
        chosen.append(("data.tokenizer", study.data.tokenizer))
    if study.evaluations.longppl and isinstance(study.evaluations.longppl.evaluator, PretrainedEvaluator):
        chosen.append(("evaluations.longppl.evaluator", study.evaluations.longppl.evaluator))
    for key, one in chosen:
        name = str(one.name)
        if Path(name).is_dir():
            if isinstance(one, PretrainedEvaluator):
                model_files.check_whole(f"{where}: {key}.name = {name!r}", Path(name))
            continue
        if name.startswith((".", "/")) or Path(name).exists():
            raise StudyError(f"{where}: {key}.name = {name!r}: no folder there; give a folder or a hub id")
        if one.revision is None:
            raise StudyError(
                f"{where}: {key}.revision = null: {name!r} is no local folder, hence a hub id; "
                "give the commit, so that the study stays the same"
            )
    check_models(where, study, fetched=False)


def check_adapter(where: str, targets: list[str], model: Any) -> None:
    """
    Raises:
        StudyError: the model, as far as its files are here, has no layer of a name.
    """
    layers = OF_A_TRAINED_MODEL
    if isinstance(model, PretrainedModel):
        folder = next((Path(str(one.name)) for one in model.each() if Path(str(one.name)).is_dir()), None)
        if folder is None:
            return  # known when it has been loaded
        tensors = model_files.weights(folder)
        names = {name.split(".")[-2] for name in tensors if name.endswith(".weight") and name.count(".") > 1}
        layers = {name for name in names if "norm" not in name and "embed" not in name}
    if absent := sorted(set(targets) - layers):
        raise StudyError(
            f"{where}: training.adapter.targets = {absent[0]!r}: the model has no layer of that name; "
            f"it has {', '.join(sorted(layers))}"
        )


def check_blocks(where: str, model: Any) -> None:
    """For hidden alignment, which takes the blocks of a model from `layers`, as models of the Llama family name them.

    Raises:
        StudyError: the model, as far as its files are here, has no such weights.
    """
    [weights, *_] = [one.weights for one in model.each()]
    part = hub.weights(weights)
    there = part is None or hub.record(part).exists()
    folder = (Path(weights.name) if part is None else hub.snapshot(part)) if there else None
    if folder is not None and not model_files.names_its_blocks(tensors := model_files.weights(folder)):
        raise StudyError(
            f"{where}: alignment.hidden: the model in {folder} keeps its blocks elsewhere than in `layers` (it has "
            f"{sorted(tensors)[0]}): leave the arm out, or take a model of the Llama, Mistral or Qwen family"
        )


def check_models(where: str, study: Study, fetched: bool) -> None:
    """Model and tokenizer in local folders; fetched: also those of the hub, as far as they are here.

    Raises:
        StudyError: as model_files.check.
    """

    def folder(chosen: PretrainedModel | PretrainedTokenizer, part: hub.Part | None) -> Path | None:
        if part is None:
            return Path(str(chosen.name))
        return hub.snapshot(part) if fetched and hub.record(part).exists() else None

    model, tokenizer = study.model, study.data.tokenizer
    of_tokenizer = None
    if isinstance(tokenizer, PretrainedTokenizer):
        of_tokenizer = folder(tokenizer, hub.tokenizer(tokenizer))
    if not isinstance(model, PretrainedModel):
        model_files.check(where, study, None, of_tokenizer)
        return
    for base in model.each():
        alone = study.model_copy(update={"model": base})
        model_files.check(where, alone, folder(base, hub.weights(base.weights)), of_tokenizer)


def _check_longbench(where: str, longbench: LongBenchItems) -> None:
    source = longbench.source
    metric = "longbench_e" if isinstance(longbench, LongBench) else "longbench_likelihood"
    given = f"{where}: evaluations.{metric}.source.path = {getattr(source, 'path', None)!r}"
    if source.kind == "folder":
        folder = Path(source.path)
        if not folder.is_dir():
            raise StudyError(f"{given}: no folder there; give the folder of the official <task>_e.jsonl files")
        files = sorted(folder.glob("*_e.jsonl"))
        _refuse_braces(given, [folder, *files])
        if not files:
            raise StudyError(f"{given}: no <task>_e.jsonl there; give the folder of the official files")
        for file in files:
            if not file.is_file() or not file.stat().st_size:
                raise StudyError(f"{given}: {file.name} is empty or no file; take the official files of LongBench-E")
            with file.open("rb") as lines:
                _check_first_item(given, file.name, lines)
    if source.kind == "zip":
        _refuse_braces(given, [Path(source.path)])
        if not Path(source.path).is_file() or not is_zipfile(source.path):
            raise StudyError(f"{given}: no zip file there; give the official data.zip, whole")
        with ZipFile(source.path) as archive:
            for name in archive.namelist():
                if name.endswith("_e.jsonl"):
                    with archive.open(name) as lines:
                        _check_first_item(given, name, lines)


def _check_first_item(given: str, name: str, lines: IO[bytes]) -> None:
    """The first item tells another kind of file; to read all of them would take too long here."""
    try:
        item = json.loads(lines.readline().decode("utf-8-sig"))
    except (ValueError, RecursionError, OSError, BadZipFile, zlib.error) as error:
        raise StudyError(f"{given}: {name}, line 1 is no valid JSON ({error}): take a whole copy") from None
    lacks = [field for field in LONGBENCH_FIELDS if not isinstance(item, dict) or field not in item]
    if lacks:
        raise StudyError(f"{given}: {name}, line 1: no field {lacks[0]!r}; take the official files of LongBench-E")


def _check_harness(where: str, harness: Harness) -> None:
    if harness.include_path is None:
        return
    given = f"{where}: evaluations.harness.include_path = {harness.include_path!r}"
    files = task_files(harness.include_path)
    _refuse_braces(given, files)
    if not any(path.suffix == ".yaml" for path in files):
        raise StudyError(f"{given}: no .yaml file there; give the folder of your own task files, or null")
    names = [path.name for path in files]  # a job tells its inputs apart by name
    for twice in (name for name in names if names.count(name) > 1):
        raise StudyError(f"{given}: two files there are called {twice}; rename one of them")
    own = _named_tasks(Path(harness.include_path))
    others = {entry.split("@")[0] for entry in harness.tasks} - own
    if others and (known := _tasks_of_lm_eval()) is not None and (unknown := sorted(others - known)):
        close = difflib.get_close_matches(unknown[0], own, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise StudyError(
            f"{where}: evaluations.harness.tasks = {unknown[0]!r}: neither {harness.include_path} nor lm_eval has it; "
            f"{hint}the folder has {', '.join(sorted(own))}"
        )


def _named_tasks(folder: Path) -> set[str]:
    """The names in a folder's task files, without loading them: lm_eval takes 14 s to be imported."""
    name = re.compile(rb"^[ \t]*(?:- )?(?:task|group|tag):[ \t]*[\"']?([\w.+/-]+)", re.MULTILINE)
    return {task.decode() for path in task_files(str(folder)) for task in name.findall(_bytes(path))}


def _bytes(path: Path) -> bytes:
    return path.read_bytes() if path.suffix == ".yaml" else b""


@cache
def _tasks_of_lm_eval() -> frozenset[str] | None:
    package = importlib.util.find_spec("lm_eval")
    return frozenset(_named_tasks(Path(package.origin).parent / "tasks")) if package and package.origin else None


def _refuse_braces(given: str, files: Iterable[Path]) -> None:
    for path in files:
        if any(letter in str(path) for letter in "{}\n"):
            raise StudyError(
                f"{given}: {str(path)!r} has a brace or a line break in its name, which is a wildcard's to the "
                "workflow engine; rename it"
            )
