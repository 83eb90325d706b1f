"""Read files that someone else may have written: regular files only, of a bounded size, that fit into memory.

Every function checks before it reads, and raises an OSError or a ValueError with a reason of one line, or a DataError
with the whole sentence. A sparse file counts as the bytes that it would be read as.
"""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import json
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile, ZipFile, is_zipfile

from baseline.errors import DataError, first_line
from baseline.system import free_memory_bytes

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from torch import Tensor

__all__ = [
    "COPIES",
    "MAX_JSON_BYTES",
    "MAX_TABLE_BYTES",
    "MAX_WEIGHTS_BYTES",
    "TooLargeError",
    "check_memory_for",
    "check_regular",
    "check_tensor_header",
    "check_unpacked",
    "load_npz",
    "load_tensors",
    "load_weights",
    "read_content",
    "read_lines",
    "read_run_table",
    "read_text",
]


MAX_JSON_BYTES = 2 * 10**8
"""Maximum size in bytes of a JSON file of a run or a model."""


MAX_TABLE_BYTES = 2**40
"""Maximum size of a table in bytes; its memory is checked as well."""


COPIES = 2.5
"""Memory that the content of a text or a table takes at least, as a multiple of its size on disk."""


MAX_RUN_COLUMNS = 200_000
"""Maximum number of columns of a table of a run, which has one for every class."""


LINE_BYTES = 100
"""Memory of a line of text in addition to its characters, where the lines are split and stripped."""


UNCHECKED_BYTES = 50_000_000
"""Memory for which the free memory is not looked up, which takes longer than reading a small file."""


MAX_HEADER_BYTES, MAX_TENSORS, MAX_DIMENSIONS, MAX_NAME = 8_000_000, 50_000, 8, 1000
"""Maximum size of the header of a safetensors file, number of its tensors, of their dimensions, and of characters of a
name. A large network has some thousands of tensors, in a header of some hundred kilobytes, and its optimizer three
times as many."""


MAX_WEIGHTS_BYTES = 10**11
"""Maximum size of a file of weights in bytes."""


class TooLargeError(OSError, ValueError):
    """A file is larger than is read, or than the free memory."""

    def __str__(self) -> str:
        return str(self.strerror)


def check_memory_for(needed: float, name: object) -> None:
    """Check that the memory to read something is free; where the system does not report it, nothing is checked.

    Args:
        needed: bytes.
        name: of the file, for the error.

    Raises:
        TooLargeError: if less is free.

    >>> check_memory_for(10**6, "labels.csv")
    """
    if needed > UNCHECKED_BYTES and (free := free_memory_bytes()) is not None and needed > free:
        reason = f"it needs {needed / 1e9:.1f} GB of memory, but only {free / 1e9:.1f} GB are free"
        raise TooLargeError(errno.ENOMEM, reason, str(name))


