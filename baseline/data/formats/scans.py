"""The scans of a JPEG: a progressive one may repeat them without end, and the time to decode it grows with each."""

from __future__ import annotations

import re
from collections.abc import Iterator

from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from baseline.data.limits import TooLarge
from baseline.errors import format_count

__all__ = ["END_OF_IMAGE", "MAX_SEGMENTS", "START_OF_SCAN", "check_scans", "scan_count", "segments"]


MAX_SCANS, USUAL_SCANS = 100, 10
"""Maximum number of scans of a JPEG, and that of ordinary progressive ones."""


MAX_SCANNED_PIXELS = 2_000_000_000
"""Maximum number of pixels times scans, which are decoded in about five seconds."""


MAX_SEGMENTS = 10_000
"""Maximum number of segments of a JPEG before its pixels, and of those that are read to count its scans."""


MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")
"""What begins a segment; the others are part of a scan."""

START_OF_SCAN, END_OF_IMAGE, START_OF_IMAGE = b"\xff\xda", b"\xff\xd9", b"\xff\xd8"


def check_scans(image: Image.Image) -> None:
    """Raise TooLarge for a JPEG whose scans take too long to decode; it has not been decoded yet.

    Of any other JPEG, `image.info["scans"]` becomes the number of its scans, or up to `USUAL_SCANS` where it is lower.
    """
    if not isinstance(image, JpegImageFile) or image.fp is None:
        return
    position = image.fp.tell()
    image.fp.seek(0)
    content = image.fp.read()
    image.fp.seek(position)
    max_scans = min(MAX_SCANS, max(1, MAX_SCANNED_PIXELS // (image.width * image.height)))
    scans = content.count(START_OF_SCAN)  # also of a preview in its header, and of what follows its end
    if scans > min(USUAL_SCANS, max_scans) and (scans := scan_count(content, max_scans)) > max_scans:
        limit = format_count(max_scans, "scan")
        raise TooLarge(f"a JPEG of {image.width:,} x {image.height:,} pixels in more than {limit}")
    image.info["scans"] = scans


def scan_count(content: bytes, limit: int) -> int:
    """Return the number of scans of a JPEG, which are counted up to one above the limit.

    A JPEG of very many segments counts as one above the limit. What follows its end, such as a video, does not count.

    >>> scan_count(b"\\xff\\xd8\\xff\\xda\\x00\\x02scan\\xff\\xd9\\xff\\xda", 100)
    1
    """
    scans = 0
    for number, (marker, _) in enumerate(segments(content)):
        if marker == END_OF_IMAGE or scans > limit:
            break
        if number == MAX_SEGMENTS:
            return limit + 1
        scans += marker == START_OF_SCAN
    return scans


def segments(content: bytes) -> Iterator[tuple[bytes, int]]:
    """Yield the marker of each segment of a JPEG, and the number of bytes before it that are in none.

    The end of the content counts as the end of the image.

    >>> list(segments(b"\\xff\\xd8\\xff\\xff\\xe0\\x00\\x03ajunk"))
    [(b'\\xff\\xd8', 0), (b'\\xff\\xe0', 1), (b'\\xff\\xd9', 4)]
    """
    position = 0
    while marker := MARKER.search(content, position):
        yield marker[0], marker.start() - position
        position = marker.end()
        if marker[0] >= b"\xff\xc0" and marker[0] not in (START_OF_IMAGE, END_OF_IMAGE):
            position += int.from_bytes(content[position : position + 2])
    yield END_OF_IMAGE, max(0, len(content) - position)
