"""Paths below results/ and work/ are spelt in one module."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from longshort.identity.accepted import ACCEPTED
from longshort.identity.code import SOURCE
from longshort.records import layout


def test_files_of_a_stage_are_found_from_any_of_them() -> None:
    stage = layout.evaluation("r", "perplexity", "e", "50-150")
    assert stage.record == "results/runs/r/perplexity/e/50-150.json"
    for file in (stage.record, stage.numbers, stage.items, stage.heartbeat):
        assert layout.stage_of(file) == layout.stage_of(Path(file)) == stage
    assert layout.training("r", "4", Path("/elsewhere")).log == "/elsewhere/runs/r/training/4.log"


def test_no_other_module_and_no_rule_spells_a_path() -> None:
    spelt = {str(ACCEPTED)}
    for file in SOURCE.rglob("*.py"):
        if file.name != "layout.py":
            texts = (node.value for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Constant))
            spelt |= {text for text in texts if isinstance(text, str) and re.fullmatch(r"(results|work)(/\S*)?", text)}
    assert spelt == {str(ACCEPTED), "results", "work"}  # the bare words are keys too: of lm_eval, of a job
    for file in [Path("Snakefile"), *Path("workflow").rglob("*.smk")]:
        assert not re.search(r"(?<![/\w])(results|work)/", file.read_text()), file
