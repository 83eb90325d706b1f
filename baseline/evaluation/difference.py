"""Differences of a metric between two sets of images, which may share some, with 95% confidence intervals.

`significance` tests two models on the same images; this module is for one model, or two, on two sets of images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from baseline.evaluation.bootstrap import bootstrap_sums, paired_interval, percentile_interval
from baseline.evaluation.details.named_metric import NORMAL_QUANTILE
from baseline.evaluation.intervals import wilson_interval
from baseline.evaluation.table import class_columns, group_codes, table_predictions
from baseline.metrics.predictions import Sums
from baseline.metrics.registry import Metric

__all__ = ["Units", "difference_interval", "match_units", "newcombe_interval", "proportion_interval"]


@dataclass(frozen=True)
class Units:
    """Which images of two sets are the same, and what is drawn together: images, or whole groups."""

    one: np.ndarray
    """The number of the unit of each image of the first set, from 0."""
    other: np.ndarray
    """The same for the second set: images in both sets have the same number."""
    grouped: bool = False

    @property
    def count(self) -> int:
        """Number of units in either set."""
        return int(max(self.one.max(), self.other.max())) + 1

    @property
    def shared(self) -> int:
        """Number of units in both sets."""
        return len(np.intersect1d(self.one, self.other))


def match_units(one: pd.DataFrame, other: pd.DataFrame, same: np.ndarray) -> Units:
    """Return the units of two prediction tables.

    Units are groups where both tables have a column `group`, and images elsewhere.

    Args:
        same: for each row of `other` the row of `one` with the same image, -1 where there is none.
    """
    if group_codes(one) is not None and group_codes(other) is not None:
        names = [group_names(table) for table in (one, other)]
        names[1] = np.where((same >= 0) & ~has_group(other), names[0][same], names[1])
        codes, _ = pd.factorize(np.concatenate(names))
        return Units(codes[: len(one)], codes[len(one) :], grouped=True)
    new = np.cumsum(same < 0) - 1 + len(one)
    return Units(np.arange(len(one)), np.where(same >= 0, same, new))


def has_group(table: pd.DataFrame) -> np.ndarray:
    """Return whether each image of a prediction table has a group."""
    return (table["group"].notna() & (table["group"].map(str) != "")).to_numpy(bool)


def group_names(table: pd.DataFrame) -> np.ndarray:
    """Return the name of each image's group; an image without one is a group of its own, named by its path."""
    known = has_group(table)
    return np.where(
        known, "g" + table["group"].map(str).to_numpy(object), "p" + table["path"].map(str).to_numpy(object)
    )


def newcombe_interval(one: tuple[int, int], other: tuple[int, int], correlation: float = 0.0) -> tuple[float, float]:
    """Return the 95% confidence interval of the difference of two proportions (Newcombe 1998, 17:873, method 10).

    Args:
        one, other: hits and images of each.
        correlation: of the two proportions, above 0 where the two sets share images.

    >>> [round(end, 4) for end in newcombe_interval((48, 80), (56, 70))]  # example (a) there
    [0.0524, 0.3339]
    """
    (p, (low, high)), (q, (other_low, other_high)) = (
        (hits / images, wilson_interval(hits, images)) for hits, images in (one, other)
    )

    def reach(of_one: float, of_other: float) -> float:
        return float(np.sqrt(max(of_one**2 - 2 * correlation * of_one * of_other + of_other**2, 0.0)))

    return (
        max(q - p - reach(high - p, q - other_low), -1.0),
        min(q - p + reach(p - low, other_high - q), 1.0),
    )


def shared_correlation(one: np.ndarray, other: np.ndarray, units: Units) -> float:
    """Return the correlation of two accuracies: that of correctness on shared images, times how much they overlap."""
    _, at, other_at = np.intersect1d(units.one, units.other, return_indices=True)
    if not len(at):
        return 0.0
    left, right = one[at].astype(float), other[other_at].astype(float)
    spread = left.std() * right.std()
    phi = (
        float(((left - left.mean()) * (right - right.mean())).mean() / spread)
        if spread
        else float((left == right).all())
    )
    return phi * len(at) / float(np.sqrt(len(one) * len(other)))


def difference_interval(
    tables: Sequence[pd.DataFrame], metric: Metric, task: str, units: Units
) -> tuple[float, tuple[float, float]] | None:
    """Return a metric of the second prediction table minus that of the first, and its 95% confidence interval.

    Proportions have Newcombe's interval, with the correlation that shared images cause; on the same images, a paired
    bootstrap. Other sums have the percentiles of a bootstrap of all images of both sets, in which a shared image is
    drawn for both, and metrics of ranks the normal interval by each image's influence on the difference.

    Returns:
        None where the metric is undefined for a table.

    >>> from baseline.metrics.registry import find_metric
    >>> one = pd.DataFrame({"label": list("aabb") * 25, "predicted": list("aaba") * 25, "path": range(100)})
    >>> one = one.assign(p_a=0.5, p_b=0.5)
    >>> other = one.assign(predicted=one["label"])
    >>> units = match_units(one, other, np.full(100, -1))
    >>> difference, (low, high) = difference_interval((one, other), find_metric("accuracy"), "single", units)
    >>> difference, round(low, 3), round(high, 3)
    (0.25, 0.167, 0.343)
    """
    pair = [metric.measure(table_predictions(table, class_columns(table), task)) for table in tables]
    if any(np.isnan(measured.value) for measured in pair):
        return None
    difference = pair[1].value - pair[0].value
    sums = [measured for measured in pair if isinstance(measured, Sums)]
    if not sums:
        return difference, _interval_of_ranks(pair, difference, units)
    if sums[0].proportion and not units.grouped:
        one, other = (measured.features[:, 0] for measured in sums)
        return difference, proportion_interval(one, other, units)
    return difference, _interval_of_sums(sums, units)


def proportion_interval(one: np.ndarray, other: np.ndarray, units: Units) -> tuple[float, float]:
    """Return the interval of the difference of two proportions, such as accuracies.

    Args:
        one, other: 1 for each image of which something is true, such as a correct prediction, and 0 for the others.
    """
    if units.shared == len(units.one) == len(units.other):
        change = other[np.argsort(units.other)].astype(float) - one[np.argsort(units.one)]
        return paired_interval(change, np.arange(len(change)))
    counts = [(int(hits.sum()), len(hits)) for hits in (one, other)]
    return newcombe_interval(counts[0], counts[1], shared_correlation(one, other, units))


def _interval_of_sums(pair: Sequence[Sums], units: Units) -> tuple[float, float]:
    from scipy.sparse import csr_array, hstack

    parts = []
    for measured, numbers in zip(pair, (units.one, units.other), strict=True):
        rows = np.arange(len(numbers))
        by_unit = csr_array((np.ones(len(numbers)), (numbers, rows)), shape=(units.count, len(numbers)))
        parts.append(by_unit @ csr_array(measured.features))
    draws, width = bootstrap_sums(hstack(parts, format="csr")), parts[0].shape[1]
    changes = pair[1].ratio(draws[:, width:]) - pair[0].ratio(draws[:, :width])
    return percentile_interval(changes[~np.isnan(changes)])


def _interval_of_ranks(pair: Sequence[Any], difference: float, units: Units) -> tuple[float, float]:
    influence = [
        np.bincount(numbers, weights=measured.influence(), minlength=units.count) / len(numbers)
        for measured, numbers in zip(pair, (units.one, units.other), strict=True)
    ]
    reach = NORMAL_QUANTILE * float(np.sqrt(((influence[1] - influence[0]) ** 2).sum()))
    return max(difference - reach, -1.0), min(difference + reach, 1.0)
