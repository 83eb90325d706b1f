"""Unpack tar and zip archives safely and atomically, or read their files in place."""

from __future__ import annotations

import bz2
import errno
import gzip
import lzma
import os
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
    "unpack_archive",
]


ARCHIVE_SUFFIXES = (".tgz", ".tar.gz", ".txz", ".tar.xz", ".tbz2", ".tar.bz2", ".tar", ".zip")
"""File name endings of the supported archives, in lower case."""


MAX_COMPRESSION_RATIO = 100
"""Maximum ratio of an archive's content to its size; images barely compress, zip bombs compress a thousandfold."""


MAX_FILES = 20_000_000
"""Maximum number of members in a user's archive."""


MAX_NAME_BYTES, MAX_PATH_BYTES = 255, 3000
"""Maximum length of a name in the path of a member, and of the path, as most file systems limit them."""


MAX_MEMBER_BYTES = 2**31
"""Maximum size of a member that is read in place, the same as for an image file on disk."""


_SILENT = Progress()


def is_archive(path: str | Path) -> bool:
    """Return whether a file name ends like an archive; the file itself is not opened.

    >>> is_archive("images.tar.gz"), is_archive("image.jpg")
    (True, False)
    """
    return str(path).lower().endswith(ARCHIVE_SUFFIXES)


def max_unpacked_bytes(archive: Path) -> int:
    """Return how many bytes an archive of this size may contain before it is rejected as a zip bomb."""
    return max(MAX_COMPRESSION_RATIO * archive.stat().st_size, 100_000_000)


def unpack_archive(
    archive: Path,
    folder: Path,
    *,
    max_bytes: int = 2 * 1024**3,
    max_files: int = 200_000,
    progress: Progress = _SILENT,
) -> None:
    """Unpack a tar (plain, gzip, xz, bzip2) or zip archive into the new `folder`, completely or not at all.

    Absolute names, `..`, links and devices of any kind, duplicate names, more than `max_bytes` of content (counted as
    it is written) and more than `max_files` members are rejected. File modes and owners are not restored. The archive
    is unpacked into a temporary folder next to `folder`, which is renamed at the end.

    Raises:
        DataError: if a member is rejected or the archive is damaged; the message names the member or the damage.
        OutputError: if `folder` already exists or cannot be written.

    >>> unpack_archive(Path("images.tar.gz"), Path("images"))  # doctest: +SKIP
    """
    archive, folder = Path(archive), Path(folder)
    if not archive.is_file():
        raise DataError(f"There is no archive {archive}.")
    if folder.exists():
        raise OutputError(f"{folder} already exists. Remove it, or unpack into another folder.")
    with report_write_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{folder.name}.tmp-", dir=folder.parent))
        try:
            unpacker = Unpacker(work / "new", archive.name, max_bytes, max_files)
            with (
                progress.bar(f"unpacking {archive.name}", archive.stat().st_size, "bytes") as bar,
                report_damage(archive),
            ):
                (read_zip if _magic_bytes(archive).startswith(b"PK") else read_tar)(archive, unpacker, bar)
            (work / "new").rename(folder)
        finally:
            shutil.rmtree(work, ignore_errors=True)


@dataclass(frozen=True)
class Member:
    """A file inside an archive. Call it to read its bytes."""

    path: str
    """Path of the archive, followed by the member's name."""
    read: Callable[[], bytes]

    def __call__(self) -> bytes:
        return self.read()

    def __str__(self) -> str:
        return self.path


class Members:
    """The files of a tar or zip archive whose names pass a filter, in the archive's order, read in place.

    All names, sizes and checksums of the container are validated first: what `unpack_archive` rejects is rejected here
    before anything is read. Members of a zip can be read from any thread, those of a tar only one after the other.

    Raises:
        DataError: for whatever `unpack_archive` rejects, and for a damaged archive.

    >>> for image in Members(Path("images.zip"), lambda name: name.endswith(".jpg")):  # doctest: +SKIP
    ...     print(image, len(image()))
    """

    def __init__(self, archive: Path, wanted: Callable[[str], bool], progress: Progress = _SILENT) -> None:
        self.archive = archive
        with (
            report_read_errors(archive),
            progress.bar(f"listing {archive.name}", archive.stat().st_size, "bytes") as bar,
        ):
            index = MemberIndex(archive, wanted)
            self.is_zip = _magic_bytes(archive).startswith(b"PK")
            (read_zip if self.is_zip else read_tar)(archive, index, bar)
        self.names, self.other_names = index.wanted_names, index.other_names

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[Member]:
        with report_read_errors(self.archive):
            yield from (self._iter_zip if self.is_zip else self._iter_tar)()

    def _iter_zip(self) -> Iterator[Member]:
        opened = zipfile.ZipFile(self.archive)  # stays open as long as any of its members can be called
        for name in self.names:
            yield Member(self._path(name), partial(read_member, opened, name))

    def _iter_tar(self) -> Iterator[Member]:
        names = set(self.names)
        with (
            self.archive.open("rb") as raw,
            _decompress(raw) as plain,
            tarfile.open(fileobj=plain, mode="r|", tarinfo=BoundedTarInfo) as tar,
        ):
            for member in tar:
                if member.name in names and (stream := tar.extractfile(member)):
                    too_large = member.size > MAX_MEMBER_BYTES
                    read = partial(raise_too_large, member.size) if too_large else partial(bytes, stream.read())
                    yield Member(self._path(member.name), read)

    def _path(self, name: str) -> str:
        return f"{self.archive}/{name.removeprefix('./')}"


