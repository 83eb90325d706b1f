"""Fit a power law to the error by the number of training images, and extrapolate it with bootstrap intervals."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from baseline.experiments.curve_errors import ErrorRates, Errors

__all__ = ["PowerLaw", "fit_power_law"]

SAMPLE_COUNT = 500
"""Number of bootstrap samples behind an extrapolation."""

EXPONENT_GRID = np.linspace(0.05, 1.5, 59)
"""Exponents that the fit tries."""

FLOOR_GRID = np.linspace(0.0, 0.98, 50)
"""Floors that the fit tries, as fractions of the lowest error: the part that no number of images removes."""

MAX_MISFIT = 0.03
"""Fraction of an error by which the power law is assumed to be wrong, whatever the number of images."""


@dataclass(frozen=True)
class PowerLaw:
    """Error = floor + scale x images ** -exponent, fitted to the errors and to `SAMPLE_COUNT` bootstrap samples."""

    floor: np.ndarray
    scale: np.ndarray
    exponent: np.ndarray
    """Each has 1 + `SAMPLE_COUNT` values, the first fitted to the measured errors themselves."""
    noise: float
    """Standard deviation of one training's error around the law."""

    def error(self, images: float) -> np.ndarray:
        """Return the expected error with this many images, one value per fit (1 + `SAMPLE_COUNT`)."""
        return self.floor + self.scale * images**-self.exponent

    def prediction_interval(self, images: float, trainings: int = 1) -> tuple[float, float]:
        """Return the 95% confidence interval of the mean error of new trainings on the same test images."""
        samples = self.error(images)[1:]
        noise = np.random.default_rng(1).normal(0, self.noise / math.sqrt(trainings), len(samples))
        return _interval(samples + noise)

    def gain(self, images: float, more: float) -> tuple[float, float]:
        """Return the 95% confidence interval of the decrease in expected error from `images` to `more` images."""
        return _interval((self.error(images) - self.error(more))[1:])


def fit_power_law(images: np.ndarray, results: np.ndarray | Errors, *, same_test: bool = False) -> PowerLaw:
    """Fit the power law of the error, and fit it again to bootstrap samples for its uncertainty.

    A sample draws test images, and trainings of each number of images, with replacement. All trainings share the drawn
    test images, because their sampling error is shared.

    Args:
        images: number of training images of each training, N.
        results: which test images each training predicts correctly, N x test images, bool; or errors by a metric.
        same_test: the extrapolation will be measured on the same test images, so they are not drawn.

    >>> rng = np.random.default_rng(0)
    >>> images = np.repeat([50, 100, 200, 400, 800], 3)
    >>> hits = rng.random((15, 2000)) > (0.05 + 2 * images**-0.5)[:, None]
    >>> low, high = fit_power_law(images, hits).prediction_interval(1600)
    >>> low < 0.05 + 2 * 1600**-0.5 < high
    True
    """
    errors = ErrorRates(results) if isinstance(results, np.ndarray) else results
    rng = np.random.default_rng(0)
    sizes = np.unique(images)
    rows_by_size = [np.flatnonzero(images == size) for size in sizes]
    mean_errors = np.empty((1 + SAMPLE_COUNT, len(sizes)))
    every = np.ones(errors.images)
    measured = errors.weighted(every)
    for sample in range(1 + SAMPLE_COUNT):
        weights = every
        if sample and not same_test:
            weights = rng.multinomial(errors.images, every / errors.images).astype(float)
        sampled = measured if weights is every else errors.weighted(weights)
        sampled_rows = [rows if not sample else rng.choice(rows, len(rows)) for rows in rows_by_size]
        mean_errors[sample] = [sampled[rows].mean() for rows in sampled_rows]
    spread = np.array([measured[rows].std(ddof=1) if len(rows) > 1 else np.nan for rows in rows_by_size])
    noise = float(np.sqrt(np.nanmean(spread**2))) if np.isfinite(spread).any() else 0.0
    counts = np.array([len(rows) for rows in rows_by_size])
    sampling_variance = errors.sampling_variance(rows_by_size, mean_errors[0])
    variance = noise**2 / counts + sampling_variance + (MAX_MISFIT * mean_errors[0]) ** 2 + 1e-9
    if not np.isfinite(spread).any():
        noise = float(np.sqrt(sampling_variance[-1]))
    # the samples include the law's own misfit
    mean_errors[1:] *= 1 + rng.normal(0, MAX_MISFIT, mean_errors[1:].shape)
    floor, scale, exponent = _least_squares(sizes, mean_errors, 1 / variance)
    return PowerLaw(floor, scale, exponent, noise)


def _least_squares(sizes: np.ndarray, errors: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return floor, scale and exponent of each row of errors (samples x sizes), by weighted least squares on a grid."""
    floors = FLOOR_GRID * errors.min(1)[:, None]  # samples x floors, as all arrays below
    squares = (errors**2 @ weights)[:, None] - 2 * floors * (errors @ weights)[:, None] + floors**2 * weights.sum()
    min_loss = np.full(len(errors), np.inf)
    parameters = np.zeros((3, len(errors)))
    for exponent in EXPONENT_GRID:
        shape = sizes.astype(float) ** -exponent
        products = (errors @ (shape * weights))[:, None] - floors * (shape * weights).sum()
        scales = np.maximum(products / (shape**2 * weights).sum(), 0)
        losses = squares - 2 * scales * products + scales**2 * (shape**2 * weights).sum()
        best = losses.argmin(1)[:, None]
        loss, floor, scale = (np.take_along_axis(values, best, 1)[:, 0] for values in (losses, floors, scales))
        better = loss < min_loss
        min_loss[better] = loss[better]
        parameters[:, better] = np.stack([floor, scale, np.full(len(floor), exponent)])[:, better]
    return tuple(parameters)


def _interval(values: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)
