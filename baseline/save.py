"""Finished run <-> folder on disk. Knows files; knows nothing of how the numbers came about.

Every file is written to a temporary name and renamed. `manifest.json` is written last: a folder that has one is whole,
and the report, which is made from such a folder, can be made from it at any time. The network in it is of `networks`.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import DataError, OutputError, first_line

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["CARD", "EXPERIMENTS", "UNFINISHED", "as_json", "differing", "flat", "is_finished", "judged_split",
           "looks_begun", "member_folders", "model_folder", "named_folder", "occupied", "read_json", "read_manifest",
           "read_predictions", "run_folder", "sha256_of", "unused", "whole_folder", "write"]  # fmt: skip

FORMAT = 1
"""Version of the layout of the manifest."""

CARD = "README.md"
"""The model card, in the model folder."""

TENSORS, GOLDEN, FACTS_FILE = "model.safetensors", "golden.safetensors", "model.json"
"""The other files of the model folder; see `networks`."""

EXPERIMENTS = {"fold": "folds.json", "seed": "seeds.json"}
"""What is written last into a folder of several runs, by the beginning of their folders' names."""

UNFINISHED = "unfinished"
"""The folder, in a run folder, of what a run needs to go on; see `checkpoints`."""

BEGUN = (UNFINISHED, "history.csv", "split.csv", "predictions.csv", "model/model.json", "audit/findings.json")
"""What a run writes before its manifest."""

TEXTS = ("path", "label", "split", "predicted", "plain_predicted")
NUMBERS = ("confidence", "loss", "plain_confidence", "plain_loss")
"""Columns of a prediction table, beside one `p_CLASS` for each class."""

LEAST_FREE_BYTES = 200_000_000

UNHEEDED = ("name", "title", "expected", "presets", "preset", "log", "cache_gb", "workers")
"""Of a recipe; they change no number, and may be others when a run or an experiment goes on."""

LOCK = ".lock"
"""In a folder that a run is writing to. What counts is the lock on it, which the system lets go when the run ends."""


def named_folder(out: str | Path | None, name: str) -> Path:
    """`out`, else `runs/NAME-DATE-TIME` in the working folder: one that is not there yet, whatever the clock says."""
    return Path(out).expanduser() if out else unused(Path("runs") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}")


@contextmanager
def run_folder(out: str | Path | None, name: str) -> Iterator[Path]:
    """The folder that a run's results go to, made, tried, and this run's alone: `out`, else a new one in `runs`.

    If the run fails before anything was written there, the folder is removed again.

    Raises:
        OutputError: if it cannot be written, holds a finished run already, another run is writing to it, or the disk
            is nearly full.
    """
    with occupied(named_folder(out, name), named=out is not None) as folder:
        if is_finished(folder):
            raise OutputError(f"{folder} holds a finished run. Choose another --out, or remove it.")
        if (free := shutil.disk_usage(folder).free) < LEAST_FREE_BYTES:
            raise OutputError(
                f"The disk of {folder} has {free // 10**6} MB free; {LEAST_FREE_BYTES // 10**6} MB were needed. "
                "Make room, or choose another --out."
            )
        yield folder


@contextmanager
def occupied(folder: Path, *, named: bool = True) -> Iterator[Path]:
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
        folder = _made(folder, named=named)
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


def _made(folder: Path, *, named: bool) -> Path:
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=named)
            return folder
        except FileExistsError:
            if named:
                raise
            folder = unused(folder)


def write(path: Path, content: str | bytes) -> None:
    """Writes a file whole or not at all.

    Raises:
        OutputError: if the disk is full or the folder cannot be written.
    """
    data = content.encode() if isinstance(content, str) else content
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        words = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else error.strerror
        raise OutputError(f"{path} cannot be written: {words}. Make room, or choose another --out.") from None


