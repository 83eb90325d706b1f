"""Turn a table of images (CSV, TSV, Parquet, Excel, JSON lines or DataFrame) into rows of path, label, split and group.

Columns are used as named by the caller, or detected by name and by content: the image column is the one whose values
are images on disk, as full paths or bare IDs, with or without a suffix. Text is read as text: an ID `0012` stays so.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from baseline.data.labels import SEPARATOR, order_classes
from baseline.data.sources.columns import (
    IMAGE_COLUMN_NAMES,
    SPLIT_FLAGS,
    column_key,
    find_fold_column,
    find_group_column,
    find_image_column,
    find_label_columns,
    find_named_column,
    find_split_column,
    is_flag_column,
    read_splits,
    sample,
    splits_by_value,
)
from baseline.data.sources.folders import has_image_name, split_from_name
from baseline.data.sources.label_values import join_flags, join_labels, read_label_values
from baseline.data.sources.match_images import ImageFinder
from baseline.data.sources.place import Columns
from baseline.data.sources.read_table import column_as_text, read_table
from baseline.errors import DataError, format_count, quoted_list, similar_path, unknown_name
from baseline.files import resolve_path
from baseline.recipe.schema import DataSettings

__all__ = ["TableRows", "find_image_column", "read_image_paths", "rows_from_table"]


RESERVED_COLUMNS = ("bytes", "color_profile", "duplicate_id", "flaw", "fold", "frames", "height", "mode", "reason",
                    "turned", "value_high", "value_kind", "value_low", "width")  # fmt: skip
"""Column names that this package uses; a table's own column of such a name gets an underscore appended."""


MAX_MISSING = 0.05
"""Share of rows without an image or a label up to which they are left out unless `missing` says otherwise."""


BOX_COLUMNS = frozenset(("x", "y", "w", "h", "width", "height", "xmin", "ymin", "xmax", "ymax", "x_min", "y_min",
                         "x_max", "y_max", "x1", "y1", "x2", "y2"))  # fmt: skip
"""Names of columns that give a box in an image."""


MASK_COLUMNS = frozenset(
    ("encoded_pixels", "rle", "segmentation", "mask_rle", "rle_mask", "bbox", "bounding_box", "polygon")
)
"""Names of columns that give a mask or a whole box in one cell."""


@dataclass
class TableRows:
    """The rows read from a table."""

    table: pd.DataFrame
    summary: str
    """Which column is used for what."""
    notes: list[str] = field(default_factory=list)
    usual: bool = True
    """Whether the label column has a usual name, rather than being the only one that is left."""
    total: int = 0
    """Number of rows of the table."""
    listed: int = 0
    """Number of these that have an image."""
    labels: tuple[str, ...] = ()
    """The label columns."""


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
            "Pass --image-col COLUMN."
        )
    if frame[column].map(lambda value: isinstance(value, bytes | dict)).any():
        raise DataError(
            f"Column '{column}' of {path.name} holds images, not paths. Write them to files, and pass those."
        )
    return [str(path.parent / value) for value in column_as_text(frame[column])]


