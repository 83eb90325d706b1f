"""Photo table -> findings about it. Knows files and photos; knows no models."""

from __future__ import annotations

import warnings
from concurrent.futures import ThreadPoolExecutor

import pandas as pd

from .errors import DataError
from .progress import Show
from .sources import check_table

__all__ = ["readable"]


def readable(table: pd.DataFrame, show: Show | None = None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The photo table without the photos that cannot be read, and a table of those (`path`, `label`, `reason`).

    Every photo is decoded once, whole, because a truncated one opens without complaint. Nothing is moved or deleted.

    Raises:
        DataError: if no photo can be read, or too few classes or photos are left to train on.
    """
    show = show or Show()
    with ThreadPoolExecutor() as pool, show.bar("reading every photo once", len(table), "photos") as bar:
        reasons = []
        for reason in pool.map(_reason, table["path"], chunksize=64):
            reasons.append(reason)
            bar.step()
    bad = pd.Series(reasons, index=table.index, dtype=object).fillna("")
    broken = table.loc[bad != "", ["path", "label"]].assign(reason=bad[bad != ""])
    if len(broken) == len(table):
        first = broken.iloc[0]
        raise DataError(f"None of the {len(table)} photos can be read; the first: {first['path']} ({first['reason']}).")
    if len(broken):
        examples = "; ".join(f"{row.path} ({row.reason})" for row in broken.head(3).itertuples())
        show.say(f"left out: {len(broken)} of {len(table)} photos cannot be read: {examples}")
        table = table.drop(broken.index).reset_index(drop=True)
        check_table(table)
    return table, broken.reset_index(drop=True)


def _reason(path: str) -> str:
    """Why a photo cannot be read; empty where it can."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                image.load()
    except Image.DecompressionBombError:
        return f"more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels"
    except Exception as error:  # PIL's plugins raise nearly every kind there is for damaged files
        return "not a photo" if type(error).__name__ == "UnidentifiedImageError" else str(error)[:80]
    return ""
