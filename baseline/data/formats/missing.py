"""The error for an image of a format whose reader is not installed."""

from __future__ import annotations

from baseline.errors import missing_package

__all__ = ["MissingPackage"]


class MissingPackage(OSError):
    """An image is of a format that only a package reads that is not installed.

    >>> raise MissingPackage("HEIC", "pillow-heif", "heif")                          # doctest: +SKIP
    Traceback (most recent call last):
    baseline.data.formats.missing.MissingPackage: HEIC needs pillow-heif: pip install '.[heif]'
    """

    def __init__(self, kind: str, package: str, extra: str) -> None:
        super().__init__(missing_package(kind, package, extra))
