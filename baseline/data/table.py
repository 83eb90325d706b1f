"""Photos in any form -> the photo table. Knows folders, tables, archives and names; knows no models, opens no photo.

The photo table is a pandas DataFrame with one row a photo and the columns

| column | holds |
|---|---|
| `path` | where the photo lies, absolute, text |
| `label` | its class, text; where a photo has several, all of them in order with `;` between |
| `split` | `"train"`, `"valid"`, `"test"`, or missing where nothing was given |
| `group` | what belongs together (one person, one object, one afternoon), text, or missing |

and whatever else a table said of its photos. `table.attrs["source"]` tells what was understood; `understood` prints it.
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

from baseline.data.labels import against_rest, classes_of, each_label, has_many
from baseline.data.sources.archives import ARCHIVE_SUFFIXES, UNPACKED_FILES, is_archive, most_bytes, unpack, writing
from baseline.data.sources.datasets import DATASETS, dataset
from baseline.data.sources.external import foreign, is_foreign
from baseline.data.sources.folders import _class_rows, _entered, _folder_oddities, _form, _parts, _tables, photos_below
from baseline.data.sources.reading import ROW_BYTES, TABLE_ENDINGS, read_table
from baseline.data.sources.tables import Columns, rows_of
from baseline.errors import DataError, names
from baseline.files import home, place
from baseline.progress import Show

__all__ = ["check_table", "photo_table", "trained_on", "understood", "unpacked"]


def photo_table(
    photos: str | Path | pd.DataFrame,
    *,
    columns: Columns | None = None,
    label_from: str = "",
    labels: str = "auto",
    positive: str = "",
    show: Show | None = None,
) -> pd.DataFrame:
    """The photo table (see the module) of photos in any of these forms.

    - a folder with one folder per class, with or without train, valid (val, validation) and test folders above;
    - a CSV, TSV or Parquet file, or a DataFrame, with a column of images and one of labels;
    - a competition's folder as Kaggle has it: train.csv beside the folder of its images;
    - a folder of loose photos, with `label_from`;
    - a zip or tar of any of these, unpacked once into the cache;
    - the name of a data set, `"torchvision:FashionMNIST"`, or `"hf:NAME-OR-FOLDER"`.

    Rows are ordered by path, so that the same photos give the same table in whatever form they come.

    Args:
        columns: which column of a table is what, and where its images are; looked for where not said.
        label_from: a regular expression, searched in each photo's path below the folder; its group named `label`, or
            its first, is the class, and one named `group` the group.
        labels: whether a photo has `"one"` label or `"many"`; `"auto"`: many where `;` is seen in one.
        positive: a class to tell from all others, which become one.

    Raises:
        DataError: if there are no photos, one class only, a class in valid or test that train lacks, or a table that
            cannot be understood. A class with a single photo is an oddity here, and refused before training.

    >>> table = photo_table("photos/")                                            # doctest: +SKIP
    >>> table.groupby("label").size()                                             # doctest: +SKIP
    """
    columns, show = columns or Columns(), show or Show()
    if isinstance(photos, pd.DataFrame):
        found = _from_table(photos, "the DataFrame", Path.cwd(), columns)
    else:
        found = _from_place(_place(str(photos), show), columns, label_from)
    if columns != Columns() and not found.columns.startswith("images"):
        raise DataError(f"Columns were named, but the photos come as {found.form}. Name the table, or no columns.")
    table = found.table.sort_values("path", kind="stable", ignore_index=True)
    if positive:
        if has_many(table["label"], labels):
            raise DataError(f"Photos with several labels are not told into '{positive}' and the rest. Leave it out.")
        others = table.loc[table["label"] != positive, "label"].nunique()
        found.oddities += [f"{others} classes are one, 'not {positive}'"] if others > 1 else []
        table["label"] = against_rest(table["label"], positive)
    counts = trained_on(table, labels)
    found.oddities += [_single_words(single)] if (single := sorted(counts.index[counts < 2])) else []
    alike = [sorted(each) for _, each in counts.index.to_series().groupby(counts.index.str.casefold()) if len(each) > 1]
    found.oddities += [f"{names(each)} differ in case only" for each in alike[:3]]
    table.attrs["source"] = {"form": found.form, "columns": found.columns, "oddities": found.oddities}
    return table


def trained_on(table: pd.DataFrame, labels: str = "auto") -> pd.Series:
    """How many photos of each class may be trained on; refuses a table that no classifier can be trained on.

    Raises:
        DataError: if there is one class only, or a class in valid or test that train lacks.
    """
    if has_many(table["label"], labels):
        table = table.assign(label=table["label"].map(classes_of)).explode("label").dropna(subset="label")
    learnable = table[table["split"].isna() | (table["split"] == "train")]
    counts = learnable["label"].value_counts()
    if strange := sorted(set(table["label"]) - set(counts.index)):
        where = sorted(table.loc[table["label"].isin(strange), "split"].unique())
        raise DataError(f"No training photo of {names(strange)}; found in {names(where)} only. Add or remove some.")
    if len(counts) < 2:
        raise DataError(f"All photos are of one class, {names(counts.index)}. At least two classes were needed.")
    return counts


def check_table(table: pd.DataFrame, labels: str = "auto") -> None:
    """Refuses what `trained_on` does, and a class with one photo, which cannot be trained and judged on."""
    counts = trained_on(table, labels)
    if single := sorted(counts.index[counts < 2]):
        words = _single_words(single)
        raise DataError(f"{words[0].upper()}{words[1:]}. Add photos, or remove what has one.")


def _single_words(classes: list[str]) -> str:
    which = f"class {names(classes)} has" if len(classes) == 1 else f"classes {names(classes)} have"
    return f"{which} one photo only; two were needed to train"


def understood(table: pd.DataFrame) -> list[str]:
    """What was understood of the photos, in five lines: form, columns, classes, splits, oddities."""
    source = table.attrs.get("source", {"form": "a table", "columns": "", "oddities": []})
    many = has_many(table["label"])
    counts = each_label(table["label"]).value_counts()
    listed = ", ".join(f"{label} {count:,}" for label, count in counts.head(8).items())
    more = f", and {len(counts) - 8} classes more, down to {counts.iloc[-1]:,}" if len(counts) > 8 else ""
    several = ", several a photo" if many else ""
    splits = table["split"].fillna("no split").value_counts()
    groups = f"; {table['group'].nunique():,} groups" if "group" in table and table["group"].notna().any() else ""
    return [
        f"form:     {source['form']}",
        f"columns:  {source['columns'] or 'none; classes are folders'}",
        f"classes:  {len(table):,} photos of {len(counts)} classes{several}: {listed}{more}",
        f"splits:   {', '.join(f'{name} {count:,}' for name, count in splits.items())}{groups}",
        f"oddities: {'; '.join(source['oddities']) or 'none'}",
    ]


def _place(photos: str, show: Show) -> Path:
    """The folder or table file behind a path, an archive or a name."""
    if photos in DATASETS:
        return dataset(photos, show=show)
    if is_foreign(photos):
        return foreign(photos, show)
    path = place(photos)
    if not path.exists():
        raise DataError(
            f"There is no folder or file {path}. Give a folder with one folder of photos per class, or a table."
        )
    if path.is_file() and is_archive(path):
        return unpacked(path, show)
    return path


def unpacked(archive: Path, show: Show) -> Path:
    """The archive's content in the cache, unpacked there the first time, and again if files have gone or are cut."""
    stat = archive.stat()
    known = f"{archive} {stat.st_size} {stat.st_mtime_ns}"
    stem = re.sub(r"[^\w.-]", "_", archive.name)[:60]
    folder = home() / "unpacked" / f"{stem}-{hashlib.sha256(known.encode()).hexdigest()[:12]}"
    beside = folder.with_name(f"{folder.name}.size")
    if folder.is_dir() and beside.is_file() and beside.read_bytes() == _size(folder):
        return folder
    if folder.exists():
        show.say(f"data: {folder} is not as it was unpacked; it is removed, and unpacked again")
        shutil.rmtree(folder) if folder.is_dir() else folder.unlink()
    unpack(archive, folder, max_bytes=most_bytes(archive), max_files=UNPACKED_FILES, show=show)
    with writing(beside):
        beside.write_bytes(_size(folder))
    show.say(f"data: {archive} unpacked into {folder}")
    return folder


