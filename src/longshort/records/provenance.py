"""Where a number comes from besides its specification: commit, environment, machine, job."""

from __future__ import annotations

import hashlib
import os
import platform
import socket
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

LIBRARIES = (
    *("torch", "transformers", "tokenizers", "deepspeed", "accelerate", "peft", "bitsandbytes", "datasets", "numpy"),
    *("pyarrow", "lm_eval", "rouge", "snakemake"),
)
ROOT = Path(__file__).resolve().parents[3]
UNKNOWN = "unknown"


@cache
def commit() -> str:
    """The commit of the source, with -dirty where tracked files differ from it; UNKNOWN where git does not say."""
    return _commit()[0]


def unknown_commit() -> str | None:
    """What to say, once a study, where the commit is not known; None where it is."""
    _, why = _commit()
    if why is None:
        return None
    remedy = (
        f"`git config --global --add safe.directory {ROOT}`" if "dubious ownership" in why else "take a git checkout"
    )
    return (
        f"WARNING: the commit of {ROOT} is {UNKNOWN}, and every record, table and report will say so. git says: {why}."
        f" If results shall name their commit, {remedy} and run again (the code's own hash is in them all the same)"
    )


@cache
def _commit() -> tuple[str, str | None]:
    """The commit, and in git's words why there is none."""
    try:
        _git("ls-files", "--error-unmatch", "pyproject.toml")  # a repository around an unpacked source is another one
        head = _git("rev-parse", "HEAD")
        return head + ("-dirty" if _git("status", "--porcelain", "--untracked-files=no") else ""), None
    except OSError as error:
        return UNKNOWN, f"git cannot be run ({error.strerror})"
    except subprocess.CalledProcessError as error:
        return UNKNOWN, next(iter(error.stderr.strip().splitlines()), "nothing").removeprefix("fatal: ")


@cache
def environment() -> str:
    """Lock, Python and library versions in one line."""
    lock = ROOT / "envs" / "requirements.lock"
    lock_hash = hashlib.sha256(lock.read_bytes()).hexdigest()[:12] if lock.exists() else "none"
    versions = [f"python={platform.python_version()}"]
    for library in LIBRARIES:
        try:
            versions.append(f"{library}={version(library)}")
        except PackageNotFoundError:
            continue
    return " ".join([f"lock={lock_hash}", *versions])


def machine() -> dict[str, str | None]:
    return {
        "host": socket.gethostname(),
        "processor": platform.machine(),
        "device": _device(),
        "job": os.environ.get("SLURM_JOB_ID"),
    }


def _device() -> str:
    """What computes: the first GPU's name where the driver shows one, else the processor's."""
    cards = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    said = cards[0] if cards else Path("/proc/cpuinfo")
    try:
        lines = said.read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    named = (line.split(":", 1)[1].strip() for line in lines if line.startswith(("Model:", "model name")))
    return next(named, platform.machine())


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()
