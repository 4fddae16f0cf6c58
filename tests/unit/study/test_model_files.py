"""Models as people have them: one that cannot run with a study is refused first, with folder, fault and remedy."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, LlamaForCausalLM

from longshort import studies
from longshort.commands import engine_run
from longshort.data.tokenizers import byte_tokenizer
from longshort.errors import StudyError
from longshort.models import load
from longshort.records import hub
from longshort.records.publish import write_json
from longshort.study import model_files, resolve
from tests.support.models import ARCHITECTURE
from tests.support.project import TINY, write_study

COMMIT = "0123abcd" * 5
MODEL = {"kind": "pretrained", "name": "model", "layers": 3, "max_length": 128}
YARN = {"kind": "yarn", "factor": 4}


@pytest.fixture(scope="module")
def llama() -> LlamaForCausalLM:
    return load.from_scratch(ARCHITECTURE, vocabulary=257, separator=256, length=128, seed=0)


@pytest.fixture
def folder(project: Path, monkeypatch: pytest.MonkeyPatch, llama: LlamaForCausalLM) -> Path:
    monkeypatch.chdir(project)
    llama.save_pretrained("model")
    byte_tokenizer().save_pretrained("model")
    return project / "model"


def check(tokenizer: dict[str, Any] | None = None, **model: Any) -> resolve.ResolvedStudy:
    tokenizer = tokenizer or {"kind": "pretrained", "name": "model"}
    study = {**TINY, "model": {**MODEL, **model}, "data": {**TINY["data"], "tokenizer": tokenizer}}
    write_study(Path.cwd(), study, "tiny")
    return resolve.load("tiny")


def edit(path: Path, **changed: Any) -> None:
    """A key that is None is taken out."""
    content = json.loads(path.read_text()) | changed
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def more_tokens(folder: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([AddedToken(f"token {number}") for number in range(11)])
    tokenizer.save_pretrained(folder)


def a_pad_token(folder: Path) -> None:
    """One that no file gives an id: transformers puts it behind the others."""
    edit(folder / "tokenizer_config.json", pad_token="[PAD]")


def nothing_between_documents(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", bos_token=None, eos_token=None, tokenizer_class="PreTrainedTokenizerFast")


def no_tokenizer(folder: Path) -> None:
    for path in folder.glob("*token*"):
        path.unlink()


def shards(folder: Path) -> Path:
    load.load(folder).save_pretrained(folder, max_shard_size="20KB")
    (folder / "model.safetensors").unlink(missing_ok=True)
    return sorted(folder.glob("*.safetensors"))[-1]


def a_shard_cut(folder: Path) -> None:
    shard = shards(folder)
    shard.write_bytes(shard.read_bytes()[:-8])


def a_shard_of_another_kind(folder: Path) -> None:
    shards(folder).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")


def an_adapter(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "some/base"}')


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (more_tokens, "data.tokenizer.name = 'model': 268 tokens, and the model in model has embeddings for 257"),
        (a_pad_token, "258 tokens, and the model in model has embeddings for 257"),
        (nothing_between_documents, "model names neither an EOS nor a BOS token"),
        (no_tokenizer, "data.tokenizer.name = 'model': no tokenizer in model, as none of tokenizer.json"),
        (lambda folder: (folder / "tokenizer.json").write_text("{"), "the tokenizer in model cannot be read"),
        (lambda folder: (folder / "model.safetensors").unlink(), "no weights in .safetensors files there"),
        (lambda folder: shards(folder).unlink(), r"is in model-0000\d-of-0000\d.safetensors, which is not there"),
        (a_shard_cut, r"model-0000\d-of-0000\d.safetensors was cut short; take a whole copy"),
        (a_shard_of_another_kind, r"model-0000\d-of-0000\d.safetensors is no whole safetensors file"),
        (
            lambda folder: (shards(folder), (folder / "model.safetensors.index.json").unlink()),
            "model holds neither model.safetensors nor model.safetensors.index.json",
        ),
        (
            an_adapter,
            "model holds an adapter, to be added to some/base: give that model, or",
        ),
    ],
)
def test_a_model_that_cannot_run_is_refused(folder: Path, change: Callable[[Path], Any], said: str) -> None:
    assert check()
    change(folder)
    with pytest.raises(StudyError, match=said):
        check()


@pytest.mark.parametrize("change", [lambda folder: None, more_tokens, a_pad_token])
def test_tokens_are_counted_as_transformers_counts_them(folder: Path, change: Callable[[Path], None]) -> None:
    change(folder)
    assert model_files.tokens_of("data.tokenizer", folder) == len(AutoTokenizer.from_pretrained(folder))


def test_all_blocks_have_weights(folder: Path) -> None:
    edit(folder / "config.json", num_hidden_layers=4)
    with pytest.raises(StudyError, match=r"no weights of block 3 of 4 \(model\.layers\.3\.\S+, .*; take a whole copy"):
        check(layers=4)


def test_no_length_is_beyond_the_positions_unless_they_are_extended(folder: Path) -> None:
    with pytest.raises(StudyError, match=r"max_length = 256: the model in model has 128 positions .*or extend it by"):
        check(max_length=256)
    assert check(max_length=512, rope=YARN)
    for rope in (YARN, {"kind": "ntk", "factor": 4}, {"kind": "clex", "max_factor": 4}):
        with pytest.raises(StudyError, match=r"128 positions .* by 4, to 512; lower it, raise the factor to 5, or say"):
            check(max_length=513, rope=rope)
        assert check(max_length=513, rope=rope, beyond_positions=True)
    assert check(max_length=513, rope={"kind": "dynamic-ntk", "factor": 4})
    assert check(max_length=256, beyond_positions=True)
    scaled = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
    edit(folder / "config.json", rope_parameters=scaled)
    assert check(max_length=256)
    with pytest.raises(StudyError, match=r"model.rope = yarn: model/config.json extends .* already \(linear\)"):
        check(max_length=256, rope=YARN)
    edit(folder / "config.json", rope_parameters=None, rope_scaling={"type": "dynamic", "factor": 2.0})
    with pytest.raises(StudyError, match=r"already \(dynamic\)"):
        check(max_length=256, rope=YARN)


@pytest.mark.parametrize(
    ("positions", "scaling", "reach"),
    [
        # Llama 3.1 counts its positions after the extension, Qwen 2.5 before it.
        (131072, {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192}, 131072),
        (32768, {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}, 131072),
        (4096, {"type": "linear", "factor": 2.0}, 8192),
        (131072, {"type": "longrope", "short_factor": [1.0], "long_factor": [2.0]}, 131072),
    ],
    ids=["llama-3.1", "qwen-2.5", "linear", "phi-3"],
)
def test_an_extended_model_is_read_as_far_as_it_was_extended(
    positions: int, scaling: dict[str, Any], reach: int
) -> None:
    config = {"max_position_embeddings": positions, "rope_scaling": scaling}
    assert model_files.reach_of(config, {}).tokens == reach


def test_gpt2_reads_no_further_than_its_positions(folder: Path) -> None:
    config = GPT2Config(vocab_size=257, n_positions=32, n_embd=16, n_layer=3, n_head=2)
    GPT2LMHeadModel(config).save_pretrained(folder)
    said = (
        r"max_length = 128: the model in model has 32 positions \(n_positions .* or take a model with rotary positions"
    )
    for beyond_positions in (False, True):
        with pytest.raises(StudyError, match=said):
            check(beyond_positions=beyond_positions)
    with pytest.raises(StudyError, match="model.rope = yarn: the positions of the model in model are learnt"):
        check(rope=YARN)


def test_hidden_layers_are_aligned_where_they_are_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before its training fails: GPT-2 has its blocks in `h`."""
    monkeypatch.setitem(TINY, "arms", ["baseline", "constant", "hidden"])
    assert check()
    GPT2LMHeadModel(GPT2Config(vocab_size=257, n_positions=128, n_embd=16, n_layer=3, n_head=2)).save_pretrained(folder)
    with pytest.raises(
        StudyError, match=r"arm hidden: alignment.hidden: the model in model keeps its blocks elsewhere"
    ):
        check()


def test_weights_in_half_precision_are_taken(folder: Path, llama: LlamaForCausalLM) -> None:
    load.load(folder).half().save_pretrained(folder)
    assert check()
    loaded = load.load(folder)
    for name, weight in llama.state_dict().items():
        assert loaded.state_dict()[name].dtype == torch.float32
        assert loaded.state_dict()[name].equal(weight.half().float())


def test_what_was_fetched_is_looked_at_before_it_is_used(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not when a study is only read: `longshort fetch` reads it, too, and may have to bring what lacks."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(folder.parent / "home"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder.parent))
    of_hub = {"kind": "pretrained", "name": "owner/model", "revision": COMMIT}
    study = check(tokenizer=of_hub, **of_hub)
    studies.check_fetched(study)
    for part in study.hub_parts():
        write_json(hub.record(part), {"snapshot": "model", "files": {}})
    studies.check_fetched(study)
    more_tokens(folder)
    study = check(tokenizer=of_hub, **of_hub)
    with pytest.raises(StudyError, match=f"'owner/model': 268 tokens, and the model in {folder} has embeddings"):
        engine_run.start(study, submits=False)
