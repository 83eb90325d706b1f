"""The scans of a JPEG: a progressive one may repeat them without end, and the time to decode it grows with each."""

from __future__ import annotations

import re

from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from baseline.data.limits import TooLarge
from baseline.errors import format_count

__all__ = ["check_scans", "scan_count"]


MAX_SCANS = 100
"""Maximum number of scans of a JPEG; ordinary progressive ones have about 10."""


MAX_SCANNED_PIXELS = 2_000_000_000
"""Maximum number of pixels times scans, which are decoded in about five seconds."""


MAX_SEGMENTS = 10_000
"""Maximum number of segments of a JPEG before its pixels, and of those that are read to count its scans."""


MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")
"""What begins a segment; the others are part of a scan."""

START_OF_SCAN, END_OF_IMAGE, START_OF_IMAGE = b"\xff\xda", b"\xff\xd9", b"\xff\xd8"


def check_scans(image: Image.Image) -> None:
    """Raise TooLarge for a JPEG whose scans take too long to decode; it has not been decoded yet."""
    if not isinstance(image, JpegImageFile) or image.fp is None:
        return
    position = image.fp.tell()
    image.fp.seek(0)
    content = image.fp.read()
    image.fp.seek(position)
    max_scans = min(MAX_SCANS, max(1, MAX_SCANNED_PIXELS // (image.width * image.height)))
    if content.count(START_OF_SCAN) > max_scans and scan_count(content, max_scans) > max_scans:
        limit = format_count(max_scans, "scan")
        raise TooLarge(f"a JPEG of {image.width:,} x {image.height:,} pixels in more than {limit}")


def scan_count(content: bytes, limit: int) -> int:
    """Return the number of scans of a JPEG, which are counted up to one above the limit.

    A JPEG of very many segments counts as one above the limit. What follows its end, such as a video, does not count.

    >>> scan_count(b"\\xff\\xd8\\xff\\xda\\x00\\x02scan\\xff\\xd9\\xff\\xda", 100)
    1
    """
    position = scans = 0
    for _ in range(MAX_SEGMENTS):
        marker = MARKER.search(content, position)
        if marker is None or marker[0] == END_OF_IMAGE:
            return scans
        scans += marker[0] == START_OF_SCAN
        if scans > limit:
            return scans
        position = marker.end()
        if marker[0] >= b"\xff\xc0" and marker[0] != START_OF_IMAGE:
            position += int.from_bytes(content[position : position + 2])
    return limit + 1
