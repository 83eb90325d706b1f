"""Ensembles: the average of the predictions of several networks for the same images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from baseline.data.labels import Threshold, predicted_labels
from baseline.errors import DataError, quoted_list
from baseline.evaluation.calibration import apply_temperature, calibrate
from baseline.evaluation.cut_points import average_cut_points
from baseline.evaluation.table import check_same_images, class_columns, multilabel_probabilities, probability_matrix

__all__ = ["average_probabilities", "ensemble"]


def average_probabilities(
    parts: Sequence[np.ndarray],
    temperatures: Sequence[float | None],
    task: str = "single",
    thresholds: Sequence[Threshold] = (0.5,),
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the mean of several networks' probabilities, each calibrated by its own temperature.

    Args:
        parts: uncalibrated probabilities of each network for the same images, images x classes.
        temperatures: the networks' temperatures; None leaves the probabilities as they are.
        task: `"single"` or `"multilabel"` per image.
        thresholds: each network's decision threshold on its uncalibrated probabilities, or one per class, where an
            image may have several labels; a single one holds for all networks.

    Returns:
        The mean, images x classes; and with `task="multilabel"` the threshold of each class for it, which is the mean
        of the calibrated thresholds, else None.

    >>> mean, _ = average_probabilities([np.array([[0.9, 0.1]]), np.array([[0.3, 0.7]])], [2.0, None])
    >>> mean.round(3).tolist()  # of 0.75 and 0.3
    [[0.525, 0.475]]
    """

    def scale(probabilities: np.ndarray, temperature: float | None) -> np.ndarray:
        return probabilities if temperature is None else apply_temperature(probabilities, temperature, task)

    mean = np.mean([scale(*pair) for pair in zip(parts, temperatures, strict=True)], axis=0)
    if task == "single":
        return mean, None
    thresholds = [*thresholds] * (len(parts) if len(thresholds) == 1 else 1)
    rows = [np.broadcast_to(np.asarray(threshold, dtype=float), (1, mean.shape[1])) for threshold in thresholds]
    return mean, np.mean([scale(*pair)[0] for pair in zip(rows, temperatures, strict=True)], axis=0)


def ensemble(
    tables: Sequence[pd.DataFrame],
    temperatures: Sequence[float | None],
    task: str = "single",
    thresholds: Sequence[float | Mapping[str, float]] = (0.5,),
    cut_points: Sequence[Sequence[float]] = (),
) -> pd.DataFrame:
    """Return the prediction table of several networks' average, for the images that all their tables contain.

    The average is that of `average_probabilities`. The columns are `path`, `label`, `split`, `group` where the first
    table has it, `predicted`, `confidence`, `loss`, and `p_CLASS` for each class; the rows are in the order of the
    first table.

    Args:
        thresholds: with several labels per image, each network's decision threshold, or one by class, as a run's
            manifest has them; a single one holds for all networks.
        cut_points: each network's cut points of the expected class number, as a run's manifest has them; empty for
            networks without any. Their mean decides, see `average_cut_points`.

    Raises:
        DataError: if the tables share no image, or differ in their classes or in an image's label.

    >>> rows = {"path": ["1.jpg"], "label": ["a"], "split": ["test"]}
    >>> two = [pd.DataFrame({**rows, "p_a": [p], "p_b": [1 - p]}) for p in (0.9, 0.3)]
    >>> ensemble(two, [None, None])[["predicted", "confidence"]].round(6).to_dict("records")
    [{'predicted': 'a', 'confidence': 0.6}]
    """
    first, classes = tables[0], class_columns(tables[0])
    paths = first["path"][np.logical_and.reduce([first["path"].isin(table["path"]) for table in tables])]
    if not len(paths):
        raise DataError("The tables share no image. Average runs of the same images.")
    parts = []
    for table in tables:
        if set(class_columns(table)) != set(classes):
            raise DataError(
                f"Runs with different classes cannot be averaged: {quoted_list(classes)} and "
                f"{quoted_list(class_columns(table))}. Average runs with the same classes."
            )
        rows = first.merge(table[["path", "label"]], on="path", suffixes=("", "_other"))
        check_same_images(rows[rows["path"].isin(paths)])
        rows = table.set_index("path").loc[paths].reset_index()
        parts.append((multilabel_probabilities if task == "multilabel" else probability_matrix)(rows, classes))
    by_class = [[t[name] for name in classes] if isinstance(t, Mapping) else t for t in thresholds]
    mean, mean_threshold = average_probabilities(parts, temperatures, task, by_class)
    columns = ["path", "label", "split", *(["group"] if "group" in first else [])]
    result = first.loc[paths.index, columns].reset_index(drop=True)
    cuts = average_cut_points(cut_points, len(classes))
    result = result.assign(predicted=predicted_labels(mean, classes, mean_threshold, cuts), confidence=0.0, loss=0.0)
    probabilities = pd.DataFrame(mean, columns=[f"p_{name}" for name in classes])
    return calibrate(pd.concat([result, probabilities], axis=1), 1.0, task)  # fills in confidence and loss
