"""What the record of a metric holds: how it is measured, and the columns, plots and scores that it fills."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple, get_args, get_origin

from longshort.identity.strict import Strict
from longshort.records import layout

# What a study asks of a metric, as its file or study.json has it.
Settings = Mapping[str, Any]


class Column(NamedTuple):
    """One column: which number it shows, and how.

    task: of the number; None for one without a task. documents: the metric whose rows by document say how the number
    varies; None where there are none. relative: differences are in per cent of the reference. compared: whether there
    is a best value and a difference.
    """

    key: str
    metric: str
    length: int | None
    header: str
    higher_is_better: bool
    decimals: int
    block: str
    task: str | None = None
    documents: str | None = None
    relative: bool = False
    compared: bool = True


class Plot(NamedTuple):
    """A plot of a metric's numbers.

    drawing: how it is drawn, a key of results.plots.DRAWINGS. row: the metric of its rows, where the drawing shows one.
    caption: in the report.
    """

    name: str
    drawing: str
    caption: str
    row: str = ""


class Score(NamedTuple):
    """A long-context result that misalignment and training loss may explain: which number, and its label.

    log: the logarithm is taken, as of a perplexity.
    """

    metric: str
    length: int | None
    task: str | None
    label: str
    log: bool = False


def _nothing(*_: Any) -> list[Any]:
    return []


@dataclass(frozen=True)
class Metric:
    """What a study measures by one module, in one job for each run.

    Attributes:
        name: below `evaluations` in a study's file; the rule, and the folder below a run's results.
        description: what it measures, in a few words.
        settings: the model of what a study asks of it (settings.py).
        module: the stage that measures.
        rows: the metrics of its rows; each also stands for those that begin with it and a colon.
        columns: settings and l_train -> its columns of the headline.
        tokens: settings and l_train -> the tokens that it reads of one checkpoint.
        longest: settings and l_train -> the key and the longest text that it reads, tokens; None: as the model can.
        tables: further kinds of tables that it fills: kind -> settings to columns.
        legend: metric of its rows -> the sentence below a table that shows it; {l_train} and {half} are filled in.
        plots: settings -> its plots.
        scores: settings -> the long-context results among its numbers.
        files: settings and the identity of the data -> the files besides the corpus that its job reads.
        named: settings -> the paths that the study's file names.
        resolved: settings (the model) and the longest text that the model takes -> settings without what is left open.
        keeps_items: whether it publishes its items beside the numbers, as <steps>.items.parquet.
    """

    name: str
    description: str
    settings: Any
    module: str
    rows: tuple[str, ...]
    columns: Callable[[Settings, int], list[Column]]
    tokens: Callable[[Settings, int], float]
    longest: Callable[[Settings, int], tuple[str, int] | None]
    tables: Mapping[str, Callable[[Settings], list[Column]]]
    legend: Mapping[str, str]
    plots: Callable[[Settings], list[Plot]] = _nothing
    scores: Callable[[Settings], list[Score]] = _nothing
    files: Callable[[Settings, str], list[str]] = _nothing
    named: Callable[[Settings], list[str]] = _nothing
    resolved: Callable[[Any, int], Any] = lambda asked, max_length: asked
    keeps_items: bool = False

    @property
    def asks(self) -> type[Strict]:
        """The model of its settings alone, without another way to write them."""
        return get_args(self.settings)[0] if get_origin(self.settings) is Annotated else self.settings

    @property
    def kept(self) -> dict[str, str]:
        """What its job publishes beside its numbers and their record."""
        return {"answers": self.stage.items} if self.keeps_items else {}

    @property
    def stage(self) -> layout.Stage:
        """The files of its jobs, as the engine's patterns."""
        return layout.evaluation("{run}", self.name, "{evaluation}", "{steps}")
