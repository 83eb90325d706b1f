"""Metrics of the probabilities themselves; lower is better."""

from __future__ import annotations

import numpy as np

from baseline.metrics.predictions import Predictions, Sums, mean_log_loss, mean_of

__all__ = ["brier", "log_loss"]


def log_loss(predictions: Predictions) -> Sums:
    """Mean negative logarithm of the probability of the label; with several labels, of each decision about a class.

    A probability below 2.2e-16 counts as that, as in scikit-learn.
    """
    probabilities, truth = predictions.probabilities, predictions.truth
    if predictions.multilabel:
        of_label = np.where(truth, probabilities, 1 - probabilities)
    else:
        of_label = probabilities[np.arange(len(truth)), truth][:, None]
    return mean_of(mean_log_loss(of_label))


def brier(predictions: Predictions) -> Sums:
    """Mean squared error of the probabilities (Brier 1950), summed over the classes: 0 to 2.

    With several labels it is the mean over the classes, 0 to 1.
    """
    probabilities, truth = predictions.probabilities, predictions.truth
    if predictions.multilabel:
        return mean_of(((probabilities - truth) ** 2).mean(1))
    squares = np.einsum("nc,nc->n", probabilities, probabilities)
    return mean_of(squares - 2 * probabilities[np.arange(len(truth)), truth] + 1)
