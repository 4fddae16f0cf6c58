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


def test_each_key_of_the_site_has_a_variable_of_its_own(tmp_path: Path) -> None:
    """By sbatch's name where it has one; what concerns jobs without a GPU must not be taken from those."""
    of_sbatch, fields = {"account", "partition", "qos", "constraint"}, resources.Site.model_fields
    keys = {key: f"{'SBATCH' if key in of_sbatch else 'LONGSHORT'}_{key.upper()}" for key in fields}
    exported = {name: str(number) for number, name in enumerate(keys.values(), start=1)}
    site = resources.site(tmp_path, exported).model_dump()
    assert {key: str(value) for key, value in site.items()} == {key: exported[name] for key, name in keys.items()}
