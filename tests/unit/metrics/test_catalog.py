"""The records of the metrics say what the modules say."""

from __future__ import annotations

import importlib
from pathlib import Path
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


def test_the_interval_of_a_number_is_that_of_its_own_values_by_document() -> None:
    asked: dict[str, dict[str, Any]] = {
        "perplexity": {"lengths": [8], "temperature_documents": 1, "beside": {"kind": "block"}},
        "longppl": {"lengths": [8]},
        "misalignment": {"beyond": [2]},
        "longbench_e": {},
        "longbench_likelihood": {},
    }
    columns = [column for name, settings in asked.items() for column in METRICS[name].columns(settings, 8)]
    # A perplexity is exp of a mean of losses; where no document has a value, there is none.
    assert {column.metric: column.documents for column in columns} == {
        "perplexity": "nll",
        "perplexity_checkpoint_t": "nll_checkpoint_t",
        "perplexity_block": "nll_block",
        "longppl": "longppl_nll",
        **dict.fromkeys(("ece", "key_tokens")),
        **{name: name for name in ("accuracy", "lsd", "sce", "symkl")},
        **{name: name for name in ("longbench_e", "longbench_likelihood", "longbench_gain")},
    }


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


ASKED: dict[str, dict[str, Any]] = {
    "longbench_e": {},
    "longbench_likelihood": {},
    "perplexity": {"lengths": [8, 32], "temperature_documents": 1, "beside": {"kind": "block"}},
    "longppl": {"lengths": [32]},
    "harness": {"tasks": ["up", "down"], "lower_is_better": ["down"]},
    "misalignment": {"beyond": [2]},
}


def test_which_way_a_number_is_better() -> None:
    """Tables mark the best arm by it, and claims are read by it."""
    assert ASKED.keys() == METRICS.keys()
    ways: dict[bool, set[str]] = {True: set(), False: set()}
    for name, asked in ASKED.items():
        metric = METRICS[name]
        tables = [column for columns in metric.tables.values() for column in columns(asked)]
        for column in [*metric.columns(asked, 8), *tables]:
            ways[column.higher_is_better].add(column.metric)
    assert ways == {
        True: {"accuracy", "lsd", "key_tokens", "longbench_e", "longbench_gain", "harness:up"},
        False: {
            *("perplexity", "perplexity_checkpoint_t", "perplexity_block", "ece", "longppl", "sce", "symkl"),
            *("longbench_likelihood", "harness:down"),
        },
    }


@pytest.mark.parametrize("metric", ["longbench_e", "longbench_likelihood"])
def test_items_of_ones_own_are_inputs_of_the_jobs_that_read_them(metric: str, tmp_path: Path) -> None:
    """Others in their place are noticed by that."""
    for name in ("lcc_e.jsonl", "lcc.jsonl"):
        (tmp_path / name).touch()

    def files(**source: str) -> list[str]:
        return METRICS[metric].files({"source": source}, "corpus")

    assert files(kind="folder", path=str(tmp_path)) == [str(tmp_path / "lcc_e.jsonl")]
    assert files(kind="zip", path="data.zip") == ["data.zip"]
    assert files(kind="hub", dataset="THUDM/LongBench", revision="0" * 40) == []
