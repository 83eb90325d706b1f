"""Top-K accuracy."""

from __future__ import annotations

import numpy as np

from baseline.metrics.predictions import Predictions, Sums, mean_of

__all__ = ["top_k"]


MAX_CELLS = 1_000_000
"""Maximum number of comparisons in memory at once."""


def top_k(predictions: Predictions, k: int) -> Sums:
    """Share of images whose label is among the K most probable classes."""
    return mean_of(label_ranks(predictions) < k, proportion=True)


def label_ranks(predictions: Predictions) -> np.ndarray:
    """Return how many classes are ahead of each image's label, N integers; ties go to the earlier class."""
    probabilities, truth = predictions.probabilities, predictions.truth
    classes, ranks = probabilities.shape[1], np.empty(len(truth), dtype=int)
    for start in range(0, len(truth), step := max(1, MAX_CELLS // classes)):
        part, label = probabilities[start : start + step], truth[start : start + step, None]
        of_label = np.take_along_axis(part, label, axis=1)
        ranks[start : start + step] = ((part > of_label) | ((part == of_label) & (np.arange(classes) < label))).sum(1)
    return ranks
