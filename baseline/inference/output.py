"""Prediction files: their rows as CSV, JSON lines or Parquet, and resuming a file that an interrupted job left."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from baseline.data.labels import SEPARATOR
from baseline.errors import DataError, OutputError, first_line, import_failure, missing_package
from baseline.files import csv_rows, parse_json, read_json, replace_file
from baseline.inference import DEFAULT_TTA

if TYPE_CHECKING:
    from baseline.inference.model import PredictionBatch

__all__ = [
    "FORMATS",
    "PredictOptions",
    "PredictionStats",
    "RowFormat",
    "check_finished_parquet",
    "check_resume",
    "convert_to_parquet",
    "job_file",
    "open_output",
    "path_of_record",
    "printable_path",
    "read_records",
    "remove_open",
    "resume_output",
]


FORMATS = ("csv", "jsonl", "parquet")
"""File formats for predictions."""


ROW_GROUP_BYTES = 2**23
"""Bytes of CSV that become one row group of a Parquet file and are in memory at once."""


UNSURE, UNLIKE = "unsure", "unlike"
"""Values of `predicted` if the confidence is below `min_confidence`, and if the image is rejected as unlike."""


@dataclass(frozen=True)
class PredictOptions:
    """What to predict for each image, and in which format to write it."""

    format: str = "csv"
    """`"csv"`; `"jsonl"`, one JSON object per line; or `"parquet"`, which needs a file."""
    tta: bool = DEFAULT_TTA
    """Average over the views of the run's evaluation (test-time augmentation)."""
    top_k: int = 0
    """Number of most probable classes to write with their probabilities."""
    every: bool = False
    """Write the probability of every class."""
    min_confidence: float = 0.0
    """Confidence below which `predicted` is "unsure"."""
    batch_size: int = 64
    """Number of images per forward pass."""
    precision: str = ""
    """`"float32"`, `"bfloat16"` or `"auto"`; empty for that of the run's evaluation. See `Model.resolve_precision`."""
    unlike: bool = False
    """Write how unlike the training images each image is, 0 to 1; see `Reference.unlike`."""
    reject_unlike: float = 0.0
    """Share of images like the valid ones to reject as unlike the training images; 0 for none. Implies `unlike`."""
    coverage: float = 0.0
    """Rate at which `set`, a set of classes, is to contain the true class; 0 for no sets."""
    set_threshold: float = 0.0
    """Filled in by `write_predictions`; see `Reference.set_threshold`."""

    def __post_init__(self) -> None:
        checks = {
            "format": self.format in FORMATS,
            "precision": self.precision in ("", "auto", "float32", "bfloat16"),
            "top_k": self.top_k >= 0,
            "min_confidence": 0 <= self.min_confidence <= 1,
            "reject_unlike": 0 <= self.reject_unlike < 1,
            "coverage": 0 <= self.coverage < 1,
            "batch_size": 1 <= self.batch_size <= 65536,
        }
        if invalid := [name for name, valid in checks.items() if not valid]:
            raise OutputError(f"{invalid[0]} is {getattr(self, invalid[0])!r}. See baseline predict --help.")
        if self.format == "parquet" and import_failure("pyarrow"):
            raise OutputError(f"{missing_package('Writing Parquet', 'pyarrow', 'parquet', 'pyarrow')}, or pass a .csv.")


@dataclass
class PredictionStats:
    """Counts of a prediction job."""

    images: int = 0
    """Images predicted by this job, including unreadable ones."""
    unreadable: int = 0
    unsure: int = 0
    unlike: int = 0
    """Images that were rejected as unlike the training images."""
    already_done: int = 0
    """Images that were done before the job was resumed."""
    seconds: float = 0.0

    def add(self, other: PredictionStats) -> None:
        """Add the counts of other images."""
        for name in ("images", "unreadable", "unsure", "unlike", "already_done"):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def __str__(self) -> str:
        images = "1 image" if self.images == 1 else f"{self.images:,} images"
        parts = [f"{images} in {self.seconds:.1f} s ({self.images / max(self.seconds, 1e-9):,.0f} images/s)"]
        parts += [f"{self.already_done:,} already done"] if self.already_done else []
        parts += [f"{self.unsure:,} unsure"] if self.unsure else []
        parts += [f"{self.unlike:,} unlike the training images"] if self.unlike else []
        parts += [f"{self.unreadable:,} could not be read"] if self.unreadable else []
        return ", ".join(parts)


