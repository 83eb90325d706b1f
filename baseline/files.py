"""Files and folders: atomic writes, JSON, hashes, paths given by users, and the locations of caches."""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import json
import math
import os
import re
import shutil
import stat
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from baseline.errors import BaselineError, DataError, OutputError, RecipeError, first_line, missing_image, similar_path
from baseline.reading import MAX_JSON_BYTES, check_memory_for, check_regular, read_text
from baseline.system import is_world_writable, lock_file, remove_leftovers, replaceable_parent

if TYPE_CHECKING:
    import pandas as pd
    from pydantic import TypeAdapter

__all__ = [
    "CARD_FILE",
    "UNFINISHED_DIR",
    "atomic_folder",
    "cache_home",
    "check_schema",
    "csv_rows",
    "file_identities",
    "file_identity",
    "fingerprint_of",
    "holds_image",
    "is_file_name",
    "is_inside",
    "kaggle_dir",
    "lock_folder",
    "make_cache_folder",
    "manifest_format",
    "parse_json",
    "parse_toml",
    "read_json",
    "read_values",
    "refuse_damaged",
    "replace_file",
    "resolve_path",
    "sha256_of",
    "to_csv",
    "to_json",
    "unique_path",
    "write_atomic",
]


KAGGLE_SEARCH_DEPTH = 4
"""Depth to search below /kaggle/input: Kaggle mounts datasets as deep as /kaggle/input/datasets/OWNER/NAME/cifar10."""


CARD_FILE = "README.md"
"""Name of the model card in the model folder."""


TENSORS_FILE, GOLDEN_FILE, CONFIG_FILE = "model.safetensors", "golden.safetensors", "model.json"
"""Names of the other files in the model folder; see `vision.model_folder`."""


REFERENCE_FILE = "reference.safetensors"
"""Name of the file in the model folder that `inference.reference` writes."""


MAX_TOML_BYTES = 10**6
"""Maximum size in bytes of a recipe in TOML."""


JSON_ITEM_BYTES, JSON_NESTED_BYTES = 60, 80
"""Bytes of memory for each comma and colon of JSON, and for each list and object, in addition to its text."""


MANIFEST_FORMAT = 2
"""Version of the layout of `manifest.json`. Version 1 had a recipe without groups, and counted photos."""


MAX_NESTING = 100
"""Maximum depth of lists and tables in JSON and TOML."""

NESTING_MESSAGE = f"maximum recursion depth exceeded, nested deeper than {MAX_NESTING} levels"

LONG_KEY = re.compile(rf"""(?<![\w"'-])(?:[\w"'-]+[ \t]*\.[ \t]*){{{MAX_NESTING}}}""")
"""A dotted key of TOML that is nested too deeply."""

SURROGATE = re.compile(r"\\u[dD][89a-fA-F]|[\ud800-\udfff]")
"""Half of a surrogate pair, which JSON can write and no encoding of text can hold."""


MAX_NAME_BYTES = 200
"""Maximum length of a name in UTF-8: with a date it is the name of a folder, of at most 255 bytes."""


LOCK_FILE = ".lock"
"""File in a folder that a run is writing to. The operating system releases the lock on it when the run ends."""


