"""Model + photos by the thousand -> rows in a file, as they are made. Knows that file; knows no networks.

Rows stand in the order of the photos, and each is written whole or, by a job that was killed, cut off when it goes on.
Beside `predictions.csv` lies `predictions.csv.job.json`: which model and which options the rows are of.
"""

from __future__ import annotations

import csv
import io
import json
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from glob import glob
from itertools import chain
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from .errors import DataError, OutputError
from .progress import Show
from .save import as_json, read_json, write
from .tables import TABLE_ENDINGS, listed_photos, photos_below, place

if TYPE_CHECKING:
    from .model import Block, Ensemble, Model

__all__ = ["Counts", "Wanted", "named_photos", "write_predictions"]

ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".xz", ".bz2")
UNSURE = "unsure"


@dataclass(frozen=True)
class Wanted:
    """What is to be predicted and told."""

    format: str = "csv"
    """`"csv"` or `"jsonl"`: a JSON object a line."""
    tta: bool = True
    """Average over the views of the training's evaluation."""
    top_k: int = 0
    """So many most probable classes with their probabilities."""
    every: bool = False
    """The probability of every class."""
    min_confidence: float = 0.0
    """Below it `predicted` is "unsure"."""
    batch_size: int = 64

    def __post_init__(self) -> None:
        good = {
            "format": self.format in ("csv", "jsonl"),
            "top_k": self.top_k >= 0,
            "min_confidence": 0 <= self.min_confidence <= 1,
            "batch_size": 1 <= self.batch_size <= 65536,
        }
        if wrong := [name for name, each in good.items() if not each]:
            raise OutputError(f"{wrong[0]} is {getattr(self, wrong[0])!r}. See baseline predict --help.")


@dataclass
class Counts:
    """What came of a job."""

    photos: int = 0
    unreadable: int = 0
    unsure: int = 0
    before: int = 0
    """Photos that were done when it went on."""
    seconds: float = 0.0

    def __str__(self) -> str:
        parts = [
            f"{self.photos:,} photos in {self.seconds:.1f} s ({self.photos / max(self.seconds, 1e-9):,.0f} photos/s)"
        ]
        parts += [f"{self.before:,} were done before"] if self.before else []
        parts += [f"{self.unsure:,} unsure"] if self.unsure else []
        parts += [f"{self.unreadable:,} could not be read"] if self.unreadable else []
        return ", ".join(parts)


def write_predictions(
    model: Model | Ensemble,
    photos: Iterable[str],
    out: str | Path | IO[bytes],
    wanted: Wanted | None = None,
    *,
    total: int = 0,
    overwrite: bool = False,
    resume: bool = False,
    show: Show | None = None,
) -> Counts:
    """Writes a row a photo: `path, predicted, confidence, error`, and as wanted `class_1, probability_1` and so on, and
    `p_CLASS` for each class; shares have six decimals. A photo that cannot be read has a row that says why.

    A job that was killed goes on with `resume` where it stopped, in whole batches, so that its file is in the end that
    of a job that was left alone. Memory stays the same however many photos there are.

    Args:
        photos: their paths, taken from the iterable as they are needed.
        out: a file, or a binary stream.
        total: how many photos there are, for the bar; 0 where that is not known.

    Raises:
        OutputError: if the file exists and neither `overwrite` nor `resume` is given, cannot be written, is being
            written by another job, or holds rows of another model, other options or other photos.

    >>> write_predictions(load("runs/mine"), ["a.jpg", "b.jpg"], "out.csv", Wanted(top_k=3))  # doctest: +SKIP
    """
    wanted = wanted or Wanted()
    show = show or Show()
    rows = _Rows(model.classes, wanted)
    if not isinstance(out, str | Path):
        out.write(rows.header)
        return _predicted(model, photos, out, rows, Counts(), total, show)
    job = {"format": 1, "model": model.identity, **asdict(wanted)}
    path = Path(out).expanduser()
    with _opened(path, job, overwrite=overwrite, resume=resume) as file:
        counts, rest = _continued(path, file, rows, iter(photos))
        return _predicted(model, rest, file, rows, counts, total, show)


def named_photos(words: Sequence[str], column: str = "", lines: Iterable[bytes] = ()) -> tuple[Iterable[str], int]:
    """The paths that a user's words name, in their order, and how many; 0 where that is not known.

    Args:
        words: photos, folders (with all below), patterns such as `'shots/*.jpg'`, tables with a column of paths, which
            are looked for beside the table, or `-` for `lines`.
        column: the column of paths in tables; looked for where empty.

    Raises:
        DataError: for a word that names nothing, and for a table without such a column.
    """
    parts: list[Iterable[str]] = [_lines(lines) if word == "-" else _named(word, column) for word in words]
    known = all(isinstance(part, list) for part in parts)
    return chain.from_iterable(parts), sum(map(len, parts)) if known else 0  # type: ignore[arg-type]


