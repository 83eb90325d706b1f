"""A CSV, TSV, Parquet file or DataFrame -> rows of path, label, split, group. Knows columns and names of files.

Columns are taken as named by the caller, else found by name and by content: the image column is the one whose values
are images on disk, whole paths or bare ids, with or without an ending. Text is read as text: an id `0012` stays so.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from baseline.data.labels import SEPARATOR
from baseline.data.sources.folders import IMAGE_SUFFIXES, SPLIT_NAMES
from baseline.data.sources.match_images import ImageFinder
from baseline.data.sources.read_table import _to_text, column_as_text, read_table
from baseline.errors import DataError, quoted_list, unknown_name
from baseline.files import resolve_path

__all__ = ["Columns", "image_column", "listed_images", "rows_from_table"]


IMAGE_COLUMN_NAMES = (
    "path", "image_path", "img_path", "filepath", "file_path", "image", "img", "image", "picture", "file", "filename",
    "file_name", "image_name", "img_name", "fname", "image_id", "img_id", "image_id", "id", "name",
)  # fmt: skip

LABEL_COLUMN_NAMES = (
    "label", "labels", "class", "classes", "class_name", "target", "category", "tag", "tags", "breed", "species",
    "diagnosis", "y",
)  # fmt: skip

GROUP_COLUMN_NAMES = (
    "group", "group_id", "groups", "patient", "patient_id", "subject", "subject_id", "person", "photographer",
    "individual", "individual_id", "site", "location", "session", "series", "series_id", "video", "video_id", "track",
    "track_id", "sequence", "sequence_id",
)  # fmt: skip

RESERVED_COLUMNS = ("bytes", "duplicate_id", "fold", "frames", "height", "mode", "reason", "turned", "width")
"""Columns that are ours; a table's own of such a name gets an underscore."""


SPLIT_COLUMN_NAMES = ("split", "set", "subset", "partition", "phase")


@dataclass(frozen=True)
class Columns:
    """Which column is what; empty where it has to be found."""

    image: str = ""
    label: str = ""
    """One column, or several between commas: 0 and 1 in each."""
    group: str = ""
    split: str = ""
    image_dir: str = ""
    """The folder that names in the image column belong to; the table's own where empty."""


@dataclass
class TableRows:
    """What a table gave."""

    table: pd.DataFrame
    words: str
    """Which column was taken for what."""
    notes: list[str] = field(default_factory=list)


def listed_images(path: Path, column: str = "") -> list[str]:
    """The paths of images in one column of a table, found by its name where none is given, from the table's folder on.

    They need not be there.

    Raises:
        DataError: if the table cannot be read or has no such column.
    """
    frame = read_table(path).rename(columns=str)
    _check_column(frame, column, path.name, "image")
    only = str(frame.columns[0]) if len(frame.columns) == 1 else ""
    column = column or _find_named_column(frame, IMAGE_COLUMN_NAMES) or only
    if not column:
        raise DataError(f"No column of {path} is named as images are: {quoted_list(frame.columns)}. Give --image-col.")
    return [str(path.parent / value) for value in column_as_text(frame[column])]


