"""What the files of a pretrained model and a tokenizer say, held against the study.

Imports no torch and loads no model: it reads configurations and the headers of weights.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from longshort.errors import StudyError
from longshort.study.files import json_object
from longshort.study.schema import PretrainedModel, PretrainedTokenizer, Study

INDEX = "model.safetensors.index.json"
LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len")
# Tables of positions that were learnt, of which there are no more: GPT-2's, OPT's.
LEARNT_POSITIONS = ("wpe.weight", "embed_positions.weight")
VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model", "vocab.txt", "tekken.json")
SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")
# Classes of tokenizers that have no special tokens but those that their files name.
PLAIN_CLASSES = ("PreTrainedTokenizerFast", "TokenizersBackend")
# Of our own checkpoints; models/rope/__init__.py writes it.
EXTENDED_BY_US = "longshort_rope"
BYTE_TOKENS = 257


def check(where: str, study: Study, model_folder: Path | None, tokenizer_folder: Path | None) -> None:
    """
    Args:
        model_folder: of a pretrained model; None where it is made by the study, or is not here.
        tokenizer_folder: of a pretrained tokenizer, likewise.

    Raises:
        StudyError: a model or tokenizer is not whole, or not what the study says; names folder, fault and remedy.
    """
    tokens = BYTE_TOKENS if study.data.tokenizer.kind == "bytes" else None
    given = f"{where}: data.tokenizer"
    if tokenizer_folder is not None and isinstance(study.data.tokenizer, PretrainedTokenizer):
        given = f"{where}: data.tokenizer.name = {study.data.tokenizer.name!r}"
        tokens = tokens_of(given, tokenizer_folder)
    if model_folder is None or not isinstance(study.model, PretrainedModel):
        return
    config = _check_model(where, study.model, model_folder)
    size = config.get("vocab_size")
    if tokens is not None and isinstance(size, int) and tokens > size:
        raise StudyError(
            f"{given}: {tokens} tokens, and the model in {model_folder} has embeddings for {size} (vocab_size): "
            "take the model's own tokenizer, or a model whose embeddings were resized to it"
        )


def check_whole(given: str, folder: Path) -> dict[str, list[int]]:
    """The shapes of all weights of a model.

    Args:
        given: study, key and value, which a mistake is told with.

    Raises:
        StudyError: a model's folder has no configuration, or lacks weights.
    """
    if not (folder / "config.json").exists():
        raise StudyError(f"{given}: no config.json there; give the folder of a model")
    return _tensors(given, folder)


def config_of(folder: Path) -> dict[str, Any]:
    """What config.json says of the language model.

    Raises:
        StudyError: it is no JSON object.
    """
    whole = json_object(folder / "config.json")
    inner = whole.get("text_config")
    return inner if isinstance(inner, dict) else whole


class Reach(NamedTuple):
    """How far the positions of a model go, by its files.

    Attributes:
        tokens: None where the files do not say.
        key: of config.json, that says it.
        learnt: there are no more positions than those that were learnt.
        extended: how its rotary frequencies are extended already; empty if they are not.
    """

    tokens: int | None
    key: str
    learnt: bool
    extended: str


def reach_of(config: dict[str, Any], tensors: dict[str, list[int]]) -> Reach:
    """
    Args:
        config: as config_of gives it.
        tensors: the shapes of its weights, by their names.
    """
    learnt = any(name.endswith(LEARNT_POSITIONS) for name in tensors)
    scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = scaling.get("rope_type", scaling.get("type", "default")) if isinstance(scaling, dict) else "default"
    ours = config.get(EXTENDED_BY_US)
    extended = str(ours.get("kind", kind) if isinstance(ours, dict) else kind)
    extended = "" if extended == "default" else extended
    key = next((key for key in POSITIONS if isinstance(config.get(key), int)), None)
    if key is None or ours is not None:
        return Reach(None, key or "", learnt, extended)
    tokens = config[key]
    if extended and isinstance(factor := scaling.get("factor"), int | float):
        tokens = max(tokens, int(factor * scaling.get("original_max_position_embeddings", tokens)))
    return Reach(tokens, key, learnt, extended)


def weights(folder: Path) -> dict[str, list[int]]:
    """Name and shape of every tensor in a folder's safetensors, by their headers.

    Raises:
        ValueError: a file is no whole safetensors file.
    """
    shapes: dict[str, list[int]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        shapes |= _weights_in(path)
    return shapes


def count(folder: Path) -> int:
    """How many weights are loaded from a folder: other files, such as consolidated.safetensors, may hold them again.

    Raises:
        ValueError: as weights.
    """
    index = folder / INDEX
    named = set(json_object(index).get("weight_map", {}).values()) if index.exists() else {"model.safetensors"}
    files = [folder / file for file in named if (folder / file).exists()]
    return sum(math.prod(shape) for file in files for shape in _weights_in(file).values())


def names_its_blocks(tensors: Iterable[str]) -> bool:
    """Whether the blocks are in `layers`, where hidden alignment finds them (models/load.py)."""
    return any(re.search(r"(^|\.)layers\.\d+\.", name) for name in tensors)


def _weights_in(path: Path) -> dict[str, list[int]]:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length < path.stat().st_size:
            raise ValueError(f"{path} is no whole safetensors file; take a whole copy of the model")
        header = json.loads(file.read(length))
    if not isinstance(header, dict) or not all(isinstance(about, dict) for about in header.values()):
        raise ValueError(f"{path} is no safetensors file; take a whole copy of the model")
    end = max((about["data_offsets"][1] for name, about in header.items() if name != "__metadata__"), default=0)
    if path.stat().st_size < 8 + length + end:
        raise ValueError(f"{path} was cut short; take a whole copy of the model")
    return {name: about["shape"] for name, about in header.items() if name != "__metadata__"}


# ---- models ----------------------------------------------------------------------------------------------------------


def _check_model(where: str, model: PretrainedModel, folder: Path) -> dict[str, Any]:
    """Returns what config.json says of the language model."""
    given = f"{where}: model.name = {model.name!r}"
    if (folder / "adapter_config.json").exists() and not (folder / INDEX.removesuffix(".index.json")).exists():
        base = json_object(folder / "adapter_config.json").get("base_model_name_or_path")
        raise StudyError(
            f"{given}: {folder} holds an adapter, to be added to {base or 'a model that it does not name'}: "
            "give that model, or a folder of the two merged (peft: merge_and_unload, save_pretrained)"
        )
    tensors = check_whole(given, folder)
    config = config_of(folder)
    key = next((key for key in LAYERS if key in config), None)
    if key is not None and config[key] != model.layers:
        raise StudyError(
            f"{where}: model.layers = {model.layers}: {folder / 'config.json'} says {key} {config[key]}; "
            "give that number"
        )
    there = {int(found[1]) for name in tensors if (found := re.search(r"\.(\d+)\.", name))}
    if there and (missing := sorted(set(range(model.layers)) - there)):
        another = f".{max(there)}."
        names = sorted(name.replace(another, f".{missing[0]}.") for name in tensors if another in name)
        raise StudyError(
            f"{given}: {folder} holds no weights of block {missing[0]} of {model.layers} ({', '.join(names)}); take a "
            "whole copy of the model, or mend its config.json"
        )
    _check_reach(where, model, folder, config, tensors)
    return config


def _tensors(given: str, folder: Path) -> dict[str, list[int]]:
    """The shapes of all weights, in files that are whole and that the index, if there is one, names."""
    index = folder / INDEX
    named = json_object(index).get("weight_map") if index.exists() else {}
    if not isinstance(named, dict) or not all(isinstance(file, str) for file in named.values()):
        raise StudyError(f"{given}: {index} has no weight_map; take a whole copy of the model")
    for name, file in sorted(named.items()):
        if not (folder / file).is_file() or Path(file).name != file:
            raise StudyError(f"{given}: {INDEX} says that {name} is in {file}, which is not there; take a whole copy")
    try:
        tensors = weights(folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StudyError(f"{given}: {error}") from None
    if not tensors:
        raise StudyError(f"{given}: no weights in .safetensors files there; only those are loaded")
    if missing := sorted(set(named) - set(tensors)):
        raise StudyError(f"{given}: {INDEX} names {missing[0]}, which is in no file; take a whole copy")
    if unnamed := sorted({name for file in set(named.values()) for name in _weights_in(folder / file)} - set(named)):
        raise StudyError(
            f"{given}: {INDEX} does not name {unnamed[0]}, which is in one of its files; take a whole copy of the model"
        )
    if not named and not (folder / "model.safetensors").exists():
        raise StudyError(
            f"{given}: {folder} holds neither model.safetensors nor {INDEX}, which says what its other .safetensors "
            "files hold; take a whole copy of the model"
        )
    return tensors


def _check_reach(
    where: str, model: PretrainedModel, folder: Path, config: dict[str, Any], tensors: dict[str, list[int]]
) -> None:
    """max_length is within the model's positions, unless the study extends them, once."""
    reach = reach_of(config, tensors)
    if model.rope is not None:
        if reach.learnt:
            raise StudyError(
                f"{where}: model.rope = {model.rope.kind}: the positions of the model in {folder} are learnt, not "
                "rotary; take a model of the Llama, Mistral or Qwen family, or leave model.rope out"
            )
        if reach.extended:
            raise StudyError(
                f"{where}: model.rope = {model.rope.kind}: {folder / 'config.json'} extends the rotary frequencies "
                f"already ({reach.extended}); start from a model that is not extended, or leave model.rope out"
            )
        # Dynamic NTK stretches by what is read, ABF and EABF have a base in place of a factor.
        key = {"clex": "max_factor", "pi": "factor", "ntk": "factor", "yarn": "factor"}.get(model.rope.kind)
        factor: float | None = getattr(model.rope, key) if key else None
        asked = model.max_length if reach.tokens and not model.beyond_positions else 0
        if reach.tokens is not None and factor is not None and asked > factor * reach.tokens:
            raise StudyError(
                f"{where}: model.max_length = {model.max_length}: {model.rope.kind} stretches the {reach.tokens} "
                f"positions of the model in {folder} ({reach.key} in config.json) by {factor:g}, to "
                f"{factor * reach.tokens:g}; lower it, raise the factor to "
                f"{math.ceil(model.max_length / reach.tokens)}, or say model.beyond_positions: true to read beyond them"
            )
        return
    if reach.tokens is not None and model.max_length > reach.tokens and (reach.learnt or not model.beyond_positions):
        remedy = (
            "take a model with rotary positions"
            if reach.learnt
            else "extend it by model.rope, or say model.beyond_positions: true to read it beyond them as it is"
        )
        raise StudyError(
            f"{where}: model.max_length = {model.max_length}: the model in {folder} has {reach.tokens} positions "
            f"({reach.key} in config.json); lower it and the lengths to {reach.tokens}, or {remedy}"
        )


