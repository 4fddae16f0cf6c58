"""Named, counter-based random streams: a draw depends on (name, seed, counter) alone.

So neither the micro-batch nor the number of processes changes an experiment, and resuming needs no generator state.
"""

from __future__ import annotations

import hashlib

import numpy as np


def generator(name: str, seed: int, counter: int) -> np.random.Generator:
    key = int.from_bytes(hashlib.sha256(f"{name}/{seed}/{counter}".encode()).digest()[:16], "little")
    return np.random.Generator(np.random.Philox(key=key))


def extra_length(seed: int, counter: int, max_extra: int) -> int:
    """l_extra ~ U{1..max_extra}; the counter is the optimiser step, or the sample where every row has its own."""
    return int(generator("l_extra", seed, counter).integers(1, max_extra + 1))
