"""What happens beside the steps of a training, one callback a duty.

transformers calls them in this order: at the end of a step those that decide whether to save or to stop, then for the
row of the step's numbers those that judge, write and show it, then for a saved checkpoint those that complete it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import PreTrainedModel, TrainerCallback
from transformers.trainer_callback import ProgressCallback

from longshort.identity.kinds import ADAPTERS
from longshort.jobs import interruption
from longshort.jobs.ownership import Owner
from longshort.models.head import PARTS
from longshort.records.publish import naming_a_full_disk
from longshort.training import checkpoints, log


class Diverged(Exception):
    """Loss or gradient norm is not finite."""

    def __init__(self, step: int, loss: float, gradient_norm: float | None) -> None:
        super().__init__(f"loss {loss}, gradient norm {gradient_norm} at step {step}")
        self.step = step


def asked_to_stop(work: Path) -> bool:
    """Whether this process, or the launcher, was."""
    return interruption.requested() or (work / checkpoints.STOP).exists()


def on_any_process(holds: bool, device: torch.device) -> bool:
    """Whether something holds for one process at least. All processes call it at once, and all decide alike."""
    processes = torch.tensor(float(holds), device=device)
    if dist.is_initialized():
        dist.all_reduce(processes)
    return bool(processes)


class SavesAtWantedSteps(TrainerCallback):
    """Saves after the wanted steps, and stops after the last of them."""

    def __init__(self, steps: list[int]) -> None:
        self.steps = steps

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_save = state.global_step in self.steps
        control.should_training_stop = state.global_step >= max(self.steps)


class StopsWhenAsked(TrainerCallback):
    """Saves and stops after the same step on all processes, where one of them was asked to stop.

    Args:
        passed: steps whose weights are there already, without states: nothing is saved over them.
    """

    def __init__(self, work: Path, passed: Collection[int]) -> None:
        self.work, self.passed = work, passed

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step in self.passed:
            return
        if on_any_process(asked_to_stop(self.work), args.device):
            control.should_save = control.should_training_stop = True
            if state.is_world_process_zero:  # SLURM's signal may not have reached the launcher
                (self.work / checkpoints.STOP).touch()


class SavesByTheClock(TrainerCallback):
    """Saves where the last checkpoint was begun too many seconds ago. Comes after all others that decide to save.

    Args:
        passed: as of StopsWhenAsked.
    """

    def __init__(self, seconds: float, passed: Collection[int]) -> None:
        self.seconds, self.passed, self.saved = seconds, passed, time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step in self.passed:
            return
        now = time.perf_counter()
        control.should_save |= on_any_process(now - self.saved > self.seconds, args.device)
        if control.should_save:
            self.saved = now


class EndsWhenDiverged(TrainerCallback):
    """Raises Diverged where loss or gradient norm of a step are not finite."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if "loss" not in logs:
            return
        loss, gradient_norm = logs["loss"], logs.get("grad_norm")
        if not math.isfinite(loss) or not math.isfinite(gradient_norm or 0.0):
            raise Diverged(state.global_step, loss, gradient_norm)


class WritesLog(TrainerCallback):
    """Appends the row of each step to log.jsonl."""

    def __init__(self, work: Path) -> None:
        self.path = work / log.NAME

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if "loss" in logs and state.is_world_process_zero:
            row = {"step": state.global_step, **logs}
            row.pop("epoch", None)  # of the step's window among all, which the Trainer adds
            with naming_a_full_disk(self.path, len(repr(row))):
                log.append(self.path, row)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            log.sync(self.path)  # a node that goes down must not take steps before a checkpoint along


class PrintsProgress(TrainerCallback):
    """A line every so many steps, and one after the last."""

    def __init__(self, every: int) -> None:
        self.every = every

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        step, last = state.global_step, state.max_steps
        if "loss" in logs and state.is_world_process_zero and (step % self.every == 0 or step == last):
            shown = " ".join(f"{part} {logs[part]:.4f}" for part in PARTS if part in logs)
            print(f"step {step}/{last} {shown} tokens/s {logs['tokens_per_second']:.0f}", flush=True)


class ProgressBar(ProgressCallback):
    """The progress bar without a line for every logged step."""

    def on_log(self, *args: Any, **kwargs: Any) -> None:
        pass


class SavesConfig(TrainerCallback):
    """Puts the model's configuration beside a saved adapter. Comes before the checkpoint is sealed."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            import_module(ADAPTERS).save_config(
                self.model, checkpoints.folder(Path(args.output_dir), state.global_step)
            )


class SealsCheckpoints(TrainerCallback):
    """Seals what was saved, and takes from older checkpoints what serves no longer.

    Args:
        wanted: steps at which this training was to save.
        kept: steps whose weights stay for good.
    """

    def __init__(self, wanted: list[int], kept: list[int], work: Path, owner: Owner) -> None:
        self.wanted, self.kept, self.work, self.owner = wanted, kept, work, owner

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if dist.is_initialized():
            dist.barrier()  # every process writes its share of the optimiser state
        if state.is_world_process_zero:
            self.owner.refuse_if_lost()
            checkpoints.seal(checkpoints.folder(self.work, state.global_step))
            checkpoints.thin(self.work, self.kept, state.global_step)
            if state.global_step not in self.wanted:
                print(f"checkpoint at step {state.global_step}, to resume from", flush=True)


def of(job: dict[str, Any], owner: Owner, adapted: PreTrainedModel | None) -> list[TrainerCallback]:
    """All of a training but what shows it to a person, in the order in which they must be called.

    Args:
        job: the launcher's job file.
        adapted: the model beside its adapter, where one is trained.
    """
    work, wanted, passed = Path(job["work"]), job["targets"], job.get("passed", [])
    return [
        SavesAtWantedSteps(wanted),
        StopsWhenAsked(work, passed),
        SavesByTheClock(60 * job["checkpoint_minutes"], passed),
        EndsWhenDiverged(),
        WritesLog(work),
        *([SavesConfig(adapted)] if adapted is not None else []),
        SealsCheckpoints(wanted, job["keep"], work, owner),
    ]
