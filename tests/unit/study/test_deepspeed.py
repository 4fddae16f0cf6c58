"""DeepSpeed's files say nothing that the study says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from longshort.errors import StudyError
from tests.support.project import ROOT
from tests.support.studies import load, refused


@pytest.mark.parametrize("content", ['{"train_batch_size": 8}', "[]", "{"])
def test_a_deepspeed_file_leaves_the_batch_to_the_study(config: Path, content: str) -> None:
    (config / "deepspeed" / "mine.json").write_text(content)
    with pytest.raises(StudyError, match=r"mine.json.*('auto'|no JSON object|no valid JSON)"):
        load(config, training__deepspeed="mine")


ABSENT = object()
DEEPSPEED = json.loads((ROOT / "config/deepspeed/zero2.json").read_text())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"fp16": {"enabled": True}}, "fp16 = .*training.precision says fp32"),
        ({"bf16": {"enabled": True}}, "bf16 = .*training.precision says fp32"),
        ({"gradient_clipping": 0.5}, "max_gradient_norm says 1; give 'auto'"),
        ({"gradient_clipping": ABSENT}, "gradient_clipping = None: .*max_gradient_norm says 1; give 'auto'"),
        ({"optimizer": {"type": "Adam"}}, "optimizer = .*for the study to say"),
        ({"scheduler": {"type": "WarmupLR"}}, "scheduler = .*for the study to say"),
        ({"zero_optimisation": {"stage": 2}}, "did you mean 'zero_optimization'"),
        ({"zero_optimization": {"stage": 7}}, "zero_optimization.stage = 7: there are the stages"),
        ({"zero_optimization": {"stage": True}}, "zero_optimization.stage = True"),
        ({"zero_optimization": {"stge": 2}}, "zero_optimization.stge = 2: .*did you mean 'stage'"),
        ({"zero_optimization": 2}, "must be an object"),
        ({"train_batch_size": 8}, "the study's training says the batch"),
    ],
)
def test_a_deepspeed_file_says_nothing_that_the_study_says(folder: Path, changes: dict[str, Any], said: str) -> None:
    content = {key: value for key, value in {**DEEPSPEED, **changes}.items() if value is not ABSENT}
    (folder / "config/deepspeed/zero1.json").write_text(json.dumps(content))
    refused(folder, f"config/deepspeed/zero1.json: .*{said}")
