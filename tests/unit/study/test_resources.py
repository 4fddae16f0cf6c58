"""The site is what a person typed."""

from __future__ import annotations

from pathlib import Path

from longshort.study import resources


def test_the_site_is_read_as_it_was_typed(tmp_path: Path) -> None:
    (tmp_path / "slurm").mkdir()
    file = tmp_path / resources.SITE_FILE
    file.write_text("account: 0123\npartition: on\nqos: 1:30\nconstraint: ~\ngpu_type:\n")
    site = resources.site(tmp_path, {})
    assert (site.account, site.partition, site.qos, site.constraint, site.gpu_type) == (
        "0123",
        "on",
        "1:30",
        None,
        None,
    )
    file.write_text("# nothing yet\n")
    assert resources.site(tmp_path, {}) == resources.Site()
