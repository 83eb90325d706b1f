"""An image in any form -> an upright RGB picture. Knows files and pixels; knows no tables and no networks."""

from __future__ import annotations

import stat
import warnings
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
"""Of an image's file."""


FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "WEBP", "TIFF", "AVIF", "JPEG2000", "DIB", "ICO", "PCX", "TGA")
"""What is tried on a file, whatever it is called. PIL's others are no images, and one has Ghostscript run them."""


def load_image(source: Any, size: int = 0) -> Image.Image:
    """An image as upright RGB: a path, bytes, an H x W x 3 uint8 array, or a PIL image.

    EXIF orientation is honoured; of an animation the first frame is taken; what is transparent is laid on white;
    16-bit greys are scaled to 8. With `size` (pixels), a large JPEG is decoded at a reduced scale of at least twice
    that size, as PIL's own thumbnails are.
    """
    image = open_image(source)
    if size and image.format == "JPEG":
        image.draft("RGB", (2 * size, 2 * size))
    return to_upright_rgb(image)


def resize_image(image: Image.Image, size: int, resize: str) -> Image.Image:
    """The image as a square of `size` pixels: squeezed (`"squish"`), cut (`"crop"`) or with black bars (`"pad"`)."""
    if resize == "crop":
        return ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
    if resize == "pad":
        return ImageOps.pad(image, (size, size), Image.Resampling.BICUBIC)
    return image.resize((size, size), Image.Resampling.BICUBIC)


def load_square(source: Any, size: int, resize: str) -> np.ndarray:
    """What `load_image` and `resize_image` make of an image, size x size x 3, uint8. Of a file all bytes are read first."""
    content = read_image_bytes(source) if isinstance(source, str | Path) else source
    return np.asarray(resize_image(load_image(content, size), size, resize))


def read_image_bytes(path: str | Path) -> bytes:
    """The content of an image's file.

    Raises:
        OSError: if there is none, it is empty, too large, or no regular file: a pipe would wait for ever.
    """
    found = Path(path).stat()
    if not stat.S_ISREG(found.st_mode):
        raise OSError("not a file")
    if found.st_size > MAX_IMAGE_BYTES:
        raise OSError(f"more than {MAX_IMAGE_BYTES:,} bytes")
    if not (content := Path(path).read_bytes()):
        raise OSError("empty file")
    return content


def unreadable_reason(error: Exception) -> str:
    """What was raised when an image was read, in a few words; PIL's plugins raise nearly every kind there is.

    >>> unreadable_reason(UnidentifiedImageError("cannot identify image file <_io.BytesIO object at 0x7f>"))
    'not an image'
    """
    if isinstance(error, Image.DecompressionBombError):
        return f"more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels"
    if isinstance(error, UnidentifiedImageError):
        return "not an image"
    return " ".join(str(getattr(error, "strerror", None) or error).split())[:80] or "damaged"


def open_image(source: Any, formats: tuple[str, ...] | None = None) -> Image.Image:
    """The picture, its pixels not yet read where it is a file; of these PIL formats alone, or of `FORMATS`."""
    if isinstance(source, np.ndarray):
        return Image.fromarray(source)
    if not isinstance(source, str | Path | bytes):
        return source
    with warnings.catch_warnings():  # PIL warns of half of what it refuses; the refusal is what counts
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return Image.open(BytesIO(source) if isinstance(source, bytes) else source, formats=formats or FORMATS)


def to_upright_rgb(image: Image.Image) -> Image.Image:
    """The picture turned as its EXIF orientation says, in RGB."""
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        return _gray_to_uint8(image).convert("RGB")
    image = ImageOps.exif_transpose(image)
    if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        clear = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear).convert("RGB")
    return image.convert("RGB")


def _gray_to_uint8(image: Image.Image) -> Image.Image:
    """Grey of 16 or 32 bits or floats as 8 bits: by its format's range where the values fill it, else by their own."""
    values = np.asarray(ImageOps.exif_transpose(image)).astype(np.float64)
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    if image.mode == "F" and low >= 0 and high <= 1:
        top = 1.0
    elif low >= 0 and high <= 65535:
        top = 255.0 if high <= 255 else 65535.0
    else:
        values, top = values - low, max(high - low, 1e-12)
    return Image.fromarray((values * (255 / top)).round().astype(np.uint8))
