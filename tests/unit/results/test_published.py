"""The small copy of a study's numbers that is published with the source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from longshort.errors import StudyError
from longshort.results import agreement, answers, published


def test_it_answers_and_compares_as_the_whole_table_does(
    metrics: pd.DataFrame, study: dict[str, Any], tmp_path: Path
) -> None:
    path, made = tmp_path / "docs/tiny.parquet", {"corpus": "c"}
    count = published.write(path, metrics, study, made)
    found = published.read(path)
    assert len(found.metrics) == count < len(metrics) / 2 and (found.study, found.made) == (study, made)
    assert answers.answers(found.metrics, found.study) == answers.answers(metrics, study)
    side = agreement.read(path)
    frame, overall = agreement.against(side, side)
    assert side.sealed and len(frame) and frame["agree"].all() and overall["p"] == 1.0


def test_what_is_no_such_file_is_named(metrics: pd.DataFrame, study: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "tiny.parquet"
    published.write(path, metrics, study, {})
    whole = path.read_bytes()
    for content in (whole[:-20], whole[: len(whole) // 2], b"", b"numbers"):
        path.write_bytes(content)
        assert not published.is_one(path)
        with pytest.raises(StudyError, match=rf"{path} holds no published numbers .* restore it \(git checkout"):
            published.read(path)
    metrics.to_parquet(path)
    with pytest.raises(StudyError, match="holds no published numbers"):
        published.read(path)
