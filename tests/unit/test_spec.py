"""The canonical form of what was asked."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel, Field

from longshort.errors import UserError
from longshort.identity import spec
from longshort.records.publish import read_spec


class Old(BaseModel):
    rate: float = 1.0


class WithNeutralField(Old):
    option: str = Field("off", json_schema_extra={"neutral": "off"})


class WithChangedDefault(BaseModel):
    rate: float = 2.0


class WithUnimportantField(Old):
    workers: int = Field(4, json_schema_extra={"identity": False})


def test_new_neutral_options_and_unimportant_fields_change_nothing() -> None:
    assert spec.spec_id(WithNeutralField()) == spec.spec_id(Old())
    assert spec.spec_id(WithUnimportantField(workers=9)) == spec.spec_id(Old())
    assert spec.spec_id(Old(rate=1)) == spec.spec_id(Old(rate=1.0))
    assert spec.spec_id(Old(rate=-0.0)) == spec.spec_id(Old(rate=0.0))


def test_values_and_changed_defaults_do() -> None:
    assert spec.spec_id(WithNeutralField(option="on")) != spec.spec_id(Old())
    assert spec.spec_id(WithChangedDefault()) != spec.spec_id(Old())


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
