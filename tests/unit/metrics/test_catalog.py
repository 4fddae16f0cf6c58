"""The records of the metrics say what the modules say."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest

from longshort.evaluation import protocols, scoring
from longshort.identity.spec import restored
from longshort.metrics.catalog import BUCKETS, METRICS
from longshort.metrics.record import Metric
from longshort.metrics.settings import Perplexity


def test_the_names_of_tasks_and_buckets_are_those_of_the_evaluation() -> None:
    assert BUCKETS == scoring.BUCKETS


@pytest.mark.parametrize("metric", METRICS.values(), ids=lambda metric: metric.name)
def test_the_catalogue_names_the_module_that_measures(metric: Metric) -> None:
    measurement = importlib.import_module(metric.module).MEASUREMENT
    assert (measurement.metric, measurement.module) == (metric.name, metric.module)
    assert (measurement.keeps_items, measurement.asks) == (metric.keeps_items, metric.asks)


@pytest.mark.parametrize(
    "protocol",
    [
        {"kind": "prefix"},
        {"kind": "same-targets", "targets": 4},
        {"kind": "block", "tokens": 100},
        {"kind": "sliding", "stride": 5, "tokens": 99},
        {"kind": "sliding", "stride": 50},
    ],
)
def test_what_perplexity_is_planned_to_read_is_what_it_reads(protocol: dict[str, Any]) -> None:
    lengths, beside = [8, 32], {"kind": "block", "tokens": 64}
    asked = {"protocol": protocol, "beside": beside, "lengths": lengths, "documents": 3}
    whole = protocol.get("tokens") or max(lengths)
    read = 0
    for chosen, tokens in ((protocol, whole), (beside, 64)):
        settings = restored(Perplexity, {**asked, "protocol": chosen, "beside": None, "temperature_documents": 0})
        ids = np.arange(tokens + 1 if chosen["kind"] == "same-targets" else tokens)
        for length in lengths:
            found = protocols.readings(settings.protocol, ids, length, max(lengths), 0, bos=1)
            read += sum(reading.input_ids.numel() for reading in found)
    assert METRICS["perplexity"].tokens({"beside": None, **asked}, 8) == 3 * read
