"""The canonical form of what was asked."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
from pydantic import BaseModel, Field

from longshort.errors import UserError
from longshort.identity import spec
from longshort.records.publish import read_spec


def name_of(model: BaseModel) -> str:
    return spec.digest(spec.dumps(spec.canonical(model)))


class Old(BaseModel):
    rate: float = 1.0


class WithNeutralField(Old):
    option: str = Field("off", json_schema_extra={"neutral": "off"})


class WithChangedDefault(BaseModel):
    rate: float = 2.0


class WithUnimportantField(Old):
    workers: int = Field(4, json_schema_extra={"identity": False})


def test_new_neutral_options_and_unimportant_fields_change_nothing() -> None:
    assert name_of(WithNeutralField()) == name_of(Old())
    assert name_of(WithUnimportantField(workers=9)) == name_of(Old())
    assert name_of(Old(rate=1)) == name_of(Old(rate=1.0))
    assert name_of(Old(rate=-0.0)) == name_of(Old(rate=0.0))


def test_values_and_changed_defaults_do() -> None:
    assert name_of(WithNeutralField(option="on")) != name_of(Old())
    assert name_of(WithChangedDefault()) != name_of(Old())


class Plain(BaseModel):
    kind: Literal["plain"]


class Nested(BaseModel):
    kind: Literal["nested"]
    parts: list[WithNeutralField]
    workers: int = Field(2, json_schema_extra={"identity": False})


class Closed(Old, extra="forbid"):
    pass


class Whole(BaseModel):
    part: Plain | Nested | None = Field(None, json_schema_extra={"neutral": None})
    # A later default: what was asked before meant the neutral value.
    count: int = Field(3, json_schema_extra={"neutral": 0})


@pytest.mark.parametrize(
    "whole",
    [
        Whole(),
        Whole(count=0),
        Whole(part=Plain(kind="plain")),
        Whole(part=Nested(kind="nested", parts=[WithNeutralField(), WithNeutralField(option="on")], workers=2)),
    ],
)
def test_a_reader_finds_the_neutral_values_that_a_specification_leaves_out(whole: Whole) -> None:
    assert spec.restored(Whole, spec.canonical(whole)) == whole


def test_a_specification_with_a_field_that_nobody_knows_is_refused() -> None:
    with pytest.raises(UserError, match="is no Closed: rtae = 1: Extra inputs are not permitted"):
        spec.restored(Closed, {"rtae": 1})
    with pytest.raises(UserError, match=r"is no Closed: rate = 'fast': Input should be a valid number"):
        spec.restored(Closed, {"rate": "fast"})


def test_a_specification_is_the_one_that_its_folder_is_named_by(tmp_path: Path) -> None:
    text = '{"rate": 1.0}'
    path = tmp_path / spec.digest(spec.dumps({"rate": 1.0})) / "spec.json"
    path.parent.mkdir()
    path.write_text(f"{text}\n")
    assert read_spec(path) == {"rate": 1.0}
    for wrong, words in ((text.replace("1", "2"), "is not the specification"), (text[:-1], "is no valid JSON")):
        path.write_text(wrong)
        with pytest.raises(UserError, match=rf"{path} {words}.* delete it and run snakemake again"):
            read_spec(path)
    by_hand = tmp_path / "spec.json"
    by_hand.write_text('{"rate": 2.0}')
    assert read_spec(by_hand) == {"rate": 2.0}
