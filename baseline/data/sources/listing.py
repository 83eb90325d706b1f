"""TODO."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from glob import glob
from itertools import chain
from pathlib import Path
from typing import Any

from baseline.data.sources.archives import Members, is_archive
from baseline.data.sources.folders import is_photo, photos_below
from baseline.data.sources.reading import TABLE_ENDINGS
from baseline.data.sources.tables import listed_photos
from baseline.errors import DataError
from baseline.files import place
from baseline.progress import Show

__all__ = ["named_photos"]


def named_photos(
    words: Sequence[str], column: str = "", lines: Iterable[bytes] = (), show: Show | None = None
) -> tuple[Iterable[Any], int]:
    """The paths that a user's words name, in their order, and how many; 0 where that is not known.

    Args:
        words: photos, folders (with all below), zip and tar archives, patterns such as `'shots/*.jpg'`, tables with a
            column of paths, which are looked for beside the table, or `-` for `lines`.
        column: the column of paths in tables; looked for where empty.

    Raises:
        DataError: for a word that names nothing, a table without such a column, and an archive that is damaged, leads
            out of its folder or is a bomb.
    """
    show = show or Show()
    parts: list[Iterable[Any]] = []
    total = 0
    for word in words:
        found = [] if word == "-" else _named(word, column, show)
        parts += found or [_lines(lines)]
        total += sum(map(len, found))
    return chain.from_iterable(parts), 0 if "-" in words else total


def _lines(lines: Iterable[bytes]) -> Iterator[str]:
    for line in lines:
        if path := line.rstrip(b"\r\n"):
            yield os.fsdecode(path)


def _named(word: str, column: str, show: Show) -> list[list[str] | Members]:
    place(word)
    path = Path(word).expanduser()
    if path.is_dir():
        if not (found := list(photos_below(path))):
            raise DataError(f"{path} holds no photos. Give a folder of photos.")
        return [found]
    if not path.exists():
        fitting = sorted(glob(str(path), recursive=True))  # noqa: PTH207  # that of a Path takes no absolute pattern
        found = [each for each in fitting if Path(each).is_file()]
        if not found:
            raise DataError(f"There is no photo, folder or table {word}, and no file fits it as a pattern.")
        return [_packed(each, show) if is_archive(each) else [each] for each in found]
    if is_archive(path):
        return [_packed(path, show)]
    return [listed_photos(path, column) if path.suffix.lower() in TABLE_ENDINGS else [str(path)]]


def _packed(archive: str | Path, show: Show) -> Members:
    if not len(found := Members(Path(archive), is_photo, show)):
        raise DataError(f"{archive} holds no photos. Give an archive of photos.")
    return found
