"""The prompts are the official ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from longshort.evaluation import prompts


def test_prompts_are_the_official_ones() -> None:
    official = prompts.official_prompts()
    assert list(official) == list(prompts.TASKS) and len(official) == 13
    assert official["trec"].format.endswith("questions.\n\n{context}\n{input}")
    assert official["samsum"].format.endswith("examples.\n\n{context}\n\n{input}")
    assert official["passage_count"].format.endswith("answer is: ")
    assert official["lcc"] == ("Please complete the code given below. \n{context}Next line of code:\n", 64)


def test_changed_prompt_is_refused(tmp_path: Path) -> None:
    theirs = prompts._lm_eval_tasks() / "lcc_e.yaml"
    changed = tmp_path / "lcc_e.yaml"
    changed.write_text(theirs.read_text().replace("complete the code", "finish the code"))
    with pytest.raises(ValueError, match="prompt of lcc .* not the official one: digest"):
        prompts._official("lcc", changed)
    changed.write_text(theirs.read_text().replace("max_gen_toks: 64", "max_gen_toks: 65"))
    with pytest.raises(ValueError, match="answer length 65 instead of"):
        prompts._official("lcc", changed)
    with pytest.raises(ValueError, match="no task file"):
        prompts._official("lcc", tmp_path / "absent.yaml")
