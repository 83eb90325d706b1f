"""The prediction table: building it from probabilities, and reading validated arrays from it.

The columns are described in `baseline.evaluation.predict`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from baseline.data.labels import Threshold, label_matrix, predicted_labels, split_labels
from baseline.errors import DataError, quoted_list
from baseline.metrics.predictions import Predictions, mean_log_loss
from baseline.metrics.registry import find_metric

__all__ = ["prediction_table", "probability_matrix"]


SUM_TOLERANCE = 1e-3
"""Maximum deviation of a row's sum from 1; tables made elsewhere are often rounded."""


def check_columns(table: pd.DataFrame, required: Sequence[str]) -> None:
    """Raise a DataError if a required column is missing or has missing values, or if the table has no rows."""
    if missing := [name for name in required if name not in table]:
        raise DataError(
            f"The prediction table has no column {quoted_list(missing)}. Pass the table of a run's predictions.csv."
        )
    if not len(table):
        raise DataError("The prediction table has no rows. Predict on valid or test.")
    for name in required:
        if (empty := table[name].isna()).any():
            raise DataError(
                f"Column '{name}' of the prediction table has no value in {int(empty.sum()):,} of {len(table):,} rows, "
                f"first {locate_row(table, empty)}. Fill or drop them."
            )


def check_same_images(both: pd.DataFrame) -> None:
    """Raise a DataError if an image is labeled differently in the other table, or occurs twice."""
    differing = both[both["label"].map(str) != both["label_other"].map(str)]
    if len(differing):
        first = differing.iloc[0]
        subject = "1 image is" if len(differing) == 1 else f"{len(differing):,} images are"
        raise DataError(
            f"{subject} labeled differently in the two tables, first {first['path']}: '{first['label']}' and "
            f"'{first['label_other']}'. Compare runs on the same labels."
        )
    if both["path"].duplicated().any():
        raise DataError(f"{both['path'][both['path'].duplicated()].iloc[0]} occurs twice. Drop the duplicates.")


def class_columns(table: pd.DataFrame) -> list[str]:
    """Return the class names of the columns `p_CLASS`, in their order."""
    return [column.removeprefix("p_") for column in map(str, table) if column.startswith("p_")]


def probability_matrix(rows: pd.DataFrame, classes: list[str], prefix: str = "") -> np.ndarray:
    """Return the columns `p_CLASS` of a prediction table, N x C, float64, or those with a prefix before that.

    Raises:
        DataError: if a row contains NaN or a negative value, or does not sum to 1.
    """
    probabilities = rows[[f"{prefix}p_{name}" for name in classes]].to_numpy(float)
    sums = probabilities.sum(1)
    for invalid, problem in (
        (np.isnan(sums), "contain NaN"),
        (~(np.abs(sums - 1) <= SUM_TOLERANCE), "do not sum to 1"),
        (probabilities.min(1) < 0, "include negative values"),
    ):
        if invalid.any():
            raise DataError(
                f"In {int(invalid.sum()):,} of {len(rows):,} rows of the prediction table the probabilities {problem}, "
                f"first {locate_row(rows, invalid)}. They have to be between 0 and 1 and sum to 1."
            )
    return probabilities


def multilabel_probabilities(rows: pd.DataFrame, classes: list[str], prefix: str = "") -> np.ndarray:
    """Return the columns `p_CLASS`, N x C, float64, where each class is a yes-or-no decision of its own."""
    probabilities = rows[[f"{prefix}p_{name}" for name in classes]].to_numpy(float)
    if (invalid := ~((probabilities >= 0) & (probabilities <= 1)).all(1)).any():
        raise DataError(
            f"In {int(invalid.sum()):,} of {len(rows):,} rows of the prediction table a probability is not between 0 "
            f"and 1, first {locate_row(rows, invalid)}. Fix or drop them."
        )
    return probabilities


def table_predictions(rows: pd.DataFrame, classes: list[str], task: str, prefix: str = "") -> Predictions:
    """Return labels, predicted labels and, if there are any, probabilities of the columns with the prefix."""
    columns, probabilities = ("label", f"{prefix}predicted"), np.empty((0, len(classes)))
    if classes and f"{prefix}p_{classes[0]}" in rows:
        read = probability_matrix if task == "single" else multilabel_probabilities
        probabilities = read(rows, classes, prefix)
    if task == "single":
        truth, predicted = (class_codes(rows, name, classes) for name in columns)
        return Predictions(truth, predicted, probabilities)
    for name in columns:
        lists = rows[[name, *(["path"] if "path" in rows else [])]].assign(**{name: rows[name].map(split_labels)})
        class_codes(lists.explode(name).dropna(subset=name), name, classes)
    truth, predicted = (label_matrix(rows[name], classes) for name in columns)
    return Predictions(truth, predicted, probabilities)


