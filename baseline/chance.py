"""Random states: set for a run, kept by whatever should leave no trace. Knows nothing else."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

__all__ = ["seeded", "states_kept"]


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """All random states set from `seed` inside, and as they were outside."""
    with states_kept():
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        yield


@contextmanager
def states_kept() -> Iterator[None]:
    """Whatever happens inside, all random states are outside as they were before."""
    python, numpy, torch_cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else None
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(torch_cpu)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)
