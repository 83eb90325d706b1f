"""The standard error of any metric, from the images it was measured on."""

from __future__ import annotations

import math

import numpy as np

from baseline.metrics.predictions import Ranks, Sums

__all__ = ["standard_error"]

MAX_CELLS = 1_000_000
"""Maximum number of sums in memory at once, 8 bytes each."""


def standard_error(measured: Sums | Ranks) -> float:
    """Return the standard error of a metric; NaN where it is undefined or there is one image.

    Functions of sums use the jackknife (Efron and Stein 1981), which gives the usual formula for a mean. Rank metrics
    use the influence of each image, as in DeLong et al. (1988) for ROC AUC. Images count as independent, also those of
    a group.

    >>> from baseline.metrics.predictions import mean_of
    >>> round(standard_error(mean_of(np.array([1, 1, 1, 0]))), 4)
    0.25
    """
    if measured.images < 2 or math.isnan(measured.value):
        return math.nan
    if isinstance(measured, Ranks):
        return float(np.sqrt((measured.influence() ** 2).sum())) / measured.images
    features = measured.features
    total, step = np.asarray(features.sum(axis=0), float).reshape(1, -1), max(1, MAX_CELLS // features.shape[1])
    parts = [features[start : start + step] for start in range(0, measured.images, step)]
    without_one = np.concatenate(
        [measured.ratio(total - (part if isinstance(part, np.ndarray) else part.toarray())) for part in parts]
    )
    values = without_one[~np.isnan(without_one)]
    return float(np.sqrt((len(values) - 1) * values.var())) if len(values) else math.nan
