"""List images and folders, and recognize the names of splits."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from baseline.data.sources.read_table import TABLE_SUFFIXES
from baseline.errors import DataError, format_count
from baseline.files import holds_image

__all__ = [
    "IMAGE_SUFFIXES",
    "SPLIT_NAMES",
    "describe_skipped",
    "enter_single_folder",
    "has_image_name",
    "holds_results",
    "images_below",
    "is_image",
    "is_utf8",
    "list_entries",
    "split_from_name",
    "subfolders",
    "walk",
]


IMAGE_SUFFIXES = frozenset(
    {".apng", ".avif", ".bmp", ".dcm", ".dib", ".dicom", ".gif", ".heic", ".heif", ".hif", ".j2k", ".jfif", ".jp2",
     ".jpe", ".jpeg", ".jpf", ".jpg", ".jpx", ".jxl", ".pbm", ".pcx", ".pfm", ".pgm", ".png", ".pnm", ".ppm", ".tga",
     ".tif", ".tiff", ".webp"}
)  # fmt: skip
"""File name endings of images, in lower case; names are compared without regard to case."""


OTHER_SUFFIXES = frozenset(
    {".csv", ".db", ".gz", ".htm", ".html", ".ini", ".ipynb", ".json", ".jsonl", ".mat", ".md", ".names", ".npy",
     ".npz", ".parquet", ".pdf", ".pkl", ".py", ".rst", ".tar", ".tsv", ".txt", ".xls", ".xlsx", ".xml", ".yaml",
     ".yml", ".zip"}
)  # fmt: skip
"""File name endings of what is no image; files with any other ending, or none, are judged by their first bytes."""


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


def images_below(folder: Path, skipped: list[str] | None = None) -> Iterator[str]:
    """Yield the paths of all images in a folder and its subfolders, in order, without hidden ones.

    Links are followed, but every folder is entered only once, and none above `folder`, so that loops of links end.

    Files whose names are not valid UTF-8 are left out, and so are pictures of results; see `describe_skipped`.

    Args:
        skipped: receives the names of the visible files that are passed over.

    Raises:
        DataError: for a folder that cannot be read.
    """

    visited = {str(path) for path in Path(os.path.realpath(folder)).parents}
    for current, folders, files in os.walk(folder, onerror=raise_unreadable, followlinks=True):
        real = os.path.realpath(current)
        if real in visited:
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        pictures = holds_results(files)
        for file in sorted(files):
            path = os.path.join(current, file)
            if is_utf8(path) and is_image(path) and not pictures:
                yield path
            elif skipped is not None and not file.startswith("."):
                skipped.append(file if is_utf8(current) else path)


def holds_results(names: Collection[str]) -> bool:
    """Return whether the pictures in a folder with these files show results, such as those of a run.

    >>> holds_results(["hits.png", "manifest.json", "report.html"]), holds_results(["1.png", "manifest.json"])
    (True, False)
    """
    contents = {"manifest.json", "ladder.json", "curve.json", "findings.json"}
    shown = {"report.html", "ladder.html", "curve.html", "pairs.csv"}
    return not contents.isdisjoint(names) and not shown.isdisjoint(names)


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


def is_utf8(name: str) -> bool:
    """Return whether a name, as Python decodes it from the disk, was valid UTF-8: tables cannot hold any other."""
    return name.isprintable() or not any("\ud800" <= character <= "\udfff" for character in name)


def describe_skipped(names: Sequence[str]) -> str:
    """Return how many files are ignored, with up to three names or else by kind; empty if there are none.

    >>> describe_skipped(["a.txt"])
    "1 other file ignored: 'a.txt'"
    >>> describe_skipped(["a.txt", "b.mp4", "c.MP4", "README"])
    '4 other files ignored: 2 .mp4, 1 .txt, 1 without an ending'
    """
    if not names:
        return ""
    valid = [name for name in names if is_utf8(name)]
    invalid = [ascii(name) for name in names if not is_utf8(name)]
    kinds = Counter(os.path.splitext(name)[1].lower() or "without an ending" for name in valid)
    by_kind = [f"{count:,} {kind}" for kind, count in sorted(kinds.items(), key=lambda item: (-item[1], item[0]))]
    listed = [f"'{name}'" for name in valid] if len(names) <= 3 else by_kind
    if invalid:
        listed.append(f"{len(invalid):,} with a name that is not UTF-8 ({invalid[0]})")
    return f"{format_count(len(names), 'other file')} ignored: {', '.join(listed)}"


def is_image(path: str) -> bool:
    """Return whether a file is an image, by its ending, or by its first bytes if the ending does not tell."""
    name = path.rsplit(os.sep, 1)[-1]
    if has_image_name(name):
        return True
    return not name.startswith(".") and os.path.splitext(name)[1].lower() not in OTHER_SUFFIXES and holds_image(path)


def has_image_name(name: str) -> bool:
    """Return whether a name, with or without folders, has the suffix of an image and no hidden part.

    >>> has_image_name("ants/01.JPG"), has_image_name("__MACOSX/._01.jpg"), has_image_name("labels.csv")
    (True, False, False)
    """
    hidden = any(part.startswith(".") and part != "." for part in name.split("/"))
    return not hidden and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES
