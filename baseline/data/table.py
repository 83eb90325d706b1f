"""Images in any form -> the image table. Knows folders, tables, archives and names; knows no models, opens no image.

The image table is a pandas DataFrame with one row an image and the columns

| column | holds |
|---|---|
| `path` | where the image lies, absolute, text |
| `label` | its class, text; where an image has several, all of them in order with `;` between |
| `split` | `"train"`, `"valid"`, `"test"`, or missing where nothing was given |
| `group` | what belongs together (one person, one object, one afternoon), text, or missing |

and whatever else a table said of its images. `table.attrs["source"]` tells what was understood; `summarize_source` prints it.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
from baseline.errors import DataError, quoted_list
from baseline.files import cache_home, resolve_path
from baseline.progress import Progress

__all__ = ["check_table", "count_trainable", "image_table", "summarize_source", "unpack_cached"]


def image_table(
    images: str | Path | pd.DataFrame,
    *,
    columns: Columns | None = None,
    label_from: str = "",
    labels: str = "auto",
    positive: str = "",
    progress: Progress | None = None,
) -> pd.DataFrame:
    """The image table (see the module) of images in any of these forms.

    - a folder with one folder per class, with or without train, valid (val, validation) and test folders above;
    - a CSV, TSV or Parquet file, or a DataFrame, with a column of images and one of labels;
    - a competition's folder as Kaggle has it: train.csv beside the folder of its images;
    - a folder of loose images, with `label_from`;
    - a zip or tar of any of these, unpacked once into the cache;
    - the name of a data set, `"torchvision:FashionMNIST"`, or `"hf:NAME-OR-FOLDER"`.

    Rows are ordered by path, so that the same images give the same table in whatever form they come.

    Args:
        columns: which column of a table is what, and where its images are; looked for where not said.
        label_from: a regular expression, searched in each image's path below the folder; its group named `label`, or
            its first, is the class, and one named `group` the group.
        labels: whether an image has `"one"` label or `"many"`; `"auto"`: many where `;` is seen in one.
        positive: a class to tell from all others, which become one.

    Raises:
        DataError: if there are no images, one class only, a class in valid or test that train lacks, or a table that
            cannot be understood. A class with a single image is an oddity here, and refused before training.

    >>> table = image_table("images/")                                            # doctest: +SKIP
    >>> table.groupby("label").size()                                             # doctest: +SKIP
    """
    columns, progress = columns or Columns(), progress or Progress()
    if isinstance(images, pd.DataFrame):
        found = _read_table_source(images, "the DataFrame", Path.cwd(), columns)
    else:
        found = _read_source(_locate(str(images), progress), columns, label_from)
    if columns != Columns() and not found.columns.startswith("images"):
        raise DataError(f"Columns were named, but the images come as {found.form}. Name the table, or no columns.")
    table = found.table.sort_values("path", kind="stable", ignore_index=True)
    if positive:
        if is_multilabel(table["label"], labels):
            raise DataError(f"Images with several labels are not told into '{positive}' and the rest. Leave it out.")
        others = table.loc[table["label"] != positive, "label"].nunique()
        found.oddities += [f"{others} classes are one, 'not {positive}'"] if others > 1 else []
        table["label"] = binarize(table["label"], positive)
    counts = count_trainable(table, labels)
    found.oddities += [_single_image_message(single)] if (single := sorted(counts.index[counts < 2])) else []
    alike = [sorted(each) for _, each in counts.index.to_series().groupby(counts.index.str.casefold()) if len(each) > 1]
    found.oddities += [f"{quoted_list(each)} differ in case only" for each in alike[:3]]
    table.attrs["source"] = {"form": found.form, "columns": found.columns, "oddities": found.oddities}
    return table


def count_trainable(table: pd.DataFrame, labels: str = "auto") -> pd.Series:
    """How many images of each class may be trained on; refuses a table that no classifier can be trained on.

    Raises:
        DataError: if there is one class only, or a class in valid or test that train lacks.
    """
    if is_multilabel(table["label"], labels):
        table = table.assign(label=table["label"].map(split_labels)).explode("label").dropna(subset="label")
    learnable = table[table["split"].isna() | (table["split"] == "train")]
    counts = learnable["label"].value_counts()
    if strange := sorted(set(table["label"]) - set(counts.index)):
        where = sorted(table.loc[table["label"].isin(strange), "split"].unique())
        raise DataError(
            f"No training image of {quoted_list(strange)}; found in {quoted_list(where)} only. Add or remove some."
        )
    if len(counts) < 2:
        raise DataError(f"All images are of one class, {quoted_list(counts.index)}. At least two classes were needed.")
    return counts


def check_table(table: pd.DataFrame, labels: str = "auto") -> None:
    """Refuses what `count_trainable` does, and a class with one image, which cannot be trained and judged on."""
    counts = count_trainable(table, labels)
    if single := sorted(counts.index[counts < 2]):
        words = _single_image_message(single)
        raise DataError(f"{words[0].upper()}{words[1:]}. Add images, or remove what has one.")


def _single_image_message(classes: list[str]) -> str:
    which = f"class {quoted_list(classes)} has" if len(classes) == 1 else f"classes {quoted_list(classes)} have"
    return f"{which} one image only; two were needed to train"


def summarize_source(table: pd.DataFrame) -> list[str]:
    """What was understood of the images, in five lines: form, columns, classes, splits, oddities."""
    source = table.attrs.get("source", {"form": "a table", "columns": "", "oddities": []})
    many = is_multilabel(table["label"])
    counts = explode_labels(table["label"]).value_counts()
    listed = ", ".join(f"{label} {count:,}" for label, count in counts.head(8).items())
    more = f", and {len(counts) - 8} classes more, down to {counts.iloc[-1]:,}" if len(counts) > 8 else ""
    several = ", several an image" if many else ""
    splits = table["split"].fillna("no split").value_counts()
    groups = f"; {table['group'].nunique():,} groups" if "group" in table and table["group"].notna().any() else ""
    return [
        f"form:     {source['form']}",
        f"columns:  {source['columns'] or 'none; classes are folders'}",
        f"classes:  {len(table):,} images of {len(counts)} classes{several}: {listed}{more}",
        f"splits:   {', '.join(f'{name} {count:,}' for name, count in splits.items())}{groups}",
        f"oddities: {'; '.join(source['oddities']) or 'none'}",
    ]


def _locate(images: str, progress: Progress) -> Path:
    """The folder or table file behind a path, an archive or a name."""
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
    """The archive's content in the cache, unpacked there the first time, and again if files have gone or are cut."""
    stat = archive.stat()
    known = f"{archive} {stat.st_size} {stat.st_mtime_ns}"
    stem = re.sub(r"[^\w.-]", "_", archive.name)[:60]
    folder = cache_home() / "unpacked" / f"{stem}-{hashlib.sha256(known.encode()).hexdigest()[:12]}"
    beside = folder.with_name(f"{folder.name}.size")
    if folder.is_dir() and beside.is_file() and beside.read_bytes() == _folder_size(folder):
        return folder
    if folder.exists():
        progress.log(f"data: {folder} is not as it was unpacked; it is removed, and unpacked again")
        shutil.rmtree(folder) if folder.is_dir() else folder.unlink()
    unpack_archive(archive, folder, max_bytes=max_unpacked_bytes(archive), max_files=MAX_FILES, progress=progress)
    with report_write_errors(beside):
        beside.write_bytes(_folder_size(folder))
    progress.log(f"data: {archive} unpacked into {folder}")
    return folder