class RowFormat:
    """Converts predictions to the bytes of rows, and reads the path back from a written row, as resuming needs it."""

    def __init__(self, classes: Sequence[str], options: PredictOptions) -> None:
        self.classes, self.options = classes, options
        self.top_k = min(options.top_k, len(classes))
        self.csv = options.format != "jsonl"

    @property
    def header(self) -> bytes:
        """The first line of the file; empty for JSON lines."""
        if not self.csv:
            return b""
        top = [name for k in range(1, self.top_k + 1) for name in (f"class_{k}", f"probability_{k}")]
        every = [f"p_{name}" for name in self.classes] if self.options.every else []
        header = ["path", "predicted", "confidence", "error", *self.extra_columns, *top, *every]
        return csv_rows([header]).encode()

    @property
    def has_unlike(self) -> bool:
        """Whether rows say how unlike the training images an image is."""
        return self.options.unlike or self.options.reject_unlike > 0

    @property
    def extra_columns(self) -> list[str]:
        """Names of the columns that only some jobs have."""
        return ["unlike"] * self.has_unlike + ["set"] * bool(self.options.coverage)

    def format_batch(self, batch: PredictionBatch) -> tuple[bytes, PredictionStats]:
        """Return the rows of a batch, and their counts."""
        sure = batch.confidence >= self.options.min_confidence
        unsure = int((batch.confidence < self.options.min_confidence).sum())
        stats = PredictionStats(len(batch.images), sum(map(bool, batch.errors)), unsure)
        predicted = [name if is_sure else UNSURE for name, is_sure in zip(batch.predicted, sure, strict=True)]
        if self.options.reject_unlike and batch.unlike is not None:
            rejected = batch.unlike > 1 - self.options.reject_unlike
            stats.unlike = int(rejected.sum())
            stats.unsure -= int((rejected & ~sure).sum())
            predicted = [UNLIKE if out else name for name, out in zip(predicted, rejected, strict=True)]
        extra = self._extra_values(batch)
        columns = (map(str, batch.images), predicted, batch.confidence, batch.errors, batch.probabilities, extra)
        rows = zip(*columns, strict=True)
        if self.csv:
            return csv_rows(self._csv_row(*row) for row in rows).encode(), stats
        return b"".join(self._json_line(*row) for row in rows), stats

    def _extra_values(self, batch: PredictionBatch) -> list[dict[str, Any]]:
        """Return the values of the extra columns of each image."""
        values: list[dict[str, Any]] = [{} for _ in batch.images]
        if batch.unlike is not None and self.has_unlike:
            values = [{"unlike": round(float(value), 6)} for value in batch.unlike]
        if self.options.coverage:
            from baseline.inference.reference import class_sets

            sets = class_sets(batch.probabilities, self.options.set_threshold, self.classes)
            values = [value | {"set": names} for value, names in zip(values, sets, strict=True)]
        return values

    def _top_classes(self, probabilities: np.ndarray) -> list[int]:
        return np.argsort(-probabilities, kind="stable")[: self.top_k].tolist() if self.top_k else []

    def _csv_row(
        self, path: str, predicted: str, confidence: float, error: str, probabilities: np.ndarray,
        extra: dict[str, Any],
    ) -> Any:  # fmt: skip
        if error:
            empty = len(self.extra_columns) + 2 * self.top_k + (len(self.classes) if self.options.every else 0)
            return [printable_path(path), "", "", error, *[""] * empty]
        indices = self._top_classes(probabilities)
        top = [value for k in indices for value in (self.classes[k], f"{probabilities[k]:.6f}")]
        every = [f"{probability:.6f}" for probability in probabilities] if self.options.every else []
        more = [SEPARATOR.join(value) if isinstance(value, list) else f"{value:.6f}" for value in extra.values()]
        return [printable_path(path), predicted, f"{confidence:.6f}", "", *more, *top, *every]

    def _json_line(
        self, path: str, predicted: str, confidence: float, error: str, probabilities: np.ndarray,
        extra: dict[str, Any],
    ) -> Any:  # fmt: skip
        row: dict[str, Any] = {
            "path": printable_path(path),
            "predicted": predicted,
            "confidence": round(float(confidence), 6),
            **extra,
        }
        if error:
            row = {"path": printable_path(path), "predicted": None, "confidence": None, "error": error}
        elif self.top_k:
            indices = self._top_classes(probabilities)
            row["top"] = [{"class": self.classes[k], "probability": round(float(probabilities[k]), 6)} for k in indices]
        if self.options.every and not error:
            row["probabilities"] = dict(zip(self.classes, np.round(probabilities, 6).tolist(), strict=True))
        return json.dumps(row, ensure_ascii=False).encode() + b"\n"

    def parse_path(self, record: bytes) -> str:
        """Return the path of a written row.

        Raises:
            ValueError, LookupError, TypeError, StopIteration, csv.Error: if it is not such a row.
        """
        if not self.csv:
            return str(parse_json(record)["path"])
        return next(csv.reader(io.StringIO(record.decode(), newline="")))[0]


