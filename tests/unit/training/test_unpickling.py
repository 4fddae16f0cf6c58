"""What a checkpoint's states may name."""

from __future__ import annotations

import io
import pickletools
import zipfile

import torch
from deepspeed.runtime.fp16.loss_scaler import LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum

from longshort.training import unpickling


def test_what_is_saved_names_nothing_but_what_may_be_loaded() -> None:
    """In every Python: 3.11.2 writes a member of an enumeration as a call of getattr if it is left to itself."""
    unpickling.allow_the_states_of_deepspeed()
    states = {"zero_stage": ZeroStageEnum.optimizer_states, "loss_scaler": LossScaler(1.0), "step": torch.ones(2)}
    file = io.BytesIO()
    torch.save(states, file)
    with zipfile.ZipFile(file) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("data.pkl"))
        named = {str(given) for code, given, _ in pickletools.genops(archive.read(name)) if code.name == "GLOBAL"}
    assert not any("getattr" in one for one in named) and any("ZeroStageEnum" in one for one in named)
    file.seek(0)
    assert torch.load(file, weights_only=True)["zero_stage"] is ZeroStageEnum.optimizer_states
