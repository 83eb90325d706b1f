"""Match the names in tables to image files, and the rows of two tables that contain the same images."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pandas as pd

from baseline.data.sources.folders import images_below
from baseline.data.sources.read_table import cell_to_text
from baseline.errors import DataError, format_count

__all__ = ["ImageFinder", "match_rows"]


MAX_PATH, MAX_DEPTH = 4096, 32
"""Maximum length of a name, and of the end of a name, in parts, that is looked for where the whole is not found."""


class ImageFinder:
    """Find image files by the names that tables give them.

    The folder is listed once, and only when plain paths do not suffice. If several images have the same name, the one
    with `split_name` (`"train"`, `"test"`) in its path is used. Backslashes are read as slashes where no file has them,
    of a URL the path's end counts, leading folders that the disk does not have are left out if all names share them,
    and upper and lower case are distinguished only where both exist.

    Args:
        images: the absolute paths of the images below the folder, if they are known.
    """

    def __init__(self, folder: Path, split_name: str = "", images: Sequence[str] | None = None) -> None:
        self.folder, self.split_name = folder, split_name
        self.images = images
        self.index: dict[str, list[str]] | None = None
        self.prefix: str | None = None
        """The leading folders that all names have and the disk has not; None until one is seen."""
        self.plain = False
        """Whether a name was found as it is; then no leading folders are left out."""
        self.without_suffix = self.in_subfolders = self.other_case = self.backslashes = self.urls = 0

    def share(self, values: pd.Series) -> tuple[float, float]:
        """Return the share of values that are images, and of those with their full name, each 0-1.

        The second value matters because `7` without a suffix could be any row's number.
        """
        prefix = self.prefix
        matches = [self._locate(text) if text else (None, "") for text in map(cell_to_text, values)]
        self.prefix = prefix  # these values may not be images at all
        methods = [method for path, method in matches if path is not None]
        return len(methods) / max(1, len(matches)), sum(m != "stem" for m in methods) / max(1, len(matches))

    def find(self, name: str) -> str | None:
        """Return the path of the image with this name; None if there is none, or several that match equally well."""
        path, method = self._locate(name) if name else (None, "")
        if path is not None:
            self.plain = self.plain or method in ("exact", "below", "stem")
            self.without_suffix += method == "stem"
            self.in_subfolders += method in ("below", "stem")
            self.other_case += method == "case"
            self.backslashes += "\\" in name and not path.endswith(name)
            self.urls += "://" in name or name.startswith("/data/")
        return path

    def notes(self) -> list[str]:
        """Return sentences about everything that had to be guessed."""
        notes = []
        if self.without_suffix:
            notes.append(f"{format_count(self.without_suffix, 'image')} listed without a file extension")
        if self.in_subfolders:
            notes.append(f"{format_count(self.in_subfolders, 'image')} found in subfolders of {self.folder}")
        if self.prefix:
            notes.append(f"the names begin with '{self.prefix}/', which is not on this disk and was left out")
        if self.backslashes:
            notes.append(f"{format_count(self.backslashes, 'Windows path')} read with / instead of \\")
        if self.urls:
            notes.append(f"{format_count(self.urls, 'URL')} matched to files by the end of the path")
        if self.other_case:
            notes.append(f"{format_count(self.other_case, 'name')} matched regardless of upper and lower case")
        return notes

    def _locate(self, name: str) -> tuple[str | None, str]:
        """Return the path of an image and how it was found: "exact", "below", "stem", "prefix" or "case"."""
        if len(name) > MAX_PATH:
            return None, ""
        path = os.path.normpath(os.path.join(self.folder, name))
        if os.path.isfile(path):
            return path, "exact"
        if "\\" in name:
            return self._locate(name.replace("\\", "/").removeprefix("./"))
        is_url = "://" in name or name.startswith(("/data/upload/", "/data/local-files/"))
        name = re.sub("/+", "/", path_of_url(name) if is_url else name.removeprefix("./"))
        if (found := self._match(name.lstrip("/"), self.list_images()))[0]:
            return found
        parts = [part for part in name.split("/") if part]
        for count in range(max(1, len(parts) - MAX_DEPTH), len(parts)):
            prefix, rest = name[: name.rindex("/".join(parts[count:]))].rstrip("/"), "/".join(parts[count:])
            if is_url or self.prefix == prefix or (self.prefix is None and not self.plain):
                located = os.path.join(self.folder, rest)
                path = located if os.path.isfile(located) else self._match(rest, self.list_images())[0] or ""
                if path:
                    self.prefix = self.prefix if is_url else prefix
                    return path, "prefix"
        if (found := self._match(name.lower(), self._list_lower()))[0]:
            return found[0], "case"
        return None, ""

    def _match(self, name: str, index: dict[str, list[str]]) -> tuple[str | None, str]:
        """Return the only image whose path ends with a name, with or without its suffix."""
        fold = str.lower if index is not self.index else str
        key = name.rsplit("/", 1)[-1]
        below = [path for path in index.get(key, []) if f"/{fold(path)}".endswith(f"/{name}")]
        stems = [
            path for path in index.get(f"/{key}", []) if f"/{fold(os.path.splitext(path)[0])}".endswith(f"/{name}")
        ]
        for paths, method in ((below, "below"), (stems, "stem")):
            if paths and (match := self._unique(paths)):
                return os.path.join(self.folder, *match.split("/")), method
        return None, ""

    def list_images(self) -> dict[str, list[str]]:
        """Return the images, as paths relative to the folder, by file name and (after a `/`) by stem."""
        if self.index is None:
            self.index = {}
            for path in images_below(self.folder) if self.images is None else self.images:
                relative = os.path.relpath(path, self.folder).replace(os.sep, "/")
                file = relative.rsplit("/", 1)[-1]
                self.index.setdefault(file, []).append(relative)
                self.index.setdefault("/" + os.path.splitext(file)[0], []).append(relative)
        return self.index

    def _list_lower(self) -> dict[str, list[str]]:
        """Return the images by their names in lower case."""
        if not hasattr(self, "lower"):
            self.lower: dict[str, list[str]] = {}
            for name, paths in self.list_images().items():
                self.lower.setdefault(name.lower(), []).extend(paths)
        return self.lower

    def _unique(self, paths: list[str]) -> str | None:
        """Return the only path, or the only one that contains the name of the split."""
        if len(paths) > 1 and self.split_name:
            paths = [path for path in paths if self.split_name in path.lower()]
        return paths[0] if len(paths) == 1 else None


def path_of_url(url: str) -> str:
    """Return the path that a URL, or a path as Label Studio writes it, stands for.

    >>> path_of_url("https://example.org/a%20b/1.jpg?v=2"), path_of_url("/data/local-files/?d=photos/1.jpg")
    ('a b/1.jpg', 'photos/1.jpg')
    >>> path_of_url("/data/upload/3/0a1b2c3d-1.jpg")
    '1.jpg'
    """
    if "?d=" in url:
        return unquote(url.partition("?d=")[2]).lstrip("/")
    path = unquote(urlsplit(url).path).lstrip("/")
    return re.sub(r"^data/upload/(\d+/)?([0-9a-f]{8}-)?", "", path)


def match_rows(paths: pd.Series, listed: pd.Series, file: str) -> np.ndarray:
    """Return for each path the row of the same image among the paths listed in a file, -1 if there is none.

    Full paths are compared; if none is equal, the shortest common ending that distinguishes all images, so that images
    may have moved.

    Args:
        paths: N paths.
        listed: the paths in the file.
        file: its name, for error messages.

    Returns:
        N integers.

    Raises:
        DataError: if the file lists an image twice.

    >>> match_rows(pd.Series(["/new/a/1.jpg", "/new/b/1.jpg"]), pd.Series(["/old/b/1.jpg"]), "split.csv").tolist()
    [-1, 0]
    """
    if listed.duplicated().any():
        raise DataError(f"{file} lists an image twice: {listed[listed.duplicated()].iloc[0]}. Remove one of the rows.")
    if paths.isin(listed).any():
        return pd.Index(listed).get_indexer(pd.Index(paths))
    best = np.full(len(paths), -1)
    listed_parts, path_parts = (series.str.split(r"[/\\]", regex=True) for series in (listed, paths))
    for parts in range(1, 12):
        listed_ends, ends = (series.str[-parts:].str.join("/") for series in (listed_parts, path_parts))
        if listed_ends.is_unique:
            rows = pd.Index(listed_ends).get_indexer(pd.Index(ends))
            hits = rows[rows >= 0]
            if len(hits) and pd.Series(hits).is_unique:
                return rows
            best = rows if (best < 0).all() else best
    return best
