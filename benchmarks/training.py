"""What the trainer costs: Trainer + DeepSpeed in one process beside a bare PyTorch loop.

    python benchmarks/training.py [--json FILE] [--device cuda] [--toy]

Same weights, windows, objective (SCE), clipping, learning rates and allocator settings. The loop is what a person would
write: windows one by one, PyTorch's AdamW as it comes; the trainer takes the fused AdamW.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from objective import llama
from side_by_side import arguments, keep, report
from transformers import LlamaConfig, LlamaForCausalLM, get_cosine_schedule_with_warmup

from longshort.alignment import objective
from longshort.commands import memory
from longshort.data import __main__ as data_stage
from longshort.data.windows import TokenStream, Windows, collate
from longshort.identity.spec import restored
from longshort.jobs.ownership import sole_owner
from longshort.models import load
from longshort.models.head import LossInputs, install, parts
from longshort.study import resolve
from longshort.study.run import RunSpec
from longshort.study.schema import CLEX, YaRN
from longshort.training import launch, log, trainer

ROOT = Path(__file__).resolve().parents[1]
EXTENSIONS: dict[str, dict[str, Any]] = {  # fourfold: the shapes' models reach 2048 tokens by themselves
    "yarn": YaRN(kind="yarn", factor=4.0).model_dump(),
    "clex": CLEX(kind="clex", max_factor=4).model_dump(),
}
UNCOUNTED = 2  # steps at the start of every training
# Dense bf16 operations per second: of an A100 what the maker states, of the others what large products reach.
PEAKS = {"H100": 790e12, "H200": 790e12, "A100": 312e12}


def shape_of(given: Any) -> dict[str, Any]:
    """Model, length and batch of the measurement."""
    if given.toy:
        return {"model": llama(16, 32, 2, 2, 1000), "length": 32, "batch": 2, "steps": 6, "precision": "fp32"}
    if given.device == "cuda":  # the shape of Llama 3.2 1B
        return {
            "model": llama(2048, 8192, 16, 32, 128_256, 8),
            "length": 8192,
            "batch": 2,
            "steps": 8,
            "precision": "bf16",
        }
    return {"model": llama(512, 1408, 4, 8, 32_000), "length": 256, "batch": 2, "steps": 8, "precision": "fp32"}


def specification(shape: dict[str, Any], zero: str, rope: dict[str, Any] | None = None) -> dict[str, Any]:
    """The demo's arm `sce` with another size, a ZeRO stage, and an extended context."""
    resolved = resolve.load("demo", ROOT / "config")
    spec = json.loads(resolved.texts[resolved.arm_runs["sce"][0]])
    spec["length"] = shape["length"]
    spec["alignment"]["max_extra"] = shape["length"] // 2
    spec["deepspeed"] = json.loads((ROOT / "config" / "deepspeed" / f"{zero}.json").read_text())
    spec["training"].update(
        steps=shape["steps"], batch=shape["batch"], warmup_steps=1, precision=shape["precision"], processes=1
    )
    return {**spec, "rope": rope} if rope else spec


def trained(folder: Path, shape: dict[str, Any], zero: str, rope: dict[str, Any] | None = None) -> list[float]:
    """Tokens per second at every step of our trainer."""
    work = Path(tempfile.mkdtemp(dir=folder))
    (work / "spec.json").write_text(json.dumps(specification(shape, zero, rope)))
    job = {
        "spec": str(work / "spec.json"),
        "data": str(folder / "data"),
        "base": str(folder / "base"),
        "work": str(work),
        "micro_batch": 1,
        "chunk_size": 0,
        "gradient_checkpointing": shape["precision"] == "bf16",
        "logging_steps": shape["steps"],
        "resume": 0,
        "targets": [shape["steps"] + 1],  # nothing is saved
        "keep": [],
        "checkpoint_minutes": 60,
        "report_to": "none",
        "run_name": "benchmark",
    }
    with contextlib.redirect_stdout(io.StringIO()), sole_owner(work) as owner:
        trainer.train({**job, "owner": owner.token})
    rows = [json.loads(line) for line in (work / log.NAME).read_text().splitlines()]
    return [row["tokens_per_second"] for row in rows[UNCOUNTED:]]


def looped(folder: Path, shape: dict[str, Any], device: str) -> list[float]:
    """Tokens per second at every step of a loop that a person would write."""
    spec = specification(shape, "zero0")
    training = spec["training"]
    windows = Windows(
        TokenStream(folder / "data" / "train", 256),
        length=shape["length"],
        seed=0,
        batch=shape["batch"],
        steps=shape["steps"],
        max_extra=spec["alignment"]["max_extra"],
    )
    model = load.load(folder / "base", precision=shape["precision"]).to(device)
    model.train()
    head = install(model, objective.AlignmentObjective(model, restored(RunSpec, spec).alignment))
    if shape["precision"] == "bf16":
        model.activation_checkpointing_enable({"use_reentrant": False})
    optimizer = torch.optim.AdamW(model.parameters(), lr=training["learning_rate"])
    schedule = get_cosine_schedule_with_warmup(optimizer, training["warmup_steps"], shape["steps"])
    speeds = []
    for step in range(shape["steps"]):
        began = time.perf_counter()
        for row in range(shape["batch"]):
            batch = collate([windows[step * shape["batch"] + row]], shape["length"])
            inputs, targets = batch["inputs"].to(device), batch["targets"].to(device)
            values = parts(
                model, head, inputs, LossInputs(targets, batch["extra"], spec["alignment"]["output"]["alpha"])
            )
            (values[0] / shape["batch"]).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), training["max_gradient_norm"])
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if not math.isfinite(values[0].item()):  # looks at the loss every step, as the trainer does
            raise SystemExit("the loss is not finite")
        speeds.append(2 * shape["batch"] * shape["length"] / (time.perf_counter() - began))
    return speeds[UNCOUNTED:]


