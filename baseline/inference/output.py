"""TODO."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from baseline.errors import DataError, OutputError, first_line
from baseline.files import read_json

if TYPE_CHECKING:
    from baseline.inference.model import PredictionBatch

__all__ = ["FORMATS", "PredictOptions", "PredictionStats"]


FORMATS = ("csv", "jsonl", "parquet")

ROW_GROUP_BYTES = 2**23
"""Of rows as CSV that become a group of rows of Parquet, and are in memory at once."""


UNSURE = "unsure"


@dataclass(frozen=True)
class PredictOptions:
    """What is to be predicted and told."""

    format: str = "csv"
    """`"csv"`, `"jsonl"`: a JSON object a line, or `"parquet"`, for a file only."""
    tta: bool = True
    """Average over the views of the training's evaluation."""
    top_k: int = 0
    """So many most probable classes with their probabilities."""
    every: bool = False
    """The probability of every class."""
    min_confidence: float = 0.0
    """Below it `predicted` is "unsure"."""
    batch_size: int = 64
    precision: str = ""
    """`"float32"`, `"bfloat16"` or `"auto"`; as the run was evaluated where empty. See `Model.resolve_precision`."""

    def __post_init__(self) -> None:
        good = {
            "format": self.format in FORMATS,
            "precision": self.precision in ("", "auto", "float32", "bfloat16"),
            "top_k": self.top_k >= 0,
            "min_confidence": 0 <= self.min_confidence <= 1,
            "batch_size": 1 <= self.batch_size <= 65536,
        }
        if wrong := [name for name, each in good.items() if not each]:
            raise OutputError(f"{wrong[0]} is {getattr(self, wrong[0])!r}. See baseline predict --help.")
        if self.format == "parquet" and find_spec("pyarrow") is None:
            raise OutputError("Writing Parquet needs pyarrow: pip install 'fastai-baseline[parquet]', or give a .csv.")


@dataclass
class PredictionStats:
    """What came of a job."""

    images: int = 0
    unreadable: int = 0
    unsure: int = 0
    before: int = 0
    """Images that were done when it went on."""
    seconds: float = 0.0

    def add(self, more: PredictionStats) -> None:
        """Counts other images, too."""
        for name in ("images", "unreadable", "unsure", "before"):
            setattr(self, name, getattr(self, name) + getattr(more, name))

    def __str__(self) -> str:
        parts = [
            f"{self.images:,} images in {self.seconds:.1f} s ({self.images / max(self.seconds, 1e-9):,.0f} images/s)"
        ]
        parts += [f"{self.before:,} were done before"] if self.before else []
        parts += [f"{self.unsure:,} unsure"] if self.unsure else []
        parts += [f"{self.unreadable:,} could not be read"] if self.unreadable else []
        return ", ".join(parts)


class RowFormat:
    """Predictions as bytes to write, and back as far as that is needed to go on."""

    def __init__(self, classes: Sequence[str], wanted: PredictOptions) -> None:
        self.classes, self.wanted = classes, wanted
        self.top = min(wanted.top_k, len(classes))
        self.csv = wanted.format != "jsonl"

    @property
    def header(self) -> bytes:
        if not self.csv:
            return b""
        top = [name for k in range(1, self.top + 1) for name in (f"class_{k}", f"probability_{k}")]
        every = [f"p_{name}" for name in self.classes] if self.wanted.every else []
        return _to_csv([["path", "predicted", "confidence", "error", *top, *every]])

    def of(self, block: PredictionBatch) -> tuple[bytes, PredictionStats]:
        """The block's rows, and what is in them."""
        sure = block.confidence >= self.wanted.min_confidence
        unsure = int((block.confidence < self.wanted.min_confidence).sum())
        counts = PredictionStats(len(block.images), sum(map(bool, block.errors)), unsure)
        predicted = [name if each else UNSURE for name, each in zip(block.predicted, sure, strict=True)]
        made = self._csv_row if self.csv else self._line
        rows = zip(map(str, block.images), predicted, block.confidence, block.errors, block.probabilities, strict=True)
        return (_to_csv(made(*row) for row in rows) if self.csv else b"".join(made(*row) for row in rows)), counts

    def _best(self, shares: np.ndarray) -> list[int]:
        return np.argsort(-shares, kind="stable")[: self.top].tolist() if self.top else []

    def _csv_row(self, path: str, predicted: str, confidence: float, error: str, shares: np.ndarray) -> Any:
        if error:
            rest = 2 * self.top + (len(self.classes) if self.wanted.every else 0)
            return [_printable_path(path), "", "", error, *[""] * rest]
        best = [value for k in self._best(shares) for value in (self.classes[k], f"{shares[k]:.6f}")]
        every = [f"{share:.6f}" for share in shares] if self.wanted.every else []
        return [_printable_path(path), predicted, f"{confidence:.6f}", "", *best, *every]

    def _line(self, path: str, predicted: str, confidence: float, error: str, shares: np.ndarray) -> Any:
        row: dict[str, Any] = {
            "path": _printable_path(path),
            "predicted": predicted,
            "confidence": round(float(confidence), 6),
        }
        if error:
            row = {"path": _printable_path(path), "predicted": None, "confidence": None, "error": error}
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


