"""Files of config/deepspeed: how DeepSpeed divides a training over its processes. All else the study says."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Any

from longshort.errors import StudyError
from longshort.study.files import json_object
from longshort.study.parsing import short
from longshort.study.schema import Training

# Keys that DeepSpeed 0.19 knows (deepspeed/runtime/config.py) and that do not change what is computed.
KNOWN = {
    *("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping"),
    *("bf16", "fp16", "zero_optimization", "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer"),
    *("communication_data_type", "seq_parallel_communication_data_type", "disable_allgather", "data_types"),
    *("steps_per_print", "wall_clock_breakdown", "memory_breakdown", "dump_state", "comms_logger", "flops_profiler"),
    *("aio", "checkpoint", "activation_checkpointing", "dataloader_drop_last", "use_node_local_storage"),
}
# deepspeed/runtime/zero/config.py, of the same release.
KNOWN_OF_ZERO = {
    *("allgather_bucket_size", "allgather_partitions", "contiguous_gradients", "elastic_checkpoint"),
    *("gather_16bit_weights_on_model_save", "ignore_unused_parameters", "leaf_module", "load_from_fp32_weights"),
    *("memory_efficient_linear", "offload_optimizer", "offload_param", "overlap_comm", "pipeline_loading_checkpoint"),
    *("reduce_bucket_size", "reduce_scatter", "round_robin_gradients", "stage", "sub_group_size"),
    *("stage3_gather_16bit_weights_on_model_save", "stage3_max_live_parameters", "stage3_max_reuse_distance"),
    *("stage3_model_persistence_threshold", "stage3_module_granularity_threshold", "stage3_prefetch_bucket_size"),
    *("stage3_param_persistence_threshold", "stage3_use_all_reduce_for_fetch_params", "stage3_allgather_sequential"),
    *("use_multi_rank_bucket_allreduce", "zero_hpz_partition_size"),
}
BATCH = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")


def read_deepspeed(where: str, training: Training, config: Path) -> dict[str, Any]:
    """The content of the file that a training names.

    Raises:
        StudyError: no such file, a key that DeepSpeed does not know, or one that says what the study says.
    """
    folder = config / "deepspeed"
    path = folder / f"{training.deepspeed}.json"
    if not re.fullmatch(r"[\w.+-]+", training.deepspeed) or not path.exists():
        known = ", ".join(sorted(file.stem for file in folder.glob("*.json")))
        raise StudyError(f"{where}: training.deepspeed = {training.deepspeed!r}: {folder} holds {known}")
    content = json_object(path)
    _refuse_unknown(path, "", content, KNOWN)
    for key in BATCH:
        if content.get(key) != "auto":
            raise StudyError(
                f"{path}: {key} = {short(content.get(key))}: the study's training says the batch; give 'auto'"
            )
    # Without the key DeepSpeed clips at 1, whatever the study says.
    if content.get("gradient_clipping") not in ("auto", training.max_gradient_norm):
        raise StudyError(
            f"{path}: gradient_clipping = {short(content.get('gradient_clipping'))}: the study's "
            f"training.max_gradient_norm says {training.max_gradient_norm:g}; give 'auto'"
        )
    for key, right in {"bf16": training.precision == "bf16", "fp16": False}.items():
        switch = content.get(key, {})
        if not isinstance(switch, dict) or switch.get("enabled", "auto") not in ("auto", right):
            raise StudyError(
                f"{path}: {key} = {short(switch)}: the study's training.precision says {training.precision}; "
                f"give {{'enabled': 'auto'}} for bf16, and nothing for fp16"
            )
    _check_zero(path, content.get("zero_optimization", {}))
    return content


def _check_zero(path: Path, zero: Any) -> None:
    if not isinstance(zero, dict):
        raise StudyError(f"{path}: zero_optimization = {short(zero)}: must be an object; give {{'stage': 2}}")
    _refuse_unknown(path, "zero_optimization.", zero, KNOWN_OF_ZERO)
    stage = zero.get("stage", 0)
    if isinstance(stage, bool) or stage not in (0, 1, 2, 3):
        raise StudyError(f"{path}: zero_optimization.stage = {short(stage)}: there are the stages 0, 1, 2 and 3")


def _refuse_unknown(path: Path, prefix: str, content: dict[str, Any], known: set[str]) -> None:
    for key in content:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise StudyError(
                f"{path}: {prefix}{key} = {short(content[key])}: not known here, or for the study to say (optimizer, "
                f"schedule, precision); {hint}take it out"
            )
