"""TODO."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from baseline.data.labels import label_matrix
from baseline.errors import DataError
from baseline.evaluation.intervals import CONFIDENCE_LEVEL, wilson_interval
from baseline.evaluation.table import (
    check_columns,
    class_codes,
    class_columns,
    correct_rows,
    multilabel_probabilities,
    probability_matrix,
)

__all__ = ["BIN_COUNT", "apply_temperature", "assign_bins", "calibrate", "calibration_report", "fit_temperature"]


BIN_COUNT = 15
"""Of equal width, in which confidence is compared with accuracy (Guo et al. 2017, arXiv 1706.04599)."""


MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0
"""Ends of the temperatures that are tried."""


PRIOR_STRENGTH = 0.3
"""Standard deviation of the logarithm of temperatures before any image is seen (`benchmarks/temperatures.py`)."""


MIN_PROBABILITY = 1e-300
"""Taken for a probability of 0, which has no logarithm."""


def fit_temperature(table: pd.DataFrame, labels: str = "one") -> float:
    """The number that logits have to be divided by for the table's valid images to be told with the least log loss.

    Above 1 the network is surer than it is right (Guo et al. 2017, arXiv 1706.04599). The logarithms of probabilities
    are logits up to a constant, so the table is enough. A few images say little of it, and where none is wrong the loss
    would fall without end: the logarithm has a normal prior around 0 (`PRIOR_STRENGTH`), so that few images leave it near 1.

    Args:
        labels: `"one"` or `"many"` an image; of many, each has a logit of its own, and they share the temperature.

    Raises:
        DataError: if there are no valid images or no probabilities, or the table cannot be used; see `measure`.

    >>> rows = {"split": "valid", "label": list("aaab") * 1000, "p_a": 0.95, "p_b": 0.05}
    >>> round(fit_temperature(pd.DataFrame(rows)), 2)  # it says 0.95 and is right for 0.75: log 19 / log 3 is 2.68
    2.65
    >>> round(fit_temperature(pd.DataFrame(rows).head(4)), 2)
    1.17
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import logsumexp

    check_columns(table, ("split", "label"))
    rows = table[table["split"] == "valid"]
    classes = class_columns(table)
    if not len(rows) or not classes:
        lacks = "valid images" if classes else "columns p_CLASS"
        raise DataError(f"The prediction table has no {lacks}, which a temperature is fitted on. Predict on valid.")
    logits, truth = logits_and_targets(rows, classes, labels)
    of_truth = logits[np.arange(len(truth)), truth]

    def loss(log: float) -> float:
        sharpness = math.exp(-log)
        lost = np.sum(logsumexp(logits * sharpness, axis=1) - of_truth * sharpness)
        return float(lost + (log / PRIOR_STRENGTH) ** 2 / 2)

    bounds = (math.log(MIN_TEMPERATURE), math.log(MAX_TEMPERATURE))
    return math.exp(minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-6}).x)


def calibrate(table: pd.DataFrame, temperature: float, labels: str = "one") -> pd.DataFrame:
    """The prediction table with probabilities of `softmax(log p / temperature)`, and confidence and loss by these.

    With `labels="many"` each probability is that of its own yes or no. What is predicted stays, and so do the columns
    without test-time augmentation.

    >>> table = pd.DataFrame({"label": ["a"], "predicted": ["a"], "p_a": [0.9], "p_b": [0.1]})
    >>> calibrate(table, 2.0)["p_a"].round(2).tolist()  # odds of 9 become odds of 3
    [0.75]
    """
    from scipy.special import softmax

    check_columns(table, ("label", "predicted"))
    classes = class_columns(table)
    logits, truth = logits_and_targets(table, classes, labels)
    changed = softmax(logits / temperature, axis=1)
    found = table.copy()
    loss = -np.log(np.maximum(changed[np.arange(len(truth)), truth], MIN_PROBABILITY))
    if labels == "many":
        yes = changed[:, 1].reshape(len(table), -1)
        told = label_matrix(table["predicted"], classes)
        found[[f"p_{name}" for name in classes]] = yes
        return found.assign(confidence=np.where(told, yes, 1 - yes).min(1), loss=loss.reshape(yes.shape).mean(1))
    found[[f"p_{name}" for name in classes]] = changed
    return found.assign(confidence=changed[np.arange(len(table)), class_codes(table, "predicted", classes)], loss=loss)


def apply_temperature(probabilities: np.ndarray, temperature: float, labels: str = "one") -> np.ndarray:
    """Probabilities, images x classes, calibrated as `calibrate` does it to a table.

    >>> apply_temperature(np.array([[0.9, 0.1]]), 2.0).round(2).tolist()
    [[0.75, 0.25]]
    """
    from scipy.special import softmax

    changed = softmax(log_probabilities(probabilities, labels) / temperature, axis=1)
    return changed[:, 1].reshape(probabilities.shape) if labels == "many" else changed