def printable_path(path: str) -> str:
    """Return the path as it can be written: bytes that are not UTF-8 become question marks."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def job_file(path: Path) -> Path:
    """Return the file beside a prediction file that says which model and options its rows are from."""
    return path.with_name(f"{path.name}.job.json")


def check_resume(path: Path, row_file: Path, job: dict[str, Any], *, overwrite: bool, resume: bool) -> bool:
    """Return whether to continue an existing file. An empty one, as of a job that was killed at its start, is not.

    Args:
        row_file: the file that rows are written to: `path` itself, or for Parquet a CSV file beside it.

    Raises:
        OutputError: if a file exists and may neither be continued nor replaced.
    """
    existing = [file for file in dict.fromkeys((path, row_file)) if file.exists()]
    if irregular := [file for file in existing if not file.is_file()]:
        raise OutputError(f"{irregular[0]} is not a file that can be written. Choose another --out.")
    existing = [file for file in existing if file.stat().st_size]
    if existing and not (overwrite or resume):
        raise OutputError(
            f"{existing[0]} exists. Pass --resume to continue it, --overwrite to replace it, or another --out."
        )
    if existing and resume:
        check_same_job(path, job_file(path), job)
    return bool(existing) and resume


@contextmanager
def open_output(path: Path) -> Iterator[IO[bytes]]:
    """Open the file for reading and appending, locked for this job; a job that fails leaves no empty file."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as file:
            lock_output(file, path)
            try:
                yield file
            except BaseException:
                if path.is_file() and not path.stat().st_size:
                    remove_open(path, file)
                    job_file(path).unlink(missing_ok=True)
                raise
    except (DataError, OutputError):
        raise
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}. Make room, or choose another --out.") from None


def remove_open(path: Path, file: IO[bytes]) -> None:
    """Remove a file that is open here, and closed first if the system demands it, as Windows does."""
    try:
        path.unlink(missing_ok=True)
    except PermissionError:
        file.close()
        path.unlink(missing_ok=True)


def check_same_job(path: Path, job_path: Path, job: dict[str, Any]) -> None:
    """Raise an `OutputError` if the file was written with another model or other options."""
    if not job_path.exists():
        raise OutputError(f"{job_path} is missing, so {path} cannot be continued. Pass --overwrite, or another --out.")
    started = read_json(job_path)
    if not isinstance(started, dict) or (differing := [name for name in job if started.get(name, ...) != job[name]]):
        names = ", ".join(differing) if isinstance(started, dict) else "job"
        raise OutputError(f"{path} was started with a different {names}. Pass the same, --overwrite, or another --out.")


def lock_output(file: IO[bytes], path: Path) -> None:
    """Lock the file, where the system and the disk have locks.

    Raises:
        OutputError: if another job holds the lock.
    """
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise OutputError(f"{path} is being written by another job. Wait for it, or choose another --out.") from None
    except (ImportError, OSError):
        pass  # a system or disk without locks


def resume_output(
    path: Path, file: IO[bytes], rows: RowFormat, images: Iterator[Any], chunk_size: int
) -> tuple[PredictionStats, Iterator[Any]]:
    """Truncate a prediction file to whole chunks of rows and return the count of their images, and the other images.

    A file that has a row for every image is kept as it is.

    Args:
        chunk_size: rows in a chunk.

    Raises:
        OutputError: if the rows are not for these images, or another program wrote the file.
    """
    file.seek(0)
    kept_bytes = len(rows.header)
    if file.read(kept_bytes) != rows.header:
        check_own_file(path, file, rows)
        file.truncate(0)
        file.write(rows.header)
        return PredictionStats(), images
    end, count, pending = kept_bytes, 0, []
    for record in read_records(file, quoted=rows.csv):
        image = next(images, None)
        if image is None or path_of_record(record, rows) != printable_path(str(image)):
            problem = f"Row {count + 1} of {path} is not for image {image}" if image else f"{path} has too many rows"
            raise OutputError(f"{problem}: the job was started with other images. Pass the same, or --overwrite.")
        end, count = end + len(record), count + 1
        pending.append(image)
        if count % chunk_size == 0:
            kept_bytes, pending = end, []
    next_image = next(images, None)
    if next_image is None:
        kept_bytes, pending = end, []
    else:
        pending.append(next_image)
    file.truncate(kept_bytes)
    return PredictionStats(already_done=count - max(0, len(pending) - 1)), chain(pending, images)


