"""Paired tests: whether two prediction tables of the same images differ by more than noise."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from baseline.errors import DataError
from baseline.evaluation.bootstrap import paired_interval
from baseline.evaluation.intervals import SIGNIFICANCE_LEVEL
from baseline.evaluation.table import check_columns, check_same_images, correct_rows, group_codes

__all__ = ["holm_correction", "include_zero", "paired_statistics", "paired_test", "tango_interval"]

NORMAL_QUANTILE = 1.959963984540054
"""Quantile of the normal distribution that two-sided intervals of 95% reach to."""


def paired_test(one: pd.DataFrame, other: pd.DataFrame) -> dict[str, Any]:
    """Test whether two prediction tables differ by more than noise on the images they share, matched by `path`.

    The images are those of test, or of valid where the tables share none of test. The test is McNemar's, which looks
    only at images that exactly one of the two gets right. Its mid-p value (Fagerland, Lydersen and Laake 2013)
    decides; the exact one is reported, too. Where the table has groups, their bootstrap interval decides instead,
    because McNemar's test assumes independent images.

    Returns:
        `split`, `images`, `only_one` and `only_other` (number of images that only this table gets right), `difference`
        (accuracy of other minus one, -1 to 1), `interval` (its 95% confidence interval: Tango's, with groups a
        bootstrap), `p` (mid-p), `p_exact`, and `beyond_noise`. The interval excludes 0 exactly if `beyond_noise`.

    Raises:
        DataError: if the tables share no image, or an image has different labels in them.

    >>> one = pd.DataFrame({"path": list("abcdef"), "split": "test", "label": list("xxxyyy"), "predicted": "x"})
    >>> result = paired_test(one, one.assign(predicted=one["label"]))
    >>> result["only_other"], result["difference"], result["p_exact"], result["p"], result["beyond_noise"]
    (3, 0.5, 0.25, 0.125, False)
    """
    required = ["path", "split", "label", "predicted"]
    for table in (one, other):
        check_columns(table, required)
    columns = [*required, *([] if "group" not in one else ["group"])]
    for split in ("test", "valid"):
        rows, other_rows = one.loc[one["split"] == split, columns], other.loc[other["split"] == split, required]
        both = rows.merge(other_rows, on="path", suffixes=("", "_other"))
        if len(both):
            break
    else:
        raise DataError("The two tables share no image in test or valid. Compare runs on the same images.")
    check_same_images(both)
    correct = (correct_rows(both, "predicted"), correct_rows(both, "predicted_other"))
    return {"split": split, **paired_statistics(*correct, group_codes(both))}


def holm_correction(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Apply the Holm correction (Holm 1979) to the results of `paired_test` for several pairs, in place.

    The more pairs are compared, the likelier one of them differs by chance: the smallest p is multiplied by the number
    of comparisons, the next by one less, and so on, and none may fall below the one before. Empty results are skipped.
    The interval of a difference that is not significant after the correction is extended to 0.
    """
    tested = sorted((result for result in results if result), key=lambda result: result["p"])
    p = 0.0
    for rank, result in enumerate(tested):
        p = result["p"] = max(p, min(1.0, result["p"] * (len(tested) - rank)))
        result["beyond_noise"] &= len(tested) == 1 or p < SIGNIFICANCE_LEVEL
        if not result["beyond_noise"]:
            result["interval"] = include_zero(result["interval"])
    return results


def include_zero(interval: tuple[float, float]) -> tuple[float, float]:
    """Return the interval, extended to 0 where it does not contain it.

    >>> include_zero((0.02, 0.3)), include_zero((-0.1, 0.3))
    ((0.0, 0.3), (-0.1, 0.3))
    """
    return min(interval[0], 0.0), max(interval[1], 0.0)


def tango_interval(only_one: int, only_other: int, images: int) -> tuple[float, float]:
    """Return the 95% confidence interval of the difference of two paired proportions, by the score method of Tango.

    T. Tango, "Equivalence test and confidence interval for the difference in proportions for the paired-sample design",
    Statistics in Medicine 17 (1998). It holds its level for few images and where one model is right wherever the other
    is (`benchmarks/paired_intervals.py`). It excludes 0 exactly if McNemar's asymptotic test is significant, whose p is
    never above the mid-p.

    Args:
        only_one, only_other: number of images that only one of the two gets right.
        images: number of all images.

    >>> [round(end, 3) for end in tango_interval(2, 9, 30)]
    [0.019, 0.434]
    >>> [round(end, 3) for end in tango_interval(0, 0, 30)]
    [-0.114, 0.114]
    """

    def score(difference: float) -> float:
        linear = (2 * images - only_other + only_one) * difference - only_one - only_other
        constant = -only_one * difference * (1 - difference)
        share = (math.sqrt(max(linear**2 - 8 * images * constant, 0)) - linear) / (4 * images)
        variance = images * (2 * share + difference * (1 - difference))
        return (only_other - only_one - images * difference) / math.sqrt(max(variance, 1e-300))

    observed, limit = (only_other - only_one) / images, 1 - 1e-9
    low, high = -1.0, 1.0
    if score(-limit) > NORMAL_QUANTILE:
        low = bisect(lambda value: score(value) - NORMAL_QUANTILE, -limit, min(observed, limit))
    if score(limit) < -NORMAL_QUANTILE:
        high = bisect(lambda value: score(value) + NORMAL_QUANTILE, max(observed, -limit), limit)
    return low, high


def bisect(function: Callable[[float], float], low: float, high: float) -> float:
    """Return where a decreasing function is 0, to 1e-15 of the distance of the ends.

    SciPy is not used here, nor in `binomial_tail`, as its import takes longer than comparing two runs.
    """
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if function(middle) > 0 else (low, middle)
    return (low + high) / 2


def binomial_tail(count: int, trials: int) -> float:
    """Return the probability of at most `count` heads in `trials` tosses of a fair coin.

    >>> binomial_tail(0, 3), binomial_tail(-1, 3), binomial_tail(0, 0)
    (0.125, 0.0, 1.0)
    """
    ways = total = math.comb(trials, count) if count >= 0 else 0
    for heads in range(count, 0, -1):
        ways = ways * heads // (trials - heads + 1)
        total += ways
        if ways << 80 < total:  # nothing that is left changes the result
            break
    return total / 2**trials


def paired_statistics(one: np.ndarray, other: np.ndarray, groups: np.ndarray | None) -> dict[str, Any]:
    """Run McNemar's test on which of the same N images two models get right, with the interval of the difference.

    See `paired_test` for what is returned.
    """
    only_one, only_other = int((one & ~other).sum()), int((other & ~one).sum())
    fewer, discordant = min(only_one, only_other), only_one + only_other
    at_most, less = binomial_tail(fewer, discordant), binomial_tail(fewer - 1, discordant)
    exact, mid_p = min(1.0, 2 * at_most), min(1.0, at_most + less)
    if groups is None:
        beyond_noise, interval = mid_p < SIGNIFICANCE_LEVEL, tango_interval(only_one, only_other, len(one))
        interval = interval if beyond_noise else include_zero(interval)
    else:
        low, high = interval = paired_interval(other.astype(float) - one, groups)
        beyond_noise = low > 0 or high < 0
    return {
        "images": len(one),
        "only_one": only_one,
        "only_other": only_other,
        "difference": (only_other - only_one) / len(one),
        "interval": interval,
        "p": mid_p,
        "p_exact": exact,
        "beyond_noise": beyond_noise,
    }
