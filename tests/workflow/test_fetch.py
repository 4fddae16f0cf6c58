"""What a study takes from the hub: fetched from a real one on loopback, then used with no network at all."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from datasets import Dataset

from longshort.data.tokenizers import byte_tokenizer
from tests.support import forkserver, hub
from tests.support.models import ARCHITECTURE
from tests.support.project import TINY, make_project, run_python

Run = Callable[..., subprocess.CompletedProcess[str]]
CARD = """---
configs:
- config_name: books
  data_files:
  - {split: train, path: data/train-*}
  - {split: test, path: data/test-*}
---
"""


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    """A hub with a model, its tokenizer, and a data set."""
    from longshort.models import load

    data = tmp_path / "hub/datasets/owner/texts"
    (data / "data").mkdir(parents=True)
    tests = tmp_path / "hub/datasets/owner/tests"
    (tests / "data").mkdir(parents=True)
    for folder, split, count in ((data, "train", 30), (data, "test", 1), (tests, "test", 10)):
        documents = Dataset.from_dict({"text": [f"{split} {n} " * 40 for n in range(count)]})
        documents.to_parquet(str(folder / f"data/{split}-00000-of-00001.parquet"))
    (data / "README.md").write_text(CARD)
    (tests / "README.md").write_text(CARD.replace("  - {split: train, path: data/train-*}\n", ""))
    (data / "pictures.bin").write_text("of no use to a study")
    model = load.from_scratch(ARCHITECTURE, vocabulary=257, separator=256, length=128, seed=0)
    model.save_pretrained(tmp_path / "hub/models/owner/tiny")
    byte_tokenizer().save_pretrained(tmp_path / "hub/models/owner/tiny")
    (tmp_path / "hub/models/owner/tiny/original").mkdir()
    (tmp_path / "hub/models/owner/tiny/original/model.safetensors").write_text("the same weights once more")
    (tmp_path / "hub/models" / hub.GATED).mkdir()
    (tmp_path / "hub/models" / hub.GATED / "config.json").write_text("{}")
    with hub.serving(tmp_path / "hub") as address:
        yield address


@pytest.fixture
def project(tmp_path: Path) -> Path:
    study = copy.deepcopy(TINY)
    pretrained = {"kind": "pretrained", "name": "owner/tiny", "revision": hub.COMMIT}
    texts = {"kind": "hub", "dataset": "owner/texts", "revision": hub.COMMIT, "configuration": "books"}
    study["data"] |= {"corpus": texts, "test_corpus": {**texts, "dataset": "owner/tests", "split": "test"}}
    del study["data"]["test"]
    study["data"]["tokenizer"] = pretrained
    study["model"] = {**pretrained, "layers": 3, "max_length": 128}
    return make_project(tmp_path / "project", study)


def run(project: Path, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Fetching by the real Python, which reads the hub's address when it imports its library; jobs as forks."""
    return run_python(
        project,
        "-m",
        *command,
        python=sys.executable if "HF_ENDPOINT" in environment else None,
        check=False,
        **{"HF_HOME": forkserver.hugging_face(), **environment},
    )


def fetch(project: Path, address: str) -> subprocess.CompletedProcess[str]:
    return run(project, "longshort.cli", "fetch", "-s", "tiny", HF_ENDPOINT=address, HF_HUB_OFFLINE="0")


@pytest.mark.wide
def test_jobs_use_what_was_fetched_and_no_network(project: Path, served: str) -> None:
    snakemake = ["snakemake", "--cores", "2", "--config", "study=tiny", "--", "all"]
    refused = run(project, *snakemake)
    assert refused.returncode != 0
    for part in (
        "weights of model owner/tiny",
        "tokenizer of model owner/tiny",
        "documents books of dataset owner/texts",
        "documents books of dataset owner/tests",
    ):
        assert f"{part} at revision {hub.COMMIT}" in refused.stderr
    assert "run `longshort fetch --study NAME`" in refused.stderr
    assert not list(project.glob("results/*/*/*.log"))

    fetched = fetch(project, served)
    assert fetched.returncode == 0, fetched.stderr
    fetched_files = Path(forkserver.hugging_face()) / "hub"  # other tests fetch there, too
    names = {path.name for path in fetched_files.glob("*--owner--*/**/*") if path.is_symlink()}
    assert {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "train-00000-of-00001.parquet",
        "test-00000-of-00001.parquet",
    } <= names
    assert not {"pictures.bin", "original"} & {
        part for path in fetched_files.glob("*--owner--*/**/*") for part in path.parts
    }
    assert fetch(project, served).stdout.count("there, and verified") == 4

    done = run(project, *snakemake)
    assert done.returncode == 0, done.stderr
    (manifest,) = project.glob("results/data/*/manifest.json")
    counts = {split: said["documents"] for split, said in json.loads(manifest.read_text())["splits"].items()}
    assert counts["train"] + counts["validation"] == 30 and counts["test"] == 10

    weights = next(fetched_files.glob("models--owner--tiny/**/model.safetensors")).resolve()
    damaged = bytearray(weights.read_bytes())
    damaged[-1] ^= 1
    weights.write_bytes(damaged)
    base = f"results/runs/{json.loads((project / 'results/tiny/study.json').read_text())['bases']['0']}/training/0.json"
    (project / base).unlink()
    failed = run(project, *snakemake[:-1], base)
    assert failed.returncode != 0
    assert (
        "model.safetensors is not the file that was written; fetch it again"
        in (project / base).with_suffix(".log").read_text()
    )
    again = fetch(project, served)
    assert again.returncode != 0
    assert "model.safetensors is damaged: its sha256 is" in again.stderr
    assert fetch(project, served).returncode == 0
    assert run(project, *snakemake[:-1], base).returncode == 0


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (hub.GATED, "its owner asks for an agreement. Accept it on the page of owner/gated"),
        (
            "owner/nobody",
            f"tokenizer of model owner/nobody at revision {hub.COMMIT} is not fetched (RepositoryNotFound",
        ),
    ],
)
def test_what_cannot_be_fetched_is_named(project: Path, served: str, name: str, said: str) -> None:
    study = project / "config/studies/tiny.yaml"
    study.write_text(study.read_text().replace("owner/tiny", name))
    done = fetch(project, served)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert said in done.stderr


def test_a_job_reaches_no_other_machine(served: str) -> None:
    script = f"""
import urllib.request
from longshort.records import hub
hub.refuse_network()
print(urllib.request.urlopen("{served}/api/models/owner/tiny/revision/main").status)
try:
    urllib.request.urlopen("http://somewhere.invalid/file")
except OSError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("200\n")
    assert "asks for somewhere.invalid, but jobs use no network" in done.stdout