UNFINISHED_DIR, REMOVED_DIR = "unfinished", ".unfinished-removed"
"""Name of the folder in a run folder that holds what is needed to resume the run (see `training.checkpoint`), and its
name while it is removed."""


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

    The folder is not created; `make_cache_folder` creates it, and folders in it.

    Raises:
        OutputError: if every user of the machine can write to it or to what it contains, or replace it from above.

    >>> cache_home()  # doctest: +SKIP
    PosixPath('/home/me/.cache/baseline')
    """
    if named := os.environ.get("BASELINE_HOME"):
        home = Path(named).expanduser().absolute()
    else:
        from platformdirs import user_cache_path

        home = user_cache_path("baseline", appauthor=False)
    if entry := next(filter(is_world_writable, (home, *_open_entries(home))), None):
        raise OutputError(
            f"The cache {entry} can be written by every user, who could replace what is read from it. "
            "Run chmod o-w on it, or set BASELINE_HOME to a folder of your own."
        )
    if parent := replaceable_parent(home):
        raise OutputError(
            f"The cache {home} is in {parent}, where every user could replace it. "
            "Run chmod o-w or chmod +t on that folder, or set BASELINE_HOME to a folder of your own."
        )
    return home


def _open_entries(folder: Path) -> list[Path]:
    """Return what a folder contains that other users can reach; nothing if it is closed to them or not there."""
    with suppress(OSError):
        return list(folder.iterdir()) if folder.stat().st_mode & stat.S_IXOTH else []
    return []


def make_cache_folder(folder: Path) -> None:
    """Create a folder in the cache, and the cache itself, for this user only.

    Raises:
        OSError: if the disk does not allow it.
    """
    cache_home()
    for missing in reversed([path for path in (folder, *folder.parents) if not path.exists()]):
        missing.mkdir(mode=0o700, exist_ok=True)


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
    part = path.parent / f".{path.name}.part"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.unlink(missing_ok=True)  # left behind by a process that was killed, or a link to another file
        with part.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        replace_file(part, path)
    except BaseException as error:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        if not isinstance(error, OSError):
            raise
        reason = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else error.strerror
        raise OutputError(f"{path} cannot be written: {reason}. Make room, or choose another --out.") from None


def replace_file(part: Path, path: Path) -> None:
    """Give a complete file its final name; raise OSError if that is a device or a pipe, which it would replace."""
    if (path.exists() and not path.is_file() and not path.is_dir()) or path.parent.resolve() == Path("/dev"):
        raise OSError(errno.EINVAL, "it is a device or a pipe, not a file", str(path))
    part.replace(path)


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
        remove_leftovers(folder, "part")
        work.mkdir(parents=True)
        yield work
        if overwrite and folder.exists():
            folder.rename(old)
        work.rename(folder)
        remove_leftovers(folder, "old")
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


def csv_rows(rows: Iterable[Sequence[Any]], delimiter: str = ",") -> str:
    """Return rows as lines of CSV; a row is quoted where a text has a carriage return, which Python 3.11 leaves bare.

    >>> csv_rows([["a.jpg", "ants"], ["b,c.jpg", "bees"]])
    'a.jpg,ants\\n"b,c.jpg",bees\\n'
    """
    text = io.StringIO(newline="")
    for row in rows:
        is_bare = any("\r" in str(value) for value in row)
        csv.writer(
            text, delimiter=delimiter, lineterminator="\n", quoting=csv.QUOTE_ALL if is_bare else csv.QUOTE_MINIMAL
        ).writerow(row)
    return text.getvalue()


def to_json(values: Any) -> str:
    """Return readable JSON text; paths become strings, tuples lists, and NumPy scalars numbers."""
    return json.dumps(values, indent=2, ensure_ascii=False, default=_to_plain) + "\n"


def without_nan(value: Any) -> Any:
    """Return values for JSON, with None for numbers that JSON cannot hold.

    >>> without_nan({"a": (1.5, float("nan"))})
    {'a': [1.5, None]}
    """
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    number = value.item() if hasattr(value, "item") else value
    return None if isinstance(number, float) and not math.isfinite(number) else number


def _to_plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else str(value)


def is_file_name(text: str) -> bool:
    """Return whether a text is the name of a file or a folder, and no path.

    >>> is_file_name("ants and bees"), is_file_name("../ants"), is_file_name("")
    (True, False, False)
    """
    fits = 0 < len(text.encode(errors="replace")) <= MAX_NAME_BYTES and not SURROGATE.search(text)
    return fits and min(text) >= " " and not set(text) & {"/", "\\", "\x7f"} and text not in (".", "..")


def is_inside(path: str | Path, folder: str | Path) -> bool:
    """Return whether a path, once links and `..` are followed, is a folder or lies in it.

    >>> is_inside("images/ants/1.jpg", "images"), is_inside("images/../1.jpg", "images")
    (True, False)
    """
    try:
        return Path(path).resolve().is_relative_to(Path(folder).resolve())
    except (OSError, RuntimeError, ValueError):  # a name that no file can have, or links in a circle
        return False


def file_identity(path: str | Path) -> str:
    """Return what changes whenever a file is replaced or rewritten, for the keys of caches.

    That is its size, both times and its inode: a modification time alone can be set, and two files that are swapped
    keep theirs.

    Raises:
        OSError: if the file cannot be examined.
    """
    status = os.stat(path)  # noqa: PTH116  # a Path takes longer to make than to examine
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino}"


def file_identities(paths: Iterable[str]) -> list[str]:
    """Return the path of each image file with its identity (see `file_identity`), for `fingerprint_of`.

    Raises:
        DataError: if a file is missing.
    """
    try:
        return [f"{path}\0{file_identity(path)}\n" for path in paths]
    except FileNotFoundError as error:
        raise missing_image(error) from None


def fingerprint_of(identities: Iterable[str]) -> str:
    """Return a hash of what `file_identities` returned, in this order."""
    return hashlib.sha256("".join(identities).encode(errors="surrogateescape")).hexdigest()


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's content in hexadecimal digits.

    Raises:
        OSError: if it cannot be read, or is no regular file.
    """
    check_regular(path, 2**62, copies=0)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path, schema: Any = dict[str, Any]) -> Any:
    """Read a JSON file of a run folder or model folder, and check its form.

    Args:
        schema: the type of the content, as pydantic takes types; an object by default.

    Raises:
        OutputError: if the file is missing, damaged, or has another form.
    """
    try:
        values = parse_json(read_text(path))
        check_schema(values, schema)
        return values
    except OSError as error:
        raise OutputError(f"{path} cannot be read: {error.strerror}. Pass the folder of a finished run.") from None
    except ValueError as error:
        raise OutputError(f"{path} is damaged: {first_line(error)}. Copy it again.") from None


