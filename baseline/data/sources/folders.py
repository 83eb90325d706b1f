"""List images and folders, and recognize the names of splits."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from baseline.data.sources.read_table import TABLE_SUFFIXES
from baseline.errors import DataError

__all__ = [
    "IMAGE_SUFFIXES",
    "SPLIT_NAMES",
    "enter_single_folder",
    "has_image_name",
    "images_below",
    "list_entries",
    "split_from_name",
    "subfolders",
    "walk",
]


IMAGE_SUFFIXES = frozenset(
    {".avif", ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff",
     ".webp"}
)  # fmt: skip
"""File name endings of images, in lower case; names are compared without regard to case."""


MAX_LEVELS = 40
"""Number of folders in each other beyond which nothing is looked for."""


SPLIT_NAMES = {
    "train": "train", "training": "train",
    "valid": "valid", "val": "valid", "validation": "valid", "dev": "valid",
    "test": "test", "testing": "test",
}  # fmt: skip
"""The split for each name of a folder or value of a split column, in lower case."""


def enter_single_folder(folder: Path) -> Path:
    """Descend while a folder contains nothing but another folder, because archives often wrap their content in one."""
    entries = [path for path in list_entries(folder) if not path.name.startswith((".", "__MACOSX"))]
    while len(entries) == 1 and entries[0].is_dir() and entries[0].name.lower() not in SPLIT_NAMES:
        below = list_entries(entries[0])
        if not any(path.is_dir() or path.suffix.lower() in TABLE_SUFFIXES for path in below):
            break
        folder, entries = entries[0], [path for path in below if not path.name.startswith(".")]
    return folder


def split_from_name(name: str) -> str | None:
    """Return the split that a name or a part of it stands for.

    >>> split_from_name("seg_train"), split_from_name("Val"), split_from_name("test1"), split_from_name("cats")
    ('train', 'valid', 'test', None)
    """
    name = re.sub(r"([a-z])([A-Z])", r"\1_\2", name)
    parts = [name.lower(), *(part.rstrip("0123456789") for part in re.split(r"[\W_]+", name.lower()))]
    return next((SPLIT_NAMES[part] for part in parts if part in SPLIT_NAMES), None)


def subfolders(folder: Path) -> list[Path]:
    return [path for path in list_entries(folder) if path.is_dir() and not path.name.startswith(".")]


def list_entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error.strerror}.") from None


def images_below(folder: Path) -> Iterator[str]:
    """Yield the paths of all images in a folder and its subfolders, in order, without hidden ones.

    Links are followed, but every folder is entered only once, and none above `folder`, so that loops of links end.

    Raises:
        DataError: for a folder that cannot be read, and for a name that is not valid UTF-8.
    """

    visited = {str(path) for path in Path(os.path.realpath(folder)).parents}
    for current, folders, files in os.walk(folder, onerror=raise_unreadable, followlinks=True):
        real = os.path.realpath(current)
        if real in visited:
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for file in sorted(files):
            if has_image_name(file):
                yield check_name(os.path.join(current, file))


def walk(folder: str, above: tuple[str, ...] = ()) -> Iterator[tuple[str, list[str]]]:
    """Yield each visible folder from `folder` on, with the names of its visible files, in order.

    Links are followed, except to a folder above them, so that loops end.

    Raises:
        DataError: for a folder that cannot be read.
    """
    real = os.path.realpath(folder)
    if real in above or len(above) > MAX_LEVELS:
        return
    try:
        entries = sorted((entry.name, entry.is_dir()) for entry in os.scandir(folder) if not entry.name.startswith("."))
    except OSError as error:
        raise_unreadable(error)
        return
    yield folder, [name for name, is_folder in entries if not is_folder]
    for name, is_folder in entries:
        if is_folder and name != "__MACOSX":
            yield from walk(os.path.join(folder, name), (*above, real))


def raise_unreadable(error: OSError) -> None:
    raise DataError(f"{error.filename} cannot be read: {error.strerror}. Change its permissions, or move it away.")


def check_name(path: str) -> str:
    """Return a path, or raise DataError if it is not valid UTF-8."""
    if not path.isprintable() and any("\ud800" <= character <= "\udfff" for character in path):
        raise DataError(f"The name {path!a} is not valid UTF-8. Rename the file.")
    return path


def has_image_name(name: str) -> bool:
    """Return whether a name, with or without folders, has the suffix of an image and no hidden part.

    >>> has_image_name("ants/01.JPG"), has_image_name("__MACOSX/._01.jpg"), has_image_name("labels.csv")
    (True, False, False)
    """
    hidden = any(part.startswith(".") and part != "." for part in name.split("/"))
    return not hidden and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES
