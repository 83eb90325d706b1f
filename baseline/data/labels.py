"""TODO."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from baseline.errors import DataError, unknown_name

__all__ = [
    "SEPARATOR",
    "classes_in",
    "explode_labels",
    "is_multilabel",
    "label_matrix",
    "predicted_labels",
    "rarest_label",
    "split_labels",
]


SEPARATOR = ";"
"""Between the labels of one image that has several."""


def classes_in(table: pd.DataFrame, labels: str = "auto") -> list[str]:
    """The table's classes in alphabetical order."""
    return sorted(explode_labels(table["label"], labels).dropna().unique())


def binarize(labels: pd.Series, positive: str) -> pd.Series:
    """The labels as two classes: `positive`, and `not POSITIVE` for all others.

    >>> list(binarize(pd.Series(["glass", "plastic", "metal"]), "plastic"))
    ['not plastic', 'plastic', 'not plastic']

    Raises:
        DataError: if no label is `positive`.
    """
    if not labels.eq(positive).any():
        raise DataError(unknown_name("class", positive, set(labels)))
    return labels.where(labels == positive, f"not {positive}")


def predicted_labels(probabilities: np.ndarray, classes: Sequence[str], threshold: float | None = None) -> np.ndarray:
    """What is predicted for each row of uncalibrated probabilities, N x classes: the most probable class.

    With a threshold, for many labels an image: all classes from it on, with `;` between.

    >>> predicted_labels(np.array([[0.6, 0.7]]), ["a", "b"]).tolist()
    ['b']
    >>> predicted_labels(np.array([[0.6, 0.7]]), ["a", "b"], threshold=0.5).tolist()
    ['a;b']
    """
    names = np.asarray(classes, dtype=object)
    if threshold is None:
        return names[probabilities.argmax(1)]
    return np.array([SEPARATOR.join(names[row]) for row in probabilities >= threshold], dtype=object)


def is_multilabel(labels: pd.Series, wish: str = "auto") -> bool:
    """Whether images may have several labels: as wished, else where a separator or an empty label is seen."""
    seen = labels.eq("") | labels.str.contains(SEPARATOR, regex=False)
    return wish == "many" or (wish == "auto" and bool(seen.any()))


def split_labels(label: str) -> list[str]:
    """The classes that a label of several stands for.

    >>> split_labels("cat;dog"), split_labels("")
    (['cat', 'dog'], [])
    """
    return [each for each in label.split(SEPARATOR) if each]


def explode_labels(labels: pd.Series, wish: str = "auto") -> pd.Series:
    """The labels, and where images may have several, each of them on a row of its own; missing for an image of none."""
    return labels.map(split_labels).explode() if is_multilabel(labels, wish) else labels


def label_matrix(labels: pd.Series, classes: Sequence[str]) -> np.ndarray:
    """Images x classes: whether the image has the label."""
    sets = [set(split_labels(label)) for label in labels]
    return np.array([[name in each for name in classes] for each in sets], dtype=bool).reshape(-1, len(classes))


def rarest_label(labels: pd.Series) -> pd.Series:
    """For each image of several labels its rarest one, by which such images are split; empty where it has none."""
    counts = explode_labels(labels, "many").value_counts()
    return labels.map(lambda label: min(split_labels(label), key=lambda each: (counts[each], each), default=""))