def class_codes(rows: pd.DataFrame, column: str, classes: list[str]) -> np.ndarray:
    """Return the class index of each row, N integers."""
    codes = pd.Index(classes).get_indexer(pd.Index(rows[column].map(str)))
    if (unknown := codes < 0).any():
        raise DataError(
            f"The prediction table has no column 'p_{rows[column][unknown].iloc[0]}' for the '{column}' of "
            f"{locate_row(rows, unknown)}. Its classes: {quoted_list(classes)}."
        )
    return codes


def group_codes(rows: pd.DataFrame) -> np.ndarray | None:
    """Return the group index of each row, from 0, or None where no image has a group.

    An image without a group is a group of its own.
    """
    if "group" not in rows:
        return None
    known = rows["group"].notna() & (rows["group"].map(str) != "")
    if not known.any():
        return None
    codes, names = pd.factorize(rows["group"].where(known))
    codes[codes < 0] = len(names) + np.arange(int((codes < 0).sum()))
    return codes


def locate_row(rows: pd.DataFrame, mask: Any) -> str:
    """Describe the first masked row, by path if available."""
    at = int(np.flatnonzero(np.asarray(mask))[0])
    return f"'{rows['path'].iloc[at]}'" if "path" in rows else f"row {at + 1}"


def correct_rows(rows: pd.DataFrame, column: str) -> np.ndarray:
    """Return whether each row's prediction in `column` equals its label, N booleans."""
    return (rows[column] == rows["label"]).to_numpy(bool)


def prediction_table(
    rows: pd.DataFrame,
    plain: np.ndarray,
    mean: np.ndarray,
    classes: Sequence[str],
    threshold: Threshold | None = None,
    *,
    metric: str = "auto",
) -> pd.DataFrame:
    """Return the prediction table of images and their probabilities, images x classes.

    Args:
        rows: rows of the image table, with labels.
        plain, mean: probabilities without and with test-time augmentation (TTA).
        threshold: decision threshold, or one per class, where an image may have several labels; see `predicted_labels`.
        metric: the recipe's: if it needs probabilities, there are also columns `plain_p_CLASS`.

    >>> rows = pd.DataFrame({"path": ["1.jpg"], "label": ["ant"], "split": ["test"]})
    >>> probabilities = np.array([[0.75, 0.25]])
    >>> table = prediction_table(rows, probabilities, probabilities, ["ant", "bee"])
    >>> table[["predicted", "confidence"]].to_dict("list")
    {'predicted': ['ant'], 'confidence': [0.75]}
    """
    table = rows[["path", "label", "split", *(["group"] if "group" in rows else [])]].copy()
    truth = label_matrix(rows["label"], classes) if threshold is not None else label_codes(rows["label"], classes)
    for prefix, probabilities in (("", mean), ("plain_", plain)):
        table[f"{prefix}predicted"] = predicted_labels(probabilities, classes, threshold)
        if threshold is None:
            table[f"{prefix}confidence"] = probabilities.max(1)
            of_label = probabilities[np.arange(len(probabilities)), truth][:, None]
        else:
            decisions = np.where(probabilities >= np.asarray(threshold), probabilities, 1 - probabilities)
            table[f"{prefix}confidence"] = decisions.min(1)
            of_label = np.where(truth, probabilities, 1 - probabilities)
        table[f"{prefix}loss"] = mean_log_loss(of_label)
    columns = [pd.DataFrame(mean, columns=[f"p_{name}" for name in classes], index=table.index)]
    if find_metric(metric).probabilities:
        columns.append(pd.DataFrame(plain, columns=[f"plain_p_{name}" for name in classes], index=table.index))
    return pd.concat([table, *columns], axis=1)


def label_codes(labels: pd.Series, classes: Sequence[str]) -> np.ndarray:
    """Return the class index of each label, N integers."""
    return labels.map({name: number for number, name in enumerate(classes)}).to_numpy()
