"""TODO."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from baseline.data.labels import label_matrix, predicted_labels
from baseline.errors import DataError, quoted_list

__all__ = ["prediction_table", "probability_matrix"]


SUM_TOLERANCE = 1e-3
"""So far may a row's sum be from 1: tables of others are often rounded."""


def check_columns(table: pd.DataFrame, needed: Sequence[str]) -> None:
    """An error if a column is missing or has missing values, or there are no rows."""
    if missing := [name for name in needed if name not in table]:
        raise DataError(
            f"The prediction table has no column {quoted_list(missing)}. Give the table of a run's predictions.csv."
        )
    if not len(table):
        raise DataError("The prediction table has no rows. Predict on valid or test.")
    for name in needed:
        if (empty := table[name].isna()).any():
            raise DataError(
                f"The column '{name}' of the prediction table has no value in {int(empty.sum()):,} of {len(table):,} "
                f"rows, first {locate_row(table, empty)}. Fill or drop them."
            )


def check_same_images(both: pd.DataFrame) -> None:
    """An error if an image has another label in the other table, or is there twice."""
    torn = both[both["label"].map(str) != both["label_other"].map(str)]
    if len(torn):
        first = torn.iloc[0]
        raise DataError(
            f"{len(torn):,} images have another label in the other table, first {first['path']}: '{first['label']}' "
            f"and '{first['label_other']}'. Compare runs on the same labels."
        )
    if both["path"].duplicated().any():
        raise DataError(f"{both['path'][both['path'].duplicated()].iloc[0]} is there twice. Drop the repeats.")


def class_columns(table: pd.DataFrame) -> list[str]:
    return [column.removeprefix("p_") for column in map(str, table) if column.startswith("p_")]


def probability_matrix(rows: pd.DataFrame, classes: list[str]) -> np.ndarray:
    """The columns `p_CLASS` of a prediction table, N x C, float64.

    Raises:
        DataError: if a row holds a NaN or what is below 0, or does not sum to 1.
    """
    found = rows[[f"p_{name}" for name in classes]].to_numpy(float)
    sums = found.sum(1)
    for wrong, words in (
        (np.isnan(sums), "hold a NaN"),
        (~(np.abs(sums - 1) <= SUM_TOLERANCE), "do not sum to 1"),
        (found.min(1) < 0, "are partly below 0"),
    ):
        if wrong.any():
            raise DataError(
                f"In {int(wrong.sum()):,} of {len(rows):,} rows of the prediction table the probabilities {words}, "
                f"first {locate_row(rows, wrong)}. Probabilities of 0 to 1 that sum to 1 were needed."
            )
    return found


def multilabel_probabilities(rows: pd.DataFrame, classes: list[str]) -> np.ndarray:
    """N x C, float64, where each class is a yes or no of its own."""
    found = rows[[f"p_{name}" for name in classes]].to_numpy(float)
    if (wrong := ~((found >= 0) & (found <= 1)).all(1)).any():
        raise DataError(
            f"In {int(wrong.sum()):,} of {len(rows):,} rows of the prediction table a probability is not one of 0 to "
            f"1, first {locate_row(rows, wrong)}. Mend or drop them."
        )
    return found


def class_codes(rows: pd.DataFrame, column: str, classes: list[str]) -> np.ndarray:
    """The class of each row by its number, N integers."""
    codes = pd.Index(classes).get_indexer(pd.Index(rows[column].map(str)))
    if (wrong := codes < 0).any():
        raise DataError(
            f"The prediction table has no column 'p_{rows[column][wrong].iloc[0]}' for what is in '{column}' of "
            f"{locate_row(rows, wrong)}. Its classes: {quoted_list(classes)}."
        )
    return codes


def group_codes(rows: pd.DataFrame) -> np.ndarray | None:
    """The group of each row by number, from 0; an image without one is a group of its own. None where none has any."""
    if "group" not in rows:
        return None
    known = rows["group"].notna() & (rows["group"].map(str) != "")
    if not known.any():
        return None
    codes, found = pd.factorize(rows["group"].where(known))
    codes[codes < 0] = len(found) + np.arange(int((codes < 0).sum()))
    return codes


def locate_row(rows: pd.DataFrame, wrong: Any) -> str:
    at = int(np.flatnonzero(np.asarray(wrong))[0])
    return f"'{rows['path'].iloc[at]}'" if "path" in rows else f"row {at + 1}"


def correct_rows(rows: pd.DataFrame, column: str) -> np.ndarray:
    return (rows[column] == rows["label"]).to_numpy(bool)


def prediction_table(
    rows: pd.DataFrame, plain: np.ndarray, mean: np.ndarray, classes: Sequence[str], threshold: float | None = None
) -> pd.DataFrame:
    """The prediction table (see the module) of images and their probabilities, images x classes.

    Args:
        rows: of the image table, with labels.
        plain, mean: without and with test-time augmentation.
        threshold: for many labels an image; see `predicted_labels`.

    >>> rows = pd.DataFrame({"path": ["1.jpg"], "label": ["ant"], "split": ["test"]})
    >>> sure = np.array([[0.75, 0.25]])
    >>> prediction_table(rows, sure, sure, ["ant", "bee"])[["predicted", "confidence"]].to_dict("list")
    {'predicted': ['ant'], 'confidence': [0.75]}
    """
    table = rows[["path", "label", "split", *(["group"] if "group" in rows else [])]].copy()
    truth = label_matrix(rows["label"], classes) if threshold is not None else label_codes(rows["label"], classes)
    for prefix, probabilities in (("", mean), ("plain_", plain)):
        table[f"{prefix}predicted"] = predicted_labels(probabilities, classes, threshold)
        if threshold is None:
            each = np.arange(len(probabilities))
            table[f"{prefix}confidence"] = probabilities.max(1)
            right = probabilities[each, truth][:, None]
        else:
            sure = np.where(probabilities >= threshold, probabilities, 1 - probabilities)
            table[f"{prefix}confidence"] = sure.min(1)
            right = np.where(truth, probabilities, 1 - probabilities)
        table[f"{prefix}loss"] = -np.log(np.maximum(right, 1e-300)).mean(1)
    columns = pd.DataFrame(mean, columns=[f"p_{name}" for name in classes], index=table.index)
    return pd.concat([table, columns], axis=1)


def label_codes(labels: pd.Series, classes: Sequence[str]) -> np.ndarray:
    return labels.map({name: number for number, name in enumerate(classes)}).to_numpy()
