"""Turn a table of images (CSV, TSV, Parquet or DataFrame) into rows of path, label, split and group.

Columns are used as named by the caller, or detected by name and by content: the image column is the one whose values
are images on disk, as full paths or bare IDs, with or without a suffix. Text is read as text: an ID `0012` stays so.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from baseline.data.labels import SEPARATOR
from baseline.data.sources.folders import IMAGE_SUFFIXES, SPLIT_NAMES
from baseline.data.sources.match_images import ImageFinder
from baseline.data.sources.read_table import cell_to_text, column_as_text, read_table
from baseline.errors import DataError, quoted_list, unknown_name
from baseline.files import resolve_path

__all__ = ["Columns", "TableRows", "find_image_column", "read_image_paths", "rows_from_table"]


IMAGE_COLUMN_NAMES = (
    "path", "image_path", "img_path", "filepath", "file_path", "image", "img", "photo", "picture", "file", "filename",
    "file_name", "image_name", "img_name", "fname", "image_id", "img_id", "photo_id", "id", "name",
)  # fmt: skip
"""Common names of the column of images, in order of preference."""


LABEL_COLUMN_NAMES = (
    "label", "labels", "class", "classes", "class_name", "target", "category", "tag", "tags", "breed", "species",
    "diagnosis", "y",
)  # fmt: skip
"""Common names of the column of labels, in order of preference."""


GROUP_COLUMN_NAMES = (
    "group", "group_id", "groups", "patient", "patient_id", "subject", "subject_id", "person", "photographer",
    "individual", "individual_id", "site", "location", "session", "series", "series_id", "video", "video_id", "track",
    "track_id", "sequence", "sequence_id",
)  # fmt: skip
"""Common names of the column of groups, in order of preference."""


RESERVED_COLUMNS = ("bytes", "duplicate_id", "fold", "frames", "height", "mode", "reason", "turned", "width")
"""Column names that this package uses; a table's own column of such a name gets an underscore appended."""


SPLIT_COLUMN_NAMES = ("split", "set", "subset", "partition", "phase")
"""Common names of the column of splits, in order of preference."""


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


@dataclass
class TableRows:
    """The rows read from a table."""

    table: pd.DataFrame
    summary: str
    """Which column is used for what."""
    notes: list[str] = field(default_factory=list)


def read_image_paths(path: Path, column: str = "") -> list[str]:
    """Return the image paths in one column of a table, relative to the table's folder; the images need not exist.

    Args:
        column: the column's name; detected by its name if empty.

    Raises:
        DataError: if the table cannot be read or has no such column.
    """
    frame = read_table(path).rename(columns=str)
    check_column_exists(frame, column, path.name, "image")
    only_column = str(frame.columns[0]) if len(frame.columns) == 1 else ""
    column = column or find_named_column(frame, IMAGE_COLUMN_NAMES) or only_column
    if not column:
        raise DataError(
            f"No column of {path} has a usual name for images; its columns: {quoted_list(frame.columns)}. "
            "Give --image-col COLUMN."
        )
    return [str(path.parent / value) for value in column_as_text(frame[column])]


