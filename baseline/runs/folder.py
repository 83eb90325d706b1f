"""Finished run <-> folder on disk. Knows files; knows nothing of how the numbers came about.

Every file is written to a temporary name and renamed. `manifest.json` is written last: a folder that has one is whole,
and the report, which is made from such a folder, can be made from it at any time. The network in it is of `networks`.
"""

from __future__ import annotations

import errno
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from baseline.errors import DataError, OutputError
from baseline.files import UNFINISHED_DIR, read_json, unique_path

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "create_run_folder",
    "headline_split",
    "is_finished",
    "lock_folder",
    "looks_unfinished",
    "new_run_path",
    "read_manifest",
    "read_predictions",
]


FORMAT = 1
"""Version of the layout of the manifest."""


EARLY_FILES = (UNFINISHED_DIR, "history.csv", "split.csv", "predictions.csv", "model/model.json", "audit/findings.json")
"""What a run writes before its manifest."""


TEXT_COLUMNS = ("path", "label", "split", "predicted", "plain_predicted")

NUMBER_COLUMNS = ("confidence", "loss", "plain_confidence", "plain_loss")
"""Columns of a prediction table, beside one `p_CLASS` for each class."""


MIN_FREE_BYTES = 200_000_000


LOCK = ".lock"
"""In a folder that a run is writing to. What counts is the lock on it, which the system lets go when the run ends."""


def new_run_path(out: str | Path | None, name: str) -> Path:
    """`out`, else `runs/NAME-DATE-TIME` in the working folder: one that is not there yet, whatever the clock says."""
    return Path(out).expanduser() if out else unique_path(Path("runs") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}")


@contextmanager
def create_run_folder(out: str | Path | None, name: str) -> Iterator[Path]:
    """The folder that a run's results go to, made, tried, and this run's alone: `out`, else a new one in `runs`.

    If the run fails before anything was written there, the folder is removed again.

    Raises:
        OutputError: if it cannot be written, holds a finished run already, another run is writing to it, or the disk
            is nearly full.
    """
    with lock_folder(new_run_path(out, name), named=out is not None) as folder:
        if is_finished(folder):
            raise OutputError(f"{folder} holds a finished run. Choose another --out, or remove it.")
        if (free := shutil.disk_usage(folder).free) < MIN_FREE_BYTES:
            raise OutputError(
                f"The disk of {folder} has {free // 10**6} MB free; {MIN_FREE_BYTES // 10**6} MB were needed. "
                "Make room, or choose another --out."
            )
        yield folder


@contextmanager
def lock_folder(folder: Path, *, named: bool = True) -> Iterator[Path]:
    """Inside, the folder is there and no other run's. A folder made for it goes again if nothing was written there.

    The lock is the system's, on a file in the folder: it goes with the process that holds it, however that ends. Where
    a disk knows no locks there is none.

    Args:
        named: the user named it; if not, and a run that began at the same moment has it, another name is taken.

    Raises:
        OutputError: if it cannot be written, or another run is writing to it.
    """
    from filelock import FileLock, Timeout

    new = not (named and folder.exists())
    try:
        folder = _make_folder(folder, named=named)
        lock = FileLock(folder / LOCK, fallback_to_soft=False)
        lock.acquire(timeout=0)
    except Timeout:
        raise OutputError(f"Another run is writing to {folder}. Wait for it, or choose another --out.") from None
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK):
            raise OutputError(f"{folder} cannot be written: {error.strerror}. Choose another --out.") from None
    try:
        yield folder
    finally:
        with suppress(OSError):
            (folder / LOCK).unlink()  # while it is held: who opened it meanwhile sees that it has gone, and tries anew
        lock.release()
        if new:
            with suppress(OSError):
                folder.rmdir()  # which it does if it is empty


def _make_folder(folder: Path, *, named: bool) -> Path:
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=named)
            return folder
        except FileExistsError:
            if named:
                raise
            folder = unique_path(folder)


