"""The study, typed: what a person writes in config/, a file a section. The one source of truth. What a stage reads too,
of data, models, alignment and metrics, is in the `settings.py` of its wing.

Imports no torch and no workflow engine.
"""

from longshort.data.settings import Data, PretrainedTokenizer
from longshort.identity.strict import MOST_SEEDS, Strict, distinct
from longshort.models.settings import CLEX, YaRN
from longshort.study.schema.alignment import Alignment
from longshort.study.schema.arms import Arm, Arms
from longshort.study.schema.evaluations import Evaluations
from longshort.study.schema.model import PretrainedModel, TrainedModel
from longshort.study.schema.study import Override, Study
from longshort.study.schema.tables import Table
from longshort.study.schema.training import Training

__all__ = [
    "Alignment",
    "Arm",
    "Arms",
    "CLEX",
    "Data",
    "Evaluations",
    "MOST_SEEDS",
    "Override",
    "PretrainedModel",
    "PretrainedTokenizer",
    "Strict",
    "Study",
    "Table",
    "TrainedModel",
    "Training",
    "YaRN",
    "distinct",
]
