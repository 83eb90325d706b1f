"""Source -> image table: folders, tables, archives and datasets by name. Opens no image and loads no model.

The image table is a pandas DataFrame with one row per image and the columns

| column | content |
|---|---|
| `path` | absolute path of the image, text |
| `label` | its class, text; several labels are joined by `;` in the order of the classes |
| `split` | `"train"`, `"valid"`, `"test"`, or missing if none was given |
| `group` | what belongs together (one person, one object, one afternoon), text, or missing |

and any other columns of a source table. `table.attrs["source"]` describes how the source was read; `summarize_source`
formats it.
"""

from __future__ import annotations

import dataclasses
import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from baseline.data.labels import (
    SEPARATOR,
    are_numeric,
    binarize,
    explode_labels,
    is_multilabel,
    order_classes,
    order_labels,
    split_labels,
)
from baseline.data.sources.folders import enter_single_folder
from baseline.data.sources.place import Columns, Place, SourceTable, columns_of, optional_module
from baseline.data.sources.registry import read_place
from baseline.errors import DataError, format_count, quoted_list, similar_path
from baseline.files import resolve_path
from baseline.progress import Progress
from baseline.recipe.schema import DataSettings

SPLITS = ("train", "valid", "test")

MAX_LOOKED_AT = 100_000
"""Number of images up to which the size of each file is looked at before training."""

__all__ = ["check_table", "count_trainable", "image_table", "summarize_source"]


def image_table(
    images: str | Path | pd.DataFrame,
    *,
    columns: Columns | None = None,
    label_from: str = "",
    task: str = "auto",
    positive: str = "",
    progress: Progress | None = None,
    **settings: Any,
) -> pd.DataFrame:
    """Return the image table (described in the module) of a source, which may be

    - a folder with one folder per class, optionally below train, valid (val, validation) and test folders;
    - a CSV, TSV, Parquet, Excel or JSON lines file, or a DataFrame, with an image column and a label column;
    - a competition folder as on Kaggle: a table next to the folder of its images;
    - a folder in one of the other layouts that `baseline sources` lists;
    - a folder of loose images, with `label_from`;
    - a zip or tar archive of any of these, unpacked once into the cache;
    - the name of a dataset, `"torchvision:FashionMNIST"`, or `"hf:NAME-OR-FOLDER"`.

    Rows are ordered by path, so that the same images give the same table, whatever their layout.

    Args:
        columns: roles of a table's columns, and the folder of its images; detected where not given.
        label_from: a regular expression, searched in each image's path below the folder; its group named `label`, or
            its first, is the class, and one named `group` the group. `"auto"` takes the pattern that the names show.
        task: whether an image has `"single"` label or `"multilabel"`; `"auto"`: many if a label contains `;`.
        positive: a class to distinguish from all others, which are merged into one.
        **settings: other fields of `baseline.recipe.schema.DataSettings`, such as `source`, `bins` or `missing`.

    Raises:
        DataError: if there are no images, only one class, a class in valid or test that train lacks, or a table whose
            columns are unclear. A class with a single image is only noted here, and rejected before training.

    >>> table = image_table("images/")                                            # doctest: +SKIP
    >>> table.groupby("label").size()                                             # doctest: +SKIP
    """
    columns = columns or Columns()
    named: dict[str, Any] = {f"{role}_col": getattr(columns, role) for role in ("image", "label", "group", "split")}
    named |= {"image_dir": columns.image_dir, "label_from": label_from, "task": task, "positive": positive}
    return table_from_settings(images, DataSettings(**named, **settings), progress or Progress())


