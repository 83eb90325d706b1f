"""Class labels of images: one per image, or several separated by `;` (multi-label)."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence

import numpy as np
import pandas as pd

from baseline.errors import DataError, unknown_name

__all__ = [
    "SEPARATOR",
    "Threshold",
    "are_numeric",
    "class_weights",
    "classes_in",
    "explode_labels",
    "is_multilabel",
    "is_whole_number",
    "label_matrix",
    "order_classes",
    "order_labels",
    "predicted_labels",
    "rarest_label",
    "split_labels",
]


MAX_POSITIVE_WEIGHT = 100.0
"""Maximum weight of the images with a rare label."""

SEPARATOR = ";"
"""Separator between the labels of an image that has several."""

Threshold = float | Sequence[float] | np.ndarray
"""Probability from which a label is predicted: one for all classes, or one per class."""

NUMBER_OR_RANGE = re.compile(r"-?[0-9]+(\.[0-9]+)?( to -?[0-9]+(\.[0-9]+)?)?")


def classes_in(table: pd.DataFrame, task: str = "auto") -> list[str]:
    """Return the classes of an image table: numbers in numeric order, other names in alphabetical order."""
    return order_classes(explode_labels(table["label"], task).dropna().unique())


def order_classes(names: Iterable[str]) -> list[str]:
    """Return class names in order: numbers and ranges of numbers by size, other names alphabetically.

    >>> order_classes(["10", "9", "1"]), order_classes(["10 to 20", "2 to 10"]), order_classes(["b", "a10", "a9"])
    (['1', '9', '10'], ['2 to 10', '10 to 20'], ['a10', 'a9', 'b'])
    """
    names = list(names)
    return sorted(names, key=lambda name: (float(name.split(" ")[0]), name)) if are_numeric(names) else sorted(names)


def are_numeric(names: Collection[str]) -> bool:
    """Whether all names are numbers or ranges of numbers."""
    return len(names) > 0 and all(map(NUMBER_OR_RANGE.fullmatch, names))


def order_labels(labels: pd.Series) -> pd.Series:
    """Return multi-labels with their classes in the order of all classes, as predictions have them.

    >>> order_labels(pd.Series(["10;9", "9", "1;10;9"])).tolist()
    ['9;10', '9', '1;9;10']
    """
    numbers = {name: number for number, name in enumerate(order_classes(explode_labels(labels).dropna().unique()))}
    return labels.map({text: SEPARATOR.join(sorted(split_labels(text), key=lambda name: numbers[name]))
                       for text in labels.unique()})  # fmt: skip


def is_whole_number(text: str) -> bool:
    """Whether a text is a whole number from 0, in ASCII digits, and not so long that `int` refuses it."""
    return text.isascii() and text.isdigit() and len(text) <= 4300


def class_weights(labels: pd.Series, classes: Sequence[str], *, multilabel: bool) -> list[float]:
    """Return a weight per class for the loss: the inverse of its frequency, on average 1 per image.

    With several labels per image it is the number of images without the label per image with it, at most
    `MAX_POSITIVE_WEIGHT`.

    >>> class_weights(pd.Series(["a", "a", "a", "b"]), ["a", "b"], multilabel=False)
    [0.6666666666666666, 2.0]
    >>> class_weights(pd.Series(["a;b", "a", "a", "a"]), ["a", "b"], multilabel=True)
    [0.25, 3.0]
    """
    counts = explode_labels(labels, "multilabel" if multilabel else "single").value_counts()
    images = [max(int(counts.get(name, 1)), 1) for name in classes]
    if multilabel:
        return [min(max(len(labels) - count, 1) / count, MAX_POSITIVE_WEIGHT) for count in images]
    return [len(labels) / (len(classes) * count) for count in images]


def binarize(labels: pd.Series, positive: str) -> pd.Series:
    """Return the labels as two classes: `positive`, and `not POSITIVE` for all others.

    >>> list(binarize(pd.Series(["glass", "plastic", "metal"]), "plastic"))
    ['not plastic', 'plastic', 'not plastic']

    Raises:
        DataError: if no label equals `positive`.
    """
    if not labels.eq(positive).any():
        raise DataError(unknown_name("class", positive, set(labels)))
    return labels.where(labels == positive, f"not {positive}")


def predicted_labels(
    probabilities: np.ndarray, classes: Sequence[str], threshold: Threshold | None = None, cuts: Sequence[float] = ()
) -> np.ndarray:
    """Return the predicted label for each row of uncalibrated probabilities, N x classes: the most probable class.

    With a threshold (multi-label), or one per class, the label joins all classes of at least that probability with `;`.
    With cut points, it is the class that `predicted_codes` returns.

    >>> predicted_labels(np.array([[0.6, 0.7]]), ["a", "b"]).tolist()
    ['b']
    >>> predicted_labels(np.array([[0.6, 0.7]]), ["a", "b"], threshold=0.5).tolist()
    ['a;b']
    """
    names = np.asarray(classes, dtype=object)
    if threshold is None:
        return names[predicted_codes(probabilities, cuts)]
    return np.array([SEPARATOR.join(names[row]) for row in probabilities >= np.asarray(threshold)], dtype=object)


def predicted_codes(probabilities: np.ndarray, cut_points: Sequence[float] = ()) -> np.ndarray:
    """Return the predicted class index for each row of probabilities, N x C: that of the most probable class.

    With C - 1 ascending cut points, it is the number of cut points up to the expected class index.

    >>> predicted_codes(np.array([[0.5, 0.2, 0.3]])).tolist()
    [0]
    >>> predicted_codes(np.array([[0.5, 0.2, 0.3]]), [0.6, 1.4]).tolist()  # expected: 0.8
    [1]
    """
    if not len(cut_points):
        return probabilities.argmax(1)
    return np.searchsorted(cut_points, probabilities @ np.arange(probabilities.shape[1]), side="right")


def is_multilabel(labels: pd.Series, task: str = "auto") -> bool:
    """Return whether images may have several labels.

    Args:
        task: `"single"`, `"multilabel"`, or `"auto"`: several if any label contains a separator or is empty.
    """
    several = labels.eq("") | labels.str.contains(SEPARATOR, regex=False)
    return task == "multilabel" or (task == "auto" and bool(several.any()))


def split_labels(label: str) -> list[str]:
    """Return the classes that a multi-label stands for.

    >>> split_labels("cat;dog"), split_labels("")
    (['cat', 'dog'], [])
    """
    return [name for name in label.split(SEPARATOR) if name]


def explode_labels(labels: pd.Series, task: str = "auto") -> pd.Series:
    """Return the labels with one class per row, under the index of its image; missing for an image without labels."""
    return labels.map(split_labels).explode() if is_multilabel(labels, task) else labels


def label_matrix(labels: pd.Series, classes: Sequence[str]) -> np.ndarray:
    """Return a boolean matrix, images x classes: whether the image has the label."""
    sets = [set(split_labels(label)) for label in labels]
    return np.array([[name in members for name in classes] for members in sets], dtype=bool).reshape(-1, len(classes))


def rarest_label(labels: pd.Series) -> pd.Series:
    """Return each image's rarest label, by which multi-label images are split; empty for an image without labels."""
    counts = explode_labels(labels, "multilabel").value_counts()
    return labels.map(lambda label: min(split_labels(label), key=lambda name: (counts[name], name), default=""))
