"""Paired test of any metric: whether two prediction tables of the same images differ in it by more than noise."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from baseline.evaluation.bootstrap import bootstrap_sums, percentile_interval
from baseline.evaluation.intervals import SIGNIFICANCE_LEVEL
from baseline.evaluation.significance import include_zero
from baseline.evaluation.table import check_same_images, class_columns, group_codes, table_predictions
from baseline.metrics.predictions import Ranks

if TYPE_CHECKING:
    from baseline.metrics.predictions import Sums
    from baseline.metrics.registry import Metric

__all__ = ["measure_metric", "metric_test"]


def measure_metric(table: pd.DataFrame, metric: Metric, task: str) -> Sums | Ranks:
    """Return the metric of a prediction table of one split, with what its interval is computed from."""
    return metric.measure(table_predictions(table, class_columns(table), task))


def metric_test(one: pd.DataFrame, other: pd.DataFrame, metric: Metric, task: str) -> dict[str, Any]:
    """Test whether two prediction tables of one split differ in a metric on the images they share, matched by `path`.

    Returns:
        `images`, `difference` (the metric of other minus one), `interval` (its 95% confidence interval: paired
        bootstrap of images, or groups; for metrics of ranks normal, by the images' influence), `p` of the same
        distribution, and `beyond_noise`. Empty if the metric is undefined for one of them.

    Raises:
        DataError: if an image has different labels in the tables.
    """
    check_same_images(one[["path", "label"]].merge(other[["path", "label"]], on="path", suffixes=("", "_other")))
    paths = set(one["path"]) & set(other["path"])
    first, second = (table[table["path"].isin(paths)].sort_values("path") for table in (one, other))
    groups = group_codes(first)
    pair = [measure_metric(table, metric, task) for table in (first, second)]
    if any(np.isnan(measured.value) for measured in pair):
        return {}
    interval, p = difference_of_ranks(pair, groups) if isinstance(pair[0], Ranks) else difference_of_sums(pair, groups)
    beyond_noise = p < SIGNIFICANCE_LEVEL and not interval[0] <= 0 <= interval[1]
    return {
        "images": len(first),
        "difference": pair[1].value - pair[0].value,
        "interval": interval if beyond_noise else include_zero(interval),
        "p": p,
        "beyond_noise": beyond_noise,
    }


def difference_of_sums(pair: Any, groups: np.ndarray | None) -> tuple[tuple[float, float], float]:
    """Return the paired bootstrap interval of the difference of two functions of sums, and its two-sided p."""
    from scipy.sparse import csr_array, hstack

    one, other = pair
    draws = bootstrap_sums(hstack([csr_array(one.features), csr_array(other.features)], format="csr"), groups)
    width = one.features.shape[1]
    changes = other.ratio(draws[:, width:]) - one.ratio(draws[:, :width])
    changes = changes[~np.isnan(changes)]
    tail = min((changes <= 0).sum(), (changes >= 0).sum())
    return percentile_interval(changes), float(min(1.0, 2 * (tail + 1) / (len(changes) + 1)))


def difference_of_ranks(pair: Any, groups: np.ndarray | None) -> tuple[tuple[float, float], float]:
    """Return the normal interval of the difference of two metrics of ranks, and its two-sided p."""
    from scipy.stats import norm

    one, other = pair
    influence = other.influence() - one.influence()
    sums = influence if groups is None else np.bincount(groups, weights=influence)
    deviation = max(float(np.sqrt((sums**2).sum())) / len(influence), 1e-12)
    difference, reach = other.value - one.value, norm.ppf(1 - SIGNIFICANCE_LEVEL / 2) * deviation
    return (max(difference - reach, -1.0), min(difference + reach, 1.0)), float(
        2 * norm.sf(abs(difference) / deviation)
    )
