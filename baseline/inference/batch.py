"""Model + images by the thousand -> rows in a file, as they are made. Knows that file; knows no networks.

Rows stand in the order of the images, and each is written whole or, by a job that was killed, cut off when it goes on.
Beside `predictions.csv` lies `predictions.csv.job.json`: which model and which options the rows are of. The rows of
`predictions.parquet` are kept in `predictions.parquet.rows.csv` until all are there. In `predictions.csv.shards` lies
what workers have made before its turn.
"""

from __future__ import annotations

import io
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from baseline.errors import OutputError
from baseline.files import to_json, write_atomic
from baseline.inference.output import (
    PredictionStats,
    PredictOptions,
    RowFormat,
    _path_of_record,
    _printable_path,
    _read_records,
    check_resume,
    continue_file,
    convert_to_parquet,
    finished_rows,
    job_file,
    open_output,
)
from baseline.inference.shards import remove_shards, write_in_shards
from baseline.inference.workers import encode_for_worker, load_checked, predict_in_workers
from baseline.parallel.executor import get_executor
from baseline.progress import Progress

if TYPE_CHECKING:
    from baseline.inference.model import Ensemble, Model, PredictionBatch

__all__ = ["write_predictions"]

BATCHES_PER_SHARD = 16
"""That a worker is given at once, and that are lost with it."""


def write_predictions(
    model: Model | Ensemble,
    images: Iterable[Any],
    out: str | Path | IO[bytes],
    wanted: PredictOptions | None = None,
    *,
    total: int = 0,
    processes: int = 1,
    overwrite: bool = False,
    resume: bool = False,
    executor: str = "",
    progress: Progress | None = None,
) -> PredictionStats:
    """Writes a row an image: `path, predicted, confidence, error`, and as wanted `class_1, probability_1` and so on, and
    `p_CLASS` for each class; shares have six decimals. An image that cannot be read has a row that says why. In Parquet,
    which gets its name when all rows are there, what is empty is null.

    A job that was killed goes on with `resume` where it stopped, in whole batches, so that its file is in the end that
    of a job that was left alone. Memory stays the same however many images there are.

    Args:
        images: their paths or members of archives, taken from the iterable as they are needed.
        out: a file, or a binary stream.
        processes: so many, each with a GPU or its share of the CPU, predict with the model of the model's folder. As
            ever with several processes, a script that asks for them begins with `if __name__ == "__main__":`.
        total: how many images there are, for the bar; 0 where that is not known.
        executor: `"ray"` or a cluster (see `run_seeds`): workers predict, `processes` at once, or one for each CPU or GPU if
            that is 1. They make shards in a folder beside the file, each of which gets its name when it is whole; a
            killed worker costs its shard, which is made again. The file is that of one process with as many threads.

    Raises:
        OutputError: if the file exists and neither `overwrite` nor `resume` is given, cannot be written, is being
            written by another job, or holds rows of another model, other options or other images.
        RecipeError: for bfloat16 on a CPU that has nothing for it, or if `executor` is nothing that predicts.

    >>> write_predictions(load("runs/mine"), ["a.jpg", "b.jpg"], "out.csv", PredictOptions(top_k=3))  # doctest: +SKIP
    """
    wanted = wanted or PredictOptions()
    progress = progress or Progress()
    path = Path(out).expanduser() if isinstance(out, str | Path) else None
    workers = get_executor(executor, progress)
    wanted = _with_resolved_precision(model, wanted, progress)
    rows = RowFormat(model.classes, wanted)
    if not isinstance(out, str | Path):
        if wanted.format == "parquet":
            raise OutputError("Parquet goes into a file. Give --out FILE.parquet.")
        if workers.remote:
            raise OutputError("What --on predicts goes into a file. Give --out FILE.")
        out.write(rows.header)
        return _write_rows(
            map(rows.of, _prediction_batches(model, images, wanted, processes)), out, PredictionStats(), total, progress
        )
    assert path is not None
    written = path.with_name(f"{path.name}.rows.csv") if wanted.format == "parquet" else path
    job = {"model": model.identity, **asdict(wanted)}
    goes_on = check_resume(path, written, job, overwrite=overwrite, resume=resume)
    if goes_on and not written.exists():
        return finished_rows(path, iter(images))
    shards, size = (
        path.with_name(f"{path.name}.shards"),
        wanted.batch_size * (BATCHES_PER_SHARD if workers.remote else 1),
    )
    with open_output(written) as file, workers:
        if not goes_on:
            file.truncate(0)
            if path != written:
                path.unlink(missing_ok=True)
            write_atomic(job_file(path), to_json(job))
            remove_shards(shards)
        counts, rest = continue_file(written, file, rows, iter(images), size)
        pieces: Iterable[tuple[bytes, PredictionStats]] = map(
            rows.of, _prediction_batches(model, rest, wanted, processes)
        )
        if workers.remote:
            made = partial(_predict_shard, tuple(model.folders), model.identity, wanted)
            named = ((str(image), encode_for_worker(image)) for image in rest)
            count = processes if processes > 1 else 0
            pieces = write_in_shards(
                named, size, made, partial(_finished_shard, rows), shards, workers, counts.before, count
            )
        _write_rows(pieces, file, counts, total, progress)
        if written != path:
            file.flush()
            convert_to_parquet(written, path, rows.header)
        remove_shards(shards)
    return counts