def rows_from_table(frame: pd.DataFrame, name: str, folder: Path, columns: Columns) -> TableRows:
    """Return rows of `path` (absolute), `label`, `split`, `group` and the frame's other columns.

    Args:
        frame: a table with one row per image.
        name: its name in error messages.
        folder: where its images are searched, unless `columns.image_dir` names another folder.

    Raises:
        DataError: if no column contains images or labels, images are missing, a row is repeated, an image has two
            labels, or a label is empty.
    """
    frame = frame.rename(columns=str).reset_index(drop=True)
    if len(duplicates := frame.columns[frame.columns.duplicated()]):
        raise DataError(f"{name} has two columns '{duplicates[0]}'. Rename one.")
    frame = frame.rename(columns={column: f"{column}_" for column in RESERVED_COLUMNS})
    for role, column in (("image", columns.image), ("group", columns.group), ("split", columns.split)):
        check_column_exists(frame, column, name, role)
    folder = resolve_path(columns.image_dir) if columns.image_dir else folder
    if not folder.is_dir():
        raise DataError(f"There is no folder {folder} to look for the images of {name} in. Give --image-dir FOLDER.")
    finder = ImageFinder(folder, "train" if "train" in name.lower() else "")
    image, paths = resolve_images(frame, columns.image, finder, name)
    label_columns = tuple(split_column_names(columns.label))
    group = columns.group or find_named_column(frame, GROUP_COLUMN_NAMES, skip=(image, *label_columns))
    split = columns.split or find_split_column(frame, skip=(image, group, *label_columns))
    try:
        labels, label_summary = read_labels(frame, columns.label, (image, group, split), name)
    except DataError:
        if columns.group or columns.label or not group:
            raise
        group = ""  # a possible group column contains the labels if there is no other column
        labels, label_summary = read_labels(frame, "", (image, split), name)
    rows = pd.DataFrame({"path": paths, "label": labels, "split": None, "group": None})
    if split:
        rows["split"] = read_splits(frame[split], split, name)
    if group:
        values = column_as_text(frame[group])
        rows["group"] = values.where(values != "", None)
    other_columns = [column for column in frame.columns if column not in {*rows.columns, image, split}]
    rows = pd.concat([rows, frame[other_columns]], axis=1)
    check_no_repeats(rows, name)
    summary = [f"images from '{image}'", label_summary]
    summary += [f"groups from '{group}'"] if group else []
    summary += [f"splits from '{split}'"] if split else []
    return TableRows(rows, ", ".join(summary), finder.notes())


def check_column_exists(frame: pd.DataFrame, column: str, name: str, role: str) -> None:
    if column and column not in frame.columns:
        raise DataError(f"In {name}: {unknown_name('column', column, map(str, frame.columns))} Change --{role}-col.")


def find_named_column(frame: pd.DataFrame, names: tuple[str, ...], skip: tuple[str, ...] = ()) -> str:
    """Return the first column with one of these names, ignoring case and spaces; empty if there is none."""
    by_name = {str(column).strip().lower().replace(" ", "_"): str(column) for column in reversed(frame.columns)}
    return next((by_name[name] for name in names if name in by_name and by_name[name] not in skip), "")


def split_column_names(columns: str) -> list[str]:
    """Return the names between commas, without duplicates."""
    return list(dict.fromkeys(name.strip() for name in columns.split(",") if name.strip()))


def resolve_images(frame: pd.DataFrame, column: str, finder: ImageFinder, name: str) -> tuple[str, list[str]]:
    """Return the image column and the path of the image in each row."""
    image_column = column or find_image_column(frame, finder)
    if image_column is None:
        columns = quoted_list(frame.columns, 12)
        raise DataError(f"{name} has no column that looks like images; its columns: {columns}. Give --image-col.")
    texts = column_as_text(frame[image_column])
    paths = [finder.find(text) for text in texts]
    missing = [text for text, path in zip(texts, paths, strict=True) if path is None]
    if missing:
        raise DataError(
            f"{len(missing):,} of {len(frame):,} images of {name} are not in {finder.folder}: "
            f"{quoted_list(missing, 3)}. They are in its column '{image_column}'. Give --image-dir FOLDER or "
            "--image-col COLUMN, or drop the rows."
        )
    return image_column, [str(path) for path in paths]


def find_image_column(frame: pd.DataFrame, finder: ImageFinder) -> str | None:
    """Return the column whose values are images, else one that looks like it or has a usual name, else None."""
    named = [column for column in (find_named_column(frame, (name,)) for name in IMAGE_COLUMN_NAMES) if column]
    shares = {column: finder.share(frame[column].head(50)) for column in dict.fromkeys([*named, *frame.columns])}
    best = max(shares, key=lambda column: shares[column])
    if shares[best][0]:
        return best
    candidates = [column for column in shares if looks_like_images(frame[column].head(50))]
    return next(iter([*candidates, *named]), None)


def looks_like_images(values: pd.Series) -> bool:
    return all(os.path.splitext(cell_to_text(value))[1].lower() in IMAGE_SUFFIXES for value in values)


def find_split_column(frame: pd.DataFrame, skip: tuple[str, ...]) -> str:
    """Return the column with a usual name and no values other than split names; empty if there is none."""
    column = find_named_column(frame, SPLIT_COLUMN_NAMES, skip)
    return column if column and set(column_as_text(frame[column]).str.lower()) <= {"", *SPLIT_NAMES} else ""


