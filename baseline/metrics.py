"""Prediction table -> numbers with intervals. Knows arithmetic; knows no photos and no models.

Everything is one pass over the N photos x C classes of the table, and no array is larger. What is undefined, such as
the recall of a class without photos, is None, and `undefined` says why.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from .errors import DataError
from .tables import classes_of, decisions, flags_of, names

__all__ = [
    "BINS",
    "accuracy_of",
    "averaged",
    "bins_of",
    "blend",
    "calibrated",
    "calibration",
    "difference_words",
    "holm",
    "measure",
    "probabilities_of",
    "same_or_not",
    "sentences",
    "suspected_labels",
    "temperature",
    "tempered",
    "wilson",
]

BINS = 15
"""Of equal width, in which confidence is compared with accuracy (Guo et al. 2017, arXiv 1706.04599)."""

DRAWS = 1000
"""Bootstrap samples behind an interval."""

CELLS = 1_000_000
"""Most counts of drawn photos that are held at once, 8 bytes each."""

TOP = 5
CONFUSED = 50
"""Most pairs of classes that are listed."""

LEVEL = 0.05
"""Of what is called more than noise."""

LOWEST, HIGHEST = 0.05, 20.0
"""Ends of the temperatures that are tried."""

PRIOR = 0.3
"""Standard deviation of the logarithm of temperatures before any photo is seen (`benchmarks/temperatures.py`)."""

LEAST = 1e-300
"""Taken for a probability of 0, which has no logarithm."""

SUM_WITHIN = 1e-3
"""So far may a row's sum be from 1: tables of others are often rounded."""

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


def wilson(hits: int, photos: int) -> tuple[float, float]:
    """The 95 % interval of a share by Wilson's score (1927), which holds for small counts and shares near 0 and 1.

    >>> [round(end, 3) for end in wilson(0, 20)]
    [0.0, 0.161]
    """
    from scipy.stats import binomtest

    interval = binomtest(hits, photos).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def accuracy_of(table: pd.DataFrame, column: str = "predicted") -> tuple[float, float, float]:
    """The share of photos that are right, 0-1, and the ends of its 95 % interval.

    The interval is Wilson's, or by bootstrap over whole groups where the table has any.

    >>> accuracy_of(pd.DataFrame({"label": list("aabb"), "predicted": list("aaba")}))[0]
    0.75
    """
    right, groups = _right(table, column), _groups(table)
    within = wilson(int(right.sum()), len(right)) if groups is None else _paired_interval(right.astype(float), groups)
    return float(right.mean()), *within


def same_or_not(one: pd.DataFrame, other: pd.DataFrame) -> dict[str, Any]:
    """Whether two prediction tables differ by more than noise on the photos that both hold, by `path`.

    The photos are those of test, or of valid where the two share none of test. The test is McNemar's, which looks only
    at photos that one has right and the other wrong; its mid-p value (Fagerland, Lydersen and Laake 2013) is what
    decides, and the exact one is told. Where the table has groups their bootstrap interval decides instead, as
    McNemar's test takes photos for independent.

    Returns:
        `split`, `photos`, `only_one` and `only_other` (photos that only this one has right), `difference` (accuracy of
        other minus one, -1 to 1), `interval` (its 95 % interval, paired bootstrap), `p` (mid-p), `p_exact`, and
        `beyond_noise`.

    Raises:
        DataError: if they share no photo, or a photo has another label in the other table.

    >>> one = pd.DataFrame({"path": list("abcdef"), "split": "test", "label": list("xxxyyy"), "predicted": "x"})
    >>> found = same_or_not(one, one.assign(predicted=one["label"]))
    >>> found["only_other"], found["difference"], found["p_exact"], found["p"], found["beyond_noise"]
    (3, 0.5, 0.25, 0.125, False)
    """
    needed = ["path", "split", "label", "predicted"]
    for table in (one, other):
        _refuse(table, needed)
    columns = [*needed, *([] if "group" not in one else ["group"])]
    for split in ("test", "valid"):
        rows, others = one.loc[one["split"] == split, columns], other.loc[other["split"] == split, needed]
        both = rows.merge(others, on="path", suffixes=("", "_other"))
        if len(both):
            break
    else:
        raise DataError("The two tables share no photo of test or valid. Compare runs on the same photos.")
    _refuse_torn(both)
    right = (_right(both, "predicted"), _right(both, "predicted_other"))
    return {"split": split, **_paired(*right, _groups(both))}


