"""Source -> image table: folders, tables, archives and data sets by name. Opens no image and loads no model.

The image table is a pandas DataFrame with one row per image and the columns

| column | content |
|---|---|
| `path` | absolute path of the image, text |
| `label` | its class, text; several labels are joined by `;` in alphabetical order |
| `split` | `"train"`, `"valid"`, `"test"`, or missing if none was given |
| `group` | what belongs together (one person, one object, one afternoon), text, or missing |

and any other columns of a source table. `table.attrs["source"]` describes how the source was read; `summarize_source`
formats it.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from baseline.data.labels import binarize, explode_labels, is_multilabel, split_labels
from baseline.data.sources.archives import (
    ARCHIVE_SUFFIXES,
    MAX_FILES,
    is_archive,
    max_unpacked_bytes,
    report_write_errors,
    unpack_archive,
)
from baseline.data.sources.datasets import DATASETS, dataset
from baseline.data.sources.external import export_external, is_external
from baseline.data.sources.folders import (
    class_rows,
    describe_layout,
    enter_single_folder,
    find_class_parents,
    find_tables,
    folder_notes,
    images_below,
)
from baseline.data.sources.read_table import ROW_BYTES, TABLE_SUFFIXES, read_table
from baseline.data.sources.tables import Columns, rows_from_table
from baseline.errors import DataError, format_count, quoted_list
from baseline.files import cache_home, resolve_path
from baseline.progress import Progress

__all__ = ["check_table", "count_trainable", "image_table", "summarize_source", "unpack_cached"]


def image_table(
    images: str | Path | pd.DataFrame,
    *,
    columns: Columns | None = None,
    label_from: str = "",
    task: str = "auto",
    positive: str = "",
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Return the image table (described in the module) of a source, which may be

    - a folder with one folder per class, optionally below train, valid (val, validation) and test folders;
    - a CSV, TSV or Parquet file, or a DataFrame, with an image column and a label column;
    - a competition folder as on Kaggle: train.csv next to the folder of its images;
    - a folder of loose images, with `label_from`;
    - a zip or tar archive of any of these, unpacked once into the cache;
    - the name of a data set, `"torchvision:FashionMNIST"`, or `"hf:NAME-OR-FOLDER"`.

    Rows are ordered by path, so that the same images give the same table, whatever their layout.

    Args:
        columns: roles of a table's columns, and the folder of its images; detected where not given.
        label_from: a regular expression, searched in each image's path below the folder; its group named `label`, or
            its first, is the class, and one named `group` the group.
        task: whether an image has `"single"` label or `"multilabel"`; `"auto"`: many if a label contains `;`.
        positive: a class to distinguish from all others, which are merged into one.

    Raises:
        DataError: if there are no images, only one class, a class in valid or test that train lacks, or a table whose
            columns are unclear. A class with a single image is only noted here, and rejected before training.

    >>> table = image_table("images/")                                            # doctest: +SKIP
    >>> table.groupby("label").size()                                             # doctest: +SKIP
    """
    columns, progress = columns or Columns(), progress or Progress()
    if isinstance(images, pd.DataFrame):
        source = read_table_source(images, "the DataFrame", Path.cwd(), columns)
    else:
        source = read_source(locate_source(str(images), progress), columns, label_from)
    if columns != Columns() and not source.columns.startswith("images"):
        raise DataError(f"Columns were named, but the source is {source.form}. Give the table, or name no columns.")
    table = source.table.sort_values("path", kind="stable", ignore_index=True)
    if positive:
        if is_multilabel(table["label"], task):
            raise DataError(f"positive={positive!r} needs one label per image, and these have several. Leave it out.")
        others = table.loc[table["label"] != positive, "label"].nunique()
        source.notes += [f"{others} classes merged into 'not {positive}'"] if others > 1 else []
        table["label"] = binarize(table["label"], positive)
    counts = count_trainable(table, task)
    source.notes += [_single_image_message(single)] if (single := sorted(counts.index[counts < 2])) else []
    by_lower_case = counts.index.to_series().groupby(counts.index.str.casefold())
    same_but_case = [sorted(names) for _, names in by_lower_case if len(names) > 1]
    source.notes += [f"{quoted_list(names)} differ only in case" for names in same_but_case[:3]]
    table.attrs["source"] = {"form": source.form, "columns": source.columns, "notes": source.notes}
    return table


