"""The source "table" for folders: one table or several beside the images that they name, as on Kaggle."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import shorten

import pandas as pd

from baseline.data.sources.columns import (
    IMAGE_COLUMN_NAMES,
    LABEL_COLUMN_NAMES,
    find_fold_column,
    find_image_column,
    find_named_column,
    find_split_column,
    read_splits,
)
from baseline.data.sources.folders import split_from_name
from baseline.data.sources.image_tables import ImageTable
from baseline.data.sources.list_files import read_list_splits
from baseline.data.sources.match_images import ImageFinder
from baseline.data.sources.place import (
    Columns,
    Evidence,
    Place,
    SourceTable,
    columns_of,
    merge_notes,
    named_share,
    optional_module,
)
from baseline.data.sources.read_table import column_as_text, read_header
from baseline.data.sources.tables import TableRows, rows_from_table
from baseline.errors import DataError, format_count, quoted_list

__all__ = ["TablesBesideImages"]


MAX_COLUMNS = 400
"""Number of columns above which a table holds pixels or features rather than facts about images."""


MAX_TABLES = 40
"""Number of tables in folders of one depth above which they are parts of something else."""


@dataclass
class Candidate:
    """One table beside images, as it would be read."""

    path: Path
    rows: TableRows | None = None
    problem: DataError | None = None
    split: str | None = None
    """The split that its name stands for."""

    @property
    def strength(self) -> float:
        """How certain it is that this table describes the images, 0 to 1, apart from how many it names."""
        if self.rows is None:
            return 0.3
        known = 0.1 if self.split == "train" else 0.0
        return (0.87 if self.rows.usual else 0.8) * len(self.rows.table) / max(1, self.rows.listed) + known


@dataclass
class TableReading:
    """The tables that are read together."""

    used: list[Candidate]
    splits: list[Path] = field(default_factory=list)
    """Tables that only give the split of each image."""


class TablesBesideImages(ImageTable):
    """A table that names its images, alone or beside them."""

    example = "train.csv with the columns image and label, alone or beside the folder of the images"

    def matches(self, place: Place) -> Evidence | None:
        if place.is_file:
            return super().matches(place)
        candidates = find_candidates(place)
        if not candidates:
            return None
        if candidates[0].rows is None:
            best = candidates[0]
            return Evidence(0.3, f"the table {best.path.name}", "", TableReading([best]), objection_of(best))
        reading = TableReading(choose_tables(candidates), split_tables(place))
        total = sum(candidate.rows.total for candidate in reading.used if candidate.rows)
        listed = sum(candidate.rows.listed for candidate in reading.used if candidate.rows)
        share = named_share(place, [path for c in reading.used if c.rows for path in c.rows.table["path"]])
        named = columns_of(place.settings) != Columns()  # and the table has them, or it could not be read
        strength = 1.0 if named else min(1.0, reading.used[0].strength) * (0.5 + 0.5 * share)
        names = describe_names(place, reading)
        where = common_folder(place, reading)
        reason = f"{listed:,} of {total:,} rows name an image" + (f" in {where}" if where else "")
        noun = "table" if len(reading.used) == 1 else "tables"
        return Evidence(strength, f"the {noun} {names}", reason, reading)

    def rows(self, place: Place, evidence: Evidence) -> SourceTable:
        if place.is_file:
            return super().rows(place, evidence)
        reading: TableReading = evidence.found
        first = reading.used[0]
        if first.rows is None:
            raise first.problem or DataError(f"{first.path} cannot be read.")
        tables = []
        notes: dict[str, list[str]] = {}
        for candidate in reading.used:
            rows = candidate.rows.table if candidate.rows else pd.DataFrame()
            if len(reading.used) > 1 and rows["split"].isna().all():
                rows = rows.assign(split=candidate.split)
            tables.append(rows)
            table_notes = candidate.rows.notes if candidate.rows else []
            notes[place.relative(candidate.path)] = [*table_notes, *place.table_notes(candidate.path)]
        table = pd.concat(tables, ignore_index=True)
        table, split_notes = add_splits(table, place, reading.splits)
        if table["split"].isna().all():
            splits, lists = read_list_splits(place, table["path"].tolist())
            if lists:
                table["split"] = table["path"].map(splits).astype(object).where(lambda split: split.notna(), None)
                split_notes = [f"splits from {' and '.join(lists)}"]
        table["label"], code_notes = place.name_codes(table["label"], used=tuple(c.path for c in reading.used))
        names = describe_names(place, reading)
        source = SourceTable(table, f"{names}, with the images in {place.folder}")
        source.columns = first.rows.summary
        used = {candidate.path for candidate in reading.used} | set(reading.splits if split_notes else [])
        others = [path.name for path in describing_tables(place, first.path) if path not in used]
        others = [name for name in others if f"class names from {name}" not in code_notes]
        source.notes = [*merge_notes(notes), *split_notes, *code_notes]
        source.notes += [f"{quoted_list(others)} not read"] if others else []
        unlisted = len(set(place.images) - set(table["path"]))
        source.notes += [f"{format_count(unlisted, 'image')} without a label in {names} ignored"] if unlisted else []
        return source


def objection_of(candidate: Candidate) -> str:
    """Return why a table cannot be read, from the first sentence of the error."""
    name, message = candidate.path.name, str(candidate.problem)
    sentence = re.split(r"[;.] |: '|, such as", message.replace(f"{name} has", "it has"))[0]
    return shorten(sentence, 160, placeholder="...")


def find_candidates(place: Place) -> list[Candidate]:
    """Return the least deep tables that describe images; only those that can be read, if there are any."""
    for tables in place.tables_by_depth[:2]:
        if len(tables) <= MAX_TABLES:
            candidates = [candidate for path in tables if (candidate := read_candidate(place, path))]
            readable = [candidate for candidate in candidates if candidate.rows is not None]
            if readable or candidates:
                return readable or candidates[:1]
    return []


def describe_names(place: Place, reading: TableReading) -> str:
    """Return the names of the tables that are read, as text."""
    *names, last = [place.relative(candidate.path) for candidate in reading.used]
    return f"{', '.join(names)} and {last}" if names else last


def describing_tables(place: Place, used: Path) -> list[Path]:
    """Return the tables as deep as a used one, without submissions and tables of test images."""
    tables = next(tables for tables in place.tables_by_depth if used in tables)
    return [
        path for path in tables if "submission" not in path.stem.lower() and not path.stem.lower().startswith("test")
    ]


def read_candidate(place: Place, path: Path) -> Candidate | None:
    """Read a table that may name the images beside it; None if it does not."""
    stem = path.stem.lower()
    parquet = optional_module("layouts.parquet_images") if path.suffix.lower() == ".parquet" else None
    if "submission" in stem or (parquet and parquet.read_schema(path)):  # as a table, its images would fill the memory
        return None
    parent = path.parent.name if path.parent != place.folder else ""
    split = split_from_name(path.stem) or ("train" if "train" in stem else split_from_name(parent))
    settings, columns = place.settings, columns_of(place.settings)
    try:
        if len(read_header(path)) > MAX_COLUMNS or len((frame := place.table(path)).columns) > MAX_COLUMNS:
            return None
        folder = path.parent
        if folder != place.folder and not any(name.startswith(f"{folder}{os.sep}") for name in place.images):
            folder = place.folder  # annotations/labels.csv beside images/
        images = [name for name in place.images if name.startswith(f"{folder}{os.sep}")]
        rows = rows_from_table(frame, path.name, folder, columns, settings, images)
    except DataError as error:
        return Candidate(path, None, error, split) if split != "test" and is_described(place, path) else None
    return Candidate(path, rows, None, split)


def is_described(place: Place, path: Path) -> bool:
    """Whether a table that cannot be read as labels names images of the place at all."""
    try:
        frame = place.table(path).rename(columns=str)
    except DataError:
        return True
    if place.settings.image_col in frame and place.settings.image_col:
        return True
    if find_named_column(frame, IMAGE_COLUMN_NAMES) and find_named_column(frame, LABEL_COLUMN_NAMES):
        return True
    finder = ImageFinder(place.folder, images=place.images)
    return any(finder.share(frame[column].head(20))[0] > 0.5 for column in frame.columns[:12]) or (
        "train" in path.stem.lower()
    )


def choose_tables(candidates: list[Candidate]) -> list[Candidate]:
    """Return the table that describes the images best, and those beside it that describe other splits alike."""

    def rank(candidate: Candidate) -> tuple[float, int, str]:
        return -round(candidate.strength, 1), len(candidate.path.stem), candidate.path.name

    labeled = [candidate for candidate in candidates if candidate.split != "test"] or candidates
    best = min(labeled, key=rank)
    used = [best]
    if best.split and best.rows:
        paths = set(best.rows.table["path"])
        for other in sorted(candidates, key=rank):
            alike = other.rows and other.rows.labels == best.rows.labels and other.split not in {c.split for c in used}
            if alike and other.split and other.rows and not paths & set(other.rows.table["path"]):
                used.append(other)
                paths |= set(other.rows.table["path"])
    return used


def split_tables(place: Place) -> list[Path]:
    """Return the tables that give the split of each image and no label."""
    found = []
    for path in place.find("*.csv", "*.tsv"):
        if 2 <= len(read_header(path)) <= 3:
            try:
                frame = place.table(path).rename(columns=lambda column: str(column).strip())
            except DataError:
                continue
            if find_split_column(frame, ()):
                found.append(path)
    return found


def add_splits(table: pd.DataFrame, place: Place, paths: list[Path]) -> tuple[pd.DataFrame, list[str]]:
    """Return the rows with the splits that a second table gives, and a note that names it."""
    if table["split"].notna().any():
        return table, []
    for path in paths:
        frame = place.table(path).rename(columns=lambda column: str(column).strip())
        split = find_split_column(frame, ())
        finder = ImageFinder(place.folder, images=place.images)
        image = find_image_column(frame.drop(columns=split), finder)
        if image is None:
            continue
        splits, note = read_splits(frame, split, path.name)
        image_paths = [finder.find(name) for name in frame[image].astype(str)]
        found = table["path"].map(dict(zip(image_paths, splits, strict=True)))
        if found.notna().mean() > 0.5:
            rest = f", which has no split for {int(found.isna().sum()):,}" if found.isna().any() else ""
            table = table.assign(split=found.where(found.notna(), None))
            if fold := find_fold_column(frame):
                folds = dict(zip(image_paths, column_as_text(frame[fold]), strict=True))
                table[f"{fold}_"] = table["path"].map(folds).fillna("")
            return table, [f"splits from {path.name}{rest} ({note})"]
    return table, []


def common_folder(place: Place, reading: TableReading) -> str:
    """Return the folder of the place that contains all images of the tables, such as `train/`; empty if none does."""
    folders = {
        place.relative(path).rpartition("/")[0].split("/")[0]
        for candidate in reading.used
        if candidate.rows
        for path in candidate.rows.table["path"]
    }
    return f"{folders.pop()}/" if len(folders) == 1 and folders != {""} else ""