def _size(folder: Path) -> bytes:
    """How many files there are, and of how many bytes."""
    sizes = [os.lstat(os.path.join(here, file)).st_size for here, _, files in os.walk(folder) for file in files]
    return f"{len(sizes)} files, {sum(sizes)} bytes\n".encode()


@dataclass
class _Found:
    table: pd.DataFrame
    form: str
    columns: str = ""
    oddities: list[str] = field(default_factory=list)


def _from_place(where: Path, columns: Columns, label_from: str) -> _Found:
    if where.is_file():
        if label_from:
            raise DataError(f"{where} is a file; --label-from goes with a folder of photos.")
        if not where.name.lower().endswith(TABLE_ENDINGS):
            endings = ", ".join((*TABLE_ENDINGS, *ARCHIVE_SUFFIXES))
            raise DataError(f"{where} is a file; a folder of photos was needed, or one that ends in {endings}.")
        return _from_table(read_table(where, ROW_BYTES), where.name, where.parent, columns)
    folder = _entered(where)
    if label_from:
        return _from_names(folder, label_from)
    tables = _tables(folder)
    if training := [each for each in tables if "train" in each.stem.lower()]:
        return _from_competition(folder, training, columns)
    parts = _parts(folder)
    found = _Found(_class_rows(parts), _form(folder, parts), "", _folder_oddities(folder, parts, tables))
    if tables and found.table["label"].nunique() < 2:
        return _from_competition(folder, tables, columns)
    if found.table.empty:
        raise DataError(_nothing_found(folder))
    return found