def count_trainable(table: pd.DataFrame, task: str = "auto") -> pd.Series:
    """Return the number of images per class that are available for training.

    Raises:
        DataError: if there is only one class, or a class in valid or test that train lacks.
    """
    if is_multilabel(table["label"], task):
        table = table.assign(label=table["label"].map(split_labels)).explode("label").dropna(subset="label")
    trainable = table[table["split"].isna() | (table["split"] == "train")]
    counts = trainable["label"].value_counts()
    if missing := sorted(set(table["label"]) - set(counts.index)):
        splits = sorted(table.loc[table["label"].isin(missing), "split"].unique())
        raise DataError(
            f"No training image of {quoted_list(missing)}; found only in {quoted_list(splits)}. "
            "Add training images, or remove the class."
        )
    if len(counts) < 2:
        raise DataError(f"All images are of one class, {quoted_list(counts.index)}. At least two classes are needed.")
    return counts


def check_table(table: pd.DataFrame, task: str = "auto") -> None:
    """Raise DataError if the table cannot be trained on, or a class has only one image.

    One image cannot be used for both training and evaluation. For the other conditions see `count_trainable`.
    """
    counts = count_trainable(table, task)
    if single := sorted(counts.index[counts < 2]):
        message = _single_image_message(single)
        raise DataError(f"{message[0].upper()}{message[1:]}. Add images, or remove the class.")


def _single_image_message(classes: list[str]) -> str:
    subject = f"class {quoted_list(classes)} has" if len(classes) == 1 else f"classes {quoted_list(classes)} have"
    return f"{subject} only one image; at least two are needed for training"


def summarize_source(table: pd.DataFrame) -> list[str]:
    """Return a summary of the image table in five lines: form, columns, classes, splits and notes."""
    source = table.attrs.get("source", {"form": "a table", "columns": "", "notes": []})
    multilabel = " (several per image)" if is_multilabel(table["label"]) else ""
    counts = explode_labels(table["label"]).value_counts()
    listed = ", ".join(f"{label} {count:,}" for label, count in counts.head(8).items())
    more = f" and {len(counts) - 8} more classes, down to {counts.iloc[-1]:,}" if len(counts) > 8 else ""
    classes = format_count(len(counts), "class", "classes")
    splits = [f"{name} {count:,}" for name, count in table["split"].value_counts().items()]
    if without_split := int(table["split"].isna().sum()):
        splits.append(f"none yet ({format_count(without_split, 'image')})")
    has_groups = "group" in table and table["group"].notna().any()
    groups = f"; {format_count(table['group'].nunique(), 'group')}" if has_groups else ""
    return [
        f"form:     {source['form']}",
        f"columns:  {source['columns'] or 'none; classes are folders'}",
        f"classes:  {format_count(len(table), 'image')} in {classes}{multilabel}: {listed}{more}",
        f"splits:   {', '.join(splits)}{groups}",
        f"notes:    {'; '.join(source['notes']) or 'none'}",
    ]


def locate_source(images: str, progress: Progress) -> Path:
    """Return the folder or table file that a path, an archive or a data set's name stands for."""
    if images in DATASETS:
        return dataset(images, progress=progress)
    if is_external(images):
        return export_external(images, progress)
    path = resolve_path(images)
    if not path.exists():
        raise DataError(
            f"There is no folder or file {path}. Give a folder with one folder of images per class, or a table."
        )
    if path.is_file() and is_archive(path):
        return unpack_cached(path, progress)
    return path


def unpack_cached(archive: Path, progress: Progress) -> Path:
    """Return the folder in the cache with the archive's content; unpack it if it is missing or files have changed."""
    stat = archive.stat()
    key = f"{archive} {stat.st_size} {stat.st_mtime_ns}"
    stem = re.sub(r"[^\w.-]", "_", archive.name)[:60]
    folder = cache_home() / "unpacked" / f"{stem}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    size_file = folder.with_name(f"{folder.name}.size")
    if folder.is_dir() and size_file.is_file() and size_file.read_bytes() == _folder_size(folder):
        return folder
    if folder.exists():
        progress.log(f"data: {folder} is incomplete or was changed; unpacking it again")
        shutil.rmtree(folder) if folder.is_dir() else folder.unlink()
    unpack_archive(archive, folder, max_bytes=max_unpacked_bytes(archive), max_files=MAX_FILES, progress=progress)
    with report_write_errors(size_file):
        size_file.write_bytes(_folder_size(folder))
    progress.log(f"data: unpacked {archive} into {folder}")
    return folder


def _folder_size(folder: Path) -> bytes:
    """Return the number of files below a folder and their total size, as text."""
    sizes = [os.lstat(os.path.join(parent, file)).st_size for parent, _, files in os.walk(folder) for file in files]
    return f"{len(sizes)} files, {sum(sizes)} bytes\n".encode()


@dataclass
class SourceTable:
    """The rows read from a source, and how they were read."""

    table: pd.DataFrame
    form: str
    """Description of the source, such as `a table of 20 rows, train.csv`."""
    columns: str = ""
    """Description of the columns used; it begins with `images` for a table."""
    notes: list[str] = field(default_factory=list)
    """Remarks for the user: guesses, and what was ignored."""


