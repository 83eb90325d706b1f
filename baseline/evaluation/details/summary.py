"""The metrics beyond accuracy: of the probabilities, by class, and of the calibration.

Everything is one pass over the N images x C classes of the table, and no array is larger. A metric that is undefined,
such as the recall of a class without images, is None, and `undefined` gives the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from baseline.errors import quoted_list
from baseline.evaluation.bootstrap import bootstrap_sums, paired_interval, percentile_interval
from baseline.evaluation.calibration import (
    BIN_COUNT,
    assign_bins,
    class_decisions,
    expected_calibration_error,
)
from baseline.evaluation.details.named_metric import add_metric
from baseline.evaluation.details.reliability import ece_interval, reliability_table
from baseline.evaluation.intervals import wilson_interval
from baseline.metrics.counts import accuracy, balanced_accuracy, macro_f1, micro_f1
from baseline.metrics.predictions import Predictions, Sums
from baseline.metrics.probability.losses import brier, log_loss
from baseline.metrics.probability.ranking import one_vs_rest_metrics
from baseline.metrics.probability.top_k import top_k
from baseline.metrics.registry import find_metric

__all__ = ["add_details"]


TOP_K = 5
"""k of the top-k accuracy, where there are more classes than that."""

MAX_CONFUSIONS = 50
"""Maximum number of confused pairs of classes that are listed."""

SUMMED_METRICS: Mapping[str, Callable[[Predictions], Sums]] = {
    "accuracy": accuracy,
    "balanced_accuracy": balanced_accuracy,
    "macro_f1": macro_f1,
    "loss": log_loss,
    "brier": brier,
}
"""The metrics that share bootstrap samples."""


def add_details(
    scores: dict[str, Any],
    predictions: Predictions,
    classes: list[str],
    groups: np.ndarray | None,
    metric: str,
    *,
    plain: bool,
) -> None:
    """Add the metrics of predictions with TTA, and of these and the plain ones the metric that the recipe names, or
    with several labels per image micro F1."""
    if not plain:
        details = multilabel_details if predictions.multilabel else single_label_details
        scores |= details(predictions, classes, groups)
    elif groups is not None and not predictions.multilabel:
        scores["group_interval"] = paired_interval((predictions.predicted == predictions.truth).astype(float), groups)
    is_named = metric != "auto" or predictions.multilabel
    if is_named and (predictions.has_probabilities or not find_metric(metric).probabilities):
        add_metric(scores, metric, predictions, groups)


def single_label_details(predictions: Predictions, classes: list[str], groups: np.ndarray | None) -> dict[str, Any]:
    """Return the metrics that need all N x C probabilities, and the metrics by class, for one label per image."""
    from sklearn.metrics import f1_score

    probabilities, truth, predicted = predictions.probabilities, predictions.truth, predictions.predicted
    by_class = per_class_metrics(predictions)
    sums = BootstrapSums(predictions)
    numbers = {name: float(value[0]) for name, value in sums.statistics(sums.total()).items()}
    draws = bootstrap_sums(sums.features, groups)
    intervals = {name: percentile_interval(values) for name, values in sums.statistics(draws).items()}
    intervals["ece"] = ece_interval(sums.gaps(sums.total())[0], sums.gaps(draws))
    accuracy = numbers.pop("accuracy")
    accuracy_interval = intervals.pop("accuracy")
    k = max(1, min(TOP_K, len(classes) - 1))
    share = top_k(predictions, k).value
    metrics = {
        "error": 1 - accuracy,
        "top_k": {"k": k, "share": share, "interval": wilson_interval(round(share * len(truth)), len(truth))},
        **numbers,
        "micro_f1": micro_f1(predictions).value,
        "weighted_f1": float(f1_score(truth, predicted, average="weighted", zero_division=0)),
        "kappa": cohen_kappa(truth, predicted),
        **{name: mean_of_defined(by_class[name]) for name in ("roc_auc", "average_precision")},
        "intervals": intervals,
        "reliability": reliability_table(probabilities[np.arange(len(truth)), predicted], truth == predicted),
        "classes": {name: class_summary(by_class, number) for number, name in enumerate(classes)},
        "confused": top_confusions(truth, predicted, classes),
        "undefined": undefined_reasons(truth, predicted, classes),
    }
    return metrics | ({} if groups is None else {"group_interval": accuracy_interval})


def multilabel_details(predictions: Predictions, classes: list[str], _groups: np.ndarray | None) -> dict[str, Any]:
    """Return the metrics that need all N x C probabilities, and the metrics by class, for many labels per image."""
    probabilities, truth, predicted = predictions.probabilities, predictions.truth, predictions.predicted
    by_class = per_class_metrics(predictions)
    confidence, correct = class_decisions(probabilities, truth, predicted)
    return {
        "mean_average_precision": mean_of_defined(by_class["average_precision"]),
        "ece": expected_calibration_error(confidence, correct),
        "reliability": reliability_table(confidence, correct),
        "classes": {name: class_summary(by_class, number) for number, name in enumerate(classes)},
    }


def per_class_metrics(predictions: Predictions) -> dict[str, np.ndarray]:
    """Return each metric as C values, NaN where it is undefined; a class never predicted has a precision of 0."""
    images, positives, hits = np.split(np.asarray(predictions.class_counts.sum(axis=0)).astype(int), 3)
    roc_auc, average_precision = one_vs_rest_metrics(predictions.probabilities, predictions.truth)
    return {
        "images": images,
        "predicted": positives,
        "precision": hits / np.maximum(positives, 1),
        "recall": np.where(images > 0, hits / np.maximum(images, 1), np.nan),
        "f1": np.where(images + positives > 0, 2 * hits / np.maximum(images + positives, 1), np.nan),
        "roc_auc": roc_auc,
        "average_precision": average_precision,
    }


def class_summary(by_class: dict[str, np.ndarray], number: int) -> dict[str, Any]:
    """Return the metrics of the class with this index as plain Python values."""
    images = int(by_class["images"][number])
    recall = by_class["recall"][number]
    return {
        "images": images,
        "predicted": int(by_class["predicted"][number]),
        "precision": float(by_class["precision"][number]),
        "recall": nan_to_none(recall),
        "recall_interval": wilson_interval(round(recall * images), images) if images else None,
        **{name: nan_to_none(by_class[name][number]) for name in ("f1", "roc_auc", "average_precision")},
    }


def top_confusions(truth: np.ndarray, predicted: np.ndarray, classes: list[str]) -> list[dict[str, Any]]:
    """Return the most frequent confusions: `label`, `predicted`, `images`, and the share of the label's images."""
    wrong = truth != predicted
    pairs, counts = np.unique(truth[wrong] * len(classes) + predicted[wrong], return_counts=True)
    images = np.bincount(truth, minlength=len(classes))
    return [
        {
            "label": classes[pairs[at] // len(classes)],
            "predicted": classes[pairs[at] % len(classes)],
            "images": int(counts[at]),
            "share": float(counts[at] / images[pairs[at] // len(classes)]),
        }
        for at in np.argsort(-counts, kind="stable")[:MAX_CONFUSIONS]
    ]


def undefined_reasons(truth: np.ndarray, predicted: np.ndarray, classes: list[str]) -> dict[str, str]:
    """Return why metrics are None, or cover fewer classes than the table has."""
    reasons = {}
    present = set(truth.tolist())
    missing = [name for number, name in enumerate(classes) if number not in present]
    if len(classes) - len(missing) == 1:
        reasons["roc_auc"] = f"all images are of '{classes[truth[0]]}', and images of two classes are needed"
    if len({*truth.tolist(), *predicted.tolist()}) == 1:
        reasons["kappa"] = "all labels and predictions are the same class, so chance alone would agree as often"
    if missing:
        reasons["recall of a class"] = (
            f"the split has no image of {quoted_list(missing)}; means are over the other classes"
        )
    return reasons


def cohen_kappa(truth: np.ndarray, predicted: np.ndarray) -> float | None:
    """Return Cohen's kappa, or None where all labels and predictions are one class."""
    from sklearn.metrics import cohen_kappa_score

    classes = np.unique(np.concatenate([truth, predicted]))
    return float(cohen_kappa_score(truth, predicted)) if len(classes) > 1 else None


class BootstrapSums:
    """What each image adds to the sums behind the metrics of one label per image, with a sparse matrix `features`.

    All metrics and the calibration error share the bootstrap samples.
    """

    def __init__(self, predictions: Predictions) -> None:
        from scipy.sparse import csr_array, hstack

        images, rows = len(predictions.truth), np.arange(len(predictions.truth))
        self.metrics = {name: measure(predictions) for name, measure in SUMMED_METRICS.items()}
        confidence = predictions.probabilities[rows, predictions.predicted]
        bins = assign_bins(confidence)
        values = np.concatenate([np.ones(images), confidence, predictions.correct])
        columns = np.concatenate([bins + BIN_COUNT * part for part in range(3)])
        blocks = {id(sums.features): sums.features for sums in self.metrics.values()}
        widths = [block.shape[1] for block in blocks.values()]
        starts = dict(zip(blocks, np.cumsum([3 * BIN_COUNT, *widths]), strict=False))
        calibration = csr_array((values, (np.tile(rows, 3), columns)), shape=(images, 3 * BIN_COUNT))
        self.features = hstack([calibration, *map(csr_array, blocks.values())], format="csr")
        self.columns = {
            name: slice(starts[id(sums.features)], starts[id(sums.features)] + sums.features.shape[1])
            for name, sums in self.metrics.items()
        }

    def total(self) -> np.ndarray:
        """Return the sums over all images, 1 x features."""
        return np.asarray(self.features.sum(axis=0)).reshape(1, -1)

    def statistics(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        """Return the metrics of each row of sums, draws x features."""
        values = {name: metric.ratio(sums[:, self.columns[name]]) for name, metric in self.metrics.items()}
        return {**values, "ece": np.abs(self.gaps(sums)).sum(1)}

    def gaps(self, sums: np.ndarray) -> np.ndarray:
        """Return the signed contribution of each bin to the calibration error, draws x bins."""
        counts, confidence, hits = np.split(sums[:, : 3 * BIN_COUNT], 3, axis=1)
        return (hits - confidence) / counts.sum(1, keepdims=True)


def mean_of_defined(values: np.ndarray) -> float | None:
    """Return the mean of the values that are not NaN, or None where there are none."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else None


def nan_to_none(value: float) -> float | None:
    """Return the value as a Python float, or None for NaN."""
    return None if np.isnan(value) else float(value)
