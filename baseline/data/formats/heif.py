"""HEIC and HEIF files, such as those of phones, by pillow-heif. AVIF files are read by Pillow, from version 11.3 on."""

from __future__ import annotations

from importlib.util import find_spec
from io import BytesIO

from PIL import Image

from baseline.data.formats.missing import MissingPackage

__all__ = ["is_heif", "is_unreadable_avif", "open_heif", "refuse_avif"]


BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"hevm", b"hevs", b"mif1", b"msf1", b"mif2")


def is_heif(head: bytes) -> bool:
    """Whether a file that begins so is a HEIF file."""
    return head[4:8] == b"ftyp" and head[8:12] in BRANDS


def open_heif(content: bytes) -> Image.Image:
    """Open a HEIF file. Its rotation is applied, and more than 8 bits are reduced to 8.

    Raises:
        MissingPackage: if pillow-heif is not installed.
    """
    try:
        from pillow_heif import HeifImagePlugin  # noqa: F401  # registers the format
    except ImportError:
        raise MissingPackage("HEIC", "pillow-heif", "heif") from None
    return Image.open(BytesIO(content), formats=("HEIF",))


def is_unreadable_avif(head: bytes) -> bool:
    """Whether a file that begins so is an AVIF file, which the installed Pillow is too old to read."""
    return head[4:8] == b"ftyp" and head[8:12] in (b"avif", b"avis") and find_spec("PIL.AvifImagePlugin") is None


def refuse_avif(content: bytes) -> Image.Image:
    """Raise the MissingPackage error for an AVIF file."""
    raise MissingPackage("AVIF", "Pillow 11.3 or newer", "avif")
