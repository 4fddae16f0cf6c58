"""The records of the metrics say what the modules say."""

from __future__ import annotations

import importlib

import pytest

from longshort.evaluation import scoring
from longshort.metrics.catalog import BUCKETS, METRICS
from longshort.metrics.record import Metric


def test_the_names_of_tasks_and_buckets_are_those_of_the_evaluation() -> None:
    assert BUCKETS == scoring.BUCKETS


@pytest.mark.parametrize("metric", METRICS.values(), ids=lambda metric: metric.name)
def test_the_catalogue_names_the_module_that_measures(metric: Metric) -> None:
    measurement = importlib.import_module(metric.module).MEASUREMENT
    assert (measurement.metric, measurement.module) == (metric.name, metric.module)
    assert (measurement.keeps_items, measurement.asks) == (metric.keeps_items, metric.asks)
