from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from longshort.evaluation import harness, harness_answers, harness_tasks
from longshort.evaluation.journal import Journal

ITEMS = [
    {"question": "one two", "choices": ["three", "3", "no"], "gold": 0, "answer": "three"},
    {"question": "a b c", "choices": ["d", "xyz", "c"], "gold": 2, "answer": "d"},
    {"question": "do re mi", "choices": ["fa", "so", "la la"], "gold": 1, "answer": "fa"},
    {"question": "red green", "choices": ["blue", "x"], "gold": 0, "answer": "blue"},
]
CHOOSE = """
task: own_choose
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: multiple_choice
doc_to_text: "Q: {{question}}\\nA:"
doc_to_choice: choices
doc_to_target: gold
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
metadata: {version: 1.0}
"""
ANSWER = """
task: own_answer
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}} "
doc_to_target: answer
generation_kwargs: {max_gen_toks: 6, do_sample: false, until: ["\\n\\n"]}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
metadata: {version: 1.0}
"""
FLOW = """
task: own_flow
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: question
metric_list:
  - {metric: byte_perplexity}
  - {metric: bits_per_byte}
metadata: {version: 1.0}
"""
SAY = """
task: own_say
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: loglikelihood
doc_to_text: "{{question}}"
doc_to_target: " {{answer}}"
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: perplexity, aggregation: perplexity, higher_is_better: false}
metadata: {version: 1.0}
"""
GROUP = """
group: own_group
task: [own_choose, own_choose_again]
aggregate_metric_list:
  - {metric: acc, weight_by_size: true}
"""


def write_tasks(folder: Path) -> Path:
    folder.mkdir()
    (folder / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in ITEMS))
    again = CHOOSE.replace("own_choose", "own_choose_again").replace("A:", "Answer:")
    for name, text in {"choose": CHOOSE, "again": again, "answer": ANSWER, "flow": FLOW, "group": GROUP}.items():
        (folder / f"{name}.yaml").write_text(text.replace("DATA", str(folder / "items.jsonl")))
    return folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def own(tmp_path: Path) -> Path:
    return write_tasks(tmp_path / "tasks")


@pytest.fixture
def tokenizer() -> Any:
    from longshort.data.tokenizers import byte_tokenizer

    return byte_tokenizer()


@pytest.fixture
def model() -> Any:
    return tiny_llama()


def tiny_llama(**changes: Any) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=257,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        initializer_range=0.3,
        bos_token_id=256,
        eos_token_id=256,
        pad_token_id=256,
        **{"max_position_embeddings": 128, **changes},
    )
    return LlamaForCausalLM(config).eval()


def asked(own: Path, *tasks: str, **settings: Any) -> dict[str, Any]:
    return {
        **{"tasks": list(tasks), "max_length": 128, "limit": None, "num_fewshot": None, "lower_is_better": []},
        **{"include_path": str(own), **settings},
    }


def evaluate(model: Any, tokenizer: Any, settings: dict[str, Any], journal: Any = None) -> Any:
    return harness.evaluate(model, tokenizer, settings, Path("."), 64, journal)


def by_task(rows: list[dict[str, Any]]) -> dict[str, float]:
    return {row["task"] or row["metric"]: row["value"] for row in rows}


@torch.inference_mode()
def log_likelihood(model: Any, context: list[int], continuation: list[int]) -> float:
    """Nats of the continuation after the context, by the plain model."""
    log_p = model(input_ids=torch.tensor([context + continuation[:-1]])).logits[0].log_softmax(-1)
    places = range(len(context) - 1, len(context) + len(continuation) - 1)
    return sum(float(log_p[place, token]) for place, token in zip(places, continuation, strict=True))


def choices_by_hand(model: Any, items: list[dict[str, Any]]) -> tuple[float, float, list[list[float]]]:
    """acc, acc_norm (by bytes of the choice) and the log-likelihoods."""
    nats = [
        [log_likelihood(model, list(f"Q: {i['question']}\nA:".encode()), list(f" {c}".encode())) for c in i["choices"]]
        for i in items
    ]
    best = [max(range(len(row)), key=row.__getitem__) for row in nats]
    per_byte = [
        [v / len(c) for v, c in zip(row, i["choices"], strict=True)] for row, i in zip(nats, items, strict=True)
    ]
    best_norm = [max(range(len(row)), key=row.__getitem__) for row in per_byte]
    gold = [item["gold"] for item in items]
    return (
        sum(a == b for a, b in zip(best, gold, strict=True)) / len(items),
        sum(a == b for a, b in zip(best_norm, gold, strict=True)) / len(items),
        nats,
    )