def read_member(opened: zipfile.ZipFile, name: str) -> bytes:
    size = opened.getinfo(name).file_size
    return raise_too_large(size) if size > MAX_MEMBER_BYTES else opened.read(name)


def raise_too_large(size: int) -> bytes:
    raise OSError(f"more than {MAX_MEMBER_BYTES:,} bytes")


class MemberChecks:
    """Base class that validates the name, the number and the size of every member of an archive."""

    def __init__(self, archive: str, max_bytes: int, max_files: int) -> None:
        self.archive, self.max_bytes, self.max_files = archive, max_bytes, max_files
        self.bytes = self.files = 0

    def rejection(self, name: str, reason: str) -> DataError:
        return DataError(f"{self.archive} was rejected and nothing of it was kept: its member {name[:200]!r} {reason}.")

    def add_folder(self, name: str) -> None:
        self.check(name)

    def add_file(self, name: str, size: int, stream: IO[bytes]) -> None:
        raise NotImplementedError

    def check(self, name: str, size: int = 0) -> None:
        """Count the member, and validate its name and the size that its header declares."""
        self.files += 1
        if self.files > self.max_files:
            raise self.rejection(name, f"exceeds the limit of {self.max_files:,} members")
        path = os.fsencode(name)
        if len(path) > MAX_PATH_BYTES or max(map(len, path.split(b"/"))) > MAX_NAME_BYTES:
            raise self.rejection(name, "has a name that is too long for a file")
        if name.startswith("/") or "\\" in name or re.match("[A-Za-z]:", name):
            raise self.rejection(name, "has an absolute name or a backslash")
        if ".." in name.split("/"):
            raise self.rejection(name, "points outside the folder")
        if self.bytes + size > self.max_bytes:
            raise self.rejection(name, f"exceeds the limit of {self.max_bytes:,} bytes")


class MemberIndex(MemberChecks):
    """Collect the names of the wanted members.

    Declared sizes are trusted here, because no more of a member is ever read than it declares.
    """

    def __init__(self, archive: Path, wanted: Callable[[str], bool]) -> None:
        super().__init__(archive.name, max_unpacked_bytes(archive), MAX_FILES)
        self.wanted = wanted
        self.all_names: set[str] = set()
        self.wanted_names: list[str] = []
        self.other_names: list[str] = []

    def add_file(self, name: str, size: int, stream: IO[bytes]) -> None:
        self.check(name, size)
        if name in self.all_names:
            raise self.rejection(name, "appears twice")
        self.bytes += size
        self.all_names.add(name)
        (self.wanted_names if self.wanted(name) else self.other_names).append(name)


class Unpacker(MemberChecks):
    """Write members into a new folder. No links are created, so no path can lead out of it."""

    def __init__(self, folder: Path, archive: str, max_bytes: int, max_files: int) -> None:
        super().__init__(archive, max_bytes, max_files)
        self.folder = folder
        folder.mkdir()

    def add_folder(self, name: str) -> None:
        self.check(name)
        self._make_folder(self.folder / name, name)

    def add_file(self, name: str, size: int, stream: IO[bytes]) -> None:
        """Write one file. `size` is what the header declares: used to reject early, and not trusted beyond that."""
        self.check(name, size)
        path = self.folder / name
        self._make_folder(path.parent, name)
        try:
            with path.open("xb") as out:
                while chunk := stream.read(1 << 18):
                    self.bytes += len(chunk)
                    if self.bytes > self.max_bytes:
                        raise self.rejection(name, f"exceeds the limit of {self.max_bytes:,} bytes")
                    out.write(chunk)
        except (FileExistsError, IsADirectoryError):
            raise self.rejection(name, "appears twice") from None

    def _make_folder(self, folder: Path, name: str) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise self.rejection(name, "needs a folder where an earlier member is a file") from None


class CountingReader:
    """Decompressed stream for tarfile that advances the bar by compressed bytes and stops bombs made of headers."""

    def __init__(self, plain: IO[bytes], raw: IO[bytes], bar: Bar, max_bytes: int) -> None:
        self.plain, self.raw, self.bar, self.remaining, self.position = plain, raw, bar, max_bytes, 0

    def read(self, size: int) -> bytes:
        data = self.plain.read(size)
        self.remaining -= len(data)
        if self.remaining < 0:
            raise DataError(f"{self.raw.name} was rejected: it unpacks to far more than the bytes allowed.")
        self.bar.step(self.raw.tell() - self.position)
        self.position = self.raw.tell()
        return data


