"""Coverage of the interval of a paired difference, and whether it agrees with the test, at 12 to 1,000 images.

    python benchmarks/paired_intervals.py

Coverage is exact, by enumeration of all results, up to 100 images, and from 4,000 simulated results beyond. It is
computed for the interval that `paired_statistics` reports (Tango's, extended to 0 where McNemar's mid-p test is not
significant) and for the percentile bootstrap that it reported before.
"""

from __future__ import annotations

from collections import Counter
from functools import cache

import numpy as np
from scipy.stats import multinomial

from baseline.evaluation.bootstrap import percentile_interval
from baseline.evaluation.significance import paired_statistics

SIZES, EXACT_SIZE, DRAWS = (12, 30, 100, 1000), 100, 4000

CASES = ((0.01, 0.03), (0.0, 0.1), (0.05, 0.05), (0.02, 0.12), (0.1, 0.3))
"""Probability that only the one, and only the other, of two models is right."""


@cache
def reported_test(only_one: int, only_other: int, images: int) -> tuple[float, float, bool]:
    """Return the ends of the reported interval, and whether the test is significant."""
    one = np.arange(images) < only_one
    other = np.arange(images) >= images - only_other
    result = paired_statistics(one, other, None)
    return *result["interval"], result["beyond_noise"]


@cache
def bootstrap_of(only_one: int, only_other: int, images: int) -> tuple[float, float]:
    """Return the percentile interval of 1,000 bootstrap samples."""
    shares = np.array([only_one, only_other, images - only_one - only_other]) / images
    counts = np.random.default_rng(0).multinomial(images, shares, size=1000)
    return percentile_interval((counts[:, 1] - counts[:, 0]) / images)


def results(images: int, case: tuple[float, float]) -> dict[tuple[int, int], float]:
    """Return the probability of each result: how many images only the one, and only the other, gets right."""
    shares = (*case, 1 - sum(case))
    if images > EXACT_SIZE:
        draws = np.random.default_rng(1).multinomial(images, shares, size=DRAWS)
        return {key: count / DRAWS for key, count in Counter(map(tuple, draws[:, :2].tolist())).items()}
    pairs = [(one, other) for one in range(images + 1) for other in range(images + 1 - one)]
    counts = np.array([(one, other, images - one - other) for one, other in pairs])
    return dict(zip(pairs, multinomial.pmf(counts, images, shares), strict=True))


def coverage(images: int, case: tuple[float, float]) -> tuple[float, float, float, int]:
    """Return the coverage of both intervals, how often the test is significant, and disagreements with the test."""
    truth, probabilities = case[1] - case[0], results(images, case)
    covered = bootstrapped = significant = 0.0
    disagreements = 0
    for pair, probability in probabilities.items():
        if probability < 1e-9:
            continue
        low, high, beyond_noise = reported_test(*pair, images)
        start, end = bootstrap_of(*pair, images)
        covered += probability * (low <= truth <= high)
        bootstrapped += probability * (start <= truth <= end)
        significant += probability * beyond_noise
        disagreements += beyond_noise != (low > 0 or high < 0)
    return covered, bootstrapped, significant, disagreements


if __name__ == "__main__":
    print("images  only one  only other  Tango   bootstrap  significant  disagreements")
    for images in SIZES:
        for case in CASES:
            covered, bootstrapped, significant, disagreements = coverage(images, case)
            print(
                f"{images:6}  {case[0]:8.0%}  {case[1]:10.0%}  {covered:6.1%}  {bootstrapped:9.1%}  {significant:11.1%}"
                f"  {disagreements:13}",
                flush=True,
            )