def holm(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What `same_or_not` gave for several pairs, with p values held against one another (Holm 1979); changed in place.

    The more pairs are compared, the likelier one of them differs by chance: the smallest p is taken times the number of
    comparisons, the next times one less, and so on, none below the one before. Empty ones stay out.
    """
    tested = sorted((each for each in found if each), key=lambda each: each["p"])
    least = 0.0
    for rank, each in enumerate(tested):
        least = each["p"] = max(least, min(1.0, each["p"] * (len(tested) - rank)))
        each["beyond_noise"] &= len(tested) == 1 or least < LEVEL
    return found


def sentences(numbers: dict[str, Any]) -> list[str]:
    """What the numbers of one split mean, in plain words.

    >>> rows = {"split": ["test"] * 4, "label": list("aabb"), "loss": [0.1] * 4, "plain_loss": [0.1] * 4}
    >>> table = pd.DataFrame({**rows, "predicted": list("aabb"), "plain_predicted": list("aaba")})
    >>> print(*sentences(measure(table)["test"]), sep="\\n")
    0 of 4 photos are wrong; the true share of wrong ones lies between 0.0% and 49.0%, as far as 4 photos can tell.
    Always saying 'a', the most frequent class, would score 50.0%.
    Test-time augmentation changes accuracy by +25.0 points (+0.0 to +75.0): no difference beyond noise (p = 0.50).
    """
    tta, photos = numbers["tta"], numbers["photos"]
    low, high = tta["interval"]
    told = [
        f"{tta['wrong']:,} of {photos:,} photos are wrong; the true share of wrong ones lies between {1 - high:.1%} "
        f"and {1 - low:.1%}, as far as {photos:,} photos can tell."
    ]
    if "group_interval" in tta:
        low, high = tta["group_interval"]
        told.append(f"Over its {numbers['groups']:,} groups the interval of the accuracy is {low:.1%} to {high:.1%}.")
    if "majority" in numbers:
        most = numbers["majority"]
        told.append(f"Always saying '{most['label']}', the most frequent class, would score {most['accuracy']:.1%}.")
    gain = numbers.get("tta_gain")
    if gain and (gain["only_one"] or gain["only_other"]):
        told.append(f"Test-time augmentation changes accuracy by {difference_words(gain)}.")
    if "ece" in tta:
        told.append(_calibration_words(tta))
    return told + [f"{name} is not defined: {why}." for name, why in tta.get("undefined", {}).items()]


def difference_words(found: dict[str, Any]) -> str:
    """A difference, its interval and whether it is more than noise; `found` is what `same_or_not` gives."""
    low, high = (100 * end for end in found["interval"])
    verdict = "more than noise" if found["beyond_noise"] else "no difference beyond noise"
    sure = f"p = {found['p']:.2f}" if found["p"] >= 0.01 else "p < 0.01" if found["p"] >= 0.001 else "p < 0.001"
    return f"{100 * found['difference']:+.1f} points ({low:+.1f} to {high:+.1f}): {verdict} ({sure})"


def temperature(table: pd.DataFrame, labels: str = "one") -> float:
    """The number that logits have to be divided by for the table's valid photos to be told with the least log loss.

    Above 1 the network is surer than it is right (Guo et al. 2017, arXiv 1706.04599). The logarithms of probabilities
    are logits up to a constant, so the table is enough. A few photos say little of it, and where none is wrong the loss
    would fall without end: the logarithm has a normal prior around 0 (`PRIOR`), so that few photos leave it near 1.

    Args:
        labels: `"one"` or `"many"` a photo; of many, each has a logit of its own, and they share the temperature.

    Raises:
        DataError: if there are no valid photos or no probabilities, or the table cannot be used; see `measure`.

    >>> rows = {"split": "valid", "label": list("aaab") * 1000, "p_a": 0.95, "p_b": 0.05}
    >>> round(temperature(pd.DataFrame(rows)), 2)  # it says 0.95 and is right for 0.75: log 19 / log 3 is 2.68
    2.65
    >>> round(temperature(pd.DataFrame(rows).head(4)), 2)
    1.17
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import logsumexp

    _refuse(table, ("split", "label"))
    rows = table[table["split"] == "valid"]
    classes = _classes(table)
    if not len(rows) or not classes:
        lacks = "valid photos" if classes else "columns p_CLASS"
        raise DataError(f"The prediction table has no {lacks}, which a temperature is fitted on. Predict on valid.")
    logits, truth = _logits(rows, classes, labels)
    of_truth = logits[np.arange(len(truth)), truth]

    def loss(log: float) -> float:
        sharpness = math.exp(-log)
        lost = np.sum(logsumexp(logits * sharpness, axis=1) - of_truth * sharpness)
        return float(lost + (log / PRIOR) ** 2 / 2)

    bounds = (math.log(LOWEST), math.log(HIGHEST))
    return math.exp(minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-6}).x)


