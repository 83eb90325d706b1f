"""Metrics of a prediction table, with confidence intervals. No images are read and no model is run.

`details` adds the metrics beyond accuracy where it is installed.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any, cast

import pandas as pd

from baseline.errors import DataError
from baseline.evaluation.intervals import wilson_interval
from baseline.evaluation.results import Metrics, SplitMetrics
from baseline.evaluation.table import check_columns, class_columns, correct_rows, group_codes, table_predictions
from baseline.metrics.counts import macro_f1, micro_f1

__all__ = ["accuracy_of", "evaluate"]


REQUIRED_COLUMNS = ("split", "label", "predicted", "loss")

PLAIN_COLUMNS = ("plain_predicted", "plain_loss")


def evaluate(table: pd.DataFrame, task: str = "single", metric: str = "auto") -> Metrics:
    """Return all metrics of the predictions by split, with and without test-time augmentation (TTA).

    Intervals are 95% confidence intervals: Wilson's for proportions; the others come from 1,000 bootstrap samples of
    the images, or of whole groups where the table has a column `group`, because images of one group carry less
    information than as many independent ones. The samples are drawn with a fixed seed: the same table always gives
    the same numbers.

    Args:
        table: prediction table; see `baseline.predict`. Without columns `p_CLASS` only accuracies are returned; without
            `plain_predicted` and `plain_loss`, as in the tables of `ensemble`, neither `"plain"` nor `tta_gain`.
        task: `"single"` or `"multilabel"` per image.
        metric: the recipe's `metric`: one that is named is returned under its name, with its interval in `intervals`.
            Without TTA, one that needs probabilities also needs columns `plain_p_CLASS`.

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
    return {
        str(split): evaluate_split(rows, classes, task, metric) for split, rows in table.groupby("split", sort=False)
    }


def accuracy_of(table: pd.DataFrame, column: str = "predicted") -> tuple[float, float, float]:
    """Return the accuracy of a prediction column, 0-1, and the ends of its 95% confidence interval.

    The interval is Wilson's, or a bootstrap over whole groups where the table has any.

    >>> accuracy_of(pd.DataFrame({"label": list("aabb"), "predicted": list("aaba")}))[0]
    0.75
    """
    correct, groups = correct_rows(table, column), group_codes(table)
    if groups is None:
        return float(correct.mean()), *wilson_interval(int(correct.sum()), len(correct))
    from baseline.evaluation.bootstrap import paired_interval

    return float(correct.mean()), *paired_interval(correct.astype(float), groups)


def evaluate_split(rows: pd.DataFrame, classes: list[str], task: str, metric: str) -> SplitMetrics:
    """Return the metrics of one split; see `evaluate`."""
    if metric != "auto" and not classes:
        raise DataError(f"The prediction table has no columns p_CLASS, which {metric} needs. Predict on valid or test.")
    groups = group_codes(rows)
    numbers: dict[str, Any] = {"images": len(rows)}
    if groups is not None:
        numbers["groups"] = int(groups.max()) + 1
    if task == "single":
        numbers["majority"] = majority_baseline(rows["label"])
    kinds = {"plain": "plain_", "tta": ""} if "plain_predicted" in rows else {"tta": ""}
    has_details = find_spec("baseline.evaluation.details") and find_spec("baseline.metrics.probability")
    numbers |= dict.fromkeys(kinds)
    for name, prefix in reversed(kinds.items()):
        scores = numbers[name] = evaluate_predictions(rows, prefix)
        if not classes and task == "single":
            continue
        predictions = table_predictions(rows, classes, task, prefix)
        if task == "multilabel":
            scores |= {"micro_f1": micro_f1(predictions).value, "macro_f1": macro_f1(predictions).value}
        if has_details:
            from baseline.evaluation.details.summary import add_details

            add_details(scores, predictions, classes, groups, metric, plain=bool(prefix))
    if "plain" in kinds and find_spec("baseline.evaluation.significance"):
        from baseline.evaluation.significance import paired_statistics

        numbers["tta_gain"] = paired_statistics(
            correct_rows(rows, "plain_predicted"), correct_rows(rows, "predicted"), groups
        )
    return cast(SplitMetrics, numbers)


def evaluate_predictions(rows: pd.DataFrame, prefix: str) -> dict[str, Any]:
    """Return accuracy, its interval, the number of wrong images and the log loss of the columns with the prefix."""
    hits = int(correct_rows(rows, f"{prefix}predicted").sum())
    return {
        "accuracy": hits / len(rows),
        "interval": wilson_interval(hits, len(rows)),
        "wrong": len(rows) - hits,
        "loss": float(rows[f"{prefix}loss"].mean()),
    }


def majority_baseline(labels: pd.Series) -> dict[str, Any]:
    """Return the most frequent class, the accuracy of always predicting it, and the interval of that."""
    counts = labels.value_counts()
    name, images = counts.index[0], int(counts.iloc[0])
    return {"label": str(name), "accuracy": images / len(labels), "interval": wilson_interval(images, len(labels))}
