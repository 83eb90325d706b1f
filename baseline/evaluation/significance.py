"""Paired tests: whether two prediction tables of the same images differ by more than noise."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from baseline.errors import DataError
from baseline.evaluation.intervals import SIGNIFICANCE_LEVEL, paired_interval
from baseline.evaluation.table import check_columns, check_same_images, correct_rows, group_codes

__all__ = ["holm_correction", "paired_test"]


def paired_test(one: pd.DataFrame, other: pd.DataFrame) -> dict[str, Any]:
    """Test whether two prediction tables differ by more than noise on the images they share, matched by `path`.

    The images are those of test, or of valid where the tables share none of test. The test is McNemar's, which looks
    only at images that exactly one of the two gets right. Its mid-p value (Fagerland, Lydersen and Laake 2013)
    decides; the exact one is reported, too. Where the table has groups, their bootstrap interval decides instead,
    because McNemar's test assumes independent images.

    Returns:
        `split`, `images`, `only_one` and `only_other` (number of images that only this table gets right), `difference`
        (accuracy of other minus one, -1 to 1), `interval` (its 95% confidence interval, paired bootstrap), `p` (mid-p),
        `p_exact`, and `beyond_noise`.

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
    """
    tested = sorted((result for result in results if result), key=lambda result: result["p"])
    p = 0.0
    for rank, result in enumerate(tested):
        p = result["p"] = max(p, min(1.0, result["p"] * (len(tested) - rank)))
        result["beyond_noise"] &= len(tested) == 1 or p < SIGNIFICANCE_LEVEL
    return results


def paired_statistics(one: np.ndarray, other: np.ndarray, groups: np.ndarray | None) -> dict[str, Any]:
    """Run McNemar's test and the paired bootstrap on which of the same N images two models get right.

    See `paired_test` for what is returned.
    """
    from scipy.special import bdtr  # the binomial distribution, without loading scipy.stats

    only_one, only_other = int((one & ~other).sum()), int((other & ~one).sum())
    fewer, discordant = min(only_one, only_other), only_one + only_other
    at_most, less = (float(bdtr(count, discordant, 0.5)) if count >= 0 else 0.0 for count in (fewer, fewer - 1))
    exact, mid_p = min(1.0, 2 * at_most), min(1.0, at_most + less)
    low, high = paired_interval(other.astype(float) - one, groups)
    return {
        "images": len(one),
        "only_one": only_one,
        "only_other": only_other,
        "difference": (only_other - only_one) / len(one),
        "interval": (low, high),
        "p": mid_p,
        "p_exact": exact,
        "beyond_noise": mid_p < SIGNIFICANCE_LEVEL if groups is None else low > 0 or high < 0,
    }
