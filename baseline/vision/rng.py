"""Random states: set for a run, kept by whatever should leave no trace. Knows nothing else."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

__all__ = ["get_rng_state", "preserve_rng_state", "seed_everything", "set_rng_state"]


@contextmanager
def seed_everything(seed: int) -> Iterator[None]:
    """All random states set from `seed` inside, and as they were outside."""
    with preserve_rng_state():
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        yield


def get_rng_state() -> dict[str, Any]:
    """All random states as they are now, as plain numbers, for `set_rng_state`."""
    kind, keys, *rest = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (kind, np.asarray(keys).tolist(), *rest),
        "torch": torch.get_rng_state().tolist(),
        "cuda": [each.tolist() for each in torch.cuda.get_rng_state_all()] if torch.cuda.is_available() else [],
    }


def set_rng_state(found: Mapping[str, Any]) -> None:
    """Sets all random states to what `get_rng_state` gave."""
    random.setstate(found["python"])
    kind, keys, *rest = found["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(torch.tensor(found["torch"], dtype=torch.uint8))
    for device, state in enumerate(found["cuda"]):
        torch.cuda.set_rng_state(torch.tensor(state, dtype=torch.uint8), device)


@contextmanager
def preserve_rng_state() -> Iterator[None]:
    """Whatever happens inside, all random states are outside as they were before."""
    before = get_rng_state()
    try:
        yield
    finally:
        set_rng_state(before)