def calibrated(table: pd.DataFrame, temperature: float, labels: str = "one") -> pd.DataFrame:
    """The prediction table with probabilities of `softmax(log p / temperature)`, and confidence and loss by these.

    With `labels="many"` each probability is that of its own yes or no. What is predicted stays, and so do the columns
    without test-time augmentation.

    >>> table = pd.DataFrame({"label": ["a"], "predicted": ["a"], "p_a": [0.9], "p_b": [0.1]})
    >>> calibrated(table, 2.0)["p_a"].round(2).tolist()  # odds of 9 become odds of 3
    [0.75]
    """
    from scipy.special import softmax

    _refuse(table, ("label", "predicted"))
    classes = _classes(table)
    logits, truth = _logits(table, classes, labels)
    changed = softmax(logits / temperature, axis=1)
    found = table.copy()
    loss = -np.log(np.maximum(changed[np.arange(len(truth)), truth], LEAST))
    if labels == "many":
        yes = changed[:, 1].reshape(len(table), -1)
        told = flags_of(table["predicted"], classes)
        found[[f"p_{name}" for name in classes]] = yes
        return found.assign(confidence=np.where(told, yes, 1 - yes).min(1), loss=loss.reshape(yes.shape).mean(1))
    found[[f"p_{name}" for name in classes]] = changed
    return found.assign(confidence=changed[np.arange(len(table)), _codes(table, "predicted", classes)], loss=loss)


def tempered(probabilities: np.ndarray, temperature: float, labels: str = "one") -> np.ndarray:
    """Probabilities, photos x classes, calibrated as `calibrated` does it to a table.

    >>> tempered(np.array([[0.9, 0.1]]), 2.0).round(2).tolist()
    [[0.75, 0.25]]
    """
    from scipy.special import softmax

    changed = softmax(_logs(probabilities, labels) / temperature, axis=1)
    return changed[:, 1].reshape(probabilities.shape) if labels == "many" else changed


def blend(
    parts: Sequence[np.ndarray], temperatures: Sequence[float | None], labels: str = "one", threshold: float = 0.5
) -> tuple[np.ndarray, float | None]:
    """The mean of what several networks make of the same photos, each calibrated by its own temperature.

    Args:
        parts: uncalibrated probabilities, photos x classes, of each network.
        temperatures: theirs; None leaves as it is.
        threshold: with many labels a photo, that of uncalibrated probabilities.

    Returns:
        Photos x classes; and with many labels the threshold for these: the mean of the calibrated ones.

    >>> mean, _ = blend([np.array([[0.9, 0.1]]), np.array([[0.3, 0.7]])], [2.0, None])
    >>> mean.round(3).tolist()  # of 0.75 and 0.3
    [[0.525, 0.475]]
    """

    def cooled(shares: np.ndarray, temperature: float | None) -> np.ndarray:
        return shares if temperature is None else tempered(shares, temperature, labels)

    mean = np.mean([cooled(*each) for each in zip(parts, temperatures, strict=True)], axis=0)
    if labels == "one":
        return mean, None
    return mean, float(np.mean([cooled(np.array([[threshold]]), each) for each in temperatures]))


