"""The pages that people read: every key is explained, and what they name exists."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from longshort.cli import app
from longshort.study.schema import Alignment, Arms, Study
from longshort.synthetic.study import SyntheticStudy
from tests.support.project import ROOT

PAGES = [
    *("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "config/README.md", "benchmarks/README.md"),
    "results/README.md",
    *(str(page.relative_to(ROOT)) for page in sorted((ROOT / "docs").glob("*.md"))),
]
COMMANDS = {str(command.name or command.callback.__name__) for command in app.registered_commands if command.callback}
TARGETS = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
# What is generated, written by a person, or of the reader's own.
ABSENT = re.compile(r"^(results|work|\.venv|\.snakemake)/|^slurm/site\.yaml$|^config/studies/mine\.yaml$|[<>*{]|NAME")
PATH = re.compile(
    r"(?<![\w./-])((?:src|tests|config|docs|slurm|envs|workflow|benchmarks|results|\.ci)/[\w./<>*{}-]*\w)"
)


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def keys_and_words(schema: Any) -> Iterator[str]:
    """Every key that a person can write, and every word that is one of a few values."""
    if isinstance(schema, dict):
        if isinstance(schema.get("properties"), dict):
            yield from schema["properties"]
        yield from (value for value in [*schema.get("enum", []), schema.get("const")] if isinstance(value, str))
        for part in schema.values():
            yield from keys_and_words(part)
    elif isinstance(schema, list):
        for part in schema:
            yield from keys_and_words(part)


def anchors(text: str) -> set[str]:
    """The places of a page that a link can name, as GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("model", [Study, Arms, Alignment, SyntheticStudy])
def test_config_readme_explains_every_key_and_every_word(model: Any) -> None:
    explained = {
        word
        for code in re.findall(r"`([^`]+)`", text_of("config/README.md"))
        for word in re.findall(r"[\w+-]+", code.replace("lengths.", ""))
    }
    assert sorted(set(keys_and_words(model.model_json_schema())) - explained) == []


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", text_of(page)):
        if "://" in link:
            continue
        file, _, place = link.partition("#")
        target = (ROOT / page).parent / file if file else ROOT / page
        assert target.exists(), link
        assert not place or place in anchors(target.read_text(encoding="utf-8")), link


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_names_exists(page: str) -> None:
    text = text_of(page)
    named = {path for path in PATH.findall(text) if not ABSENT.search(path)}
    assert sorted(path for path in named if not (ROOT / path).exists()) == []
    typed = re.findall(r"(?:^    |`|\$ )longshort ([a-z]+)", text, re.MULTILINE)
    assert sorted({*typed} - COMMANDS) == []
    assert sorted({*re.findall(r"(?:^    |`)make ([a-z]+)", text, re.MULTILINE)} - TARGETS) == []
    studies = set(re.findall(r"(?:--study|study=|STUDY=)[ ]?([a-z][\w.-]*\w)", text)) - {"mine"}
    assert sorted(name for name in studies if not (ROOT / f"config/studies/{name}.yaml").exists()) == []


def test_contributing_names_every_wing() -> None:
    wings = {path.name for path in (ROOT / "src/longshort").iterdir() if (path / "__init__.py").exists()}
    assert wings <= set(re.findall(r"^\| `(\w+)/`", text_of("CONTRIBUTING.md"), re.MULTILINE))


def test_readme_is_short() -> None:
    assert len(text_of("README.md").splitlines()) <= 130
