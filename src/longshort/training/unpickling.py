"""What the pickled files of a checkpoint may make when a training resumes.

DeepSpeed reads its states by torch.load(weights_only=False), which calls whatever a file names. The launcher turns that
off for the training processes by torch's own switch (TORCH_FORCE_WEIGHTS_ONLY_LOAD); these classes are then all that a
file may name beside tensors.
"""

from __future__ import annotations

import copyreg

import torch
from deepspeed.runtime.fp16.loss_scaler import LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address


def allow_the_states_of_deepspeed() -> None:
    """For a process that saves or loads them, before it does either."""
    torch.serialization.add_safe_globals([LossScaler, ZeroStageEnum, fragment_address])
    # Python 3.11.2, as Debian has it, would have the file name getattr, by which anything could be called.
    copyreg.pickle(ZeroStageEnum, lambda stage: (ZeroStageEnum, (stage.value,)))
