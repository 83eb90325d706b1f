"""Photo table -> the photos that belong in it, with mended labels. Knows fixes and a second model; trains nothing.

A table of fixes has a row a photo: `path`, `label` (the one that it has, to be sure that the fix is meant for it) and
`new_label`, which is empty where the photo is of no class and leaves the table. `baseline clean` writes such tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from baseline.data.labels import has_many
from baseline.data.sources.matching import rows_by_path
from baseline.data.sources.reading import read_table
from baseline.data.table import check_table
from baseline.errors import DataError, names, unknown
from baseline.files import place

__all__ = ["FIX_COLUMNS", "mended", "read_fixes"]


FIX_COLUMNS = ("path", "label", "new_label")


def read_fixes(files: Sequence[str | Path], table: pd.DataFrame, labels: str = "auto") -> pd.DataFrame:
    """`path` (as the table has it), `label` and `new_label` of each photo that one of the files changes, in one table.

    Files are taken in order, each for the labels that those before it leave. Photos are found as those of a run's
    `split.csv` are: by whole path, else by the ends of their paths.

    Args:
        table: a photo table as it was understood, before any photo leaves it.

    Raises:
        DataError: if a file cannot be read, names photos or classes that are not there, or was made for other labels;
            each with how many and the first few.

    >>> read_fixes(["fixes.csv"], photo_table("photos/"))                          # doctest: +SKIP
    """
    if has_many(table["label"], labels):
        raise DataError("Fixes go with one label a photo, and these photos have several. Mend their table itself.")
    classes = sorted(table["label"].unique())
    now = table["label"].copy()
    for file in files:
        given = _fixes_in(place(str(file)))
        rows, found = _rows_of(given, table, file), now.to_numpy()
        if strange := sorted({*given["new_label"]} - {"", *classes}):
            raise DataError(f"{file} names classes that are not there: {names(strange)}. "
                            f"{unknown('class', strange[0], classes)}")  # fmt: skip
        was, will = given["label"].to_numpy(), given["new_label"].to_numpy()
        if (wrong := (found[rows] != was) & (found[rows] != will)).any():
            first = int(np.flatnonzero(wrong)[0])
            raise DataError(
                f"{file} was made for other labels: {int(wrong.sum()):,} of its {len(given):,} photos have another "
                f"one, first '{given['path'].iloc[first]}' ('{found[rows[first]]}', not '{was[first]}'). Give the "
                "fixes that came before it, too, or mend it."
            )
        now.iloc[rows] = will
    changes = pd.DataFrame({"path": table["path"], "label": table["label"], "new_label": now})
    return changes[changes["label"] != changes["new_label"]].reset_index(drop=True)


def mended(table: pd.DataFrame, fixes: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """The table with the fixes made, and what was done, in words.

    The photos that the number is measured on (test, or valid where there is no test split) stay as they are, so that
    numbers before and after are of the same photos and labels.

    Args:
        table: with splits; photos that left it meanwhile, such as unreadable ones, are passed over.
        fixes: of `read_fixes`.

    Raises:
        DataError: if too few classes or photos are left to train on.
    """
    judged = "test" if (table["split"] == "test").any() else "valid"
    new = table["path"].map(fixes.set_index("path")["new_label"])
    held = new.notna() & (table["split"] == judged)
    new = new.mask(held)
    changed, dropped = new.notna() & (new != ""), new == ""
    told = [f"{int(changed.sum()):,} labels changed", f"{int(dropped.sum()):,} photos dropped"]
    if held.any():
        told.append(f"{int(held.sum()):,} {judged} photos left as they are, so that numbers stay comparable")
    if gone := len(fixes) - int(changed.sum() + dropped.sum() + held.sum()):
        told.append(f"{gone:,} photos had left the table before")
    found = table.assign(label=table["label"].mask(changed, new))[~dropped].reset_index(drop=True)
    _check(found, "one", "After these fixes")
    return found, "; ".join(told)


def _check(table: pd.DataFrame, labels: str, why: str) -> None:
    try:
        check_table(table, labels)
    except DataError as error:
        raise DataError(f"{why}: {error}") from None


def _fixes_in(file: Path) -> pd.DataFrame:
    given = read_table(file)
    if missing := [name for name in FIX_COLUMNS if name not in given]:
        raise DataError(f"{file} has no column {names(missing)}; needed: {', '.join(FIX_COLUMNS)}. "
                        "Give a fixes.csv as baseline clean writes it.")  # fmt: skip
    return given[list(FIX_COLUMNS)]


def _rows_of(given: pd.DataFrame, table: pd.DataFrame, file: Any) -> np.ndarray:
    """For each fix the row of its photo in the table."""
    found = rows_by_path(table["path"], given["path"], str(file))
    hits = np.flatnonzero(found >= 0)
    numbers, counts = np.unique(found[hits], return_counts=True)
    if (counts > 1).any():
        path = given["path"].iloc[numbers[counts > 1][0]]
        raise DataError(f"{file} names photos that may be several of these, first '{path}'. Give whole paths.")
    rows = np.full(len(given), -1)
    rows[found[hits]] = hits
    if (lost := rows < 0).any():
        raise DataError(f"{file} names {int(lost.sum()):,} photos that are not there: "
                        f"{names(given['path'][lost], 3)}. Give the photos it was made for, or mend it.")  # fmt: skip
    return rows