def averaged(
    tables: Sequence[pd.DataFrame],
    temperatures: Sequence[float | None],
    labels: str = "one",
    threshold: float = 0.5,
) -> pd.DataFrame:
    """The prediction table of several networks together, as `blend` has it, of the photos that all their tables hold.

    Its columns are `path`, `label`, `split`, `group` where the first has it, `predicted`, `confidence`, `loss`, and
    `p_CLASS` for each class; its rows are in the order of the first.

    Raises:
        DataError: if they share no photo, or differ in their classes or a photo's label.

    >>> rows = {"path": ["1.jpg"], "label": ["a"], "split": ["test"]}
    >>> two = [pd.DataFrame({**rows, "p_a": [p], "p_b": [1 - p]}) for p in (0.9, 0.3)]
    >>> averaged(two, [None, None])[["predicted", "confidence"]].round(6).to_dict("records")
    [{'predicted': 'a', 'confidence': 0.6}]
    """
    first, classes = tables[0], _classes(tables[0])
    paths = first["path"][np.logical_and.reduce([first["path"].isin(each["path"]) for each in tables])]
    if not len(paths):
        raise DataError("The tables share no photo. Average runs of the same photos.")
    parts = []
    for table in tables:
        if set(_classes(table)) != set(classes):
            raise DataError(f"Runs of other classes have no average: {names(classes)} and {names(_classes(table))}.")
        rows = first.merge(table[["path", "label"]], on="path", suffixes=("", "_other"))
        _refuse_torn(rows[rows["path"].isin(paths)])
        rows = table.set_index("path").loc[paths].reset_index()
        parts.append((_flag_probabilities if labels == "many" else probabilities_of)(rows, classes))
    mean, least = blend(parts, temperatures, labels, threshold)
    kept = ["path", "label", "split", *(["group"] if "group" in first else [])]
    found = first.loc[paths.index, kept].reset_index(drop=True)
    found = found.assign(predicted=decisions(mean, classes, least), confidence=0.0, loss=0.0)
    shares = pd.DataFrame(mean, columns=[f"p_{name}" for name in classes])
    return calibrated(pd.concat([found, shares], axis=1), 1.0, labels)  # which tells confidence and loss


def calibration(table: pd.DataFrame, labels: str = "one") -> dict[str, Any]:
    """The temperature fitted on valid, and `ece` and `loss` of each other split before and after it, with words.

    Returns:
        `temperature`, `photos` (that it was fitted on), and by split `ece` and `loss`, each (before, after), and
        `words`. Nothing but the temperature where valid is the only split: on its own photos it would flatter.
    """
    fitted = temperature(table, labels)
    found: dict[str, Any] = {"temperature": fitted, "photos": int((table["split"] == "valid").sum())}
    rest = table[table["split"] != "valid"]
    for split, rows in rest.groupby("split", sort=False):
        each = (rows, calibrated(rows, fitted, labels))
        before, after = (_ece(*_told(one, labels)) for one in each)
        loss = tuple(float(one["loss"].mean()) for one in each)
        better = "lower" if round(after, 4) < round(before, 4) else "not lower"
        words = (
            f"A temperature of {fitted:.2f}, fitted on {found['photos']:,} valid photos, takes the calibration error "
            f"on {split} from {before:.2%} to {after:.2%} ({better}), and the log loss from {loss[0]:.4f} to "
            f"{loss[1]:.4f}."
        )
        found[str(split)] = {"ece": (before, after), "loss": loss, "words": words}
    return found


def _logits(rows: pd.DataFrame, classes: list[str], labels: str) -> tuple[np.ndarray, np.ndarray]:
    """Logits up to a constant, and which of a row's is the true one: photos x classes, or (photos x classes) x 2."""
    if labels == "one":
        return _logs(probabilities_of(rows, classes), labels), _codes(rows, "label", classes)
    both = _logs(_flag_probabilities(rows, classes), labels)
    return both, flags_of(rows["label"], classes).ravel().astype(int)


def _logs(probabilities: np.ndarray, labels: str) -> np.ndarray:
    if labels == "many":
        yes = probabilities.ravel()
        probabilities = np.column_stack([1 - yes, yes])
    return np.log(np.maximum(probabilities, LEAST))


def _told(rows: pd.DataFrame, labels: str) -> tuple[np.ndarray, np.ndarray]:
    """How sure each prediction of the table was, and whether it was right."""
    if labels == "one":
        return rows["confidence"].to_numpy(float), _right(rows, "predicted")
    classes = _classes(rows)
    truth, told = (flags_of(rows[column], classes) for column in ("label", "predicted"))
    return _decisions(_flag_probabilities(rows, classes), truth, told)


