"""TODO."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd

from baseline.data.sources.folders import images_below
from baseline.data.sources.read_table import _to_text
from baseline.errors import DataError

__all__ = ["ImageFinder", "match_rows"]


class ImageFinder:
    """Images by the names that tables give them. The folder is listed once, and only if a plain path is not enough.

    Where several images have the name, the one is meant that has the word `part` (`"train"`, `"test"`) in its path.
    """

    def __init__(self, folder: Path, part: str = "") -> None:
        self.folder, self.part = folder, part
        self.listed: dict[str, list[str]] | None = None
        self.without_ending = self.elsewhere = 0

    def share(self, values: pd.Series) -> tuple[float, float]:
        """How many of these values are images, and how many by their whole names, 0-1: `7` may be any row's number."""
        looks = [self._look(text) if text else (None, "") for text in map(_to_text, values)]
        found = [how for path, how in looks if path is not None]
        return len(found) / max(1, len(looks)), sum(how != "stem" for how in found) / max(1, len(looks))

    def find(self, name: str) -> str | None:
        """The image of this name; None where there is none, or more than one that fits equally well."""
        path, how = self._look(name) if name else (None, "")
        self.without_ending += how == "stem"
        self.elsewhere += how != "exact" and path is not None
        return path

    def notes(self) -> list[str]:
        """What had to be guessed, in words."""
        found = []
        if self.without_ending:
            found.append(f"{self.without_ending:,} images are named without their ending")
        if self.elsewhere:
            found.append(f"{self.elsewhere:,} images were found in folders below {self.folder}")
        return found

    def _look(self, name: str) -> tuple[str | None, str]:
        path = os.path.normpath(os.path.join(self.folder, name))
        if os.path.isfile(path):
            return path, "exact"
        key, listed = name.rsplit("/", 1)[-1], self._list()
        below = [each for each in listed.get(key, []) if f"/{each}".endswith(f"/{name}")]
        bare = [each for each in listed.get(f"/{key}", []) if f"/{os.path.splitext(each)[0]}".endswith(f"/{name}")]
        for paths, how in ((below, "below"), (bare, "stem")):
            if paths and (one := self._only(paths)):
                return os.path.join(self.folder, one), how
        return None, ""

    def _list(self) -> dict[str, list[str]]:
        """Images, as paths below the folder, by file name, and (after a `/`) by file name without ending."""
        if self.listed is None:
            self.listed = {}
            for path in images_below(self.folder):
                relative = os.path.relpath(path, self.folder)
                file = relative.rsplit("/", 1)[-1]
                self.listed.setdefault(file, []).append(relative)
                self.listed.setdefault("/" + os.path.splitext(file)[0], []).append(relative)
        return self.listed

    def _only(self, paths: list[str]) -> str | None:
        """The one image, or the one in a folder of the part that the table names."""
        if len(paths) > 1 and self.part:
            paths = [each for each in paths if self.part in each.lower()]
        return paths[0] if len(paths) == 1 else None


def match_rows(paths: pd.Series, named: pd.Series, file: str) -> np.ndarray:
    """For each path the row of the same image among those that a file names, -1 where there is none: by whole path,
    else by the shortest common end that tells all images apart, so that images may have moved.

    Raises:
        DataError: if the file names an image twice.

    >>> match_rows(pd.Series(["/new/a/1.jpg", "/new/b/1.jpg"]), pd.Series(["/old/b/1.jpg"]), "split.csv").tolist()
    [-1, 0]
    """
    if named.duplicated().any():
        raise DataError(f"{file} names an image twice: {named[named.duplicated()].iloc[0]}.")
    if paths.isin(named).any():
        return pd.Index(named).get_indexer(pd.Index(paths))
    found = np.full(len(paths), -1)
    for parts in range(1, 12):
        wanted, ends = (each.str.split("/").str[-parts:].str.join("/") for each in (named, paths))
        if wanted.is_unique:
            rows = pd.Index(wanted).get_indexer(pd.Index(ends))
            hits = rows[rows >= 0]
            if len(hits) and pd.Series(hits).is_unique:
                return rows
            found = rows if (found < 0).all() else found
    return found