def manifest_format(run: Path, manifest: Mapping[str, Any]) -> int:
    """Return the version of the layout of a run's manifest.

    Raises:
        OutputError: if this version does not know it.
    """
    version = manifest.get("format", 1)  # the first manifests did not say
    if type(version) is not int or not 1 <= version <= MANIFEST_FORMAT:
        raise OutputError(
            f"{run} has format {version!r:.50}; this version of baseline reads up to {MANIFEST_FORMAT}. "
            "Update baseline."
        )
    return version


def read_values(path: Path) -> dict[str, Any]:
    """Return the values of a recipe: a TOML file, or a JSON file such as the manifest of a run.

    Raises:
        RecipeError: if it cannot be read; line and column are named.
    """
    kind = path.suffix.removeprefix(".").upper()
    try:
        text = read_text(path, MAX_JSON_BYTES if kind == "JSON" else MAX_TOML_BYTES)
        values = parse_json(text) if kind == "JSON" else parse_toml(text)
    except OSError as error:
        raise RecipeError(f"{path} cannot be read: {error.strerror}.{similar_path(path)}") from None
    except ValueError as error:
        raise RecipeError(f"{path} is not valid {kind}: {first_line(error)}.") from None
    if not isinstance(values, dict):
        raise RecipeError(f"{path} holds a {type(values).__name__}; a table of keys and values was needed.")
    return values


@contextmanager
def refuse_damaged(folder: str | Path) -> Iterator[None]:
    """Turn the errors of code that finds something unexpected in a run folder into one line, an `OutputError`.

    Errors that no content of a file causes, such as a NameError, pass.
    """
    try:
        yield
    except (BaselineError, OSError, MemoryError, RuntimeError, NameError, ImportError, AssertionError):
        raise
    except Exception as error:  # a missing key, a wrong type or value, or jinja2's error about one
        message = f"{folder} does not hold what a run writes ({type(error).__name__}: {first_line(error)})"
        raise OutputError(f"{message}. Copy it again; if it is intact, report this as a bug.") from error


def parse_json(text: str | bytes, *, nan: bool = True) -> Any:
    """Return the value of JSON text that someone else may have written.

    Args:
        nan: whether to accept the constants NaN, Infinity and -Infinity, which are not in JSON.

    Raises:
        ValueError: if it is not valid, is nested deeper than `MAX_NESTING`, has text that cannot be encoded, or its
            values need more memory than is free.

    >>> parse_json('{"classes": ["ants"]}')
    {'classes': ['ants']}
    """
    if isinstance(text, bytes):
        text = text.decode(json.detect_encoding(text))
    items, nested = (sum(map(text.count, characters)) for characters in (",:", "[{"))
    check_memory_for(len(text) + JSON_ITEM_BYTES * items + JSON_NESTED_BYTES * nested, "JSON")
    try:
        value = json.loads(text, parse_constant=None if nan else _reject_constant)
    except RecursionError:
        raise ValueError(NESTING_MESSAGE) from None
    check_nesting(value)
    if SURROGATE.search(text):
        _check_encodable(value)
    return value


