"""Features -> probabilities without training a network: majority, neighbours, logistic regression. Knows arrays only.

Each function takes what is known of the training images and gives probabilities for others. Labels are flags, N x
classes, 0 or 1: one a row, or with many labels any number.
"""

from __future__ import annotations

import warnings

import numpy as np

__all__ = ["logistic_regression", "majority", "nearest_neighbors"]


NEIGHBOR_COUNTS = (1, 5, 10, 20, 50)

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Inverse regularisation (scikit-learn's C) that is tried, on features of unit variance."""

MAX_STEPS = 300


def majority(flags: np.ndarray, images: int) -> np.ndarray:
    """The share of each class among the training images, for every image: images x classes.

    >>> majority(np.array([[1, 0], [1, 0], [1, 0], [0, 1]]), 2).tolist()
    [[0.75, 0.25], [0.75, 0.25]]
    """
    return np.tile(flags.mean(0), (images, 1))


def nearest_neighbors(
    features: np.ndarray, flags: np.ndarray, valid: np.ndarray, valid_flags: np.ndarray, others: np.ndarray
) -> tuple[np.ndarray, int]:
    """The share of each class among the most alike training images, by cosine, and how many of these are asked.

    Their number is the one with the lowest loss on the valid images. The share of a class among all training images
    counts as one neighbour more, so that no probability is 0.

    Args:
        features, flags: of the training images, N x features and N x classes.
        valid, valid_flags: of the valid images.
        others: features of the images to tell.

    >>> features = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]])
    >>> flags = np.array([[1, 0], [1, 0], [0, 1], [0, 1]])
    >>> nearest_neighbors(features, flags, features, flags, np.array([[1.0, 0.2]]))[0].argmax(1).tolist()
    [0]
    """
    from sklearn.neighbors import NearestNeighbors

    most = min(max(NEIGHBOR_COUNTS), len(features))
    found = NearestNeighbors(n_neighbors=most, metric="cosine").fit(features)
    usual = flags.mean(0)

    def shares(rows: np.ndarray, counts: list[int]) -> dict[int, np.ndarray]:
        order = found.kneighbors(rows, return_distance=False)
        sums = flags[order].cumsum(1)
        return {count: (sums[:, count - 1] + usual) / (count + 1) for count in counts}

    tried = shares(valid, [count for count in NEIGHBOR_COUNTS if count <= most])
    best = min(tried, key=lambda count: _cross_entropy(tried[count], valid_flags))
    return shares(others, [best])[best], best


def logistic_regression(
    features: np.ndarray,
    flags: np.ndarray,
    valid: np.ndarray,
    valid_flags: np.ndarray,
    others: np.ndarray,
    *,
    many: bool = False,
) -> tuple[np.ndarray, float]:
    """Probabilities by logistic regression on features of unit variance, and the C with the lowest loss on valid.

    Args:
        features, flags, valid, valid_flags, others: as `nearest_neighbors` takes them.
        many: each class has a probability of its own.
    """
    centre, spread = features.mean(0), features.std(0) + 1e-6
    rows, checked, asked = ((part - centre) / spread for part in (features, valid, others))
    best: tuple[float, float, np.ndarray] | None = None
    for strength in PENALTIES:
        told = _fit_regression(rows, flags, [checked, asked], strength, many)
        loss = _cross_entropy(told[0], valid_flags)
        if best is not None and loss >= best[0]:
            break  # the loss has one lowest point
        best = loss, strength, told[1]
    assert best is not None
    return best[2], best[1]


def _fit_regression(
    rows: np.ndarray, flags: np.ndarray, others: list[np.ndarray], strength: float, many: bool
) -> list[np.ndarray]:
    """Probabilities, N x classes, of each of the others; of a class that no training image has, 0."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.multiclass import OneVsRestClassifier

    model = LogisticRegression(C=strength, max_iter=MAX_STEPS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # so near the lowest loss that accuracy stands still
        if many:
            return [OneVsRestClassifier(model).fit(rows, flags).predict_proba(each) for each in others]
        codes = flags.argmax(1)
        model.fit(rows, codes)
    found = []
    for each in others:
        told = np.zeros((len(each), flags.shape[1]))
        told[:, model.classes_] = model.predict_proba(each)
        found.append(told)
    return found


def _cross_entropy(probabilities: np.ndarray, flags: np.ndarray) -> float:
    """Cross-entropy an image, of every class's yes or no: it takes one label or many."""
    sure = np.clip(probabilities, 1e-6, 1 - 1e-6)
    return float(-(flags * np.log(sure) + (1 - flags) * np.log(1 - sure)).sum(1).mean())
