"""Prediction table -> numbers with intervals. Knows arithmetic; knows no images and no models.

Everything is one pass over the N images x C classes of the table, and no array is larger. What is undefined, such as
the recall of a class without images, is None, and `undefined` says why.
"""

from __future__ import annotations

from typing import Any

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

MAX_CONFUSIONS = 50
"""Most pairs of classes that are listed."""


REQUIRED_COLUMNS = ("split", "label", "predicted", "loss")

PLAIN_COLUMNS = ("plain_predicted", "plain_loss")


def evaluate(table: pd.DataFrame, labels: str = "one") -> dict[str, dict[str, Any]]:
    """Everything that the predictions tell, by split, plain and with test-time augmentation, with 95 % intervals.

    The intervals of shares are Wilson's, the others are from 1,000 bootstrap samples of the images, or of whole groups
    where the table has a column `group`: images of one group tell less than as many images on their own. The samples
    are drawn with a fixed seed, so that the same table gives the same numbers.

    Args:
        table: a prediction table; see `baseline.predict`. Without columns `p_CLASS` only the accuracies are told;
            without `plain_predicted` and `plain_loss`, as `averaged` gives it, neither `"plain"` nor `tta_gain`.

    Returns:
        By split (`"valid"`, `"test"`): `images`; `groups`, if it has any; `majority`, the most frequent class of the
        split and what always saying it would score; under `"plain"` and `"tta"` each `accuracy` (0-1), `interval`
        (low, high), `wrong` (images) and `loss` (log loss: mean, nats); and `tta_gain`, as `paired_test` tells it.

        Beside them under `"tta"`: `error`, `top_k` (k is 5, or one less than the classes), `balanced_accuracy`,
        `macro_f1`, `micro_f1`, `weighted_f1`, `brier` (summed over the classes, 0-2), `kappa` (Cohen's), `roc_auc` and
        `average_precision` (means over the classes, one against rest), `ece` (expected calibration error over 15 bins
        of equal width, 0-1), `intervals` of these, `reliability` (the bins), `classes` (`images`, `precision`,
        `recall` with its interval, `f1`, `roc_auc`, `average_precision` by class), `confused` (the most confused
        pairs), `undefined` (why a number is None), and `group_interval` of the accuracy if there are groups. Means
        over the classes leave out those that the split has no image of (F1: and that were not predicted either).

        With `labels="many"` the accuracy counts images of which every label is right, and each has also `micro_f1`
        and `macro_f1`; with test-time augmentation `classes` as above, `mean_average_precision` over those that the
        split has images of, and `ece` and `reliability` of each class of an image as a prediction of its own.

    Raises:
        DataError: if a column is missing, a value is, a row does not sum to 1, or a class has no column.

    >>> rows = {"split": ["test"] * 4, "label": list("aabb"), "loss": [0.1] * 4, "plain_loss": [0.1] * 4}
    >>> table = pd.DataFrame({**rows, "predicted": list("aabb"), "plain_predicted": list("aaba")})
    >>> evaluate(table)["test"]["plain"]["accuracy"]
    0.75
    """
    check_columns(table, (*REQUIRED_COLUMNS, *(PLAIN_COLUMNS if set(PLAIN_COLUMNS) & set(table) else ())))
    classes = class_columns(table)
    return {str(split): evaluate_split(rows, classes, labels) for split, rows in table.groupby("split", sort=False)}


def accuracy_of(table: pd.DataFrame, column: str = "predicted") -> tuple[float, float, float]:
    """The share of images that are right, 0-1, and the ends of its 95 % interval.

    The interval is Wilson's, or by bootstrap over whole groups where the table has any.

    >>> accuracy_of(pd.DataFrame({"label": list("aabb"), "predicted": list("aaba")}))[0]
    0.75
    """
    right, groups = correct_rows(table, column), group_codes(table)
    within = (
        wilson_interval(int(right.sum()), len(right))
        if groups is None
        else paired_interval(right.astype(float), groups)
    )
    return float(right.mean()), *within