@torch.inference_mode()
def greedy(model: Any, prompt: str, tokens: int) -> str:
    """The most probable next byte, again and again, until the separator."""
    ids = list(prompt.encode())
    answer: list[int] = []
    while len(answer) < tokens:
        token = int(model(input_ids=torch.tensor([ids + answer])).logits[0, -1].argmax())
        if token == 256:
            break
        answer.append(token)
    return bytes(answer).decode(errors="replace")


def test_choices_are_scored_as_by_hand(model: Any, tokenizer: Any, own: Path) -> None:
    measured = evaluate(model, tokenizer, asked(own, "own_choose"))
    acc, acc_norm, nats = choices_by_hand(model, ITEMS)
    rows = by_task(measured.rows)
    assert rows["harness:own_choose"] == rows["own_choose:acc"] == pytest.approx(acc)
    assert rows["own_choose:acc_norm"] == pytest.approx(acc_norm)
    spread = math.sqrt(sum(((k < acc * 4) - acc) ** 2 for k in range(4)) / 3 / 4)
    assert rows["own_choose:acc_stderr"] == pytest.approx(spread)
    assert [row["n"] for row in measured.rows] == [4] * 5
    assert measured.rows[0]["metric"] == "harness:own_choose" and measured.rows[0]["task"] is None
    assert {row["metric"] for row in measured.rows[1:]} == {"harness"}
    for item, expected in zip(measured.items, nats, strict=True):
        assert [value for value, _ in json.loads(item["response"])] == pytest.approx(expected, abs=1e-4)
    assert [item["target"] for item in measured.items] == ["0", "2", "1", "0"]
    assert [item["id"] for item in measured.items] == ["0", "1", "2", "3"]
    assert json.loads(measured.items[0]["metrics"]).keys() == {"acc", "acc_norm"}


