"""Types of the metrics that `evaluate` returns; at run time they are plain dictionaries, as in `manifest.json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from typing_extensions import TypedDict

__all__ = ["Interval", "Metrics", "PairedTest", "Scores", "SplitMetrics", "flatten_metrics"]

Interval = tuple[float, float]
"""The ends of a 95% confidence interval, low and high."""


class _RequiredScores(TypedDict):
    accuracy: float
    """Fraction of correct images, 0-1."""
    interval: Interval
    wrong: int
    """Number of wrong images."""
    loss: float
    """Mean log loss, in nats."""


class Scores(_RequiredScores, total=False):
    """Metrics of one split, either of the plain predictions or of those with test-time augmentation (TTA)."""

    error: float
    group_interval: Interval
    top_k: dict[str, Any]
    balanced_accuracy: float | None
    macro_f1: float | None
    micro_f1: float | None
    weighted_f1: float | None
    brier: float
    kappa: float | None
    roc_auc: float | None
    average_precision: float | None
    mean_average_precision: float | None
    ece: float
    """Expected calibration error, 0-1."""
    intervals: dict[str, Interval | None]
    reliability: list[dict[str, Any]]
    classes: dict[str, dict[str, Any]]
    confused: list[dict[str, Any]]
    undefined: dict[str, str]


class PairedTest(TypedDict):
    """The result of `paired_test`: how two sets of predictions differ on the same images."""

    images: int
    only_one: int
    only_other: int
    difference: float
    interval: Interval
    p: float
    p_exact: float
    beyond_noise: bool


class _RequiredSplitMetrics(TypedDict):
    images: int
    tta: Scores


class SplitMetrics(_RequiredSplitMetrics, total=False):
    """All metrics of one split."""

    groups: int
    majority: dict[str, Any]
    """The most frequent class of the split, and the accuracy of always predicting it."""
    plain: Scores
    tta_gain: PairedTest


Metrics = dict[str, SplitMetrics]
"""Metrics by split: `"valid"` and `"test"`."""


def flatten_metrics(metrics: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Flatten the result of `baseline.evaluate` to names such as `test/tta/accuracy`, with interval bounds beside them.

    >>> flatten_metrics({"test": {"images": 9, "tta": {"accuracy": 0.75, "interval": (0.3, 0.9), "loss": None}}})
    {'test/tta/accuracy': 0.75, 'test/tta/accuracy_low': 0.3, 'test/tta/accuracy_high': 0.9}
    """
    flat: dict[str, float] = {}
    for split, views in metrics.items():
        for view in ("plain", "tta"):
            numbers = views.get(view, {})
            intervals = {"accuracy": numbers.get("interval"), **numbers.get("intervals", {})}
            for name, value in numbers.items():
                if isinstance(value, int | float) and not isinstance(value, bool):
                    low, high = intervals.get(name) or (None, None)
                    values = {name: value, f"{name}_low": low, f"{name}_high": high}
                    flat |= {f"{split}/{view}/{key}": float(v) for key, v in values.items() if v is not None}
    return flat
