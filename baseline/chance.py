"""Random states: set for a run, kept by whatever should leave no trace. Knows nothing else."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

__all__ = ["restore", "seeded", "states", "states_kept"]


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """All random states set from `seed` inside, and as they were outside."""
    with states_kept():
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        yield


def states() -> dict[str, Any]:
    """All random states as they are now, for `restore`."""
    kind, keys, *rest = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(np.array(keys)), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore(found: Mapping[str, Any]) -> None:
    """Sets all random states to what `states` gave."""
    random.setstate(found["python"])
    kind, keys, *rest = found["numpy"]
    np.random.set_state((kind, keys.numpy(), *rest))
    torch.set_rng_state(found["torch"])
    if found["cuda"]:
        torch.cuda.set_rng_state_all(found["cuda"])


@contextmanager
def states_kept() -> Iterator[None]:
    """Whatever happens inside, all random states are outside as they were before."""
    before = states()
    try:
        yield
    finally:
        restore(before)