def _lines(lines: Iterable[bytes]) -> Iterator[str]:
    for line in lines:
        if path := line.rstrip(b"\r\n"):
            yield os.fsdecode(path)


def _named(word: str, column: str) -> list[str]:
    place(word)
    path = Path(word).expanduser()
    if path.is_dir():
        if not (found := list(photos_below(path))):
            raise DataError(f"{path} holds no photos. Give a folder of photos.")
        return found
    if not path.exists():
        fitting = sorted(glob(str(path), recursive=True))  # noqa: PTH207  # that of a Path takes no absolute pattern
        found = [each for each in fitting if Path(each).is_file()]
        if not found:
            raise DataError(f"There is no photo, folder or table {word}, and no file fits it as a pattern.")
        return found
    if path.suffix.lower() in ARCHIVES:
        raise DataError(f"{path} is an archive. Unpack it, and give the folder.")
    return listed_photos(path, column) if path.suffix.lower() in TABLE_ENDINGS else [str(path)]


# ---- rows -----------------------------------------------------------------------------------------------------------


class _Rows:
    """Predictions as bytes to write, and back as far as that is needed to go on."""

    def __init__(self, classes: Sequence[str], wanted: Wanted) -> None:
        self.classes, self.wanted = classes, wanted
        self.top = min(wanted.top_k, len(classes))
        self.csv = wanted.format == "csv"

    @property
    def header(self) -> bytes:
        if not self.csv:
            return b""
        top = [name for k in range(1, self.top + 1) for name in (f"class_{k}", f"probability_{k}")]
        every = [f"p_{name}" for name in self.classes] if self.wanted.every else []
        return _csv([["path", "predicted", "confidence", "error", *top, *every]])

    def of(self, block: Block, counts: Counts) -> bytes:
        """The block's rows; what is unsure and unreadable is counted."""
        sure = block.confidence >= self.wanted.min_confidence
        counts.photos += len(block.photos)
        counts.unreadable += sum(map(bool, block.errors))
        counts.unsure += int((block.confidence < self.wanted.min_confidence).sum())
        predicted = [name if each else UNSURE for name, each in zip(block.predicted, sure, strict=True)]
        made = self._csv_row if self.csv else self._line
        rows = zip(block.photos, predicted, block.confidence, block.errors, block.probabilities, strict=True)
        return _csv(made(*row) for row in rows) if self.csv else b"".join(made(*row) for row in rows)

    def _best(self, shares: np.ndarray) -> list[int]:
        return np.argsort(-shares, kind="stable")[: self.top].tolist() if self.top else []

    def _csv_row(self, path: str, predicted: str, confidence: float, error: str, shares: np.ndarray) -> Any:
        if error:
            rest = 2 * self.top + (len(self.classes) if self.wanted.every else 0)
            return [_text(path), "", "", error, *[""] * rest]
        best = [value for k in self._best(shares) for value in (self.classes[k], f"{shares[k]:.6f}")]
        every = [f"{share:.6f}" for share in shares] if self.wanted.every else []
        return [_text(path), predicted, f"{confidence:.6f}", "", *best, *every]

    def _line(self, path: str, predicted: str, confidence: float, error: str, shares: np.ndarray) -> Any:
        row: dict[str, Any] = {"path": _text(path), "predicted": predicted, "confidence": round(float(confidence), 6)}
        if error:
            row = {"path": _text(path), "predicted": None, "confidence": None, "error": error}
        elif self.top:
            best = self._best(shares)
            row["top"] = [{"class": self.classes[k], "probability": round(float(shares[k]), 6)} for k in best]
        if self.wanted.every and not error:
            row["probabilities"] = dict(zip(self.classes, np.round(shares, 6).tolist(), strict=True))
        return json.dumps(row, ensure_ascii=False).encode() + b"\n"

    def path_in(self, record: bytes) -> str:
        """The path that a written row begins with.

        Raises:
            ValueError: if it is no such row.
        """
        if not self.csv:
            return str(json.loads(record)["path"])
        return next(csv.reader(io.StringIO(record.decode(), newline="")))[0]