def table_from_settings(
    images: str | Path | pd.DataFrame, settings: DataSettings, progress: Progress, *, splits: Sequence[str] = SPLITS
) -> pd.DataFrame:
    """Return the image table of a source as `image_table` does.

    Args:
        splits: the splits of the source that are used; a class may be missing in the others. Empty for images to
            evaluate a model on, of which any number may be of one class.
    """
    columns = columns_of(settings)
    if isinstance(images, pd.DataFrame):
        tables = optional_module("image_tables")
        source = tables.read_table_source(images, "the DataFrame", Path.cwd(), columns, settings)
    else:
        path = locate_source(str(images), progress)
        if path.is_file() and settings.label_from:
            raise DataError(f"{path} is a file, and --label-from needs a folder of images. Pass a folder.")
        source = read_place(Place(path if path.is_file() else enter_single_folder(path), settings))
    if columns != Columns() and not source.columns.startswith("images"):
        raise DataError(
            f"Columns can be named for a table only, but the source is {source.layout}. "
            "Pass the table, or leave the column options out."
        )
    table = source.table.sort_values("path", kind="stable", ignore_index=True)
    table = normalize_labels(table, source.notes)
    table = merge_rare(table, settings, source.notes)
    if positive := settings.positive:
        if is_multilabel(table["label"], settings.task):
            raise DataError(f"positive={positive!r} needs one label per image, and these have several. Leave it out.")
        others = table.loc[table["label"] != positive, "label"].nunique()
        source.notes += [f"{others} classes merged into 'not {positive}'"] if others > 1 else []
        table["label"] = binarize(table["label"], positive)
    if is_multilabel(table["label"], settings.task):
        table["label"] = order_labels(table["label"])
    trainable = with_splits(table, splits)
    counts = count_trainable(trainable, settings.task) if splits else explode_labels(table["label"]).value_counts()
    if splits and (single := order_classes(counts.index[counts < 2])):
        source.notes.append(
            f"{_single_image_message(single)} (--min-per-class 2 leaves such classes out, --other NAME merges them)"
        )
    source.notes += note_empty_files(table)
    by_lower_case = counts.index.to_series().groupby(counts.index.str.casefold())
    same_but_case = [sorted(names) for _, names in by_lower_case if len(names) > 1]
    source.notes += [f"{quoted_list(names)} differ only in case" for names in same_but_case[:3]]
    table.attrs["source"] = source_facts(source)
    return table


def normalize_labels(table: pd.DataFrame, notes: list[str]) -> pd.DataFrame:
    """Return the table with labels in Unicode's composed form (NFC): systems write the same name in two forms."""
    labels = table["label"].map({name: unicodedata.normalize("NFC", name) for name in table["label"].unique()})
    joined = table["label"].groupby(labels).nunique()
    if names := order_classes(joined.index[joined > 1]):
        notes.append(f"two spellings (NFC and NFD) of {quoted_list(names, 3)} joined")
    return table.assign(label=labels)


def note_empty_files(table: pd.DataFrame) -> list[str]:
    """Return a note on images that are empty files, if there are any and not too many images to look at each."""
    if len(table) > MAX_LOOKED_AT:
        return []
    empty = [path for path in table["path"] if os.path.isfile(path) and not os.stat(path).st_size]  # noqa: PTH116
    names = quoted_list((Path(path).name for path in empty), 3)
    return [f"{format_count(len(empty), 'empty file')} ({names}) will be left out"] if empty else []


def source_facts(source: SourceTable) -> dict[str, Any]:
    """Return what `summarize_source` shows of how a source was read."""
    return {f.name: getattr(source, f.name) for f in dataclasses.fields(source) if f.name != "table"}


def merge_rare(table: pd.DataFrame, settings: DataSettings, notes: list[str]) -> pd.DataFrame:
    """Return the table without the classes of fewer than `min_per_class` images, or with them joined as `other`."""
    minimum = settings.min_per_class or (2 if settings.other else 0)
    if not minimum:
        return table
    counts = explode_labels(table["label"], settings.task).value_counts()
    rare = set(counts.index[counts < minimum])
    if not rare:
        return table
    what = f"{format_count(len(rare), 'class', 'classes')} with fewer than {minimum} images"
    if is_multilabel(table["label"], settings.task):
        new = [settings.other] if settings.other else []
        labels = table["label"].map(
            lambda label: SEPARATOR.join(
                sorted({*(name for name in split_labels(label) if name not in rare),
                        *(new if rare & set(split_labels(label)) else [])})
            )
        )  # fmt: skip
        notes.append(f"{what} {f'merged into {settings.other!r}' if new else 'left out of the labels'}")
        return table.assign(label=labels)
    is_rare = table["label"].isin(rare)
    if settings.other:
        notes.append(f"{what} merged into '{settings.other}' ({format_count(int(is_rare.sum()), 'image')})")
        return table.assign(label=table["label"].mask(is_rare, settings.other))
    notes.append(f"{what} left out ({format_count(int(is_rare.sum()), 'image')})")
    return table[~is_rare].reset_index(drop=True)


