"""The choice whether a run uses test-time augmentation (TTA): unless it is worse on the valid images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from baseline.data.labels import Threshold
from baseline.evaluation.table import prediction_table, table_predictions
from baseline.metrics.registry import find_metric

if TYPE_CHECKING:
    from baseline.progress import Progress

__all__ = ["choose_tta", "reason_against_tta"]

SplitOutputs = tuple[pd.DataFrame, np.ndarray, np.ndarray]
"""Rows of a split, and their probabilities without and with TTA."""


def choose_tta(
    outputs: list[SplitOutputs], classes: Sequence[str], threshold: Threshold | None, metric: str, progress: Progress
) -> tuple[list[SplitOutputs], str]:
    """Return the outputs, without TTA if it is worse on the valid images, and why; without these, as they are."""
    valid = [output for output in outputs if output[0]["split"].iloc[0] == "valid"]
    reason = reason_against_tta(*valid[0], classes, threshold, metric) if valid else ""
    if reason:
        progress.log(f"tta: none ({reason})")
        outputs = [(rows, plain, plain) for rows, plain, _ in outputs]
    return outputs, reason


def reason_against_tta(
    rows: pd.DataFrame,
    plain: np.ndarray,
    mean: np.ndarray,
    classes: Sequence[str],
    threshold: Threshold | None = None,
    metric: str = "auto",
) -> str:
    """Return why not to use TTA; empty unless it is worse by the metric, or by the loss if that is equal.

    Decisions are those of the most probable class, or of the threshold, before any are fitted.

    Args:
        rows: valid rows of the image table.
        plain, mean, classes, threshold, metric: see `prediction_table`.

    >>> rows = pd.DataFrame({"path": ["1.jpg", "2.jpg"], "label": ["ant", "bee"], "split": "valid"})
    >>> plain, mean = np.array([[0.9, 0.1], [0.2, 0.8]]), np.array([[0.9, 0.1], [0.7, 0.3]])
    >>> reason_against_tta(rows, plain, mean, ["ant", "bee"])
    'accuracy on valid is 100.00% without TTA and 50.00% with it'
    >>> reason_against_tta(rows, mean, plain, ["ant", "bee"])
    ''
    """
    task = "single" if threshold is None else "multilabel"
    measured = find_metric(metric, multilabel=threshold is not None)
    table = prediction_table(rows, plain, mean, classes, threshold, metric=metric)
    prefixes = ("plain_", "")
    values = [measured.value(table_predictions(table, list(classes), task, prefix)) for prefix in prefixes]
    losses = [float(table[f"{prefix}loss"].mean()) for prefix in prefixes]
    scores = [measured.score(value) for value in values]
    if (scores[0], -losses[0]) <= (scores[1], -losses[1]):
        return ""
    if scores[0] != scores[1]:
        texts = [measured.text(value) for value in values]
        return f"{measured.title} on valid is {texts[0]} without TTA and {texts[1]} with it"
    return f"the loss on valid is {losses[0]:.4f} without TTA and {losses[1]:.4f} with it"
