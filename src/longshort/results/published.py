"""The numbers of a study that are published with the source: small, and enough for its answers and comparisons.

One Parquet file holds rows of the long table (results/README.md), and in its metadata the study and what made them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from longshort.errors import StudyError
from longshort.records.publish import write_atomic
from longshort.results import long_table
from longshort.results.columns import columns_of
from longshort.results.replicates import NO_ARMS

MADE, STUDY = b"longshort", b"longshort study"


class Published(NamedTuple):
    """metrics: rows of the long table. study: as in study.json. made: what the numbers depend on besides."""

    metrics: pd.DataFrame
    study: dict[str, Any]
    made: dict[str, str]


def select(metrics: pd.DataFrame, study: dict[str, Any]) -> pd.DataFrame:
    """The headline numbers of every checkpoint, the training loss as far as it was logged, and at the last checkpoint
    the single documents (in 32 bits) of the primary number, and of the perplexities at the greatest length, which
    intervals rest on."""
    columns = columns_of(study)
    rows = long_table.headlines(metrics)
    headline = pd.concat([long_table.at(rows, one.metric, one.length, one.task) for one in columns])
    last = metrics["step"].eq(int(study["checkpoints"][-1])) | metrics["arm"].isin(NO_ARMS)
    lengths: dict[str, int] = {}
    for one in columns:
        if one.relative and one.documents is not None and one.length is not None:
            lengths[one.documents] = max(lengths.get(one.documents, 0), one.length)
    longest = metrics["length"].eq(metrics["metric"].map(lengths)).fillna(False)
    for one in columns:
        if one.key == study.get("primary") and one.documents is not None:
            at = metrics["length"].isna() if one.length is None else metrics["length"].eq(one.length).fillna(False)
            longest |= metrics["metric"].eq(one.documents) & at
    documents = metrics[metrics["document"].notna() & last & longest]
    documents = documents.assign(value=documents["value"].astype("float32").astype("float64"))
    found = pd.concat([headline.drop_duplicates(), documents, metrics[metrics["metric"].eq("train/ce")]])
    return found.drop_duplicates().reset_index(drop=True)


def write(path: Path, metrics: pd.DataFrame, study: dict[str, Any], made: dict[str, str]) -> int:
    """Writes what `select` takes; returns how many numbers that are.

    Raises:
        StudyError: something else is there.
    """
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.Table.from_pandas(select(metrics, study), preserve_index=False)
    table = table.replace_schema_metadata({MADE: json.dumps(made).encode(), STUDY: json.dumps(study).encode()})
    words = [name for name in table.column_names if name != "value"]
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(
        table, sink, compression="zstd", use_dictionary=words, column_encoding={"value": "BYTE_STREAM_SPLIT"}
    )
    if path.exists() and not is_one(path):
        raise StudyError(f"{path} holds no published numbers, and is not written over; move it, or give another name")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, sink.getvalue().to_pybytes())
    return len(table)


def is_one(path: Path) -> bool:
    """Whether `write` wrote it, or wrote what was cut or edited since."""
    import pyarrow.parquet

    try:
        return STUDY in (pyarrow.parquet.read_schema(path).metadata or {})
    except (pyarrow.ArrowException, OSError):
        return False


def read(path: Path) -> Published:
    """What `write` published.

    Raises:
        StudyError: it is no such file.
    """
    import pyarrow.parquet

    if not path.is_file():  # to open a pipe would wait for who writes into it
        what = "is no file" if path.exists() else "does not exist"
        raise StudyError(f"{path} {what}; give the file that `longshort reproduce --write` made")
    try:
        kept = pyarrow.parquet.read_schema(path).metadata or {}
        if not {MADE, STUDY} <= kept.keys():
            raise ValueError("no study is kept with them: an older version wrote it, or another program")
        return Published(long_table.checked(path), json.loads(kept[STUDY]), json.loads(kept[MADE]))
    except (pyarrow.ArrowException, OSError, KeyError, ValueError) as error:
        raise StudyError(
            f"{path} holds no published numbers ({str(error).splitlines()[0]}); restore it (git checkout {path}), or "
            f"write it anew: `longshort reproduce --study NAME --published {path} --write`"
        ) from None