def prepare(folder: Path, shape: dict[str, Any]) -> None:
    """Corpus and base below folder, and the world of one process that torchrun would set up."""
    with contextlib.redirect_stdout(io.StringIO()):
        data_stage.prepare(restored(RunSpec, specification(shape, "zero0")).data, folder / "data")
    torch.manual_seed(0)
    LlamaForCausalLM(shape["model"]).save_pretrained(folder / "base")
    os.environ.update({**launch.environment(1), **launch.ALONE})


def main() -> None:
    given = arguments(__doc__)
    if not launch.KEEP_FREED_MEMORY.items() <= os.environ.items():  # the C library reads it when a process starts
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **launch.KEEP_FREED_MEMORY})
    shape = shape_of(given)
    speeds: dict[str, list[float]] = {"loop": [], "zero0": [], "zero2": []}
    ratios: dict[str, list[float]] = {"zero0": [], "zero2": []}
    extended: dict[str, list[float]] = {name: [] for name in EXTENSIONS}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, shape)
        for number in range(given.rounds):
            loop = looped(folder, shape, given.device)
            speeds["loop"] += loop
            for zero in ratios:
                ours = trained(folder, shape, zero)
                speeds[zero] += ours
                ratios[zero].append(statistics.median(ours) / statistics.median(loop))
            for kind, settings in EXTENSIONS.items():
                speed = statistics.median(trained(folder, shape, "zero2", settings))
                extended[kind].append(speed / statistics.median(ours))
            print(f"round {number + 1} of {given.rounds}", file=sys.stderr, flush=True)
            keep(*figures_of(given, shape, speeds, ratios, extended), given)
    report("The trainer", *figures_of(given, shape, speeds, ratios, extended), given)


def figures_of(
    given: Any,
    shape: dict[str, Any],
    speeds: dict[str, list[float]],
    ratios: dict[str, list[float]],
    extended: dict[str, list[float]],
) -> tuple[dict[str, float], dict[str, str]]:
    """From the rounds so far."""
    figures = {f"tokens_over_bare_loop_{zero}": statistics.median(values) for zero, values in ratios.items()}
    config = shape["model"]
    of = f"{config.num_hidden_layers} layers, d {config.hidden_size}, V {config.vocab_size:,}, {shape['precision']}"
    tokens = {key: f"{statistics.median(values):,.0f}" for key, values in speeds.items()}
    notes = {name: f"{of}: {tokens[name[-5:]]} / {tokens['loop']} tokens/s" for name in figures}
    for kind, values in extended.items():
        figures[f"tokens_{kind}_over_zero2"] = statistics.median(values)
        notes[f"tokens_{kind}_over_zero2"] = f"context extended fourfold, {shape['length']} tokens a view"
    if given.device == "cuda":
        add_gpu_figures(figures, notes, config, shape, statistics.median(speeds["zero2"]))
    return figures, notes


def add_gpu_figures(
    figures: dict[str, float], notes: dict[str, str], config: LlamaConfig, shape: dict[str, Any], speed: float
) -> None:
    """Model-FLOP utilisation: 6 x weights + 12 x layers x features x length operations a token, halved where causal.

    Recomputed activations are not counted as work (PaLM, arXiv 2204.02311, appendix B).
    """
    weights = sum(p.numel() for p in LlamaForCausalLM(config).parameters()) - config.vocab_size * config.hidden_size
    operations = 6 * weights + 6 * config.num_hidden_layers * config.hidden_size * shape["length"]
    peak = next((value for name, value in PEAKS.items() if name in torch.cuda.get_device_name()), None)
    if peak:
        figures["model_flop_utilisation"] = speed * operations / peak
        notes["model_flop_utilisation"] = f"of {peak / 1e12:.0f} TFLOP/s; {operations / 1e9:.1f} GFLOP a token, ZeRO-2"
    spec = restored(RunSpec, specification(shape, "zero2"))
    assert spec.training is not None
    parts = memory.of_training(
        memory.Model.of(config.to_dict()), spec.training, shape["length"], spec.deepspeed or {}, 1, True, "cuda"
    )
    taken = torch.cuda.max_memory_allocated()
    figures["memory_estimated_over_measured_1b"] = sum(parts.values()) / taken
    notes["memory_estimated_over_measured_1b"] = f"{sum(parts.values()) / 2**30:.1f} / {taken / 2**30:.1f} GiB"


if __name__ == "__main__":
    main()
