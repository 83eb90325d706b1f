"""A folder or file to read, what sources say about it, and the rows that they read from it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import cached_property
from importlib import import_module
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd

from baseline.data.sources.folders import holds_results, is_image, is_utf8, split_from_name, walk
from baseline.data.sources.read_table import ROW_BYTES, is_table, read_table
from baseline.errors import DataError
from baseline.files import parse_json
from baseline.reading import TooLargeError, read_lines, read_text
from baseline.recipe.schema import DataSettings

__all__ = [
    "Evidence",
    "MalformedFileError",
    "Place",
    "Source",
    "SourceTable",
    "foreign_content",
    "is_test_folder",
    "make_rows",
    "merge_notes",
    "named_share",
    "optional_module",
]


Content = TypeVar("Content")

MAX_DEPTH = 4
"""Number of folders below a place in which files that describe images are looked for."""

MAX_JSON_BYTES = 2**31

MAX_JSON_FILES = 50
"""Number of JSON files that are looked at. Where there are more, each describes one image."""


@dataclass
class SourceTable:
    """The rows read from a source, and how they were read."""

    table: pd.DataFrame
    """`path`, `label`, `split`, `group` and any other columns; see `baseline.data.table`."""
    layout: str
    """Description of the source, such as `a table of 20 rows, train.csv`."""
    columns: str = ""
    """Description of the columns used; it begins with `images` for a table."""
    notes: list[str] = field(default_factory=list)
    """Remarks for the user: guesses, and what was ignored."""
    reason: str = ""
    """What speaks for this way of reading it."""
    rejected: str = ""
    """The next best way of reading it, and what speaks against that."""


class MalformedFileError(Exception):
    """A file looks like one of a known format, and its content is not."""


@contextmanager
def foreign_content() -> Iterator[None]:
    """Context manager, and decorator, for code that reads what other tools wrote, whose parts may be of any type.

    Raises:
        MalformedFileError: where a part is missing or has another type.
    """
    try:
        yield
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise MalformedFileError(str(error)) from error


@dataclass(frozen=True)
class Evidence:
    """What speaks for a source.

    The strength is how certain the layout is where it fits (a file of a known format 1.0, a table named train 0.97,
    class folders 0.9, another table with usual column names 0.87, a table whose columns had to be guessed 0.8), less
    the more images it leaves unexplained.
    """

    strength: float
    """0 to 1."""
    layout: str
    """What the source would read, such as `class folders 'train' and 'test'`."""
    reason: str = ""
    """The facts that speak for it: `60 of 60 rows name an image in train/`."""
    found: Any = None
    """Whatever `rows` needs of what was found."""
    objection: str = ""
    """What speaks against it, as it reads after `because`: `'train' looks like a split, not a class`."""


class Source:
    """One layout of labeled images. A subclass in a module of its own in `layouts` is found by itself."""

    name = ""
    """The name for `--source`."""
    example = ""
    """One line: what such a source looks like; empty where it only gives advice."""

    def matches(self, place: Place) -> Evidence | None:
        """Return what speaks for this layout, or None if nothing does."""
        raise NotImplementedError

    def rows(self, place: Place, evidence: Evidence) -> SourceTable:
        """Read the folder or file in this layout.

        Raises:
            DataError: if it cannot be read in this layout.
        """
        raise NotImplementedError

    def hint(self, place: Place) -> str:
        """Return a sentence on how a folder that no source reads can be read; empty if there is no advice."""
        return ""


def optional_module(name: str) -> Any:
    """Return the module `baseline.data.sources.NAME`, or None where it is not installed."""
    return import_module(f"baseline.data.sources.{name}") if find_spec(f"baseline.data.sources.{name}") else None


@dataclass(frozen=True)
class Columns:
    """The columns of a table by their role; an empty name means that the column is detected."""

    image: str = ""
    label: str = ""
    """One column, or several separated by commas that contain 0 and 1."""
    group: str = ""
    split: str = ""
    image_dir: str = ""
    """Folder that the names in the image column are relative to; the table's own folder if empty."""


def columns_of(settings: DataSettings) -> Columns:
    """Return the columns that the settings name."""
    return Columns(settings.image_col, settings.label_col, settings.group_col, settings.split_col, settings.image_dir)


