"""Images by the thousand -> their rows, made by workers into files of their own, and put together in the images' order.

Knows images only as what is sent and counted. A shard gets its name when it is whole, so that one that is there needs
not be made again; it is named by how many images come before it, and removed when its rows have been taken over.
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

__all__ = ["remove_shards", "write_in_shards"]


def write_in_shards(
    images: Iterable[Any],
    size: int,
    made: Callable[[list[Any]], tuple[bytes, Any]],
    kept: Callable[[bytes, list[Any]], Any],
    folder: Path,
    workers: Executor,
    first: int = 0,
    count: int = 0,
) -> Iterator[tuple[bytes, Any]]:
    """Rows of the images, a shard at a time in their order, and what is told of it.

    Args:
        images: taken from the iterable as they are needed, a few shards ahead.
        size: images in a shard.
        made: gives the rows of images and what is to be told of them; is sent to workers.
        kept: what is to be told of rows that were found in the folder, or None where they are not those of the images.
        folder: for shards that are not taken over yet; all workers have to reach it.
        first: how many images come before these.
        count: so many workers; as many as there are processors if not given.
    """
    rest = iter(images)

    def jobs() -> Iterator[Job]:
        begin = first
        for part in iter(lambda: list(islice(rest, size)), []):
            path = folder / f"{begin:012}"
            told = kept(path.read_bytes(), part) if path.exists() else None
            if told is None:
                yield Job("", partial(_write_shard, made, part, path, begin))
            else:
                yield Job("", partial(_report_shard, told, len(part), begin), local=True)
            begin += len(part)

    ended: dict[int, tuple[int, Any]] = {}
    following = first
    for _, (begin, length, told) in workers.as_completed(jobs(), count):
        ended[begin] = length, told
        while following in ended:
            path = folder / f"{following:012}"
            length, told = ended.pop(following)
            yield path.read_bytes(), told
            path.unlink()
            following += length


def remove_shards(folder: Path) -> None:
    """Removes the shards, and the folder unless there is something else in it."""
    for path in (*folder.glob("[0-9]*"), *folder.glob(".[0-9]*.part")):
        path.unlink()
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _write_shard(
    made: Callable[[list[Any]], tuple[bytes, Any]], part: list[Any], path: Path, begin: int, progress: Progress
) -> Any:
    rows, told = made(part)
    write_atomic(path, rows)
    return begin, len(part), told


def _report_shard(told: Any, length: int, begin: int, progress: Progress) -> Any:
    return begin, length, told