def calibration_report(table: pd.DataFrame, labels: str = "one") -> dict[str, Any]:
    """The temperature fitted on valid, and `ece` and `loss` of each other split before and after it, with words.

    Returns:
        `fit_temperature`, `images` (that it was fitted on), and by split `ece` and `loss`, each (before, after), and
        `words`. Nothing but the temperature where valid is the only split: on its own images it would flatter.
    """
    fitted = fit_temperature(table, labels)
    found: dict[str, Any] = {"temperature": fitted, "images": int((table["split"] == "valid").sum())}
    rest = table[table["split"] != "valid"]
    for split, rows in rest.groupby("split", sort=False):
        each = (rows, calibrate(rows, fitted, labels))
        before, after = (expected_calibration_error(*confidence_and_correct(one, labels)) for one in each)
        loss = tuple(float(one["loss"].mean()) for one in each)
        better = "lower" if round(after, 4) < round(before, 4) else "not lower"
        words = (
            f"A temperature of {fitted:.2f}, fitted on {found['images']:,} valid images, takes the calibration error "
            f"on {split} from {before:.2%} to {after:.2%} ({better}), and the log loss from {loss[0]:.4f} to "
            f"{loss[1]:.4f}."
        )
        found[str(split)] = {"ece": (before, after), "loss": loss, "words": words}
    return found


def logits_and_targets(rows: pd.DataFrame, classes: list[str], labels: str) -> tuple[np.ndarray, np.ndarray]:
    """Logits up to a constant, and which of a row's is the true one: images x classes, or (images x classes) x 2."""
    if labels == "one":
        return log_probabilities(probability_matrix(rows, classes), labels), class_codes(rows, "label", classes)
    both = log_probabilities(multilabel_probabilities(rows, classes), labels)
    return both, label_matrix(rows["label"], classes).ravel().astype(int)


def log_probabilities(probabilities: np.ndarray, labels: str) -> np.ndarray:
    if labels == "many":
        yes = probabilities.ravel()
        probabilities = np.column_stack([1 - yes, yes])
    return np.log(np.maximum(probabilities, MIN_PROBABILITY))


def confidence_and_correct(rows: pd.DataFrame, labels: str) -> tuple[np.ndarray, np.ndarray]:
    """How sure each prediction of the table was, and whether it was right."""
    if labels == "one":
        return rows["confidence"].to_numpy(float), correct_rows(rows, "predicted")
    classes = class_columns(rows)
    truth, told = (label_matrix(rows[column], classes) for column in ("label", "predicted"))
    return class_decisions(multilabel_probabilities(rows, classes), truth, told)


def class_decisions(probabilities: np.ndarray, truth: np.ndarray, told: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each class of each image as a prediction of its own, yes or no: how sure it was, and whether it was right."""
    return np.where(told, probabilities, 1 - probabilities).ravel(), (truth == told).ravel()


def assign_bins(confidence: np.ndarray) -> np.ndarray:
    """The bin of each confidence, 0 to 14; an end belongs to the bin below it, as in sklearn's `calibration_curve`."""
    return np.searchsorted(np.linspace(0, 1, BIN_COUNT + 1)[1:-1], confidence)


def reliability_table(sure: np.ndarray, right: np.ndarray) -> list[dict[str, Any]]:
    """Bin by bin: its ends, predictions, mean confidence, accuracy and its interval; None where it has none."""
    at = assign_bins(sure)
    images, sums, hits = (np.bincount(at, weights=each, minlength=BIN_COUNT) for each in (None, sure, right))
    return [
        {
            "from": bin_ / BIN_COUNT,
            "to": (bin_ + 1) / BIN_COUNT,
            "images": (count := int(images[bin_])),
            "confidence": float(sums[bin_] / count) if count else None,
            "accuracy": float(hits[bin_] / count) if count else None,
            "interval": wilson_interval(round(hits[bin_]), count) if count else None,
        }
        for bin_ in range(BIN_COUNT)
    ]


def expected_calibration_error(sure: np.ndarray, right: np.ndarray) -> float:
    gaps = np.bincount(assign_bins(sure), weights=right - sure, minlength=BIN_COUNT)
    return float(np.abs(gaps).sum() / len(sure))


def ece_interval(gaps: np.ndarray, draws: np.ndarray) -> tuple[float, float]:
    """The interval of the sum of |gaps| over the bins, from its bootstrap draws x bins.

    Chance adds to an absolute value and never takes from it, so ECE is too high on few images, its bootstrap draws are
    higher still, and their percentiles held the truth in 0 to 89 % of simulations. So it is asked instead which true
    gaps, from none to twice those that were seen, could have shown this ECE: that held it in 91 to 95 % (300 and 2,000
    images, well and badly calibrated).
    """
    seen, noise, times = np.abs(gaps).sum(), draws - gaps, np.linspace(0, 2, 81)
    shown = np.abs(times[:, None, None] * gaps + noise).sum(2)
    least, most = np.quantile(shown, [CONFIDENCE_LEVEL / 2, 1 - CONFIDENCE_LEVEL / 2], axis=1)
    able = times[(least <= seen) & (seen <= most)]
    low, high = (able.min(), able.max()) if len(able) else (0.0, 1.0)
    return float(min(low, 1.0) * seen), float(max(high, 1.0) * seen)
