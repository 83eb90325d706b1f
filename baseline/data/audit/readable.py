"""Image table -> the images that can be read, and those that have a duplicate in a later split.

What every run does with its images; `findings` adds the audit's report, which a run can do without (`audit = "none"`).
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from baseline.data.audit.scan import ScanResult, scan_images
from baseline.data.image import formats
from baseline.data.table import count_trainable
from baseline.errors import DataError, format_count
from baseline.progress import Progress

__all__ = ["drop_unreadable", "find_leaks", "list_unreadable", "scan_table"]


def drop_unreadable(
    table: pd.DataFrame, progress: Progress | None = None, value_range: Sequence[float] = ()
) -> tuple[pd.DataFrame, pd.DataFrame, tuple[float, ...]]:
    """Return the image table without unreadable images, a table of those (`path`, `label`, `reason`), and the range.

    This is what remains of the audit when it is switched off: every image is read once, but images are not compared.

    Raises:
        DataError: if no image can be read, or too few classes or images are left to train on.
    """
    progress = progress or Progress()
    table = table.reset_index(drop=True)
    images, _, value_range = scan_table(table, value_range, progress)
    return table[images["reason"] == ""].reset_index(drop=True), list_unreadable(images), value_range


def scan_table(
    table: pd.DataFrame, value_range: Sequence[float], progress: Progress
) -> tuple[pd.DataFrame, ScanResult, tuple[float, ...]]:
    """Scan every image; return the table with the columns of the scan, the scan, and the range of values."""
    scan = scan_images(table["path"].tolist(), progress)
    images = table.assign(**scan.columns, duplicate_id=-1)
    if formats is not None and not value_range:
        value_range = formats.resolve_values(images)
    check_readable(images)
    return images, scan, tuple(value_range)


def list_unreadable(images: pd.DataFrame) -> pd.DataFrame:
    return images.loc[images["reason"] != "", ["path", "label", "reason"]].reset_index(drop=True)


def find_leaks(table: pd.DataFrame) -> pd.Series:
    """Return a boolean mask of the images with a duplicate in a later split: train before valid before test.

    Args:
        table: an image table with the columns `split` and `duplicate_id`.
    """
    rank = table["split"].map({"train": 0, "valid": 1, "test": 2})
    return (table["duplicate_id"] >= 0) & (rank < rank.groupby(table["duplicate_id"]).transform("max"))


def check_readable(images: pd.DataFrame) -> None:
    """Raise DataError if no image is readable, or if the readable ones cannot be trained on."""
    bad = images[images["reason"] != ""]
    if len(bad) == len(images):
        first = bad.iloc[0]
        count = format_count(len(bad), "image")
        raise DataError(f"None of the {count} can be read; the first is {first['path']} ({first['reason']}).")
    if len(bad):
        count_trainable(images[images["reason"] == ""])
