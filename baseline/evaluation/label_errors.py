"""Labels that are probably wrong, found by confident learning from out-of-sample probabilities. It reads no images."""

from __future__ import annotations

import numpy as np
import pandas as pd

from baseline.data.labels import order_classes
from baseline.errors import DataError, quoted_list
from baseline.evaluation.table import check_columns, class_codes, class_columns, probability_matrix

__all__ = ["find_label_issues", "flag_labels", "suspect_labels"]

OUTLIER_FENCE = 1.5
"""Interquartile ranges above the upper quartile beyond which an image is an outlier (Tukey's fence)."""


def flag_labels(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return which labels are probably wrong: N flags.

    Confident learning (Northcutt et al. 2021, JAIR 70) says how many: for each image, consider only classes that are
    at least as probable as they are on average for the images labeled with them, and count the images for which the
    most probable of these is not the label. Flagged are as many images, those whose label has the lowest probability.
    An image whose most probable class is its label is not flagged. Apart from that, this is the rule
    `low_self_confidence` of the package cleanlab; `benchmarks/README.md` compares it with others.

    Args:
        probabilities: N x classes, of images that the network was not trained on.
        labels: N class indices.

    >>> flag_labels(np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.2, 0.8], [0.1, 0.9]]), np.array([0, 0, 0, 1, 1]))
    array([False, False,  True, False, False])
    """
    classes = probabilities.shape[1]
    counts = np.bincount(labels, minlength=classes)
    quality = probabilities[np.arange(len(labels)), labels]
    thresholds = np.bincount(labels, weights=quality, minlength=classes) / np.maximum(counts, 1)
    confident = np.where((probabilities >= thresholds - 1e-6) & (counts > 0), probabilities, 0)
    disagree = probabilities.argmax(1) != labels
    count = ((confident.max(1) > 0) & (confident.argmax(1) != labels) & disagree).sum()
    flags = np.zeros(len(labels), bool)
    flags[np.lexsort((quality, ~disagree))[:count]] = True
    return flags


def find_label_issues(
    rows: pd.DataFrame,
    probabilities: pd.DataFrame,
    outlier: np.ndarray | None = None,
    conflicts: dict[str, str] | None = None,
) -> pd.DataFrame:
    """Return what is wrong with each image, ranked: the columns of `LabelReview.issues`, with the names of cleanlab.

    Suspected labels and duplicates with different labels come first, then outliers, then all other images; within
    each, the lowest label quality comes first.

    Args:
        rows: image table with one label per image.
        probabilities: out-of-fold probabilities in the order of `rows`; see `predict_out_of_fold`.
        outlier: `outlier_scores` in the order of `rows`; without them no image is called an outlier.
        conflicts: by path, a duplicate that has a different label.

    Raises:
        DataError: if the probabilities do not belong to these images and classes.
    """
    classes = [name.removeprefix("p_") for name in map(str, probabilities)]
    values = probability_matrix(probabilities, classes)
    labels = pd.Index(classes).get_indexer(pd.Index(rows["label"]))
    if (labels < 0).any():
        missing = quoted_list(order_classes({*rows["label"]} - {*classes}))
        raise DataError(f"No column p_CLASS for {missing}. Pass the probabilities of every class.")
    predicted = values.argmax(1)
    outlier = np.ones(len(rows)) if outlier is None else outlier
    distance = -np.log(np.maximum(outlier, 1e-300))
    lower, upper = np.quantile(distance, [0.25, 0.75])
    issues = pd.DataFrame(
        {
            "path": rows["path"].to_numpy(),
            "split": rows["split"].to_numpy(),
            "given_label": rows["label"].to_numpy(),
            "predicted_label": np.array(classes, dtype=object)[predicted],
            "confidence": values[np.arange(len(rows)), predicted].round(4),
            "label_quality": values[np.arange(len(rows)), labels].round(6),
            "is_label_issue": flag_labels(values, labels),
            "outlier_score": outlier.round(4),
            "is_outlier_issue": distance > upper + OUTLIER_FENCE * (upper - lower),
            "conflict": [(conflicts or {}).get(path, "") for path in rows["path"]],
        }
    )
    suspect = issues["is_label_issue"] | (issues["conflict"] != "")
    tier = np.where(suspect, 0, np.where(issues["is_outlier_issue"], 1, 2))
    return (
        issues.assign(tier=tier).sort_values(["tier", "label_quality"], kind="stable").drop(columns="tier")
    ).reset_index(drop=True)


def suspect_labels(table: pd.DataFrame) -> pd.DataFrame:
    """Return the images whose label is probably wrong by `flag_labels`, worst first.

    The probabilities have to be those of images that the network was not trained on, such as valid and test. Hard
    images are found, too: look before you change a label.

    Args:
        table: prediction table with one label per image; see `baseline.predict`.

    Returns:
        The rows of suspected images: all columns but the probabilities, and `suggested` (class),
        `suggested_probability` and `label_probability`.

    >>> rows = {"label": list("aaabbb"), "p_a": [0.9, 0.8, 0.1, 0.2, 0.1, 0.1]}
    >>> table = pd.DataFrame(rows).assign(p_b=lambda rows: 1 - rows["p_a"])
    >>> suspect_labels(table)[["label", "suggested", "label_probability"]].to_dict("index")
    {2: {'label': 'a', 'suggested': 'b', 'label_probability': 0.1}}
    """
    check_columns(table, ("label",))
    classes = class_columns(table)
    probabilities, truth = probability_matrix(table, classes), class_codes(table, "label", classes)
    rows, suggested = np.arange(len(truth)), probabilities.argmax(1)
    result = table.drop(columns=[f"p_{name}" for name in classes]).assign(
        suggested=np.array(classes, dtype=object)[suggested],
        suggested_probability=probabilities[rows, suggested],
        label_probability=probabilities[rows, truth],
    )
    return result[flag_labels(probabilities, truth)].sort_values("label_probability", kind="stable")
