"""Image in any form -> upright RGB image. Deals with files and pixels only, not with tables or networks.

`baseline.data.formats` adds rare formats, images of more than 8 bits per sample, and color profiles.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from baseline.data.limits import TOO_LITTLE_MEMORY, TooLarge, check_size, memory_checked
from baseline.errors import MemoryShortageError
from baseline.parallel.memory import MemoryLimit
from baseline.reading import check_regular

formats: ModuleType | None
try:
    from baseline.data import formats
except ImportError:  # the folder was removed
    formats = None

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


FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "WEBP", "TIFF", "JPEG2000", "DIB", "ICO", "PCX", "TGA",
           *(("AVIF",) if find_spec("PIL.AvifImagePlugin") else ()))  # fmt: skip
"""PIL formats that are tried on a file, whatever its name. The others are not images, and one runs Ghostscript. Pillow
reads AVIF from version 11.3 on."""


LARGE_FILE_BYTES = 2**24
"""Size of a file in bytes from which on it is read alone."""


PIXEL_BYTES = 12
"""Bytes of memory per pixel of an image while it is decoded: three copies of four bytes."""


PIXELS_VERSION = 4
"""Version of the rules by which files become pixels; part of the keys of caches."""


memory = MemoryLimit()
"""Memory of this process for images that are being decoded."""


ValueRange = Sequence[float] | Literal["image"]
"""See `load_image`."""


def load_image(source: Any, size: int = 0, value_range: ValueRange = ()) -> Image.Image:
    """Load an image as upright RGB in the colors of sRGB.

    EXIF orientation is applied, an animation yields its first frame, transparent areas become white, and colors are
    converted from the image's profile.

    Args:
        source: a path, bytes, an H x W x 3 uint8 array, or a PIL image.
        size: pixels; if given, a large JPEG is decoded at a reduced scale of at least twice that size, as PIL does for
            its own thumbnails.
        value_range: the values of black and white of images of more than 8 bits whose file declares no range. All
            images of a run share it, and its model keeps it. If empty, it is 0 to 65535 for 16 bits, and 0 to 1 or 0
            to 255 for floats that fit it; others are refused. `"image"`: each image's own, fit for display only.

    Raises:
        MemoryShortageError: if the image cannot be decoded, and memory is short.
        OSError, ValueError, and nearly every other type of exception, if the image cannot be read; see
        `unreadable_reason`.
    """
    image = open_image(source)
    if size and image.format == "JPEG":
        image.draft("RGB", (2 * size, 2 * size))
    with reserve_for_image(image):
        return to_upright_rgb(image, value_range)


def resize_image(image: Image.Image, size: int, resize: str) -> Image.Image:
    """Return the image as a square of `size` pixels: squeezed (`"squish"`), cropped (`"crop"`) or padded (`"pad"`)."""
    width, height = image.size
    if resize == "crop":
        side = min(image.size)
        left, top = (width - side) / 2, (height - side) / 2
        return resize_region(image, (size, size), (left, top, left + side, top + side))
    if resize == "pad":
        longer = max(image.size)
        image = resize_region(image, (round(width / longer * size), round(height / longer * size)))
        return ImageOps.pad(image, (size, size), Image.Resampling.BICUBIC)
    return resize_region(image, (size, size))


def resize_region(
    image: Image.Image, size: tuple[int, int], region: tuple[float, float, float, float] | None = None
) -> Image.Image:
    """Resize a region of an image (left, top, right, bottom; by default all of it) bicubically, its width first.

    All versions of Pillow return the same pixels. In one call of `Image.resize`, Pillow 13 resizes the height first
    where it is reduced much more than the width, earlier versions the width, and rounding in between differs.
    """
    left, top, right, bottom = region or (0, 0, *image.size)
    margin = math.ceil(2 * max(1, (bottom - top) / size[1])) + 1  # more than the rows that bicubic weights reach
    first, last = max(0, math.floor(top) - margin), min(image.height, math.ceil(bottom) + margin)
    if last - first < image.height:
        image = image.crop((0, first, image.width, last))
    image = image.resize((size[0], image.height), Image.Resampling.BICUBIC, (left, 0, right, image.height))
    return image.resize(size, Image.Resampling.BICUBIC, (0, top - first, size[0], bottom - first))


def load_square(
    source: Any,
    size: int,
    resize: str,
    value_range: ValueRange = (),
    transform: Callable[[Image.Image], Image.Image] | None = None,
) -> np.ndarray:
    """Load and resize an image: size x size x 3, uint8. A file is read into memory before it is decoded.

    Args:
        transform: applied to the complete image before it is resized.
    """
    is_file = isinstance(source, str | Path)
    with reserve_for_file(source) if is_file else nullcontext():
        content = read_image_bytes(source) if is_file else source
        image = load_image(content, size if transform is None else 0, value_range)
        return np.asarray(resize_image(image if transform is None else transform(image), size, resize))


@contextmanager
def reserve_for_image(image: Image.Image) -> Iterator[None]:
    """Context manager that waits for the memory to decode an image; see `memory_checked` for errors."""
    pixels = image.width * image.height
    with memory.reserve(pixels * PIXEL_BYTES), memory_checked(pixels):
        yield


def reserve_for_file(path: str | Path) -> AbstractContextManager[None]:
    """Context manager that lets a large file be read and decoded alone, so that memory is bounded per process."""
    try:
        is_large = Path(path).stat().st_size > LARGE_FILE_BYTES
    except OSError:
        is_large = False
    return memory.reserve(2**62) if is_large else nullcontext()


def read_image_bytes(path: str | Path) -> bytes:
    """Read an image file.

    Raises:
        OSError: if the file does not exist, is empty, too large, or not a regular file: a pipe would block forever.
    """
    check_regular(Path(path), MAX_IMAGE_BYTES)
    if not (content := Path(path).read_bytes()):
        raise OSError("empty file")
    return content


def unreadable_reason(error: Exception) -> str:
    """Return in a few words why an image could not be read; PIL's plugins raise nearly every type of exception.

    Raises:
        MemoryShortageError: if memory was too small, which says nothing about the image.

    >>> unreadable_reason(UnidentifiedImageError("cannot identify image file <_io.BytesIO object at 0x7f>"))
    'not an image'
    """
    if isinstance(error, MemoryError) or "out of memory" in str(error):  # Pillow's decoders say so as OSError
        raise MemoryShortageError(TOO_LITTLE_MEMORY) from None
    if isinstance(error, Image.DecompressionBombError) and not isinstance(error, TooLarge):
        return f"more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels"
    if isinstance(error, UnidentifiedImageError):
        return "not an image"
    return " ".join(str(getattr(error, "strerror", None) or error).split())[:80] or "damaged"


def open_image(source: Any, names: tuple[str, ...] | None = None) -> Image.Image:
    """Open an image without decoding its pixels yet.

    Args:
        names: PIL formats to try instead of `FORMATS` and those of `baseline.data.formats`.

    Raises:
        UnidentifiedImageError: if it is in none of the formats.
        DecompressionBombError: if it has too many pixels, a side is too long, or it is a JPEG of too many scans.
        MemoryShortageError: if it cannot be opened, and memory is short.
    """
    if isinstance(source, np.ndarray):
        return Image.fromarray(source)
    if not isinstance(source, str | Path | bytes):
        return source
    if not isinstance(source, bytes):
        check_regular(Path(source), MAX_IMAGE_BYTES)
    if formats is not None:
        formats.check_header(source)
    with memory_checked(), warnings.catch_warnings():  # PIL warns at half of the size that it refuses
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            image = Image.open(BytesIO(source) if isinstance(source, bytes) else source, formats=names or FORMATS)
        except UnidentifiedImageError:
            content = source if isinstance(source, bytes) else read_image_bytes(source)
            if formats is None or names or (rare := formats.open_rare(content)) is None:
                raise
            image = rare
        if formats is not None and not names and formats.is_also_dicom(image):
            image = formats.open_dicom(source if isinstance(source, bytes) else read_image_bytes(source))
    check_size(*image.size)
    if formats is not None:
        formats.check_scans(image)
    return image


def to_upright_rgb(image: Image.Image, value_range: ValueRange = ()) -> Image.Image:
    """Return the image in RGB, rotated as its EXIF orientation says, with transparent areas in white."""
    if formats is not None and isinstance(samples := formats.as_samples(image), formats.SampleImage):
        image = formats.to_8_bits(samples, value_range)
    elif image.mode in ("I", "F") or image.mode.startswith("I;"):
        raise ValueError("more than 8 bits per sample")
    image = ImageOps.exif_transpose(image)
    if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
    image = image if formats is None else formats.to_srgb(image)
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")
