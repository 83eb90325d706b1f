"""Image table and label fixes -> image table with corrected labels.

A table of fixes has one row per image: `path`, `label` (its current label, to make sure that the fix is meant for it)
and `new_label`, which is empty where the image belongs to no class and is to be dropped. `baseline clean` writes such
tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from baseline.data.labels import is_multilabel, order_classes
from baseline.data.sources.match_images import match_rows
from baseline.data.sources.read_table import read_table
from baseline.data.table import check_table
from baseline.errors import DataError, format_count, quoted_list, unknown_name
from baseline.files import resolve_path

__all__ = ["FIX_COLUMNS", "apply_fixes", "read_fixes"]


FIX_COLUMNS = ("path", "label", "new_label")
"""Columns of a table of fixes."""


def read_fixes(files: Sequence[str | Path], table: pd.DataFrame, task: str = "auto") -> pd.DataFrame:
    """Read fix files into one table: `path` (as in the image table), `label` and `new_label` of each changed image.

    Files are applied in order, each to the labels that the previous ones leave. Images are matched as those of a run's
    `split.csv` are: by their full path, else by the ends of their paths.

    Args:
        files: CSV files with the columns `path, label, new_label`.
        table: an image table as `image_table` returns it, before any image is left out.
        task: the recipe's `data.task`; fixes need one label per image.

    Raises:
        DataError: if a file cannot be read, names images or classes that do not exist, or was made for other labels;
            the message gives their number and the first few.

    >>> read_fixes(["fixes.csv"], image_table("images/"))                          # doctest: +SKIP
    """
    if is_multilabel(table["label"], task):
        raise DataError("Fixes need one label per image, and these images have several. Edit their table instead.")
    classes = sorted(table["label"].unique())
    current = table["label"].copy()
    for file in files:
        fixes = read_fix_file(resolve_path(str(file)))
        rows, label = match_fixes(fixes, table, file), current.to_numpy()
        if unknown := order_classes({*fixes["new_label"]} - {"", *classes}):
            raise DataError(f"{file} names classes that do not exist: {quoted_list(unknown)}. "
                            f"{unknown_name('class', unknown[0], classes)}")  # fmt: skip
        old, new = fixes["label"].to_numpy(), fixes["new_label"].to_numpy()
        if (mismatch := (label[rows] != old) & (label[rows] != new)).any():
            first = int(np.flatnonzero(mismatch)[0])
            raise DataError(
                f"{file} was made for other labels: {int(mismatch.sum()):,} of its "
                f"{format_count(len(fixes), 'image')} differ, first '{fixes['path'].iloc[first]}' "
                f"('{label[rows[first]]}', not '{old[first]}'). Pass the earlier fixes as well, or correct the file."
            )
        current.iloc[rows] = new
    changes = pd.DataFrame({"path": table["path"], "label": table["label"], "new_label": current})
    return changes[changes["label"] != changes["new_label"]].reset_index(drop=True)


def apply_fixes(table: pd.DataFrame, fixes: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Apply fixes to an image table, and return it with a summary of what was changed.

    The images of the headline split (test, or valid if there is no test split) keep their labels, so that scores before
    and after refer to the same images and labels.

    Args:
        table: an image table with splits; fixes of images that have left it, such as unreadable ones, are skipped.
        fixes: from `read_fixes`.

    Raises:
        DataError: if too few classes or images are left to train on.
    """
    headline = "test" if (table["split"] == "test").any() else "valid"
    new = table["path"].map(fixes.set_index("path")["new_label"])
    protected = new.notna() & (table["split"] == headline)
    new = new.mask(protected)
    changed, dropped = new.notna() & (new != ""), new == ""
    summary = [
        f"{format_count(int(changed.sum()), 'label')} changed",
        f"{format_count(int(dropped.sum()), 'image')} dropped",
    ]
    if protected.any():
        count = format_count(int(protected.sum()), f"{headline} image")
        summary.append(f"{count} left unchanged, so that scores stay comparable")
    if gone := len(fixes) - int(changed.sum() + dropped.sum() + protected.sum()):
        summary.append(f"{format_count(gone, 'image')} skipped, no longer in the table")
    table = table.assign(label=table["label"].mask(changed, new))[~dropped].reset_index(drop=True)
    check_table_after(table, "single", "After these fixes")
    return table, "; ".join(summary)


def check_table_after(table: pd.DataFrame, task: str, change: str) -> None:
    """Run `check_table` on a changed table, and begin the message of its error with the change."""
    try:
        check_table(table, task)
    except DataError as error:
        raise DataError(f"{change}: {error}") from None


def read_fix_file(file: Path) -> pd.DataFrame:
    """Read one file of fixes.

    Raises:
        DataError: if it cannot be read, or a column is missing.
    """
    fixes = read_table(file)
    if missing := [name for name in FIX_COLUMNS if name not in fixes]:
        raise DataError(f"{file} has no column {quoted_list(missing)}; needed: {', '.join(FIX_COLUMNS)}. "
                        "Pass a fixes.csv as written by baseline clean.")  # fmt: skip
    return fixes[list(FIX_COLUMNS)]


def match_fixes(fixes: pd.DataFrame, table: pd.DataFrame, file: Any) -> np.ndarray:
    """Return for each fix the row of its image in the image table.

    Raises:
        DataError: if a fix matches no image, or several.
    """
    fix_of_row = match_rows(table["path"], fixes["path"], str(file))
    matched = np.flatnonzero(fix_of_row >= 0)
    numbers, counts = np.unique(fix_of_row[matched], return_counts=True)
    if (counts > 1).any():
        path = fixes["path"].iloc[numbers[counts > 1][0]]
        raise DataError(f"{file} names images that match several of these, first '{path}'. Pass full paths.")
    rows = np.full(len(fixes), -1)
    rows[fix_of_row[matched]] = matched
    if (unmatched := rows < 0).any():
        count = format_count(int(unmatched.sum()), "image")
        raise DataError(
            f"{file} names {count} not found here: {quoted_list(fixes['path'][unmatched], 3)}. "
            "Pass the images that it was made for, or correct the file."
        )
    return rows
