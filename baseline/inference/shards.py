"""Let remote workers predict shards of images into files, and put their rows together in the images' order.

A shard file appears under its name when it is complete, so an existing one need not be made again. Its name is the
number of images before it, and it is removed once its rows have been taken over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from baseline.files import write_atomic
from baseline.parallel.executor import Job

if TYPE_CHECKING:
    from baseline.parallel.executor import Executor
    from baseline.progress import Progress

__all__ = ["predict_in_shards", "remove_shards"]


def predict_in_shards(
    images: Iterable[Any],
    shard_size: int,
    predict: Callable[[list[Any]], tuple[bytes, Any]],
    check_existing: Callable[[bytes, list[Any]], Any],
    folder: Path,
    workers: Executor,
    first: int = 0,
    max_workers: int = 0,
) -> Iterator[tuple[bytes, Any]]:
    """Yield the rows of the images, one shard at a time and in order, with their counts.

    Args:
        images: consumed lazily, a few shards ahead.
        shard_size: images in a shard.
        predict: returns the rows of a list of images and their counts; it is sent to the workers.
        check_existing: returns the counts of rows that were found in the folder, or None if they are not those of the
            images.
        folder: where shards wait until their rows are taken over; all workers must be able to reach it.
        first: number of images before these.
        max_workers: number of shards predicted at once; 0 for one for each processor.
    """
    remaining = iter(images)

    def jobs() -> Iterator[Job]:
        start = first
        for shard in iter(lambda: list(islice(remaining, shard_size)), []):
            path = folder / f"{start:012}"
            stats = check_existing(path.read_bytes(), shard) if path.exists() else None
            if stats is None:
                yield Job("", partial(write_shard, predict, shard, path, start))
            else:
                yield Job("", partial(reuse_shard, stats, len(shard), start), local=True)
            start += len(shard)

    completed: dict[int, tuple[int, Any]] = {}
    next_start = first
    for _, (start, length, stats) in workers.as_completed(jobs(), max_workers):
        completed[start] = length, stats
        while next_start in completed:
            path = folder / f"{next_start:012}"
            length, stats = completed.pop(next_start)
            yield path.read_bytes(), stats
            path.unlink()
            next_start += length


def remove_shards(folder: Path) -> None:
    """Remove the shards, and the folder unless it holds anything else."""
    for path in (*folder.glob("[0-9]*"), *folder.glob(".[0-9]*.part")):
        path.unlink()
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def write_shard(
    predict: Callable[[list[Any]], tuple[bytes, Any]], shard: list[Any], path: Path, start: int, progress: Progress
) -> Any:
    """Predict a shard and write its rows; the job of a worker."""
    rows, stats = predict(shard)
    write_atomic(path, rows)
    return start, len(shard), stats


def reuse_shard(stats: Any, length: int, start: int, progress: Progress) -> Any:
    """Return what `write_shard` would return, for a shard that exists already."""
    return start, length, stats
