"""The one trainer: transformers' Trainer under DeepSpeed, with the alignment objective inside the head's forward.

Started by launch.py through worker.py with the launcher's job file: it names the specification, the folders,
the step to resume from and the steps at which weights are wanted.
"""

from __future__ import annotations

import argparse
import math
import shutil
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from torch import Tensor
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from longshort.data import tokenizers
from longshort.data.windows import TokenStream, Windows, collate
from longshort.identity.kinds import ADAPTERS, ALIGNMENT, SHIFTED_SPARSE
from longshort.jobs import interruption
from longshort.jobs.ownership import Owner
from longshort.models import load, rope
from longshort.models.head import PARTS, Batch, LossHead, NextToken, install, parts
from longshort.records.publish import NoSpace, is_full, naming_a_full_disk, no_space, read_json, write_json
from longshort.training import checkpoints, extensions, log


class Diverged(Exception):
    """Loss or gradient norm is not finite."""

    def __init__(self, step: int, loss: float, gradient_norm: float | None) -> None:
        super().__init__(f"loss {loss}, gradient norm {gradient_norm} at step {step}")
        self.step = step


class LongShortTrainer(Trainer):
    """Adds the two views, alpha(step), the log of every part, the end of a run that diverged, and an early end.

    Where one process was asked to stop, or a checkpoint is due, all save after the same step: the request travels with
    the sum of the losses.
    """

    def __init__(
        self,
        *,
        head: LossHead,
        before_step: Callable[[int], None],
        alpha_output: list[float],
        alpha_hidden: list[float],
        work: Path,
        progress_every: int,
        checkpoint_seconds: float,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        # The objective is a mean over the micro-batch; the Trainer divides by the accumulation steps.
        self.model_accepts_loss_kwargs = False
        self.head, self.before_step = head, before_step
        self.alpha_output, self.alpha_hidden = alpha_output, alpha_hidden
        self.work, self.progress_every, self.checkpoint_seconds = work, progress_every, checkpoint_seconds
        self._parts: list[Tensor] = []
        self._tokens = 0
        self._since = self._saved = time.perf_counter()

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        step = self.state.global_step
        self.before_step(step)
        batch = Batch(inputs["targets"], inputs["extra"], self.alpha_output[step], self.alpha_hidden[step])
        values = parts(model, self.head, inputs["inputs"], batch)
        self._parts.append(values.detach())
        self._tokens += inputs["inputs"].numel()
        return (values[0], {}) if return_outputs else values[0]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """One row per optimiser step: means over micro-batches and processes."""
        if "loss" not in logs:  # the summary at the end of the training, wrong after a resume
            super().log(logs, start_time)
            return
        values = torch.stack(self._parts).mean(0, dtype=torch.float64)
        now = time.perf_counter()
        due = now - self._saved > self.checkpoint_seconds
        values = torch.cat([values, values.new_tensor([float(asked_to_stop(self.work)), float(due)])])
        if dist.is_initialized():
            dist.all_reduce(values)
        *sums, asked, due_anywhere = values.tolist()
        values = torch.tensor(sums, dtype=torch.float64) / self.args.world_size
        if asked or due_anywhere:
            self.control.should_save = True
            self.control.should_training_stop |= bool(asked)
        if self.control.should_save:
            self._saved = now
        if asked and self.is_world_process_zero():  # SLURM's signal may not have reached the launcher
            (self.work / checkpoints.STOP).touch()
        step = self.state.global_step
        row: dict[str, float] = {"step": step}
        row.update({part: value for part, value in zip(PARTS, values.tolist(), strict=True) if part in self.head.parts})
        row["alpha_output"], row["alpha_hidden"] = self.alpha_output[step - 1], self.alpha_hidden[step - 1]
        row["learning_rate"] = logs["learning_rate"]
        if "grad_norm" in logs:  # DeepSpeed reports none for stage 0 in float32
            row["grad_norm"] = logs["grad_norm"]
        row["tokens_per_second"] = self._tokens * self.args.world_size / (now - self._since)
        if torch.cuda.is_available():
            row["device_memory_mb"] = torch.cuda.max_memory_allocated() / 2**20
        self._parts, self._tokens, self._since = [], 0, now
        super().log({**logs, **{name: value for name, value in row.items() if name != "step"}}, start_time)
        if not math.isfinite(row["loss"]) or not math.isfinite(row.get("grad_norm", 0.0)):
            raise Diverged(step, row["loss"], row.get("grad_norm"))
        if self.is_world_process_zero():
            with naming_a_full_disk(self.work / log.NAME, len(repr(row))):
                log.append(self.work / log.NAME, row)
            if (step % self.progress_every == 0 or step == self.state.max_steps) and self.args.disable_tqdm:
                shown = " ".join(f"{part} {row[part]:.4f}" for part in self.head.parts)
                print(f"step {step}/{self.state.max_steps} {shown} tokens/s {row['tokens_per_second']:.0f}", flush=True)


class Bar(ProgressCallback):
    """The progress bar without a line for every logged step."""

    def on_log(self, *args: Any, **kwargs: Any) -> None:
        pass


class SavesConfig(TrainerCallback):
    """Puts the model's configuration beside a saved adapter, ahead of the seal."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            import_module(ADAPTERS).save_config(
                self.model, checkpoints.folder(Path(args.output_dir), state.global_step)
            )


class CheckpointAt(TrainerCallback):
    """Saves at the wanted steps, seals what was saved, and stops after the last of them."""

    def __init__(self, steps: list[int], kept: list[int], work: Path, owner: Owner) -> None:
        self.steps, self.kept, self.work, self.owner = steps, kept, work, owner

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_save = state.global_step in self.steps
        control.should_training_stop = state.global_step >= max(self.steps)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if dist.is_initialized():
            dist.barrier()  # every process writes its share of the optimiser state
        if state.is_world_process_zero:
            self.owner.refuse_if_lost()
            log.sync(self.work / log.NAME)  # a node that goes down must not take steps before a checkpoint along
            checkpoints.seal(checkpoints.folder(self.work, state.global_step))
            # The newest may be found damaged: then the one before it is resumed from.
            checkpoints.thin(self.work, self.kept, spare=2)
            if state.global_step not in self.steps:
                print(f"checkpoint at step {state.global_step}, to resume from", flush=True)


def weights_at(alpha: float | list[float] | None, steps: int) -> list[float]:
    """alpha(0..steps-1) of a term in the specification."""
    if alpha is None:
        return [0.0] * steps
    values = alpha if isinstance(alpha, list) else [alpha] * steps
    if len(values) != steps:
        raise ValueError(f"the specification has {len(values)} values of alpha for {steps} steps")
    return values


def build_model(spec: dict[str, Any], base: Path | None, vocabulary: int, separator: int) -> PreTrainedModel:
    """The model that a run starts from; base is the checkpoint of the run that the specification names."""
    if base is not None:
        training = spec["training"]
        quantised = (training.get("adapter") or {}).get("kind") == "qlora"
        # DeepSpeed makes its float32 copy from weights of this precision, whatever they were before.
        model = load.load(base, precision=training["precision"], four_bits=quantised)
        if spec.get("rope"):
            rope.extend(model, spec["rope"], spec["seed"])
        return model
    return load.from_scratch(
        spec["architecture"], vocabulary=vocabulary, separator=separator, length=spec["length"], seed=spec["seed"]
    )


def arguments_of(job: dict[str, Any], spec: dict[str, Any]) -> TrainingArguments:
    training = spec["training"]
    processes = training["processes"] * training["nodes"]
    micro_batch = job["micro_batch"] or max(1, training["batch"] // processes)
    if training["batch"] % (micro_batch * processes):
        raise ValueError(
            f"batch {training['batch']} is no multiple of {micro_batch} (micro-batch) x {processes} processes"
        )
    return TrainingArguments(
        output_dir=job["work"],
        max_steps=training["steps"],
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=training["batch"] // (micro_batch * processes),
        learning_rate=training["learning_rate"],
        lr_scheduler_type=training["learning_rate_schedule"]
        + ("_with_warmup" if training["learning_rate_schedule"] == "constant" else ""),
        warmup_steps=training["warmup_steps"],
        weight_decay=training["weight_decay"],
        adam_beta1=training["adam_beta1"],
        adam_beta2=training["adam_beta2"],
        adam_epsilon=training["adam_epsilon"],
        max_grad_norm=training["max_gradient_norm"],
        bf16=training["precision"] == "bf16",
        activation_checkpointing=job["gradient_checkpointing"],
        activation_checkpointing_kwargs={"use_reentrant": False},
        use_cpu=not torch.cuda.is_available(),
        # One pass over the weights. DeepSpeed's own Adam compiles for minutes on a CPU.
        optim="adamw_torch_fused",
        deepspeed=dict(spec["deepspeed"]),
        save_strategy="no",
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to=job["report_to"],
        run_name=job["run_name"],
        disable_tqdm=not sys.stderr.isatty(),
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        train_sampling_strategy="sequential",
        seed=spec["seed"],
        data_seed=spec["seed"],
    )


def train(job: dict[str, Any]) -> None:
    """Trains one segment of a run: from a checkpoint (or the start) to the last wanted step.

    Writes sealed checkpoints and log.jsonl below job["work"]; a run that diverged leaves diverged.json and returns.
    """
    spec = read_json(Path(job["spec"]))
    work, data = Path(job["work"]), Path(job["data"])
    owner = Owner(work / "owner.json", job["owner"])
    arguments = arguments_of(job, spec)
    processes = spec["training"]["processes"] * spec["training"]["nodes"]
    if arguments.world_size != processes:
        raise ValueError(
            f"this run is one of {processes} processes, as its specification says, and {arguments.world_size} were "
            "started: another number of them is another run; change training.processes or training.nodes in the study"
        )
    extensions.lock_as_long_as_processes_live()
    # ZeRO-3 divides the weights while they are loaded, and takes the world for one process unless told before.
    deepspeed.init_distributed(dist_backend="nccl" if arguments.device.type == "cuda" else "gloo", verbose=False)
    tokenizer = tokenizers.load(spec["data"]["tokenizer"])
    separator = tokenizers.separator(tokenizer)
    alignment, training = spec.get("alignment"), spec["training"]
    windows = Windows(
        TokenStream(data / "train", separator),
        length=spec["length"],
        seed=spec["seed"],
        batch=training["batch"],
        steps=training["steps"],
        max_extra=alignment["max_extra"] if alignment else None,
        extra_per_row=bool(alignment) and alignment.get("sampling_per") == "row",
    )
    if arguments.process_index == 0:
        lengths = windows.stream.document_lengths
        print(
            f"{windows.slots} windows of up to {windows.slot} tokens an epoch; {(lengths < windows.slot).sum()} "
            f"of {len(lengths)} documents are shorter than a window and packed with others",
            flush=True,
        )
    model = build_model(spec, Path(job["base"]) if job["base"] else None, len(tokenizer), separator)
    if training.get("attention") == "shifted-sparse":
        import_module(SHIFTED_SPARSE).use(model, spec["length"])
    aligns = bool(alignment and (alignment.get("output") or alignment.get("hidden")))
    objective = import_module(ALIGNMENT).of(model, alignment) if aligns else NextToken()
    head = install(model, objective, job["chunk_size"] or None)
    trained, before_step = model, rope.at_step(model, spec["seed"])
    callbacks: list[TrainerCallback] = [CheckpointAt(job["targets"], job["keep"], work, owner)]
    if training.get("adapter"):
        adapters = import_module(ADAPTERS)
        trained = adapters.attach(model, training["adapter"], spec["seed"])
        callbacks.insert(0, SavesConfig(model))
    output, hidden = ((alignment or {}).get(term) or {} for term in ("output", "hidden"))
    trainer = LongShortTrainer(
        model=trained,
        args=arguments,
        train_dataset=windows,
        data_collator=partial(collate, length=spec["length"]),
        callbacks=callbacks,
        head=head,
        before_step=before_step,
        alpha_output=weights_at(output.get("alpha"), training["steps"]),
        alpha_hidden=weights_at(hidden.get("alpha"), training["steps"]),
        work=work,
        progress_every=job["logging_steps"],
        checkpoint_seconds=60 * job["checkpoint_minutes"],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    if not arguments.disable_tqdm:
        trainer.add_callback(Bar)
    resume = str(checkpoints.folder(work, job["resume"])) if job["resume"] else None
    asked = torch.tensor(float(asked_to_stop(work)), device=arguments.device)
    dist.all_reduce(asked)  # one that was asked a moment later must not begin alone
    if asked:
        print("asked to stop before the first step", flush=True)
        return
    try:
        with owner.beating() if trainer.is_world_process_zero() else nullcontext():
            trainer.train(resume_from_checkpoint=resume)
    except Diverged as error:
        print(f"diverged: {error}; of the checkpoints before it, those of wanted steps are kept", flush=True)
        if trainer.is_world_process_zero():
            write_json(work / checkpoints.DIVERGED, {"step": error.step, "message": str(error)})
    except NoSpace as error:
        raise SystemExit(str(error)) from error
    except Exception as error:
        needed = checkpoint_size(model)
        if is_full(error) or shutil.disk_usage(work).free < needed:
            traceback.print_exc()
            raise SystemExit(f"a checkpoint was not written: {no_space(work, needed)} ({error})") from error
        raise


def checkpoint_size(model: PreTrainedModel) -> int:
    """About how many bytes a checkpoint takes: weights twice (the model's and DeepSpeed's), and what AdamW keeps."""
    trained = (parameter for parameter in model.parameters() if parameter.requires_grad)
    weights = sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in trained)
    return 16 * int(weights)


def asked_to_stop(work: Path) -> bool:
    """Whether this process, or the launcher, was."""
    return interruption.requested() or (work / checkpoints.STOP).exists()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--job", type=Path, required=True, help="job file written by the launcher")
    try:
        train(read_json(parser.parse_args().job))
    except ValueError as error:
        raise SystemExit(f"training: {error}") from None
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
