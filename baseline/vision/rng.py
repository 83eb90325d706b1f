"""Random states of Python, NumPy and PyTorch: seeding, saving and restoring them."""

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
    """Seed all random number generators inside the context and restore their states on exit."""
    with preserve_rng_state():
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        yield


def get_rng_state() -> dict[str, Any]:
    """Return all random states as plain numbers, for `set_rng_state`."""
    kind, keys, *position = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (kind, np.asarray(keys).tolist(), *position),
        "torch": torch.get_rng_state().tolist(),
        "mps": torch.mps.get_rng_state().tolist() if torch.backends.mps.is_available() else [],
        "cuda": [state.tolist() for state in torch.cuda.get_rng_state_all()] if torch.cuda.is_available() else [],
    }


def set_rng_state(state: Mapping[str, Any]) -> None:
    """Restore all random states from what `get_rng_state` returned."""
    random.setstate(state["python"])
    kind, keys, *position = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *position))
    torch.set_rng_state(torch.tensor(state["torch"], dtype=torch.uint8))
    if state.get("mps") and torch.backends.mps.is_available():
        torch.mps.set_rng_state(torch.tensor(state["mps"], dtype=torch.uint8))
    for device, cuda_state in enumerate(state["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(torch.tensor(cuda_state, dtype=torch.uint8), device)


@contextmanager
def preserve_rng_state() -> Iterator[None]:
    """Restore all random states on exit."""
    state = get_rng_state()
    try:
        yield
    finally:
        set_rng_state(state)