# ---- tokenizers ------------------------------------------------------------------------------------------------------


def tokens_of(given: str, folder: Path) -> int | None:
    """How many embeddings a tokenizer needs; None where only its own library can tell.

    Raises:
        StudyError: there is none, it cannot be read, or it has no token that separates documents.
    """
    try:
        return _tokens_of(given, folder)
    except StudyError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StudyError(
            f"{given}: the files of the tokenizer in {folder} cannot be read ({error}); take a whole copy"
        ) from None


def _tokens_of(given: str, folder: Path) -> int | None:
    if not any((folder / name).exists() for name in VOCABULARIES):
        raise StudyError(
            f"{given}: no tokenizer in {folder}, as none of {', '.join(VOCABULARIES)} is there; copy the files of the "
            "model's own one there, or give the folder or hub id of a model that has it"
        )
    said: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        said |= _json(folder / name)
    special = {key: token["content"] if isinstance(token := said.get(key), dict) else token for key in SPECIAL}
    named = [key in said or said.get("tokenizer_class") in PLAIN_CLASSES for key in ("bos_token", "eos_token")]
    if all(named) and special["bos_token"] is None and special["eos_token"] is None:
        raise StudyError(
            f"{given}: {folder} names neither an EOS nor a BOS token, and documents are packed with one between them; "
            "name one in its tokenizer_config.json, or take another tokenizer"
        )
    ids = _ids(folder)
    if ids is None:
        return None
    ids |= {about["content"]: int(number) for number, about in said.get("added_tokens_decoder", {}).items()}
    ids |= _json(folder / "added_tokens.json")
    # transformers adds the special tokens that the vocabulary lacks at its end.
    more = {token for token in special.values() if isinstance(token, str)} - set(ids)
    return max(ids.values(), default=-1) + 1 + len(more)


def _ids(folder: Path) -> dict[str, int] | None:
    """Token -> id; None where the vocabulary is in another form than JSON."""
    whole = _json(folder / "tokenizer.json")
    if not whole:
        return _json(folder / "vocab.json") or None
    vocabulary = whole["model"]["vocab"]
    if isinstance(vocabulary, list):  # of a unigram model: token and score, by id
        vocabulary = {token: number for number, (token, _) in enumerate(vocabulary)}
    return {**vocabulary, **{about["content"]: about["id"] for about in whole.get("added_tokens", [])}}


def _json(path: Path) -> dict[str, Any]:
    """What an object holds; nothing where the file is not there."""
    if not path.exists():
        return {}
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} is no object")
    return content
