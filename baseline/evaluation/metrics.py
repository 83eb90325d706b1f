"""Metrics of a prediction table, with confidence intervals. No images are read and no model is run.

Everything is one pass over the N images x C classes of the table, and no array is larger. A metric that is undefined,
such as the recall of a class without images, is None, and `undefined` gives the reason.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pandas as pd

from baseline.data.labels import label_matrix, split_labels
from baseline.errors import quoted_list
from baseline.evaluation.calibration import (
    BIN_COUNT,
    assign_bins,
    class_decisions,
    ece_interval,
    expected_calibration_error,
    reliability_table,
)
from baseline.evaluation.intervals import (
    MAX_CELLS,
    bootstrap_sums,
    paired_interval,
    percentile_interval,
    wilson_interval,
)
from baseline.evaluation.results import Metrics, SplitMetrics
from baseline.evaluation.significance import paired_statistics
from baseline.evaluation.table import (
    check_columns,
    class_codes,
    class_columns,
    correct_rows,
    group_codes,
    multilabel_probabilities,
    probability_matrix,
)

__all__ = ["accuracy_of", "evaluate"]


TOP_K = 5
"""k of the top-k accuracy, where there are more classes than that."""

MAX_CONFUSIONS = 50
"""Maximum number of confused pairs of classes that are listed."""


REQUIRED_COLUMNS = ("split", "label", "predicted", "loss")

PLAIN_COLUMNS = ("plain_predicted", "plain_loss")


def evaluate(table: pd.DataFrame, task: str = "single") -> Metrics:
    """Return all metrics of the predictions by split, with and without test-time augmentation (TTA).

    Intervals are 95 % intervals: Wilson's for proportions; the others come from 1,000 bootstrap samples of the images,
    or of whole groups where the table has a column `group`, because images of one group carry less information than as
    many independent ones. The samples are drawn with a fixed seed: the same table always gives the same numbers.

    Args:
        table: prediction table; see `baseline.predict`. Without columns `p_CLASS` only accuracies are returned; without
            `plain_predicted` and `plain_loss`, as in the tables of `ensemble`, neither `"plain"` nor `tta_gain`.
        task: `"single"` or `"multilabel"` per image.

    Returns:
        By split (`"valid"`, `"test"`): `images`; `groups`, if there are any; `majority`, the most frequent class of the
        split and the accuracy of always predicting it; under `"plain"` and `"tta"` each `accuracy` (0-1), `interval`
        (low, high), `wrong` (images) and `loss` (log loss: mean, nats); and `tta_gain`, as `paired_test` returns it.

        Under `"tta"` also: `error`, `top_k` (k is 5, or one less than the number of classes), `balanced_accuracy`,
        `macro_f1`, `micro_f1`, `weighted_f1`, `brier` (summed over the classes, 0-2), `kappa` (Cohen's), `roc_auc` and
        `average_precision` (means over the classes, one-vs-rest), `ece` (expected calibration error over 15 bins of
        equal width, 0-1), `intervals` of these, `reliability` (the bins), `classes` (`images`, `precision`, `recall`
        with its interval, `f1`, `roc_auc`, `average_precision` by class), `confused` (the most confused pairs),
        `undefined` (the reason for each metric that is None), and `group_interval` of the accuracy if there are
        groups. Means over the classes leave out classes without images in the split (for F1: classes that were not
        predicted either).

        With `task="multilabel"` the accuracy counts images whose labels are all correct, and both also have `micro_f1`
        and `macro_f1`; with TTA there are `classes` as above, `mean_average_precision` over the classes with images in
        the split, and `ece` and `reliability` with each class of an image as a prediction of its own.

    Raises:
        DataError: if a column or a value is missing, a row does not sum to 1, or a class has no column.

    >>> rows = {"split": ["test"] * 4, "label": list("aabb"), "loss": [0.1] * 4, "plain_loss": [0.1] * 4}
    >>> table = pd.DataFrame({**rows, "predicted": list("aabb"), "plain_predicted": list("aaba")})
    >>> evaluate(table)["test"]["plain"]["accuracy"]
    0.75
    """
    check_columns(table, (*REQUIRED_COLUMNS, *(PLAIN_COLUMNS if set(PLAIN_COLUMNS) & set(table) else ())))
    classes = class_columns(table)
    return {str(split): evaluate_split(rows, classes, task) for split, rows in table.groupby("split", sort=False)}


def accuracy_of(table: pd.DataFrame, column: str = "predicted") -> tuple[float, float, float]:
    """Return the accuracy of a prediction column, 0-1, and the ends of its 95 % interval.

    The interval is Wilson's, or a bootstrap over whole groups where the table has any.

    >>> accuracy_of(pd.DataFrame({"label": list("aabb"), "predicted": list("aaba")}))[0]
    0.75
    """
    correct, groups = correct_rows(table, column), group_codes(table)
    interval = (
        wilson_interval(int(correct.sum()), len(correct))
        if groups is None
        else paired_interval(correct.astype(float), groups)
    )
    return float(correct.mean()), *interval


def evaluate_split(rows: pd.DataFrame, classes: list[str], task: str) -> SplitMetrics:
    """Return the metrics of one split; see `evaluate`."""
    groups = group_codes(rows)
    numbers: dict[str, Any] = {"images": len(rows)}
    if groups is not None:
        numbers["groups"] = int(groups.max()) + 1
    if task == "single":
        numbers["majority"] = majority_baseline(rows["label"])
    kinds = {"plain": "plain_", "tta": ""} if "plain_predicted" in rows else {"tta": ""}
    numbers |= {name: evaluate_predictions(rows, prefix, task) for name, prefix in kinds.items()}
    if classes and task == "single":
        numbers["tta"] |= probability_metrics(rows, classes, groups)
    if "plain" in kinds:
        numbers["tta_gain"] = paired_statistics(
            correct_rows(rows, "plain_predicted"), correct_rows(rows, "predicted"), groups
        )
    return cast(SplitMetrics, numbers)


def evaluate_predictions(rows: pd.DataFrame, prefix: str, task: str) -> dict[str, Any]:
    """Return accuracy, its interval, the number of wrong images and the log loss of the columns with the prefix."""
    hits = int(correct_rows(rows, f"{prefix}predicted").sum())
    return {
        "accuracy": hits / len(rows),
        "interval": wilson_interval(hits, len(rows)),
        "wrong": len(rows) - hits,
        "loss": float(rows[f"{prefix}loss"].mean()),
        **(multilabel_metrics(rows, prefix) if task == "multilabel" else {}),
    }


def majority_baseline(labels: pd.Series) -> dict[str, Any]:
    """Return the most frequent class, the accuracy of always predicting it, and the interval of that."""
    counts = labels.value_counts()
    name, images = counts.index[0], int(counts.iloc[0])
    return {"label": str(name), "accuracy": images / len(labels), "interval": wilson_interval(images, len(labels))}


def probability_metrics(rows: pd.DataFrame, classes: list[str], groups: np.ndarray | None) -> dict[str, Any]:
    """Return the metrics that need all N x C probabilities, and the metrics by class, for one label per image."""
    from sklearn.metrics import f1_score

    probabilities = probability_matrix(rows, classes)
    truth, predicted = class_codes(rows, "label", classes), class_codes(rows, "predicted", classes)
    by_class = per_class_metrics(probabilities, truth, predicted)
    sums = BootstrapSums(rows, probabilities, truth, predicted)
    numbers = {name: float(value[0]) for name, value in sums.statistics(sums.total()).items()}
    draws = bootstrap_sums(sums.features, groups)
    intervals = {name: percentile_interval(values) for name, values in sums.statistics(draws).items()}
    intervals["ece"] = ece_interval(sums.gaps(sums.total())[0], sums.gaps(draws))
    accuracy = numbers.pop("accuracy")
    accuracy_interval = intervals.pop("accuracy")
    f1 = {
        f"{kind}_f1": float(f1_score(truth, predicted, average=kind, zero_division=0)) for kind in ("micro", "weighted")
    }
    metrics = {
        "error": 1 - accuracy,
        "top_k": top_k_accuracy(probabilities, truth),
        **numbers,
        **f1,
        "kappa": cohen_kappa(truth, predicted),
        **{name: mean_of_defined(by_class[name]) for name in ("roc_auc", "average_precision")},
        "intervals": intervals,
        "reliability": reliability_table(probabilities[np.arange(len(truth)), predicted], truth == predicted),
        "classes": {name: class_summary(by_class, number) for number, name in enumerate(classes)},
        "confused": top_confusions(truth, predicted, classes),
        "undefined": undefined_reasons(truth, predicted, classes),
    }
    return metrics | ({} if groups is None else {"group_interval": accuracy_interval})


def multilabel_metrics(rows: pd.DataFrame, prefix: str) -> dict[str, Any]:
    """Return F1 scores for many labels per image, and with TTA (no prefix) the metrics that need probabilities."""
    from sklearn.metrics import f1_score

    classes = class_columns(rows)
    for column in ("label", f"{prefix}predicted"):
        lists = rows[[column, *(["path"] if "path" in rows else [])]].assign(**{column: rows[column].map(split_labels)})
        class_codes(lists.explode(column).dropna(subset=column), column, classes)
    probabilities = multilabel_probabilities(rows, classes)
    truth, predicted = (label_matrix(rows[column], classes) for column in ("label", f"{prefix}predicted"))
    metrics: dict[str, Any] = {
        f"{kind}_f1": float(f1_score(truth, predicted, average=kind, zero_division=0)) for kind in ("micro", "macro")
    }
    if not prefix:
        by_class = per_class_metrics(probabilities, truth, predicted)
        confidence, correct = class_decisions(probabilities, truth, predicted)
        metrics |= {
            "mean_average_precision": mean_of_defined(by_class["average_precision"]),
            "ece": expected_calibration_error(confidence, correct),
            "reliability": reliability_table(confidence, correct),
            "classes": {name: class_summary(by_class, number) for number, name in enumerate(classes)},
        }
    return metrics


def per_class_metrics(probabilities: np.ndarray, truth: np.ndarray, predicted: np.ndarray) -> dict[str, np.ndarray]:
    """Return each metric as C values, NaN where it is undefined; a class never predicted has a precision of 0.

    Args:
        truth: N class indices, or with many labels N x C flags; `predicted` likewise.
    """
    if truth.ndim == 1:
        count = probabilities.shape[1]
        images, positives, hits = (
            np.bincount(codes, minlength=count) for codes in (truth, predicted, truth[truth == predicted])
        )
    else:
        images, positives, hits = (flags.sum(0) for flags in (truth, predicted, truth & predicted))
    roc_auc, average_precision = one_vs_rest_metrics(probabilities, truth)
    return {
        "images": images,
        "predicted": positives,
        "precision": hits / np.maximum(positives, 1),
        "recall": np.where(images > 0, hits / np.maximum(images, 1), np.nan),
        "f1": np.where(images + positives > 0, 2 * hits / np.maximum(images + positives, 1), np.nan),
        "roc_auc": roc_auc,
        "average_precision": average_precision,
    }


def one_vs_rest_metrics(probabilities: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return ROC AUC and average precision of each class against all others, NaN where the split lacks one of the two.

    Both are counted from one sorted column per class. scikit-learn's functions give the same numbers, ties included,
    but take ten times as long for 1,000 classes of 50,000 images.
    """
    images, classes = probabilities.shape
    indices = image_indices_by_class(truth, classes)
    auc, precision = np.full(classes, np.nan), np.full(classes, np.nan)
    for number in range(classes):
        scores = np.sort(probabilities[:, number])
        positives = np.sort(probabilities[indices[number], number])
        if not len(positives):
            continue
        below, up_to = (np.searchsorted(scores, positives, side) for side in ("left", "right"))
        positives_below, positives_up_to = (np.searchsorted(positives, positives, side) for side in ("left", "right"))
        precision[number] = np.mean((len(positives) - positives_below) / (images - below))
        if len(positives) < images:
            # negatives ranked below each positive, ties counted half
            outranked = below - positives_below + (up_to - positives_up_to - below + positives_below) / 2
            auc[number] = outranked.mean() / (images - len(positives))
    return auc, precision


def image_indices_by_class(truth: np.ndarray, classes: int) -> list[np.ndarray]:
    """Return the indices of the images of each class."""
    if truth.ndim == 2:
        return [np.flatnonzero(flags) for flags in truth.T]
    order = np.argsort(truth, kind="stable")
    return np.split(order, np.searchsorted(truth[order], np.arange(1, classes)))


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


def top_k_accuracy(probabilities: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    """Return the share of images whose label is among the k most probable classes; ties go to the earlier class."""
    images, classes = probabilities.shape
    k = max(1, min(TOP_K, classes - 1))
    hits = 0
    for start in range(0, images, step := max(1, MAX_CELLS // classes)):
        part, label = probabilities[start : start + step], truth[start : start + step, None]
        of_label = np.take_along_axis(part, label, axis=1)
        ahead = (part > of_label) | ((part == of_label) & (np.arange(classes) < label))
        hits += int((ahead.sum(1) < k).sum())
    return {"k": k, "share": hits / images, "interval": wilson_interval(hits, images)}


class BootstrapSums:
    """What each image adds to the sums behind the metrics, so that a bootstrap sample is one matrix product.

    `features` is a sparse matrix, N x (3 C + 3 bins + 2), with about eight entries per image: its label, its
    prediction, its hit, its bin with confidence and hit there, its loss and its Brier score.
    """

    def __init__(self, rows: pd.DataFrame, probabilities: np.ndarray, truth: np.ndarray, predicted: np.ndarray) -> None:
        from scipy.sparse import csr_array

        images, self.classes = probabilities.shape
        indices, hit = np.arange(images), (truth == predicted).astype(float)
        confidence = probabilities[indices, predicted]
        bins, start = assign_bins(confidence), 3 * self.classes
        # Brier 1950: over all classes, (p - 1)^2 for the label and p^2 for the others
        brier = np.einsum("nc,nc->n", probabilities, probabilities) - 2 * probabilities[indices, truth] + 1
        entries = [
            (truth, np.ones(images)),
            (self.classes + predicted, np.ones(images)),
            (2 * self.classes + truth, hit),
            (start + bins, np.ones(images)),
            (start + BIN_COUNT + bins, confidence),
            (start + 2 * BIN_COUNT + bins, hit),
            (np.full(images, start + 3 * BIN_COUNT), rows["loss"].to_numpy(float)),
            (np.full(images, start + 3 * BIN_COUNT + 1), brier),
        ]
        columns, values = (np.concatenate(parts) for parts in zip(*entries, strict=True))
        positions = (np.tile(indices, len(entries)), columns)
        self.features = csr_array((values, positions), shape=(images, start + 3 * BIN_COUNT + 2))

    def total(self) -> np.ndarray:
        """Return the sums over all images, 1 x features."""
        return np.asarray(self.features.sum(axis=0)).reshape(1, -1)

    def statistics(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        """Return the metrics of each row of sums, draws x features."""
        count = self.classes
        images, positives, hits = sums[:, :count], sums[:, count : 2 * count], sums[:, 2 * count : 3 * count]
        total = images.sum(1)
        return {
            "accuracy": hits.sum(1) / total,
            "balanced_accuracy": mean_ratio(hits, images),
            "macro_f1": mean_ratio(2 * hits, images + positives),
            "ece": np.abs(self.gaps(sums)).sum(1),
            "loss": sums[:, -2] / total,
            "brier": sums[:, -1] / total,
        }

    def gaps(self, sums: np.ndarray) -> np.ndarray:
        """Return the signed contribution of each bin to the calibration error, draws x bins."""
        counts, confidence, hits = (sums[:, 3 * self.classes + BIN_COUNT * part :][:, :BIN_COUNT] for part in range(3))
        return (hits - confidence) / counts.sum(1, keepdims=True)


def mean_ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Return for each row the mean of the ratio over the columns whose denominator is not 0."""
    ratio = np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator > 0)
    return ratio.sum(1) / (denominator > 0).sum(1)


def mean_of_defined(values: np.ndarray) -> float | None:
    """Return the mean of the values that are not NaN, or None where there are none."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else None


def nan_to_none(value: float) -> float | None:
    """Return the value as a Python float, or None for NaN."""
    return None if np.isnan(value) else float(value)
