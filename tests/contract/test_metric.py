"""A metric of one's own, added as CONTRIBUTING says: a module that measures it and a record in the catalogue."""

from __future__ import annotations

from pathlib import Path

import pandas

from tests.support.project import edit_study, planned, run_snakemake

MODULE = '''
"""The mean absolute weight of a model."""

from __future__ import annotations

from longshort.evaluation import stage
from longshort.evaluation.journal import Measured
from longshort.metrics.settings import WeightSize


def protocol(settings, l_train, tokenizer):
    return f"weight-size-v1?scale={settings.scale}"


def evaluate(model, tokenizer, settings, data, l_train, journal):
    weights = list(model.parameters())
    count = sum(weight.numel() for weight in weights)
    mean = float(sum(weight.abs().sum() for weight in weights)) / count
    return Measured([{"metric": "weight_size", "value": settings.scale * mean, "n": count}])


MEASUREMENT = stage.Measurement(
    metric="weight_size",
    module="longshort.evaluation.weight_size",
    asks=WeightSize,
    evaluate=evaluate,
    protocol=protocol,
)

if __name__ == "__main__":
    stage.main(MEASUREMENT)
'''
SETTINGS = '''

class WeightSize(Strict):
    """The mean absolute weight."""

    scale: float = Field(gt=0, description="what it is multiplied by")
'''
RECORD = """

METRICS["weight_size"] = Metric(
    name="weight_size",
    description="mean absolute weight",
    settings=settings.WeightSize,
    module="longshort.evaluation.weight_size",
    rows=("weight_size",),
    columns=lambda asked, l_train: [Column("weight_size", "weight_size", None, "weight size", False, 4, "quality")],
    tokens=lambda asked, l_train: 0.0,
    longest=lambda asked, l_train: None,
    tables={},
    legend={"weight_size": "weight size: the mean absolute weight."},
)
"""


def test_a_new_metric_is_measured_and_shown_and_reruns_nothing(finished_copy: Path) -> None:
    package = finished_copy / "src/longshort"
    (package / "evaluation/weight_size.py").write_text(MODULE)
    for file, text in {"metrics/settings.py": SETTINGS, "metrics/catalog.py": RECORD}.items():
        path = package / file
        path.write_text(path.read_text() + text)
    assert set(planned(finished_copy)) <= {"metrics", "tables", "plots", "report"}  # their code reads the catalogue
    edit_study(finished_copy, evaluations__weight_size={"scale": 2.0})
    runs = len(list((finished_copy / "results/runs").glob("*/training")))
    rerun = planned(finished_copy)
    assert rerun.pop("weight_size") == runs and rerun.pop("specification") == 1
    assert set(rerun) == {"study", "metrics", "tables", "plots", "report"}
    run_snakemake(finished_copy, "tables")
    table = pandas.read_csv(finished_copy / "results/tiny/tables/main.csv")
    shown = table[table["column"].eq("weight_size") & table["arm"].isin(["baseline", "constant"])]
    assert (shown["mean"] > 0).all() and set(shown["step"]) == {2, 6}
    assert "the mean absolute weight" in (finished_copy / "results/tiny/tables/main.md").read_text()
