"""95% confidence intervals by the bootstrap, over images or whole groups of them."""

from __future__ import annotations

from typing import Any

import numpy as np

from baseline.evaluation.intervals import SIGNIFICANCE_LEVEL

__all__ = ["bootstrap_sums", "paired_interval", "percentile_interval"]


BOOTSTRAP_DRAWS = 1000
"""Number of bootstrap samples behind an interval."""


MAX_CELLS = 1_000_000
"""Maximum number of resampling counts in memory at once, 8 bytes each."""


def bootstrap_sums(features: Any, groups: np.ndarray | None = None, draws: int = BOOTSTRAP_DRAWS) -> np.ndarray:
    """Return the sums of `features`, units x F, over bootstrap samples of the units: draws x F.

    With `groups` (N codes from 0) the units drawn are whole groups. All the work is one product of the resampling
    counts with the features: nothing is gathered, and no metric is recomputed image by image.
    """
    from scipy.sparse import csr_array

    if groups is not None:
        rows = np.arange(len(groups))
        features = csr_array((np.ones(len(groups)), (groups, rows))) @ features
    features = csr_array(features)
    units, transposed = features.shape[0], features.T.tocsr()
    rng, step = np.random.default_rng(0), max(1, MAX_CELLS // features.shape[0])
    parts = []
    for start in range(0, draws, step):
        count = min(step, draws - start)
        cells = rng.integers(units, size=(units, count)) * count + np.arange(count)
        times_drawn = np.bincount(cells.ravel(), minlength=units * count).reshape(units, count)
        parts.append((transposed @ times_drawn.astype(float)).T)
    return np.concatenate(parts)


def percentile_interval(values: np.ndarray) -> tuple[float, float]:
    """Return the central 95% confidence interval of bootstrap values."""
    low, high = np.quantile(values, [SIGNIFICANCE_LEVEL / 2, 1 - SIGNIFICANCE_LEVEL / 2])
    return float(low), float(high)


def paired_interval(change: np.ndarray, groups: np.ndarray) -> tuple[float, float]:
    """Return the bootstrap interval, over whole groups, of the mean of N changes, each -1, 0 or 1."""
    from scipy.sparse import csr_array

    sums = bootstrap_sums(csr_array(np.column_stack([change, np.ones(len(change))])), groups)
    return percentile_interval(sums[:, 0] / sums[:, 1])
