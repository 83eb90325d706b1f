"""Temperature scaling: fitting a temperature, calibrating a prediction table, and measuring the calibration error."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from baseline.data.labels import label_matrix
from baseline.errors import DataError
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
"""Number of bins of equal width in which confidence is compared with accuracy (Guo et al. 2017, arXiv 1706.04599)."""


MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0
"""Bounds of the temperature."""


MIN_VALID_IMAGES = 50
"""Number of valid images below which a run gets no temperature: on fewer, it raised the log loss of networks that were
well calibrated (`benchmarks/temperatures.py`)."""


PRIOR_STRENGTH = 0.3
"""Standard deviation of the prior on the logarithm of the temperature (`benchmarks/temperatures.py`)."""


MIN_PROBABILITY = 1e-300
"""Replaces a probability of 0, which has no logarithm."""


def fit_temperature(table: pd.DataFrame, task: str = "single") -> float:
    """Return the temperature that minimizes the log loss of the table's valid images: logits are divided by it.

    Above 1 the network is overconfident (Guo et al. 2017, arXiv 1706.04599). The logarithms of probabilities are logits
    up to a constant, so the table is all that is needed. A few images say little about the temperature, and where none
    is misclassified the loss would fall forever: the logarithm of the temperature therefore has a normal prior around
    0 (`PRIOR_STRENGTH`), which keeps it near 1 where there are few images.

    Args:
        task: `"single"` or `"multilabel"` per image; with many, each class has a logit of its own and all share the
            temperature.

    Raises:
        DataError: if there are no valid images or no probabilities, or the table is invalid; see `evaluate`.

    >>> rows = {"split": "valid", "label": list("aaab") * 1000, "p_a": 0.95, "p_b": 0.05}
    >>> round(fit_temperature(pd.DataFrame(rows)), 2)  # confidence 0.95, accuracy 0.75: log 19 / log 3 is 2.68
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
        missing = "valid images" if classes else "columns p_CLASS"
        raise DataError(f"The prediction table has no {missing} to fit a temperature on. Predict on valid.")
    logits, targets = logits_and_targets(rows, classes, task)
    target_logits = logits[np.arange(len(targets)), targets]

    def penalized_loss(log_temperature: float) -> float:
        scale = math.exp(-log_temperature)
        loss = np.sum(logsumexp(logits * scale, axis=1) - target_logits * scale)
        return float(loss + (log_temperature / PRIOR_STRENGTH) ** 2 / 2)

    bounds = (math.log(MIN_TEMPERATURE), math.log(MAX_TEMPERATURE))
    return math.exp(minimize_scalar(penalized_loss, bounds=bounds, method="bounded", options={"xatol": 1e-6}).x)


def calibrate(table: pd.DataFrame, temperature: float, task: str = "single") -> pd.DataFrame:
    """Return the prediction table with probabilities `softmax(log p / temperature)`, and its confidence and loss.

    With `task="multilabel"` each probability is that of a yes-or-no decision of its own. The predicted classes do not
    change, nor do the columns without test-time augmentation.

    >>> table = pd.DataFrame({"label": ["a"], "predicted": ["a"], "p_a": [0.9], "p_b": [0.1]})
    >>> calibrate(table, 2.0)["p_a"].round(2).tolist()  # odds of 9 become odds of 3
    [0.75]
    """
    from scipy.special import softmax

    check_columns(table, ("label", "predicted"))
    classes = class_columns(table)
    logits, targets = logits_and_targets(table, classes, task)
    calibrated = softmax(logits / temperature, axis=1)
    result = table.copy()
    loss = -np.log(np.maximum(calibrated[np.arange(len(targets)), targets], MIN_PROBABILITY))
    columns = [f"p_{name}" for name in classes]
    if task == "multilabel":
        positive = calibrated[:, 1].reshape(len(table), -1)
        predicted = label_matrix(table["predicted"], classes)
        result[columns] = positive
        confidence = np.where(predicted, positive, 1 - positive).min(1)
        return result.assign(confidence=confidence, loss=loss.reshape(positive.shape).mean(1))
    result[columns] = calibrated
    confidence = calibrated[np.arange(len(table)), class_codes(table, "predicted", classes)]
    return result.assign(confidence=confidence, loss=loss)


