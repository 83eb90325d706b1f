"""Prediction table -> numbers with intervals. Knows arithmetic; knows no photos and no models.

Everything is one pass over the N photos x C classes of the table, and no array is larger. What is undefined, such as
the recall of a class without photos, is None, and `undefined` says why.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from baseline.data.labels import classes_of, flags_of
from baseline.errors import names
from baseline.evaluation.calibration import BINS, _decisions, _ece, _ece_interval, _reliability, bins_of
from baseline.evaluation.intervals import CELLS, _draws, _paired_interval, _percentiles, wilson
from baseline.evaluation.significance import _paired
from baseline.evaluation.table import _classes, _codes, _flag_probabilities, _groups, _refuse, _right, probabilities_of

__all__ = ["accuracy_of", "measure"]


TOP = 5

CONFUSED = 50
"""Most pairs of classes that are listed."""


NEEDED = ("split", "label", "predicted", "loss")

PLAIN = ("plain_predicted", "plain_loss")


def measure(table: pd.DataFrame, labels: str = "one") -> dict[str, dict[str, Any]]:
    """Everything that the predictions tell, by split, plain and with test-time augmentation, with 95 % intervals.

    The intervals of shares are Wilson's, the others are from 1,000 bootstrap samples of the photos, or of whole groups
    where the table has a column `group`: photos of one group tell less than as many photos on their own. The samples
    are drawn with a fixed seed, so that the same table gives the same numbers.

    Args:
        table: a prediction table; see `baseline.predict`. Without columns `p_CLASS` only the accuracies are told;
            without `plain_predicted` and `plain_loss`, as `averaged` gives it, neither `"plain"` nor `tta_gain`.

    Returns:
        By split (`"valid"`, `"test"`): `photos`; `groups`, if it has any; `majority`, the most frequent class of the
        split and what always saying it would score; under `"plain"` and `"tta"` each `accuracy` (0-1), `interval`
        (low, high), `wrong` (photos) and `loss` (log loss: mean, nats); and `tta_gain`, as `same_or_not` tells it.

        Beside them under `"tta"`: `error`, `top_k` (k is 5, or one less than the classes), `balanced_accuracy`,
        `macro_f1`, `micro_f1`, `weighted_f1`, `brier` (summed over the classes, 0-2), `kappa` (Cohen's), `roc_auc` and
        `average_precision` (means over the classes, one against rest), `ece` (expected calibration error over 15 bins
        of equal width, 0-1), `intervals` of these, `reliability` (the bins), `classes` (`photos`, `precision`,
        `recall` with its interval, `f1`, `roc_auc`, `average_precision` by class), `confused` (the most confused
        pairs), `undefined` (why a number is None), and `group_interval` of the accuracy if there are groups. Means
        over the classes leave out those that the split has no photo of (F1: and that were not predicted either).

        With `labels="many"` the accuracy counts photos of which every label is right, and each has also `micro_f1`
        and `macro_f1`; with test-time augmentation `classes` as above, `mean_average_precision` over those that the
        split has photos of, and `ece` and `reliability` of each class of a photo as a prediction of its own.

    Raises:
        DataError: if a column is missing, a value is, a row does not sum to 1, or a class has no column.

    >>> rows = {"split": ["test"] * 4, "label": list("aabb"), "loss": [0.1] * 4, "plain_loss": [0.1] * 4}
    >>> table = pd.DataFrame({**rows, "predicted": list("aabb"), "plain_predicted": list("aaba")})
    >>> measure(table)["test"]["plain"]["accuracy"]
    0.75
    """
    _refuse(table, (*NEEDED, *(PLAIN if set(PLAIN) & set(table) else ())))
    classes = _classes(table)
    return {str(split): _of_split(rows, classes, labels) for split, rows in table.groupby("split", sort=False)}


def accuracy_of(table: pd.DataFrame, column: str = "predicted") -> tuple[float, float, float]:
    """The share of photos that are right, 0-1, and the ends of its 95 % interval.

    The interval is Wilson's, or by bootstrap over whole groups where the table has any.

    >>> accuracy_of(pd.DataFrame({"label": list("aabb"), "predicted": list("aaba")}))[0]
    0.75
    """
    right, groups = _right(table, column), _groups(table)
    within = wilson(int(right.sum()), len(right)) if groups is None else _paired_interval(right.astype(float), groups)
    return float(right.mean()), *within


def _of_split(rows: pd.DataFrame, classes: list[str], labels: str) -> dict[str, Any]:
    groups = _groups(rows)
    found: dict[str, Any] = {"photos": len(rows)}
    if groups is not None:
        found["groups"] = int(groups.max()) + 1
    if labels == "one":
        found["majority"] = _majority(rows["label"])
    kinds = {"plain": "plain_", "tta": ""} if "plain_predicted" in rows else {"tta": ""}
    found |= {name: _numbers(rows, prefix, labels) for name, prefix in kinds.items()}
    if classes and labels == "one":
        found["tta"] |= _in_full(rows, classes, groups)
    if "plain" in kinds:
        found["tta_gain"] = _paired(_right(rows, "plain_predicted"), _right(rows, "predicted"), groups)
    return found


def _numbers(rows: pd.DataFrame, prefix: str, labels: str) -> dict[str, Any]:
    hits = int(_right(rows, f"{prefix}predicted").sum())
    return {
        "accuracy": hits / len(rows),
        "interval": wilson(hits, len(rows)),
        "wrong": len(rows) - hits,
        "loss": float(rows[f"{prefix}loss"].mean()),
        **(_of_many(rows, prefix) if labels == "many" else {}),
    }


def _majority(labels: pd.Series) -> dict[str, Any]:
    counts = labels.value_counts()
    name, photos = counts.index[0], int(counts.iloc[0])
    return {"label": str(name), "accuracy": photos / len(labels), "interval": wilson(photos, len(labels))}


def _in_full(rows: pd.DataFrame, classes: list[str], groups: np.ndarray | None) -> dict[str, Any]:
    """What only the whole row of probabilities tells, and what is told class by class; N x C, one label a photo."""
    from sklearn.metrics import f1_score

    probabilities = probabilities_of(rows, classes)
    truth, told = _codes(rows, "label", classes), _codes(rows, "predicted", classes)
    by_class = _by_class(probabilities, truth, told)
    parts = _Parts(rows, probabilities, truth, told)
    numbers = {name: float(value[0]) for name, value in parts.statistics(parts.whole()).items()}
    draws = _draws(parts.features, groups)
    intervals = {name: _percentiles(values) for name, values in parts.statistics(draws).items()}
    intervals["ece"] = _ece_interval(parts.gaps(parts.whole())[0], parts.gaps(draws))
    accuracy = numbers.pop("accuracy")
    within = intervals.pop("accuracy")
    found = {
        "error": 1 - accuracy,
        "top_k": _top(probabilities, truth),
        **numbers,
        **{f"{kind}_f1": float(f1_score(truth, told, average=kind, zero_division=0)) for kind in ("micro", "weighted")},
        "kappa": _kappa(truth, told),
        **{name: _mean(by_class[name]) for name in ("roc_auc", "average_precision")},
        "intervals": intervals,
        "reliability": _reliability(probabilities[np.arange(len(truth)), told], truth == told),
        "classes": {name: _row(by_class, at) for at, name in enumerate(classes)},
        "confused": _confused(truth, told, classes),
        "undefined": _undefined(truth, told, classes),
    }
    return found | ({} if groups is None else {"group_interval": within})


def _of_many(rows: pd.DataFrame, prefix: str) -> dict[str, Any]:
    from sklearn.metrics import f1_score

    classes = _classes(rows)
    for column in ("label", f"{prefix}predicted"):
        each = rows[[column, *(["path"] if "path" in rows else [])]].assign(**{column: rows[column].map(classes_of)})
        _codes(each.explode(column).dropna(subset=column), column, classes)
    probabilities = _flag_probabilities(rows, classes)
    truth, told = (flags_of(rows[column], classes) for column in ("label", f"{prefix}predicted"))
    found: dict[str, Any] = {
        f"{kind}_f1": float(f1_score(truth, told, average=kind, zero_division=0)) for kind in ("micro", "macro")
    }
    if not prefix:
        by_class = _by_class(probabilities, truth, told)
        sure, right = _decisions(probabilities, truth, told)
        found |= {
            "mean_average_precision": _mean(by_class["average_precision"]),
            "ece": _ece(sure, right),
            "reliability": _reliability(sure, right),
            "classes": {name: _row(by_class, at) for at, name in enumerate(classes)},
        }
    return found


def _by_class(probabilities: np.ndarray, truth: np.ndarray, told: np.ndarray) -> dict[str, np.ndarray]:
    """Columns of one number a class, NaN where it is undefined; a class never predicted has a precision of 0.

    Args:
        truth: N numbers of classes, or with many labels N x C flags; so is `told`.
    """
    if truth.ndim == 1:
        counted = (np.bincount(each, minlength=probabilities.shape[1]) for each in (truth, told, truth[truth == told]))
    else:
        counted = (each.sum(0) for each in (truth, told, truth & told))
    photos, said, hits = counted
    roc_auc, average_precision = _against_rest(probabilities, truth)
    return {
        "photos": photos,
        "predicted": said,
        "precision": hits / np.maximum(said, 1),
        "recall": np.where(photos > 0, hits / np.maximum(photos, 1), np.nan),
        "f1": np.where(photos + said > 0, 2 * hits / np.maximum(photos + said, 1), np.nan),
        "roc_auc": roc_auc,
        "average_precision": average_precision,
    }


def _against_rest(probabilities: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """ROC-AUC and average precision of each class against all others, NaN where the split lacks one of the two.

    Counted from one sorted column a class; scikit-learn's functions give the same numbers, ties included, and for
    1,000 classes of 50,000 photos take ten times as long.
    """
    photos, classes = probabilities.shape
    rows = _rows_by_class(truth, classes)
    auc, precision = np.full(classes, np.nan), np.full(classes, np.nan)
    for at in range(classes):
        column = np.sort(probabilities[:, at])
        own = np.sort(probabilities[rows[at], at])
        if not len(own):
            continue
        below, upto = (np.searchsorted(column, own, side) for side in ("left", "right"))
        own_below, own_upto = (np.searchsorted(own, own, side) for side in ("left", "right"))
        precision[at] = np.mean((len(own) - own_below) / (photos - below))
        if len(own) < photos:
            beaten = below - own_below + (upto - own_upto - below + own_below) / 2
            auc[at] = beaten.mean() / (photos - len(own))
    return auc, precision


def _rows_by_class(truth: np.ndarray, classes: int) -> list[np.ndarray]:
    """The numbers of the photos of each class."""
    if truth.ndim == 2:
        return [np.flatnonzero(flags) for flags in truth.T]
    order = np.argsort(truth, kind="stable")
    return np.split(order, np.searchsorted(truth[order], np.arange(1, classes)))


def _row(by_class: dict[str, np.ndarray], at: int) -> dict[str, Any]:
    photos = int(by_class["photos"][at])
    recall = by_class["recall"][at]
    return {
        "photos": photos,
        "predicted": int(by_class["predicted"][at]),
        "precision": float(by_class["precision"][at]),
        "recall": _number(recall),
        "recall_interval": wilson(round(recall * photos), photos) if photos else None,
        **{name: _number(by_class[name][at]) for name in ("f1", "roc_auc", "average_precision")},
    }


def _confused(truth: np.ndarray, told: np.ndarray, classes: list[str]) -> list[dict[str, Any]]:
    """The most frequent mistakes first: `label`, `predicted`, `photos`, and their share of the label's photos."""
    wrong = truth != told
    pairs, counts = np.unique(truth[wrong] * len(classes) + told[wrong], return_counts=True)
    photos = np.bincount(truth, minlength=len(classes))
    return [
        {
            "label": classes[pairs[at] // len(classes)],
            "predicted": classes[pairs[at] % len(classes)],
            "photos": int(counts[at]),
            "share": float(counts[at] / photos[pairs[at] // len(classes)]),
        }
        for at in np.argsort(-counts, kind="stable")[:CONFUSED]
    ]


def _undefined(truth: np.ndarray, told: np.ndarray, classes: list[str]) -> dict[str, str]:
    """Why numbers are None, or of fewer classes than the table has."""
    found = {}
    there = set(truth.tolist())
    lacking = [name for at, name in enumerate(classes) if at not in there]
    one = len(classes) - len(lacking) == 1
    if one:
        found["roc_auc"] = f"all photos are of '{classes[truth[0]]}', and it needs photos of two classes"
    if len({*truth.tolist(), *told.tolist()}) == 1:
        found["kappa"] = "label and prediction are the same one class everywhere, which chance would score, too"
    if lacking:
        found["recall of a class"] = f"the split has no photo of {names(lacking)}; means are over the other classes"
    return found


def _kappa(truth: np.ndarray, told: np.ndarray) -> float | None:
    from sklearn.metrics import cohen_kappa_score

    seen = np.unique(np.concatenate([truth, told]))
    return float(cohen_kappa_score(truth, told)) if len(seen) > 1 else None


def _top(probabilities: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    """The share of photos whose label is among the k most probable classes; of equal ones the first comes first."""
    photos, classes = probabilities.shape
    k = max(1, min(TOP, classes - 1))
    hits = 0
    for begin in range(0, photos, step := max(1, CELLS // classes)):
        part, label = probabilities[begin : begin + step], truth[begin : begin + step, None]
        own = np.take_along_axis(part, label, axis=1)
        before = (part > own) | ((part == own) & (np.arange(classes) < label))
        hits += int((before.sum(1) < k).sum())
    return {"k": k, "share": hits / photos, "interval": wilson(hits, photos)}


class _Parts:
    """What a photo adds to the sums that the numbers are made of, so that a bootstrap sample is one product.

    `features` is a sparse matrix, N x (3 C + 3 bins + 2), of about eight entries a photo: its label, its prediction,
    its hit, its bin, confidence and hit there, and its loss and Brier score.
    """

    def __init__(self, rows: pd.DataFrame, probabilities: np.ndarray, truth: np.ndarray, told: np.ndarray) -> None:
        from scipy.sparse import csr_array

        photos, self.classes = probabilities.shape
        each, hit = np.arange(photos), (truth == told).astype(float)
        sure = probabilities[each, told]
        bins, start = bins_of(sure), 3 * self.classes
        # Brier 1950: over all classes, (p - 1)^2 for the label and p^2 for the rest
        brier = np.einsum("nc,nc->n", probabilities, probabilities) - 2 * probabilities[each, truth] + 1
        entries = [
            (truth, np.ones(photos)),
            (self.classes + told, np.ones(photos)),
            (2 * self.classes + truth, hit),
            (start + bins, np.ones(photos)),
            (start + BINS + bins, sure),
            (start + 2 * BINS + bins, hit),
            (np.full(photos, start + 3 * BINS), rows["loss"].to_numpy(float)),
            (np.full(photos, start + 3 * BINS + 1), brier),
        ]
        columns, values = (np.concatenate(parts) for parts in zip(*entries, strict=True))
        where = (np.tile(each, len(entries)), columns)
        self.features = csr_array((values, where), shape=(photos, start + 3 * BINS + 2))

    def whole(self) -> np.ndarray:
        """The sums over all photos, 1 x features."""
        return np.asarray(self.features.sum(axis=0)).reshape(1, -1)

    def statistics(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        """The numbers of each row of sums, draws x features."""
        count = self.classes
        photos, said, hits = sums[:, :count], sums[:, count : 2 * count], sums[:, 2 * count : 3 * count]
        total = photos.sum(1)
        return {
            "accuracy": hits.sum(1) / total,
            "balanced_accuracy": _mean_ratio(hits, photos),
            "macro_f1": _mean_ratio(2 * hits, photos + said),
            "ece": np.abs(self.gaps(sums)).sum(1),
            "loss": sums[:, -2] / total,
            "brier": sums[:, -1] / total,
        }

    def gaps(self, sums: np.ndarray) -> np.ndarray:
        """What each bin adds to the calibration error, with its sign, draws x bins."""
        in_bin, sure, right = (sums[:, 3 * self.classes + BINS * part :][:, :BINS] for part in range(3))
        return (right - sure) / in_bin.sum(1, keepdims=True)


def _mean_ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Row by row the mean of above / below over the columns where below is not 0."""
    ratio = np.divide(above, below, out=np.zeros_like(above), where=below > 0)
    return ratio.sum(1) / (below > 0).sum(1)


def _mean(values: np.ndarray) -> float | None:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else None


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
