"""TODO."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["wilson_interval"]


BOOTSTRAP_DRAWS = 1000
"""Bootstrap samples behind an interval."""


MAX_CELLS = 1_000_000
"""Most counts of drawn images that are held at once, 8 bytes each."""


CONFIDENCE_LEVEL = 0.05
"""Of what is called more than noise."""


def wilson_interval(hits: int, images: int) -> tuple[float, float]:
    """The 95 % interval of a share by Wilson's score (1927), which holds for small counts and shares near 0 and 1.

    >>> [round(end, 3) for end in wilson_interval(0, 20)]
    [0.0, 0.161]
    """
    from scipy.stats import binomtest

    interval = binomtest(hits, images).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def bootstrap_sums(features: Any, groups: np.ndarray | None = None, draws: int = BOOTSTRAP_DRAWS) -> np.ndarray:
    """Sums of `features`, units x F, over as many units drawn with replacement: draws x F.

    Where there are groups, N codes from 0, the units are these. The counts of drawn units times the features is the
    whole work; nothing is gathered, and no metric is computed image by image again.
    """
    from scipy.sparse import csr_array

    if groups is not None:
        each = np.arange(len(groups))
        features = csr_array((np.ones(len(groups)), (groups, each))) @ features
    units, turned = features.shape[0], features.T.tocsr()
    random, step = np.random.default_rng(0), max(1, MAX_CELLS // features.shape[0])
    parts = []
    for begin in range(0, draws, step):
        count = min(step, draws - begin)
        picked = random.integers(units, size=(units, count)) * count + np.arange(count)
        times = np.bincount(picked.ravel(), minlength=units * count).reshape(units, count)
        parts.append((turned @ times.astype(float)).T)
    return np.concatenate(parts)


def percentile_interval(values: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(values, [CONFIDENCE_LEVEL / 2, 1 - CONFIDENCE_LEVEL / 2])
    return float(low), float(high)


def paired_interval(change: np.ndarray, groups: np.ndarray | None) -> tuple[float, float]:
    """The interval of the mean of N changes, each -1, 0 or 1."""
    from scipy.sparse import csr_array

    if groups is not None:
        sums = bootstrap_sums(csr_array(np.column_stack([change, np.ones(len(change))])), groups)
        return percentile_interval(sums[:, 0] / sums[:, 1])
    # drawing images with replacement is drawing how many of the three kinds there are
    shares = np.array([(change == kind).mean() for kind in (1, -1, 0)])
    counts = np.random.default_rng(0).multinomial(len(change), shares, size=BOOTSTRAP_DRAWS)
    return percentile_interval((counts[:, 0] - counts[:, 1]) / len(change))
