"""Lengths, batch and documents of a study of one's own, against what they must keep to."""

from __future__ import annotations

import re
from typing import Any

import pytest

from longshort.commands import choices, memory
from longshort.commands.survey import Machine, OwnModel, OwnTexts
from longshort.data.settings import TextCorpus
from longshort.errors import StudyError
from longshort.models.settings import Weights
from longshort.study.model_files import Reach
from tests.support.project import ROOT

LLAMA = memory.Model(layers=32, width=4096, inner=11008, kv_share=1.0, vocabulary=32000)
UNKNOWN = choices.Split(0.01, 0.02, None)


def model(tokens: int | None = 4096, learnt: bool = False, extended: str = "", dtype: str = "bfloat16") -> OwnModel:
    reach = Reach(tokens, "max_position_embeddings", learnt, extended)
    return OwnModel(Weights(name="model"), None, 32, reach, dtype, (LLAMA, "by hand"), None)


def documents(*tested: int, trained: int = 10**9) -> choices.Split:
    return choices.Split(0.1, 0.2, {"train": [trained], "validation": [], "test": sorted(tested, reverse=True)})


def lengths(which: OwnModel, held_out: choices.Split = UNKNOWN, device: str = "gpu", **asked: int) -> tuple[Any, ...]:
    return tuple(choices.lengths("study mine", which, held_out, device, **asked))


def test_an_eightfold_length_is_tested_and_positions_are_stretched_to_it() -> None:
    assert lengths(model(4096)) == (4096, 32768, 8.0, 32768)
    assert lengths(model(4096), device="cpu") == (256, 2048, None, 4096)
    assert lengths(model(5000), train=100, test=5001) == (100, 5001, 2.0, 10000)
    assert lengths(model(None)) == (4096, 32768, None, 32768)


@pytest.mark.parametrize("fixed", [{"learnt": True}, {"extended": "yarn"}])
def test_positions_that_cannot_be_stretched_bound_the_lengths(fixed: dict[str, Any]) -> None:
    assert lengths(model(1024, **fixed)) == (512, 1024, None, 1024)
    with pytest.raises(StudyError, match="2048 tokens, the test length, are more than the 1024 positions of the model"):
        lengths(model(1024, **fixed), test=2048)


def test_the_documents_bound_the_lengths() -> None:
    """The test length is one that several have; one that is asked for needs one document."""
    some = documents(*[1000] * 8, 3000)
    assert lengths(model(), some, "cpu") == (256, 512, None, 4096)
    assert lengths(model(), some, "cpu", train=64) == (64, 512, None, 4096)
    assert lengths(model(), some, "cpu", test=3000) == (256, 3000, None, 4096)
    assert lengths(model(), documents(300), "cpu") == (128, 256, None, 4096)
    assert lengths(model(), documents(10**6, trained=1000), "cpu")[0] == 128  # 6 of it are no more than 1000 tokens


def test_no_validation_is_asked_for_where_no_document_falls_to_it() -> None:
    """It would be refused when the corpus is prepared."""
    texts = OwnTexts(
        TextCorpus(kind="text", path="books"), {f"book{n}.txt": 5000 for n in range(1, 21)}, True, "by hand"
    )
    few = choices.split(texts)
    assert few.validation == 0 and {name: len(of) for name, of in (few.tokens or {}).items()} == {
        "train": 12, "validation": 0, "test": 8
    }  # fmt: skip
    assert choices.split(texts._replace(whole=False)).validation == 0.1


@pytest.mark.parametrize(
    ("held_out", "asked", "said"),
    [
        (UNKNOWN, {"train": 64, "test": 32}, "--test-length 32 is below --train-length 64; give a longer one"),
        (documents(1000), {"test": 1001}, "the longest of 1 test documents has 1000 tokens, fewer than 1001"),
        (documents(1000), {"train": 501}, "the longest of 1 test documents has 1000 tokens, fewer than 1002"),
        (documents(), {}, "the longest of 0 test documents has 0 tokens"),
        (documents(1000, trained=599), {"train": 100}, "599 tokens together, fewer than two windows of 200"),
    ],
)
def test_lengths_that_cannot_be_are_refused(held_out: choices.Split, asked: dict[str, int], said: str) -> None:
    with pytest.raises(StudyError, match=re.escape(said)):
        lengths(model(), held_out, **asked)


def fit(machine: Machine, processes: int = 1, batch: int = 16, longest: int = 4096, **of_model: str) -> Any:
    config = ROOT / "config"
    return choices.training("study mine", model(**of_model), machine, 4096, longest, batch, processes, config)


def test_the_largest_micro_batch_that_fits_is_taken() -> None:
    found = fit(Machine("gpu", 80e9, "80 GB"), processes=8, batch=64)
    assert (found.deepspeed, found.checkpointing) == ("zero2", True)  # without it a window alone takes more than 100 GB
    assert found.bytes <= 0.8 * 80e9
    more = fit(Machine("gpu", found.bytes / 0.8 + 1, "exactly as much"), processes=8, batch=64)
    less = fit(Machine("gpu", found.bytes / 0.8 - 1e6, "1 MB less"), processes=8, batch=64)
    assert more == found and less.micro_batch < found.micro_batch


def test_what_fits_nowhere_and_what_is_shared_out() -> None:
    assert fit(Machine("gpu", 80e9, "80 GB")) is None  # 16 bytes for each of 6.7e9 weights
    assert fit(Machine("gpu", 2000e9, "2 TB")).deepspeed == "zero1"
    # The main memory is one for all processes, a GPU's is a process' own.
    machine = Machine("cpu", 400e9, "400 GB")
    assert fit(machine, processes=4).bytes <= 0.8 * 400e9 / 4 < fit(machine).bytes


def test_an_arm_of_longer_windows_must_fit_too() -> None:
    """A window of 32,768 tokens at a time is as much as 8 of 4,096."""
    place = Machine("gpu", 80e9, "80 GB")
    shorter = fit(place, processes=8, batch=64)
    assert fit(place, processes=8, batch=64, longest=4096 * shorter.micro_batch) == shorter
    assert fit(place, processes=8, batch=64, longest=2 * 4096 * shorter.micro_batch) is None


def test_weights_in_float32_are_trained_so() -> None:
    assert choices.precision(model(dtype="float32"), "gpu") == "fp32"
    assert choices.precision(model(dtype="float16"), "gpu") == "bf16"
    assert choices.precision(model(dtype="bfloat16"), "cpu") == "fp32"


def test_of_few_documents_more_are_held_out() -> None:
    def split(count: int) -> choices.Split:
        tokens = {f"document {number}": number for number in range(count)}
        return choices.split(OwnTexts(TextCorpus(kind="text", path="texts"), tokens, True, "by hand"))

    few = split(100)
    assert (few.validation, few.test) == (0.1, 0.25) and few.tokens is not None
    assert sorted(number for counts in few.tokens.values() for number in counts) == list(range(100))
    assert few.at_least("test", 50) == sum(number >= 50 for number in few.tokens["test"])
    assert split(2000).test == 0.05
    looked_at = OwnTexts(TextCorpus(kind="text", path="books"), {"a.txt": 9, "b.txt": 9}, False, "by hand", 28_000)
    assert choices.split(looked_at).test == 0.05
