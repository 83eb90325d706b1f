"""Images of more than 8 bits per sample: 16-bit and 32-bit integers and floats, in gray or color, become 8 bits.

Where a file declares the range of its samples (12 bits in a TIFF file, the window of a DICOM file), black and white are
the ends of that range. Elsewhere they are the range that all images of a run share, which `shared_range` finds: a range
of each image's own would make every image equally bright.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from PIL import Image

__all__ = ["SampleImage", "ValueRange", "kind_of_values", "measure_values", "shared_range", "to_8_bits"]


ValueRange = Sequence[float] | Literal["image"]
"""The values of black and white; empty: not known; `"image"`: each image's own, which is fit for display only."""


MAX_SAMPLES = 2**16
"""Number of samples of an image that its range is measured on."""


MAX_OUTSIDE = 0.5
"""Fraction of samples above the range from which on an image is refused."""


BLOCK_ROWS = 256
"""Number of rows that are converted at once, so that no copy of a whole image is made in another number format."""


class SampleImage(Image.Image):
    """An image with samples that Pillow has no mode for, or whose range has to be known to show it.

    It has the `size`, `mode` and `info` of an image, and no pixels of Pillow's: `to_8_bits` makes an ordinary image.

    Args:
        values: H x W, H x W x 3 or H x W x 4 (the last is opacity), integers or floats of up to 32 bits.
        declared: the values of black and white, if the file declares them.
        white_is_low: whether the lowest value is white.
        missing: a value that stands for no measurement.
    """

    def __init__(
        self,
        values: np.ndarray,
        declared: tuple[float, float] | None = None,
        *,
        white_is_low: bool = False,
        missing: float | None = None,
        info: dict[Any, Any] | None = None,
        format: str | None = None,
    ) -> None:
        super().__init__()
        if values.dtype.kind == "f" and values.dtype != np.float32:
            values = values.astype(np.float32)
        self.values, self.declared, self.white_is_low, self.missing = values, declared, white_is_low, missing
        self._size = (values.shape[1], values.shape[0])
        gray = "F" if values.dtype.kind == "f" else "I;16" if values.dtype == np.uint16 else "I"
        self._mode = gray if values.ndim == 2 else f"RGB;{8 * values.dtype.itemsize}"
        self.info, self.format = info or {}, format

    @property
    def colors(self) -> np.ndarray:
        """The samples without opacity."""
        return self.values[..., :3] if self.values.ndim == 3 else self.values


def kind_of_values(image: Image.Image) -> str:
    """Return `"integer"` or `"float"` for an image whose range is not declared, and an empty text for all others."""
    if not isinstance(image, SampleImage) or image.declared is not None:
        return ""
    return "float" if image.values.dtype.kind == "f" else "integer"


def measure_values(image: SampleImage) -> tuple[float, float]:
    """Return the 0.1th and 99.9th percentile of an image's samples, on up to 65,536 of them.

    Infinite values and NaN do not count, nor does a marker for missing values, such as -9999: an extreme value that is
    farther from all others than these are from each other. Both are 0 if no value is left.
    """
    step = max(1, int(np.ceil(np.sqrt(image.colors.size / MAX_SAMPLES))))
    values = image.colors[::step, ::step].reshape(-1).astype(np.float64)
    values = values[np.isfinite(values)]
    values = values[values != image.missing] if image.missing is not None else values
    if not len(values):
        return 0.0, 0.0
    unique = np.unique(values)
    for _ in range(2):
        unique = _drop_isolated(_drop_isolated(unique)[::-1])[::-1]
    values = values[(values >= unique[0]) & (values <= unique[-1])]
    low, high = np.percentile(values, 0.1, method="lower"), np.percentile(values, 99.9, method="higher")
    return float(low), float(high)


def _drop_isolated(values: np.ndarray) -> np.ndarray:
    """Drop the first of the sorted values if it is farther from the second than all others are from each other."""
    isolated = len(values) > 2 and abs(values[1] - values[0]) > abs(values[-1] - values[1])
    return values[1:] if isolated else values