def apply_temperature(probabilities: np.ndarray, temperature: float, task: str = "single") -> np.ndarray:
    """Return the probabilities, images x classes, calibrated in the same way as `calibrate` does it to a table.

    >>> apply_temperature(np.array([[0.9, 0.1]]), 2.0).round(2).tolist()
    [[0.75, 0.25]]
    """
    from scipy.special import softmax

    calibrated = softmax(log_probabilities(probabilities, task) / temperature, axis=1)
    return calibrated[:, 1].reshape(probabilities.shape) if task == "multilabel" else calibrated


def calibration_report(table: pd.DataFrame, task: str = "single") -> dict[str, Any]:
    """Fit a temperature on valid and report the calibration error of the other splits before and after scaling.

    Returns:
        `temperature`, `images` (the number it was fitted on), and for each other split `ece` and `loss`, each as
        (before, after), and `words`, the same as a sentence. Where valid is the only split, only the first two: on
        the images it was fitted on, the temperature would look too good. With fewer than `MIN_VALID_IMAGES` valid
        images the temperature is 1, and probabilities stay as they are.
    """
    images = int((table["split"] == "valid").sum())
    temperature = 1.0 if 0 < images < MIN_VALID_IMAGES else fit_temperature(table, task)
    report: dict[str, Any] = {"temperature": temperature, "images": images}
    for split, rows in table[table["split"] != "valid"].groupby("split", sort=False):
        tables = (rows, calibrate(rows, temperature, task))
        before, after = (expected_calibration_error(*confidence_and_correct(part, task)) for part in tables)
        loss = tuple(float(part["loss"].mean()) for part in tables)
        comparison = "lower" if round(after, 4) < round(before, 4) else "not lower"
        sentence = (
            f"A temperature of {temperature:.2f}, fitted on {images:,} valid image{'' if images == 1 else 's'}, "
            f"changes the expected calibration error on {split} from {before:.2%} to {after:.2%} ({comparison}) and "
            f"the log loss from {loss[0]:.4f} to {loss[1]:.4f}."
        )
        if images < MIN_VALID_IMAGES:
            sentence = f"Confidences are not calibrated: {images:,} valid images are fewer than {MIN_VALID_IMAGES}."
        report[str(split)] = {"ece": (before, after), "loss": loss, "words": sentence}
    return report


def logits_and_targets(rows: pd.DataFrame, classes: list[str], task: str) -> tuple[np.ndarray, np.ndarray]:
    """Return logits up to a constant, and the index of the true one in each row.

    The logits are images x classes, or with many labels per image (images x classes) x 2.
    """
    if task == "single":
        return log_probabilities(probability_matrix(rows, classes), task), class_codes(rows, "label", classes)
    logits = log_probabilities(multilabel_probabilities(rows, classes), task)
    return logits, label_matrix(rows["label"], classes).ravel().astype(int)


def log_probabilities(probabilities: np.ndarray, task: str) -> np.ndarray:
    """Return the logarithms of probabilities; with many labels a row (no, yes) for each class of each image."""
    if task == "multilabel":
        positive = probabilities.ravel()
        probabilities = np.column_stack([1 - positive, positive])
    return np.log(np.maximum(probabilities, MIN_PROBABILITY))


def confidence_and_correct(rows: pd.DataFrame, task: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the confidence of each prediction in the table, and whether it is correct."""
    if task == "single":
        return rows["confidence"].to_numpy(float), correct_rows(rows, "predicted")
    classes = class_columns(rows)
    truth, predicted = (label_matrix(rows[column], classes) for column in ("label", "predicted"))
    return class_decisions(multilabel_probabilities(rows, classes), truth, predicted)


def class_decisions(
    probabilities: np.ndarray, truth: np.ndarray, predicted: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return confidence and correctness with each class of each image as a yes-or-no prediction of its own."""
    return np.where(predicted, probabilities, 1 - probabilities).ravel(), (truth == predicted).ravel()


def assign_bins(confidence: np.ndarray) -> np.ndarray:
    """Return the bin of each confidence, 0 to 14.

    An edge belongs to the bin below it, as in scikit-learn's `calibration_curve`.
    """
    return np.searchsorted(np.linspace(0, 1, BIN_COUNT + 1)[1:-1], confidence)


def expected_calibration_error(confidence: np.ndarray, correct: np.ndarray) -> float:
    """Return the mean over predictions of the gap between confidence and accuracy in their bin, 0-1."""
    gaps = np.bincount(assign_bins(confidence), weights=correct - confidence, minlength=BIN_COUNT)
    return float(np.abs(gaps).sum() / len(confidence))
