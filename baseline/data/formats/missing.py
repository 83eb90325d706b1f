"""The error for an image of a format whose reader is not installed."""

from __future__ import annotations

__all__ = ["MissingPackage"]


class MissingPackage(OSError):
    """An image is of a format that only a package reads that is not installed.

    >>> raise MissingPackage("HEIC", "pillow-heif", "heif")
    Traceback (most recent call last):
    baseline.data.formats.missing.MissingPackage: HEIC needs pillow-heif: pip install 'fastai-baseline[heif]'
    """

    def __init__(self, kind: str, package: str, extra: str) -> None:
        super().__init__(f"{kind} needs {package}: pip install 'fastai-baseline[{extra}]'")