def _from_table(frame: pd.DataFrame, name: str, folder: Path, columns: Columns) -> _Found:
    if frame.empty:
        raise DataError(f"{name} has no rows. Give a table with one row a photo.")
    rows = rows_of(frame, name, folder, columns)
    return _Found(rows.table, f"a table of {len(frame):,} rows, {name}", rows.words, rows.oddities)


def _from_competition(folder: Path, tables: list[Path], columns: Columns) -> _Found:
    """A table beside the folders of its images, as Kaggle has it."""
    chosen = min(tables, key=lambda path: (len(path.stem), path.name))
    found = _from_table(read_table(chosen, ROW_BYTES), chosen.name, folder, columns)
    found.form = f"a competition's folder: {chosen.name} and the images below {folder}"
    others = [each.name for each in _tables(folder) if each != chosen]
    found.oddities += [f"not read: {names(others)}"] if others else []
    unnamed = len(set(photos_below(folder)) - set(found.table["path"]))
    found.oddities += [f"{unnamed:,} photos that {chosen.name} does not name are left alone"] if unnamed else []
    return found


def _from_names(folder: Path, label_from: str) -> _Found:
    try:
        pattern = re.compile(label_from)
    except re.error as error:
        raise DataError(f"'{label_from}' is no regular expression: {error}. Mend --label-from.") from None
    if not pattern.groups:
        raise DataError(f"'{label_from}' has no group; put the label between brackets, as in '([a-z]+)_[0-9]+'.")
    paths = list(photos_below(folder))
    if not paths:
        raise DataError(f"{folder} holds no photos. Give a folder of photos.")
    hits = [pattern.search(os.path.relpath(path, folder).replace(os.sep, "/")) for path in paths]
    label = "label" if "label" in pattern.groupindex else 1
    if missed := [path for path, hit in zip(paths, hits, strict=True) if not (hit and hit[label])]:
        below = [os.path.relpath(path, folder).replace(os.sep, "/") for path in missed]
        raise DataError(
            f"'{label_from}' does not fit {len(missed):,} of {len(paths):,} photos, by their paths below {folder}: "
            f"{names(below, 3)}. Mend --label-from."
        )
    labels = [hit[label] for hit in hits if hit]
    groups = [hit["group"] for hit in hits if hit] if "group" in pattern.groupindex else None
    table = pd.DataFrame({"path": paths, "label": labels, "split": None, "group": groups})
    return _Found(table, f"photos with the label in their name, {folder}", f"labels by '{label_from}'")


def _nothing_found(folder: Path) -> str:
    loose: Any = sum(1 for _ in photos_below(folder))
    if loose:
        return (
            f"{folder} holds {loose} photos but no folder per class. Sort them into folders named after the classes, "
            "or give --label-from REGEX, or a table."
        )
    return f"{folder} holds no photos in folders. Give a folder that holds one folder of photos per class."