def count_trainable(table: pd.DataFrame, task: str = "auto") -> pd.Series:
    """Return the number of images per class that are available for training.

    Raises:
        DataError: if there is only one class, or a class in valid or test that train lacks.
    """
    if is_multilabel(table["label"], task):
        table = table.assign(label=table["label"].map(split_labels)).explode("label").dropna(subset="label")
    trainable = table[table["split"].isna() | (table["split"] == "train")]
    counts = trainable["label"].value_counts()
    if missing := order_classes(set(table["label"]) - set(counts.index)):
        splits = sorted(table.loc[table["label"].isin(missing), "split"].unique())
        anomaly = " The training split has only one class." if len(counts) == 1 else ""
        verb = "has" if len(splits) == 1 else "have"
        which = "this class" if len(missing) == 1 else "these classes"
        raise DataError(
            f"No training image of {quoted_list(missing)}, though {quoted_list(splits)} {verb} some.{anomaly} "
            f"Add training images, remove {which}, or give --split random to split all images again."
        )
    if len(counts) < 2:
        raise DataError(
            f"All images are of one class, {quoted_list(counts.index)}. At least two classes are needed: a folder for "
            "each, a table, or --label-from REGEX for classes in the images' names."
        )
    return counts


def with_splits(table: pd.DataFrame, splits: Sequence[str]) -> pd.DataFrame:
    """Return the table without the splits of other names."""
    return table.assign(split=table["split"].astype(object).where(table["split"].isin(splits), None))


def check_table(table: pd.DataFrame, task: str = "auto", splits: Sequence[str] = SPLITS) -> None:
    """Raise DataError if the table cannot be trained on, or a class has only one image.

    One image cannot be used for both training and evaluation. For the other conditions see `count_trainable`.
    """
    counts = count_trainable(with_splits(table, splits), task)
    if single := order_classes(counts.index[counts < 2]):
        message = _single_image_message(single)
        raise DataError(f"{message[0].upper()}{message[1:]}. {RARE_CLASSES}")


RARE_CLASSES = (
    "Add images, or leave out rare classes with --min-per-class 2, or join them as one class with --other NAME."
)
"""What can be done about classes with one image."""


def _single_image_message(classes: list[str]) -> str:
    subject = f"class {quoted_list(classes)} has" if len(classes) == 1 else f"classes {quoted_list(classes)} have"
    return f"{subject} only one image; at least two are needed for training"


def summarize_source(table: pd.DataFrame) -> list[str]:
    """Return a summary of the image table in five lines: how it is read, columns, classes, splits and notes."""
    source = table.attrs.get("source", {"layout": "a table", "columns": "", "notes": []})
    multilabel = " (several labels per image)" if is_multilabel(table["label"]) else ""
    counts = explode_labels(table["label"]).value_counts()
    if are_numeric(counts.index):
        counts = counts.reindex(order_classes(counts.index))
    listed = ", ".join(f"{label} {count:,}" for label, count in counts.head(8).items())
    more = f" and {len(counts) - 8} more classes, the smallest with {counts.min():,}" if len(counts) > 8 else ""
    classes = format_count(len(counts), "class", "classes")
    splits = [f"{name} {count:,}" for name, count in table["split"].value_counts().items()]
    if without_split := int(table["split"].isna().sum()):
        splits.append(f"none yet ({format_count(without_split, 'image')})")
    has_groups = "group" in table and table["group"].notna().any()
    groups = f"; {format_count(table['group'].nunique(), 'group')}" if has_groups else ""
    why = f" ({source['reason']})" if source.get("reason") else ""
    why += f"; {source['rejected']}" if source.get("rejected") else ""
    return [
        f"read as:  {source['layout']}{why}",
        f"columns:  {source['columns'] or 'none; the folders are the classes'}",
        f"classes:  {format_count(len(table), 'image')} in {classes}{multilabel}: {listed}{more}",
        f"splits:   {', '.join(splits)}{groups}",
        f"notes:    {'; '.join(source['notes']) or 'none'}",
    ]


def locate_source(images: str, progress: Progress) -> Path:
    """Return the folder or table file that a path, an archive or a dataset's name stands for."""
    datasets, external, archives = map(optional_module, ("datasets", "external", "archives"))
    if datasets and images in datasets.DATASETS:
        return Path(datasets.dataset(images, progress=progress))
    if external and external.is_external(images):
        return Path(external.export_external(images, progress))
    path = resolve_path(images)
    if not path.exists():
        raise DataError(
            f"There is no folder or file {path}.{similar_path(path)} "
            "Pass a folder with one folder of images per class, or a table."
        )
    if path.is_file() and archives and archives.is_archive(path):
        unpacked = optional_module("unpacked")
        return Path(unpacked.unpack_cached(path, progress))
    return path