def shared_range(low: np.ndarray, high: np.ndarray, kind: str) -> tuple[float, float]:
    """Return the values of black and white that all images of a run share.

    Integers that are not negative get the smallest number of bits that holds them: 8, 10, 12, 14 or 16. Floats get 0 to
    1, or such a number of bits, where they use a quarter of it. For all others it is the range of the percentiles. In
    either case one image in a hundred may exceed the range.

    Args:
        low, high: from `measure_values`, one each per image.
        kind: from `kind_of_values`.

    >>> shared_range(np.array([0.0, 3.0]), np.array([3900.0, 1200.0]), "integer")
    (0.0, 4095.0)
    >>> shared_range(np.array([-1000.0]), np.array([2400.0]), "integer")
    (-1000.0, 2400.0)
    """
    first, last = float(np.percentile(low, 1, method="lower")), float(np.percentile(high, 99, method="higher"))
    tops = (255, 1023, 4095, 16383, 65535) if kind == "integer" else (1, 255, 1023, 4095, 16383, 65535)
    top = next((top for top in tops if last <= top), 0)
    if first >= 0 and top and (kind == "integer" or last > top / 4):
        return 0.0, float(top)
    return first, max(last, first + 1e-6)


def to_8_bits(image: SampleImage, value_range: ValueRange) -> Image.Image:
    """Return an image of 8 bits per sample, in gray, RGB or RGBA. Values outside the range become black or white.

    Raises:
        ValueError: if the range is not known, or most values are above it.
    """
    low, high = image.declared or _range_of(image, value_range)
    missing = image.missing if image.missing is not None else np.nan
    if image.declared is None and value_range != "image" and value_range:
        _check_not_white(image, high)
    scale = _lookup(low, high) if image.values.dtype == np.uint16 else _linear(low, high, missing)
    colors = np.empty(image.colors.shape, np.uint8)
    for start in range(0, len(colors), BLOCK_ROWS):
        colors[start : start + BLOCK_ROWS] = scale(image.colors[start : start + BLOCK_ROWS])
    if image.white_is_low:
        np.subtract(255, colors, out=colors)
    if image.values.ndim == 3 and image.values.shape[2] == 4:
        is_integer = image.values.dtype.kind != "f"
        opacity = _linear(0.0, float(np.iinfo(image.values.dtype).max) if is_integer else 1.0)(image.values[..., 3:])
        colors = np.concatenate([colors, opacity], axis=2)
    result = Image.fromarray(colors)
    result.info = dict(image.info)
    return result


def _range_of(image: SampleImage, value_range: ValueRange) -> tuple[float, float]:
    """Return the values of black and white of an image that declares none."""
    if value_range == "image":
        low, high = measure_values(image)
        return low, max(high, low + 1e-6)
    if value_range:
        low, high = value_range
        return float(low), float(high)
    if image.values.dtype == np.uint16:
        return 0.0, 65535.0
    values = image.colors[np.isfinite(image.colors)]
    low, high = (values.min(), values.max()) if len(values) else (0, 0)
    is_float = image.values.dtype.kind == "f"
    if is_float and low >= 0 and high <= 1:
        return 0.0, 1.0
    if (is_float or image.format is None) and low >= 0 and high <= 255:  # what Pillow's own conversions make
        return 0.0, 255.0
    kind = "floats" if is_float else "integers"
    raise ValueError(f"{kind} from {low:g} to {high:g}, of no declared range")


def _check_not_white(image: SampleImage, high: float) -> None:
    """Raise ValueError if most values are above the range, as those of a 16-bit image are for a range of 12 bits."""
    blocks = np.array_split(image.colors, len(image.colors) // BLOCK_ROWS + 1)
    outside = sum(np.count_nonzero(block > high) for block in blocks)
    if outside > MAX_OUTSIDE * image.colors.size:
        share = outside / image.colors.size
        raise ValueError(f"{share:.0%} of its values are above {high:g}, where the range ends")


@lru_cache(maxsize=16)
def _lookup(low: float, high: float) -> Callable[[np.ndarray], np.ndarray]:
    """Return the function that scales 16-bit integers, by a table of all of their values."""
    table = _linear(low, high)(np.arange(65536, dtype=np.float64))
    return lambda values: table[values]


def _linear(low: float, high: float, missing: float = np.nan) -> Callable[[np.ndarray], np.ndarray]:
    """Return the function that scales values to 0-255, rounded; NaN and missing values become 0."""

    def scale(values: np.ndarray) -> np.ndarray:
        scaled = np.clip((values.astype(np.float64) - low) * (255 / (high - low)), 0, 255).round()
        return np.where(np.isnan(scaled) | (values == missing), 0, scaled).astype(np.uint8)

    return scale
