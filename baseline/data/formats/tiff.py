"""TIFF files other than those of 8 bits. Pillow reads some of them wrongly, and tifffile those that it cannot read."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np

from baseline.data.formats.missing import MissingPackage
from baseline.data.formats.png import both_bytes
from baseline.data.formats.samples import SampleImage
from baseline.data.limits import check_size

__all__ = ["is_tiff", "open_tiff", "tiff_samples"]


BITS, PHOTOMETRIC, ORIENTATION, SAMPLES, PLANAR, SAMPLE_FORMAT = 258, 262, 274, 277, 284, 339
PROFILE, NO_DATA = 34675, 42113
"""Numbers of the tags that say how samples are stored."""

SWAPPED = ("I;16BS", "I;32BS", "F;32BF", "F;64BF")
"""Pillow's raw modes of compressed files of which it reads the bytes of a sample in the wrong order."""

UNSIGNED, SIGNED = 1, 2
"""Values of `SAMPLE_FORMAT`."""


def is_tiff(head: bytes) -> bool:
    """Whether a file that begins so is a TIFF file."""
    return head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def tiff_samples(image: Any) -> SampleImage | None:
    """Return the samples of a TIFF file that Pillow has opened; None if they have 8 bits and no sign.

    Raises:
        MissingPackage: if only tifffile reads them.
        ValueError: if there are more samples per pixel than gray and opacity.
    """
    tags = image.tag_v2
    if tags.get(PHOTOMETRIC) in (0, 1) and tags.get(SAMPLES, 1) > 2:
        raise ValueError(f"a TIFF of {tags[SAMPLES]} bands in gray, where gray, RGB or RGBA was needed")
    bits, sample_format = max(tags.get(BITS, (1,))), max(tags.get(SAMPLE_FORMAT, (UNSIGNED,)))
    if bits <= 8 and sample_format == UNSIGNED:
        return None
    raw = str(image.tile[0][3][0])
    facts: dict[str, Any] = {
        "white_is_low": tags.get(PHOTOMETRIC) == 0, "missing": _number(tags.get(NO_DATA)), "format": "TIFF"
    }  # fmt: skip
    if image.mode == "CMYK" and tags.get(PLANAR, 1) == 1:  # the high bytes are enough for inks of the full range
        return None
    if len(image.getbands()) > 1:
        if tags.get(PLANAR, 1) != 1 or raw[:-1] not in ("RGB;16", "RGBA;16", "RGBX;16"):
            image.fp.seek(0)
            return open_tiff(image.fp.read())
        swapped = "L" if raw[-1] == "B" else "B"
        values = both_bytes(image, raw, raw[:-1] + swapped)
        image.load()  # turns the image, and knows the color profile
        return SampleImage(values, info=image.info, **facts)
    if raw in SWAPPED and image.tile[0][0] == "libtiff":
        image.fp.seek(0)
        return open_tiff(image.fp.read())
    values = np.asarray(image)
    if sample_format == SIGNED and bits == 8:
        values = values.view(np.int8)
    elif sample_format == UNSIGNED and bits == 32:
        values = values.view(np.uint32)
    elif image.mode.startswith("I;16"):
        values = values.astype(np.uint16, copy=False)
    declared = (0.0, float((1 << bits) - 1)) if 8 < bits < 16 else None
    return SampleImage(values, declared, info=image.info, **facts)


def open_tiff(content: bytes) -> SampleImage:
    """Read the first page of a TIFF file with tifffile.

    Raises:
        MissingPackage: if tifffile, or what it needs for the file's compression, is not installed.
        ValueError: if its samples are not gray, RGB or RGBA.
    """
    try:
        from tifffile import PHOTOMETRIC as PHOTOMETRICS
        from tifffile import TiffFile
    except ImportError:
        raise MissingPackage("TIFF of this kind", "tifffile", "tiff") from None
    with TiffFile(BytesIO(content)) as file:
        page: Any = file.pages[0]
        check_size(page.imagewidth, page.imagelength)
        kinds = (PHOTOMETRICS.MINISWHITE, PHOTOMETRICS.MINISBLACK, PHOTOMETRICS.RGB)
        if page.photometric not in kinds or page.samplesperpixel not in (1, 3, 4) or page.imagedepth != 1:
            bands, kind = page.samplesperpixel, getattr(page.photometric, "name", page.photometric)
            raise ValueError(f"a TIFF of {bands} bands ({kind}), where gray, RGB or RGBA was needed")
        try:
            values = page.asarray()
        except ValueError as error:
            if "imagecodecs" in str(error):
                raise MissingPackage("TIFF of this compression", "imagecodecs", "tiff") from None
            raise
        if values.ndim == 3 and page.planarconfig == 2:
            values = np.moveaxis(values, 0, 2)
        tag = {number: page.tags[number].value for number in (ORIENTATION, PROFILE, NO_DATA) if number in page.tags}
    if values.dtype.kind not in "uif" or values.dtype.itemsize > 8:
        raise ValueError(f"a TIFF of {values.dtype} samples, where integers or floats were needed")
    if values.dtype.itemsize == 8:
        values = values.astype(np.float32)
    if 1 in page.extrasamples:  # colors are multiplied by the opacity
        opacity = np.maximum(values[..., 3:].astype(np.float32), 1e-6)
        top = 1.0 if values.dtype.kind == "f" else float(np.iinfo(values.dtype).max)
        values[..., :3] = np.minimum(values[..., :3] / opacity * top, top)
    bits = page.bitspersample
    declared = (0.0, float((1 << bits) - 1)) if page.dtype.kind == "u" and bits not in (16, 32, 64) else None
    info = {"icc_profile": bytes(tag[PROFILE])} if PROFILE in tag else {}
    return SampleImage(
        _oriented(np.ascontiguousarray(values), int(tag.get(ORIENTATION, 1))),
        declared,
        white_is_low=page.photometric == PHOTOMETRICS.MINISWHITE,
        missing=_number(tag.get(NO_DATA)),
        info=info,
        format="TIFF",
    )


def _oriented(values: np.ndarray, orientation: int) -> np.ndarray:
    """Turn an image upright, as the tag Orientation says."""
    if orientation in (5, 6, 7, 8):
        values = values.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    return values[:, ::-1] if orientation in (2, 3, 6, 7) else values


def _number(text: Any) -> float | None:
    """Return the number in GDAL's tag for missing values."""
    try:
        return float(str(text).strip("\0 "))
    except ValueError:
        return None
