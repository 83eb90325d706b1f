"""TODO."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from baseline.errors import DataError, quoted_list
from baseline.evaluation.table import check_columns, class_codes, class_columns, probability_matrix

__all__ = ["find_label_issues", "suspect_labels"]

OUTLIER_FENCE = 1.5
"""Interquartile ranges above the upper quartile, from which distance on an image is unlike all others (Tukey's)."""


def find_label_issues(
    rows: pd.DataFrame,
    probabilities: pd.DataFrame,
    outlier: np.ndarray | None = None,
    conflicts: dict[str, str] | None = None,
) -> pd.DataFrame:
    """What is wrong with each image, ranked; columns as `Cleaning.issues` has them, and cleanlab's names for them.

    Suspected labels and copies with different labels come first, then images unlike all others, then the rest, each
    with the worst label quality first.

    Args:
        rows: an image table of one label an image.
        probabilities: out-of-fold, in the order of `rows`; see `predict_out_of_fold`.
        outlier: of `outlier_scores`, in the order of `rows`; without them no image is called unlike all others.
        conflicts: by path, a copy that has another label.

    Raises:
        DataError: if cleanlab is missing, or the probabilities are not those of these images and classes.
    """
    filters, ranks = import_cleanlab()
    classes = [name.removeprefix("p_") for name in map(str, probabilities)]
    values = probability_matrix(probabilities, classes)
    given = pd.Index(classes).get_indexer(pd.Index(rows["label"]))
    if (given < 0).any():
        raise DataError(
            f"No column p_CLASS for {quoted_list(sorted({*rows['label']} - {*classes}))}. Give all classes."
        )
    best, each = values.argmax(1), np.arange(len(rows))
    outlier = np.ones(len(rows)) if outlier is None else outlier
    distance = -np.log(np.maximum(outlier, 1e-300))
    lower, upper = np.quantile(distance, [0.25, 0.75])
    found = pd.DataFrame(
        {
            "path": rows["path"].to_numpy(),
            "split": rows["split"].to_numpy(),
            "given_label": rows["label"].to_numpy(),
            "predicted_label": np.array(classes, dtype=object)[best],
            "confidence": values[each, best].round(4),
            "label_quality": ranks.get_label_quality_scores(given, values, method="self_confidence").round(6),
            "is_label_issue": filters.find_label_issues(given, values, n_jobs=1),
            "outlier_score": outlier.round(4),
            "is_outlier_issue": distance > upper + OUTLIER_FENCE * (upper - lower),
            "conflict": [(conflicts or {}).get(path, "") for path in rows["path"]],
        }
    )
    first = found["is_label_issue"] | (found["conflict"] != "")
    tier = np.where(first, 0, np.where(found["is_outlier_issue"], 1, 2))
    return (
        found.assign(tier=tier).sort_values(["tier", "label_quality"], kind="stable").drop(columns="tier")
    ).reset_index(drop=True)


def import_cleanlab() -> tuple[Any, Any]:
    """cleanlab's modules `filter` and `rank`."""
    try:
        from cleanlab import filter as filters
        from cleanlab import rank
    except ImportError:
        raise DataError("Cleaning needs the package cleanlab: pip install 'fastai-baseline[clean]'.") from None
    return filters, rank


def suspect_labels(table: pd.DataFrame) -> pd.DataFrame:
    """Images whose label is probably wrong, the surest first, by confident learning (Northcutt et al. 2021, JAIR 70).

    An image is suspected where another class is at least as probable as that class is on average for the images that
    carry it, and more so than its own by the same measure. The probabilities have to be of images that the network
    was not trained on, as those of valid and test are. It finds hard images, too: look before you change a label.

    Args:
        table: a prediction table of one label an image; see `baseline.predict`.

    Returns:
        Its rows of suspected images: the columns but for probabilities, `suggested` (class), `suggested_probability`
        and `label_probability` (cleanlab's self-confidence).

    >>> rows = {"label": list("aaabbb"), "p_a": [0.9, 0.8, 0.1, 0.2, 0.1, 0.1]}
    >>> table = pd.DataFrame(rows).assign(p_b=lambda rows: 1 - rows["p_a"])
    >>> suspect_labels(table)[["label", "suggested", "label_probability"]].to_dict("index")
    {2: {'label': 'a', 'suggested': 'b', 'label_probability': 0.1}}
    """
    check_columns(table, ("label",))
    classes = class_columns(table)
    probabilities, truth = probability_matrix(table, classes), class_codes(table, "label", classes)
    images = np.bincount(truth, minlength=len(classes))
    each = np.arange(len(truth))
    own = probabilities[each, truth]
    usual = np.bincount(truth, weights=own, minlength=len(classes)) / np.maximum(images, 1)
    sure = np.where((probabilities >= usual) & (images > 0), probabilities, 0)
    suggested = sure.argmax(1)
    suspected = (sure.max(1) > 0) & (suggested != truth)
    found = table.drop(columns=[f"p_{name}" for name in classes]).assign(
        suggested=np.array(classes, dtype=object)[suggested],
        suggested_probability=probabilities[each, suggested],
        label_probability=own,
    )
    return found[suspected].sort_values("label_probability", kind="stable")
