"""Machines and accounts as people have them: another locale, a notebook's variables, no name, no home, somebody else's
repository, studies named by numbers, results that were copied without their links."""

from __future__ import annotations

import copy
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from snakemake.cli import parse_config

from longshort.identity.code import code_hash
from longshort.jobs import engine
from tests.support.project import (
    TINY,
    UNFINISHED,
    edit_study,
    longshort,
    make_project,
    planned,
    run_python,
    run_snakemake,
    write_corpus,
)

# As on a node whose administrator set no locale, and turned off what Python does about it.
LOCALE = {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
NOTEBOOK = {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}
TITLE = "Größe ± ∞, 長さ"
DATA_OF_TINY = "import json; from longshort.study.resolve import load; print(json.dumps(load('tiny').data))"
# A user with a number alone: no line in passwd, and a home that is not there.
NOBODY = ["env", "-u", "USER", "-u", "LOGNAME", "HOME=/nowhere", "unshare", "--map-user=12345", sys.executable]
NO_HOME = ["env", "-u", "USER", "-u", "LOGNAME", "-u", "HOME", "unshare", "--map-user=12345", sys.executable]


def study(**changes: Any) -> dict[str, Any]:
    made = copy.deepcopy(TINY) | {"title": TITLE, "arms": ["baseline", "constant"], **changes}
    made["data"]["corpus"]["path"] = "my corpus ü"
    del made["evaluations"]["misalignment"]
    return made


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A project whose title, corpus' folder and documents are in other scripts."""
    project = make_project(tmp_path / "project", study())
    write_corpus(project / "my corpus ü")
    (project / "my corpus ü/é 長.txt").write_text("長い é " * 50, encoding="utf-8")
    shutil.copy(project / "config/studies/tiny.yaml", project / "config/studies/2024_11.yaml")
    return project


def test_commands_and_stages_read_and_write_utf_8_in_any_locale(foreign: Path) -> None:
    asked: dict[str, Any] = {"python": sys.executable, **LOCALE}
    assert "2 arms x 1 seeds" in longshort(foreign, "check", "--study", "tiny", **asked).stdout
    said = longshort(foreign, "check", "--study", "長", check=False, **asked)
    assert said.returncode == 1 and "study '長' is unknown" in said.stderr and "Traceback" not in said.stderr
    # A stage that is run by hand takes the locale as it is: names of files are the only thing that it cannot read.
    (foreign / "my corpus ü/é 長.txt").rename(foreign / "my corpus ü/x.txt")
    (foreign / "my corpus ü").rename(foreign / "corpus-2")
    (foreign / "corpus-2/latin.jsonl").write_bytes(b'{"text": "caf\xe9"}\n{"text": "\xe9\x95\xb7 z"}\n')
    corpus = {"kind": "text", "path": "corpus-2", "column": "text"}
    spec = {"corpus": corpus, "tokenizer": {"kind": "bytes"}, "validation": 0.1, "test": 0.3}
    (foreign / "spec.json").write_text(json.dumps(spec))
    stage = ["-m", "longshort.data", "--spec", "spec.json", "--cores", "1", "--out"]
    run_python(foreign, *stage, "results/data/there", **asked)
    run_python(foreign, *stage, "results/data/here", python=sys.executable)
    there, here = (json.loads((foreign / f"results/data/{at}/manifest.json").read_text()) for at in ("there", "here"))
    assert there["content"] == here["content"] and there["left_out"]["not UTF-8"]["count"] == 1
    hashes = "from longshort.identity.code import code_hash; print(code_hash('longshort.training.trainer'))"
    assert run_python(foreign, "-c", hashes, **asked).stdout.strip() == code_hash("longshort.training.trainer")


@pytest.fixture
def latin_1(tmp_path: Path) -> dict[str, str]:
    """As on a machine of before UTF-8, where the system's own tools can make that locale; else the locale C."""
    command = ["localedef", "--inputfile=en_US", "--charmap=ISO-8859-1", str(tmp_path / "en_US.ISO-8859-1")]
    if shutil.which(command[0]) and subprocess.run(command, capture_output=True).returncode == 0:
        return {**LOCALE, "LOCPATH": str(tmp_path), "LC_ALL": "en_US.ISO-8859-1"}
    return LOCALE


@pytest.mark.wide
def test_a_corpus_in_a_folder_with_an_umlaut_is_prepared_where_the_locale_is_latin_1(
    foreign: Path, latin_1: dict[str, str]
) -> None:
    asked = {"python": sys.executable, **latin_1}
    encoding = run_python(foreign, "-c", "import locale; print(locale.getencoding())", **asked).stdout
    assert "UTF-8" not in encoding
    edit_study(foreign, title="Größe ± ∞")
    assert "2 arms x 1 seeds" in longshort(foreign, "check", "--study", "tiny", **asked).stdout
    resolved = json.loads(run_python(foreign, "-c", DATA_OF_TINY).stdout)
    manifest = f"results/data/{resolved}/manifest.json"
    run_snakemake(foreign, manifest, **asked)
    made = json.loads((foreign / manifest).read_text(encoding="utf-8"))
    assert made["spec"]["corpus"]["path"] == "my corpus ü" and not made["left_out"]
    sources = (foreign / manifest).with_name("sources.jsonl").read_text(encoding="utf-8").splitlines()
    assert "é 長.txt" in {json.loads(line)["name"] for line in sources} and len(sources) == 25
    run_snakemake(foreign, "results/tiny/study.json", **asked)
    assert json.loads((foreign / "results/tiny/study.json").read_text(encoding="utf-8"))["title"] == "Größe ± ∞"
    assert "data" not in planned(foreign)  # here, where the locale is another one


def test_a_study_may_be_named_by_a_number(foreign: Path) -> None:
    (foreign / "config/studies/2024.yaml").write_bytes((foreign / "config/studies/tiny.yaml").read_bytes())
    for name in ("2024", "2024_11"):
        assert planned(foreign, name)["train"] == 3
    names = ["2024", "2024_11", "1e3", "True", "x"]
    taken = [parse_config([f"study={name}"])["study"] for name in names]
    assert [engine.as_typed(value, names) for value in [*taken, 5]] == [*names, 5] and taken[1] == 202411
    assert engine.as_typed(202411, ["2024_11", "202411"]) == 202411  # both were meant, or neither


@pytest.mark.parametrize("nobody", [NOBODY, NO_HOME])
def test_a_user_needs_neither_name_nor_home(foreign: Path, nobody: list[str]) -> None:
    said = run_python(foreign, *nobody[1:], "-m", "longshort.cli", "check", "--study", "tiny", python=nobody[0])
    assert "2 arms x 1 seeds" in said.stdout
    said = run_python(foreign, *nobody[1:], "-m", "longshort.cli", "plan", "--study", "tiny", python=nobody[0])
    assert "not trained yet" in said.stdout and not (foreign / "~").exists()


@pytest.mark.wide
def test_a_whole_study_where_all_of_it_comes_together(foreign: Path) -> None:
    """The locale, a notebook's backend, a user without name and home, a repository of another owner, a numeric name."""
    for command in (["init", "--quiet"], ["add", "src"]):
        subprocess.run(["git", *command], cwd=foreign, check=True)
    somebody = {"GIT_TEST_ASSUME_DIFFERENT_OWNER": "1", "GIT_CONFIG_GLOBAL": "/dev/null"}
    arguments = ["-m", "snakemake", "all", "--cores", "2", "--config", "study=2024_11"]
    done = run_python(foreign, *NOBODY[1:], *arguments, python=NOBODY[0], **LOCALE, **NOTEBOOK, **somebody)
    assert len(re.findall(r"WARNING: the commit of .* is unknown.* dubious ownership", done.stderr)) == 1
    results = foreign / "results/2024_11"
    assert TITLE in (results / "report.html").read_text(encoding="utf-8")
    assert json.loads((results / "study.json").read_text(encoding="utf-8"))["title"] == TITLE
    record = json.loads(next(foreign.glob("results/runs/*/training/2-6.json")).read_text(encoding="utf-8"))
    assert record["commit"] == "unknown"
    assert "nothing to do" in longshort(foreign, "plan", "--study", "2024_11").stdout


def test_nothing_hangs_on_the_order_of_a_set(finished_copy: Path) -> None:
    """Texts hash otherwise in each process, but not in those that made the study: they are forks of one."""
    said = longshort(finished_copy, "plan", "--study", "tiny", python=sys.executable, PYTHONHASHSEED="1").stdout
    assert "nothing to do" in said


def test_results_that_were_copied_without_their_links_are_taken_as_they_are(finished: Path, tmp_path: Path) -> None:
    ignored = shutil.ignore_patterns(*UNFINISHED)
    project = Path(shutil.copytree(finished, tmp_path / "copy", ignore=ignored))  # links become folders
    folder = project / "results/tiny/arms/constant/seed-0"
    assert folder.is_dir() and not folder.is_symlink()
    collect = ["-m", "longshort.collecting", "--study", "results/tiny/study.json", "--results", "results"]
    said = run_python(project, *collect, "--out", "results/tiny/metrics.parquet").stdout
    for place in ("arms/constant/seed-0", "base"):
        assert re.search(rf"results/tiny/{place} is no link to \S+, and is left as it is: delete it", said)
    assert folder.is_dir() and not folder.is_symlink()
    assert "jobs" in longshort(project, "status", "--study", "tiny").stdout
    assert "constant" in longshort(project, "tables", "--study", "tiny").stdout
    assert "study tiny needs" in longshort(project, "prune").stdout
    shutil.rmtree(folder)
    run_python(project, *collect, "--out", "results/tiny/metrics.parquet")
    assert folder.is_symlink()
