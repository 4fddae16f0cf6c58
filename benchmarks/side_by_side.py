"""Measuring side by side: alternating rounds in one run, ratios of pairs, peak memory of a fresh process."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

Seconds = dict[str, list[float]]


def arguments(description: str | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file to write figures and context to")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--toy", action="store_true", help="shapes of a second: does it run, not how fast")
    parser.add_argument("--detail", action="store_true", help="what a figure is made of, where there is that")
    parser.add_argument("--rounds", type=int, default=5, help="alternating rounds (default 5)")
    given = parser.parse_args()
    if given.device == "cpu":
        torch.set_num_threads(1)
    return given


def alternate(functions: dict[str, Callable[[], Any]], rounds: int, device: str) -> Seconds:
    """Seconds of every function in every round, in turn, after one round that does not count.

    Each round begins with another function: what runs first after something else finds other caches.
    """
    seconds: Seconds = {name: [] for name in functions}
    order = list(functions.items())
    for number in range(rounds + 1):
        first = number % len(order)
        for name, function in order[first:] + order[:first]:
            _wait(device)
            began = time.perf_counter()
            function()
            _wait(device)
            if number:
                seconds[name].append(time.perf_counter() - began)
        print(f"round {number} of {rounds}", file=sys.stderr, flush=True)
    return seconds


def host_waits(work: Callable[[], Any]) -> list[str]:
    """Where a GPU is waited for while some work is done, by what torch says: file and line, ours and others'."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            work()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return [f"{one.filename}:{one.lineno}" for one in said if "synchroniz" in str(one.message)]


def ratio(seconds: Seconds, one: str, other: str) -> float:
    """Median over the rounds of one / other: a machine that slows down slows both."""
    return statistics.median(a / b for a, b in zip(seconds[one], seconds[other], strict=True))


def peak_memory(work: Callable[..., Callable[[], Any]], *given: Any, device: str) -> float:
    """Bytes that `work(*given)()` needs at its peak beyond its inputs, in a process of its own.

    Resident memory on a CPU (Linux), memory of PyTorch's allocator on a GPU.
    """
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_here, (work, given, device))


def report(title: str, figures: dict[str, float], notes: dict[str, str], given: argparse.Namespace) -> None:
    """Prints a table; with --json writes as `keep` does."""
    print(f"\n{title}\n")
    print("| figure | value | what |\n|---|---:|---|")
    for name, value in figures.items():
        print(f"| `{name}` | {value:.4g} | {notes.get(name, '')} |")
    print("\n" + ", ".join(f"{key} {value}" for key, value in context(given).items()))
    keep(figures, notes, given)


def keep(figures: dict[str, float], notes: dict[str, str], given: argparse.Namespace) -> None:
    """With --json writes {"figures": ..., "notes": ..., "context": ...} as far as they are known: a run that is cut has
    lost one group of figures. Of the same context, what the file holds of other scripts stays."""
    if not given.json:
        return
    before = json.loads(given.json.read_text()) if given.json.exists() else {}
    whole = {"figures": figures, "notes": notes, "context": context(given)}
    if before.get("context") == whole["context"]:
        whole |= {key: {**before[key], **whole[key]} for key in ("figures", "notes")}
    part = given.json.with_name(f".{given.json.name}.part")
    part.write_text(json.dumps(whole, indent=2) + "\n")
    part.replace(given.json)


def context(given: argparse.Namespace) -> dict[str, Any]:
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=Path(__file__).parent, capture_output=True, text=True
    ).stdout.strip()
    return {
        "device": torch.cuda.get_device_name() if given.device == "cuda" else _processor(),
        "threads": torch.get_num_threads(),
        "rounds": given.rounds,
        "toy": given.toy,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": commit,
    }


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _peak_here(work: Callable[..., Callable[[], Any]], given: tuple[Any, ...], device: str) -> float:
    torch.set_num_threads(1)
    function = work(*given)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        return float(torch.cuda.max_memory_allocated() - before)
    torch.mm(torch.ones(64, 64), torch.ones(64, 64))  # loads what the first product loads
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    before = _status("VmRSS")
    function()
    return float(_status("VmHWM") - before)


def _status(key: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024
