"""The runs of a study by arm and seed, as links for people."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from longshort.identity.spec import NAME
from longshort.records.publish import Altered


def link_arms(study: dict[str, Any], out: Path) -> None:
    """results/<study>/arms/<arm>/seed-<seed> and results/<study>/base -> results/runs/<id>, for people. Links of arms
    and seeds that the study no longer has are removed; what is no link stays."""
    for arm in study["arms"]:
        if not NAME.fullmatch(arm["name"]):
            raise Altered(f"the study's arm {arm['name']!r} is no name of a folder; run snakemake again")
    base = out / "base"
    base.unlink(missing_ok=True)
    base.symlink_to(os.path.join("..", "runs", study["base"]))
    wanted = {(arm["name"], f"seed-{seed}") for arm in study["arms"] for seed in arm["runs"]}
    for folder in (out / "arms").glob("*"):
        links = [link for link in folder.glob("*") if link.is_symlink()]
        for link in links:
            if (folder.name, link.name) not in wanted:
                link.unlink()
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
    for arm in study["arms"]:
        folder = out / "arms" / arm["name"]
        folder.mkdir(parents=True, exist_ok=True)
        for seed, run in arm["runs"].items():
            link = folder / f"seed-{seed}"
            link.unlink(missing_ok=True)
            link.symlink_to(os.path.join("..", "..", "..", "runs", run))