@contextmanager
def whole_folder(folder: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A folder beside `folder` to write to, which takes its name, and its place, at the end; else nothing stays.

    Raises:
        OutputError: if it cannot be written.
    """
    folder = folder.absolute()
    work, old = (folder.with_name(f".{folder.name}.{kind}-{os.getpid()}") for kind in ("part", "old"))
    try:
        work.mkdir(parents=True)
        yield work
        if overwrite and folder.exists():
            folder.rename(old)
        work.rename(folder)
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        words = error.strerror or first_line(error)
        raise OutputError(f"{folder} cannot be written: {words}. Make room, or choose another place.") from None
    finally:
        if old.exists() and not folder.exists():
            old.rename(folder)
        for each in (work, old):
            shutil.rmtree(each, ignore_errors=True)


def model_folder(folder: str | Path) -> Path:
    """The folder itself where it holds a `model.json`, else `model/` in it, as in a run."""
    folder = Path(folder).expanduser()
    return folder if (folder / FACTS_FILE).exists() else folder / "model"


def member_folders(folder: str | Path) -> list[Path]:
    """The folder itself, or, of a folder of folds or seeds, those of its runs.

    Raises:
        OutputError: if not all of its runs are finished, or one has gone.
    """
    folder = Path(folder).expanduser()
    if (model_folder(folder) / FACTS_FILE).exists():
        return [folder]
    for kind, summary in EXPERIMENTS.items():
        if (folder / summary).exists():
            names = _names_in(folder / summary, kind)
            if gone := [name for name in names if not (model_folder(folder / name) / FACTS_FILE).exists()]:
                raise OutputError(f"{folder / gone[0]}, which {summary} names, holds no model. Copy it there again.")
            return [folder / name for name in names]
        if done := list(folder.glob(f"{kind}-*/manifest.json")):
            raise OutputError(
                f"{folder} holds {len(done)} finished {kind}s, but no {summary}: not all have ended. Give the same "
                "command with --resume, or name their folders."
            )
    return [folder]


def _names_in(summary: Path, kind: str) -> list[str]:
    """The names of the runs' folders, wherever the whole folder lies now."""
    told = read_json(summary)
    runs = told.get("runs") if isinstance(told, dict) else None
    listed = runs if isinstance(runs, list) else []
    found = [Path(str(run.get("folder"))).name if isinstance(run, dict) else "" for run in listed]
    if not found or not all(re.fullmatch(rf"{kind}-\d{{1,10}}", name) for name in found):
        raise OutputError(f"{summary} names no {kind}s. Give the folder of a finished run.")
    return found


def read_manifest(run: str | Path) -> dict[str, Any]:
    """What `manifest.json` of a run folder says.

    Raises:
        OutputError: if there is none, it cannot be read, or a newer version wrote it.
    """
    run = Path(run)
    if not run.is_dir():
        raise OutputError(f"There is no folder {run}. Give the folder of a finished run.")
    if not (run / "manifest.json").exists():
        words = "no run that was finished" if looks_begun(run) else "no run folder"
        raise OutputError(f"{run} is {words}: it has no manifest.json. Give the folder of a finished run.")
    manifest = read_json(run / "manifest.json")
    if not isinstance(manifest, dict) or not {"recipe", "metrics"} <= set(manifest):
        raise OutputError(f"{run / 'manifest.json'} is no run's manifest. Give the folder of a finished run.")
    # manifests of the first weeks have no format, and are of the first
    if manifest.get("format", FORMAT) != FORMAT:
        raise OutputError(f"{run} has format {manifest['format']}; this version reads {FORMAT}. Update baseline.")
    return manifest


def judged_split(metrics: Mapping[str, Any]) -> str:
    """The split whose numbers a run is judged by: test, or valid where there is none.

    >>> judged_split({"valid": {}, "test": {}}), judged_split({"valid": {}})
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
    wanted = needed or (*TEXTS, *NUMBERS)
    lacking = [name for name in wanted if name not in columns] + ([] if classes or needed else ["p_CLASS"])
    if lacking:
        words = ", ".join([*wanted, *([] if needed else ["and p_CLASS for each class"])])
        raise DataError(f"{path} lacks the columns {', '.join(lacking)}; needed: {words}. Run it again.")
    read = [name for name in columns if not needed or name in (*needed, "group")]
    numbers = [name for name in read if name in NUMBERS or name in classes]
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


def looks_begun(folder: Path) -> bool:
    """Whether the folder holds what a run writes before its manifest, or is empty and named as a run is."""
    named = re.search(r"-\d{8}-\d{6}(-\d+)?$", folder.name) is not None
    written = any(each.name != LOCK for each in folder.iterdir())
    return any((folder / part).exists() for part in BEGUN) or (named and not written)


def as_json(values: Any) -> str:
    """Readable JSON text; paths become text, tuples lists."""
    return json.dumps(values, indent=2, ensure_ascii=False, default=_plain) + "\n"


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else str(value)


def flat(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Nested values under dotted names, tables in lists by their number from 1.

    >>> flat({"tta": [], "augment": {"flip": True}, "stages": [{"lr": (1e-4, 1e-3)}]})
    {'tta': [], 'augment.flip': True, 'stages.1.lr': (0.0001, 0.001)}
    """
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, list | tuple) and value and all(isinstance(each, Mapping) for each in value):
            value = {str(number): each for number, each in enumerate(value, 1)}
        found |= flat(value, f"{before}{key}.") if isinstance(value, Mapping) else {before + key: value}
    return found


def differing(begun: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What differs between two recipes, as `Recipe.as_dict` or a manifest tells them, and may change numbers.

    >>> differing({"seed": 0, "augment": {"flip": True}}, {"seed": 1, "augment": {"flip": True}, "log": ["csv"]})
    {'seed': (0, 1)}
    """
    one, two = (
        flat({key: value for key, value in json.loads(as_json(each)).items() if key not in UNHEEDED})
        for each in (begun, wanted)
    )
    return {key: (one.get(key), two.get(key)) for key in (*one, *two) if one.get(key) != two.get(key)}


def is_finished(run: Path) -> bool:
    """Whether the folder holds a run that came to its end."""
    return (run / "manifest.json").exists() and not (run / UNFINISHED).exists()


def sha256_of(path: Path) -> str:
    """Of a file's content, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """What a JSON file of a run or model folder says.

    Raises:
        OutputError: if it is not there or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise OutputError(f"{path} cannot be read: {error.strerror}. Give the folder of a finished run.") from None
    except ValueError as error:
        raise OutputError(f"{path} is damaged: {error}.") from None


def unused(folder: Path) -> Path:
    """`folder`, or with -2, -3 ... behind it where that is taken."""
    tried, number = folder, 1
    while tried.exists():
        number += 1
        tried = folder.with_name(f"{folder.name}-{number}")
    return tried
