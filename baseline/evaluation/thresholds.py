"""Decision thresholds per class, where an image may have several labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from baseline.data.labels import label_matrix
from baseline.metrics.registry import find_metric

if TYPE_CHECKING:
    from fastai.learner import Learner

    from baseline.progress import Progress

__all__ = ["MIN_EXAMPLES", "choose_thresholds", "decide", "describe_thresholds"]


MIN_EXAMPLES = 10
"""Number of images with and without a label from which its threshold is chosen: from fewer, it would be chance."""


def decide(
    learn: Learner,
    outputs: Sequence[tuple[pd.DataFrame, np.ndarray, np.ndarray]],
    classes: Sequence[str],
    thresholds: str,
    metric: str,
    progress: Progress,
) -> Any:
    """Return the threshold of a Learner's loss function, or, if it is 0.5, those chosen on the valid images.

    Args:
        outputs: rows of a split, and their probabilities without and with TTA; where there are valid images, they come
            first.
        thresholds: `"auto"` to choose them, which also gives them to the loss function; `"one"` otherwise.
        metric: the recipe's `metric`, which says by what they are chosen; see `choose_thresholds`.
    """
    threshold = getattr(learn.loss_func, "thresh", 0.5)
    rows, _, probabilities = outputs[0]
    if (
        thresholds != "auto"
        or isinstance(threshold, torch.Tensor)
        or threshold != 0.5
        or rows["split"].iloc[0] != "valid"
    ):
        return threshold
    chosen = choose_thresholds(probabilities, label_matrix(rows["label"], classes), metric)
    progress.log(describe_thresholds(chosen, classes, metric))
    learn.loss_func.thresh = torch.tensor(chosen)
    return chosen


def choose_thresholds(
    probabilities: np.ndarray, truth: np.ndarray, metric: str = "auto", default: float = 0.5
) -> list[float]:
    """Return for each class the best threshold, halfway between the probabilities of two images.

    It is best by balanced accuracy or by accuracy if that is the metric, and otherwise by F1. Among equally good
    thresholds the one closest to the default is taken. Classes with fewer than `MIN_EXAMPLES` images with the label, or
    without it, get the default.

    Args:
        probabilities: uncalibrated, images x classes.
        truth: whether the image has the label, images x classes.

    >>> with_label, without = [0.3 + 0.01 * n for n in range(10)], [0.02 * n for n in range(10)]
    >>> choose_thresholds(np.array([[p] for p in with_label + without]), np.array([[True]] * 10 + [[False]] * 10))
    [0.24]
    """
    return [choose_threshold(*columns, metric, default) for columns in zip(probabilities.T, truth.T, strict=True)]


def choose_threshold(probabilities: np.ndarray, truth: np.ndarray, metric: str, default: float) -> float:
    """Return the best threshold for one class."""
    if min(truth.sum(), (~truth).sum()) < MIN_EXAMPLES:
        return default
    order = np.argsort(-probabilities, kind="stable")
    values = np.concatenate([[1.0], probabilities[order], [0.0]])
    hits = np.append(0, np.cumsum(truth[order]))
    labels, false_alarms = hits[-1], np.arange(len(order) + 1) - hits
    scores = {
        "balanced_accuracy": hits / labels - false_alarms / (len(order) - labels),
        "accuracy": (hits - false_alarms) / len(order),
    }.get(metric, 2 * hits / (hits + false_alarms + labels))
    between = (values[:-1] + values[1:]) / 2
    scores[values[:-1] == values[1:]] = -np.inf  # no threshold divides equal probabilities
    best = between[scores >= scores.max() - 1e-12]
    return float(np.clip(best[np.abs(best - default).argmin()], 0.001, 0.999).round(6))


def describe_thresholds(
    thresholds: Sequence[float], classes: Sequence[str], metric: str = "auto", default: float = 0.5, limit: int = 8
) -> str:
    """Return one line that says which thresholds were chosen.

    >>> describe_thresholds([0.31, 0.5], ["car", "dog"])
    'thresholds: chosen on valid by F1: car 0.31; 0.5 for 1 class with too few images'
    """
    chosen = [f"{name} {value:.2f}" for name, value in zip(classes, thresholds, strict=True) if value != default]
    if not chosen:
        return f"thresholds: {default:g} for all classes"
    same = len(classes) - len(chosen)
    few = f"; {default:g} for {same} {'class' if same == 1 else 'classes'} with too few images" if same else ""
    more = f" and {len(chosen) - limit} more" if len(chosen) > limit else ""
    by = find_metric(metric).title if metric in ("balanced_accuracy", "accuracy") else "F1"
    return f"thresholds: chosen on valid by {by}: {', '.join(chosen[:limit])}{more}{few}"
