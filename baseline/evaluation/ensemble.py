"""TODO."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from baseline.data.labels import predicted_labels
from baseline.errors import DataError, quoted_list
from baseline.evaluation.calibration import apply_temperature, calibrate
from baseline.evaluation.table import check_same_images, class_columns, multilabel_probabilities, probability_matrix

__all__ = ["average_probabilities", "ensemble"]


def average_probabilities(
    parts: Sequence[np.ndarray], temperatures: Sequence[float | None], labels: str = "one", threshold: float = 0.5
) -> tuple[np.ndarray, float | None]:
    """The mean of what several networks make of the same images, each calibrated by its own temperature.

    Args:
        parts: uncalibrated probabilities, images x classes, of each network.
        temperatures: theirs; None leaves as it is.
        threshold: with many labels an image, that of uncalibrated probabilities.

    Returns:
        Images x classes; and with many labels the threshold for these: the mean of the calibrated ones.

    >>> mean, _ = average_probabilities([np.array([[0.9, 0.1]]), np.array([[0.3, 0.7]])], [2.0, None])
    >>> mean.round(3).tolist()  # of 0.75 and 0.3
    [[0.525, 0.475]]
    """

    def cooled(shares: np.ndarray, temperature: float | None) -> np.ndarray:
        return shares if temperature is None else apply_temperature(shares, temperature, labels)

    mean = np.mean([cooled(*each) for each in zip(parts, temperatures, strict=True)], axis=0)
    if labels == "one":
        return mean, None
    return mean, float(np.mean([cooled(np.array([[threshold]]), each) for each in temperatures]))


def ensemble(
    tables: Sequence[pd.DataFrame],
    temperatures: Sequence[float | None],
    labels: str = "one",
    threshold: float = 0.5,
) -> pd.DataFrame:
    """The prediction table of several networks together, as `average_probabilities` has it, of the images that all their tables hold.

    Its columns are `path`, `label`, `split`, `group` where the first has it, `predicted`, `confidence`, `loss`, and
    `p_CLASS` for each class; its rows are in the order of the first.

    Raises:
        DataError: if they share no image, or differ in their classes or an image's label.

    >>> rows = {"path": ["1.jpg"], "label": ["a"], "split": ["test"]}
    >>> two = [pd.DataFrame({**rows, "p_a": [p], "p_b": [1 - p]}) for p in (0.9, 0.3)]
    >>> ensemble(two, [None, None])[["predicted", "confidence"]].round(6).to_dict("records")
    [{'predicted': 'a', 'confidence': 0.6}]
    """
    first, classes = tables[0], class_columns(tables[0])
    paths = first["path"][np.logical_and.reduce([first["path"].isin(each["path"]) for each in tables])]
    if not len(paths):
        raise DataError("The tables share no image. Average runs of the same images.")
    parts = []
    for table in tables:
        if set(class_columns(table)) != set(classes):
            raise DataError(
                f"Runs of other classes have no average: {quoted_list(classes)} and {quoted_list(class_columns(table))}."
            )
        rows = first.merge(table[["path", "label"]], on="path", suffixes=("", "_other"))
        check_same_images(rows[rows["path"].isin(paths)])
        rows = table.set_index("path").loc[paths].reset_index()
        parts.append((multilabel_probabilities if labels == "many" else probability_matrix)(rows, classes))
    mean, least = average_probabilities(parts, temperatures, labels, threshold)
    kept = ["path", "label", "split", *(["group"] if "group" in first else [])]
    found = first.loc[paths.index, kept].reset_index(drop=True)
    found = found.assign(predicted=predicted_labels(mean, classes, least), confidence=0.0, loss=0.0)
    shares = pd.DataFrame(mean, columns=[f"p_{name}" for name in classes])
    return calibrate(pd.concat([found, shares], axis=1), 1.0, labels)  # which tells confidence and loss
