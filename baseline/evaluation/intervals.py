"""95% confidence intervals of proportions by Wilson's score method."""

from __future__ import annotations

__all__ = ["wilson_interval"]


SIGNIFICANCE_LEVEL = 0.05
"""Significance level of tests; intervals cover 1 minus this."""


def wilson_interval(hits: int, images: int) -> tuple[float, float]:
    """Return the 95% confidence interval of a proportion by Wilson's score method (1927).

    It holds its level for small counts and for proportions near 0 and 1.

    >>> [round(end, 3) for end in wilson_interval(0, 20)]
    [0.0, 0.161]
    """
    from scipy.stats import binomtest

    interval = binomtest(hits, images).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)
