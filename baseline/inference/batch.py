"""Predict many images and write a row for each, in the images' order, to a file that can be resumed.

A job that is killed can leave an incomplete last row, which is cut off when the job is resumed. The file
`predictions.csv.job.json` beside `predictions.csv` holds the model and the options of its rows. The rows of
`predictions.parquet` are kept in `predictions.parquet.rows.csv` until all are there. `predictions.csv.shards` holds
what remote workers have predicted ahead of their turn.
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

from baseline.errors import OutputError, RecipeError, format_count
from baseline.files import read_json, to_json, write_atomic
from baseline.inference.output import (
    PredictionStats,
    PredictOptions,
    RowFormat,
    check_finished_parquet,
    check_resume,
    convert_to_parquet,
    job_file,
    open_output,
    path_of_record,
    printable_path,
    read_records,
    remove_open,
    resume_output,
)
from baseline.inference.shards import predict_in_shards, remove_shards
from baseline.inference.workers import encode_for_worker, load_checked, predict_in_workers
from baseline.parallel.executor import get_executor
from baseline.progress import Progress
from baseline.system import thread_count

if TYPE_CHECKING:
    from baseline.inference.model import Ensemble, Model, PredictionBatch

__all__ = ["write_predictions"]

BATCHES_PER_SHARD = 16
"""Number of batches that a remote worker gets at once, and that are lost if it is killed."""


def write_predictions(
    model: Model | Ensemble,
    images: Iterable[Any],
    out: str | Path | IO[bytes],
    options: PredictOptions | None = None,
    *,
    total: int = 0,
    processes: int = 1,
    overwrite: bool = False,
    resume: bool = False,
    executor: str = "",
    progress: Progress | None = None,
) -> PredictionStats:
    """Write one row per image: `path`, `predicted`, `confidence`, `error`, and what `options` asks for: `unlike`,
    `set`, `class_1`, `probability_1` and so on, and `p_CLASS` for each class.

    Probabilities have six decimals. An image that cannot be read has a row with the reason. A Parquet file, in which
    empty values are null, appears under its name when all rows are there. With `resume` a job that was killed continues
    where it stopped, in whole batches, so that its file ends up identical to that of an undisturbed job. Memory use
    does not depend on the number of images.

    Args:
        images: paths or archive members, consumed lazily.
        out: a file, or a binary stream.
        total: number of images, for the progress bar; 0 if unknown.
        processes: number of processes that predict, each on its own GPU or with its share of the CPU. As with all
            multiprocessing, a script that uses several needs `if __name__ == "__main__":`.
        executor: `"ray"` or the address of a cluster (see `run_seeds`): remote workers predict, `processes` at once, or
            one for each CPU or GPU if that is 1. They write shards into a folder beside the file, each complete when it
            appears; if a worker is killed, only its shard is lost and predicted again. The file is identical to that of
            one process with as many threads.

    Raises:
        OutputError: if the file exists and neither `overwrite` nor `resume` is set, it cannot be written, another job
            is writing it, or its rows come from another model, other options or other images.
        RecipeError: for bfloat16 on a CPU without instructions for it, or if `executor` is not a known executor.

    >>> write_predictions(load("runs/mine"), ["a.jpg", "b.jpg"], "out.csv", PredictOptions(top_k=3))  # doctest: +SKIP
    """
    progress = progress or Progress()
    workers = get_executor(executor, progress)
    options = resolve_options(model, options or PredictOptions(), progress)
    rows = RowFormat(model.classes, options)
    chunks: Iterable[tuple[bytes, PredictionStats]]
    if not isinstance(out, str | Path):
        if options.format == "parquet":
            raise OutputError("Parquet needs a file. Pass --out FILE.parquet.")
        if workers.remote:
            raise OutputError("Predicting with --executor needs a file. Pass --out FILE.")
        out.write(rows.header)
        chunks = map(rows.format_batch, predict_stream(model, images, options, processes))
        return write_rows(chunks, out, PredictionStats(), total, progress)
    path = Path(out).expanduser()
    row_file = path.with_name(f"{path.name}.rows.csv") if options.format == "parquet" else path
    job = {"model": model.identity, **asdict(options)}
    resuming = check_resume(path, row_file, job, overwrite=overwrite, resume=resume)
    threads = 0 if workers.remote else max(1, thread_count() // processes)
    note_other_threads(path, threads if resuming else 0, progress)
    if resuming and not row_file.exists():
        return check_finished_parquet(path, iter(images))
    shards = path.with_name(f"{path.name}.shards")
    chunk_size = options.batch_size * (BATCHES_PER_SHARD if workers.remote else 1)
    with open_output(row_file) as file, workers:
        if not resuming:
            file.truncate(0)
            if path != row_file:
                path.unlink(missing_ok=True)
            write_atomic(job_file(path), to_json({**job, "threads": threads}))
            remove_shards(shards)
        stats, remaining = resume_output(row_file, file, rows, iter(images), chunk_size)
        chunks = map(rows.format_batch, predict_stream(model, remaining, options, processes))
        if workers.remote:
            encoded = ((str(image), encode_for_worker(image)) for image in remaining)
            predict = partial(predict_shard, tuple(model.folders), model.identity, options)
            check_existing = partial(check_shard, rows)
            max_workers = processes if processes > 1 else 0
            chunks = predict_in_shards(
                encoded, chunk_size, predict, check_existing, shards, workers, stats.already_done, max_workers
            )
        write_rows(chunks, file, stats, total, progress)
        remove_shards(shards)
        if row_file != path:
            file.flush()
            convert_to_parquet(row_file, path, rows.header)
            remove_open(row_file, file)
    return stats


def note_other_threads(path: Path, threads: int, progress: Progress) -> None:
    """Log that a file was started with another number of threads, on which the last digits depend on a CPU.

    Args:
        threads: that of this job; 0 if there is nothing to compare.
    """
    started = read_json(job_file(path)).get("threads") if threads else None
    if isinstance(started, int) and started not in (0, threads):
        progress.log(
            f"{path} was started with {format_count(started, 'thread')} and continues with {threads}: "
            "the last digits can differ from those of an uninterrupted job"
        )


def resolve_options(model: Model | Ensemble, options: PredictOptions, progress: Progress) -> PredictOptions:
    """Return the options with the number format that the forward passes will have, and the threshold of sets.

    Raises:
        RecipeError: if the model cannot tell what is unlike, or predict sets, as the options ask.
    """
    if options.unlike or options.reject_unlike:
        reference = model.reference
        if options.reject_unlike:
            reference.check_rate(options.reject_unlike)
    if options.coverage:
        options = replace(options, set_threshold=resolve_sets(model, options.coverage, options.tta, progress))
    precision, reason = model.resolve_precision(options.precision)
    if options.precision == "auto":
        progress.log(f"precision: {precision} ({reason})")
    return replace(options, precision=precision)


def resolve_sets(model: Model | Ensemble, coverage: float, tta: bool, progress: Progress) -> float:
    """Return the threshold of sets of classes with a coverage, and log how far the coverage may be off.

    Raises:
        RecipeError: if the model has too few valid images, several labels, or was measured with other views.
    """
    from baseline.inference.reference import describe_coverage

    reference = model.reference
    threshold = reference.set_threshold(coverage)
    if not tta and model.members[0].config["tta"]:
        raise RecipeError(
            "Sets of classes were measured with test-time augmentation. Predict with TTA, or without sets."
        )
    if note := describe_coverage(reference, coverage):
        progress.log(note)
    return threshold


def predict_stream(
    model: Model | Ensemble, images: Iterable[Any], options: PredictOptions, processes: int
) -> Iterator[PredictionBatch]:
    """Yield predictions in batches, made in this process or in several."""
    if processes < 2:
        return model.predict_batches(images, **predict_kwargs(options))
    return predict_in_workers(model.folders, model.identity, images, processes, **predict_kwargs(options))


def predict_kwargs(options: PredictOptions) -> dict[str, Any]:
    """Return the keyword arguments for `Model.predict_batches`."""
    unlike = options.unlike or options.reject_unlike > 0
    return {"tta": options.tta, "batch_size": options.batch_size, "precision": options.precision, "unlike": unlike}


_load_cached = lru_cache(maxsize=1)(load_checked)


def predict_shard(
    folders: tuple[Path, ...], identity: str, options: PredictOptions, shard: list[Any]
) -> tuple[bytes, PredictionStats]:
    """Return the rows of a shard of names and images, and their counts; a worker runs it and loads the model once."""
    model, names, stats = _load_cached(folders, identity), (name for name, _ in shard), PredictionStats()
    rows, content = RowFormat(model.classes, options), []
    for batch in model.predict_batches([image for _, image in shard], **predict_kwargs(options)):
        chunk, chunk_stats = rows.format_batch(replace(batch, images=list(islice(names, len(batch.images)))))
        content.append(chunk)
        stats.add(chunk_stats)
    return b"".join(content), stats


def check_shard(rows: RowFormat, content: bytes, shard: list[Any]) -> PredictionStats | None:
    """Return the counts of an existing shard, or None if its rows are not for these names."""
    records = read_records(io.BytesIO(content), quoted=rows.csv)
    same = [path_of_record(record, rows) for record in records] == [printable_path(name) for name, _ in shard]
    return PredictionStats(already_done=len(shard)) if same else None


def write_rows(
    chunks: Iterable[tuple[bytes, PredictionStats]],
    file: IO[bytes],
    stats: PredictionStats,
    total: int,
    progress: Progress,
) -> PredictionStats:
    """Write rows as they are made, and add up their counts."""
    start = time.perf_counter()
    with progress.bar("predicting", total, "images") as bar:
        bar.step(stats.already_done)
        for content, chunk_stats in chunks:
            file.write(content)
            file.flush()
            stats.add(chunk_stats)
            stats.seconds = time.perf_counter() - start
            bar.step(chunk_stats.images + chunk_stats.already_done, f"{stats.images / stats.seconds:,.0f} images/s")
    return stats
