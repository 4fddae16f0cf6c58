"""The study, typed: what a person writes in config/, a file a section. The one source of truth.

Imports no torch and no workflow engine.
"""

from longshort.identity.strict import MOST_SEEDS, Strict, distinct
from longshort.study.schema.alignment import Alignment, Divergence, Overlap, StopGradient
from longshort.study.schema.arms import Arm, Arms
from longshort.study.schema.data import Data, PretrainedTokenizer
from longshort.study.schema.evaluations import Evaluations
from longshort.study.schema.model import CLEX, Architecture, PretrainedModel, Rope, TrainedModel, YaRN
from longshort.study.schema.study import Override, Study
from longshort.study.schema.tables import Table
from longshort.study.schema.training import Training

__all__ = [
    "Alignment",
    "Architecture",
    "Arm",
    "Arms",
    "CLEX",
    "Data",
    "Divergence",
    "Evaluations",
    "MOST_SEEDS",
    "Overlap",
    "Override",
    "PretrainedModel",
    "PretrainedTokenizer",
    "Rope",
    "StopGradient",
    "Strict",
    "Study",
    "Table",
    "TrainedModel",
    "Training",
    "YaRN",
    "distinct",
]