def read_splits(values: pd.Series, column: str, name: str) -> pd.Series:
    texts = column_as_text(values)
    lower = texts.str.lower()
    if unknown := sorted(set(texts[~lower.isin(["", *SPLIT_NAMES])])):
        raise DataError(
            f"The column '{column}' of {name} contains {quoted_list(unknown)}; it must contain train, valid or test."
        )
    return lower.map(SPLIT_NAMES).astype(object).where(lower != "", None)


def read_labels(frame: pd.DataFrame, column: str, used: tuple[str, ...], name: str) -> tuple[pd.Series, str]:
    """Return the label of each row, and a phrase on where it comes from."""
    label_columns = [column] if column in frame.columns else split_column_names(column)
    if column:
        for label_column in label_columns or [column]:
            check_column_exists(frame, label_column, name, "label")
    else:
        label_columns = find_label_columns(frame, used, name)
    if len(label_columns) > 1:
        return labels_from_flags(
            frame, label_columns, name
        ), f"labels from {len(label_columns)} columns of 0 and 1, {quoted_list(label_columns, 3)}"
    labels = column_as_text(frame[label_columns[0]])
    if (empty := labels == "").any():
        first = labels.index[empty][0] + 1
        count = int(empty.sum())
        raise DataError(
            f"{count:,} of {len(frame):,} rows of {name} {'has' if count == 1 else 'have'} no label in "
            f"'{label_columns[0]}', the first is row {first}. Fill them in or drop the rows."
        )
    multiple = labels.str.contains(SEPARATOR, regex=False)
    if multiple.any():
        labels = labels.map(
            lambda text: SEPARATOR.join(sorted({part.strip() for part in text.split(SEPARATOR)} - {""}))
        )
    return labels, f"labels from '{label_columns[0]}'"


def find_label_columns(frame: pd.DataFrame, used: tuple[str, ...], name: str) -> list[str]:
    if column := find_named_column(frame, LABEL_COLUMN_NAMES, used):
        return [column]
    unused = [column for column in frame.columns if column not in used]
    flags = [column for column in unused if is_flag_column(frame[column])]
    if len(flags) >= 2:
        return flags
    if len(unused) == 1:
        return unused
    columns = quoted_list(frame.columns, 12)
    raise DataError(f"{name} has no column that looks like labels; its columns: {columns}. Give --label-col COLUMN.")


def is_flag_column(values: pd.Series) -> bool:
    return set(values.map(cell_to_text)) <= {"0", "1", "True", "False", "true", "false", "0.0", "1.0"}


def labels_from_flags(frame: pd.DataFrame, columns: list[str], name: str) -> pd.Series:
    """Return the names of the columns that are 1 in each row, joined if there are several."""
    if invalid := [column for column in columns if not is_flag_column(frame[column])]:
        raise DataError(
            f"In {name} the label columns {quoted_list(invalid)} contain values other than 0 and 1. Give --label-col."
        )
    flags = frame[columns].map(lambda value: cell_to_text(value).lower() in ("1", "true", "1.0"))
    order = sorted(columns)
    return flags[order].apply(lambda row: SEPARATOR.join(c for c, on in zip(order, row, strict=True) if on), axis=1)


def check_no_repeats(rows: pd.DataFrame, name: str) -> None:
    """Raise DataError if an image has more than one row."""
    repeated = rows[rows.duplicated("path", keep=False)]
    if repeated.empty:
        return
    labels_per_path = repeated.groupby("path", sort=False)["label"].nunique()
    if len(conflicts := labels_per_path.index[labels_per_path > 1]):
        path = conflicts[0]
        labels = quoted_list(sorted(set(repeated.loc[repeated["path"] == path, "label"])))
        one = len(conflicts) == 1
        raise DataError(
            f"{len(conflicts):,} {'image' if one else 'images'} of {name} {'has' if one else 'have'} conflicting "
            f"labels, first {path}: {labels}. Keep one label, or join them with '{SEPARATOR}' if an image has several."
        )
    count = len(repeated) - len(labels_per_path)
    repeats = "1 row" if count == 1 else f"{count:,} rows"
    raise DataError(
        f"{repeats} of {name} {'repeats' if count == 1 else 'repeat'} an image, first {repeated['path'].iloc[0]}. "
        "Drop the repeated rows."
    )