def _folder_size(folder: Path) -> bytes:
    """How many files there are, and of how many bytes."""
    sizes = [os.lstat(os.path.join(here, file)).st_size for here, _, files in os.walk(folder) for file in files]
    return f"{len(sizes)} files, {sum(sizes)} bytes\n".encode()


@dataclass
class _Source:
    table: pd.DataFrame
    form: str
    columns: str = ""
    oddities: list[str] = field(default_factory=list)


def _read_source(where: Path, columns: Columns, label_from: str) -> _Source:
    if where.is_file():
        if label_from:
            raise DataError(f"{where} is a file; --label-from goes with a folder of images.")
        if not where.name.lower().endswith(TABLE_SUFFIXES):
            endings = ", ".join((*TABLE_SUFFIXES, *ARCHIVE_SUFFIXES))
            raise DataError(f"{where} is a file; a folder of images was needed, or one that ends in {endings}.")
        return _read_table_source(read_table(where, ROW_BYTES), where.name, where.parent, columns)
    folder = enter_single_folder(where)
    if label_from:
        return _read_file_names(folder, label_from)
    tables = find_tables(folder)
    if training := [each for each in tables if "train" in each.stem.lower()]:
        return _read_competition(folder, training, columns)
    parts = find_class_parents(folder)
    found = _Source(class_rows(parts), describe_layout(folder, parts), "", folder_notes(folder, parts, tables))
    if tables and found.table["label"].nunique() < 2:
        return _read_competition(folder, tables, columns)
    if found.table.empty:
        raise DataError(_nothing_found_error(folder))
    return found