# ---- labels that may be wrong ---------------------------------------------------------------------------------------


def suspected_labels(table: pd.DataFrame) -> pd.DataFrame:
    """Photos whose label is probably wrong, the surest first, by confident learning (Northcutt et al. 2021, JAIR 70).

    A photo is suspected where another class is at least as probable as that class is on average for the photos that
    carry it, and more so than its own by the same measure. The probabilities have to be of photos that the network
    was not trained on, as those of valid and test are. It finds hard photos, too: look before you change a label.

    Args:
        table: a prediction table of one label a photo; see `baseline.predict`.

    Returns:
        Its rows of suspected photos: the columns but for probabilities, `suggested` (class), `suggested_probability`
        and `label_probability` (cleanlab's self-confidence).

    >>> rows = {"label": list("aaabbb"), "p_a": [0.9, 0.8, 0.1, 0.2, 0.1, 0.1]}
    >>> table = pd.DataFrame(rows).assign(p_b=lambda rows: 1 - rows["p_a"])
    >>> suspected_labels(table)[["label", "suggested", "label_probability"]].to_dict("index")
    {2: {'label': 'a', 'suggested': 'b', 'label_probability': 0.1}}
    """
    _refuse(table, ("label",))
    classes = _classes(table)
    probabilities, truth = probabilities_of(table, classes), _codes(table, "label", classes)
    photos = np.bincount(truth, minlength=len(classes))
    each = np.arange(len(truth))
    own = probabilities[each, truth]
    usual = np.bincount(truth, weights=own, minlength=len(classes)) / np.maximum(photos, 1)
    sure = np.where((probabilities >= usual) & (photos > 0), probabilities, 0)
    suggested = sure.argmax(1)
    suspected = (sure.max(1) > 0) & (suggested != truth)
    found = table.drop(columns=[f"p_{name}" for name in classes]).assign(
        suggested=np.array(classes, dtype=object)[suggested],
        suggested_probability=probabilities[each, suggested],
        label_probability=own,
    )
    return found[suspected].sort_values("label_probability", kind="stable")


# ---- one split ------------------------------------------------------------------------------------------------------


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


