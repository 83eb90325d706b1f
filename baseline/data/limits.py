"""Limits of the images that are decoded."""

from __future__ import annotations

from PIL import Image

__all__ = ["MAX_SIDE", "TooLarge", "check_size"]


MAX_SIDE = 2**16
"""Maximum number of pixels of a side."""


class TooLarge(Image.DecompressionBombError):
    """An image has more pixels, or a longer side, than are decoded."""


def check_size(width: int, height: int) -> None:
    """Raise TooLarge for an image that is too large to be decoded; it has not been decoded yet."""
    max_pixels = 2 * (Image.MAX_IMAGE_PIXELS or 2**62)
    if width * height > max_pixels:
        raise TooLarge(f"{width:,} x {height:,} pixels, more than {max_pixels:,} in all")
    if max(width, height) > MAX_SIDE:
        raise TooLarge(f"{width:,} x {height:,} pixels, more than {MAX_SIDE:,} on a side")
