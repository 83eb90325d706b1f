"""Cut points: the predicted class where a metric of decisions gains from another rule than the most probable class.

For grades, quadratic kappa is higher if the expected grade, the mean of the class numbers weighted by their
probabilities, is divided at cut points than if the most probable grade is predicted. With two classes the expected
number is the probability of the second, and its cut point is the decision threshold of F1. Cut points are fitted on the
valid images, on calibrated probabilities, and used only if they gain there on images that they were not fitted on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from baseline.data.labels import predicted_codes
from baseline.evaluation.calibration import MIN_VALID_IMAGES, apply_temperature, fit_temperature
from baseline.evaluation.table import class_codes, class_columns, group_codes, probability_matrix
from baseline.metrics.predictions import Predictions, Sums
from baseline.metrics.registry import find_metric
from baseline.progress import Progress

if TYPE_CHECKING:
    from baseline.metrics.registry import Metric

__all__ = ["average_cut_points", "fit_cut_points", "with_cut_points"]

FOLDS, REPEATS = 5, 4
"""Numbers of folds, and of divisions into them, by which the gain is measured."""

CANDIDATES = 1000
"""Maximum number of positions that are tried for a cut point."""


def with_cut_points(
    table: pd.DataFrame, plain: np.ndarray, metric: str, progress: Progress | None = None
) -> pd.DataFrame:
    """Return a prediction table whose predicted classes follow cut points fitted on its valid images, if they gain.

    The cut points are in `attrs["cut_points"]` of the result. The table itself is returned if there are none: with a
    metric that has none, where they do not gain, or with fewer than `MIN_VALID_IMAGES` valid images, as without a
    temperature. The gain is cross-fitted: decisions by cut points that were fitted on other images are compared with
    the most probable class.

    Args:
        table: prediction table; see `baseline.evaluation.predict`.
        plain: probabilities without TTA, N x C.
    """
    progress, measured, classes = progress or Progress(), find_metric(metric), class_columns(table)
    if not measured.has_cut_points(len(classes)):
        return table
    valid = table[table["split"] == "valid"].reset_index(drop=True)
    if len(valid) < MIN_VALID_IMAGES:
        progress.log(f"cut points: none, {len(valid)} valid images are fewer than {MIN_VALID_IMAGES}")
        return table
    temperature = fit_temperature(table)
    truth = class_codes(valid, "label", classes)
    probabilities = apply_temperature(probability_matrix(valid, classes), temperature)
    before = measured.value(Predictions(truth, probabilities.argmax(1), probabilities))
    after = cross_fitted_value(probabilities, truth, measured, group_codes(valid))
    change = (
        f"{measured.title} on valid {measured.text(before, 1)} by the most probable class, {measured.text(after, 1)}"
    )
    if not after > before:
        progress.log(f"cut points: none, they gain nothing ({change} cross-fitted)")
        return table
    cut_points = fit_cut_points(probabilities, truth, measured)
    shown = ", ".join(f"{value:.3g}" for value in cut_points[:8]) + (" ..." if len(cut_points) > 8 else "")
    of = f"the probability of {classes[1]}" if len(classes) == 2 else "the expected class number, from 0"
    progress.log(f"cut points: {shown} of {of} ({change} by cut points, cross-fitted)")
    result = table.copy()
    for prefix, probabilities in (("", probability_matrix(table, classes)), ("plain_", plain)):
        codes = predicted_codes(apply_temperature(probabilities, temperature), cut_points)
        result[f"{prefix}predicted"] = np.asarray(classes, dtype=object)[codes]
        result[f"{prefix}confidence"] = probabilities[np.arange(len(codes)), codes]
    result.attrs["cut_points"] = cut_points
    return result


def average_cut_points(members: Sequence[Sequence[float]], classes: int) -> list[float]:
    """Return the mean of several networks' cut points; empty if none has any.

    A network without cut points counts as cut halfway between the classes.

    >>> average_cut_points([[0.4, 1.2], []], 3)
    [0.45, 1.35]
    """
    if not any(len(cut_points) for cut_points in members):
        return []
    halfway = np.arange(classes - 1) + 0.5
    rows = [np.asarray(cut_points) if len(cut_points) else halfway for cut_points in members]
    mean: list[float] = np.mean(rows, axis=0).tolist()
    return mean


def cross_fitted_value(
    probabilities: np.ndarray, truth: np.ndarray, metric: Metric, groups: np.ndarray | None = None
) -> float:
    """Return the mean metric of decisions by cut points that were fitted without the image, nor any of its group."""
    from sklearn.model_selection import KFold

    groups = np.arange(len(truth)) if groups is None else groups
    units, values = np.unique(groups), []
    for seed in range(REPEATS):
        predicted = np.empty(len(truth), dtype=int)
        for _, held_out in KFold(min(FOLDS, len(units)), shuffle=True, random_state=seed).split(units):
            is_out = np.isin(groups, units[held_out])
            cut_points = fit_cut_points(probabilities[~is_out], truth[~is_out], metric)
            predicted[is_out] = predicted_codes(probabilities[is_out], cut_points)
        values.append(metric.value(Predictions(truth, predicted, probabilities)))
    return float(np.mean(values))


def fit_cut_points(probabilities: np.ndarray, truth: np.ndarray, metric: Metric) -> list[float]:
    """Return the C - 1 ascending cut points of the expected class number with the best metric.

    One after the other is moved to its best position, until none can be improved. Among equally good positions the one
    closest to where it was is taken. A class may get no room.

    Args:
        probabilities: N x C, N at least 2.
        truth: class numbers, N.
        metric: one that is a function of the counts of labels and predictions.

    >>> fit_cut_points(np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.1, 0.9]]), np.array([0, 0, 1, 1]),
    ...                find_metric("macro_f1"))
    [0.25]
    """
    classes = probabilities.shape[1]
    expected = probabilities @ np.arange(classes)
    ordered = np.unique(expected)
    between = (ordered[1:] + ordered[:-1]) / 2
    if len(between) > CANDIDATES:
        between = between[np.linspace(0, len(between) - 1, CANDIDATES).astype(int)]
    halfway = np.arange(classes - 1) + 0.5
    starts = [halfway]
    if len(between) and classes > 2:  # as many images of each class as there are
        shares = np.cumsum(np.bincount(truth, minlength=classes))[:-1] / len(truth)
        starts.append(np.quantile(expected, shares))
    counts = ConfusionCounts(expected, truth, classes, metric)
    fits = [counts.climb(start, np.append(between, halfway)) for start in starts]
    best: list[float] = max(fits, key=lambda fit: fit[1])[0].tolist()
    return best


class ConfusionCounts:
    """The metric of images by cut points, from the number of images of each class below each position."""

    def __init__(self, expected: np.ndarray, truth: np.ndarray, classes: int, metric: Metric) -> None:
        order = np.argsort(expected, kind="stable")
        self.expected, self.classes = expected[order], classes
        counts = np.cumsum(np.eye(classes)[truth[order]], axis=0)
        self.below = np.concatenate([np.zeros((1, classes)), counts])  # images of each class before each rank
        labels, predictions = np.divmod(np.arange(classes**2), classes)
        measured = metric.measure(Predictions(labels, predictions, np.empty((0, classes))))
        assert isinstance(measured, Sums)
        features = measured.features
        self.features = features.toarray() if hasattr(features, "toarray") else features
        self.ratio = measured.ratio

    def values(self, cut_points: np.ndarray) -> np.ndarray:
        """Return the metric of each row of cut points, rows x (C - 1); minus infinity where it is undefined."""
        ranks = np.searchsorted(self.expected, cut_points)
        edges = np.zeros((len(cut_points), self.classes + 1, self.classes))
        edges[:, 1:-1], edges[:, -1] = self.below[ranks], self.below[-1]
        confusion = np.diff(edges, axis=1).transpose(0, 2, 1).reshape(len(cut_points), -1)
        values = np.asarray(self.ratio(confusion @ self.features))
        return np.where(np.isnan(values), -np.inf, values)

    def climb(self, start: np.ndarray, positions: np.ndarray) -> tuple[np.ndarray, float]:
        """Move one cut point at a time to its best position until none gains; return them and the metric."""
        cut_points, best = start.astype(float), float(self.values(start[None])[0])
        improved = True
        while improved:
            improved = False
            for number in range(len(cut_points)):
                low = cut_points[number - 1] if number else -np.inf
                high = cut_points[number + 1] if number + 1 < len(cut_points) else np.inf
                tried = positions[(positions >= low) & (positions <= high)]
                rows = np.repeat(cut_points[None], len(tried), axis=0)
                rows[:, number] = tried
                values = self.values(rows)
                if len(tried) and values.max() > best + 1e-12:
                    equal = tried[values >= values.max() - 1e-12]
                    cut_points[number] = equal[np.abs(equal - cut_points[number]).argmin()]
                    best, improved = float(values.max()), True
        return cut_points, best