def _to_csv(rows: Iterable[list[str]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def _printable_path(path: str) -> str:
    """The path as it can be written: what is no text in UTF-8 becomes question marks."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def job_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.job.json")


def check_resume(path: Path, written: Path, job: dict[str, Any], *, overwrite: bool, resume: bool) -> bool:
    """Whether what is there is gone on with; refuses what is there and may neither be gone on with nor replaced."""
    there = [each for each in dict.fromkeys((path, written)) if each.exists()]
    if odd := [each for each in there if not each.is_file()]:
        raise OutputError(f"{odd[0]} is no file that can be written. Choose another --out.")
    if there and not (overwrite or resume):
        raise OutputError(f"{there[0]} exists. Give --resume to go on with it, --overwrite, or another --out.")
    if there and resume:
        _refuse_other_job(path, job_file(path), job)
    return bool(there) and resume


@contextmanager
def open_output(path: Path) -> Iterator[IO[bytes]]:
    """The file, to read what is in it and to append, for this job alone."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as file:
            _lock_file(file, path)
            yield file
    except (DataError, OutputError):
        raise
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}. Make room, or choose another --out.") from None


def _refuse_other_job(path: Path, beside: Path, job: dict[str, Any]) -> None:
    if not beside.exists():
        raise OutputError(f"{beside}, which tells what {path} is of, is not there. Give --overwrite, or another --out.")
    begun = read_json(beside)
    if not isinstance(begun, dict) or (differ := [name for name in job if begun.get(name, ...) != job[name]]):
        words = ", ".join(differ) if isinstance(begun, dict) else "job"
        raise OutputError(f"{path} was begun with another {words}. Give the same, --overwrite, or another --out.")


def _lock_file(file: IO[bytes], path: Path) -> None:
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise OutputError(f"{path} is being written by another job. Wait for it, or choose another --out.") from None
    except (ImportError, OSError):
        pass  # a system or disk without locks


def continue_file(
    path: Path, file: IO[bytes], rows: RowFormat, images: Iterator[Any], size: int
) -> tuple[PredictionStats, Iterator[Any]]:
    """Cuts the file to whole parts of so many rows, all of it where it is complete; how many images those are, and the
    rest."""
    file.seek(0)
    kept = len(rows.header)
    if file.read(kept) != rows.header:
        _check_own_file(path, file, rows)
        file.truncate(0)
        file.write(rows.header)
        return PredictionStats(), images
    end, done, waiting = kept, 0, []
    for record in _read_records(file, quoted=rows.csv):
        image = next(images, None)
        if image is None or _path_of_record(record, rows) != _printable_path(str(image)):
            words = f"row {done + 1} of {path} is not of image {image}" if image else f"{path} has rows of more images"
            raise OutputError(f"{words}: it was begun with other images. Give the same, or --overwrite.")
        end, done = end + len(record), done + 1
        waiting.append(image)
        if done % size == 0:
            kept, waiting = end, []
    following = next(images, None)
    if following is None:
        kept, waiting = end, []
    else:
        waiting.append(following)
    file.truncate(kept)
    return PredictionStats(before=done - max(0, len(waiting) - 1)), chain(waiting, images)


def _check_own_file(path: Path, file: IO[bytes], rows: RowFormat) -> None:
    """A file that holds no more than a part of the header may be begun anew; another was not written by this job."""
    file.seek(0)
    if not rows.header.startswith(file.read(len(rows.header) + 1)):
        raise OutputError(f"{path} does not begin as this job's file would. Give --overwrite, or another --out.")


def _path_of_record(record: bytes, rows: RowFormat) -> str | None:
    try:
        return rows.path_in(record)
    except (ValueError, LookupError, TypeError, StopIteration, csv.Error):
        return None


def _read_records(file: IO[bytes], *, quoted: bool) -> Iterator[bytes]:
    """Whole rows; in CSV one may go over several lines, between quotes. What follows the last whole one is left out."""
    record = b""
    for line in file:
        record += line
        if line.endswith(b"\n") and not (quoted and record.count(b'"') % 2):
            yield record
            record = b""


def convert_to_parquet(written: Path, path: Path, header: bytes) -> None:
    """Turns the rows into a file of groups of rows, one after the other, and removes them when it has its name."""
    import pyarrow as pa
    from pyarrow import csv as arrow
    from pyarrow import parquet

    columns = next(csv.reader(io.StringIO(header.decode(), newline="")))
    kinds = {name: pa.string() if _is_text_column(name) else pa.float64() for name in columns}
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as file:
            with parquet.ParquetWriter(file, pa.schema(list(kinds.items())), compression="zstd") as writer:
                for batch in _row_groups(arrow, written, kinds, len(header)):
                    writer.write_batch(batch)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    written.unlink()


def _is_text_column(column: str) -> bool:
    return column in ("path", "predicted", "error") or column.startswith("class_")


def _row_groups(arrow: Any, written: Path, kinds: dict[str, Any], header: int) -> Iterator[Any]:
    if written.stat().st_size == header:
        return
    yield from arrow.open_csv(
        written,
        read_options=arrow.ReadOptions(block_size=ROW_GROUP_BYTES),
        parse_options=arrow.ParseOptions(newlines_in_values=True),
        convert_options=arrow.ConvertOptions(
            column_types=kinds, null_values=[""], strings_can_be_null=True, quoted_strings_can_be_null=False
        ),
    )


def finished_rows(path: Path, images: Iterator[Any]) -> PredictionStats:
    """How many rows a finished file of Parquet has, if they are of these images and of no fewer."""
    from pyarrow import ArrowException, parquet

    done = 0
    try:
        for batch in parquet.ParquetFile(path).iter_batches(columns=["path"]):
            for each in batch.column(0).to_pylist():
                image = next(images, None)
                if image is None or _printable_path(str(image)) != each:
                    raise OutputError(f"Row {done + 1} of {path} is of another image. Give the same, or --overwrite.")
                done += 1
    except (ArrowException, KeyError, OSError) as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(f"{path} is no whole Parquet file: {first_line(error)}. Give --overwrite.") from None
    if next(images, None) is not None:
        raise OutputError(f"{path} is finished, with {done:,} rows, and there are more images now. Give --overwrite.")
    return PredictionStats(before=done)
