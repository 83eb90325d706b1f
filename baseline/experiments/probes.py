"""Predictions from pretrained features without training a network: majority, nearest neighbors, logistic regression.

Each function fits the training images and returns probabilities for other images. Labels are flags, N x classes, 0 or
1: one per row, or any number for multi-label images.
"""

from __future__ import annotations

import warnings

import numpy as np

__all__ = ["logistic_regression", "majority", "nearest_neighbors"]


NEIGHBOR_COUNTS = (1, 5, 10, 20, 50)
"""Numbers of neighbors that are tried."""

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Inverse regularization strengths (scikit-learn's C) that are tried, for features of unit variance."""

MAX_STEPS = 300
"""Maximum number of solver iterations."""


def majority(flags: np.ndarray, images: int) -> np.ndarray:
    """Return the class frequencies of the training images, repeated for every image: images x classes.

    >>> majority(np.array([[1, 0], [1, 0], [1, 0], [0, 1]]), 2).tolist()
    [[0.75, 0.25], [0.75, 0.25]]
    """
    return np.tile(flags.mean(0), (images, 1))


def nearest_neighbors(
    features: np.ndarray, flags: np.ndarray, valid: np.ndarray, valid_flags: np.ndarray, others: np.ndarray
) -> tuple[np.ndarray, int]:
    """Return class frequencies among the nearest training images by cosine, and the number of neighbors.

    The number of neighbors is the one with the lowest loss on the validation images. The class frequencies of all
    training images count as one more neighbor, so that no probability is 0.

    Args:
        features, flags: of the training images, N x features and N x classes.
        valid, valid_flags: of the validation images.
        others: features of the images to predict.

    >>> features = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]])
    >>> flags = np.array([[1, 0], [1, 0], [0, 1], [0, 1]])
    >>> nearest_neighbors(features, flags, features, flags, np.array([[1.0, 0.2]]))[0].argmax(1).tolist()
    [0]
    """
    from sklearn.neighbors import NearestNeighbors

    max_count = min(max(NEIGHBOR_COUNTS), len(features))
    model = NearestNeighbors(n_neighbors=max_count, metric="cosine").fit(features)
    prior = flags.mean(0)

    def frequencies(rows: np.ndarray, counts: list[int]) -> dict[int, np.ndarray]:
        order = model.kneighbors(rows, return_distance=False)
        sums = flags[order].cumsum(1)
        return {count: (sums[:, count - 1] + prior) / (count + 1) for count in counts}

    candidates = frequencies(valid, [count for count in NEIGHBOR_COUNTS if count <= max_count])
    best = min(candidates, key=lambda count: _cross_entropy(candidates[count], valid_flags))
    return frequencies(others, [best])[best], best


def logistic_regression(
    features: np.ndarray,
    flags: np.ndarray,
    valid: np.ndarray,
    valid_flags: np.ndarray,
    others: np.ndarray,
    *,
    many: bool = False,
) -> tuple[np.ndarray, float]:
    """Return probabilities by logistic regression on standardized features, and the C with the lowest loss on valid.

    Args:
        features, flags, valid, valid_flags, others: as for `nearest_neighbors`.
        many: multi-label; each class has a probability of its own.
    """
    center, scale = features.mean(0), features.std(0) + 1e-6
    train_rows, valid_rows, other_rows = ((rows - center) / scale for rows in (features, valid, others))
    best: tuple[float, float, np.ndarray] | None = None
    for strength in PENALTIES:
        valid_probabilities, probabilities = _fit_regression(
            train_rows, flags, [valid_rows, other_rows], strength, many
        )
        loss = _cross_entropy(valid_probabilities, valid_flags)
        if best is not None and loss >= best[0]:
            break  # the loss has a single minimum along C
        best = loss, strength, probabilities
    assert best is not None
    return best[2], best[1]


def _fit_regression(
    rows: np.ndarray, flags: np.ndarray, others: list[np.ndarray], strength: float, many: bool
) -> list[np.ndarray]:
    """Return probabilities, N x classes, for each array of features; 0 for a class without training images."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.multiclass import OneVsRestClassifier

    model = LogisticRegression(C=strength, max_iter=MAX_STEPS)
    with warnings.catch_warnings():
        # this close to the minimum, more iterations do not change the accuracy
        warnings.simplefilter("ignore", ConvergenceWarning)
        if many:
            return [OneVsRestClassifier(model).fit(rows, flags).predict_proba(features) for features in others]
        codes = flags.argmax(1)
        model.fit(rows, codes)
    results = []
    for features in others:
        probabilities = np.zeros((len(features), flags.shape[1]))
        probabilities[:, model.classes_] = model.predict_proba(features)
        results.append(probabilities)
    return results


def _cross_entropy(probabilities: np.ndarray, flags: np.ndarray) -> float:
    """Return the mean binary cross-entropy summed over classes, which suits one label per image and several."""
    clipped = np.clip(probabilities, 1e-6, 1 - 1e-6)
    return float(-(flags * np.log(clipped) + (1 - flags) * np.log(1 - clipped)).sum(1).mean())
