"""An archive -> a folder, safely and whole or not at all; or its files, read in place. Knows tar and zip, no images."""

from __future__ import annotations

import bz2
import errno
import gzip
import lzma
import re
import shutil
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from baseline.errors import BaselineError, DataError, OutputError
from baseline.progress import Progress

if TYPE_CHECKING:
    from baseline.progress import Bar

__all__ = [
    "ARCHIVE_SUFFIXES",
    "MAX_FILES",
    "Member",
    "Members",
    "is_archive",
    "max_unpacked_bytes",
    "report_write_errors",
    "unpack",
]


ARCHIVE_SUFFIXES = (".tgz", ".tar.gz", ".txz", ".tar.xz", ".tbz2", ".tar.bz2", ".tar", ".zip")


MAX_INFLATION = 100
"""How many times larger than itself an archive's content may be; images hardly shrink, bombs shrink a thousandfold."""


MAX_FILES = 20_000_000


MAX_MEMBER_BYTES = 2**31
"""Of a member that is read in place, as of an image's file."""


_SILENT = Progress()


def is_archive(path: str | Path) -> bool:
    """Whether it is called like one.

    >>> is_archive("images.tar.gz"), is_archive("image.jpg")
    (True, False)
    """
    return str(path).lower().endswith(ARCHIVE_SUFFIXES)


def max_unpacked_bytes(archive: Path) -> int:
    """How many bytes an archive of that size may hold, and not be taken for a bomb."""
    return max(MAX_INFLATION * archive.stat().st_size, 100_000_000)


def unpack(
    archive: Path,
    folder: Path,
    *,
    max_bytes: int = 2 * 1024**3,
    max_files: int = 200_000,
    progress: Progress = _SILENT,
) -> None:
    """Unpacks a tar (plain, gzip, xz, bzip2) or zip into the new `folder`, safely, and whole or not at all.

    Refused are absolute names, `..`, links and devices of any kind, names that come twice, more than `max_bytes` of
    content (counted as it is written) and more than `max_files` members. Modes and owners are not taken over. Works in
    a temporary folder beside `folder` and renames it at the end.

    Raises DataError naming the member or the damage, OutputError when `folder` is there already or cannot be written.

    >>> unpack(Path("images.tar.gz"), Path("images"))  # doctest: +SKIP
    """
    archive, folder = Path(archive), Path(folder)
    if not archive.is_file():
        raise DataError(f"There is no archive {archive}.")
    if folder.exists():
        raise OutputError(f"{folder} is already there. Remove it, or unpack into another folder.")
    with report_write_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{folder.name}.tmp-", dir=folder.parent))
        try:
            sink = _Unpacker(work / "new", archive.name, max_bytes, max_files)
            with (
                progress.bar(f"unpacking {archive.name}", archive.stat().st_size, "bytes") as bar,
                _report_damage(archive),
            ):
                (_unzip if _magic_bytes(archive).startswith(b"PK") else _untar)(archive, sink, bar)
            (work / "new").rename(folder)
        finally:
            shutil.rmtree(work, ignore_errors=True)


@dataclass(frozen=True)
class Member:
    """A file in an archive; called, it gives its bytes."""

    path: str
    """That of the archive, and the member's name behind it."""
    read: Callable[[], bytes]

    def __call__(self) -> bytes:
        return self.read()

    def __str__(self) -> str:
        return self.path


class Members:
    """The files in a tar or zip that are wanted by their names, in its own order, read where they are.

    All names, sizes and checksums of the packing are looked at first: what `unpack` refuses is refused here, before
    anything is read. A zip's files are read when they are called, from any thread; a tar's one after the other.

    >>> for image in Members(Path("images.zip"), lambda name: name.endswith(".jpg")):  # doctest: +SKIP
    ...     print(image, len(image()))
    """

    def __init__(self, archive: Path, wanted: Callable[[str], bool], progress: Progress = _SILENT) -> None:
        """Raises DataError for what `unpack` refuses, and for damage, in words."""
        self.archive = archive
        with (
            _report_unreadable(archive),
            progress.bar(f"looking into {archive.name}", archive.stat().st_size, "bytes") as bar,
        ):
            found = _MemberIndex(archive, wanted)
            self.zipped = _magic_bytes(archive).startswith(b"PK")
            (_unzip if self.zipped else _untar)(archive, found, bar)
        self.names = found.wanted_names

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[Member]:
        with _report_unreadable(self.archive):
            yield from (self._in_zip if self.zipped else self._in_tar)()

    def _in_zip(self) -> Iterator[Member]:
        opened = zipfile.ZipFile(self.archive)  # open as long as a member may be called
        for name in self.names:
            yield Member(self._path(name), partial(_read_member, opened, name))

    def _in_tar(self) -> Iterator[Member]:
        left = set(self.names)
        with self.archive.open("rb") as raw, _decompress(raw) as plain, tarfile.open(fileobj=plain, mode="r|") as tar:
            for member in tar:
                if member.name in left and (stream := tar.extractfile(member)):
                    large = member.size > MAX_MEMBER_BYTES
                    content = partial(_size_limit_error, member.size) if large else partial(bytes, stream.read())
                    yield Member(self._path(member.name), content)

    def _path(self, name: str) -> str:
        return f"{self.archive}/{name.removeprefix('./')}"


