"""Labels that are probably wrong, found by confident learning from out-of-sample probabilities. It reads no images."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from baseline.errors import DataError, quoted_list
from baseline.evaluation.table import check_columns, class_codes, class_columns, probability_matrix

__all__ = ["find_label_issues", "suspect_labels"]

OUTLIER_FENCE = 1.5
"""Interquartile ranges above the upper quartile beyond which an image is an outlier (Tukey's fence)."""


def find_label_issues(
    rows: pd.DataFrame,
    probabilities: pd.DataFrame,
    outlier: np.ndarray | None = None,
    conflicts: dict[str, str] | None = None,
) -> pd.DataFrame:
    """Return what is wrong with each image, ranked, with the columns of `LabelReview.issues` under cleanlab's names.

    Suspected labels and duplicates with different labels come first, then outliers, then all other images; within
    each, the lowest label quality comes first.

    Args:
        rows: image table with one label per image.
        probabilities: out-of-fold probabilities in the order of `rows`; see `predict_out_of_fold`.
        outlier: `outlier_scores` in the order of `rows`; without them no image is called an outlier.
        conflicts: by path, a duplicate that has a different label.

    Raises:
        DataError: if cleanlab is missing, or the probabilities do not belong to these images and classes.
    """
    filters, ranks = import_cleanlab()
    classes = [name.removeprefix("p_") for name in map(str, probabilities)]
    values = probability_matrix(probabilities, classes)
    labels = pd.Index(classes).get_indexer(pd.Index(rows["label"]))
    if (labels < 0).any():
        missing = quoted_list(sorted({*rows["label"]} - {*classes}))
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
            "label_quality": ranks.get_label_quality_scores(labels, values, method="self_confidence").round(6),
            "is_label_issue": filters.find_label_issues(labels, values, n_jobs=1),
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


def import_cleanlab() -> tuple[Any, Any]:
    """Import cleanlab's modules `filter` and `rank`, or raise a DataError that says how to install it."""
    try:
        from cleanlab import filter as filters
        from cleanlab import rank
    except ImportError:
        raise DataError("Reviewing labels needs cleanlab: pip install 'fastai-baseline[clean]'.") from None
    return filters, rank


def suspect_labels(table: pd.DataFrame) -> pd.DataFrame:
    """Return the images whose label is probably wrong, worst first.

    This is confident learning (Northcutt et al. 2021, JAIR 70): consider only classes that are at least as probable
    for the image as they are on average for the images labeled with them; if the most probable of these is not the
    label, the image is suspected. The probabilities have to be those of images that the network was not trained on,
    such as valid and test. Hard images are found, too: look before you change a label.

    Args:
        table: prediction table with one label per image; see `baseline.predict`.

    Returns:
        The rows of suspected images: all columns but the probabilities, and `suggested` (class),
        `suggested_probability` and `label_probability` (cleanlab's self-confidence).

    >>> rows = {"label": list("aaabbb"), "p_a": [0.9, 0.8, 0.1, 0.2, 0.1, 0.1]}
    >>> table = pd.DataFrame(rows).assign(p_b=lambda rows: 1 - rows["p_a"])
    >>> suspect_labels(table)[["label", "suggested", "label_probability"]].to_dict("index")
    {2: {'label': 'a', 'suggested': 'b', 'label_probability': 0.1}}
    """
    check_columns(table, ("label",))
    classes = class_columns(table)
    probabilities, truth = probability_matrix(table, classes), class_codes(table, "label", classes)
    counts = np.bincount(truth, minlength=len(classes))
    rows = np.arange(len(truth))
    of_label = probabilities[rows, truth]
    thresholds = np.bincount(truth, weights=of_label, minlength=len(classes)) / np.maximum(counts, 1)
    confident = np.where((probabilities >= thresholds) & (counts > 0), probabilities, 0)
    suggested = confident.argmax(1)
    suspected = (confident.max(1) > 0) & (suggested != truth)
    result = table.drop(columns=[f"p_{name}" for name in classes]).assign(
        suggested=np.array(classes, dtype=object)[suggested],
        suggested_probability=probabilities[rows, suggested],
        label_probability=of_label,
    )
    return result[suspected].sort_values("label_probability", kind="stable")
