"""The section `training`: the optimisation of one run."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from longshort.identity.strict import NOT_IDENTITY, Strict, distinct
from longshort.models.settings import Adapter

# As transformers' Trainer names them.
Tracker = Literal["tensorboard", "wandb", "mlflow", "comet_ml", "clearml", "swanlab", "trackio", "dvclive"]
MOST_STEPS = 1_000_000  # alpha has a value for each


class Training(Strict):
    """Optimisation of one run."""

    steps: int = Field(gt=0, le=MOST_STEPS, description="optimiser steps")
    batch: int = Field(gt=0, description="windows per optimiser step, over all processes")
    micro_batch: int | None = Field(
        None, gt=0, description="windows per forward and process; null: all at once", json_schema_extra=NOT_IDENTITY
    )
    chunk_size: int | None = Field(
        None,
        gt=0,
        description="positions whose logits exist at a time; null: chosen from the vocabulary and a memory budget",
        json_schema_extra=NOT_IDENTITY,
    )
    learning_rate: float = Field(gt=0, description="peak learning rate of AdamW")
    learning_rate_schedule: Literal["constant", "linear", "cosine"] = Field(
        "cosine", description="shape after warm-up; linear and cosine fall to 0 at the last step"
    )
    warmup_steps: int = Field(0, ge=0, description="optimiser steps of linear warm-up")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's weight decay")
    adam_beta1: float = Field(0.9, ge=0, lt=1, description="AdamW's beta 1")
    adam_beta2: float = Field(0.95, ge=0, lt=1, description="AdamW's beta 2")
    adam_epsilon: float = Field(1e-8, gt=0, description="AdamW's epsilon")
    max_gradient_norm: float = Field(1.0, gt=0, description="gradients are clipped to this global norm")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="floating point type of forward and backward")
    processes: int = Field(1, gt=0, description="processes (GPUs) on each node")
    nodes: int = Field(1, gt=0, description="nodes")
    deepspeed: str = Field(  # no part of the identity: the content of the file is
        "zero1", description="file in config/deepspeed, without .json", json_schema_extra=NOT_IDENTITY
    )
    gradient_checkpointing: bool = Field(
        False, description="recompute activations in the backward pass", json_schema_extra=NOT_IDENTITY
    )
    attention: Literal["full", "shifted-sparse"] = Field(
        "full",
        description="attention while training; shifted-sparse: inside groups of a quarter of the tokens (LongLoRA). "
        "Evaluations always attend fully",
        json_schema_extra={"neutral": "full"},
    )
    adapter: Adapter | None = Field(
        None,
        description="what is trained in place of all weights; null: all weights",
        json_schema_extra={"neutral": None},
    )
    threads: int = Field(1, gt=0, description="CPU threads of each process", json_schema_extra=NOT_IDENTITY)
    checkpoint_minutes: int = Field(
        30,
        ge=0,
        description="minutes between checkpoints that serve only to resume after a kill; 0: after every step",
        json_schema_extra=NOT_IDENTITY,
    )
    logging_steps: int = Field(
        10, gt=0, description="optimiser steps between progress lines", json_schema_extra=NOT_IDENTITY
    )
    report_to: Annotated[list[Tracker], AfterValidator(distinct)] = Field(
        [], description="experiment trackers that are told every step, too", json_schema_extra=NOT_IDENTITY
    )

    @property
    def world_size(self) -> int:
        return self.processes * self.nodes

    @model_validator(mode="after")
    def _batch_divides(self) -> Training:
        micro = self.micro_batch or max(1, self.batch // self.world_size)
        if self.batch % (micro * self.world_size):
            raise ValueError(
                f"batch {self.batch} is no multiple of micro_batch {micro} x {self.world_size} processes; "
                "choose numbers that divide"
            )
        if self.warmup_steps > self.steps:
            raise ValueError(f"warmup_steps {self.warmup_steps} is more than steps {self.steps}; lower it")
        return self
