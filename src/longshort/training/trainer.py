"""The one trainer: transformers' Trainer under DeepSpeed, with the alignment objective inside the head's forward.

Started by launch.py through worker.py with the launcher's job file: it names the specification, the folders,
the step to resume from and the steps at which weights are wanted.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from torch import Tensor
from transformers import PreTrainedModel, Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from longshort.data import tokenizers
from longshort.data.streams import generator
from longshort.data.windows import TokenStream, Windows, collate
from longshort.errors import JobFailed, UserError
from longshort.identity.kinds import ADAPTERS, ALIGNMENT, SHIFTED_SPARSE
from longshort.identity.spec import restored
from longshort.jobs.ownership import Owner
from longshort.models import load, rope
from longshort.models.head import PARTS, LossHead, LossInputs, NextToken, install, parts
from longshort.records.publish import NoSpace, is_full, no_space, read_json, write_json
from longshort.study.run import RunSpec
from longshort.training import callbacks, checkpoints, extensions, log
from longshort.training.callbacks import Diverged, asked_to_stop, on_any_process


class LongShortTrainer(Trainer):
    """Adds the two views, alpha(step), and the numbers of every step to transformers' loop; callbacks do the rest."""

    def __init__(
        self,
        *,
        head: LossHead,
        before_forward: Callable[[int, Sequence[int]], None],
        alpha_output: list[float],
        alpha_hidden: list[float],
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        # The objective is a mean over the micro-batch; the Trainer divides by the accumulation steps.
        self.model_accepts_loss_kwargs = False
        self.head, self.before_forward = head, before_forward
        self.alpha_output, self.alpha_hidden = alpha_output, alpha_hidden
        self._parts: list[Tensor] = []
        self._tokens = 0
        self._since = time.perf_counter()

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        step = self.state.global_step
        self.before_forward(step, inputs["samples"])
        batch = LossInputs(inputs["targets"], inputs["extra"], self.alpha_output[step], self.alpha_hidden[step])
        values = parts(model, self.head, inputs["inputs"], batch)
        self._parts.append(values.detach())
        self._tokens += inputs["inputs"].numel()
        return (values[0], {}) if return_outputs else values[0]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """One row per optimiser step; the summary at the end of the training, which has no loss, passes through."""
        super().log(self._row(logs) if "loss" in logs else logs, start_time)

    def _row(self, logs: dict[str, float]) -> dict[str, float]:
        """The parts of the loss, means over micro-batches and processes; weights, learning rate and speed of the step.

        Args:
            logs: what transformers says of the step.
        """
        now = time.perf_counter()
        values = torch.stack(self._parts).mean(0, dtype=torch.float64)
        if dist.is_initialized():
            dist.all_reduce(values)
        values = values.cpu() / self.args.world_size
        row = {part: value for part, value in zip(PARTS, values.tolist(), strict=True) if part in self.head.parts}
        step = self.state.global_step - 1
        row["alpha_output"], row["alpha_hidden"] = self.alpha_output[step], self.alpha_hidden[step]
        row["learning_rate"] = logs["learning_rate"]
        if "grad_norm" in logs:  # DeepSpeed reports none for stage 0 in float32
            row["grad_norm"] = logs["grad_norm"]
        row["tokens_per_second"] = self._tokens * self.args.world_size / (now - self._since)
        if torch.cuda.is_available():
            row["device_memory_mb"] = torch.cuda.max_memory_allocated() / 2**20
        self._parts, self._tokens, self._since = [], 0, now
        return row


def weights_at(alpha: float | list[float] | None, steps: int) -> list[float]:
    """alpha(0..steps-1) of a term in the specification."""
    if alpha is None:
        return [0.0] * steps
    values = alpha if isinstance(alpha, list) else [alpha] * steps
    if len(values) != steps:
        raise ValueError(f"the specification has {len(values)} values of alpha for {steps} steps")
    return values


def build_model(spec: RunSpec, base: Path | None, vocabulary: int, separator: int) -> PreTrainedModel:
    """The model that a run starts from; base is the checkpoint of the run that the specification names."""
    if base is not None:
        training = spec.optimisation
        quantised = training.adapter is not None and training.adapter.kind == "qlora"
        # DeepSpeed makes its float32 copy from weights of this precision, whatever they were before.
        model = load.load(base, precision=training.precision, four_bits=quantised)
        if spec.rope:
            rope.extend(model, spec.rope, spec.seed)
        return model
    if spec.architecture is None:
        raise ValueError("the specification has no architecture, and no base was given; give one of the two")
    return load.from_scratch(
        spec.architecture, vocabulary=vocabulary, separator=separator, length=spec.length, seed=spec.seed
    )


def arguments_of(job: dict[str, Any], spec: RunSpec) -> TrainingArguments:
    training = spec.optimisation
    assert spec.deepspeed is not None, "a specification has it with its training"
    processes = training.world_size
    micro_batch = job["micro_batch"] or max(1, training.batch // processes)
    if training.batch % (micro_batch * processes):
        raise ValueError(
            f"batch {training.batch} is no multiple of {micro_batch} (micro-batch) x {processes} processes"
        )
    return TrainingArguments(
        output_dir=job["work"],
        max_steps=training.steps,
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=training.batch // (micro_batch * processes),
        learning_rate=training.learning_rate,
        lr_scheduler_type=training.learning_rate_schedule
        + ("_with_warmup" if training.learning_rate_schedule == "constant" else ""),
        warmup_steps=training.warmup_steps,
        weight_decay=training.weight_decay,
        adam_beta1=training.adam_beta1,
        adam_beta2=training.adam_beta2,
        adam_epsilon=training.adam_epsilon,
        max_grad_norm=training.max_gradient_norm,
        bf16=training.precision == "bf16",
        activation_checkpointing=job["gradient_checkpointing"],
        activation_checkpointing_kwargs={"use_reentrant": False},
        use_cpu=not torch.cuda.is_available(),
        # One pass over the weights. DeepSpeed's own Adam compiles for minutes on a CPU.
        optim="adamw_torch_fused",
        deepspeed=dict(spec.deepspeed),
        save_strategy="no",
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to=job["report_to"],
        run_name=job["run_name"],
        disable_tqdm=not sys.stderr.isatty(),
        remove_unused_columns=False,
        # A micro-batch is copied to a GPU while that is at work on the one before.
        dataloader_pin_memory=torch.cuda.is_available(),
        accelerator_config={"non_blocking": torch.cuda.is_available()},
        train_sampling_strategy="sequential",
        seed=spec.seed,
        data_seed=spec.seed,
    )


def train(job: dict[str, Any]) -> None:
    """Trains one segment of a run: from a checkpoint (or the start) to the last wanted step.

    Writes sealed checkpoints and log.jsonl below job["work"]; a run that diverged leaves diverged.json and returns.
    """
    spec = restored(RunSpec, read_json(Path(job["spec"])))
    work = Path(job["work"])
    owner = Owner(work / "owner.json", job["owner"])
    arguments = arguments_of(job, spec)
    processes = spec.optimisation.world_size
    if arguments.world_size != processes:
        raise ValueError(
            f"this run is one of {processes} processes, as its specification says, and {arguments.world_size} were "
            "started: another number of them is another run; change training.processes or training.nodes in the study"
        )
    extensions.lock_as_long_as_processes_live()
    # ZeRO-3 divides the weights while they are loaded, and takes the world for one process unless told before.
    deepspeed.init_distributed(dist_backend="nccl" if arguments.device.type == "cuda" else "gloo", verbose=False)
    trainer = build_trainer(job, spec, arguments, owner)
    # The Trainer seeded all processes alike, so that dropout would take the same inputs out of each one's windows. The
    # first one keeps its draws, and so a training by one process its numbers.
    if arguments.process_index:
        torch.manual_seed(int(generator("dropout", spec.seed, arguments.process_index).integers(2**63)))
    resume = str(checkpoints.folder(work, job["resume"])) if job["resume"] else None
    if on_any_process(asked_to_stop(work), arguments.device):  # one that was asked a moment later must not begin alone
        print("asked to stop before the first step", flush=True)
        if trainer.is_world_process_zero():  # SLURM's signal may not have reached the launcher
            (work / checkpoints.STOP).touch()
        return
    try:
        with owner.beating() if trainer.is_world_process_zero() else nullcontext():
            trainer.train(resume_from_checkpoint=resume)
    except Diverged as error:
        print(f"diverged: {error}; of the checkpoints before it, those of wanted steps are kept", flush=True)
        if trainer.is_world_process_zero():
            log.sync(work / log.NAME)  # what no attempt trains again
            write_json(work / checkpoints.DIVERGED, {"step": error.step, "message": str(error)})
    except Exception as error:
        needed = checkpoint_size(trainer.model)
        if not isinstance(error, NoSpace) and (is_full(error) or shutil.disk_usage(work).free < needed):
            traceback.print_exc()
            raise JobFailed(f"a checkpoint was not written: {no_space(work, needed)} ({error})") from error
        raise


def build_trainer(job: dict[str, Any], spec: RunSpec, arguments: TrainingArguments, owner: Owner) -> LongShortTrainer:
    """Windows, model, objective and callbacks of a run, put together."""
    tokenizer = tokenizers.load(spec.data.tokenizer)
    separator = tokenizers.separator(tokenizer)
    windows = build_windows(spec, Path(job["data"]), separator)
    if arguments.process_index == 0:
        lengths = windows.stream.document_lengths
        print(
            f"{windows.slots} slots of {windows.slot} tokens an epoch; {(lengths < windows.slot).sum()} "
            f"of {len(lengths)} documents are shorter than a slot and packed with others",
            flush=True,
        )
    alignment, training = spec.alignment, spec.optimisation
    model = build_model(spec, Path(job["base"]) if job["base"] else None, len(tokenizer), separator)
    if training.attention == "shifted-sparse":
        import_module(SHIFTED_SPARSE).use(model, spec.length)
    output, hidden = (alignment.output, alignment.hidden) if alignment else (None, None)
    objective = import_module(ALIGNMENT).AlignmentObjective(model, alignment) if output or hidden else NextToken()
    head = install(model, objective, job["chunk_size"] or None)
    trained, before_forward = model, rope.at_forward(model, spec.seed)
    if training.adapter:
        trained = import_module(ADAPTERS).attach(model, training.adapter, spec.seed)
    trainer = LongShortTrainer(
        model=trained,
        args=arguments,
        train_dataset=windows,
        data_collator=partial(collate, length=spec.length),
        head=head,
        before_forward=before_forward,
        alpha_output=weights_at(output.alpha if output else None, training.steps),
        alpha_hidden=weights_at(hidden.alpha if hidden else None, training.steps),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    for callback in callbacks.of(job, owner, adapted=model if training.adapter else None):
        trainer.add_callback(callback)
    trainer.add_callback(
        callbacks.PrintsProgress(job["logging_steps"]) if arguments.disable_tqdm else callbacks.ProgressBar()
    )
    return trainer


def build_windows(spec: RunSpec, data: Path, separator: int) -> Windows:
    """The training's windows, in their order, of a published data folder."""
    alignment, training = spec.alignment, spec.optimisation
    return Windows(
        TokenStream(data / "train", separator),
        length=spec.length,
        seed=spec.seed,
        batch=training.batch,
        steps=training.steps,
        max_extra=alignment.max_extra if alignment else None,
        extra_per_row=alignment is not None and alignment.sampling_per == "row",
        # Slots of the base's length, in the order of its seed, would be the windows that it was trained on first.
        halves=alignment is None and spec.base is not None,
    )


def checkpoint_size(model: Any) -> int:
    """About how many bytes a checkpoint takes: weights twice (the model's and DeepSpeed's), and what AdamW keeps."""
    trained = (parameter for parameter in model.parameters() if parameter.requires_grad)
    weights = sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in trained)
    return 16 * int(weights)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--job", type=Path, required=True, help="job file written by the launcher")
    try:
        train(read_json(parser.parse_args().job))
    except ValueError as error:
        raise UserError(f"training: {error}") from None
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
