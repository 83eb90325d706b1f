"""Headers that would take Pillow minutes, as it reads them in small pieces: padding and comments without end."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from baseline.data.formats.scans import END_OF_IMAGE, MAX_SEGMENTS, START_OF_SCAN, segments
from baseline.data.limits import TooLarge

__all__ = ["check_header"]


SMALL_BYTES = 1_000_000
"""Size of a file whose header is not examined: Pillow reads all of it within a second."""


MAX_HEADER = 65_536
"""Maximum number of bytes of the header of a PNM image, and of those between the segments of a JPEG."""

SMALL_CHUNK = 256
"""Number of bytes from which on it takes longer to decode a chunk of a PNG than to read its header."""


def check_header(source: bytes | str | Path) -> None:
    """Raise TooLarge for an image, given as its content or path, whose header takes too long to read.

    >>> check_header(b"P6 " + 2_000_000 * b" " + b"1 1 255 abc")
    Traceback (most recent call last):
    baseline.data.limits.TooLarge: a header of more than 65,536 bytes
    """
    if (len(source) if isinstance(source, bytes) else Path(source).stat().st_size) <= SMALL_BYTES:
        return
    with BytesIO(source) if isinstance(source, bytes) else Path(source).open("rb") as file:
        head = file.read(MAX_HEADER)
        if head.startswith(b"\xff\xd8"):
            _check_segments(head + file.read())
        elif head.startswith(b"\x89PNG\r\n"):
            _check_chunks(file)
        elif head[:1] == b"P" and head[1:2] in b"0123456fFy" and len(_pnm_words(head)) < 4:
            raise TooLarge(f"a header of more than {MAX_HEADER:,} bytes")


def _pnm_words(head: bytes) -> list[bytes]:
    """Return the words at the start of a PNM image without its comments: kind, width, height, and what follows."""
    lines = head.replace(b"\r", b"\n").split(b"\n")
    return b" ".join(line.partition(b"#")[0] for line in lines).split(None, 3)


def _check_chunks(file: BinaryIO) -> None:
    """Raise TooLarge for a PNG with very many small chunks, such as empty ones."""
    position, small = 8, 0
    while small <= MAX_SEGMENTS:
        file.seek(position)
        part = file.read(8)
        if len(part) < 8 or part[4:] == b"IEND":
            return
        length = int.from_bytes(part[:4])
        small += length < SMALL_CHUNK
        position += length + 12
    raise TooLarge(f"a PNG of more than {MAX_SEGMENTS:,} chunks of less than {SMALL_CHUNK} bytes")


def _check_segments(content: bytes) -> None:
    """Raise TooLarge for a JPEG with very many segments before its first scan, or very many bytes between them."""
    between = 0
    for number, (marker, gap) in enumerate(segments(content)):
        between += gap
        if number == MAX_SEGMENTS or between > MAX_HEADER:
            raise TooLarge(f"a JPEG of more than {MAX_SEGMENTS:,} segments, or {MAX_HEADER:,} bytes between them")
        if marker in (START_OF_SCAN, END_OF_IMAGE):
            return
