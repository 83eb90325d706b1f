"""Match the names in tables to image files, and the rows of two tables that contain the same images."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd

from baseline.data.sources.folders import images_below
from baseline.data.sources.read_table import cell_to_text
from baseline.errors import DataError

__all__ = ["ImageFinder", "match_rows"]


class ImageFinder:
    """Find image files by the names that tables give them.

    The folder is listed once, and only when plain paths do not suffice. If several images have the same name, the one
    with `split_name` (`"train"`, `"test"`) in its path is used.
    """

    def __init__(self, folder: Path, split_name: str = "") -> None:
        self.folder, self.split_name = folder, split_name
        self.index: dict[str, list[str]] | None = None
        self.without_suffix = self.in_subfolders = 0

    def share(self, values: pd.Series) -> tuple[float, float]:
        """Return the share of values that are images, and of those with their full name, each 0-1.

        The second value matters because `7` without a suffix could be any row's number.
        """
        matches = [self._locate(text) if text else (None, "") for text in map(cell_to_text, values)]
        methods = [method for path, method in matches if path is not None]
        return len(methods) / max(1, len(matches)), sum(m != "stem" for m in methods) / max(1, len(matches))

    def find(self, name: str) -> str | None:
        """Return the path of the image with this name; None if there is none, or several that match equally well."""
        path, method = self._locate(name) if name else (None, "")
        self.without_suffix += method == "stem"
        self.in_subfolders += method != "exact" and path is not None
        return path

    def notes(self) -> list[str]:
        """Return sentences about everything that had to be guessed."""
        notes = []
        if self.without_suffix:
            noun = "image is" if self.without_suffix == 1 else "images are"
            notes.append(f"{self.without_suffix:,} {noun} named without a suffix")
        if self.in_subfolders:
            noun = "image was" if self.in_subfolders == 1 else "images were"
            notes.append(f"{self.in_subfolders:,} {noun} found in subfolders of {self.folder}")
        return notes

    def _locate(self, name: str) -> tuple[str | None, str]:
        """Return the path of an image and how it was found: "exact", "below" or "stem"."""
        path = os.path.normpath(os.path.join(self.folder, name))
        if os.path.isfile(path):
            return path, "exact"
        key, index = name.rsplit("/", 1)[-1], self._list_images()
        below = [path for path in index.get(key, []) if f"/{path}".endswith(f"/{name}")]
        stems = [path for path in index.get(f"/{key}", []) if f"/{os.path.splitext(path)[0]}".endswith(f"/{name}")]
        for paths, method in ((below, "below"), (stems, "stem")):
            if paths and (match := self._unique(paths)):
                return os.path.join(self.folder, match), method
        return None, ""

    def _list_images(self) -> dict[str, list[str]]:
        """Return the images, as paths relative to the folder, by file name and (after a `/`) by stem."""
        if self.index is None:
            self.index = {}
            for path in images_below(self.folder):
                relative = os.path.relpath(path, self.folder)
                file = relative.rsplit("/", 1)[-1]
                self.index.setdefault(file, []).append(relative)
                self.index.setdefault("/" + os.path.splitext(file)[0], []).append(relative)
        return self.index

    def _unique(self, paths: list[str]) -> str | None:
        """Return the only path, or the only one that contains the name of the split."""
        if len(paths) > 1 and self.split_name:
            paths = [path for path in paths if self.split_name in path.lower()]
        return paths[0] if len(paths) == 1 else None


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
    for parts in range(1, 12):
        listed_ends, ends = (series.str.split("/").str[-parts:].str.join("/") for series in (listed, paths))
        if listed_ends.is_unique:
            rows = pd.Index(listed_ends).get_indexer(pd.Index(ends))
            hits = rows[rows >= 0]
            if len(hits) and pd.Series(hits).is_unique:
                return rows
            best = rows if (best < 0).all() else best
    return best