def test_answers_are_greedy_and_matched(model: Any, tokenizer: Any, own: Path) -> None:
    measured = evaluate(model, tokenizer, asked(own, "own_answer"))
    expected = [greedy(model, f"{item['question']} ", 6).split("\n\n")[0] for item in ITEMS]
    assert [item["response"] for item in measured.items] == expected
    assert len(set(expected)) > 1
    right = sum(answer == item["answer"] for answer, item in zip(expected, ITEMS, strict=True)) / 4
    assert by_task(measured.rows)["harness:own_answer"] == right
    # One of the answers made the expected one: the score follows.
    lines = [{**item, "answer": answer} for item, answer in zip(ITEMS, expected, strict=True)]
    lines[3]["answer"] = "another"
    (own / "items.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    from longshort.data.tokenizers import byte_tokenizer

    again = evaluate(model, byte_tokenizer(), asked(own, "own_answer"))
    assert by_task(again.rows)["harness:own_answer"] == 0.75


def test_numbers_are_those_of_simple_evaluate(model: Any, tokenizer: Any, own: Path) -> None:
    """And of a second checkpoint in the same process, which takes the tasks as they are loaded already."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    (own / "say.yaml").write_text(SAY.replace("DATA", str(own / "items.jsonl")))
    settings = asked(own, "own_choose", "own_answer", "own_say", num_fewshot=1, limit=3)
    first = evaluate(model, tokenizer, settings)
    assert evaluate(model, tokenizer, settings) == first
    theirs = lm_eval.simple_evaluate(
        HFLM(pretrained=model, tokenizer=tokenizer, max_length=128, batch_size=1),
        tasks=["own_choose", "own_answer", "own_say"],
        num_fewshot=1,
        limit=3,
        task_manager=TaskManager(include_path=str(own), include_defaults=False),
    )
    rows = by_task(first.rows)
    assert rows["own_choose:acc"] == theirs["results"]["own_choose"]["acc,none"]
    assert rows["own_choose:acc_norm"] == theirs["results"]["own_choose"]["acc_norm,none"]
    assert rows["own_answer:exact_match"] == theirs["results"]["own_answer"]["exact_match,none"]
    # By bootstrap, where that of a mean has a formula.
    assert rows["own_say:perplexity_stderr"] == theirs["results"]["own_say"]["perplexity_stderr,none"] > 0
    samples = [sample for task in settings["tasks"] for sample in theirs["samples"][task]]
    assert [item["response"] for item in first.items] == [
        harness_answers._text(sample["filtered_resps"]) for sample in samples
    ]


def test_limit_takes_the_first_items(model: Any, tokenizer: Any, own: Path) -> None:
    measured = evaluate(model, tokenizer, asked(own, "own_choose", limit=2))
    assert by_task(measured.rows)["own_choose:acc"] == choices_by_hand(model, ITEMS[:2])[0]
    assert len(measured.items) == 2 and {row["n"] for row in measured.rows} == {2}


def test_groups_stand_beside_their_tasks(
    model: Any, tokenizer: Any, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lm_eval.tasks import TaskManager

    # The whole index of lm_eval takes 20 s to read.
    only_own = TaskManager(include_path=str(own), include_defaults=False)
    monkeypatch.setattr(harness_tasks, "_manager", lambda settings: only_own)
    rows = by_task(evaluate(model, tokenizer, asked(own, "own_group", "own_choose")).rows)
    assert rows["own_group:acc"] == (rows["own_choose:acc"] + rows["own_choose_again:acc"]) / 2
    assert rows["harness:own_group"] == rows["own_group:acc"]
    assert rows["harness:own_choose"] == rows["own_choose:acc"]


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


def test_only_what_overflows_for_a_diverged_model_is_infinite(tokenizer: Any, own: Path) -> None:
    (own / "say.yaml").write_text(SAY.replace("DATA", str(own / "items.jsonl")))
    settings = asked(own, "own_flow", "own_say", lower_is_better=["own_flow"])
    fine = evaluate(tiny_llama(), tokenizer, settings)
    model = tiny_llama()
    with torch.no_grad():
        model.lm_head.weight.mul_(1e6)
    measured = evaluate(model, tokenizer, settings)
    rows = by_task(measured.rows)
    nats = [log_likelihood(model, [256], list(item["question"].encode())) for item in ITEMS]
    bits = -sum(nats) / sum(len(item["question"]) for item in ITEMS) / math.log(2)
    assert rows["own_flow:bits_per_byte"] == pytest.approx(bits, rel=1e-4)
    assert rows["harness:own_say"] == rows["own_say:acc"] == 0
    infinite = {task for task, value in rows.items() if value == math.inf}
    assert infinite == {"harness:own_flow", "own_flow:byte_perplexity", "own_say:perplexity"}
    assert len(measured.items) == 8 and {row["n"] for row in measured.rows} == {4}
    # The tasks are kept in the process; a checkpoint that comes after has its numbers as before.
    assert evaluate(tiny_llama(), tokenizer, settings) == fine


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
    """As RULER does it: items of the length that is asked for, a metric of its name, -1 for other lengths."""
    (own / "made.py").write_text(
        "import datasets\n"
        "from transformers import AutoTokenizer\n"
        "def make(max_seq_lengths, tokenizer, **others):\n"
        "    count = len(AutoTokenizer.from_pretrained(tokenizer)('some text').input_ids)\n"
        "    rows = [{'text': 'x' * (n - count), 'length': n} for n in max_seq_lengths for _ in range(2)]\n"
        "    return {'test': datasets.Dataset.from_list(rows)}\n"
        "def score(doc, results):\n"
        "    return {'4096': -1.0, str(doc['length']): float(doc['length'])}\n"
        "def average(values):\n"
        "    kept = [value for value in values if value != -1]\n"
        "    return sum(kept) / len(kept) if kept else -1\n"
    )
    (own / "made.yaml").write_text(
        "task: own_made\ndataset_path: ''\ndataset_name: ''\ncustom_dataset: !function made.make\n"
        "output_type: generate_until\ntest_split: test\ndoc_to_text: '{{text}}'\ndoc_to_target: '{{length}}'\n"
        "process_results: !function made.score\ngeneration_kwargs: {max_gen_toks: 2, do_sample: false}\n"
        "metric_list:\n  - {metric: '4096', aggregation: !function made.average, higher_is_better: true}\n"
    )
    measured = evaluate(model, tokenizer, asked(own, "own_made@40", "own_made@64"))
    rows = by_task(measured.rows)
    assert rows["harness:own_made@40"] == rows["own_made@40:40"] == 40
    assert rows["harness:own_made@64"] == rows["own_made@64:64"] == 64
    assert not any("4096" in str(row["task"]) for row in measured.rows)
    assert [item["task"] for item in measured.items] == ["own_made@40"] * 2 + ["own_made@64"] * 2


def test_the_tokenizer_that_tasks_load_names_no_code(tokenizer: Any, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer.init_kwargs["auto_map"] = {"AutoTokenizer": [None, "some/repository--code.Tokenizer"]}
    tokenizer.save_pretrained(tmp_path / "plain")
    assert "some/repository" in (tmp_path / "plain" / "tokenizer_config.json").read_text()
    harness_tasks._save_without_code(tokenizer, tmp_path / "copy")
    assert not any(b"some/repository" in path.read_bytes() for path in (tmp_path / "copy").iterdir())
    assert AutoTokenizer.from_pretrained(tmp_path / "copy")("\u00e9").input_ids == [0xC3, 0xA9]


class Killed(Exception):
    pass


@contextmanager
def forwards(model: Any, most: float = math.inf) -> Iterator[list[int]]:
    """Counts the forwards; the job is killed in that after `most`."""
    done: list[int] = []

    def count(*_: Any) -> None:
        if len(done) == most:
            raise Killed
        done.append(1)

    hook = model.register_forward_pre_hook(count)
    try:
        yield done
    finally:
        hook.remove()


LETTER = CHOOSE.replace("own_choose", "own_letter").replace("doc_to_choice: choices", "doc_to_choice: [a, b, c]")
DRAW = ANSWER.replace("own_answer", "own_draw").replace("do_sample: false", "do_sample: true, temperature: 1.0")


@pytest.mark.parametrize(
    ("task", "killed_after", "spared", "said"),
    [
        ("own_choose", 7, 7, "own_choose: 7 of 11"),
        # The three answers of an item need one forward; of the second item's, the kill below takes one.
        ("own_letter", 2, 1, "own_letter: 6 of 12"),
        ("own_flow", 3, 3, "own_flow: 3 of 4"),
        # Six tokens an answer.
        ("own_answer", 15, 12, "own_answer: 2 of 4"),
        ("own_draw", 15, 0, "own_draw: 2 of 4"),
    ],
)
def test_a_killed_job_goes_on_after_the_last_answer(
    task: str, killed_after: int, spared: int, said: str, model: Any, tokenizer: Any, own: Path,
    tmp_path: Path, capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    for name, text in {"letter": LETTER + 'target_delimiter: ""\n', "draw": DRAW}.items():
        (own / f"{name}.yaml").write_text(text.replace("DATA", str(own / "items.jsonl")))
    settings = asked(own, task, lower_is_better=[task] if task == "own_flow" else [])
    with forwards(model) as needed:
        whole = evaluate(model, tokenizer, settings)
    file = tmp_path / "journal"
    part = Journal(file).of("step 2")
    with forwards(model, killed_after), pytest.raises(Killed):
        evaluate(model, tokenizer, settings, part)
    assert part.progress() == {"done": 0, "total": 1, "unit": f"items of step 2, {said}"}
    if task == "own_letter":
        file.write_bytes(file.read_bytes()[:-1])
    with forwards(model) as again:
        assert evaluate(model, tokenizer, settings, Journal(file).of("step 2")) == whole
    assert len(again) == len(needed) - spared
    with forwards(model, 0):
        assert evaluate(model, tokenizer, settings, Journal(file).of("step 2")) == whole
    assert "requests" not in capfd.readouterr().err  # lm_eval's bars


def test_rotary_frequencies_that_follow_the_length_are_reset(tokenizer: Any, own: Path) -> None:
    """lm_eval takes the longest row first, whose frequencies transformers would keep for the shorter ones."""
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
    model = tiny_llama(rope_parameters=rope, max_position_embeddings=8)
    fresh = copy.deepcopy(model)
    measured = evaluate(model, tokenizer, asked(own, "own_choose", "own_answer"))
    for item, asked_for in zip(measured.items, ITEMS, strict=False):
        prompt = list(f"Q: {asked_for['question']}\nA:".encode())
        expected = [
            log_likelihood(copy.deepcopy(fresh), prompt, list(f" {choice}".encode())) for choice in asked_for["choices"]
        ]
        assert [value for value, _ in json.loads(item["response"])] == pytest.approx(expected, abs=1e-4)
    # The first answer follows a longer prompt, and is that of a model which saw no other.
    alone = evaluate(copy.deepcopy(fresh), tokenizer, asked(own, "own_answer", limit=1))
    assert measured.items[4]["response"] == alone.items[0]["response"]


def test_the_protocol_says_what_was_done(own: Path) -> None:
    assert (
        harness.protocol({**asked(own, "ruler@4096", "hellaswag", limit=10), "include_path": None}, 128)
        == "harness/lm_eval-0.4.13-v2?tasks=ruler@4096,hellaswag&limit=10&fewshot=task&max=128"
    )
    before = harness.protocol(asked(own, "hellaswag", num_fewshot=0), 128)
    assert "limit=none&fewshot=0" in before
    # Own tasks are what their files say.
    task = next(own.rglob("*.yaml"))
    task.write_text(task.read_text() + "# \n")
    assert harness.protocol(asked(own, "hellaswag", num_fewshot=0), 128) != before