def read_source(path: Path, columns: Columns, label_from: str) -> SourceTable:
    """Read a folder or a table file.

    Raises:
        DataError: if it is in none of the known layouts, or contains no images.
    """
    if path.is_file():
        if label_from:
            raise DataError(f"{path} is a file, and --label-from needs a folder of images. Give a folder.")
        if not path.name.lower().endswith(TABLE_SUFFIXES):
            endings = ", ".join((*TABLE_SUFFIXES, *ARCHIVE_SUFFIXES))
            raise DataError(
                f"{path} is neither a table nor an archive. Give a folder of images, or a file that ends in {endings}."
            )
        return read_table_source(read_table(path, ROW_BYTES), path.name, path.parent, columns)
    folder = enter_single_folder(path)
    if label_from:
        return read_labels_from_names(folder, label_from)
    tables = find_tables(folder)
    if training_tables := [table for table in tables if "train" in table.stem.lower()]:
        return read_competition_folder(folder, training_tables, columns)
    parents = find_class_parents(folder)
    layout, notes = describe_layout(folder, parents), folder_notes(folder, parents, tables)
    source = SourceTable(class_rows(parents), layout, "", notes)
    if tables and source.table["label"].nunique() < 2:
        return read_competition_folder(folder, tables, columns)
    if source.table.empty:
        raise DataError(no_images_message(folder))
    return source


def read_table_source(frame: pd.DataFrame, name: str, folder: Path, columns: Columns) -> SourceTable:
    """Read a table with one row per image; relative paths start from the folder."""
    if frame.empty:
        raise DataError(f"{name} has no rows. Give a table with one row per image.")
    rows = rows_from_table(frame, name, folder, columns)
    return SourceTable(rows.table, f"a table of {format_count(len(frame), 'row')}, {name}", rows.summary, rows.notes)


def read_competition_folder(folder: Path, tables: list[Path], columns: Columns) -> SourceTable:
    """Read a table that lies next to the folders of its images, as on Kaggle; of several the shortest name is taken."""
    path = min(tables, key=lambda table: (len(table.stem), table.name))
    source = read_table_source(read_table(path, ROW_BYTES), path.name, folder, columns)
    source.form = f"a competition folder: {path.name} and the images below {folder}"
    others = [table.name for table in find_tables(folder) if table != path]
    source.notes += [f"not read: {quoted_list(others)}"] if others else []
    unlisted = len(set(images_below(folder)) - set(source.table["path"]))
    source.notes += [f"{format_count(unlisted, 'image')} not listed in {path.name}, ignored"] if unlisted else []
    return source


def read_labels_from_names(folder: Path, label_from: str) -> SourceTable:
    """Read a folder of images whose labels are part of their paths, found by a regular expression.

    Raises:
        DataError: if the expression is invalid or does not match all images.
    """
    try:
        pattern = re.compile(label_from)
    except re.error as error:
        raise DataError(f"'{label_from}' is not a regular expression: {error}. Correct --label-from.") from None
    if not pattern.groups:
        raise DataError(f"'{label_from}' has no group. Put the label in parentheses, as in '([a-z]+)_[0-9]+'.")
    paths = list(images_below(folder))
    if not paths:
        raise DataError(f"{folder} contains no images. Give a folder of images.")
    matches = [pattern.search(os.path.relpath(path, folder).replace(os.sep, "/")) for path in paths]
    label = "label" if "label" in pattern.groupindex else 1
    if unmatched := [path for path, match in zip(paths, matches, strict=True) if not (match and match[label])]:
        relative = [os.path.relpath(path, folder).replace(os.sep, "/") for path in unmatched]
        raise DataError(
            f"'{label_from}' does not match {len(unmatched):,} of {format_count(len(paths), 'image')} "
            f"(paths below {folder}): {quoted_list(relative, 3)}. Correct --label-from."
        )
    labels = [match[label] for match in matches if match]
    groups = [match["group"] for match in matches if match] if "group" in pattern.groupindex else None
    table = pd.DataFrame({"path": paths, "label": labels, "split": None, "group": groups})
    return SourceTable(table, f"images with the label in their name, {folder}", f"labels by '{label_from}'")


def no_images_message(folder: Path) -> str:
    """Return the message for a folder without class folders; it differs if there are loose images."""
    count = sum(1 for _ in images_below(folder))
    if count:
        return (
            f"{folder} contains {format_count(count, 'image')} but no class folders. Sort them into folders named "
            "after the classes, or give --label-from REGEX, or a table."
        )
    return f"{folder} contains no images in folders. Give a folder with one folder of images per class."
