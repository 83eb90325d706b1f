"""Cohen's kappa with quadratic weights, for classes that are grades."""

from __future__ import annotations

import numpy as np

from baseline.metrics.predictions import Predictions, Sums

__all__ = ["quadratic_kappa"]


def quadratic_kappa(predictions: Predictions) -> Sums:
    """Agreement beyond chance, where an error costs the square of its distance in classes (Cohen 1968).

    Undefined if all labels and predictions are one class.
    """
    truth, predicted = predictions.truth.astype(float), predictions.predicted.astype(float)
    features = np.column_stack([np.ones(len(truth)), truth, predicted, truth**2, predicted**2, truth * predicted])

    def ratio(sums: np.ndarray) -> np.ndarray:
        images, labels, guesses, labels_squared, guesses_squared, products = sums.T
        observed = labels_squared + guesses_squared - 2 * products
        by_chance = labels_squared + guesses_squared - 2 * labels * guesses / images
        return 1 - np.divide(observed, by_chance, out=np.full(len(sums), np.nan), where=by_chance > 0)

    return Sums(features, ratio)
