"""Which tasks are taken, and which are refused by name."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from longshort.commands import fetch
from longshort.data.settings import BytesTokenizer
from longshort.data.tokenizers import byte_tokenizer
from longshort.evaluation import harness, harness_tasks
from longshort.records import hub
from longshort.records.publish import write_json
from tests.support.harness import CHOOSE, ITEMS, asked, by_task, evaluate, log_likelihood, tiny_llama


@pytest.fixture
def model() -> Any:
    return tiny_llama()


def test_groups_stand_beside_their_tasks(
    model: Any, tokenizer: Any, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lm_eval.tasks import TaskManager

    # Each of three choices is right for one of these tasks: means over four items differ, and their mean is 1 / 3.
    for shift in range(3):
        text = CHOOSE.replace("own_choose", f"own_shifted_{shift}").replace("DATA", str(own / "items.jsonl"))
        text = text.replace("doc_to_target: gold", f"doc_to_target: '{{{{(gold + {shift}) % 3}}}}'")
        (own / f"shifted_{shift}.yaml").write_text(f"{text}tag: own_tag\n")
    names = [f"own_shifted_{shift}" for shift in range(3)]
    (own / "plain.yaml").write_text(f"group: own_plain\ntask: [{', '.join(names)}]\n")
    # The whole index of lm_eval takes 20 s to read.
    only_own = TaskManager(include_path=str(own), include_defaults=False)
    monkeypatch.setattr(harness_tasks, "_manager", lambda settings: only_own)
    measured = evaluate(model, tokenizer, asked(own, "own_group", "own_choose", "own_plain", "own_tag")).rows
    rows = by_task(measured)
    assert rows["own_group:acc"] == (rows["own_choose:acc"] + rows["own_choose_again:acc"]) / 2
    assert rows["harness:own_group"] == rows["own_group:acc"]
    assert rows["harness:own_choose"] == rows["own_choose:acc"]
    for name in ("own_plain", "own_tag"):
        assert rows[f"harness:{name}"] == pytest.approx(1 / 3)
        assert [row["n"] for row in measured if row["metric"] == f"harness:{name}"] == [12]


def test_documents_other_than_those_that_were_fetched_are_refused(
    model: Any, own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """lm_eval names no revision of most data: a study that fetches later may bring others into the same cache."""
    from lm_eval.tasks import TaskManager

    only_own = TaskManager(include_path=str(own), include_defaults=False)
    monkeypatch.setattr(harness_tasks, "_manager", lambda settings: only_own)
    monkeypatch.setattr(hub, "home", lambda: tmp_path / "home")
    monkeypatch.setattr(fetch, "hub_parts", lambda study: [hub.task("own_choose")])
    settings, spec = asked(None, "own_choose"), BytesTokenizer()
    study: Any = SimpleNamespace(
        evaluations=SimpleNamespace(harness=settings),
        model=SimpleNamespace(max_length=128),
        data=SimpleNamespace(tokenizer=spec),
    )
    task = hub.task("own_choose")
    for of_an_earlier_version in ({}, {"documents": {"by tokenizer": "0"}}):
        write_json(hub.record(task), of_an_earlier_version)
        assert not hub.was_fetched(task) and "data=" not in harness.protocol(settings, 64, spec)
        with pytest.raises(hub.NotFetched, match="data of lm_eval own_choose .* run `longshort fetch"):
            evaluate(model, byte_tokenizer(), settings)
        hub.documents.cache_clear()
    fetch._fetch_tasks(study, print)
    assert hub.was_fetched(task)
    first = harness.protocol(settings, 64, spec)
    asked_first = evaluate(model, byte_tokenizer(), settings).items
    items = own / "items.jsonl"
    items.write_text(items.read_text().replace("one two", "one"))
    with pytest.raises(ValueError, match="'own_choose', whose documents are not those that were fetched"):
        evaluate(model, byte_tokenizer(), settings)
    fetch._fetch_tasks(study, print)
    with pytest.raises(ValueError, match="not those that were fetched"):
        evaluate(model, byte_tokenizer(), settings)  # of a job that began before, and has named its protocol
    hub.documents.cache_clear()
    assert evaluate(model, byte_tokenizer(), settings).items != asked_first
    protocols = [first, harness.protocol(settings, 64, spec)]
    hub.documents.cache_clear()
    assert len(set(protocols)) == 2 and all("&data=" in protocol for protocol in protocols)


class Task(dict):
    """What is asked of a task of lm_eval, and its documents."""

    get_config = dict.get

    def __init__(self, dataset: Any, **config: Any) -> None:
        super().__init__(config)
        self.dataset = dataset


class Loaded(list):
    """As `load_dataset` gives it; what a task makes has no files."""

    cache_files = ("a file",)


def test_the_digest_holds_every_document_that_is_asked_and_none_that_a_task_makes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(harness_tasks, "MOST", 2)

    def digest(dataset: Any, **config: Any) -> str:
        return harness_tasks.Entry("task", {"task": Task(dataset, **config)}, {}).documents

    rows, other = [{"q": n} for n in range(4)], [{"q": n} for n in (0, 1, 2, 9)]
    for config in ({"test_split": "test"}, {"validation_split": "test"}, {}):  # as tasks written in Python
        assert digest({"test": rows}, **config) == digest({"test": rows}, **config) != digest({"test": other}, **config)
    train = {"test": rows, "train": rows}
    assert digest(train, test_split="test") == digest({**train, "train": other}, test_split="test")
    assert digest(train, test_split="test") != digest({**train, "train": other[2:]}, test_split="test")
    made = {"custom_dataset": print, "test_split": "test"}
    assert digest({"test": rows}, **made) == digest(None) == harness_tasks.MADE
    assert digest({"test": Loaded(rows)}, **made) not in (harness_tasks.MADE, digest({"test": Loaded(other)}, **made))
    assert digest({"test": [{"q": object()}]}) == digest({"test": [{"q": object()}]})


def test_lower_is_better_must_be_said(model: Any, tokenizer: Any, own: Path) -> None:
    with pytest.raises(ValueError, match="byte_perplexity is better when lower: name it in .*lower_is_better"):
        evaluate(model, tokenizer, asked(own, "own_flow"))
    with pytest.raises(ValueError, match="acc is better when higher: take it out of"):
        evaluate(model, tokenizer, asked(own, "own_choose", lower_is_better=["own_choose"]))
    rows = by_task(evaluate(model, tokenizer, asked(own, "own_flow", lower_is_better=["own_flow"])).rows)
    nats = [log_likelihood(model, [256], list(item["question"].encode())) for item in ITEMS]
    bits = -sum(nats) / sum(len(item["question"]) for item in ITEMS) / math.log(2)
    assert rows["own_flow:bits_per_byte"] == pytest.approx(bits, rel=1e-5)
    assert rows["harness:own_flow"] == rows["own_flow:byte_perplexity"] == pytest.approx(2**bits, rel=1e-5)


@pytest.mark.wide
def test_unknown_and_refused_tasks_are_named(
    model: Any, tokenizer: Any, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lm_eval.tasks import TaskManager

    everything = TaskManager(include_path=str(own))  # 10 s, hence once
    monkeypatch.setattr("lm_eval.tasks.TaskManager", lambda **_: everything)
    for name, said in {
        "own_chose": r"has 'own_chose', which lm_eval 0\.4\.13 does not know; did you mean 'own_choose' or",
        "humaneval": "runs code that the model writes: longshort does not; take it out",
        "babilong_qa1@4k": "could not load 'babilong_qa1@4k' .*RMT-team/babilong-1k-samples.*`longshort fetch` brings",
    }.items():
        with pytest.raises(ValueError, match=said):
            evaluate(model, tokenizer, asked(own, "own_choose", name))


def test_lengths_and_answers_that_do_not_fit_are_refused(model: Any, tokenizer: Any, own: Path) -> None:
    settings = asked(own, "own_choose@4096")
    with pytest.raises(ValueError, match="has 'own_choose@4096', but own_choose takes no length; leave @4096 out"):
        evaluate(model, tokenizer, settings)
    with pytest.raises(ValueError, match="max_length = 6 leaves no room for a prompt before the 6 tokens"):
        evaluate(model, tokenizer, asked(own, "own_answer", max_length=6))


def test_a_length_reaches_tasks_that_make_their_data(model: Any, tokenizer: Any, own: Path) -> None:
    """As RULER does it: items of the length that is asked for, a metric of its name, -1 for other lengths. What is
    drawn for them is the same in each job: arms are compared on the same items."""
    (own / "made.py").write_text(
        "import datasets, numpy, random\n"
        "from transformers import AutoTokenizer\n"
        "def make(max_seq_lengths, tokenizer, **others):\n"
        "    count = len(AutoTokenizer.from_pretrained(tokenizer)('some text').input_ids)\n"
        "    def row(n):\n"
        "        drawn = f'{random.random()} {numpy.random.random()}'\n"
        "        return {'text': 'x' * (n - count), 'length': n, 'drawn': drawn}\n"
        "    rows = [row(n) for n in max_seq_lengths for _ in range(2)]\n"
        "    return {'test': datasets.Dataset.from_list(rows)}\n"
        "def score(doc, results):\n"
        "    return {'4096': -1.0, str(doc['length']): float(doc['length'])}\n"
        "def average(values):\n"
        "    kept = [value for value in values if value != -1]\n"
        "    return sum(kept) / len(kept) if kept else -1\n"
    )
    (own / "made.yaml").write_text(
        "task: own_made\ndataset_path: ''\ndataset_name: ''\ncustom_dataset: !function made.make\n"
        "output_type: generate_until\ntest_split: test\ndoc_to_text: '{{text}}'\ndoc_to_target: '{{drawn}}'\n"
        "process_results: !function made.score\ngeneration_kwargs: {max_gen_toks: 2, do_sample: false}\n"
        "metric_list:\n  - {metric: '4096', aggregation: !function made.average, higher_is_better: true}\n"
    )
    settings = asked(own, "own_made@40", "own_made@64")
    measured = evaluate(model, tokenizer, settings)
    rows = by_task(measured.rows)
    assert rows["harness:own_made@40"] == rows["own_made@40:40"] == 40
    assert rows["harness:own_made@64"] == rows["own_made@64:64"] == 64
    assert not any("4096" in str(row["task"]) for row in measured.rows)
    assert [item["task"] for item in measured.items] == ["own_made@40"] * 2 + ["own_made@64"] * 2
    assert len({item["target"] for item in measured.items}) > 1
    assert evaluate(model, byte_tokenizer(), settings).items == measured.items  # loaded anew for a tokenizer


def test_the_tokenizer_that_tasks_load_names_no_code(tokenizer: Any, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer.init_kwargs["auto_map"] = {"AutoTokenizer": [None, "some/repository--code.Tokenizer"]}
    tokenizer.save_pretrained(tmp_path / "plain")
    assert "some/repository" in (tmp_path / "plain" / "tokenizer_config.json").read_text()
    harness_tasks._save_without_code(tokenizer, tmp_path / "copy")
    assert not any(b"some/repository" in path.read_bytes() for path in (tmp_path / "copy").iterdir())
    assert AutoTokenizer.from_pretrained(tmp_path / "copy")("\u00e9").input_ids == [0xC3, 0xA9]
