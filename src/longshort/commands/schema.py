"""`python -m longshort.commands.schema` writes config/schema, which editors complete studies by."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import BaseModel

from longshort.study.schema import Arms, Study
from longshort.synthetic.study import SyntheticStudy


def schema_files() -> dict[str, str]:
    """JSON schemas for editors by path: generated, never edited."""
    models: dict[str, type[BaseModel]] = {"study": Study, "arms": Arms, "synthetic": SyntheticStudy}
    return {
        f"config/schema/{name}.json": json.dumps(model.model_json_schema(), indent=2, sort_keys=True) + "\n"
        for name, model in models.items()
    }


if __name__ == "__main__":
    for file_name, text in schema_files().items():
        Path(file_name).write_text(text, encoding="utf-8")
