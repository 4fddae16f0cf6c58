"""The runs of a study by arm and seed, as links for people."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from longshort.identity.spec import NAME
from longshort.records import layout
from longshort.records.publish import Altered
from longshort.results.replicates import BASE, BASE_SEED, EXTENDED_BASE, models


def link_arms(study: dict[str, Any], out: Path) -> None:
    """results/<study>/arms/<arm>/seed-<seed> and results/<study>/base -> results/runs/<id>, for people; several bases
    are results/<study>/base-<seed>, those with their context extended results/<study>/extended-base, and the one that
    was trained at the test length results/<study>/long-base. Links of what the study no longer has are removed. What is
    no link stays, and is said: a program that copied the results may have made folders of them."""
    for arm in study["arms"]:
        if not NAME.fullmatch(arm["name"]):
            raise Altered(f"the study's arm {arm['name']!r} is no name of a folder; run snakemake again")
    known = [Path(layout.long_base(out))]
    for place in (layout.base, layout.extended_base):
        known += [Path(place(out)), *out.glob(Path(place(out, "*")).name)]
    for link in known:
        if link.is_symlink():
            link.unlink()
    others = models(study)
    for name, place in ((BASE, layout.base), (EXTENDED_BASE, layout.extended_base)):
        for seed, run in others.get(name, {}).items():
            link = Path(place(out) if seed == BASE_SEED else place(out, str(seed)))
            _link(link, layout.folder(layout.RUNS, run, ".."))
    if long_base := study.get("long_base"):
        _link(Path(layout.long_base(out)), layout.folder(layout.RUNS, long_base, ".."))
    wanted = {
        Path(layout.arm(out, arm["name"], seed)): run for arm in study["arms"] for seed, run in arm["runs"].items()
    }
    for folder in Path(layout.arms(out)).glob("*"):
        for link in list(folder.glob("*")):
            if link.is_symlink() and link not in wanted:
                link.unlink()
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
    for link, run in wanted.items():
        _link(link, layout.folder(layout.RUNS, run, "../../.."))


def _link(link: Path, target: str) -> None:
    if link.exists() and not link.is_symlink():
        print(f"{link} is no link to {target}, and is left as it is: delete it, and the next run makes the link")
        return
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(target)
