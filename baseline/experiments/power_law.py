"""TODO."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

__all__ = ["PowerLaw", "fit_power_law"]

SAMPLE_COUNT = 500
"""Bootstrap samples behind an extrapolation."""

EXPONENT_GRID = np.linspace(0.05, 1.5, 59)

FLOOR_GRID = np.linspace(0.0, 0.98, 50)
"""Of the power law: exponents, and shares of the lowest error that no number of images removes."""

MAX_MISFIT = 0.03
"""So much of an error a power law is taken to be wrong by, whatever the number of images."""


@dataclass(frozen=True)
class PowerLaw:
    """Error = floor + scale x images ** -exponent, fitted, and fitted again to each of `SAMPLE_COUNT` bootstrap samples."""

    floor: np.ndarray
    scale: np.ndarray
    exponent: np.ndarray
    """Each of 1 + DRAWS values, of which the first is of the measured errors themselves."""
    noise: float
    """Standard deviation of one training's error about the law."""

    def error(self, images: float) -> np.ndarray:
        """The error expected with so many images, by sample: 1 + DRAWS."""
        return self.floor + self.scale * images**-self.exponent

    def measured(self, images: float, trainings: int = 1) -> tuple[float, float]:
        """The 95 % interval of an error that so many trainings on so many images would measure on the same test."""
        draws = self.error(images)[1:]
        noise = np.random.default_rng(1).normal(0, self.noise / math.sqrt(trainings), len(draws))
        return _interval(draws + noise)

    def gain(self, images: float, more: float) -> tuple[float, float]:
        """The 95 % interval of how much lower the expected error is with more images."""
        return _interval((self.error(images) - self.error(more))[1:])


def fit_power_law(images: np.ndarray, hits: np.ndarray, *, same_test: bool = False) -> PowerLaw:
    """The power law of the error, with samples of how else it might be.

    A sample draws test images, and trainings of each number of images, with replacement: test images are the same for
    all trainings, so that their luck is shared.

    Args:
        images: training images of each training, N.
        hits: which test images each training has right, N x test images, bool.
        same_test: what is foretold will be measured on these very test images, so that they are not drawn.

    >>> rng = np.random.default_rng(0)
    >>> images = np.repeat([50, 100, 200, 400, 800], 3)
    >>> hits = rng.random((15, 2000)) > (0.05 + 2 * images**-0.5)[:, None]
    >>> low, high = fit_power_law(images, hits).measured(1600)
    >>> low < 0.05 + 2 * 1600**-0.5 < high
    True
    """
    rng = np.random.default_rng(0)
    numbers = np.unique(images)
    rows = [np.flatnonzero(images == number) for number in numbers]
    errors = np.empty((1 + SAMPLE_COUNT, len(numbers)))
    for draw in range(1 + SAMPLE_COUNT):
        weights = np.ones(hits.shape[1])
        if draw and not same_test:
            weights = rng.multinomial(hits.shape[1], np.full(hits.shape[1], 1 / hits.shape[1])).astype(float)
        each = 1 - hits @ weights / weights.sum()
        picked = [row if not draw else rng.choice(row, len(row)) for row in rows]
        errors[draw] = [each[row].mean() for row in picked]
    spread = np.array([(1 - hits[row].mean(1)).std(ddof=1) if len(row) > 1 else np.nan for row in rows])
    noise = float(np.sqrt(np.nanmean(spread**2))) if np.isfinite(spread).any() else 0.0
    counts = np.array([len(row) for row in rows])
    sampling = errors[0] * (1 - errors[0]) / hits.shape[1]
    doubt = noise**2 / counts + sampling + (MAX_MISFIT * errors[0]) ** 2 + 1e-9
    if not np.isfinite(spread).any():
        noise = float(np.sqrt(sampling[-1]))
    # what the law is wrong by is drawn, too
    errors[1:] *= 1 + rng.normal(0, MAX_MISFIT, errors[1:].shape)
    floor, scale, exponent = _least_squares(numbers, errors, 1 / doubt)
    return PowerLaw(floor, scale, exponent, noise)


def _least_squares(numbers: np.ndarray, errors: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, ...]:
    """Floor, scale and exponent of each row of errors, samples x numbers: the best of all of a grid."""
    lowest = errors.min(1)
    best = np.full(len(errors), np.inf)
    found = np.zeros((3, len(errors)))
    for exponent in EXPONENT_GRID:
        shape = numbers.astype(float) ** -exponent
        for share in FLOOR_GRID:
            floor = share * lowest
            above = errors - floor[:, None]
            scale = np.maximum((above * shape * weights).sum(1) / (shape**2 * weights).sum(), 0)
            loss = ((above - scale[:, None] * shape) ** 2 * weights).sum(1)
            better = loss < best
            best[better] = loss[better]
            found[:, better] = np.stack([floor, scale, np.full(len(floor), exponent)])[:, better]
    return tuple(found)


def _interval(values: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)
