"""The errors of trainings on the same images, by how often each image counts: what a power law is fitted to.

The error of a metric whose best value is 1 is 1 minus the metric. A metric that is better lower, such as the log loss,
is its own error.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from baseline.metrics.predictions import Ranks, Sums
from baseline.metrics.registry import Metric

__all__ = ["ErrorRates", "Errors", "MetricErrors", "error_of"]

VARIANCE_DRAWS = 200
"""Number of bootstrap samples of the images behind the sampling variance of a metric."""


def error_of(metric: Metric | None, value: float) -> float:
    """Return the error of a metric's value, or the value of an error; without a metric, of an accuracy.

    >>> error_of(None, 0.75)
    0.25
    """
    return 1 - value if metric is None or metric.higher_is_better else value


class Errors(Protocol):
    """The errors of N trainings on the same images."""

    images: int

    def weighted(self, weights: np.ndarray) -> np.ndarray:
        """Return the error of each training, N, where each image counts by its weight."""

    def sampling_variance(self, rows: Sequence[np.ndarray], means: np.ndarray) -> np.ndarray:
        """Return the variance of the mean error of each group of trainings that comes from the choice of images."""


class ErrorRates:
    """Shares of wrong images, from which training predicts which image correctly: N x images, bool."""

    def __init__(self, hits: np.ndarray) -> None:
        self.hits, self.images = hits, hits.shape[1]

    def weighted(self, weights: np.ndarray) -> np.ndarray:
        errors: np.ndarray = 1 - self.hits @ weights / weights.sum()
        return errors

    def sampling_variance(self, rows: Sequence[np.ndarray], means: np.ndarray) -> np.ndarray:
        """Return the binomial variance."""
        variance: np.ndarray = means * (1 - means) / self.images
        return variance


class MetricErrors:
    """Errors by a metric. In a sample where it is undefined, it counts as with all images."""

    def __init__(self, measured: Sequence[Sums | Ranks], metric: Metric) -> None:
        self.measured, self.metric, self.images = measured, metric, measured[0].images
        self.values = np.array([one.value for one in measured])
        self.influences = [one.influence() if isinstance(one, Ranks) else None for one in measured]

    def weighted(self, weights: np.ndarray) -> np.ndarray:
        parts = zip(self.measured, self.influences, strict=True)
        values = np.array([self._value(one, influence, weights) for one, influence in parts])
        values = np.where(np.isnan(values), self.values, values)
        return 1 - values if self.metric.higher_is_better else values

    @staticmethod
    def _value(measured: Sums | Ranks, influence: np.ndarray | None, weights: np.ndarray) -> float:
        if isinstance(measured, Ranks):  # linear in the weights, as its interval
            assert influence is not None
            return measured.value + float((weights / weights.mean() - 1) @ influence) / measured.images
        return float(measured.ratio(np.asarray(weights @ measured.features, dtype=float).reshape(1, -1))[0])

    def sampling_variance(self, rows: Sequence[np.ndarray], means: np.ndarray) -> np.ndarray:
        """Return the variance over bootstrap samples of the images."""
        rng, even = np.random.default_rng(2), np.full(self.images, 1 / self.images)
        draws = [self.weighted(rng.multinomial(self.images, even).astype(float)) for _ in range(VARIANCE_DRAWS)]
        return np.array([np.mean([errors[group] for errors in draws], axis=1).var() for group in rows])
