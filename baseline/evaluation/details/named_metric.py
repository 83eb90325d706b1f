"""The metric that a recipe names, with its 95% confidence interval."""

from __future__ import annotations

from typing import Any

import numpy as np

from baseline.evaluation.bootstrap import bootstrap_sums, percentile_interval
from baseline.evaluation.intervals import wilson_interval
from baseline.metrics.predictions import Predictions, Ranks, Sums
from baseline.metrics.registry import find_metric

__all__ = ["add_metric", "metric_interval"]


NORMAL_QUANTILE = 1.959964
"""Standard deviations that a 95% confidence interval reaches either way."""


def add_metric(numbers: dict[str, Any], name: str, predictions: Predictions, groups: np.ndarray | None) -> None:
    """Add a metric and its interval to the numbers of `evaluate`, or why it is undefined."""
    metric = find_metric(name, multilabel=predictions.multilabel)
    name = metric.name
    measured = metric.measure(predictions)
    undefined = np.isnan(measured.value)
    numbers[name] = None if undefined else measured.value
    numbers.setdefault("intervals", {})[name] = metric_interval(measured, groups)
    if undefined:
        reason = f"the labels and predictions of these {len(predictions.truth):,} images are too much alike"
        numbers.setdefault("undefined", {}).setdefault(name, reason)


def metric_interval(measured: Sums | Ranks, groups: np.ndarray | None = None) -> tuple[float, float] | None:
    """Return the 95% confidence interval of a metric, None where the metric is undefined.

    Proportions have Wilson's. Other sums have the percentiles of 1,000 bootstrap samples of the images, or of whole
    groups. Metrics of ranks have the normal interval of their log odds, with the variance of the images' (or groups')
    influence: for ROC AUC that is DeLong's (1988), for average precision the logit interval of Boyd, Eng and Page
    (2013). A score of 0 or 1 leaves nothing to draw from: its interval is Wilson's for as many images, or groups.
    """
    value = measured.value
    if np.isnan(value):
        return None
    interval = ranks_interval(measured, groups) if isinstance(measured, Ranks) else sums_interval(measured, groups)
    if interval is not None and interval[1] - interval[0] > 1e-12:
        return interval
    units = measured.images if groups is None else int(groups.max()) + 1
    return wilson_interval(round(value * units), units) if value in (0.0, 1.0) else (value, value)


def sums_interval(measured: Sums, groups: np.ndarray | None) -> tuple[float, float] | None:
    """Return the interval of a function of sums; None if it is undefined in every bootstrap sample."""
    if measured.proportion and groups is None:
        return wilson_interval(round(measured.value * measured.images), measured.images)
    draws = measured.ratio(bootstrap_sums(measured.features, groups))
    draws = draws[~np.isnan(draws)]
    return percentile_interval(draws) if len(draws) else None


def ranks_interval(measured: Ranks, groups: np.ndarray | None) -> tuple[float, float] | None:
    """Return the interval of a metric of ranks; None where its variance is 0."""
    influence, value = measured.influence(), measured.value
    sums = influence if groups is None else np.bincount(groups, weights=influence)
    deviation = float(np.sqrt((sums**2).sum())) / len(influence)
    if deviation < 1e-12 or not 0 < value < 1:
        return None
    odds, factor = value / (1 - value), np.exp(NORMAL_QUANTILE * deviation / (value * (1 - value)))
    return float(odds / (odds + factor)), float(odds / (odds + 1 / factor))
