"""Limits of the images that are decoded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image

from baseline.errors import MemoryShortageError

__all__ = ["MAX_SIDE", "TOO_LITTLE_MEMORY", "TooLarge", "check_memory", "check_size", "memory_checked"]


MAX_SIDE = 2**16
"""Maximum number of pixels of a side."""


DECODER_BYTES = 24
"""Bytes of memory per pixel that decoders need at most; JPEG 2000 needs the most."""


UNOPENED_PIXELS = 12_000_000
"""Pixels for which memory must be free where a file cannot be opened, so that its size is not known."""


TOO_LITTLE_MEMORY = (
    "There is too little memory to decode an image. Close other programs, or use a machine with more memory."
)


class TooLarge(Image.DecompressionBombError):
    """An image has more pixels, a longer side, or more scans than are decoded."""


def check_size(width: int, height: int) -> None:
    """Raise TooLarge for an image that is too large to be decoded; it has not been decoded yet."""
    max_pixels = 2 * (Image.MAX_IMAGE_PIXELS or 2**62)
    if width * height > max_pixels:
        raise TooLarge(f"{width:,} x {height:,} pixels, more than {max_pixels:,} in all")
    if max(width, height) > MAX_SIDE:
        raise TooLarge(f"{width:,} x {height:,} pixels, more than {MAX_SIDE:,} on a side")


def check_memory(pixels: int) -> None:
    """Raise MemoryShortageError if the memory that an image of so many pixels may need cannot be allocated."""
    try:
        np.empty(pixels * DECODER_BYTES, np.uint8)  # allocated, but neither written nor used
    except MemoryError:
        raise MemoryShortageError(TOO_LITTLE_MEMORY) from None


@contextmanager
def memory_checked(pixels: int = UNOPENED_PIXELS) -> Iterator[None]:
    """Context manager that checks the memory after an error: decoders that lack it often call the image damaged.

    Raises:
        MemoryShortageError: instead of the error, if the memory cannot be allocated.
    """
    try:
        yield
    except Image.DecompressionBombError:
        raise
    except Exception:
        check_memory(pixels)
        raise