def _read_member(opened: zipfile.ZipFile, name: str) -> bytes:
    size = opened.getinfo(name).file_size
    return _size_limit_error(size) if size > MAX_MEMBER_BYTES else opened.read(name)


def _size_limit_error(size: int) -> bytes:
    raise OSError(f"more than {MAX_MEMBER_BYTES:,} bytes")


class _MemberChecks:
    """Every name, number and size of a member passes here."""

    def __init__(self, archive: str, max_bytes: int, max_files: int) -> None:
        self.archive, self.max_bytes, self.max_files = archive, max_bytes, max_files
        self.bytes = self.files = 0

    def refuse(self, name: str, why: str) -> DataError:
        return DataError(f"{self.archive} is refused and nothing of it was kept: its member {name!r} {why}.")

    def add_folder(self, name: str) -> None:
        self.check(name)

    def add_file(self, name: str, size: int, stream: IO[bytes]) -> None:
        raise NotImplementedError

    def check(self, name: str, size: int = 0) -> None:
        """Counts the member and checks its name and what its header claims to be its size."""
        self.files += 1
        if self.files > self.max_files:
            raise self.refuse(name, f"is one more than the {self.max_files:,} allowed")
        if name.startswith("/") or "\\" in name or re.match("[A-Za-z]:", name):
            raise self.refuse(name, "has an absolute name or a backslash")
        if ".." in name.split("/"):
            raise self.refuse(name, "leads out of the folder")
        if self.bytes + size > self.max_bytes:
            raise self.refuse(name, f"goes beyond the {self.max_bytes:,} bytes allowed")


class _MemberIndex(_MemberChecks):
    """Keeps the names that are wanted. No more is read of a member later on than it claims here, so sizes are taken
    at their word."""

    def __init__(self, archive: Path, wanted: Callable[[str], bool]) -> None:
        super().__init__(archive.name, max_unpacked_bytes(archive), MAX_FILES)
        self.wanted = wanted
        self.seen: set[str] = set()
        self.wanted_names: list[str] = []

    def add_file(self, name: str, size: int, stream: IO[bytes]) -> None:
        self.check(name, size)
        if name in self.seen:
            raise self.refuse(name, "comes twice")
        self.bytes += size
        self.seen.add(name)
        if self.wanted(name):
            self.wanted_names.append(name)


class _Unpacker(_MemberChecks):
    """Where members go to be unpacked. No links are made, so no path can lead out."""

    def __init__(self, folder: Path, archive: str, max_bytes: int, max_files: int) -> None:
        super().__init__(archive, max_bytes, max_files)
        self.folder = folder
        folder.mkdir()

    def add_folder(self, name: str) -> None:
        self.check(name)
        self._make(self.folder / name, name)

    def add_file(self, name: str, size: int, stream: IO[bytes]) -> None:
        """Writes it. `size` is what the header claims, good for refusing early and not believed beyond that."""
        self.check(name, size)
        path = self.folder / name
        self._make(path.parent, name)
        try:
            with path.open("xb") as out:
                while chunk := stream.read(1 << 18):
                    self.bytes += len(chunk)
                    if self.bytes > self.max_bytes:
                        raise self.refuse(name, f"goes beyond the {self.max_bytes:,} bytes allowed")
                    out.write(chunk)
        except (FileExistsError, IsADirectoryError):
            raise self.refuse(name, "comes twice") from None

    def _make(self, folder: Path, name: str) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise self.refuse(name, "needs a folder where an earlier member is a file") from None


