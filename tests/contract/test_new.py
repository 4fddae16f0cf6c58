"""`longshort new` on a model and texts as people have them: what it writes, says and refuses."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import LlamaForCausalLM

from longshort.commands import new
from longshort.data.tokenizers import byte_tokenizer
from longshort.errors import StudyError
from longshort.models import load
from longshort.models.settings import Weights
from longshort.records import hub
from longshort.records.publish import folder_digests, write_json
from longshort.study import resolve
from tests.support.models import ARCHITECTURE
from tests.support.project import longshort

COMMIT = "0123abcd" * 5
OF_THE_HUB = {"model": "some/model-7b", "revision": COMMIT, "layers": 32, "positions": 4096}


@pytest.fixture(scope="module")
def llama() -> LlamaForCausalLM:
    return load.from_scratch(ARCHITECTURE, vocabulary=257, separator=256, length=128, seed=0)


@pytest.fixture
def here(project: Path, monkeypatch: pytest.MonkeyPatch, llama: LlamaForCausalLM) -> Path:
    """A project with a model of 3 blocks and 128 positions, and 24 texts of 110 to 420 bytes."""
    monkeypatch.chdir(project)
    llama.save_pretrained("model")
    byte_tokenizer().save_pretrained("model")
    return project


def written(**asked: Any) -> dict[str, Any]:
    given = {"name": "mine", "model": "model", "corpus": "corpus", "device": "cpu", "memory": 8.0}
    path, _ = new.write(new.Asked(**{**given, **asked}))
    return dict(yaml.safe_load(path.read_text()))


def refused(said: str, **asked: Any) -> None:
    before = sorted(Path("config/studies").iterdir())
    with pytest.raises(StudyError, match=said):
        written(**asked)
    assert sorted(Path("config/studies").iterdir()) == before


def test_what_is_written_is_checked_and_planned_at_once(here: Path) -> None:
    asked = ["--model", "model", "--corpus", "corpus", "--device", "cpu", "--arms", "baseline,constant"]
    said = longshort(here, "new", "mine", *asked).stdout
    assert "config/studies/mine.yaml is written" in said
    assert "model: 3 blocks, 128 positions (max_position_embeddings)" in said and "tokenizer with BOS" in " ".join(
        said.split()
    )
    for key in ("corpus", "lengths", "training", "evaluations", "needs"):
        assert re.search(rf"^  {key}: ", said, re.MULTILINE), key
    study = yaml.safe_load((here / "config/studies/mine.yaml").read_text())
    assert study["model"]["layers"] == 3 and study["arms"] == ["baseline", "constant"]
    assert "2 arms x 3 seeds" in longshort(here, "check", "--study", "mine").stdout
    planned = json.loads(longshort(here, "plan", "--study", "mine", "--json").stdout)
    assert planned["jobs"]["baseline"]["train"] == 3 and planned["cost"]["device_hours"] > 0
    again = longshort(here, "new", "mine", *asked, check=False)
    assert again.returncode == 1 and "mine.yaml is there already and is not overwritten" in again.stderr


def test_each_choice_stands_beside_its_reason(here: Path) -> None:
    study = written()
    lines = Path("config/studies/mine.yaml").read_text().splitlines()
    for key in ("corpus", "model", "lengths", "training", "evaluations", "needs"):
        assert any(line.strip().startswith(f"# {key}: ") for line in lines), key
    assert not [line for line in lines if "$" in line.replace("$schema", "")]
    tested = study["lengths"]["test"]
    assert study["evaluations"]["perplexity"]["lengths"][-1] == tested and study["primary"] == f"perplexity@{tested}"


def test_lengths_beyond_the_positions_bring_an_extension(here: Path) -> None:
    study = written(train_length=64, test_length=300)
    assert study["model"]["rope"] == {"kind": "yarn", "factor": 4} and study["model"]["max_length"] == 512
    assert written(name="other", train_length=32, test_length=128)["model"]["rope"] is None


def test_documents_are_as_many_as_are_long_enough(here: Path) -> None:
    """Of the test documents, counted by the tokenizer; an evaluation refuses to read fewer than it is asked for."""
    study = written(test_length=256)
    sizes = {path.name: path.stat().st_size for path in Path("corpus").iterdir()}
    from longshort.data.corpora import split_of

    shares = study["data"]["validation"], study["data"]["test"]
    tested = [size for name, size in sizes.items() if split_of(name, *shares) == "test"]
    assert study["evaluations"]["perplexity"]["documents"] == sum(size >= 256 for size in tested) > 0


def test_an_arm_at_the_test_length_has_a_batch_that_divides(here: Path) -> None:
    study = written(train_length=32, test_length=256, arms=("baseline", "constant", "long"))
    assert study["training"]["batch"] * 32 % 256 == 0
    assert resolve.load("mine").arms["long"].lengths is not None


def test_main_memory_is_asked_for_of_all_processes_of_a_training(here: Path) -> None:
    """Each holds 1.5 GB of libraries, and of this model a few megabytes; an evaluation is one process."""
    for processes, needed in ((1, 2000), (4, 7000)):
        needs = written(name=f"of-{processes}", processes=processes)["needs"]
        assert (needs["training_memory_mb"], needs["evaluation_memory_mb"]) == (needed, 2000)


def test_a_model_of_the_hub_is_asked_for_and_fetched_later(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "home", lambda: here / "huggingface")
    refused("--model some/model-7b: no folder there, hence a hub id: give --revision", model="some/model-7b")
    refused("Give --layers .* and --positions", model="some/model-7b", revision=COMMIT)
    asked = new.Asked(**{"name": "mine", "corpus": "corpus", "device": "gpu", "processes": 8, **OF_THE_HUB})
    path, reasons = new.write(asked)
    assert any("its files are not here. `longshort fetch` brings them" in reason for reason in reasons)
    fetch, *_, run = new.next_steps(asked)
    assert fetch.startswith("longshort fetch --study mine") and "--resources devices=1 " in run
    model = yaml.safe_load(path.read_text())["model"]
    assert (model["name"], model["revision"], model["layers"]) == ("some/model-7b", COMMIT, 32)


def test_a_model_that_was_fetched_says_all_by_itself(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(here / "home"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(here))
    weights = Weights(name="owner/tiny", revision=COMMIT)
    for part in (hub.weights(weights), hub.tokenizer(weights)):
        assert part is not None
        write_json(hub.record(part), {"snapshot": "model", "files": folder_digests(here / "model")})
    study = written(model="owner/tiny", revision=COMMIT)
    assert study["model"]["layers"] == 3 and study["data"]["tokenizer"]["revision"] == COMMIT
    assert new.next_steps(new.Asked("mine", "owner/tiny", "corpus"))[0].startswith("longshort check")


def test_a_corpus_of_the_hub_needs_a_commit(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "home", lambda: here / "huggingface")
    refused("--corpus some/texts: nothing there, .* give --corpus-revision", corpus="some/texts")
    study = written(corpus="some/texts", corpus_revision=COMMIT)
    assert study["data"]["corpus"]["dataset"] == "some/texts" and study["evaluations"]["perplexity"]["documents"] == 16


def without(*patterns: str) -> Callable[[], None]:
    def remove() -> None:
        for pattern in patterns:
            for path in Path().glob(pattern):
                path.unlink()

    return remove


def empty_texts() -> None:
    for path in Path("corpus").iterdir():
        path.write_text(" \n")


def a_broken_tokenizer() -> None:
    Path("model/tokenizer.json").write_text("{}")


@pytest.mark.parametrize(
    ("change", "asked", "said"),
    [
        (None, {"name": "demo"}, "demo.yaml is there already and is not overwritten"),
        (None, {"name": "../mine"}, "would be a file name; use at most 64 letters"),
        (None, {"name": "runs"}, "would write into results/runs, which all studies share"),
        (None, {"model": "corpus"}, "no config.json there; give the folder of a model"),
        (None, {"model": "./nothing"}, "no folder there; give the folder of a model, or a hub id"),
        (without("model/*.safetensors"), {}, "no weights in .safetensors files there"),
        (without("model/*token*"), {}, "no tokenizer in model"),
        (a_broken_tokenizer, {}, "the files of the tokenizer in model cannot be read|makes no tokenizer"),
        (without("corpus/*"), {}, "data.corpus.path = 'corpus': no file there"),
        (empty_texts, {}, "no document there that can be used.*24 empty"),
        (None, {"train_length": 128, "test_length": 64}, "--test-length 64 is below --train-length 128"),
        (None, {"test_length": 4096}, "the longest of \\d+ test documents has \\d+ tokens, fewer than 4096"),
        (None, {"device": "tpu"}, "--device tpu: give cpu or gpu"),
        (None, {"memory": 0.0001}, r"no training of all weights \(.*\) at 16 tokens fits 80%"),
        (None, {"arms": ("baseline", "constnat")}, "unknown arm; did you mean 'constant'"),
        (None, {"arms": ("baseline", "step-linear")}, "control = 'constant' is not among the study's arms"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_is_written(
    here: Path, change: Callable[[], None] | None, asked: dict[str, Any], said: str
) -> None:
    if change:
        change()
    refused(f"(?s){said}", **asked)


def test_learnt_positions_are_not_extended(here: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    shutil.rmtree("model")
    GPT2LMHeadModel(GPT2Config(vocab_size=257, n_positions=128, n_embd=16, n_layer=2, n_head=2)).save_pretrained(
        "model"
    )
    byte_tokenizer().save_pretrained("model")
    study = written()
    assert study["model"]["rope"] is None and study["arms"] == ["baseline", "constant", "step-linear"]
    refused("256 tokens, the test length, are more than the 128 positions .* learnt", name="other", test_length=256)
