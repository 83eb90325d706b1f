"""Photos in any form -> the photo table. Knows folders and tables; knows no models and opens no photo.

The photo table is a pandas DataFrame with one row a photo and the columns

| column | holds |
|---|---|
| `path` | where the photo lies, absolute, text |
| `label` | its class, text |
| `split` | `"train"`, `"valid"`, `"test"`, or missing where nothing was given |
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from .errors import DataError

__all__ = ["PHOTO_ENDINGS", "check_table", "photo_table"]

PHOTO_ENDINGS = frozenset(
    {
        ".avif",
        ".bmp",
        ".gif",
        ".jfif",
        ".jpe",
        ".jpeg",
        ".jpg",
        ".pgm",
        ".png",
        ".pnm",
        ".ppm",
        ".tif",
        ".tiff",
        ".webp",
    }
)
"""Names with these endings, in either case, are photos."""

SPLIT_FOLDERS = {
    "train": "train", "training": "train",
    "valid": "valid", "val": "valid", "validation": "valid",
    "test": "test", "testing": "test",
}  # fmt: skip


def photo_table(photos: str | Path | pd.DataFrame) -> pd.DataFrame:
    """The photo table of a folder with one folder per class, or of a DataFrame that has its columns.

    The class folders lie in the folder itself, or in its train, valid (val, validation) and test folders. Hidden
    files and files with other endings are passed over; folders inside a class folder belong to the class.

    Raises:
        DataError: if the folder is missing or empty, holds one class only, a class has a single photo, or a class
            appears in valid or test but not in train.

    >>> table = photo_table("photos/")                                            # doctest: +SKIP
    >>> table.groupby("label").size()                                             # doctest: +SKIP
    """
    table = _from_frame(photos) if isinstance(photos, pd.DataFrame) else _from_folder(Path(photos).expanduser())
    check_table(table)
    return table


def check_table(table: pd.DataFrame) -> None:
    """Refuses a photo table that no classifier can be trained and judged on; see `photo_table` for what is refused."""
    learnable = table[table["split"].isna() | (table["split"] == "train")]
    counts = learnable["label"].value_counts()
    if foreign := sorted(set(table["label"]) - set(counts.index)):
        where = sorted(table.loc[table["label"].isin(foreign), "split"].unique())
        raise DataError(f"No training photo of {_names(foreign)}; found in {_names(where)} only. Add or remove some.")
    if len(counts) < 2:
        raise DataError(f"All photos are of one class, {_names(list(counts.index))}. At least two classes were needed.")
    if single := sorted(counts.index[counts < 2]):
        raise DataError(f"Class {_names(single)} has one photo only; two were needed. Add photos, or remove the class.")


def _from_frame(frame: pd.DataFrame) -> pd.DataFrame:
    if missing := [column for column in ("path", "label") if column not in frame.columns]:
        columns = ", ".join(map(str, frame.columns)) or "none"
        raise DataError(f"The table has no column {_names(missing)}; its columns: {columns}. Rename yours.")
    table = frame.reset_index(drop=True).copy()
    if "split" not in table.columns:
        table["split"] = None
    if empty := int(table["label"].isna().sum() + table["path"].isna().sum()):
        raise DataError(f"{empty} rows of the table have no path or no label. Fill or drop them.")
    if wrong := sorted(set(table["split"].dropna()) - {"train", "valid", "test"}):
        raise DataError(f"The column split holds {_names(wrong)}; train, valid, test or nothing was needed.")
    table["label"] = table["label"].astype(str)
    table["path"] = [str(Path(path).expanduser().absolute()) for path in table["path"]]
    if absent := [path for path in table["path"] if not os.path.isfile(path)]:
        raise DataError(f"{len(absent)} of {len(table)} photos are not there: {_names(absent, 3)}. Mend the paths.")
    return table


def _from_folder(folder: Path) -> pd.DataFrame:
    if not folder.exists():
        raise DataError(f"There is no folder {folder}. Give a folder that holds one folder of photos per class.")
    if not folder.is_dir():
        raise DataError(f"{folder} is a file; a folder that holds one folder of photos per class was needed.")
    folder = folder.absolute()
    rows = [row for part, split in _parts(folder) for row in _class_rows(part, split)]
    if not rows:
        raise DataError(_nothing_found(folder))
    table = pd.DataFrame(rows, columns=["path", "label", "split"])
    return table.sort_values("path", kind="stable", ignore_index=True)


def _parts(folder: Path) -> list[tuple[Path, str | None]]:
    """The folders that hold class folders, each with its split."""
    named = [(each, SPLIT_FOLDERS.get(each.name.lower())) for each in _folders(folder)]
    if any(split == "train" for _, split in named):
        return [(each, split) for each, split in named if split]
    return [(folder, None)]


def _class_rows(folder: Path, split: str | None) -> Iterator[tuple[str, str, str | None]]:
    for class_folder in _folders(folder):
        for here, folders, files in os.walk(class_folder):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in files:
                if not name.startswith(".") and os.path.splitext(name)[1].lower() in PHOTO_ENDINGS:
                    yield os.path.join(here, name), class_folder.name, split


def _folders(folder: Path) -> list[Path]:
    try:
        return sorted(each for each in folder.iterdir() if each.is_dir() and not each.name.startswith("."))
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error.strerror}.") from None


def _nothing_found(folder: Path) -> str:
    loose = sum(each.suffix.lower() in PHOTO_ENDINGS for each in folder.iterdir())
    if loose:
        return f"{folder} holds {loose} photos but no folder per class. Sort them into folders named after the classes."
    return f"{folder} holds no photos in folders. Give a folder that holds one folder of photos per class."


def _names(names: list[str], limit: int = 5) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(f"'{name}'" for name in names[:limit]) + more
