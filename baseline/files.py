"""TODO."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from baseline.errors import DataError, OutputError, first_line

__all__ = [
    "CARD_FILE",
    "UNFINISHED_DIR",
    "atomic_folder",
    "cache_home",
    "kaggle_dir",
    "read_json",
    "resolve_path",
    "sha256_of",
    "to_json",
    "unique_path",
    "write_atomic",
]


KAGGLE_SEARCH_DEPTH = 4  # /kaggle/input/datasets/OWNER/NAME/cifar10 is the deepest that Kaggle's own mounts need


CARD_FILE = "README.md"
"""The model card, in the model folder."""


TENSORS_FILE, GOLDEN_FILE, CONFIG_FILE = "model.safetensors", "golden.safetensors", "model.json"
"""The other files of the model folder; see `networks`."""


UNFINISHED_DIR = "unfinished"
"""The folder, in a run folder, of what a run needs to go on; see `checkpoints`."""


def cache_home() -> Path:
    """The cache's root: the environment's BASELINE_HOME, else the user's cache folder. It is not created here.

    >>> cache_home()  # doctest: +SKIP
    PosixPath('/home/me/.cache/baseline')
    """
    given = os.environ.get("BASELINE_HOME")
    if given:
        return Path(given).expanduser().absolute()
    from platformdirs import user_cache_path

    return user_cache_path("baseline", appauthor=False)


def kaggle_dir(part: str) -> Path:
    """The folder that a Kaggle kernel has its `"input"` in or its `"working"` folder; not there on other machines.

    `BASELINE_KAGGLE` names another root than `/kaggle`, to try a kernel elsewhere.

    >>> kaggle_dir("input")  # doctest: +SKIP
    PosixPath('/kaggle/input')
    """
    return Path(os.environ.get("BASELINE_KAGGLE") or "/kaggle") / part


def write_atomic(path: Path, content: str | bytes) -> None:
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
def atomic_folder(folder: Path, *, overwrite: bool = False) -> Iterator[Path]:
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


def to_json(values: Any) -> str:
    """Readable JSON text; paths become text, tuples lists."""
    return json.dumps(values, indent=2, ensure_ascii=False, default=_to_plain) + "\n"


def _to_plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else str(value)


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


def unique_path(folder: Path) -> Path:
    """`folder`, or with -2, -3 ... behind it where that is taken."""
    tried, number = folder, 1
    while tried.exists():
        number += 1
        tried = folder.with_name(f"{folder.name}-{number}")
    return tried


def resolve_path(words: str) -> Path:
    """The absolute path of what a user wrote.

    Raises:
        DataError: for a name that no file can have, or a home folder that is not there.
    """
    try:
        path = Path(words).expanduser().absolute()
        path.exists()
    except (OSError, RuntimeError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise DataError(f"{words[:80]!r} cannot be looked at: {why}. Give another path.") from None
    return path
