"""Whether a study came out again as it was published."""

from __future__ import annotations

import json
from pathlib import Path

import pandas
import pyarrow
import pyarrow.parquet
import pytest

from longshort import studies
from longshort.commands import reproduce
from longshort.errors import StudyError
from longshort.results import published


def test_numbers_that_come_out_again_and_that_do_not(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(finished)
    study, path = studies.load("tiny"), tmp_path / "tiny.parquet"
    with pytest.raises(StudyError, match="does not exist; give the file"):
        reproduce.compare(study, path)
    reproduce.write(study, path)
    table = pyarrow.parquet.read_table(path)
    numbers = table.to_pandas()
    there = reproduce.headline(numbers, json.loads(study.summary_text()))
    assert set(there["step"]) == {0, 6} and {"(base)", "baseline", "hidden+output"} <= set(there["arm"])
    assert {"perplexity", "longbench_e"} <= set(there["metric"])
    [same] = reproduce.compare(study, path)
    assert same.startswith(f"Reproduced: {len(there)} of {len(there)} published numbers") and "is 0 (" in same

    # A run that diverged here has its rows, without numbers.
    with monkeypatch.context() as diverged:
        measured = reproduce._metrics(study)
        measured.loc[measured["arm"].eq("constant"), ["value", "status"]] = float("nan"), "diverged"
        diverged.setattr(reproduce, "_metrics", lambda study: measured)
        lost = int(there["arm"].eq("constant").sum())
        said = reproduce.compare(study, path)
        assert said[0].startswith(f"Reproduced in part: {len(there) - lost} of {len(there)} published numbers")
        assert any(line.startswith(f"{lost} numbers are absent here") for line in said)

    last = numbers["step"].eq(6) & numbers["document"].isna()
    [changed] = numbers.index[
        numbers["arm"].eq("constant") & numbers["metric"].eq("perplexity") & numbers["length"].eq(32) & last
    ]
    numbers.loc[changed, "value"] *= 2
    other = dict(reproduce.made(study), corpus="another one")
    whole = json.loads(table.schema.metadata[published.STUDY])
    [constant] = [arm for arm in whole["arms"] if arm["name"] == "constant"]
    constant["settings"]["alignment"]["alpha"] = 2.0  # as where the arm was edited since
    metadata = {**table.schema.metadata, published.STUDY: json.dumps(whole).encode()}
    altered = pyarrow.Table.from_pandas(numbers).replace_schema_metadata(metadata)
    pyarrow.parquet.write_table(altered, path)
    with monkeypatch.context() as on_another:
        on_another.setattr(reproduce, "made", lambda study: other)  # as a run on another corpus would write it
        said = reproduce.compare(study, path)
    assert said[0].startswith(f"Reproduced in part: {len(there) - 1} of {len(there)} published numbers")
    assert said[1].startswith("the largest relative difference is 0.5 (perplexity at length 32, arm constant, seed 0:")
    of_metric = {line.split(":")[0].strip(): line for line in said if line.startswith("    ")}
    assert of_metric.keys() == set(there["metric"]) and "largest" not in of_metric["longbench_e"]
    count = int(there["metric"].eq("perplexity").sum())
    assert of_metric["perplexity"] == f"    perplexity: {count - 1} of {count}, the largest difference 0.5"
    corpus = reproduce._joined(reproduce._metrics(study)["data"])
    assert said[2 + len(of_metric) :] == [
        "constant: alignment.alpha: 2.0; here 1.0",
        f"corpus: {corpus}; here another one",
    ]

    # The only base of a part is one of several of the whole.
    whole = json.loads(table.schema.metadata[published.STUDY])
    [base] = set(whole["bases"].values())
    whole.update(seeds=[3, 0], bases={"3": "another", "0": base})
    numbers = table.to_pandas()
    numbers.loc[numbers["arm"].eq("(base)"), "seed"] = 0
    metadata = {**table.schema.metadata, published.STUDY: json.dumps(whole).encode()}
    several = pyarrow.Table.from_pandas(numbers).replace_schema_metadata(metadata)
    pyarrow.parquet.write_table(several, path)
    assert reproduce.compare(study, path)[0].startswith(f"Reproduced: {len(there)} of {len(there)} published")

    pandas.DataFrame({"x": [1]}).to_parquet(path)
    with pytest.raises(StudyError, match="holds no published numbers"):
        reproduce.compare(study, path)