def parse_toml(text: str) -> dict[str, Any]:
    """Return the values of TOML text that someone else may have written.

    Raises:
        ValueError: if it is not valid, or is nested deeper than `MAX_NESTING`.
    """
    if LONG_KEY.search(text):  # the time to read one grows with its square
        raise ValueError(NESTING_MESSAGE)
    try:
        values = tomllib.loads(text)
    except RecursionError:
        raise ValueError(NESTING_MESSAGE) from None
    check_nesting(values)
    return values


def check_nesting(value: Any) -> None:
    """Raise a ValueError if lists and dictionaries are nested deeper than `MAX_NESTING`."""
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(MAX_NESTING):
        items = chain.from_iterable(part.values() if isinstance(part, dict) else part for part in level)
        level = [item for item in items if isinstance(item, dict | list)]
        if not level:
            return
    raise ValueError(NESTING_MESSAGE)


def check_schema(value: Any, schema: Any) -> None:
    """Check that a value has the form that a type describes.

    Args:
        schema: as pydantic takes types: `dict[str, list[int]]`, a TypedDict of `typing_extensions`.

    Raises:
        ValueError: naming the first place that differs.

    >>> check_schema({"seconds": {"data": 1.5}}, dict[str, dict[str, float]])
    """
    from pydantic import ValidationError

    try:
        _type_adapter(schema).validate_json(json.dumps(value), strict=True)  # in Python a list would be no tuple
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part)[:80] for part in first["loc"]) or "the whole"
        raise ValueError(f"{place}: {first['msg'][:1].lower()}{first['msg'][1:]}") from None


@cache
def _type_adapter(schema: Any) -> TypeAdapter[Any]:
    """Return pydantic's validator of a type. Building one takes longer than using it."""
    from pydantic import TypeAdapter

    return TypeAdapter(schema)


def _reject_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")


def _check_encodable(value: Any) -> None:
    for name, item in value.items() if isinstance(value, dict) else [("the text", value)]:
        try:
            json.dumps([name, item], ensure_ascii=False).encode()
        except UnicodeEncodeError:
            place = name.encode(errors="replace").decode()[:80]
            raise ValueError(f"{place} is not text: it holds half of a surrogate pair, which is no character") from None


def unique_path(folder: Path) -> Path:
    """Return `folder`, or the first of `folder-2`, `folder-3` ... that does not exist."""
    candidate, number = folder, 1
    while candidate.exists():
        number += 1
        candidate = folder.with_name(f"{folder.name}-{number}")
    return candidate


@contextmanager
def lock_folder(folder: Path, *, named: bool = True) -> Iterator[Path]:
    """Hold a folder for one run. A folder made for it is removed again if it is still empty.

    The lock is the operating system's, on a file in the folder: it ends with the process that holds it, however that
    ends. On a disk without locks there is none.

    Args:
        named: whether the user named the folder. If not, another name is used when a run that started at the same
            moment already has it.

    Raises:
        OutputError: if it cannot be written, or another run is writing to it.
    """
    new = not (named and folder.exists())
    with ExitStack() as stack:
        try:
            folder = _make_folder(folder, named=named)
            if new:
                stack.callback(_remove_empty, folder)
            stack.enter_context(lock_file(folder / LOCK_FILE, soft=False))
        except BlockingIOError:
            raise OutputError(f"Another run is writing to {folder}. Wait for it, or choose another --out.") from None
        except OSError as error:
            raise OutputError(f"{folder} cannot be written: {error.strerror}. Choose another --out.") from None
        try:
            yield folder
        finally:
            with suppress(OSError):  # while it is locked: a process that opened it meanwhile sees that and tries again
                (folder / LOCK_FILE).unlink()


def _remove_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


def _make_folder(folder: Path, *, named: bool) -> Path:
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=named)
            return folder
        except FileExistsError:
            if named:
                raise
            folder = unique_path(folder)


def resolve_path(text: str) -> Path:
    """Return the absolute path that a user's text stands for, with `~` expanded.

    Raises:
        DataError: if the text is a URL, no file can have this name, or the home folder does not exist.
    """
    try:
        path = Path(text).expanduser().absolute()
        if path.exists() or "://" not in text:
            return path
    except (OSError, RuntimeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{text[:80]!r} cannot be accessed: {reason}. Use another path.") from None
    raise DataError(f"{text} is a URL, and a path is needed. Download it first, and pass the file or folder.")
