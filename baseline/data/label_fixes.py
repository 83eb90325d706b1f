"""Image table -> the images that belong in it, with mended labels. Knows fixes and a second model; trains nothing.

A table of fixes has a row an image: `path`, `label` (the one that it has, to be sure that the fix is meant for it) and
`new_label`, which is empty where the image is of no class and leaves the table. `baseline clean` writes such tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from baseline.data.labels import is_multilabel
from baseline.data.sources.match_images import match_rows
from baseline.data.sources.read_table import read_table
from baseline.data.table import check_table
from baseline.errors import DataError, quoted_list, unknown_name
from baseline.files import resolve_path

__all__ = ["FIX_COLUMNS", "apply_fixes", "read_fixes"]


FIX_COLUMNS = ("path", "label", "new_label")


def read_fixes(files: Sequence[str | Path], table: pd.DataFrame, labels: str = "auto") -> pd.DataFrame:
    """`path` (as the table has it), `label` and `new_label` of each image that one of the files changes, in one table.

    Files are taken in order, each for the labels that those before it leave. Images are found as those of a run's
    `split.csv` are: by whole path, else by the ends of their paths.

    Args:
        table: an image table as it was understood, before any image leaves it.

    Raises:
        DataError: if a file cannot be read, names images or classes that are not there, or was made for other labels;
            each with how many and the first few.

    >>> read_fixes(["fixes.csv"], image_table("images/"))                          # doctest: +SKIP
    """
    if is_multilabel(table["label"], labels):
        raise DataError("Fixes go with one label an image, and these images have several. Mend their table itself.")
    classes = sorted(table["label"].unique())
    now = table["label"].copy()
    for file in files:
        given = read_fix_file(resolve_path(str(file)))
        rows, found = match_fixes(given, table, file), now.to_numpy()
        if strange := sorted({*given["new_label"]} - {"", *classes}):
            raise DataError(f"{file} names classes that are not there: {quoted_list(strange)}. "
                            f"{unknown_name('class', strange[0], classes)}")  # fmt: skip
        was, will = given["label"].to_numpy(), given["new_label"].to_numpy()
        if (wrong := (found[rows] != was) & (found[rows] != will)).any():
            first = int(np.flatnonzero(wrong)[0])
            raise DataError(
                f"{file} was made for other labels: {int(wrong.sum()):,} of its {len(given):,} images have another "
                f"one, first '{given['path'].iloc[first]}' ('{found[rows[first]]}', not '{was[first]}'). Give the "
                "fixes that came before it, too, or mend it."
            )
        now.iloc[rows] = will
    changes = pd.DataFrame({"path": table["path"], "label": table["label"], "new_label": now})
    return changes[changes["label"] != changes["new_label"]].reset_index(drop=True)


def apply_fixes(table: pd.DataFrame, fixes: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """The table with the fixes made, and what was done, in words.

    The images that the number is measured on (test, or valid where there is no test split) stay as they are, so that
    numbers before and after are of the same images and labels.

    Args:
        table: with splits; images that left it meanwhile, such as unreadable ones, are passed over.
        fixes: of `read_fixes`.

    Raises:
        DataError: if too few classes or images are left to train on.
    """
    judged = "test" if (table["split"] == "test").any() else "valid"
    new = table["path"].map(fixes.set_index("path")["new_label"])
    held = new.notna() & (table["split"] == judged)
    new = new.mask(held)
    changed, dropped = new.notna() & (new != ""), new == ""
    told = [f"{int(changed.sum()):,} labels changed", f"{int(dropped.sum()):,} images dropped"]
    if held.any():
        told.append(f"{int(held.sum()):,} {judged} images left as they are, so that numbers stay comparable")
    if gone := len(fixes) - int(changed.sum() + dropped.sum() + held.sum()):
        told.append(f"{gone:,} images had left the table before")
    found = table.assign(label=table["label"].mask(changed, new))[~dropped].reset_index(drop=True)
    check_table_after(found, "one", "After these fixes")
    return found, "; ".join(told)


def check_table_after(table: pd.DataFrame, labels: str, why: str) -> None:
    try:
        check_table(table, labels)
    except DataError as error:
        raise DataError(f"{why}: {error}") from None


def read_fix_file(file: Path) -> pd.DataFrame:
    given = read_table(file)
    if missing := [name for name in FIX_COLUMNS if name not in given]:
        raise DataError(f"{file} has no column {quoted_list(missing)}; needed: {', '.join(FIX_COLUMNS)}. "
                        "Give a fixes.csv as baseline clean writes it.")  # fmt: skip
    return given[list(FIX_COLUMNS)]


def match_fixes(given: pd.DataFrame, table: pd.DataFrame, file: Any) -> np.ndarray:
    """For each fix the row of its image in the table."""
    found = match_rows(table["path"], given["path"], str(file))
    hits = np.flatnonzero(found >= 0)
    numbers, counts = np.unique(found[hits], return_counts=True)
    if (counts > 1).any():
        path = given["path"].iloc[numbers[counts > 1][0]]
        raise DataError(f"{file} names images that may be several of these, first '{path}'. Give whole paths.")
    rows = np.full(len(given), -1)
    rows[found[hits]] = hits
    if (lost := rows < 0).any():
        raise DataError(f"{file} names {int(lost.sum()):,} images that are not there: "
                        f"{quoted_list(given['path'][lost], 3)}. Give the images it was made for, or mend it.")  # fmt: skip
    return rows
