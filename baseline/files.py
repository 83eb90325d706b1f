"""Files and folders: atomic writes, JSON, hashes, paths given by users, and the locations of caches."""

from __future__ import annotations

import csv
import errno
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from baseline.errors import DataError, OutputError, first_line

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "CARD_FILE",
    "UNFINISHED_DIR",
    "atomic_folder",
    "cache_home",
    "check_regular",
    "holds_image",
    "is_inside",
    "kaggle_dir",
    "read_json",
    "resolve_path",
    "sha256_of",
    "to_csv",
    "to_json",
    "unique_path",
    "write_atomic",
]


KAGGLE_SEARCH_DEPTH = 4
"""Depth to search below /kaggle/input: Kaggle mounts data sets as deep as /kaggle/input/datasets/OWNER/NAME/cifar10."""


CARD_FILE = "README.md"
"""Name of the model card in the model folder."""


TENSORS_FILE, GOLDEN_FILE, CONFIG_FILE = "model.safetensors", "golden.safetensors", "model.json"
"""Names of the other files in the model folder; see `inference.model_folder`."""


MAX_TEXT_BYTES = 10**9
"""Maximum size in bytes of a JSON, TOML or CSV file of a run or a model."""


UNFINISHED_DIR = "unfinished"
"""Name of the folder in a run folder that holds what is needed to resume the run; see `training.checkpoint`."""


def holds_image(path: str | Path) -> bool:
    """Return whether a file begins as an image does.

    JPEG, PNG, GIF, BMP, TIFF, WebP, AVIF, HEIF, JPEG 2000, JPEG XL and DICOM are recognized.
    """
    try:
        if not stat.S_ISREG(Path(path).stat().st_mode):  # opening a pipe would wait forever
            return False
        with Path(path).open("rb") as file:
            head = file.read(132)
    except OSError:
        return False
    starts = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*",
              b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51", b"\0\0\0\x0cJXL ", b"\xff\x0a")  # fmt: skip
    brands = (b"avif", b"avis", b"heic", b"heix", b"mif1", b"msf1")
    is_bmp, is_webp = head[:2] == b"BM" and head[6:10] == bytes(4), head[:4] == b"RIFF" and head[8:12] == b"WEBP"
    is_heif = head[4:8] == b"ftyp" and head[8:12] in brands
    return head.startswith(starts) or is_bmp or is_webp or is_heif or head[128:132] == b"DICM"


def cache_home() -> Path:
    """Return the root of the cache: the environment variable BASELINE_HOME, else in the user's cache folder.

    The folder is not created.

    >>> cache_home()  # doctest: +SKIP
    PosixPath('/home/me/.cache/baseline')
    """
    home = os.environ.get("BASELINE_HOME")
    if home:
        return Path(home).expanduser().absolute()
    from platformdirs import user_cache_path

    return user_cache_path("baseline", appauthor=False)


def kaggle_dir(part: str) -> Path:
    """Return the `"input"` or `"working"` folder of a Kaggle kernel; elsewhere it does not exist.

    The environment variable BASELINE_KAGGLE replaces the root `/kaggle`, to try out a kernel on another machine.

    >>> kaggle_dir("input")  # doctest: +SKIP
    PosixPath('/kaggle/input')
    """
    return Path(os.environ.get("BASELINE_KAGGLE") or "/kaggle") / part


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file completely or not at all.

    Raises:
        OutputError: if the disk is full or the folder cannot be written.
    """
    data = content.encode() if isinstance(content, str) else content
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.unlink(missing_ok=True)  # left behind by a process that was killed, or a link to another file
        with part.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        reason = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else error.strerror
        raise OutputError(f"{path} cannot be written: {reason}. Make room, or choose another --out.") from None


@contextmanager
def atomic_folder(folder: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary folder next to `folder` to write to; on success it takes that name, else it is removed.

    Args:
        overwrite: whether to replace an existing folder.

    Raises:
        OutputError: if the folder cannot be written.
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
        reason = error.strerror or first_line(error)
        raise OutputError(f"{folder} cannot be written: {reason}. Make room, or choose another folder.") from None
    finally:
        if old.exists() and not folder.exists():
            old.rename(folder)
        for path in (work, old):
            shutil.rmtree(path, ignore_errors=True)


def to_csv(frame: pd.DataFrame) -> str:
    """Return a table as CSV; all text is in quotes where a text has a carriage return, which pandas leaves bare."""
    text = frame.to_csv(index=False)
    return frame.to_csv(index=False, quoting=csv.QUOTE_NONNUMERIC) if "\r" in text else text


def to_json(values: Any) -> str:
    """Return readable JSON text; paths become strings, tuples lists, and NumPy scalars numbers."""
    return json.dumps(values, indent=2, ensure_ascii=False, default=_to_plain) + "\n"


def _to_plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else str(value)


def check_regular(path: Path, max_bytes: int = MAX_TEXT_BYTES) -> None:
    """Check that a path is a file of a plausible size: reading a pipe or a device would never end.

    Raises:
        OSError: if it does not exist, is no regular file, or is larger.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "not a file", str(path))
    if status.st_size > max_bytes:
        raise OSError(errno.EFBIG, f"more than {max_bytes:,} bytes", str(path))


def is_inside(path: str | Path, folder: str | Path) -> bool:
    """Return whether a path, once links and `..` are followed, is a folder or lies in it.

    >>> is_inside("images/ants/1.jpg", "images"), is_inside("images/../1.jpg", "images")
    (True, False)
    """
    try:
        return Path(path).resolve().is_relative_to(Path(folder).resolve())
    except (OSError, RuntimeError, ValueError):  # a name that no file can have, or links in a circle
        return False


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's content in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file of a run folder or model folder.

    Raises:
        OutputError: if the file is missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise OutputError(f"{path} cannot be read: {error.strerror}. Give the folder of a finished run.") from None
    except ValueError as error:
        raise OutputError(f"{path} is damaged: {error}.") from None


def unique_path(folder: Path) -> Path:
    """Return `folder`, or the first of `folder-2`, `folder-3` ... that does not exist."""
    candidate, number = folder, 1
    while candidate.exists():
        number += 1
        candidate = folder.with_name(f"{folder.name}-{number}")
    return candidate


def resolve_path(text: str) -> Path:
    """Return the absolute path that a user's text stands for, with `~` expanded.

    Raises:
        DataError: if no file can have this name, or the home folder does not exist.
    """
    try:
        path = Path(text).expanduser().absolute()
        path.exists()
    except (OSError, RuntimeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{text[:80]!r} cannot be accessed: {reason}. Give another path.") from None
    return path