def rows_from_table(frame: pd.DataFrame, name: str, folder: Path, columns: Columns) -> TableRows:
    """Rows of `path` (absolute), `label`, `split`, `group` and the frame's other columns.

    Args:
        frame: a table with one row an image.
        name: what to call it in errors.
        folder: where its images are looked for, unless `columns.images` says another.

    Raises:
        DataError: if no column holds images or labels, images are missing, a row comes twice, an image has two labels,
            or a label is empty.
    """
    frame = frame.rename(columns=str).reset_index(drop=True)
    if len(twice := frame.columns[frame.columns.duplicated()]):
        raise DataError(f"{name} has two columns '{twice[0]}'. Rename one.")
    frame = frame.rename(columns={column: f"{column}_" for column in RESERVED_COLUMNS})
    for option, given in (("image", columns.image), ("group", columns.group), ("split", columns.split)):
        _check_column(frame, given, name, option)
    folder = resolve_path(columns.image_dir) if columns.image_dir else folder
    if not folder.is_dir():
        raise DataError(f"There is no folder {folder} to look for the images of {name} in. Give --image-dir FOLDER.")
    finder = ImageFinder(folder, "train" if "train" in name.lower() else "")
    image, paths = _match_images(frame, columns.image, finder, name)
    named = tuple(_split_names(columns.label))
    group = columns.group or _find_named_column(frame, GROUP_COLUMN_NAMES, skip=(image, *named))
    split = columns.split or _find_split_column(frame, skip=(image, group, *named))
    try:
        labels, label_words = _read_labels(frame, columns.label, (image, group, split), name)
    except DataError:
        if columns.group or columns.label or not group:
            raise
        group = ""  # a column that may be a group, where it is all that there is, holds the labels
        labels, label_words = _read_labels(frame, "", (image, split), name)
    rows = pd.DataFrame({"path": paths, "label": labels, "split": None, "group": None})
    if split:
        rows["split"] = _read_splits(frame[split], split, name)
    if group:
        values = column_as_text(frame[group])
        rows["group"] = values.where(values != "", None)
    rest = [each for each in frame.columns if each not in {*rows.columns, image, split}]
    rows = pd.concat([rows, frame[rest]], axis=1)
    _check_repeats(rows, name)
    words = [f"images from '{image}'", label_words]
    words += [f"groups from '{group}'"] if group else []
    words += [f"splits from '{split}'"] if split else []
    return TableRows(rows, ", ".join(words), finder.notes())


def _check_column(frame: pd.DataFrame, column: str, name: str, option: str) -> None:
    if column and column not in frame.columns:
        raise DataError(f"In {name}: {unknown_name('column', column, map(str, frame.columns))} Change --{option}-col.")


def _find_named_column(frame: pd.DataFrame, wanted: tuple[str, ...], skip: tuple[str, ...] = ()) -> str:
    lower = {str(column).strip().lower().replace(" ", "_"): str(column) for column in reversed(frame.columns)}
    return next((lower[each] for each in wanted if each in lower and lower[each] not in skip), "")


def _split_names(columns: str) -> list[str]:
    """The names between commas, each once."""
    return list(dict.fromkeys(each.strip() for each in columns.split(",") if each.strip()))


def _match_images(frame: pd.DataFrame, given: str, finder: ImageFinder, name: str) -> tuple[str, list[str]]:
    """The image column, and for each of its values the image's path."""
    best = given or image_column(frame, finder)
    if best is None:
        columns = quoted_list(frame.columns, 12)
        raise DataError(f"{name} has no column that looks like images; its columns: {columns}. Give --image-col.")
    texts = column_as_text(frame[best])
    paths = [finder.find(text) for text in texts]
    missing = [text for text, path in zip(texts, paths, strict=True) if path is None]
    if missing:
        raise DataError(
            f"{len(missing):,} of {len(frame):,} images of {name} are not in {finder.folder}: {quoted_list(missing, 3)}. "
            f"They are in its column '{best}'. Give --image-dir FOLDER or --image-col COLUMN, or drop the rows."
        )
    return best, [str(path) for path in paths]


def image_column(frame: pd.DataFrame, finder: ImageFinder) -> str | None:
    """The column whose values are images; else one that looks so, or is named so; else none."""
    listed = [each for each in (_find_named_column(frame, (name,)) for name in IMAGE_COLUMN_NAMES) if each]
    shares = {each: finder.share(frame[each].head(50)) for each in dict.fromkeys([*listed, *frame.columns])}
    best = max(shares, key=lambda each: shares[each])
    if shares[best][0]:
        return best
    looks = [each for each in shares if _looks_like_images(frame[each].head(50))]
    return next(iter([*looks, *listed]), None)


def _looks_like_images(values: pd.Series) -> bool:
    return all(os.path.splitext(_to_text(value))[1].lower() in IMAGE_SUFFIXES for value in values)