def rows_from_table(
    frame: pd.DataFrame,
    name: str,
    folder: Path,
    columns: Columns,
    settings: DataSettings | None = None,
    images: Sequence[str] | None = None,
) -> TableRows:
    """Return rows of `path` (absolute), `label`, `split`, `group` and the frame's other columns.

    Args:
        frame: a table with one row per image.
        name: its name in error messages.
        folder: where its images are searched, unless `columns.image_dir` names another folder.
        settings: what its labels mean, and what to do with rows without an image or a label.
        images: absolute paths of the images below the folder, if they are known.

    Raises:
        DataError: if no column contains images or labels, images are missing, a row is repeated, an image has two
            labels, or a label is empty.
    """
    settings = settings or DataSettings()
    frame, header_notes = restore_first_row(frame, name)
    frame = prepare_columns(frame, name, columns)
    folder = resolve_path(columns.image_dir) if columns.image_dir else folder
    if not folder.is_dir():
        problem = f"There is no folder {folder} to look for the images of {name} in.{similar_path(folder)}"
        raise DataError(f"{problem} Pass --image-dir FOLDER.")
    finder = ImageFinder(folder, split_of_table(name), None if columns.image_dir else images)
    image = columns.image or find_image_column(frame, finder)
    mask_notes: list[str] = []
    if not columns.image and not columns.label and (image is None or not finder.share(sample(frame[image]))[0]):
        frame, image, mask_notes = split_images_and_classes(frame, image, finder)
    if image is None:
        raise DataError(
            f"{name} has no column that looks like images; its columns: {quoted_list(frame.columns, 12)}. "
            "Pass --image-col COLUMN."
        )
    roles, total = find_roles(frame, image, columns, name), len(frame)
    frame, paths, notes = resolve_images(frame, image, finder, name, settings.missing)
    splits, split_note = combine_splits(frame, roles.split, image, name) if roles.split else (None, "")
    labels, label_summary, label_notes = read_labels(frame, roles.labels, settings, name)
    rows = pd.DataFrame({"path": paths, "label": labels, "split": splits, "group": None}, index=frame.index)
    if roles.group:
        values = column_as_text(frame[roles.group])
        rows["group"] = values.where(values != "", None)
    used = {*rows.columns, image, roles.split} - {find_fold_column(frame)}
    other_columns = [column for column in frame.columns if column not in used]
    rows = pd.concat([rows, frame[other_columns]], axis=1)
    if len(roles.labels) == 1:
        rows, empty_notes = drop_unlabeled(rows, roles.labels[0], name, settings.missing)
        label_notes += empty_notes
    if settings.task == "multilabel":
        rows = join_repeats(rows)
    elif has_boxes(frame) and settings.task == "auto" and rows["path"].duplicated().any():
        again = int(rows["path"].duplicated().sum())
        count = "1 row that lists" if again == 1 else f"{again:,} rows that list"
        mask_notes.append(f"{count} an image again, for another box or mask, joined with its first")
        rows = join_repeats(rows)
    check_no_repeats(rows, name)
    summary = [f"images from '{image}'", label_summary]
    summary += [f"groups from '{roles.group}'"] if roles.group else []
    summary += [f"splits from '{roles.split}'"] if roles.split else []
    notes = [*header_notes, *mask_notes, *finder.notes(), *notes, *label_notes, *([split_note] if split_note else [])]
    rows = rows.reset_index(drop=True)
    return TableRows(rows, ", ".join(summary), notes, roles.usual, total, len(frame), tuple(roles.labels))


def split_of_table(name: str) -> str:
    """Return the word that the paths of a table's images contain if several images have the same name."""
    split = split_from_name(Path(name).stem) or ("train" if "train" in name.lower() else "")
    return {"valid": "val"}.get(split, split)


def restore_first_row(frame: pd.DataFrame, name: str) -> tuple[pd.DataFrame, list[str]]:
    """Return the frame with its column names as the first row if one of them is an image, and a note that says so."""
    header = [str(column) for column in frame.columns]
    if not any(has_image_name(column) for column in header):
        return frame, []
    columns = [f"column {number}" for number in range(1, len(header) + 1)]
    first = pd.DataFrame([header], columns=columns, dtype=object)
    rest = frame.set_axis(columns, axis=1)
    return pd.concat([first, rest], ignore_index=True), [f"{name} has no header; its first line is read as a row"]


def prepare_columns(frame: pd.DataFrame, name: str, columns: Columns) -> pd.DataFrame:
    """Return the frame with text as column names, none of which is reserved, after checking those that were named."""
    frame = frame.rename(columns=lambda column: str(column).strip()).reset_index(drop=True)
    if len(duplicates := frame.columns[frame.columns.duplicated()]):
        raise DataError(f"{name} has two columns '{duplicates[0]}'. Rename one.")
    frame = frame.rename(columns={column: f"{column}_" for column in RESERVED_COLUMNS})
    for role, column in (("image", columns.image), ("group", columns.group), ("split", columns.split)):
        check_column_exists(frame, column, name, role)
    return frame


def check_column_exists(frame: pd.DataFrame, column: str, name: str, role: str) -> None:
    if column and column not in frame.columns:
        raise DataError(f"In {name}: {unknown_name('column', column, map(str, frame.columns))} Change --{role}-col.")


@dataclass(frozen=True)
class Roles:
    """The columns of labels, groups and splits of a table."""

    labels: list[str]
    group: str
    split: str
    usual: bool


def find_roles(frame: pd.DataFrame, image: str, columns: Columns, name: str) -> Roles:
    """Return the columns of labels, groups and splits."""
    named = split_column_names(columns.label)
    group = columns.group or find_group_column(frame, (image, *named))
    split = columns.split or find_split_column(frame, (image, group, *named))
    flags = [column for column in frame.columns if split and column_key(column) in SPLIT_FLAGS]
    used = [image, group, split, *flags]
    if columns.label:
        labels = [columns.label] if columns.label in frame.columns else named
        for column in labels or [columns.label]:
            check_column_exists(frame, column, name, "label")
        return Roles(labels, group, split, True)
    try:
        labels, usual = find_label_columns(frame, used, name)
    except DataError:
        if columns.group or not group:
            raise
        group = ""  # a possible group column contains the labels if there is no other column
        labels, usual = find_label_columns(frame, [image, split, *flags], name)
    return Roles(labels, group, split, usual)


def split_column_names(columns: str) -> list[str]:
    """Return the names between commas, without duplicates."""
    return list(dict.fromkeys(name.strip() for name in columns.split(",") if name.strip()))


