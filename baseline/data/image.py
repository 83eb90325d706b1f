"""Image in any form -> upright RGB image. Deals with files and pixels only, not with tables or networks."""

from __future__ import annotations

import stat
import warnings
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

__all__ = [
    "load_image",
    "load_square",
    "open_image",
    "read_image_bytes",
    "resize_image",
    "to_upright_rgb",
    "unreadable_reason",
]


MAX_IMAGE_BYTES = 2**31
"""Maximum size of an image file in bytes."""


FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "WEBP", "TIFF", "AVIF", "JPEG2000", "DIB", "ICO", "PCX", "TGA")
"""PIL formats that are tried on a file, whatever its name. The others are not images, and one runs Ghostscript."""


def load_image(source: Any, size: int = 0) -> Image.Image:
    """Load an image as upright RGB.

    EXIF orientation is applied, an animation yields its first frame, transparent areas become white, and 16-bit
    grayscale is scaled to 8 bits.

    Args:
        source: a path, bytes, an H x W x 3 uint8 array, or a PIL image.
        size: pixels; if given, a large JPEG is decoded at a reduced scale of at least twice that size, as PIL does for
            its own thumbnails.
    """
    image = open_image(source)
    if size and image.format == "JPEG":
        image.draft("RGB", (2 * size, 2 * size))
    return to_upright_rgb(image)


def resize_image(image: Image.Image, size: int, resize: str) -> Image.Image:
    """Return the image as a square of `size` pixels: squeezed (`"squish"`), cropped (`"crop"`) or padded (`"pad"`)."""
    if resize == "crop":
        return ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
    if resize == "pad":
        return ImageOps.pad(image, (size, size), Image.Resampling.BICUBIC)
    return image.resize((size, size), Image.Resampling.BICUBIC)


def load_square(
    source: Any, size: int, resize: str, transform: Callable[[Image.Image], Image.Image] | None = None
) -> np.ndarray:
    """Load and resize an image: size x size x 3, uint8. A file is read into memory before it is decoded.

    Args:
        transform: applied to the complete image before it is resized.
    """
    content = read_image_bytes(source) if isinstance(source, str | Path) else source
    image = load_image(content, size) if transform is None else transform(load_image(content))
    return np.asarray(resize_image(image, size, resize))


def read_image_bytes(path: str | Path) -> bytes:
    """Read an image file.

    Raises:
        OSError: if the file does not exist, is empty, too large, or not a regular file: a pipe would block forever.
    """
    status = Path(path).stat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError("not a file")
    if status.st_size > MAX_IMAGE_BYTES:
        raise OSError(f"more than {MAX_IMAGE_BYTES:,} bytes")
    if not (content := Path(path).read_bytes()):
        raise OSError("empty file")
    return content


def unreadable_reason(error: Exception) -> str:
    """Return in a few words why an image could not be read; PIL's plugins raise nearly every type of exception.

    >>> unreadable_reason(UnidentifiedImageError("cannot identify image file <_io.BytesIO object at 0x7f>"))
    'not an image'
    """
    if isinstance(error, Image.DecompressionBombError):
        return f"more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels"
    if isinstance(error, UnidentifiedImageError):
        return "not an image"
    return " ".join(str(getattr(error, "strerror", None) or error).split())[:80] or "damaged"


def open_image(source: Any, formats: tuple[str, ...] | None = None) -> Image.Image:
    """Open an image without decoding its pixels yet, trying the given PIL formats or else `FORMATS`."""
    if isinstance(source, np.ndarray):
        return Image.fromarray(source)
    if not isinstance(source, str | Path | bytes):
        return source
    with warnings.catch_warnings():  # PIL warns at half of the size that it refuses; only the refusal matters
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return Image.open(BytesIO(source) if isinstance(source, bytes) else source, formats=formats or FORMATS)


def to_upright_rgb(image: Image.Image) -> Image.Image:
    """Return the image in RGB, rotated as its EXIF orientation says, with transparent areas in white."""
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        return _gray_to_uint8(image).convert("RGB")
    image = ImageOps.exif_transpose(image)
    if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def _gray_to_uint8(image: Image.Image) -> Image.Image:
    """Scale grayscale of 16 or 32 bits, or floats, to 8 bits: by the format's range, else by that of the values."""
    values = np.asarray(ImageOps.exif_transpose(image)).astype(np.float64)
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    if image.mode == "F" and low >= 0 and high <= 1:
        max_value = 1.0
    elif low >= 0 and high <= 65535:
        max_value = 255.0 if high <= 255 else 65535.0
    else:
        values, max_value = values - low, max(high - low, 1e-12)
    return Image.fromarray((values * (255 / max_value)).round().astype(np.uint8))
