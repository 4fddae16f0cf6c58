"""Files that a person edits: YAML as its version 1.2 has it, and JSON. Every mistake is said with its place."""

from __future__ import annotations

import json
import re
import stat
from pathlib import Path
from typing import Any

import yaml

from longshort.errors import StudyError
from longshort.study.parsing import short

# A study is a few kilobytes, and PyYAML reads fifty in a second; the index of a large model's weights is a few
# megabytes. What is said by aliases of aliases is not there to be read by a person.
MOST_BYTES_OF_YAML = 100_000
MOST_BYTES_OF_JSON = 100_000_000
MOST_VALUES = 100_000


def text(path: Path, remedy: str = "restore it from the repository", most: int = MOST_BYTES_OF_JSON) -> str:
    """The whole file.

    Args:
        remedy: what to do if it is missing.
        most: bytes that it may have.

    Raises:
        StudyError: it is missing, no file, not to be read, too large, or no UTF-8.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # to open a pipe would wait for whoever writes into it
            raise StudyError(f"{path} is a {'folder' if path.is_dir() else 'pipe or device'}; put a text file there")
        if status.st_size > most:
            raise StudyError(f"{path} has {status.st_size} bytes; files of this kind have {most} at most")
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise StudyError(f"{path} is missing; {remedy}") from None
    except UnicodeDecodeError as error:
        raise StudyError(f"{path} is no UTF-8 text ({error}); save it as UTF-8") from None
    except OSError as error:
        raise StudyError(f"{path} cannot be read: {error.strerror}") from None


def yaml_mapping(path: Path, *, typed: bool = True, remedy: str = "see config/README.md") -> dict[Any, Any]:
    """A YAML file by the core schema of YAML 1.2: on, yes, 010 and 1:30 are what they look like (10 for 010).

    typed: False leaves every scalar the text that was typed, and takes a file of comments for an empty mapping.

    Raises:
        StudyError: as text, and: no YAML, a key that stands there twice, or anything but a mapping.
    """
    try:
        content = yaml.load(text(path, most=MOST_BYTES_OF_YAML), _Core if typed else _Text)
    except yaml.YAMLError as error:
        raise StudyError(f"{path} is no valid YAML: {_with_name(error, path)}") from None
    except RecursionError:
        raise StudyError(f"{path} is nested too deeply; {remedy}") from None
    except StudyError as error:
        raise StudyError(_with_name(error, path)) from None
    if content is None and not typed:
        return {}
    if not isinstance(content, dict):
        raise StudyError(f"{path} holds no mapping of keys; {remedy}")
    _check_values(content, path)
    return content


def json_object(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object.

    Raises:
        StudyError: as text, and: no JSON, a key that stands there twice, a number that JSON has not.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise StudyError(f"{path}: {twice!r} stands there twice; write it once")
        return values

    def no_number(word: str) -> Any:
        raise StudyError(f"{path}: {word} is no number of JSON; give a finite one")

    try:
        content = json.loads(text(path), object_pairs_hook=unique, parse_constant=no_number)
    except StudyError:
        raise
    except (ValueError, RecursionError) as error:  # also of an integer with thousands of digits
        raise StudyError(f"{path} is no valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise StudyError(f"{path} holds no JSON object; see the other files of {path.parent}")
    return content


def merge(base: Any, patch: Any) -> Any:
    """Mappings merge key by key; one of another kind, and anything else, replaces."""
    if not isinstance(base, dict) or not isinstance(patch, dict):
        return patch
    if "kind" in patch and patch["kind"] != base.get("kind"):
        return patch
    return {**base, **{key: merge(base.get(key), value) for key, value in patch.items()}}


class _Text(yaml.BaseLoader):
    """Every scalar is text."""


class _Core(yaml.SafeLoader):
    """The core schema: https://yaml.org/spec/1.2.2/#103-core-schema. PyYAML's own is that of YAML 1.1."""

    yaml_implicit_resolvers: dict[str, Any] = {}


def _mapping(loader: Any, node: yaml.MappingNode) -> dict[Any, Any]:
    """PyYAML takes the last of two equal keys without a word."""
    mapping = {}
    for key_node, value_node in node.value:
        key = _value(loader, key_node)
        line = f"{key_node.start_mark.name}, line {key_node.start_mark.line + 1}"
        if not isinstance(key, str | int | float):
            raise StudyError(f"{line}: {short(key)} is no key; use a word or a number")
        if key in mapping:
            raise StudyError(f"{line}: {key!r} stands there twice; write it once")
        mapping[key] = _value(loader, value_node)
    return mapping


def _value(loader: Any, node: yaml.Node) -> Any:
    try:
        return loader.construct_object(node, deep=True)
    except (StudyError, yaml.YAMLError):
        raise
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):  # as PyYAML's constructors fail
        line, kind = f"{node.start_mark.name}, line {node.start_mark.line + 1}", node.tag.rpartition(":")[2]
        raise StudyError(f"{line}: what stands there is no {kind}; write a plain value") from None


def _integer(loader: Any, node: yaml.ScalarNode) -> int:
    value = str(loader.construct_scalar(node))
    return int(value, {"0o": 8, "0x": 16}.get(value[:2], 10))


for _loader in (_Text, _Core):
    _loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)
_Core.add_constructor("tag:yaml.org,2002:int", _integer)
for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", list("-+0123456789.")),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", list("-+.")),
):
    _Core.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), _first)


def _with_name(error: Exception, path: Path) -> str:
    """PyYAML was given a text, which has no name."""
    return str(error).replace("<unicode string>", str(path))


def _check_values(content: dict[Any, Any], path: Path) -> None:
    """Aliases of aliases are a few lines and stand for billions of values; half a letter can be written nowhere."""
    waiting: list[Any] = [content]
    count = 0
    while waiting:
        value = waiting.pop()
        count += 1
        if count > MOST_VALUES:
            raise StudyError(f"{path} stands for more than {MOST_VALUES} values; write out what its aliases (*) repeat")
        if isinstance(value, str) and any("\ud800" <= letter <= "\udfff" for letter in value):
            raise StudyError(
                f"{path}: {short(value)} holds half a surrogate pair (\\ud83d and the like); write the letter"
            )
        if isinstance(value, dict):
            waiting += [*value, *value.values()]
        elif isinstance(value, list):
            waiting += value
