"""What metrics are computed from and what they return, so that value and interval have the same definition."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

__all__ = ["Predictions", "Ranks", "Sums", "mean_log_loss", "mean_of"]


@dataclass(frozen=True)
class Predictions:
    """Labels, predicted labels and probabilities of N images of C classes."""

    truth: np.ndarray
    """Class indices, N; with several labels per image flags, N x C."""
    predicted: np.ndarray
    """The same of what was predicted."""
    probabilities: np.ndarray
    """N x C, or 0 x C where they are not known."""

    @property
    def multilabel(self) -> bool:
        return self.truth.ndim == 2

    @property
    def has_probabilities(self) -> bool:
        return len(self.probabilities) == len(self.truth)

    @cached_property
    def correct(self) -> np.ndarray:
        """Which images are predicted correctly; with several labels, with all labels."""
        equal = self.truth == self.predicted
        return equal.all(1) if self.multilabel else equal

    @cached_property
    def class_counts(self) -> Any:
        """A sparse matrix, N x 3 C, of 1 for each label, prediction and correct prediction of an image."""
        from scipy.sparse import csr_array, hstack

        if self.multilabel:
            parts = (self.truth, self.predicted, self.truth & self.predicted)
            return hstack([csr_array(flags.astype(float)) for flags in parts], format="csr")
        rows, classes = np.arange(len(self.truth)), self.probabilities.shape[1]
        columns = [self.truth, classes + self.predicted, 2 * classes + self.truth]
        values = [np.ones(len(rows)), np.ones(len(rows)), self.correct.astype(float)]
        positions = (np.tile(rows, 3), np.concatenate(columns))
        return csr_array((np.concatenate(values), positions), shape=(len(rows), 3 * classes))


@dataclass(frozen=True)
class Sums:
    """A metric that is a function of sums over the images, so that a bootstrap sample is one matrix product."""

    features: Any
    """What each image adds, N x F, dense or sparse."""
    ratio: Callable[[np.ndarray], np.ndarray]
    """Returns the metric of each row of sums, draws x F; NaN where it is undefined."""
    proportion: bool = False
    """Whether it is the share of images of which something is true, which has an interval of its own."""

    @property
    def images(self) -> int:
        return int(self.features.shape[0])

    @property
    def value(self) -> float:
        return float(self.ratio(np.asarray(self.features.sum(axis=0), float).reshape(1, -1))[0])


@dataclass(frozen=True)
class Ranks:
    """A metric of the order of the probabilities, 0-1."""

    value: float
    images: int
    influence: Callable[[], np.ndarray]
    """Returns how each image moves the value, N numbers with mean 0; N times the derivative by the image's weight."""


def mean_log_loss(of_label: np.ndarray) -> np.ndarray:
    """Return the mean negative log of each row of true-label probabilities, N x K, clipped at 2.2e-16 as in
    scikit-learn."""
    return np.asarray(-np.log(np.maximum(of_label, np.finfo(float).eps)).mean(1))


def mean_of(values: np.ndarray, *, proportion: bool = False) -> Sums:
    """Return the mean of a value per image as a metric."""
    features = np.column_stack([values, np.ones(len(values))]).astype(float)
    return Sums(features, lambda sums: sums[:, 0] / sums[:, 1], proportion)