def combine_splits(frame: pd.DataFrame, column: str, image: str, name: str) -> tuple[pd.Series, str]:
    """Return the splits in a column, and in the other ones of true and false where it is one, such as `is_test`."""
    splits, note = read_splits(frame, column, name)
    if column_key(column) in SPLIT_FLAGS:
        for other in frame.columns:
            if (
                other not in (column, image)
                and column_key(other) in SPLIT_FLAGS
                and splits_by_value(frame[other], other)
            ):
                more, other_note = read_splits(frame, other, name)
                splits = splits.mask(splits.eq("train") & more.ne("train"), more)
                note += f", {other_note}"
    return splits, note


def resolve_images(
    frame: pd.DataFrame, column: str, finder: ImageFinder, name: str, missing: str
) -> tuple[pd.DataFrame, list[str], list[str]]:
    """Return the rows that have an image, the path of each, and notes on those that have none.

    Raises:
        DataError: if more images are missing than `missing` allows.
    """
    texts = column_as_text(frame[column])
    paths = [finder.find(text) for text in texts]
    lost = [text for text, path in zip(texts, paths, strict=True) if path is None]
    if not lost:
        return frame, [str(path) for path in paths], []
    if missing == "error" or (missing == "auto" and len(lost) > MAX_MISSING * len(frame)) or len(lost) == len(frame):
        raise DataError(missing_images_message(lost, len(frame), column, finder, name))
    there = pd.Series([path is not None for path in paths], index=frame.index)
    empty = sum(text == "" for text in lost)
    noted = [f"{format_count(empty, 'row')} without an image left out"] if empty else []
    if named := [text for text in lost if text]:
        noted.append(f"{format_count(len(named), 'image')} not in {finder.folder} left out: {quoted_list(named, 3)}")
    return frame[there], [path for path in paths if path is not None], noted


def missing_images_message(lost: list[str], rows: int, column: str, finder: ImageFinder, name: str) -> str:
    """Return the message for a column of images of which some (`lost`) are empty or do not exist."""
    drop = " or --missing drop" if len(lost) < rows else ""
    if not any(lost):
        verb = "has" if len(lost) == 1 else "have"
        empty = f"{len(lost):,} of {rows:,} rows of {name} {verb} no image in column '{column}'."
        return f"{empty} Fill it in, or give --image-col COLUMN{drop}."
    verb = "is" if len(lost) == 1 else "are"
    first = next(text for text in lost if text)
    first = first if len(first) <= 80 else f"...{first[-77:]}"
    shown = f": '{first}'" if len(lost) == 1 else f", such as '{first}'"
    problem = f"{len(lost):,} of {rows:,} images in column '{column}' of {name} {verb} not in {finder.folder}{shown}."
    if several := several_files(first, finder):
        return f"{problem} {several}"
    ways = f"Pass --image-dir FOLDER{',' if drop else ' or'} --image-col COLUMN{drop}."
    return f"{problem} {likely_cause(lost, finder)}{ways}"


def several_files(name: str, finder: ImageFinder) -> str:
    """Return sentences on an image that was not found because several files may be it; empty if there are not."""
    index = finder.list_images()
    key = name.replace("\\", "/").rsplit("/", 1)[-1]
    alike = sorted([*index.get(key, []), *index.get(f"/{key}", [])])
    if len(alike) > 1:
        return f"{len(alike):,} images have this name: {quoted_list(alike, 2)}. Pass --image-dir FOLDER."
    pattern = re.compile(rf"{re.escape(os.path.splitext(key)[0])}[_-]\D[^/]*\.")
    parts = sorted(paths[0] for file, paths in index.items() if pattern.match(file))
    if len(parts) > 1:
        return f"Is it in several files, {quoted_list(parts[:2], 2)}? Join these in one file per image."
    return ""


def likely_cause(lost: list[str], finder: ImageFinder) -> str:
    """Return a sentence on why images of a table were not found, if one is likely; otherwise nothing."""
    index = finder.list_images()
    first = next((text for text in lost if text), "")
    if not index:
        return "There are no images in that folder. "
    key = first.replace("\\", "/").rsplit("/", 1)[-1]
    stem = os.path.splitext(key)[0]
    if near := index.get(f"/{stem}"):
        return f"The closest match is '{near[0]}'. "
    return f"That folder has images such as '{next(iter(index.values()))[0]}'. "