class Place:
    """A folder or a file, with what several sources want to know about it, looked up once.

    >>> place = Place(Path("images"))
    >>> place.folder.name, place.is_file
    ('images', False)
    """

    def __init__(self, path: Path, settings: DataSettings | None = None) -> None:
        str(path).encode()  # a name that is not UTF-8 is an error here, not where pandas or a file needs text
        self.path, self.settings = path, settings or DataSettings()
        self.is_file = path.is_file()
        self.folder = path.parent if self.is_file else path
        self._tables: dict[Path, pd.DataFrame | DataError] = {}
        self._json: dict[Path, Any] = {}
        self.too_large = ""

    @cached_property
    def folders(self) -> list[tuple[str, list[str], list[str]]]:
        """The visible folders, with the names of their images and of their other visible files."""
        listing = []
        for folder, names in walk(str(self.folder)):
            readable = [] if holds_results(names) else filter(is_utf8, names)
            images = [name for name in readable if is_image(os.path.join(folder, name))]
            listing.append((folder, images, sorted(set(names).difference(images))))
        return listing

    @cached_property
    def images(self) -> list[str]:
        """Absolute paths of all images below the folder."""
        return [os.path.join(folder, name) for folder, names, _ in self.folders for name in names]

    @cached_property
    def images_by_folder(self) -> Counter[str]:
        """The number of images directly in each folder, by its path relative to the place, which itself is `.`."""
        return Counter({self.relative(folder): len(names) for folder, names, _ in self.folders if names})

    @cached_property
    def files(self) -> list[Path]:
        """The visible files that are not images, the least deep first, down to `MAX_DEPTH` folders."""
        if self.is_file:
            return [self.path]
        deepest = len(self.folder.parts) + MAX_DEPTH
        files = [
            Path(folder, name)
            for folder, _, names in self.folders
            for name in names
            if folder.count(os.sep) < deepest and is_utf8(name)
        ]
        return sorted(files, key=lambda path: (len(path.parts), str(path)))

    def find(self, *patterns: str) -> list[Path]:
        """Return the files whose names match one of the patterns, regardless of case."""
        return [path for path in self.files if any(fnmatch(path.name.lower(), pattern) for pattern in patterns)]

    @property
    def tables_by_depth(self) -> list[list[Path]]:
        """The tables of the place, those in the least deep folders first, in one list per depth."""
        tables = [path for path in self.files if is_table(path)]
        return [list(group) for _, group in groupby(tables, key=lambda path: len(path.parts))]

    def table(self, path: Path) -> pd.DataFrame:
        """Read a table, once.

        Raises:
            DataError: if it cannot be read.
        """
        if path not in self._tables:
            try:
                self._tables[path] = read_table(path, ROW_BYTES, encoding=self.settings.encoding)
            except DataError as error:
                self._tables[path] = error
        frame = self._tables[path]
        if isinstance(frame, DataError):
            raise frame
        return frame

    def table_notes(self, path: Path) -> list[str]:
        """Return what was guessed about a table when it was read, such as its encoding."""
        return [str(note) for note in [self.table(path).attrs.get("note")] if note]

    def name_codes(
        self, labels: pd.Series, *, strict: bool = False, used: tuple[Path, ...] = ()
    ) -> tuple[pd.Series, list[str]]:
        """Return the labels with the names that a file of the place gives codes; see `code_names`."""
        code_names = optional_module("code_names")
        return code_names.name_codes(labels, self, strict=strict, used=used) if code_names else (labels, [])

    def json(self, path: Path) -> Any:
        """Return the content of a JSON file; None if it is not valid."""
        if path not in self._json:
            self._json[path] = self.load(path, lambda path: parse_json(read_text(path, MAX_JSON_BYTES, "utf-8-sig")))
        return self._json[path]

    @property
    def json_files(self) -> list[Path]:
        """The JSON files of the place that may describe all its images, the least deep ones."""
        return self.find("*.json")[:MAX_JSON_FILES]

    def lines(self, path: Path) -> list[str]:
        """Return the lines of a text file that are not empty, without surrounding spaces; none if it is not UTF-8."""
        return self.load(path, lambda path: read_lines(path, MAX_JSON_BYTES)) or []

    def load(self, path: Path, read: Callable[[Path], Content]) -> Content | None:
        """Return what a function reads from a file, or None if it cannot; `too_large` says if that is for its size."""
        try:
            return read(path)
        except TooLargeError as error:
            self.too_large = f"{path} cannot be read: {error}. Pass a part of it, or use a machine with more memory."
        except (OSError, ValueError):
            pass
        return None

    def relative(self, path: str | Path) -> str:
        """Return a path below the place as text, relative to it and with `/`."""
        text, prefix = str(path), f"{self.folder}{os.sep}"
        inside = text[len(prefix) :] if text.startswith(prefix) else os.path.relpath(text, self.folder)
        return inside.replace(os.sep, "/")


def named_share(place: Place, paths: Iterable[str]) -> float:
    """Return the share of a place's images that are among some paths; images in folders of test images do not count."""
    named = set(paths)
    unnamed = [place.relative(path).split("/")[:-1] for path in place.images if path not in named]
    counted = sum(not any(map(is_test_folder, folders)) for folders in unnamed)
    return len(named) / max(1, len(named) + counted)


def is_test_folder(name: str) -> bool:
    """Whether a folder's name says that it holds test images, or images to predict."""
    return split_from_name(name) == "test" or "pred" in name.lower()


def make_rows(paths: Iterable[str], labels: Iterable[Any], splits: Iterable[str | None] | str | None) -> pd.DataFrame:
    """Return rows of path, label, split and an empty group."""
    splits = splits if splits is None or isinstance(splits, str) else list(splits)
    return pd.DataFrame({"path": list(paths), "label": list(labels), "split": splits, "group": None})


def merge_notes(notes: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the notes on the parts of a source: once where all parts have the same note, else after the part's name.

    >>> merge_notes({"train": ["no header", "1 empty cell"], "test": ["no header"]})
    ['no header', 'train: 1 empty cell']
    """
    counts = Counter(note for part in notes.values() for note in part)
    shared = [note for note in counts if counts[note] == len(notes)]
    own = {name: [note for note in part if note not in shared] for name, part in notes.items()}
    return shared + [f"{name}: {', '.join(part)}" for name, part in own.items() if part]