def check_own_file(path: Path, file: IO[bytes], rows: RowFormat) -> None:
    """Raise an `OutputError` unless the file is a part of the header, which this job may have written."""
    file.seek(0)
    if not rows.header.startswith(file.read(len(rows.header) + 1)):
        raise OutputError(f"{path} was not written by this job. Pass --overwrite, or another --out.")


def path_of_record(record: bytes, rows: RowFormat) -> str | None:
    """Return the path of a written row, or None if it is not such a row."""
    try:
        return rows.parse_path(record)
    except (ValueError, LookupError, TypeError, StopIteration, csv.Error):
        return None


def read_records(file: IO[bytes], *, quoted: bool) -> Iterator[bytes]:
    """Yield the complete rows of a file; an incomplete last row is left out.

    Args:
        quoted: whether a row may span several lines between quotes, as in CSV.
    """
    record = b""
    for line in file:
        record += line
        if line.endswith(b"\n") and not (quoted and record.count(b'"') % 2):
            yield record
            record = b""


def convert_to_parquet(row_file: Path, path: Path, header: bytes) -> None:
    """Convert a CSV file of rows to Parquet, one row group at a time."""
    import pyarrow as pa
    from pyarrow import csv as arrow
    from pyarrow import parquet

    columns = next(csv.reader(io.StringIO(header.decode(), newline="")))
    types = {name: pa.string() if _is_text_column(name) else pa.float64() for name in columns}
    part = path.with_name(f".{path.name}.part")
    try:
        part.unlink(missing_ok=True)  # left behind by a process that was killed, or a link to another file
        with part.open("xb") as file:
            with parquet.ParquetWriter(file, pa.schema(list(types.items())), compression="zstd") as writer:
                for group in iterate_row_groups(arrow, row_file, types, len(header)):
                    writer.write_batch(group)
            file.flush()
            os.fsync(file.fileno())
        replace_file(part, path)
    finally:
        part.unlink(missing_ok=True)


def _is_text_column(column: str) -> bool:
    return column in ("path", "predicted", "error", "set") or column.startswith("class_")


def iterate_row_groups(arrow: Any, row_file: Path, types: dict[str, Any], header_bytes: int) -> Iterator[Any]:
    """Yield the rows of a CSV file as Arrow record batches of about `ROW_GROUP_BYTES`."""
    if row_file.stat().st_size == header_bytes:
        return
    yield from arrow.open_csv(
        row_file,
        read_options=arrow.ReadOptions(block_size=ROW_GROUP_BYTES),
        parse_options=arrow.ParseOptions(newlines_in_values=True),
        convert_options=arrow.ConvertOptions(column_types=types, null_values=[""], strings_can_be_null=True),
    )


def check_finished_parquet(path: Path, images: Iterator[Any]) -> PredictionStats:
    """Return the number of rows of a finished Parquet file, if they are for these images and no fewer.

    Raises:
        OutputError: if the rows are for other images, there are more images, or the file is damaged.
    """
    from pyarrow import ArrowException, parquet

    count = 0
    try:
        for group in parquet.ParquetFile(path).iter_batches(columns=["path"]):
            for written_path in group.column(0).to_pylist():
                image = next(images, None)
                if image is None or printable_path(str(image)) != written_path:
                    raise OutputError(
                        f"Row {count + 1} of {path} is for another image. Pass the same images, or --overwrite."
                    )
                count += 1
    except (ArrowException, KeyError, OSError) as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(f"{path} is not a complete Parquet file: {first_line(error)}. Pass --overwrite.") from None
    if next(images, None) is not None:
        rows = "1 row" if count == 1 else f"{count:,} rows"
        raise OutputError(f"{path} is complete with {rows}, and there are more images now. Pass --overwrite.")
    return PredictionStats(already_done=count)
