"""TODO."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from baseline.errors import DataError
from baseline.evaluation.intervals import CONFIDENCE_LEVEL, paired_interval
from baseline.evaluation.table import check_columns, check_same_images, correct_rows, group_codes

__all__ = ["holm_correction", "paired_test"]


def paired_test(one: pd.DataFrame, other: pd.DataFrame) -> dict[str, Any]:
    """Whether two prediction tables differ by more than noise on the images that both hold, by `path`.

    The images are those of test, or of valid where the two share none of test. The test is McNemar's, which looks only
    at images that one has right and the other wrong; its mid-p value (Fagerland, Lydersen and Laake 2013) is what
    decides, and the exact one is told. Where the table has groups their bootstrap interval decides instead, as
    McNemar's test takes images for independent.

    Returns:
        `split`, `images`, `only_one` and `only_other` (images that only this one has right), `difference` (accuracy of
        other minus one, -1 to 1), `interval` (its 95 % interval, paired bootstrap), `p` (mid-p), `p_exact`, and
        `beyond_noise`.

    Raises:
        DataError: if they share no image, or an image has another label in the other table.

    >>> one = pd.DataFrame({"path": list("abcdef"), "split": "test", "label": list("xxxyyy"), "predicted": "x"})
    >>> found = paired_test(one, one.assign(predicted=one["label"]))
    >>> found["only_other"], found["difference"], found["p_exact"], found["p"], found["beyond_noise"]
    (3, 0.5, 0.25, 0.125, False)
    """
    needed = ["path", "split", "label", "predicted"]
    for table in (one, other):
        check_columns(table, needed)
    columns = [*needed, *([] if "group" not in one else ["group"])]
    for split in ("test", "valid"):
        rows, others = one.loc[one["split"] == split, columns], other.loc[other["split"] == split, needed]
        both = rows.merge(others, on="path", suffixes=("", "_other"))
        if len(both):
            break
    else:
        raise DataError("The two tables share no image of test or valid. Compare runs on the same images.")
    check_same_images(both)
    right = (correct_rows(both, "predicted"), correct_rows(both, "predicted_other"))
    return {"split": split, **paired_statistics(*right, group_codes(both))}


def holm_correction(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What `paired_test` gave for several pairs, with p values held against one another (Holm 1979); changed in place.

    The more pairs are compared, the likelier one of them differs by chance: the smallest p is taken times the number of
    comparisons, the next times one less, and so on, none below the one before. Empty ones stay out.
    """
    tested = sorted((each for each in found if each), key=lambda each: each["p"])
    least = 0.0
    for rank, each in enumerate(tested):
        least = each["p"] = max(least, min(1.0, each["p"] * (len(tested) - rank)))
        each["beyond_noise"] &= len(tested) == 1 or least < CONFIDENCE_LEVEL
    return found


def paired_statistics(one: np.ndarray, other: np.ndarray, groups: np.ndarray | None) -> dict[str, Any]:
    """McNemar's test and the paired bootstrap of two columns of hits of the same N images; see `paired_test`."""
    from scipy.stats import binom

    only_one, only_other = int((one & ~other).sum()), int((other & ~one).sum())
    fewer, torn = min(only_one, only_other), only_one + only_other
    exact = min(1.0, float(2 * binom.cdf(fewer, torn, 0.5)))
    middle = min(1.0, float(2 * binom.cdf(fewer, torn, 0.5) - binom.pmf(fewer, torn, 0.5)))
    low, high = paired_interval(other.astype(float) - one, groups)
    return {
        "images": len(one),
        "only_one": only_one,
        "only_other": only_other,
        "difference": (only_other - only_one) / len(one),
        "interval": (low, high),
        "p": middle,
        "p_exact": exact,
        "beyond_noise": middle < CONFIDENCE_LEVEL if groups is None else low > 0 or high < 0,
    }
