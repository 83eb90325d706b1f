"""Images that can be decoded and yet hold nothing, or not all: of one color, or with a part that is missing."""

from __future__ import annotations

from io import BytesIO

import numpy as np
from PIL import Image

__all__ = ["find_flaw"]


MIN_GRAY_ROWS = 1 / 16
"""Fraction of an image's rows that are gray at the lower end of a JPEG that is cut off."""


MIN_ZERO_BYTES = 16
"""Number of zero bytes at the end of a JPEG file that was not written to its end."""


def find_flaw(image: Image.Image, upright: Image.Image, content: bytes) -> str:
    """Return `"blank"` for an image of one color, `"cut off"` for a JPEG of which a part is missing; else nothing.

    Args:
        image: the decoded image; a JPEG may be reduced in size.
        upright: the same image in upright RGB.
        content: its file.
    """
    if is_one_color(upright):
        is_reduced = image.format == "JPEG"  # a texture finer than its blocks is one color then
        return "blank" if not is_reduced or is_one_color(Image.open(BytesIO(content)).convert("RGB")) else ""
    return "cut off" if image.format == "JPEG" and is_cut_off(image, content) else ""


def is_one_color(image: Image.Image) -> bool:
    """Return whether all pixels of an RGB image are equal."""
    return all(low == high for low, high in image.getextrema())  # type: ignore[misc]  # RGB has three pairs


def is_cut_off(image: Image.Image, content: bytes) -> bool:
    """Return whether the end of a JPEG's data is missing, although it can be decoded.

    The decoder fills what is missing with gray (128); if zeros take the place of the data, it repeats the last color.
    """
    has_end_marker = content.rfind(b"\xff\xd9") > content.rfind(b"\xff\xda")
    if not has_end_marker and content.endswith(bytes(MIN_ZERO_BYTES)):
        return True
    pixels = np.asarray(image)
    distance = np.abs(pixels.reshape(len(pixels), -1).astype(np.int16) - 128).max(axis=1)
    colored = np.flatnonzero(distance > 1)
    gray_rows = len(pixels) - 1 - int(colored[-1]) if len(colored) else len(pixels)
    return MIN_GRAY_ROWS * len(pixels) <= gray_rows < len(pixels)
