"""What a job publishes as that of a corpus was read of that corpus."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from longshort.evaluation import key_tokens, misalignment, sharing, stage, standin
from longshort.evaluation.share import Share
from longshort.jobs import ownership
from longshort.metrics.settings import PretrainedEvaluator
from longshort.records.publish import Altered, file_digest, write_json, write_record
from tests.support.corpora import put
from tests.support.longppl import BY

BEAT: Any = SimpleNamespace(watch=lambda progress: None)


def prepare(corpus: Path, content: str) -> None:
    put(corpus / "test/tokens", content.encode())
    files = {"test/tokens": file_digest(corpus / "test/tokens")}
    write_record(corpus / "manifest.json", {"spec": {}, "content": content, "files": files})


def evaluation(folder: Path, corpus: Path) -> Namespace:
    """Of a run that diverged: nothing would be measured."""
    settings = {"sequences": 2, "lengths_per_sequence": 2, "beyond": []}
    spec = {"metric": "misalignment", "length": 16, "data": {"corpus": {"kind": "stdlib"}}, "settings": settings}
    write_json(folder / "spec.json", spec)
    write_record(folder / "run.json", {"run": "s", "run_id": "r", "status": "diverged", "checkpoints": {}})
    return Namespace(
        spec=folder / "spec.json", data=corpus / "manifest.json", run=folder / "run.json", steps="5", code=None,
        out=folder / "out.parquet", items=[], work=folder / "work", metric="misalignment", share=Share(0, 2),
    )  # fmt: skip


def search(folder: Path, corpus: Path) -> None:
    by = BY.model_copy(update={"evaluator": PretrainedEvaluator(kind="pretrained", name="who/what", revision="0" * 40)})
    key_tokens.make(corpus / "manifest.json", by, folder / "found.json", folder / "work", "code", BEAT)


JOBS = {
    "evaluation": lambda folder, corpus: stage.make(evaluation(folder, corpus), misalignment.MEASUREMENT, BEAT),
    "share": lambda folder, corpus: sharing.measure(evaluation(folder, corpus), BEAT),
    "key tokens": search,
    "stand-in": lambda folder, corpus: standin.make(corpus, 3, 0, folder / "items"),
}


@pytest.mark.parametrize("job", JOBS)
def test_a_corpus_that_is_prepared_anew_while_a_job_waits_for_its_folder_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, job: str
) -> None:
    """As another engine does it. The job holds a name for what it makes that is made of the corpus' content."""
    corpus, turn = tmp_path / "corpus", ownership._wait_for
    prepare(corpus, "before")

    def wait(*whatever: Any) -> None:
        prepare(corpus, "anew")
        turn(*whatever)

    monkeypatch.setattr(ownership, "_wait_for", wait)
    with pytest.raises(Altered, match="is of another corpus than when this job began"):
        JOBS[job](tmp_path, corpus)