class _CountingReader:
    """Decompressed bytes for tarfile: moves the bar by the compressed ones, and ends a bomb made of headers."""

    def __init__(self, plain: IO[bytes], raw: IO[bytes], bar: Bar, limit: int) -> None:
        self.plain, self.raw, self.bar, self.left, self.at = plain, raw, bar, limit, 0

    def read(self, size: int) -> bytes:
        data = self.plain.read(size)
        self.left -= len(data)
        if self.left < 0:
            raise DataError(f"{self.raw.name} is refused: it unpacks to far more than the bytes allowed.")
        self.bar.step(self.raw.tell() - self.at)
        self.at = self.raw.tell()
        return data


def _untar(archive: Path, sink: _MemberChecks, bar: Bar) -> None:
    """Streams: each byte is read once, in order, up to the end, so that gzip's and xz's own checksums are checked."""
    limit = sink.max_bytes + 4096 * (sink.max_files + 16)  # headers and padding of a member are below 4 KiB
    with archive.open("rb") as raw, _decompress(raw) as plain:
        counted: Any = _CountingReader(plain, raw, bar, limit)
        with tarfile.open(fileobj=counted, mode="r|") as tar:
            for member in tar:
                if member.isdir():
                    sink.add_folder(member.name)
                elif member.isreg() and (stream := tar.extractfile(member)):
                    sink.add_file(member.name, member.size, stream)
                else:
                    raise sink.refuse(member.name, "is a link or a device")
            rest: Any = tar.fileobj
            while chunk := rest.read(1 << 20):
                if chunk.strip(b"\0"):  # tarfile ends in silence at a damaged header
                    raise tarfile.ReadError("something follows its end")


def _unzip(archive: Path, sink: _MemberChecks, bar: Bar) -> None:
    with zipfile.ZipFile(archive) as opened:
        for member in opened.infolist():
            kind = stat.S_IFMT(member.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise sink.refuse(member.filename, "is a link or a device")
            if member.flag_bits & 1:
                raise sink.refuse(member.filename, "is encrypted")
            if member.is_dir():
                sink.add_folder(member.filename)
            else:
                with opened.open(member) as stream:
                    sink.add_file(member.filename, member.file_size, stream)
            bar.step(member.compress_size)


def _magic_bytes(archive: Path) -> bytes:
    with archive.open("rb") as opened:
        return opened.read(6)


def _decompress(raw: IO[bytes]) -> Any:
    """By the file's first bytes; its name may say anything."""
    magic = raw.read(6)
    raw.seek(0)
    for start, opener in ((b"\x1f\x8b", gzip.open), (b"\xfd7zXZ\0", lzma.open), (b"BZh", bz2.open)):
        if magic.startswith(start):
            return opener(raw, "rb")
    return raw


@contextmanager
def _report_damage(archive: Path) -> Iterator[None]:
    """The many ways in which five libraries say that an archive is broken, as one DataError."""
    try:
        yield
    except BaselineError:
        raise
    except (EOFError, ValueError, NotImplementedError, zlib.error, lzma.LZMAError) as fault:
        raise DataError(_damage_error(archive, fault)) from fault
    except (tarfile.TarError, zipfile.BadZipFile) as fault:
        raise DataError(_damage_error(archive, fault)) from fault
    except OSError as fault:  # gzip and bz2 raise it without a number, the system always with one
        if fault.errno is None:
            raise DataError(_damage_error(archive, fault)) from fault
        raise


@contextmanager
def _report_unreadable(archive: Path) -> Iterator[None]:
    """Says as a DataError, too, what the system refused."""
    try:
        with _report_damage(archive):
            yield
    except BaselineError:
        raise
    except OSError as fault:
        raise DataError(f"{archive} cannot be read: {fault.strerror}. Change its rights, or fetch it anew.") from None


def _damage_error(archive: Path, fault: Exception) -> str:
    return f"{archive} is damaged, cut short, or no tar or zip archive ({fault}). Fetch it anew."


@contextmanager
def report_write_errors(folder: Path) -> Iterator[None]:
    """Says in words what the system refused; what is in words already passes."""
    try:
        yield
    except BaselineError:
        raise
    except OSError as fault:
        if fault.errno in (errno.ENOSPC, errno.EDQUOT):
            what = f"The disk or quota of {folder} is full."
        else:
            what = f"{folder} cannot be filled: {fault}."
        raise OutputError(f"{what} Set BASELINE_HOME to a folder that can be written.") from fault
