"""The benchmarks run, at toy size on this machine's processor; how fast is never asserted."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.project import ROOT, run_python

pytestmark = pytest.mark.wide


def test_the_gpu_script_at_toy_size(tmp_path: Path) -> None:
    done = subprocess.run(
        ["bash", "benchmarks/gpu.sh", "--toy", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PYTHON": sys.executable, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    expected = {
        *("time_fused_over_naive_toy", "memory_fused_over_naive_toy", "step_arm_over_baseline_toy"),
        *("step_plain_over_baseline_toy", "tokens_over_bare_loop_zero0", "tokens_over_bare_loop_zero2"),
        *("tokens_yarn_over_zero2", "tokens_clex_over_zero2"),
        # At toy size evaluation.py measures all that it measures on a processor.
        *("ppl_time_over_papers", "ppl_with_temperatures_time_over_papers", "ppl_memory_over_papers"),
        *("misalignment_time_over_naive", "longbench_time_over_official", "longppl_time_over_official"),
        *("longbench_equal_lengths_time_over_single", "longbench_padded_time_over_single"),
        "longbench_static_time_over_default_cache",
    }
    result = json.loads((tmp_path / "gpu.json").read_text())
    assert expected <= result["figures"].keys()
    assert all(math.isfinite(value) and value > 0 for value in result["figures"].values())
    assert result["context"]["torch"]
    assert all(f"`{figure}`" in done.stdout for figure in expected)


EXPECTED = {
    "dag": {"dag_over_bare_done_10", "dag_over_bare_todo_10", "plan_over_bare_10", "parse_seconds"},
    "data": {"tokenise_rate_over_map", "tokenise_memory_over_map", "sampling_share_of_step"},
    "memory": {"memory_estimated_over_measured_zero2_fp32", "memory_alive_estimated_over_measured_zero2_fp32"},
    "startup": {
        *("startup_perplexity_over_imports", "startup_misalignment_over_imports"),
        *("startup_longbench_over_imports", "startup_training_over_imports"),
    },
    "synthetic": {"batched_over_separate_none", "batched_over_separate_rope"},
    "slurm": {"slurm_over_local", "job_overhead_s", "array_over_single", "groups_over_single"},
}


@pytest.mark.parametrize(
    "name",
    [
        "dag",
        "synthetic",
        *(pytest.param(name, marks=pytest.mark.long) for name in ("data", "memory", "startup")),
        pytest.param("slurm", marks=[pytest.mark.slurm, pytest.mark.long]),
    ],
)
def test_a_benchmark_at_toy_size(name: str, tmp_path: Path) -> None:
    """The benchmarks themselves check that both sides plan the same jobs, or give the same numbers."""
    assert EXPECTED[name] <= figures(name, tmp_path, "--toy", "--rounds", "1").keys()


@pytest.mark.long
def test_a_hundred_random_kills_cost_no_number(tmp_path: Path) -> None:
    found = figures("chaos", tmp_path, "--kills", "100", "--seed", "1")
    assert [found[name] for name in ("kills", "wrong", "lost", "hanging")] == [100, 0, 0, 0]
    assert 0 <= found["needless_steps_share"] < 1


def figures(name: str, folder: Path, *options: str) -> dict[str, float]:
    out = folder / "figures.json"
    run_python(ROOT, f"benchmarks/{name}.py", *options, "--json", str(out), python=sys.executable)
    found: dict[str, float] = json.loads(out.read_text())["figures"]
    return found
