"""Files that a person edits."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import pytest

from longshort.errors import StudyError
from longshort.study import resolve
from longshort.study.files import json_object, text, yaml_mapping


@pytest.mark.parametrize(
    ("added", "said"),
    [
        (b"title: Another", r"tiny.yaml, line \d+: 'title' stands there twice"),
        (b"[1, 2]: x", r"tiny.yaml, line \d+: \[1, 2\] is no key"),
        (b"name: caf\xe9", r"tiny.yaml is no UTF-8 text"),
        (rb'note: "\ud83d\ude00"', r"tiny.yaml: '\\ud83d\\ude00' holds half a surrogate pair"),
        (b"a: b: c", r"tiny.yaml is no valid YAML"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(config: Path, added: bytes, said: str) -> None:
    path = config / "studies" / "tiny.yaml"
    path.write_bytes(path.read_bytes() + b"\n" + added + b"\n")
    with pytest.raises(StudyError, match=said):
        resolve.load("tiny")


# https://yaml.org/spec/1.2.2/#103-core-schema; where PyYAML's own schema differs, its value stands behind.
CORE: dict[str, Any] = {
    **{"on": "on", "off": "off", "yes": "yes", "No": "No", "y": "y"},  # truths
    **{"true": True, "False": False, "null": None, "~": None, "": None},
    **{"010": 10, "0o17": 15, "0x1F": 31, "0b1": "0b1", "-7": -7, "+7": 7, "1_000": "1_000"},  # 8, "0o17", ..., 1000
    **{"1:30": "1:30", "1:30.5": "1:30.5"},  # 90, 90.5
    **{"1e3": 1000.0, "1.5e-3": 0.0015, ".5": 0.5, "5.": 5.0, ".inf": math.inf, "-.INF": -math.inf},  # "1e3"
    **{"2026-02-30": "2026-02-30", "2026-02-03": "2026-02-03", "=": "=", "<<": "<<"},  # an error, a date
}


@pytest.mark.parametrize(("typed", "meant"), CORE.items())
def test_a_scalar_is_what_it_looks_like(tmp_path: Path, typed: str, meant: Any) -> None:
    file = tmp_path / "file.yaml"
    file.write_text(f"key: {typed}\nquoted: '{typed}'")
    content = yaml_mapping(file)
    assert content == {"key": meant, "quoted": typed} and type(content["key"]) is type(meant)
    assert yaml_mapping(file, typed=False) == {"key": typed, "quoted": typed}


BOMB = "\n".join(["a0: &a0 [x, x]", *(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}, *a{n - 1}]" for n in range(1, 40))])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("account: me\naccount: you", r"line 2: 'account' stands there twice"),
        ("a: {b: 1, b: 2}", r"line 1: 'b' stands there twice"),
        ("a:\n\tb: 1", "no valid YAML"),
        ("a: &a [*a]", "no valid YAML"),
        ("just words", "holds no mapping of keys; do this"),
        ("a: " + "[" * 5000, "nested too deeply; do this"),
        (BOMB, "stands for more than 100000 values"),
        ("a: " + "x" * 1_000_001, "has 1000004 bytes"),
    ],
)
@pytest.mark.parametrize("typed", [True, False])
def test_what_is_no_such_file_is_refused(tmp_path: Path, content: str, said: str, typed: bool) -> None:
    file = tmp_path / "file.yaml"
    file.write_text(content)
    with pytest.raises(StudyError, match=said) as refused:
        yaml_mapping(file, typed=typed, remedy="do this")
    assert str(file) in str(refused.value)


@pytest.mark.parametrize("value", ["!!int abc", "!!float abc", "!!bool maybe", "!!timestamp x", "!!map x", "1" * 5000])
def test_a_value_that_its_tag_does_not_fit_is_named(tmp_path: Path, value: str) -> None:
    (tmp_path / "file.yaml").write_text(f"a: 1\nseeds: [{value}]")
    with pytest.raises(StudyError, match="file.yaml, line 2: what stands there is no|expected a mapping node"):
        yaml_mapping(tmp_path / "file.yaml")


def test_a_tag_makes_no_object(tmp_path: Path) -> None:
    (tmp_path / "file.yaml").write_text("a: !!python/object/apply:os.mkdir [made]")
    with pytest.raises(StudyError, match="no valid YAML"):
        yaml_mapping(tmp_path / "file.yaml")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"a": {"b": 1, "b": 2}}', "'b' stands there twice"),
        ('{"a": NaN}', "NaN is no number of JSON"),
        ('{"a": 1,}', "no valid JSON"),
        ("[1]", "holds no JSON object"),
        ('{"a": ' + "[" * 100_000, "no valid JSON"),
    ],
)
def test_what_is_no_json_object_is_refused(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "file.json").write_text(content)
    with pytest.raises(StudyError, match=said):
        json_object(tmp_path / "file.json")


def test_what_is_no_text_is_refused_without_waiting_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "bytes").write_bytes(b"a: caf\xe9")
    for name, said in {
        "pipe": "is a pipe or device",
        ".": "is a folder",
        "loop": "cannot be read: Too many levels of symbolic links",
        "bytes": "no UTF-8 text",
        "nothing": "is missing; do this",
    }.items():
        with pytest.raises(StudyError, match=said):
            text(tmp_path / name, remedy="do this")
