"""DICOM files, such as X-rays and CT slices, by pydicom: the first frame, as its window shows it."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from baseline.data.formats.missing import MissingPackage
from baseline.data.formats.samples import SampleImage
from baseline.data.formats.scans import MAX_SCANS, check_scans, scan_count
from baseline.data.limits import TooLarge, check_memory, check_size

__all__ = ["is_dicom", "open_dicom"]


JPEG_START = b"\xff\xd8\xff"


def is_dicom(head: bytes) -> bool:
    """Whether a file that begins so is a DICOM file."""
    return head[128:132] == b"DICM"


def open_dicom(content: bytes) -> Image.Image:
    """Read the first frame of a DICOM file.

    Stored values are rescaled (rescale slope and intercept, or a modality LUT). Black and white are the ends of the
    first window, or of the VOI LUT; without either, of the bits that are stored, unless all 16 are. MONOCHROME1 is
    inverted.

    Raises:
        MissingPackage: if pydicom is not installed.
        ValueError: if the file holds no image, or one that cannot be decoded.
    """
    try:
        from pydicom import dcmread
        from pydicom.pixels.processing import apply_color_lut
        from pydicom.pixels.utils import pixel_array
    except ImportError:
        raise MissingPackage("DICOM", "pydicom", "dicom") from None
    header: Any = dcmread(BytesIO(content), stop_before_pixels=True)
    if "Rows" not in header or "Columns" not in header:
        raise ValueError("a DICOM file without an image")
    check_size(header.Columns, header.Rows)
    try:
        _check_jpeg(content, header)
        values = pixel_array(BytesIO(content), index=0)
    except TooLarge:
        raise
    except Exception as error:
        check_memory(header.Columns * header.Rows)
        raise ValueError(f"a DICOM image that cannot be decoded: {error}") from None
    if header.PhotometricInterpretation == "PALETTE COLOR":
        if not header.original_encoding[1]:
            _swap_palette(header)
        colors = apply_color_lut(values, header)
        return Image.fromarray((colors >> 8).astype(np.uint8) if colors.dtype == np.uint16 else colors)
    if values.ndim == 3:
        return Image.fromarray(values) if values.dtype == np.uint8 else SampleImage(values, _stored_range(header))
    values, window = _apply_window(header, values)
    inverted = header.PhotometricInterpretation == "MONOCHROME1"
    return SampleImage(values, window, white_is_low=inverted, format="DICOM")


def _check_jpeg(content: bytes, header: Any) -> None:
    """Raise TooLarge if the first frame is a JPEG of too many pixels or scans."""
    from pydicom import dcmread
    from pydicom.encaps import get_frame

    if header.file_meta.TransferSyntaxUID.is_encapsulated and JPEG_START in content:
        frames = int(header.get("NumberOfFrames") or 1)
        frame = get_frame(dcmread(BytesIO(content)).PixelData, 0, number_of_frames=frames)
        if frame.startswith(JPEG_START):
            check_jpeg_frame(frame)


def check_jpeg_frame(frame: bytes) -> None:
    """Raise TooLarge for a JPEG of too many pixels or scans; Pillow knows no JPEG-LS, lossless or 12-bit ones."""
    try:
        image = Image.open(BytesIO(frame), formats=("JPEG",))
    except UnidentifiedImageError:
        if scan_count(frame, MAX_SCANS) > MAX_SCANS:
            raise TooLarge(f"a JPEG in more than {MAX_SCANS} scans") from None
        return
    check_size(*image.size)
    check_scans(image)


def _apply_window(header: Any, stored: np.ndarray) -> tuple[np.ndarray, tuple[float, float] | None]:
    """Return the values that the window applies to, and the values of black and white, if the file declares them."""
    from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut

    values = apply_modality_lut(stored, header)
    if values.dtype.kind == "f" and bool((values == np.floor(values)).all()):
        values = values.astype(np.int32)
    if header.get("VOILUTSequence"):
        bits = int(header.VOILUTSequence[0].LUTDescriptor[2])
        return apply_voi_lut(values, header, prefer_lut=True).astype(np.float32), (0.0, float((1 << bits) - 1))
    center, width = (_first(header.get(name)) for name in ("WindowCenter", "WindowWidth"))
    if center is None or width is None:
        return values, _stored_range(header, rescaled=True)
    function = str(header.get("VOILUTFunction") or "LINEAR")
    if function == "SIGMOID":
        return (1 / (1 + np.exp(-4 * (values.astype(np.float32) - center) / width))).astype(np.float32), (0.0, 1.0)
    if function == "LINEAR_EXACT":
        return values, (center - width / 2, center + width / 2)
    middle, half = center - 0.5, max(width - 1, 1e-6) / 2
    return values, (middle - half, middle + half)


def _swap_palette(header: Any) -> None:
    """Swap the bytes of a palette in a big-endian file, which pydicom leaves as they are."""
    for kind in ("Red", "Green", "Blue", "SegmentedRed", "SegmentedGreen", "SegmentedBlue"):
        if (name := f"{kind}PaletteColorLookupTableData") in header:
            header[name].value = np.frombuffer(header[name].value, "<u2").byteswap().tobytes()


def _first(value: Any) -> float | None:
    """Return the first of one or several numbers; None if there are none."""
    numbers = list(value) if hasattr(value, "__iter__") and not isinstance(value, str) else [value]
    return float(numbers[0]) if numbers and numbers[0] not in (None, "") else None


def _stored_range(header: Any, rescaled: bool = False) -> tuple[float, float] | None:
    """Return the range of the bits that are stored; None if that is all 16, or if a table replaces them."""
    bits, is_signed = int(header.BitsStored), bool(header.PixelRepresentation)
    if rescaled and (bits >= 16 or header.get("ModalityLUTSequence")):
        return None
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if is_signed else (0, (1 << bits) - 1)
    slope, intercept = (float(header.get("RescaleSlope") or 1), float(header.get("RescaleIntercept") or 0))
    return (low * slope + intercept, high * slope + intercept) if rescaled else (float(low), float(high))