def read_manifest(run: str | Path) -> dict[str, Any]:
    """What `manifest.json` of a run folder says.

    Raises:
        OutputError: if there is none, it cannot be read, or a newer version wrote it.
    """
    run = Path(run)
    if not run.is_dir():
        raise OutputError(f"There is no folder {run}. Give the folder of a finished run.")
    if not (run / "manifest.json").exists():
        words = "no run that was finished" if looks_unfinished(run) else "no run folder"
        raise OutputError(f"{run} is {words}: it has no manifest.json. Give the folder of a finished run.")
    manifest = read_json(run / "manifest.json")
    if not isinstance(manifest, dict) or not {"recipe", "metrics"} <= set(manifest):
        raise OutputError(f"{run / 'manifest.json'} is no run's manifest. Give the folder of a finished run.")
    # manifests of the first weeks have no format, and are of the first
    if manifest.get("format", FORMAT) != FORMAT:
        raise OutputError(f"{run} has format {manifest['format']}; this version reads {FORMAT}. Update baseline.")
    return manifest


def headline_split(metrics: Mapping[str, Any]) -> str:
    """The split whose numbers a run is judged by: test, or valid where there is none.

    >>> headline_split({"valid": {}, "test": {}}), headline_split({"valid": {}})
    ('test', 'valid')
    """
    return "test" if "test" in metrics else "valid"


def read_predictions(run: str | Path, needed: Sequence[str] = ()) -> pd.DataFrame:
    """The prediction table of a run folder, its numbers checked. Text is read as text: a class `007` or `NA` stays so.

    Args:
        needed: the columns to read, and `group` with them where there is one; all of a prediction table if not given.

    Raises:
        DataError: if it is not there or no table, lacks columns, or holds what is no number where one belongs.
    """
    import numpy as np

    path = Path(run) / "predictions.csv"
    columns = [str(name) for name in _read_csv(path, nrows=0)]
    classes = [name for name in columns if name.startswith("p_")]
    wanted = needed or (*TEXT_COLUMNS, *NUMBER_COLUMNS)
    lacking = [name for name in wanted if name not in columns] + ([] if classes or needed else ["p_CLASS"])
    if lacking:
        words = ", ".join([*wanted, *([] if needed else ["and p_CLASS for each class"])])
        raise DataError(f"{path} lacks the columns {', '.join(lacking)}; needed: {words}. Run it again.")
    read = [name for name in columns if not needed or name in (*needed, "group")]
    numbers = [name for name in read if name in NUMBER_COLUMNS or name in classes]
    kinds = dict.fromkeys(read, "str") | dict.fromkeys(numbers, "float64")
    nothing = {name: ["", "nan", "NaN", "NA"] for name in numbers}
    table = _read_csv(path, dtype=kinds, keep_default_na=False, na_values=nothing, usecols=read)
    for name in numbers:
        if len(bad := np.flatnonzero(~np.isfinite(table[name].to_numpy()))):
            raise DataError(f"{path}: '{name}' of row {bad[0] + 1} is no number. Run it again, or mend the table.")
    return table


def _read_csv(path: Path, **options: Any) -> pd.DataFrame:
    import pandas as pd

    try:
        return pd.read_csv(path, **options)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}. Run it again, or leave it out.") from None
    except ValueError as error:
        words = " ".join(str(error).split())[:120]
        raise DataError(f"{path} is no prediction table: {words}. Run it again, or leave it out.") from None


def looks_unfinished(folder: Path) -> bool:
    """Whether the folder holds what a run writes before its manifest, or is empty and named as a run is."""
    named = re.search(r"-\d{8}-\d{6}(-\d+)?$", folder.name) is not None
    written = any(each.name != LOCK for each in folder.iterdir())
    return any((folder / part).exists() for part in EARLY_FILES) or (named and not written)


def is_finished(run: Path) -> bool:
    """Whether the folder holds a run that came to its end."""
    return (run / "manifest.json").exists() and not (run / UNFINISHED_DIR).exists()
