"""Everything but ordinary images of 8 bits: rare formats, more bits per sample, and color profiles.

`baseline.data.image` works without this folder, and then reads what Pillow reads, in 8 bits. A reader of a format is
one module with two functions: whether a file's first bytes are of the format, and how its content is opened.
"""

from __future__ import annotations

import re

from PIL import Image

from baseline.data.formats.dicom import is_dicom, open_dicom
from baseline.data.formats.findings import file_findings, image_findings, resolve_values
from baseline.data.formats.flaws import find_flaw
from baseline.data.formats.headers import check_header
from baseline.data.formats.heif import is_heif, is_unreadable_avif, open_heif, refuse_avif
from baseline.data.formats.jpeg_xl import is_jpeg_xl, open_jpeg_xl
from baseline.data.formats.png import png_samples
from baseline.data.formats.profiles import profile_name, to_srgb
from baseline.data.formats.samples import SampleImage, kind_of_values, measure_values, to_8_bits
from baseline.data.formats.scans import check_scans
from baseline.data.formats.tiff import is_tiff, open_tiff, tiff_samples

__all__ = [
    "SampleImage",
    "as_samples",
    "check_header",
    "check_scans",
    "describe",
    "file_findings",
    "image_findings",
    "is_also_dicom",
    "open_dicom",
    "open_rare",
    "resolve_values",
    "to_8_bits",
    "to_srgb",
]


READERS = ((is_heif, open_heif), (is_unreadable_avif, refuse_avif), (is_jpeg_xl, open_jpeg_xl), (is_dicom, open_dicom),
           (is_tiff, open_tiff))  # fmt: skip
"""Readers of what Pillow alone cannot open, in the order in which they are tried."""


LONGEST_HEAD = 2**17
"""Number of bytes within which a JPEG says how many bits it has."""


def open_rare(content: bytes) -> Image.Image | None:
    """Open an image that Pillow alone cannot open; None if no reader knows it.

    Raises:
        MissingPackage: if its reader needs a package that is not installed.
        ValueError: for a JPEG of 12 bits.
    """
    read = next((read for is_format, read in READERS if is_format(content[:256])), None)
    if read is None and re.search(rb"^\xff\xd8.*?\xff[\xc0-\xc3]..\x0c", content[:LONGEST_HEAD], re.DOTALL):
        raise ValueError("a JPEG of 12 bits, and only those of 8 bits are read")
    return None if read is None else read(content)


def is_also_dicom(image: Image.Image) -> bool:
    """Whether the file of an image that Pillow opened as TIFF is a DICOM file, too, which declares its window.

    The first 128 bytes of a DICOM file are free for other formats. Read as TIFF, the same pixels have no window.
    """
    if image.format != "TIFF" or (file := getattr(image, "fp", None)) is None:
        return False
    position = file.tell()
    file.seek(0)
    head = file.read(132)
    file.seek(position)
    return is_dicom(head)


def as_samples(image: Image.Image) -> Image.Image:
    """Return the image with its samples if they have more than 8 bits; else the image itself.

    Args:
        image: one that Pillow has not decoded yet, or else has decoded in a mode for more than 8 bits.
    """
    if isinstance(image, SampleImage):
        return image
    read = {"PNG": png_samples, "TIFF": tiff_samples}.get(image.format or "") if getattr(image, "tile", None) else None
    samples = _samples_of(image) if read is None else read(image)
    return image if samples is None else samples


def _samples_of(image: Image.Image) -> SampleImage | None:
    """Return the samples of an image in one of Pillow's modes for more than 8 bits."""
    import numpy as np

    if image.mode not in ("I", "F") and not image.mode.startswith("I;16"):
        return None
    values = np.asarray(image)
    if image.mode.startswith("I;16"):
        values = values.astype(np.uint16, copy=False)
    is_scaled = image.format in ("PPM", "JPEG2000") and image.mode != "F"  # to 16 bits, by Pillow
    return SampleImage(values, (0.0, 65535.0) if is_scaled else None, info=image.info, format=image.format)


def describe(image: Image.Image, upright: Image.Image, content: bytes) -> tuple[str, str, str, float, float]:
    """Return what the audit records: flaw, name of the color profile, kind of values, and their percentiles.

    Args:
        image: from `as_samples`.
        upright: the same image in upright RGB.
        content: its file.
    """
    kind = kind_of_values(image)
    low, high = measure_values(image) if kind and isinstance(image, SampleImage) else (0.0, 0.0)
    return find_flaw(image, upright, content), profile_name(image), kind, low, high
