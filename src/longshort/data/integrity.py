"""What a stage reads of a prepared corpus is what was prepared."""

from __future__ import annotations

from pathlib import Path

from longshort.records.publish import HASHES, LATE, Altered, altered, read_record


def refuse_altered(manifest: Path, *splits: str, content: str | None = None) -> None:
    """To be called before the splits are read; it reads them once, as fast as the disk gives them.

    Args:
        content: what the stage was told that the corpus holds; another job may have prepared it anew since.

    Raises:
        Altered: the manifest is not the one that was published, or a file of the splits not the one that it names.
    """
    read = read_record(manifest, like={"files": HASHES, "content": str})
    if content not in (None, read["content"]):
        raise Altered(f"{manifest} is of another corpus than when this job began; run snakemake again")
    recorded = read["files"]
    files = {name: sha for name, sha in recorded.items() if name.split("/")[0] in splits}
    if trouble := altered(manifest.parent, files, patience=LATE):
        raise Altered(
            f"the corpus is not the one that was prepared: {manifest.parent}: {trouble}; "
            f"delete {manifest} and run snakemake again, which prepares it anew"
        )
