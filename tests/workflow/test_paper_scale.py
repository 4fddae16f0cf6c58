"""Each study of the paper's size, as it stands but for its sizes: a model of the same architecture with a few random
weights, from a hub on loopback, extended, trained by two processes and measured through the same jobs. Two arms each,
and the first three bases where each seed has its own; `make long` runs every arm, and ABF's study."""

from __future__ import annotations

import json
import sys
import zipfile
from itertools import islice
from pathlib import Path
from typing import Any

import pandas
import pytest
import torch
import yaml
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from transformers.convert_slow_tokenizer import bytes_to_unicode

from longshort.evaluation.prompts import TASKS
from tests.support import forkserver, hub
from tests.support.project import ROOT, longshort, make_project, run_snakemake
from tests.support.studies import FROM_THE_HUB

pytestmark = pytest.mark.wide
SCALE = 128  # of all lengths
SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
}
# Special tokens in the order of their ids, before all others or behind them, and which is what (tokenizer_config.json);
# whether texts are given BOS (add_bos_token, or the template in tokenizer.json); how many embeddings have no token
# (vocab_size of config.json less the tokens): each as in the repository that is named, on the hub.
TOKENIZERS: dict[str, dict[str, Any]] = {
    # 32000 tokens and embeddings: <unk> 0, <s> 1, </s> 2; no padding.
    "meta-llama/Llama-2-7b-hf": {
        "first": ["<unk>", "<s>", "</s>"],
        "named": {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"},
        "adds_bos": True,
        "unused": 0,
    },
    # 128256 tokens and embeddings: <|begin_of_text|> 128000, <|end_of_text|> 128001; no padding, nothing unknown.
    "meta-llama/Meta-Llama-3-8B": {
        "last": ["<|begin_of_text|>", "<|end_of_text|>"],
        "named": {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"},
        "adds_bos": True,
        "unused": 0,
    },
    # 151665 tokens, 151936 embeddings: <|endoftext|> 151643 ends and pads; "bos_token": null.
    "Qwen/Qwen2.5-0.5B": {
        "last": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        "named": {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"},
        "adds_bos": False,
        "unused": 9,
    },
    # 49152 tokens and embeddings: <|endoftext|> 0 begins, ends and is the unknown; no padding.
    "HuggingFaceTB/SmolLM2-135M": {
        "first": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        "named": dict.fromkeys(["bos_token", "eos_token", "unk_token"], "<|endoftext|>"),
        "adds_bos": False,
        "unused": 0,
    },
    # 50277 tokens, 50304 embeddings: <|endoftext|> 0 begins, ends and is the unknown, <|padding|> 1.
    "EleutherAI/pythia-70m": {
        "first": ["<|endoftext|>", "<|padding|>"],
        "named": dict.fromkeys(["bos_token", "eos_token", "unk_token"], "<|endoftext|>"),
        "adds_bos": False,
        "unused": 5,
    },
}
# What finds the key tokens: of the same family as a study's model, and so its tokenizer but for what is not used here.
LIKE = {"meta-llama/Llama-3.1-8B": "meta-llama/Meta-Llama-3-8B", "Qwen/Qwen2.5-7B": "Qwen/Qwen2.5-0.5B"}
LIKE |= {f"EleutherAI/pythia-70m-seed{seed}": "EleutherAI/pythia-70m" for seed in range(1, 10)}
BOTH = {"hidden": {"alignment": {"alpha": 0.1}}}  # terms: of the output and of a layer
# Splits of PG19, in the repositories that hold them, and how many books each has here.
BOOKS = {"corpus": ("train", 40), "validation_corpus": ("validation", 8), "test_corpus": ("test", 20)}


def tokenizer_like(name: str) -> PreTrainedTokenizerFast:
    """Bytes, and what is special in the tokenizer that is named."""
    about = TOKENIZERS[LIKE.get(name, name)]
    tokens = [*about.get("first", []), *bytes_to_unicode().values(), *about.get("last", [])]
    raw = Tokenizer(models.BPE(vocab={token: place for place, token in enumerate(tokens)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    if about["adds_bos"]:
        bos = about["named"]["bos_token"]
        raw.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokens.index(bos))]
        )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, **about["named"])
    assert tokenizer("a").input_ids[:-1] == ([tokenizer.bos_token_id] if about["adds_bos"] else [])
    assert len(tokenizer) == len(tokens)
    return tokenizer


def tiny_model(name: str) -> Any:
    """Grouped heads, embeddings, theta and reach as of the model that is named; lengths over SCALE. The same whoever
    asks: all studies of this process share what was fetched, where a model of one commit has one content."""
    torch.manual_seed(sum(name.encode()))
    size = {"vocab_size": len(tokenizer_like(name)) + TOKENIZERS[LIKE.get(name, name)]["unused"]}
    if "Qwen" in name:
        rope = {"rope_type": "default", "rope_theta": 1e6}
        shape = {
            **SHAPE,
            **size,
            "num_key_value_heads": 2,
            "max_position_embeddings": 32768 // SCALE,
            "rope_parameters": rope,
        }
        return Qwen2ForCausalLM(Qwen2Config(**shape, tie_word_embeddings=True))
    if "pythia" in name:
        rope = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.25}
        shape = {**SHAPE, **size, "max_position_embeddings": 2048 // SCALE, "rope_parameters": rope}
        return GPTNeoXForCausalLM(GPTNeoXConfig(**shape))
    theta, reach, heads = (5e5, 8192, 2) if "Llama-3" in name else (1e4, 4096, 4)
    reach = 131072 if "Llama-3.1" in name else reach
    if "SmolLM2" in name:
        theta, reach, heads = 1e5, 8192, 2
    rope = {"rope_type": "default", "rope_theta": theta}
    shape = {
        **SHAPE,
        **size,
        "num_key_value_heads": heads,
        "max_position_embeddings": reach // SCALE,
        "rope_parameters": rope,
    }
    return LlamaForCausalLM(LlamaConfig(**shape, tie_word_embeddings="SmolLM2" in name))


def bases_of(study: dict[str, Any]) -> list[dict[str, Any]]:
    """Each with its name and revision."""
    return study["model"].get("bases", [study["model"]])


def serve_from(root: Path, study: dict[str, Any]) -> None:
    """What the study takes from the hub, small."""
    names = [base["name"] for base in bases_of(study)]
    assert study["data"]["tokenizer"]["name"] == names[0]
    for name in (*names, study["evaluations"]["longppl"]["evaluator"]["name"]):
        tiny_model(name).save_pretrained(root / "models" / name)
        tokenizer_like(name).save_pretrained(root / "models" / name)
    books = iter(range(97))
    for key, (split, count) in BOOKS.items():
        assert study["data"][key]["split"] == split
        texts = root / "datasets" / study["data"][key]["dataset"]
        (texts / "data").mkdir(parents=True, exist_ok=True)
        rows = [" ".join(str((book * 7 + k * k) % 97) for k in range(400)) for book in islice(books, count)]
        Dataset.from_dict({"text": rows}).to_parquet(str(texts / f"data/{split}-00000-of-00001.parquet"))
    item = {"context": "one two three " * 40, "input": "which?", "answers": ["Paragraph 3"], "length": 120}
    longbench = root / "datasets/THUDM/LongBench"
    longbench.mkdir(parents=True)
    with zipfile.ZipFile(longbench / "data.zip", "w") as file:
        for task in TASKS:
            items = [{**item, "all_classes": ["Date", "Other"], "_id": f"{task}-{n}"} for n in range(3)]
            file.writestr(f"data/{task}_e.jsonl", "".join(json.dumps(one) + "\n" for one in items))


def shrunk(study: dict[str, Any], every_arm: bool) -> dict[str, Any]:
    """The study with other sizes; methods, precisions and settings of the optimiser stay."""
    if "bases" in study["model"]:
        del study["model"]["bases"][3:]
    for part in (*(study["data"][key] for key in BOOKS), study["data"]["tokenizer"], *bases_of(study)):
        part["revision"] = hub.COMMIT
    study["model"].update(layers=SHAPE["num_hidden_layers"], max_length=study["model"]["max_length"] // SCALE)
    study["lengths"] = {key: length // SCALE for key, length in study["lengths"].items()}
    processes = min(2, study["training"].get("processes", 1))
    study["training"].update(steps=3, batch=4, warmup_steps=1, processes=processes)
    study["needs"] = {"device": "cpu"}
    study.update(checkpoints=[3], seeds=list(range(len(bases_of(study)))), published=[])
    if not every_arm:
        study.update(arms=["baseline", "hidden"], overrides=BOTH)
    perplexity = study["evaluations"]["perplexity"]
    perplexity.update(lengths=[length // SCALE for length in perplexity["lengths"]], documents=2)
    if "beside" in perplexity:
        perplexity["beside"]["chunk"] //= SCALE
    longppl = study["evaluations"]["longppl"]
    longppl["evaluator"]["revision"] = hub.COMMIT
    longppl.update({key: longppl[key] // SCALE for key in ("short", "stride")}, documents=2)
    longppl["lengths"] = [length // SCALE for length in longppl["lengths"]]
    longppl.update(gain=0, below=100)  # random weights predict no token well
    study["evaluations"]["misalignment"].update(sequences=4)
    metric, _, length = study["primary"].partition("@")
    study["primary"] = f"{metric}@{int(length) // SCALE}" if length else metric
    if longbench := study["evaluations"].get("longbench_e"):
        longbench["source"]["revision"] = hub.COMMIT
        longbench.update(max_length=128, max_new_tokens=4)
    return study


@pytest.mark.parametrize("every_arm", [False, pytest.param(True, marks=pytest.mark.long)], ids=["two", "every"])
@pytest.mark.parametrize(
    "name",
    # Of two that differ by their extension alone, that which a user is told to try first.
    [pytest.param(name, marks=pytest.mark.long if name == "smollm2-135m-abf-pg19" else ()) for name in FROM_THE_HUB],
)
def test_a_study_of_the_papers_size_runs_at_a_small_one(name: str, every_arm: bool, tmp_path: Path) -> None:
    study = shrunk(yaml.safe_load((ROOT / f"config/studies/{name}.yaml").read_text()), every_arm)
    serve_from(tmp_path / "hub", study)
    project = make_project(tmp_path / "project", study)
    with hub.serving(tmp_path / "hub") as address:
        online = {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_HOME": forkserver.hugging_face()}
        longshort(project, "fetch", "-s", "tiny", python=sys.executable, **online)
    # Plots and report where bases are several, or a second protocol stands beside the first.
    shown = study["model"].get("bases") or study["evaluations"]["perplexity"].get("beside")
    run_snakemake(project, "all" if shown else "tables", HF_ENDPOINT="http://127.0.0.1:9")

    numbers = pandas.read_parquet(project / "results/tiny/metrics.parquet")
    assert set(numbers["status"]) == {"ok"} and set(numbers["seed"]) >= set(study["seeds"])
    lengths = study["evaluations"]["perplexity"]["lengths"]
    for arm in study["arms"]:
        measured = numbers[(numbers["arm"] == arm) & (numbers["step"] == 3)]
        assert set(measured[measured["metric"] == "perplexity"]["length"]) == set(lengths)
        assert {"longbench_e", "longppl"} & study["evaluations"].keys() <= set(measured["metric"])
    tokenizer = study["data"]["tokenizer"]["name"]
    protocols = set(numbers[numbers["metric"] == "perplexity"]["protocol"])
    assert len(protocols) == 1 and next(iter(protocols)).endswith("&weights=bf16")
    assert ("&bos=none" in protocols.pop()) == ("bos_token" not in TOKENIZERS[LIKE.get(tokenizer, tokenizer)]["named"])
    assert ("perplexity_block" in set(numbers["metric"])) == ("beside" in study["evaluations"]["perplexity"])
    arm = study["arms"][-1]
    record = json.loads(next(project.glob(f"results/tiny/arms/{arm}/seed-0/training/3.json")).read_text())
    config = json.loads((project / record["checkpoints"]["3"]["path"] / "config.json").read_text())
    said = config.get("longshort_rope", {}).get("kind") or config["rope_parameters"]["rope_type"]
    rope = study["model"].get("rope") or {"kind": "default"}
    assert said == {"pi": "linear", "abf": "default"}.get(rope["kind"], rope["kind"])
    if rope["kind"] == "abf":
        assert config["rope_parameters"]["rope_theta"] == rope["theta"]
    assert ("adapts" in record["checkpoints"]["3"]) == ("adapter" in study["training"])
