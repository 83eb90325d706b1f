"""TODO."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from baseline.errors import DataError, unknown

__all__ = ["SEPARATOR", "classes_in", "classes_of", "decisions", "each_label", "flags_of", "has_many", "rarest"]


SEPARATOR = ";"
"""Between the labels of one photo that has several."""


def classes_in(table: pd.DataFrame, labels: str = "auto") -> list[str]:
    """The table's classes in alphabetical order."""
    return sorted(each_label(table["label"], labels).dropna().unique())


def against_rest(labels: pd.Series, positive: str) -> pd.Series:
    """The labels as two classes: `positive`, and `not POSITIVE` for all others.

    >>> list(against_rest(pd.Series(["glass", "plastic", "metal"]), "plastic"))
    ['not plastic', 'plastic', 'not plastic']

    Raises:
        DataError: if no label is `positive`.
    """
    if not labels.eq(positive).any():
        raise DataError(unknown("class", positive, set(labels)))
    return labels.where(labels == positive, f"not {positive}")


def decisions(probabilities: np.ndarray, classes: Sequence[str], threshold: float | None = None) -> np.ndarray:
    """What is predicted for each row of uncalibrated probabilities, N x classes: the most probable class.

    With a threshold, for many labels a photo: all classes from it on, with `;` between.

    >>> decisions(np.array([[0.6, 0.7]]), ["a", "b"]).tolist()
    ['b']
    >>> decisions(np.array([[0.6, 0.7]]), ["a", "b"], threshold=0.5).tolist()
    ['a;b']
    """
    names = np.asarray(classes, dtype=object)
    if threshold is None:
        return names[probabilities.argmax(1)]
    return np.array([SEPARATOR.join(names[row]) for row in probabilities >= threshold], dtype=object)


def has_many(labels: pd.Series, wish: str = "auto") -> bool:
    """Whether photos may have several labels: as wished, else where a separator or an empty label is seen."""
    seen = labels.eq("") | labels.str.contains(SEPARATOR, regex=False)
    return wish == "many" or (wish == "auto" and bool(seen.any()))


def classes_of(label: str) -> list[str]:
    """The classes that a label of several stands for.

    >>> classes_of("cat;dog"), classes_of("")
    (['cat', 'dog'], [])
    """
    return [each for each in label.split(SEPARATOR) if each]


def each_label(labels: pd.Series, wish: str = "auto") -> pd.Series:
    """The labels, and where photos may have several, each of them on a row of its own; missing for a photo of none."""
    return labels.map(classes_of).explode() if has_many(labels, wish) else labels


def flags_of(labels: pd.Series, classes: Sequence[str]) -> np.ndarray:
    """Photos x classes: whether the photo has the label."""
    sets = [set(classes_of(label)) for label in labels]
    return np.array([[name in each for name in classes] for each in sets], dtype=bool).reshape(-1, len(classes))


def rarest(labels: pd.Series) -> pd.Series:
    """For each photo of several labels its rarest one, by which such photos are split; empty where it has none."""
    counts = each_label(labels, "many").value_counts()
    return labels.map(lambda label: min(classes_of(label), key=lambda each: (counts[each], each), default=""))
