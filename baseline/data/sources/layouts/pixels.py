"""The source "pixels": tables whose columns are the pixels of small images, such as MNIST's CSV files and FER-2013."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from io import StringIO, TextIOWrapper
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from baseline.data.sources.cached_images import cached_images
from baseline.data.sources.columns import column_key, find_split_column, read_splits
from baseline.data.sources.folders import split_from_name
from baseline.data.sources.place import Evidence, Place, Source, SourceTable, make_rows
from baseline.data.sources.read_table import MAX_HEADER, cell_to_text, detect_text_format
from baseline.errors import DataError, format_count, quoted_list
from baseline.files import to_csv, write_atomic

__all__ = ["Pixels"]


MIN_PIXELS = 64

ROWS_AT_ONCE = 2000

HEAD_LINES = 6
"""Number of lines that are read to recognize a table of pixels."""

LABEL_NAMES = ("label", "class", "target", "y", "emotion", "digit", "character", "letter", "labels", "category")


@dataclass
class PixelTable:
    """A table of pixels."""

    path: Path
    label: str
    pixels: list[str]
    """The columns of pixels, or the single one of texts with all pixels of an image."""
    header: bool
    split: str | None

    @property
    def count(self) -> int:
        """Number of pixel columns."""
        return len(self.pixels)


class Pixels(Source):
    """Pixels in the columns of a table."""

    name = "pixels"
    example = "train.csv with the columns label, pixel0, pixel1, ... or emotion, pixels, Usage"

    def matches(self, place: Place) -> Evidence | None:
        files = (
            place.find("*.csv") if not place.is_file else [place.path] if place.path.suffix.lower() == ".csv" else []
        )
        tables = [table for path in files if (table := read_pixel_header(path))]
        labeled = [table for table in tables if table.label]
        if not labeled:
            return None
        train = next((table for table in labeled if table.split == "train"), labeled[0])
        alike = [table for table in labeled if table.count == train.count and table is not train]
        splits = {train.split}
        used = [train]
        for table in alike:
            if table.split and table.split not in splits:
                used.append(table)
                splits.add(table.split)
        strength = 0.98 if place.is_file or not place.images else 0.3
        names = " and ".join(table.path.name for table in used)
        unused = [table.path.name for table in tables if table not in used]
        reason = f"{format_count(train.count, 'column')} of pixels" if train.count > 1 else "a column of pixels"
        return Evidence(strength, f"pixels in {names}", reason, (used, unused))

    def rows(self, place: Place, evidence: Evidence) -> SourceTable:
        used, unused = evidence.found
        tables, notes = [], []
        for table in used:
            rows, table_notes = write_images(table)
            if len(used) > 1 and rows["split"].isna().all():
                rows["split"] = table.split
            tables.append(rows)
            notes += table_notes
        rows = pd.concat(tables, ignore_index=True)
        rows["label"], code_notes = place.name_codes(rows["label"], used=tuple(table.path for table in used))
        notes += [f"{quoted_list(unused, 3)} not read: no labels, or images of another size"] if unused else []
        names = " and ".join(table.path.name for table in used)
        label = f"'{used[0].label}'" if used[0].header else f"column {int(used[0].label) + 1}"
        source = SourceTable(rows, f"pixels in {names}, saved as PNG files", f"labels from {label}")
        source.notes = [*dict.fromkeys(notes), *code_notes]
        return source


def read_pixel_header(path: Path) -> PixelTable | None:
    """Return where labels and pixels are in a table, from its first rows; None if it holds no pixels."""
    try:
        encoding, delimiter = detect_text_format(path)
        with path.open(encoding=encoding, newline="") as file:
            lines = "".join(file.readline(MAX_HEADER) for _ in range(HEAD_LINES))
        head = pd.read_csv(StringIO(lines), sep=delimiter, nrows=5, dtype=str, keep_default_na=False)
    except (OSError, ValueError, pd.errors.ParserError):
        return None
    header = not all(re.fullmatch(r"-?\d+(\.\d+)*", str(column)) for column in head.columns)
    if not header:
        head = pd.read_csv(StringIO(lines), sep=delimiter, nrows=5, dtype=str, header=None).rename(columns=str)
    split = split_from_name(path.stem) or ("train" if "train" in path.stem.lower() else None)
    texts = [c for c in head.columns if len(head) and head[c].map(lambda t: len(str(t).split()) >= MIN_PIXELS).all()]
    numeric = [c for c in head.columns if head[c].str.fullmatch(r"-?\d+(\.\d+)?(e[+-]?\d+)?").all()]
    by_name = {column_key(str(column)): column for column in head.columns}
    label = next((by_name[name] for name in LABEL_NAMES if name in by_name), "")
    if texts:
        return PixelTable(path, label, texts[:1], header, split)
    pixels = [column for column in numeric if column != label]
    if not header and len(head.columns) - 1 >= MIN_PIXELS:
        label = head.columns[0] if side_of(len(head.columns) - 1)[0] else ""
        pixels = [column for column in pixels if column != label]
    elif not label and len(pixels) >= MIN_PIXELS and not side_of(len(pixels))[0] and side_of(len(pixels) - 1)[0]:
        odd = [column for column in pixels if not re.fullmatch(r"(?i)(p|px|pix|pixel)?[ _]?\d+(x\d+)?", column.strip())]
        label = odd[0] if len(odd) == 1 else ""
        pixels = [column for column in pixels if column != label]
    if len(pixels) < MIN_PIXELS or not side_of(len(pixels))[0]:
        return None
    return PixelTable(path, label, pixels, header, split)


def side_of(pixels: int) -> tuple[int, int]:
    """Return the side of a square image of so many values, and its channels; 0 if it is none.

    >>> side_of(784), side_of(2352), side_of(100_000)
    ((28, 1), (28, 3), (0, 0))
    """
    for channels in (1, 3):
        side = round((pixels / channels) ** 0.5)
        if side * side * channels == pixels:
            return side, channels
    return 0, 0


def write_images(table: PixelTable) -> tuple[pd.DataFrame, list[str]]:
    """Write the images of a table as PNG files into the cache, once, and return their rows and notes.

    Raises:
        DataError: if a cell is no number, or the pixels of a row are no square.
    """
    notes: list[str] = []
    folder = cached_images("pixels", table.path, lambda work: save_table(table, work), notes.append)
    facts = pd.read_csv(folder / "images.csv", dtype=str, keep_default_na=False)
    split = find_split_column(facts.drop(columns=["file", "label"]), ())
    splits, note = read_splits(facts, split, table.path.name) if split else (None, "")
    rows = make_rows([str(folder / name) for name in facts["file"]], facts["label"], None)
    if splits is not None:
        rows["split"] = splits.to_numpy()
    return rows, [*notes, *([note] if note else []), *((folder / "notes.txt").read_text("utf-8").splitlines())]


def save_table(table: PixelTable, folder: Path) -> None:
    """Write the images of a table, `images.csv` with their labels and other columns, and `notes.txt`."""
    from PIL import Image

    scale, notes = scale_of(table)
    facts = []
    number = 0
    for chunk in read_chunks(table):
        others = [column for column in chunk.columns if column not in table.pixels]
        for row, values in zip(chunk[others].to_dict("records"), pixel_arrays(chunk, table), strict=True):
            side, channels = side_of(len(values))
            if not side:
                where = f"Row {number + 1} of {table.path.name}"
                raise DataError(f"{where} has {len(values):,} pixels, which make no square image. Correct the table.")
            image = np.clip(np.rint(values * scale), 0, 255).astype(np.uint8).reshape(side, side, channels).squeeze()
            name = f"{number:07}.png"
            Image.fromarray(image).save(folder / name, compress_level=1)
            label = cell_to_text(row.pop(table.label))
            facts.append({"file": name, "label": re.sub(r"\.0+$", "", label), **row})
            number += 1
    write_atomic(folder / "images.csv", to_csv(pd.DataFrame(facts)))
    write_atomic(folder / "notes.txt", "\n".join(notes))


class NoNullText(TextIOWrapper):
    """The text of a file, which ends with an error at a null byte: a sparse file would go on for ever."""

    def read(self, size: int | None = -1, /) -> str:
        """Return at most so many characters, as every file does."""
        if "\0" in (text := super().read(size)):
            raise DataError(f"{self.name} has a null byte where text was needed. Correct the table.")
        return text


def read_chunks(table: PixelTable) -> Iterator[pd.DataFrame]:
    encoding, delimiter = detect_text_format(table.path)
    options: dict[str, Any] = {"sep": delimiter, "chunksize": ROWS_AT_ONCE}
    text = {table.label: str} if table.header else {int(table.label): str}
    with NoNullText(table.path.open("rb"), encoding, newline="") as file:
        for chunk in pd.read_csv(file, header=0 if table.header else None, dtype=text, **options):
            yield chunk.rename(columns=str)


def pixel_arrays(chunk: pd.DataFrame, table: PixelTable) -> Iterator[np.ndarray]:
    """Yield the values of each image, float64."""
    try:
        if table.count == 1:
            for text in chunk[table.pixels[0]]:
                yield np.array(str(text).split(), dtype=float)
        else:
            yield from chunk[table.pixels].to_numpy(float)
    except ValueError:
        raise DataError(f"{table.path.name} has pixels that are not numbers. Correct the table.") from None


def scale_of(table: PixelTable) -> tuple[float, list[str]]:
    """Return the factor that makes the brightest value of the first rows 255, and a note if it is not 1."""
    chunk = next(read_chunks(table))
    highest = max(float(values.max()) for values in pixel_arrays(chunk, table))
    lowest = min(float(values.min()) for values in pixel_arrays(chunk, table))
    if lowest < 0 or highest > 255:
        raise DataError(
            f"{table.path.name} has values from {lowest:g} to {highest:g}, which are no pixels from 0 to 255."
        )
    if highest <= 1:
        return 255.0, ["pixels from 0 to 1 read as 0 to 255"]
    if highest <= 16:
        return 255 / 16, ["pixels from 0 to 16 read as 0 to 255"]
    return 1.0, []
