"""PNG files of 16 bits per sample. Pillow drops the low byte of those in color, and the chunk sBIT of all."""

from __future__ import annotations

import struct
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

from baseline.data.formats.samples import SampleImage

__all__ = ["both_bytes", "png_samples"]


def png_samples(image: Any) -> SampleImage | None:
    """Return the samples of an opened PNG file of 16 bits; None for one of fewer bits."""
    mode = image.tile[0][3]
    if not str(mode).endswith("16B"):
        return None
    bits = significant_bits(image.fp)
    values = _decode(image, mode)
    if (clear := image.info.pop("transparency", None)) is not None and mode in ("I;16B", "RGB;16B"):
        values = _with_opacity(values, clear)
    return SampleImage(values, declared_range(values, bits), info=image.info, format="PNG")


def significant_bits(file: Any) -> int:
    """Return the largest number of significant bits that the chunk sBIT names; 0 if there is none."""
    position = file.tell()
    try:
        file.seek(8)
        while len(head := file.read(8)) == 8:
            length, name = struct.unpack(">I4s", head)
            if name == b"sBIT":
                return max(file.read(length)[:3], default=0)
            if name in (b"IDAT", b"IEND"):
                break
            file.seek(length + 4, 1)
        return 0
    finally:
        file.seek(position)


def declared_range(values: np.ndarray, bits: int) -> tuple[float, float] | None:
    """Return the range of 16-bit samples of which `bits` are significant; None if the file does not say how many are.

    The standard has writers scale samples to 16 bits, by repeating their leading bits or appending zeros. Some leave
    them as they are; then the trailing bits follow no such rule.
    """
    if not 0 < bits < 16:
        return None
    shift = 16 - bits
    trailing = values & np.uint16((1 << shift) - 1)
    is_scaled = not trailing.any() or bool((trailing == values >> np.uint16(bits)).all())
    return (0.0, 65535.0) if is_scaled else (0.0, float((1 << bits) - 1))


def _decode(image: Any, mode: str) -> np.ndarray:
    """Decode all 16 bits: H x W, or H x W x 3 or 4.

    Pillow has modes that keep the first byte of each sample and modes that keep the second; the image is decoded in
    both. Gray with opacity has four bytes per pixel, as RGBA of 8 bits has.
    """
    if mode == "I;16B":
        return np.asarray(image).astype(np.uint16, copy=False)
    if mode == "LA;16B":
        parts = _decode_as(image, "RGBA").astype(np.uint16)
        gray, opacity = parts[..., 0] << 8 | parts[..., 1], parts[..., 2] << 8 | parts[..., 3]
        return np.stack([gray, gray, gray, opacity], axis=2)
    return both_bytes(image, mode, f"{mode[:-1]}L")


def both_bytes(image: Any, first: str, second: str) -> np.ndarray:
    """Return 16-bit samples from two passes of the decoder, in the raw modes of the high and the low byte."""
    values = _decode_as(image, first).astype(np.uint16)
    values <<= np.uint16(8)
    values |= _decode_as(image, second)
    return values


def _decode_as(image: Any, mode: str) -> np.ndarray:
    """Decode the file of an opened image once more, in another raw mode of Pillow's."""
    image.fp.seek(0)
    copy: Any = Image.open(BytesIO(image.fp.read()), formats=(image.format,))
    copy.tile = [_with_mode(tile, mode) for tile in copy.tile]
    return np.asarray(copy)


def _with_opacity(values: np.ndarray, clear: Any) -> np.ndarray:
    """Return RGBA samples in which the given gray level or color is transparent."""
    colors = values if values.ndim == 3 else np.stack([values] * 3, axis=2)
    opacity = np.where((colors == np.array(clear, np.uint16)).all(axis=2), 0, 65535).astype(np.uint16)
    return np.concatenate([colors, opacity[..., None]], axis=2)


def _with_mode(tile: Any, mode: str) -> Any:
    """Return a tile of Pillow, of which only those from version 11 on have named fields, with another mode."""
    args = (mode, *tile[3][1:]) if isinstance(tile[3], tuple) else mode
    return tile._replace(args=args) if hasattr(tile, "_replace") else (*tile[:3], args)