def read_labels(
    frame: pd.DataFrame, columns: list[str], settings: DataSettings, name: str
) -> tuple[pd.Series, str, list[str]]:
    """Return the label of each row, a phrase on where it comes from, and notes."""
    if len(columns) > 1:
        if invalid := [column for column in columns if not is_flag_column(frame[column])]:
            raise DataError(
                f"In {name} the label columns {quoted_list(invalid)} contain values other than 0 and 1. "
                "Pass --label-col with one column, or with columns of 0 and 1."
            )
        labels, notes = join_flags(frame, columns)
        return labels, f"labels from {len(columns)} columns of 0 and 1: {quoted_list(columns, 3)}", notes
    values = read_label_values(frame[columns[0]], columns[0], settings, name)
    meaning = f" ({values.summary})" if values.summary else ""
    return values.labels, f"labels from '{columns[0]}'{meaning}", values.notes


def has_boxes(frame: pd.DataFrame) -> bool:
    """Whether a table has columns of boxes or masks, of which an image may have several."""
    names = {column_key(str(column)) for column in frame.columns}
    return len(names & BOX_COLUMNS) >= 4 or bool(names & MASK_COLUMNS)


def split_images_and_classes(
    frame: pd.DataFrame, image: str | None, finder: ImageFinder
) -> tuple[pd.DataFrame, str | None, list[str]]:
    """Return a table of one row per image, with a column of 0 and 1 per class, if a column holds `IMAGE_CLASS`.

    So come tables of masks: each image is listed once for each class, with a mask if it is in the image. A table in any
    other layout is returned as it is, with the image column and no note.
    """
    masks = [column for column in frame.columns if column_key(str(column)) in MASK_COLUMNS]
    for column in frame.columns if masks else ():
        pairs = column_as_text(frame[column]).str.rpartition("_")
        images, classes = pairs[0], pairs[2]
        whole = (
            len(frame) == images.nunique() * classes.nunique()
            and not pd.concat([images, classes], axis=1).duplicated().any()
        )
        if whole and classes.nunique() > 1 and finder.share(images.head(50))[0] > 0.9:
            flags = (column_as_text(frame[masks[0]]) != "").astype(int).astype(str)
            table = pd.DataFrame({"image": images, "class": classes, "flag": flags})
            table = table.pivot(index="image", columns="class", values="flag").reset_index()
            note = f"an image has a class where '{masks[0]}' is not empty in '{column}'"
            return table.rename_axis(columns=None), "image", [note]
    return frame, image, []


def drop_unlabeled(rows: pd.DataFrame, column: str, name: str, missing: str) -> tuple[pd.DataFrame, list[str]]:
    """Return the rows that have a label, and a note on the others.

    Raises:
        DataError: if more labels are empty than `missing` allows. Images of a test split may all lack them.
    """
    empty = rows["label"] == ""
    notes = []
    if (test := empty & (rows["split"] == "test")).any() and (empty == (rows["split"] == "test")).all():
        notes.append(f"{format_count(int(test.sum()), 'test image')} without a label left out")
        return rows[~test], notes
    if empty.any():
        count = int(empty.sum())
        if missing == "error" or (missing == "auto" and count > MAX_MISSING * len(rows)) or count == len(rows):
            verb = "has" if count == 1 else "have"
            raise DataError(
                f"{count:,} of {len(rows):,} rows of {name} {verb} no label in '{column}', the first is row "
                f"{rows.index[empty][0] + 1}. Fill them in, or leave the rows out with --missing drop."
            )
        notes.append(f"{format_count(count, 'row')} without a label left out")
    return rows[~empty], notes


def join_repeats(rows: pd.DataFrame) -> pd.DataFrame:
    """Return one row per image, with the labels of its rows joined."""
    joined = rows.groupby("path", sort=False)["label"].agg(
        lambda labels: join_labels(SEPARATOR.join(labels).split(";"))
    )
    rows = rows.drop_duplicates("path")
    return rows.assign(label=rows["path"].map(joined))


def check_no_repeats(rows: pd.DataFrame, name: str) -> None:
    """Raise DataError if an image has more than one row."""
    repeated = rows[rows.duplicated("path", keep=False)]
    if repeated.empty:
        return
    labels_per_path = repeated.groupby("path", sort=False)["label"].nunique()
    if len(conflicts := labels_per_path.index[labels_per_path > 1]):
        path = conflicts[0]
        labels = quoted_list(order_classes(set(repeated.loc[repeated["path"] == path, "label"])))
        one = len(conflicts) == 1
        raise DataError(
            f"{len(conflicts):,} {'image' if one else 'images'} of {name} {'has' if one else 'have'} conflicting "
            f"labels, first {path}: {labels}. Keep one label, or, if an image has several, join them with "
            f"'{SEPARATOR}' or give --task multilabel."
        )
    count = len(repeated) - len(labels_per_path)
    repeats = "1 row" if count == 1 else f"{count:,} rows"
    raise DataError(
        f"{repeats} of {name} {'repeats' if count == 1 else 'repeat'} an image, first {repeated['path'].iloc[0]}. "
        "Drop the repeated rows."
    )