def _read_table_source(frame: pd.DataFrame, name: str, folder: Path, columns: Columns) -> _Source:
    if frame.empty:
        raise DataError(f"{name} has no rows. Give a table with one row an image.")
    rows = rows_from_table(frame, name, folder, columns)
    return _Source(rows.table, f"a table of {len(frame):,} rows, {name}", rows.summary, rows.notes)


def _read_competition(folder: Path, tables: list[Path], columns: Columns) -> _Source:
    """A table beside the folders of its images, as Kaggle has it."""
    chosen = min(tables, key=lambda path: (len(path.stem), path.name))
    found = _read_table_source(read_table(chosen, ROW_BYTES), chosen.name, folder, columns)
    found.form = f"a competition's folder: {chosen.name} and the images below {folder}"
    others = [each.name for each in find_tables(folder) if each != chosen]
    found.oddities += [f"not read: {quoted_list(others)}"] if others else []
    unnamed = len(set(images_below(folder)) - set(found.table["path"]))
    found.oddities += [f"{unnamed:,} images that {chosen.name} does not name are left alone"] if unnamed else []
    return found


def _read_file_names(folder: Path, label_from: str) -> _Source:
    try:
        pattern = re.compile(label_from)
    except re.error as error:
        raise DataError(f"'{label_from}' is no regular expression: {error}. Mend --label-from.") from None
    if not pattern.groups:
        raise DataError(f"'{label_from}' has no group; put the label between brackets, as in '([a-z]+)_[0-9]+'.")
    paths = list(images_below(folder))
    if not paths:
        raise DataError(f"{folder} holds no images. Give a folder of images.")
    hits = [pattern.search(os.path.relpath(path, folder).replace(os.sep, "/")) for path in paths]
    label = "label" if "label" in pattern.groupindex else 1
    if missed := [path for path, hit in zip(paths, hits, strict=True) if not (hit and hit[label])]:
        below = [os.path.relpath(path, folder).replace(os.sep, "/") for path in missed]
        raise DataError(
            f"'{label_from}' does not fit {len(missed):,} of {len(paths):,} images, by their paths below {folder}: "
            f"{quoted_list(below, 3)}. Mend --label-from."
        )
    labels = [hit[label] for hit in hits if hit]
    groups = [hit["group"] for hit in hits if hit] if "group" in pattern.groupindex else None
    table = pd.DataFrame({"path": paths, "label": labels, "split": None, "group": groups})
    return _Source(table, f"images with the label in their name, {folder}", f"labels by '{label_from}'")


def _nothing_found_error(folder: Path) -> str:
    loose: Any = sum(1 for _ in images_below(folder))
    if loose:
        return (
            f"{folder} holds {loose} images but no folder per class. Sort them into folders named after the classes, "
            "or give --label-from REGEX, or a table."
        )
    return f"{folder} holds no images in folders. Give a folder that holds one folder of images per class."