def _decisions(probabilities: np.ndarray, truth: np.ndarray, told: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each class of each photo as a prediction of its own, yes or no: how sure it was, and whether it was right."""
    return np.where(told, probabilities, 1 - probabilities).ravel(), (truth == told).ravel()


# ---- class by class -------------------------------------------------------------------------------------------------


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


# ---- sums over photos, and their bootstrap --------------------------------------------------------------------------


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


def bins_of(confidence: np.ndarray) -> np.ndarray:
    """The bin of each confidence, 0 to 14; an end belongs to the bin below it, as in sklearn's `calibration_curve`."""
    return np.searchsorted(np.linspace(0, 1, BINS + 1)[1:-1], confidence)


def _reliability(sure: np.ndarray, right: np.ndarray) -> list[dict[str, Any]]:
    """Bin by bin: its ends, predictions, mean confidence, accuracy and its interval; None where it has none."""
    at = bins_of(sure)
    photos, sums, hits = (np.bincount(at, weights=each, minlength=BINS) for each in (None, sure, right))
    return [
        {
            "from": bin_ / BINS,
            "to": (bin_ + 1) / BINS,
            "photos": (count := int(photos[bin_])),
            "confidence": float(sums[bin_] / count) if count else None,
            "accuracy": float(hits[bin_] / count) if count else None,
            "interval": wilson(round(hits[bin_]), count) if count else None,
        }
        for bin_ in range(BINS)
    ]


def _ece(sure: np.ndarray, right: np.ndarray) -> float:
    gaps = np.bincount(bins_of(sure), weights=right - sure, minlength=BINS)
    return float(np.abs(gaps).sum() / len(sure))


def _draws(features: Any, groups: np.ndarray | None = None, draws: int = DRAWS) -> np.ndarray:
    """Sums of `features`, units x F, over as many units drawn with replacement: draws x F.

    Where there are groups, N codes from 0, the units are these. The counts of drawn units times the features is the
    whole work; nothing is gathered, and no metric is computed photo by photo again.
    """
    from scipy.sparse import csr_array

    if groups is not None:
        each = np.arange(len(groups))
        features = csr_array((np.ones(len(groups)), (groups, each))) @ features
    units, turned = features.shape[0], features.T.tocsr()
    random, step = np.random.default_rng(0), max(1, CELLS // features.shape[0])
    parts = []
    for begin in range(0, draws, step):
        count = min(step, draws - begin)
        picked = random.integers(units, size=(units, count)) * count + np.arange(count)
        times = np.bincount(picked.ravel(), minlength=units * count).reshape(units, count)
        parts.append((turned @ times.astype(float)).T)
    return np.concatenate(parts)


def _mean_ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Row by row the mean of above / below over the columns where below is not 0."""
    ratio = np.divide(above, below, out=np.zeros_like(above), where=below > 0)
    return ratio.sum(1) / (below > 0).sum(1)


def _percentiles(values: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(values, [LEVEL / 2, 1 - LEVEL / 2])
    return float(low), float(high)


def _ece_interval(gaps: np.ndarray, draws: np.ndarray) -> tuple[float, float]:
    """The interval of the sum of |gaps| over the bins, from its bootstrap draws x bins.

    Chance adds to an absolute value and never takes from it, so ECE is too high on few photos, its bootstrap draws are
    higher still, and their percentiles held the truth in 0 to 89 % of simulations. So it is asked instead which true
    gaps, from none to twice those that were seen, could have shown this ECE: that held it in 91 to 95 % (300 and 2,000
    photos, well and badly calibrated).
    """
    seen, noise, times = np.abs(gaps).sum(), draws - gaps, np.linspace(0, 2, 81)
    shown = np.abs(times[:, None, None] * gaps + noise).sum(2)
    least, most = np.quantile(shown, [LEVEL / 2, 1 - LEVEL / 2], axis=1)
    able = times[(least <= seen) & (seen <= most)]
    low, high = (able.min(), able.max()) if len(able) else (0.0, 1.0)
    return float(min(low, 1.0) * seen), float(max(high, 1.0) * seen)


def _calibration_words(tta: dict[str, Any]) -> str:
    told = [each for each in tta["reliability"] if each["photos"]]
    surer = sum(each["photos"] * (each["confidence"] - each["accuracy"]) for each in told)
    way = "it is surer than it is right" if surer > 0 else "it is right more often than it is sure"
    points = f"{100 * tta['ece']:.1f} points"
    return f"Confidence and accuracy are {points} apart (expected calibration error); on the whole {way}."


# ---- two predictions of the same photos -----------------------------------------------------------------------------


def _paired(one: np.ndarray, other: np.ndarray, groups: np.ndarray | None) -> dict[str, Any]:
    """McNemar's test and the paired bootstrap of two columns of hits of the same N photos; see `same_or_not`."""
    from scipy.stats import binom

    only_one, only_other = int((one & ~other).sum()), int((other & ~one).sum())
    fewer, torn = min(only_one, only_other), only_one + only_other
    exact = min(1.0, float(2 * binom.cdf(fewer, torn, 0.5)))
    middle = min(1.0, float(2 * binom.cdf(fewer, torn, 0.5) - binom.pmf(fewer, torn, 0.5)))
    low, high = _paired_interval(other.astype(float) - one, groups)
    return {
        "photos": len(one),
        "only_one": only_one,
        "only_other": only_other,
        "difference": (only_other - only_one) / len(one),
        "interval": (low, high),
        "p": middle,
        "p_exact": exact,
        "beyond_noise": middle < LEVEL if groups is None else low > 0 or high < 0,
    }


def _paired_interval(change: np.ndarray, groups: np.ndarray | None) -> tuple[float, float]:
    """The interval of the mean of N changes, each -1, 0 or 1."""
    from scipy.sparse import csr_array

    if groups is not None:
        sums = _draws(csr_array(np.column_stack([change, np.ones(len(change))])), groups)
        return _percentiles(sums[:, 0] / sums[:, 1])
    # drawing photos with replacement is drawing how many of the three kinds there are
    shares = np.array([(change == kind).mean() for kind in (1, -1, 0)])
    counts = np.random.default_rng(0).multinomial(len(change), shares, size=DRAWS)
    return _percentiles((counts[:, 0] - counts[:, 1]) / len(change))


# ---- what the table holds -------------------------------------------------------------------------------------------


def _refuse(table: pd.DataFrame, needed: Sequence[str]) -> None:
    """An error if a column is missing or has missing values, or there are no rows."""
    if missing := [name for name in needed if name not in table]:
        raise DataError(
            f"The prediction table has no column {names(missing)}. Give the table of a run's predictions.csv."
        )
    if not len(table):
        raise DataError("The prediction table has no rows. Predict on valid or test.")
    for name in needed:
        if (empty := table[name].isna()).any():
            raise DataError(
                f"The column '{name}' of the prediction table has no value in {int(empty.sum()):,} of {len(table):,} "
                f"rows, first {_place(table, empty)}. Fill or drop them."
            )


def _refuse_torn(both: pd.DataFrame) -> None:
    """An error if a photo has another label in the other table, or is there twice."""
    torn = both[both["label"].map(str) != both["label_other"].map(str)]
    if len(torn):
        first = torn.iloc[0]
        raise DataError(
            f"{len(torn):,} photos have another label in the other table, first {first['path']}: '{first['label']}' "
            f"and '{first['label_other']}'. Compare runs on the same labels."
        )
    if both["path"].duplicated().any():
        raise DataError(f"{both['path'][both['path'].duplicated()].iloc[0]} is there twice. Drop the repeats.")


def _classes(table: pd.DataFrame) -> list[str]:
    return [column.removeprefix("p_") for column in map(str, table) if column.startswith("p_")]


def probabilities_of(rows: pd.DataFrame, classes: list[str]) -> np.ndarray:
    """The columns `p_CLASS` of a prediction table, N x C, float64.

    Raises:
        DataError: if a row holds a NaN or what is below 0, or does not sum to 1.
    """
    found = rows[[f"p_{name}" for name in classes]].to_numpy(float)
    sums = found.sum(1)
    for wrong, words in (
        (np.isnan(sums), "hold a NaN"),
        (~(np.abs(sums - 1) <= SUM_WITHIN), "do not sum to 1"),
        (found.min(1) < 0, "are partly below 0"),
    ):
        if wrong.any():
            raise DataError(
                f"In {int(wrong.sum()):,} of {len(rows):,} rows of the prediction table the probabilities {words}, "
                f"first {_place(rows, wrong)}. Probabilities of 0 to 1 that sum to 1 were needed."
            )
    return found


def _flag_probabilities(rows: pd.DataFrame, classes: list[str]) -> np.ndarray:
    """N x C, float64, where each class is a yes or no of its own."""
    found = rows[[f"p_{name}" for name in classes]].to_numpy(float)
    if (wrong := ~((found >= 0) & (found <= 1)).all(1)).any():
        raise DataError(
            f"In {int(wrong.sum()):,} of {len(rows):,} rows of the prediction table a probability is not one of 0 to "
            f"1, first {_place(rows, wrong)}. Mend or drop them."
        )
    return found


def _codes(rows: pd.DataFrame, column: str, classes: list[str]) -> np.ndarray:
    """The class of each row by its number, N integers."""
    codes = pd.Index(classes).get_indexer(pd.Index(rows[column].map(str)))
    if (wrong := codes < 0).any():
        raise DataError(
            f"The prediction table has no column 'p_{rows[column][wrong].iloc[0]}' for what is in '{column}' of "
            f"{_place(rows, wrong)}. Its classes: {names(classes)}."
        )
    return codes


def _groups(rows: pd.DataFrame) -> np.ndarray | None:
    """The group of each row by number, from 0; a photo without one is a group of its own. None where none has any."""
    if "group" not in rows:
        return None
    known = rows["group"].notna() & (rows["group"].map(str) != "")
    if not known.any():
        return None
    codes, found = pd.factorize(rows["group"].where(known))
    codes[codes < 0] = len(found) + np.arange(int((codes < 0).sum()))
    return codes


def _place(rows: pd.DataFrame, wrong: Any) -> str:
    at = int(np.flatnonzero(np.asarray(wrong))[0])
    return f"'{rows['path'].iloc[at]}'" if "path" in rows else f"row {at + 1}"


def _right(rows: pd.DataFrame, column: str) -> np.ndarray:
    return (rows[column] == rows["label"]).to_numpy(bool)


def _mean(values: np.ndarray) -> float | None:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else None


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