def evaluate_split(rows: pd.DataFrame, classes: list[str], labels: str) -> dict[str, Any]:
    groups = group_codes(rows)
    found: dict[str, Any] = {"images": len(rows)}
    if groups is not None:
        found["groups"] = int(groups.max()) + 1
    if labels == "one":
        found["majority"] = majority_baseline(rows["label"])
    kinds = {"plain": "plain_", "tta": ""} if "plain_predicted" in rows else {"tta": ""}
    found |= {name: evaluate_predictions(rows, prefix, labels) for name, prefix in kinds.items()}
    if classes and labels == "one":
        found["tta"] |= probability_metrics(rows, classes, groups)
    if "plain" in kinds:
        found["tta_gain"] = paired_statistics(
            correct_rows(rows, "plain_predicted"), correct_rows(rows, "predicted"), groups
        )
    return found


def evaluate_predictions(rows: pd.DataFrame, prefix: str, labels: str) -> dict[str, Any]:
    hits = int(correct_rows(rows, f"{prefix}predicted").sum())
    return {
        "accuracy": hits / len(rows),
        "interval": wilson_interval(hits, len(rows)),
        "wrong": len(rows) - hits,
        "loss": float(rows[f"{prefix}loss"].mean()),
        **(multilabel_metrics(rows, prefix) if labels == "many" else {}),
    }


def majority_baseline(labels: pd.Series) -> dict[str, Any]:
    counts = labels.value_counts()
    name, images = counts.index[0], int(counts.iloc[0])
    return {"label": str(name), "accuracy": images / len(labels), "interval": wilson_interval(images, len(labels))}


def probability_metrics(rows: pd.DataFrame, classes: list[str], groups: np.ndarray | None) -> dict[str, Any]:
    """What only the whole row of probabilities tells, and what is told class by class; N x C, one label an image."""
    from sklearn.metrics import f1_score

    probabilities = probability_matrix(rows, classes)
    truth, told = class_codes(rows, "label", classes), class_codes(rows, "predicted", classes)
    by_class = per_class_metrics(probabilities, truth, told)
    parts = BootstrapSums(rows, probabilities, truth, told)
    numbers = {name: float(value[0]) for name, value in parts.statistics(parts.whole()).items()}
    draws = bootstrap_sums(parts.features, groups)
    intervals = {name: percentile_interval(values) for name, values in parts.statistics(draws).items()}
    intervals["ece"] = ece_interval(parts.gaps(parts.whole())[0], parts.gaps(draws))
    accuracy = numbers.pop("accuracy")
    within = intervals.pop("accuracy")
    found = {
        "error": 1 - accuracy,
        "top_k": top_k_accuracy(probabilities, truth),
        **numbers,
        **{f"{kind}_f1": float(f1_score(truth, told, average=kind, zero_division=0)) for kind in ("micro", "weighted")},
        "kappa": cohen_kappa(truth, told),
        **{name: mean_of_defined(by_class[name]) for name in ("roc_auc", "average_precision")},
        "intervals": intervals,
        "reliability": reliability_table(probabilities[np.arange(len(truth)), told], truth == told),
        "classes": {name: class_summary(by_class, at) for at, name in enumerate(classes)},
        "confused": top_confusions(truth, told, classes),
        "undefined": undefined_reasons(truth, told, classes),
    }
    return found | ({} if groups is None else {"group_interval": within})


def multilabel_metrics(rows: pd.DataFrame, prefix: str) -> dict[str, Any]:
    from sklearn.metrics import f1_score

    classes = class_columns(rows)
    for column in ("label", f"{prefix}predicted"):
        each = rows[[column, *(["path"] if "path" in rows else [])]].assign(**{column: rows[column].map(split_labels)})
        class_codes(each.explode(column).dropna(subset=column), column, classes)
    probabilities = multilabel_probabilities(rows, classes)
    truth, told = (label_matrix(rows[column], classes) for column in ("label", f"{prefix}predicted"))
    found: dict[str, Any] = {
        f"{kind}_f1": float(f1_score(truth, told, average=kind, zero_division=0)) for kind in ("micro", "macro")
    }
    if not prefix:
        by_class = per_class_metrics(probabilities, truth, told)
        sure, right = class_decisions(probabilities, truth, told)
        found |= {
            "mean_average_precision": mean_of_defined(by_class["average_precision"]),
            "ece": expected_calibration_error(sure, right),
            "reliability": reliability_table(sure, right),
            "classes": {name: class_summary(by_class, at) for at, name in enumerate(classes)},
        }
    return found


