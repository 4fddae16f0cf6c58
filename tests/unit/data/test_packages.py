"""The sources of an installed distribution as a corpus."""

from __future__ import annotations

import hashlib
import sysconfig
from importlib.metadata import version
from pathlib import Path

import pytest

from longshort.data import corpora, packages
from longshort.data.left_out import LeftOut
from longshort.data.settings import PackageCorpus
from longshort.study.files import yaml_mapping
from tests.support.project import ROOT


def test_a_package_is_read_by_path_and_another_one_than_stated_is_refused() -> None:
    demo = PackageCorpus.model_validate(yaml_mapping(ROOT / "config/studies/demo.yaml")["data"]["corpus"])
    documents = dict(corpora.documents(demo, LeftOut()))
    assert "sympy/core/basic.py" in documents and len(documents) > 800
    assert not [name for name in documents if "/tests/" in name or not name.endswith(".py")]

    # Path, size and bytes, and nothing else, are the identity.
    total = hashlib.sha256()
    folder = Path(sysconfig.get_path("purelib"))
    for name in ("tqdm/tk.py", "tqdm/utils.py"):
        source = (folder / name).read_bytes()
        total.update(f"{name}\0{len(source)}\0".encode() + source)
    without = ["tqdm/[!tu]*", "tqdm/t[!k]*"]
    small = PackageCorpus(kind="package", name="tqdm", content="0" * 64, without=without)
    assert packages.content("tqdm", tuple(without)) == total.hexdigest()

    installed = f"tqdm {version('tqdm')}"
    wrong = f"content = '0{{64}}'.*{installed}.*{total.hexdigest()}.*envs/requirements.lock"
    with pytest.raises(ValueError, match=wrong):
        list(corpora.documents(small, LeftOut()))
    with pytest.raises(ValueError, match="data.corpus.name = 'no-such-package': not installed here; install what"):
        packages.refuse_another(small.model_copy(update={"name": "no-such-package"}))