def _with_resolved_precision(model: Model | Ensemble, wanted: PredictOptions, progress: Progress) -> PredictOptions:
    """With the number format that the passes will have."""
    name, why = model.resolve_precision(wanted.precision)
    if wanted.precision == "auto":
        progress.log(f"precision: {name} ({why})")
    return replace(wanted, precision=name)


def _prediction_batches(
    model: Model | Ensemble, images: Iterable[Any], wanted: PredictOptions, processes: int
) -> Iterator[PredictionBatch]:
    if processes < 2:
        return model.predict_batches(images, **_predict_kwargs(wanted))
    return predict_in_workers(model.folders, model.identity, images, processes, **_predict_kwargs(wanted))


def _predict_kwargs(wanted: PredictOptions) -> dict[str, Any]:
    return {"tta": wanted.tta, "batch_size": wanted.batch_size, "precision": wanted.precision}


_loaded = lru_cache(maxsize=1)(load_checked)


def _predict_shard(
    folders: tuple[Path, ...], identity: str, wanted: PredictOptions, part: list[Any]
) -> tuple[bytes, PredictionStats]:
    """In a worker, which loads the model once: the rows of names and images, and what is in them."""
    model, names, counts = _loaded(folders, identity), (name for name, _ in part), PredictionStats()
    rows, content = RowFormat(model.classes, wanted), []
    for block in model.predict_batches([image for _, image in part], **_predict_kwargs(wanted)):
        some, more = rows.of(replace(block, images=list(islice(names, len(block.images)))))
        content.append(some)
        counts.add(more)
    return b"".join(content), counts


def _finished_shard(rows: RowFormat, content: bytes, part: list[Any]) -> PredictionStats | None:
    """What a shard that lies there counts, if its rows are of these names."""
    records = _read_records(io.BytesIO(content), quoted=rows.csv)
    same = [_path_of_record(record, rows) for record in records] == [_printable_path(name) for name, _ in part]
    return PredictionStats(before=len(part)) if same else None


def _write_rows(
    pieces: Iterable[tuple[bytes, PredictionStats]],
    file: IO[bytes],
    counts: PredictionStats,
    total: int,
    progress: Progress,
) -> PredictionStats:
    """Writes rows as they are made, and counts them."""
    began = time.perf_counter()
    with progress.bar("predicting", total, "images") as bar:
        bar.step(counts.before)
        for content, more in pieces:
            file.write(content)
            file.flush()
            counts.add(more)
            counts.seconds = time.perf_counter() - began
            bar.step(more.images + more.before, f"{counts.images / counts.seconds:,.0f} images/s")
    return counts
