"""The editors' schemas."""

from __future__ import annotations

from longshort.commands.schema import schema_files
from tests.support.project import ROOT


def test_editor_schemas_are_up_to_date() -> None:
    for path, text in schema_files().items():
        assert (ROOT / path).read_text() == text, f"{path} is old; run: python -m longshort.commands.schema"