def _csv(rows: Iterable[list[str]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def _text(path: str) -> str:
    """The path as it can be written: what is no text in UTF-8 becomes question marks."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


# ---- the file -------------------------------------------------------------------------------------------------------


@contextmanager
def _opened(path: Path, job: dict[str, Any], *, overwrite: bool, resume: bool) -> Iterator[IO[bytes]]:
    """The file, to read what is in it and to append, for this job alone."""
    beside = path.with_name(f"{path.name}.job.json")
    if path.exists():
        if not path.is_file():
            raise OutputError(f"{path} is no file that can be written. Choose another --out.")
        if not (overwrite or resume):
            raise OutputError(f"{path} exists. Give --resume to go on with it, --overwrite, or another --out.")
        if resume:
            _refuse_other(path, beside, job)
        else:
            path.unlink()
    if not path.exists():
        write(beside, as_json(job))
    try:
        with path.open("a+b") as file:
            _lock(file, path)
            yield file
    except (DataError, OutputError):
        raise
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}. Make room, or choose another --out.") from None


def _refuse_other(path: Path, beside: Path, job: dict[str, Any]) -> None:
    if not beside.exists():
        raise OutputError(f"{beside}, which tells what {path} is of, is not there. Give --overwrite, or another --out.")
    begun = read_json(beside)
    if not isinstance(begun, dict) or (differ := [name for name in job if begun.get(name, ...) != job[name]]):
        words = ", ".join(differ) if isinstance(begun, dict) else "job"
        raise OutputError(f"{path} was begun with another {words}. Give the same, --overwrite, or another --out.")


def _lock(file: IO[bytes], path: Path) -> None:
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise OutputError(f"{path} is being written by another job. Wait for it, or choose another --out.") from None
    except (ImportError, OSError):
        pass  # a system or disk without locks


def _continued(path: Path, file: IO[bytes], rows: _Rows, photos: Iterator[str]) -> tuple[Counts, Iterator[str]]:
    """Cuts the file to its whole batches, all of it where it is complete; how many photos those are, and the rest."""
    file.seek(0)
    kept = len(rows.header)
    if file.read(kept) != rows.header:
        _refuse_foreign(path, file, rows)
        file.truncate(0)
        file.write(rows.header)
        return Counts(), photos
    end, done, waiting = kept, 0, []
    for record in _records(file, quoted=rows.csv):
        photo = next(photos, None)
        if photo is None or _path_in(record, rows) != _text(photo):
            words = f"row {done + 1} of {path} is not of photo {photo}" if photo else f"{path} has rows of more photos"
            raise OutputError(f"{words}: it was begun with other photos. Give the same, or --overwrite.")
        end, done = end + len(record), done + 1
        waiting.append(photo)
        if done % rows.wanted.batch_size == 0:
            kept, waiting = end, []
    following = next(photos, None)
    if following is None:
        kept, waiting = end, []
    else:
        waiting.append(following)
    file.truncate(kept)
    return Counts(before=done - max(0, len(waiting) - 1)), chain(waiting, photos)


def _refuse_foreign(path: Path, file: IO[bytes], rows: _Rows) -> None:
    """A file that holds no more than a part of the header may be begun anew; another was not written by this job."""
    file.seek(0)
    if not rows.header.startswith(file.read(len(rows.header) + 1)):
        raise OutputError(f"{path} does not begin as this job's file would. Give --overwrite, or another --out.")


def _path_in(record: bytes, rows: _Rows) -> str | None:
    try:
        return rows.path_in(record)
    except (ValueError, LookupError, TypeError, StopIteration, csv.Error):
        return None


def _records(file: IO[bytes], *, quoted: bool) -> Iterator[bytes]:
    """Whole rows; in CSV one may go over several lines, between quotes. What follows the last whole one is left out."""
    record = b""
    for line in file:
        record += line
        if line.endswith(b"\n") and not (quoted and record.count(b'"') % 2):
            yield record
            record = b""


def _predicted(
    model: Model | Ensemble, photos: Iterable[str], file: IO[bytes], rows: _Rows, counts: Counts, total: int, show: Show
) -> Counts:
    wanted, began = rows.wanted, time.perf_counter()
    with show.bar("predicting", total, "photos") as bar:
        bar.step(counts.before)
        for block in model.blocks(photos, tta=wanted.tta, batch_size=wanted.batch_size):
            file.write(rows.of(block, counts))
            file.flush()
            counts.seconds = time.perf_counter() - began
            bar.step(len(block.photos), f"{counts.photos / counts.seconds:,.0f} photos/s")
    return counts
