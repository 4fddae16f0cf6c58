"""What a planned training would go on from: the checkpoints that its job would find in work/."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

from longshort.records import layout
from longshort.records.publish import CHECKPOINTS, read_record
from longshort.study.wiring import ResolvedStudy
from longshort.training import checkpoints


class Resuming:
    """Of a study's planned trainings.

    Args:
        trained: the runs that have a planned training.
        data_anew: whether the corpus is prepared again: its content is not known before.
    """

    def __init__(self, study: ResolvedStudy, trained: Collection[str] = (), data_anew: bool = False) -> None:
        self.study, self.trained = study, trained
        manifest = Path(layout.data_manifest(study.data))
        content = {"splits": {"train": {"sha256": str}}}
        self.manifest = read_record(manifest, like=content) if manifest.exists() and not data_anew else None

    def pieces(self, run: str, wanted: list[int]) -> list[tuple[int, list[int]]]:
        """(step to resume from, wanted steps) of every piece that the run's job would train."""
        folder = self._folder(run)
        if folder is None:
            return checkpoints.segments(wanted, [])
        sealed = [step for step in checkpoints.steps_there(folder) if checkpoints.is_sealed(folder, step)]
        resumable = [step for step in sealed if checkpoints.is_resumable(folder, step)]
        end = checkpoints.diverged_at(folder)
        return checkpoints.segments([step for step in wanted if step not in sealed and step < end], resumable)

    def _folder(self, run: str) -> Path | None:
        """The folder of a run's checkpoints; None where it hangs on what is not made yet."""
        base = self.study.runs[run].base
        files = self._files_of(base) if base else None
        if self.manifest is None or (base and files is None):
            return None
        spec = json.loads(self.study.texts[run])
        identity = checkpoints.identity_of(spec, self.study.training_code(run), self.manifest, files)
        return Path(layout.checkpoints(identity))

    def _files_of(self, base: str) -> dict[str, str] | None:
        """The weights that the base has now, or will have where its job only publishes them again."""
        if base not in self.trained:
            record = Path(self.study.record(base))
            if not record.exists():
                return None
            last = checkpoints.last_of(read_record(record, like={"checkpoints": CHECKPOINTS}))
            return last["files"] if last else None
        folder = self._folder(base)
        if folder is None or not checkpoints.is_sealed(folder, self.study.base_steps):
            return None
        return checkpoints.weights(checkpoints.folder(folder, self.study.base_steps))
