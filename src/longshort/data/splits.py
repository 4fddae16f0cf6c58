"""The documents of a split, as they were prepared or as `Dataset.save_to_disk` writes them."""

from __future__ import annotations

from pathlib import Path

import pyarrow

from longshort.records.publish import read_json


def load(folder: Path) -> pyarrow.Table:
    """A row a document: name, input_ids and, of held-out ones, text. The files are mapped, not read."""
    files = [folder / file["filename"] for file in read_json(folder / "state.json")["_data_files"]]
    return pyarrow.concat_tables(pyarrow.ipc.open_stream(pyarrow.memory_map(str(file))).read_all() for file in files)