def per_class_metrics(probabilities: np.ndarray, truth: np.ndarray, told: np.ndarray) -> dict[str, np.ndarray]:
    """Columns of one number a class, NaN where it is undefined; a class never predicted has a precision of 0.

    Args:
        truth: N numbers of classes, or with many labels N x C flags; so is `told`.
    """
    if truth.ndim == 1:
        counted = (np.bincount(each, minlength=probabilities.shape[1]) for each in (truth, told, truth[truth == told]))
    else:
        counted = (each.sum(0) for each in (truth, told, truth & told))
    images, said, hits = counted
    roc_auc, average_precision = one_vs_rest_metrics(probabilities, truth)
    return {
        "images": images,
        "predicted": said,
        "precision": hits / np.maximum(said, 1),
        "recall": np.where(images > 0, hits / np.maximum(images, 1), np.nan),
        "f1": np.where(images + said > 0, 2 * hits / np.maximum(images + said, 1), np.nan),
        "roc_auc": roc_auc,
        "average_precision": average_precision,
    }


def one_vs_rest_metrics(probabilities: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """ROC-AUC and average precision of each class against all others, NaN where the split lacks one of the two.

    Counted from one sorted column a class; scikit-learn's functions give the same numbers, ties included, and for
    1,000 classes of 50,000 images take ten times as long.
    """
    images, classes = probabilities.shape
    rows = image_indices_by_class(truth, classes)
    auc, precision = np.full(classes, np.nan), np.full(classes, np.nan)
    for at in range(classes):
        column = np.sort(probabilities[:, at])
        own = np.sort(probabilities[rows[at], at])
        if not len(own):
            continue
        below, upto = (np.searchsorted(column, own, side) for side in ("left", "right"))
        own_below, own_upto = (np.searchsorted(own, own, side) for side in ("left", "right"))
        precision[at] = np.mean((len(own) - own_below) / (images - below))
        if len(own) < images:
            beaten = below - own_below + (upto - own_upto - below + own_below) / 2
            auc[at] = beaten.mean() / (images - len(own))
    return auc, precision


def image_indices_by_class(truth: np.ndarray, classes: int) -> list[np.ndarray]:
    """The numbers of the images of each class."""
    if truth.ndim == 2:
        return [np.flatnonzero(flags) for flags in truth.T]
    order = np.argsort(truth, kind="stable")
    return np.split(order, np.searchsorted(truth[order], np.arange(1, classes)))


def class_summary(by_class: dict[str, np.ndarray], at: int) -> dict[str, Any]:
    images = int(by_class["images"][at])
    recall = by_class["recall"][at]
    return {
        "images": images,
        "predicted": int(by_class["predicted"][at]),
        "precision": float(by_class["precision"][at]),
        "recall": nan_to_none(recall),
        "recall_interval": wilson_interval(round(recall * images), images) if images else None,
        **{name: nan_to_none(by_class[name][at]) for name in ("f1", "roc_auc", "average_precision")},
    }


def top_confusions(truth: np.ndarray, told: np.ndarray, classes: list[str]) -> list[dict[str, Any]]:
    """The most frequent mistakes first: `label`, `predicted`, `images`, and their share of the label's images."""
    wrong = truth != told
    pairs, counts = np.unique(truth[wrong] * len(classes) + told[wrong], return_counts=True)
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


def undefined_reasons(truth: np.ndarray, told: np.ndarray, classes: list[str]) -> dict[str, str]:
    """Why numbers are None, or of fewer classes than the table has."""
    found = {}
    there = set(truth.tolist())
    lacking = [name for at, name in enumerate(classes) if at not in there]
    one = len(classes) - len(lacking) == 1
    if one:
        found["roc_auc"] = f"all images are of '{classes[truth[0]]}', and it needs images of two classes"
    if len({*truth.tolist(), *told.tolist()}) == 1:
        found["kappa"] = "label and prediction are the same one class everywhere, which chance would score, too"
    if lacking:
        found["recall of a class"] = (
            f"the split has no image of {quoted_list(lacking)}; means are over the other classes"
        )
    return found


def cohen_kappa(truth: np.ndarray, told: np.ndarray) -> float | None:
    from sklearn.metrics import cohen_kappa_score

    seen = np.unique(np.concatenate([truth, told]))
    return float(cohen_kappa_score(truth, told)) if len(seen) > 1 else None


def top_k_accuracy(probabilities: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    """The share of images whose label is among the k most probable classes; of equal ones the first comes first."""
    images, classes = probabilities.shape
    k = max(1, min(TOP_K, classes - 1))
    hits = 0
    for begin in range(0, images, step := max(1, MAX_CELLS // classes)):
        part, label = probabilities[begin : begin + step], truth[begin : begin + step, None]
        own = np.take_along_axis(part, label, axis=1)
        before = (part > own) | ((part == own) & (np.arange(classes) < label))
        hits += int((before.sum(1) < k).sum())
    return {"k": k, "share": hits / images, "interval": wilson_interval(hits, images)}


class BootstrapSums:
    """What an image adds to the sums that the numbers are made of, so that a bootstrap sample is one product.

    `features` is a sparse matrix, N x (3 C + 3 bins + 2), of about eight entries an image: its label, its prediction,
    its hit, its bin, confidence and hit there, and its loss and Brier score.
    """

    def __init__(self, rows: pd.DataFrame, probabilities: np.ndarray, truth: np.ndarray, told: np.ndarray) -> None:
        from scipy.sparse import csr_array

        images, self.classes = probabilities.shape
        each, hit = np.arange(images), (truth == told).astype(float)
        sure = probabilities[each, told]
        bins, start = assign_bins(sure), 3 * self.classes
        # Brier 1950: over all classes, (p - 1)^2 for the label and p^2 for the rest
        brier = np.einsum("nc,nc->n", probabilities, probabilities) - 2 * probabilities[each, truth] + 1
        entries = [
            (truth, np.ones(images)),
            (self.classes + told, np.ones(images)),
            (2 * self.classes + truth, hit),
            (start + bins, np.ones(images)),
            (start + BIN_COUNT + bins, sure),
            (start + 2 * BIN_COUNT + bins, hit),
            (np.full(images, start + 3 * BIN_COUNT), rows["loss"].to_numpy(float)),
            (np.full(images, start + 3 * BIN_COUNT + 1), brier),
        ]
        columns, values = (np.concatenate(parts) for parts in zip(*entries, strict=True))
        where = (np.tile(each, len(entries)), columns)
        self.features = csr_array((values, where), shape=(images, start + 3 * BIN_COUNT + 2))

    def whole(self) -> np.ndarray:
        """The sums over all images, 1 x features."""
        return np.asarray(self.features.sum(axis=0)).reshape(1, -1)

    def statistics(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        """The numbers of each row of sums, draws x features."""
        count = self.classes
        images, said, hits = sums[:, :count], sums[:, count : 2 * count], sums[:, 2 * count : 3 * count]
        total = images.sum(1)
        return {
            "accuracy": hits.sum(1) / total,
            "balanced_accuracy": mean_ratio(hits, images),
            "macro_f1": mean_ratio(2 * hits, images + said),
            "ece": np.abs(self.gaps(sums)).sum(1),
            "loss": sums[:, -2] / total,
            "brier": sums[:, -1] / total,
        }

    def gaps(self, sums: np.ndarray) -> np.ndarray:
        """What each bin adds to the calibration error, with its sign, draws x bins."""
        in_bin, sure, right = (sums[:, 3 * self.classes + BIN_COUNT * part :][:, :BIN_COUNT] for part in range(3))
        return (right - sure) / in_bin.sum(1, keepdims=True)


def mean_ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Row by row the mean of above / below over the columns where below is not 0."""
    ratio = np.divide(above, below, out=np.zeros_like(above), where=below > 0)
    return ratio.sum(1) / (below > 0).sum(1)


def mean_of_defined(values: np.ndarray) -> float | None:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else None


def nan_to_none(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