def _find_split_column(frame: pd.DataFrame, skip: tuple[str, ...]) -> str:
    found = _find_named_column(frame, SPLIT_COLUMN_NAMES, skip)
    return found if found and set(column_as_text(frame[found]).str.lower()) <= {"", *SPLIT_NAMES} else ""


def _read_splits(values: pd.Series, column: str, name: str) -> pd.Series:
    plain = column_as_text(values)
    lower = plain.str.lower()
    if wrong := sorted(set(plain[~lower.isin(["", *SPLIT_NAMES])])):
        raise DataError(f"The column '{column}' of {name} holds {quoted_list(wrong)}; train, valid, test were needed.")
    return lower.map(SPLIT_NAMES).astype(object).where(lower != "", None)


def _read_labels(frame: pd.DataFrame, given: str, taken: tuple[str, ...], name: str) -> tuple[pd.Series, str]:
    """The label of each row, and a word on where it comes from."""
    chosen = [given] if given in frame.columns else _split_names(given)
    if given:
        for column in chosen or [given]:
            _check_column(frame, column, name, "label")
    else:
        chosen = _find_label_columns(frame, taken, name)
    if len(chosen) > 1:
        return _labels_from_flags(
            frame, chosen, name
        ), f"labels from {len(chosen)} columns of 0 and 1, {quoted_list(chosen, 3)}"
    labels = column_as_text(frame[chosen[0]])
    if (empty := labels == "").any():
        first = labels.index[empty][0] + 1
        raise DataError(
            f"{int(empty.sum()):,} of {len(frame):,} rows of {name} have no label in '{chosen[0]}', first row {first}. "
            "Fill or drop them."
        )
    several = labels.str.contains(SEPARATOR, regex=False)
    if several.any():
        labels = labels.map(
            lambda text: SEPARATOR.join(sorted({part.strip() for part in text.split(SEPARATOR)} - {""}))
        )
    return labels, f"labels from '{chosen[0]}'"


def _find_label_columns(frame: pd.DataFrame, taken: tuple[str, ...], name: str) -> list[str]:
    if named := _find_named_column(frame, LABEL_COLUMN_NAMES, taken):
        return [named]
    rest = [each for each in frame.columns if each not in taken]
    flags = [each for each in rest if _is_flag(frame[each])]
    if len(flags) >= 2:
        return flags
    if len(rest) == 1:
        return rest
    columns = quoted_list(frame.columns, 12)
    raise DataError(f"{name} has no column that looks like labels; its columns: {columns}. Give --label-col COLUMN.")


def _is_flag(values: pd.Series) -> bool:
    return set(values.map(_to_text)) <= {"0", "1", "True", "False", "true", "false", "0.0", "1.0"}


def _labels_from_flags(frame: pd.DataFrame, columns: list[str], name: str) -> pd.Series:
    """One class of each row where every row has exactly one; else all of them, joined."""
    if odd := [each for each in columns if not _is_flag(frame[each])]:
        raise DataError(f"In {name} the label columns {quoted_list(odd)} hold more than 0 and 1. Give --label-col.")
    flags = frame[columns].map(lambda value: _to_text(value).lower() in ("1", "true", "1.0"))
    order = sorted(columns)
    return flags[order].apply(lambda row: SEPARATOR.join(c for c, on in zip(order, row, strict=True) if on), axis=1)


def _check_repeats(rows: pd.DataFrame, name: str) -> None:
    twice = rows[rows.duplicated("path", keep=False)]
    if twice.empty:
        return
    by_path = twice.groupby("path", sort=False)["label"].nunique()
    if len(torn := by_path.index[by_path > 1]):
        path = torn[0]
        labels = quoted_list(sorted(set(twice.loc[twice["path"] == path, "label"])))
        raise DataError(
            f"{len(torn)} images of {name} have two labels or more, first {path}: {labels}. Keep one, or join them "
            f"with '{SEPARATOR}' if an image has several."
        )
    count = len(twice) - len(by_path)
    raise DataError(f"{count} rows of {name} repeat an image, first {twice['path'].iloc[0]}. Drop the repeats.")