def check_regular(path: Path, max_bytes: int, copies: float = COPIES) -> None:
    """Check that a path is a file of a plausible size: reading a pipe or a device would never end.

    Args:
        copies: memory to read it, as a multiple of its size; 0 for a file that is read in parts.

    Raises:
        OSError: if it does not exist, or is no regular file.
        TooLargeError: if it is larger, or needs more memory than is free.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "not a file", str(path))
    if status.st_size > max_bytes:
        raise TooLargeError(errno.EFBIG, f"more than {max_bytes:,} bytes", str(path))
    check_memory_for(copies * status.st_size, path)


def read_text(path: Path, max_bytes: int = MAX_JSON_BYTES, encoding: str = "utf-8", errors: str = "strict") -> str:
    """Return the text of a file.

    Raises:
        OSError: if it cannot be read, is no regular file or is too large; see `check_regular`.
        ValueError: if it is not in this encoding.
    """
    check_regular(path, max_bytes)
    return path.read_text(encoding=encoding, errors=errors)


def read_lines(path: Path, max_bytes: int = MAX_JSON_BYTES) -> list[str]:
    """Return the lines of a UTF-8 file that are not empty, without surrounding spaces.

    Raises:
        OSError: as `read_text` does, and where the lines need more memory than is free.
        ValueError: if it is not UTF-8.
    """
    text = read_text(path, max_bytes, "utf-8-sig")
    check_memory_for(len(text) + LINE_BYTES * text.count("\n"), path)
    return [line.strip() for line in text.splitlines() if line.strip()]


def read_content(path: Path, max_bytes: int) -> bytes:
    """Return the bytes of a file.

    Raises:
        OSError: as `read_text` does.
    """
    check_regular(path, max_bytes, copies=1)
    return path.read_bytes()


def check_unpacked(path: Path) -> None:
    """Check that what a ZIP file (.npz, .pth, .xlsx) unpacks to fits into memory; another file is not checked.

    Raises:
        OSError: if it does not.
        ValueError: if the file is damaged.
    """
    if is_zipfile(path):
        try:
            with ZipFile(path) as archive:
                check_memory_for(sum(member.file_size for member in archive.infolist()), path)
        except (BadZipFile, NotImplementedError) as error:
            raise ValueError(str(error)) from None


def load_npz(path: Path, names: Sequence[str], max_bytes: int) -> list[np.ndarray]:
    """Return arrays of a .npz file by name. Nothing in it is unpickled.

    Raises:
        OSError: if it cannot be read, is no regular file or is too large; see `check_regular`.
        ValueError: if it is damaged, or lacks an array.
    """
    import numpy as np

    check_regular(path, max_bytes)
    check_unpacked(path)
    try:
        with np.load(path, allow_pickle=False) as saved:
            return [saved[name] for name in names]
    except (AttributeError, BadZipFile, EOFError, KeyError, MemoryError, NotImplementedError, TypeError) as error:
        raise ValueError(f"it is no complete .npz file ({type(error).__name__})") from None


def read_run_table(path: Path, **options: Any) -> pd.DataFrame:
    """Return a table of a run folder, with its values as text, so that a class may be called `007` or `NA`.

    Args:
        options: others of `pandas.read_csv`.

    Raises:
        DataError: if it cannot be read, is no regular file, is too large, or is not such a table.
    """
    import pandas as pd

    try:
        check_regular(path, MAX_TABLE_BYTES)
        _check_run_columns(path)
        return pd.read_csv(path, **{"dtype": str, "keep_default_na": False, **options})
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}. Repeat its run, or pass another.") from None
    except ValueError as error:
        reason = " ".join(str(error).split())[:120]
        raise DataError(f"{path} is not a table of a run: {reason}. Repeat its run, or pass another.") from None


def _check_run_columns(path: Path) -> None:
    """Raise ValueError for a header that no run writes; pandas takes minutes to tell 200,000 equal names apart."""
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        try:
            names = next(csv.reader(file), [])
        except csv.Error as error:
            raise ValueError(first_line(error)) from None
    if len(names) > MAX_RUN_COLUMNS or len(names) > len(set(names)):
        raise ValueError(f"its {len(names):,} columns are too many, or two have the same name")


def load_tensors(path: Path, content: bytes | None = None, sha256: str | None = None) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file.

    Args:
        content: of the file, where it has been read.
        sha256: that it must have; None to accept any.

    Raises:
        OSError: if it cannot be read, is no regular file or is too large; see `check_regular`.
        ValueError: if it is damaged, or beyond what a network has; see `check_tensor_header`.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    content = read_content(path, MAX_WEIGHTS_BYTES) if content is None else content
    if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
        raise ValueError("its sha256 differs")
    check_tensor_header(content)
    try:
        return load(content)
    except (KeyError, RuntimeError, SafetensorError, TypeError) as error:
        raise ValueError(first_line(error)) from None


def load_weights(path: Path) -> Any:
    """Return the content of a file of weights: .safetensors, or tensors in a pickle, no code of which is run.

    Raises:
        OSError: if it cannot be read, is no regular file or is too large; see `check_regular`.
        ValueError: if it is damaged, or beyond what a network has; see `check_tensor_header`.
        pickle.UnpicklingError: if it is a pickle that holds more than tensors.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    check_regular(path, MAX_WEIGHTS_BYTES, copies=1)
    try:
        if path.suffix == ".safetensors":
            check_tensor_header(path)
            return load_file(path)
        check_unpacked(path)
        content = torch.load(path, "cpu", weights_only=True)
        _check_state(content)
        return content
    except (EOFError, KeyError, RuntimeError, SafetensorError) as error:
        raise ValueError(first_line(error)) from None


def _check_state(content: Any) -> None:
    """Raise ValueError for names that are no text, and for tensors that no layer of a network has."""
    import torch

    for name, value in content.items() if isinstance(content, dict) else ():
        if not isinstance(name, str):
            raise ValueError(f"a tensor has the name {name!r:.80}, which is not text")
        if isinstance(value, torch.Tensor) and (
            value.layout != torch.strided or value.is_complex() or value.is_quantized or value.is_meta
        ):
            raise ValueError(f"{name[:80]!r} is a sparse, complex, quantized or empty tensor")
        if isinstance(value, dict):
            _check_state(value)


def check_tensor_header(source: Path | bytes) -> None:
    """Check the header of a safetensors file, given as its path or content, before a library reads it.

    The time to read a tensor grows with the square of its dimensions, and the memory with the number of tensors.

    Raises:
        OSError: if it cannot be read, or is no regular file.
        ValueError: if it is no such header, or is beyond what a network has.

    >>> check_tensor_header(b"PK")
    Traceback (most recent call last):
    ValueError: it does not begin with the header of a safetensors file
    """
    if isinstance(source, Path):
        check_regular(source, 2**62, copies=0)
    with source.open("rb") if isinstance(source, Path) else io.BytesIO(source) as file:
        size = int.from_bytes(file.read(8), "little")
        header = file.read(min(size, MAX_HEADER_BYTES))
    if not header.startswith(b"{"):
        raise ValueError("it does not begin with the header of a safetensors file")
    if size > MAX_HEADER_BYTES:
        raise ValueError(f"its header has {size:,} bytes, and at most {MAX_HEADER_BYTES:,} are read")
    try:
        entries = json.loads(header)
    except RecursionError:
        raise ValueError("its header is nested too deeply") from None
    if len(entries) > MAX_TENSORS:
        raise ValueError(f"it holds {len(entries):,} tensors, and at most {MAX_TENSORS:,} are read")
    for name, entry in entries.items():
        if name != "__metadata__":
            _check_tensor_entry(name, entry)


def _check_tensor_entry(name: str, entry: Any) -> None:
    shape = entry.get("shape") if isinstance(entry, dict) else None
    if len(name) > MAX_NAME:
        raise ValueError(f"a name of a tensor has {len(name):,} characters, and at most {MAX_NAME:,} are read")
    if not isinstance(shape, list):
        raise ValueError(f"{name[:80]!r} in its header has no shape")
    if len(shape) > MAX_DIMENSIONS:
        raise ValueError(f"{name[:80]!r} has {len(shape):,} dimensions, and at most {MAX_DIMENSIONS} are read")