class BoundedTarInfo(tarfile.TarInfo):
    """A header of a tar whose extended headers, which tarfile reads into memory as a whole, are bounded."""

    def _proc_member(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        name = str(tar.name) if tar.name else "The archive"
        extended = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, *PAX_TYPES)
        if self.type in extended and self.size > MAX_HEADER_BYTES:
            raise DataError(f"{name} was rejected: a header of {self.size:,} bytes, and at most "
                            f"{MAX_HEADER_BYTES:,} are read.")  # fmt: skip
        if self.type == tarfile.XGLTYPE and len(str(tar.pax_headers)) > MAX_HEADER_BYTES:
            raise DataError(f"{name} was rejected: its global headers exceed the limit of "
                            f"{MAX_HEADER_BYTES:,} bytes.")  # fmt: skip
        if self.type == tarfile.GNUTYPE_SPARSE:
            raise DataError(f"{name} was rejected: {self.name!r:.200} is a sparse file.")
        return super()._proc_member(tar)  # type: ignore[misc]


PAX_TYPES = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)

MAX_HEADER_BYTES = 2**16
"""Maximum size of an extended header, which holds a long name or what pax adds; a name has at most 4,096 bytes."""


def read_tar(archive: Path, sink: MemberChecks, bar: Bar) -> None:
    """Stream a tar into `sink`, each byte once, in order and to the end, so that gzip and xz verify their checksums."""
    limit = sink.max_bytes + 4096 * (sink.max_files + 16)  # headers and padding of a member are below 4 KiB
    with archive.open("rb") as raw, _decompress(raw) as plain:
        reader: Any = CountingReader(plain, raw, bar, limit)
        with tarfile.open(archive, fileobj=reader, mode="r|", tarinfo=BoundedTarInfo) as tar:
            for member in tar:
                if member.isdir():
                    sink.add_folder(member.name)
                elif member.isreg() and (stream := tar.extractfile(member)):
                    sink.add_file(member.name, member.size, stream)
                else:
                    raise sink.rejection(member.name, "is a link or a device")
            remainder: Any = tar.fileobj
            while chunk := remainder.read(1 << 20):
                if chunk.strip(b"\0"):  # tarfile stops silently at a damaged header
                    raise tarfile.ReadError("unexpected data after the end of the archive")


def read_zip(archive: Path, sink: MemberChecks, bar: Bar) -> None:
    """Read the members of a zip into `sink`."""
    with zipfile.ZipFile(archive) as opened:
        for member in opened.infolist():
            kind = stat.S_IFMT(member.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise sink.rejection(member.filename, "is a link or a device")
            if member.flag_bits & 1:
                raise sink.rejection(member.filename, "is encrypted")
            if member.filename.endswith("/"):
                sink.add_folder(member.filename)
            else:
                with opened.open(member) as stream:
                    sink.add_file(member.filename, member.file_size, stream)
            bar.step(member.compress_size)


def _magic_bytes(archive: Path) -> bytes:
    with archive.open("rb") as opened:
        return opened.read(6)


def _decompress(raw: IO[bytes]) -> Any:
    """Open the matching decompressor, chosen by the first bytes of the file because its name may be wrong."""
    magic = raw.read(6)
    raw.seek(0)
    for start, opener in ((b"\x1f\x8b", gzip.open), (b"\xfd7zXZ\0", lzma.open), (b"BZh", bz2.open)):
        if magic.startswith(start):
            return opener(raw, "rb")
    return raw


@contextmanager
def report_damage(archive: Path) -> Iterator[None]:
    """Turn the many exceptions by which five libraries report a broken archive into one DataError."""
    try:
        yield
    except BaselineError:
        raise
    except (EOFError, ValueError, NotImplementedError, RecursionError, zlib.error, lzma.LZMAError) as error:
        raise DataError(_damage_message(archive, error)) from error
    except (tarfile.TarError, zipfile.BadZipFile) as error:
        raise DataError(_damage_message(archive, error)) from error
    except OSError as error:  # gzip and bz2 raise it without an errno, the operating system always sets one
        if error.errno is None:
            raise DataError(_damage_message(archive, error)) from error
        raise


@contextmanager
def report_read_errors(archive: Path) -> Iterator[None]:
    """Like `report_damage`, and also turn errors of the operating system into a DataError."""
    try:
        with report_damage(archive):
            yield
    except BaselineError:
        raise
    except OSError as error:
        raise DataError(
            f"{archive} cannot be read: {error.strerror}. Change its permissions, or download it again."
        ) from None


def _damage_message(archive: Path, error: Exception) -> str:
    return f"{archive} is damaged, truncated, or not a tar or zip archive ({str(error)[:200]}). Download it again."


@contextmanager
def report_write_errors(folder: Path) -> Iterator[None]:
    """Turn errors of the operating system into an OutputError; errors of this library pass unchanged."""
    try:
        yield
    except BaselineError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            reason = f"The disk or quota of {folder} is full."
        else:
            reason = f"{folder} cannot be written: {error}."
        raise OutputError(f"{reason} Set BASELINE_HOME to a writable folder.") from error
