"""Whether the estimate of a training's memory holds: estimated beside measured, for three shapes.

    python benchmarks/memory.py [--json FILE] [--device cuda]

Measured is what a process of the real trainer takes at its peak over what it takes once all is imported, on a GPU
the allocator's peak: of the process that takes most. On a CPU twice: what is alive, where the C library gives back at
once what is freed, and all, with what it keeps as it runs, which differs between two runs of one training.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from objective import llama
from side_by_side import arguments, report
from training import prepare, specification
from transformers import LlamaConfig

from longshort.commands import memory
from longshort.identity.spec import restored
from longshort.jobs.ownership import sole_owner
from longshort.records.publish import read_json
from longshort.study.run import RunSpec
from longshort.training import launch, trainer

ROOT = Path(__file__).resolve().parents[1]
SHAPES: dict[str, dict[str, Any]] = {
    "zero2_fp32": {"model": llama(512, 1408, 14, 8, 8192), "processes": 2, "length": 256, "checkpointing": False},
    "zero1_fp32": {"model": llama(768, 2048, 12, 12, 16_000), "processes": 1, "length": 512, "checkpointing": True},
    "zero3_bf16": {"model": llama(1024, 2816, 10, 16, 8192), "processes": 2, "length": 256, "checkpointing": True},
}
TOY = {"zero2_fp32": {"model": llama(16, 32, 2, 2, 300), "processes": 1, "length": 32, "checkpointing": False}}


def worker(job: Path) -> None:
    """One process of a training, which leaves what it took: bytes."""
    before = resident("VmRSS")
    trainer.train(read_json(job))
    taken = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else resident("VmHWM") - before
    (job.parent / f"taken-{os.environ['RANK']}.json").write_text(json.dumps(taken))


def resident(what: str) -> int:
    found = re.search(rf"{what}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return 1024 * int(found[1])


# The C library gives back at once what is as large as that.
GIVEN_BACK = {"MALLOC_MMAP_THRESHOLD_": str(2**20)}


def measured(folder: Path, name: str, shape: dict[str, Any], spec: dict[str, Any], keep: bool = True) -> int:
    """Bytes that the process that takes most takes, with or without what the C library keeps of what is freed."""
    work = folder / name
    work.mkdir()
    (work / "spec.json").write_text(json.dumps(spec))
    with sole_owner(work) as owner:
        job = {
            "spec": str(work / "spec.json"),
            "data": str(folder / "data"),
            "base": str(folder / "base"),
            "work": str(work),
            "micro_batch": 1,
            "chunk_size": 0,
            "gradient_checkpointing": shape["checkpointing"],
            "logging_steps": 10,
            "resume": 0,
            "targets": [spec["training"]["steps"] + 1],  # nothing is saved
            "keep": [],
            "checkpoint_minutes": 60,
            "report_to": "none",
            "run_name": "benchmark",
            "owner": owner.token,
        }
        (work / "job.json").write_text(json.dumps(job))
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += [f"--nproc-per-node={shape['processes']}", __file__, "--worker", str(work / "job.json")]
        environment = {**launch.environment(1), **({} if keep else GIVEN_BACK)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    return max(json.loads(path.read_text()) for path in work.glob("taken-*.json"))


def main() -> None:
    given = arguments(__doc__)
    figures, notes = {}, {}
    for name, shape in (TOY if given.toy else SHAPES).items():
        zero, precision = name.split("_")
        config: LlamaConfig = shape["model"]
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            sizes = {"model": config, "length": shape["length"], "batch": shape["processes"], "steps": 10}
            prepare(folder, {**sizes, "precision": precision})
            spec = specification({**sizes, "precision": precision}, zero)
            spec["training"]["processes"] = shape["processes"]
            taken = {"": measured(folder, name, shape, spec)}
            if given.device == "cpu":
                taken["alive_"] = measured(folder, f"{name}-alive", shape, spec, keep=False)
        model = memory.Model.of(config.to_dict())
        how = f"{shape['processes']} processes, {shape['length']} tokens a view"
        parts = memory.of_training(
            model,
            restored(RunSpec, spec).optimisation,
            spec["length"],
            spec["deepspeed"],
            1,
            shape["checkpointing"],
            given.device,
        )
        if given.detail:
            print(name, {key: round(value / 2**20) for key, value in parts.items()})
        kept = parts.get("kept by the C library", 0.0)
        for what, bytes_taken in taken.items():
            estimated = sum(parts.values()) - (kept if what else 0.0)
            figures[f"memory_{what}estimated_over_measured_{name}"] = estimated / bytes_taken
            notes[f"memory_{what}estimated_over_measured_{name}"] = (
                f"{model.weights / 1e6:.0f} M weights, {how}, {'' if shape['checkpointing'] else 'no '}checkpointing: "
                f"{estimated / 2**20:,.0f} / {bytes_taken / 2**20:,.0f} MiB"
            )
    report("Memory of a training", figures, notes, given)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        worker(Path(sys.argv[2]))
    else:
        main()
