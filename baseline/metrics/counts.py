"""Metrics of counts: how often each class occurs, is predicted, and is predicted correctly."""

from __future__ import annotations

import numpy as np

from baseline.metrics.predictions import Predictions, Sums, mean_of

__all__ = ["accuracy", "balanced_accuracy", "macro_f1", "micro_f1"]


def accuracy(predictions: Predictions) -> Sums:
    """Share of images that are predicted correctly; with several labels, of images with all labels correct."""
    return mean_of(predictions.correct, proportion=True)


def balanced_accuracy(predictions: Predictions) -> Sums:
    """Mean over the classes of the share of their images that are recognized; classes without images are left out."""

    def ratio(sums: np.ndarray) -> np.ndarray:
        images, _, hits = np.split(sums, 3, axis=1)
        return mean_ratio(hits, images)

    return Sums(predictions.class_counts, ratio)


def macro_f1(predictions: Predictions) -> Sums:
    """Mean F1 over the classes; those that neither occur nor are predicted are left out."""

    def ratio(sums: np.ndarray) -> np.ndarray:
        images, positives, hits = np.split(sums, 3, axis=1)
        return mean_ratio(2 * hits, images + positives)

    return Sums(predictions.class_counts, ratio)


def micro_f1(predictions: Predictions) -> Sums:
    """F1 over all decisions about all classes; with one label per image, this is the accuracy."""

    def ratio(sums: np.ndarray) -> np.ndarray:
        images, positives, hits = (part.sum(1) for part in np.split(sums, 3, axis=1))
        return np.asarray(2 * hits / np.maximum(images + positives, 1))

    return Sums(predictions.class_counts, ratio)


def mean_ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Return for each row the mean of the ratio over the columns whose denominator is not 0; NaN if all are 0."""
    ratio = np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator > 0)
    count = (denominator > 0).sum(1)
    return np.divide(ratio.sum(1), count, out=np.full(len(count), np.nan), where=count > 0)
