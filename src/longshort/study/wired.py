"""What rules and commands ask of a study of either kind: longshort.study.wiring has that of language models,
longshort.synthetic.study the other."""

from __future__ import annotations

import json
from typing import Any, ClassVar, NamedTuple, Protocol

from longshort.records import hub
from longshort.records.publish import sealed


class Result(NamedTuple):
    """What one job makes of a run, and how it is known.

    Attributes:
        run: id of the specification.
        stage: training, a metric, or synthetic.
        record: the file that says how the result was made.
        log: what the job writes while it runs.
        code: hash of the code that makes it now.
        measured: the record of the training that the job measures; None where it trains.
    """

    run: str
    stage: str
    record: str
    log: str
    code: str
    measured: str | None = None


class Wired(Protocol):
    """A resolved study of either kind, as rules and commands see it.

    Attributes:
        name: of its file in config/studies.
        kind: which of the two kinds it is of.
        stages: the files of workflow/rules that it consists of.
        texts: the specifications by their ids, as their files hold them.
    """

    name: str
    kind: ClassVar[str]
    stages: ClassVar[tuple[str, ...]]
    texts: dict[str, str]

    def results(self) -> list[Result]:
        """What all jobs make that take long, trainings before what measures them."""
        ...

    def names(self) -> dict[str, str]:
        """Run -> what a person calls it."""
        ...

    def identities(self) -> set[str]:
        """The specifications of what its jobs make, by which the queue of a cluster names these jobs."""
        ...

    def published(self) -> list[str]:
        """What the results stages read: the record of each job, and its numbers beside it."""
        ...

    def targets(self) -> list[str]:
        """What a person wants of the study in the end."""
        ...

    def table_names(self) -> list[str]: ...

    def in_words(self) -> str:
        """How large the study is."""
        ...

    def external_paths(self) -> list[str]:
        """The files and folders that it names, and hub ids, which look like them."""
        ...

    def hub_parts(self) -> list[hub.Part]:
        """All that its jobs take from the hub."""
        ...

    def summary(self) -> dict[str, Any]:
        """All that the results stages know of the study: study.json."""
        ...

    def summary_text(self) -> str:
        return json.dumps(sealed(self.summary()), indent=2, allow_nan=False, ensure_ascii=False)

    @property
    def seal(self) -> str:
        """What tells study.json from an edited one that was sealed anew."""
        return str(sealed(self.summary())["seal"])

    def codes(self) -> dict[str, dict[str, str]]:
        """Run -> stage -> the code that makes it."""
        codes: dict[str, dict[str, str]] = {}
        for result in self.results():
            codes.setdefault(result.run, {})[result.stage] = result.code
        return codes
