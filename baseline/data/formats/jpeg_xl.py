"""JPEG XL files, by pillow-jxl-plugin."""

from __future__ import annotations

from io import BytesIO

from PIL import Image

from baseline.data.formats.missing import MissingPackage
from baseline.data.formats.samples import SampleImage
from baseline.data.limits import check_memory, check_size

__all__ = ["is_jpeg_xl", "open_jpeg_xl", "size_of"]


CONTAINER = b"\0\0\0\x0cJXL \r\n\x87\n"
CODESTREAM = b"\xff\n"

RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))
"""Width to height, by number from 1."""


def is_jpeg_xl(head: bytes) -> bool:
    """Whether a file that begins so is a JPEG XL file."""
    return head.startswith((CONTAINER, CODESTREAM))


def open_jpeg_xl(content: bytes) -> Image.Image:
    """Open a JPEG XL file, after its size was checked: the plugin decodes it at once.

    Raises:
        MissingPackage: if pillow-jxl-plugin is not installed.
        TooLarge: if it has too many pixels.
        MemoryShortageError: if memory is short.
    """
    try:
        import pillow_jxl  # noqa: F401  # registers the format
    except ImportError:
        raise MissingPackage("JPEG XL", "pillow-jxl-plugin", "jxl") from None
    width, height = size_of(content)
    check_size(width, height)
    check_memory(width * height)  # the plugin ends the process where memory is short
    image = Image.open(BytesIO(content), formats=("JXL",))
    if image.mode in ("I;16", "F"):  # the decoder scales 9 to 16 bits to 16, and floats so that white is 1
        import numpy as np

        top = 65535.0 if image.mode == "I;16" else 1.0
        return SampleImage(np.asarray(image), (0.0, top), info=image.info, format="JXL")
    return image


def size_of(content: bytes) -> tuple[int, int]:
    """Return width and height in pixels from the header (ISO/IEC 18181-1, SizeHeader).

    Raises:
        ValueError: if there is no header.
    """
    start = 0 if content.startswith(CODESTREAM) else content.find(b"jxlc") + 4
    if start == 3:  # the codestream is in parts, each with a number
        start = content.find(b"jxlp") + 8
    if content[start : start + 2] != CODESTREAM:
        raise ValueError("a JPEG XL file without a header")
    bits = int.from_bytes(content[start + 2 : start + 14], "little")

    def take(count: int) -> int:
        nonlocal bits
        value, bits = bits & ((1 << count) - 1), bits >> count
        return value

    def take_side(small: int) -> int:
        return 8 * (take(5) + 1) if small else take((9, 13, 18, 30)[take(2)]) + 1

    small = take(1)
    height = take_side(small)
    if ratio := take(3):
        across, down = RATIOS[ratio - 1]
        return height * across // down, height
    return take_side(small), height
