"""Model folders + photos -> blocks of predictions, in order, by several processes. Knows processes; knows no files.

Each process has the model of the folder on a GPU of its own, or on its share of the CPU, and block `i` goes to process
`i` modulo their number, so that the same photos meet the same blocks as in one process.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain, cycle, islice, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from baseline.data.image import why_unreadable
from baseline.errors import BaselineError, OutputError

if TYPE_CHECKING:
    from baseline.inference.model import Block, Ensemble, Model

__all__ = ["loaded", "sent", "spread_blocks"]


AHEAD = 4
"""Blocks that a process is given ahead; it reads up to three before it gives back the first."""


PATIENCE = 1.0
"""Seconds between looks whether the other side still lives."""


def spread_blocks(
    folders: Sequence[Path], identity: str, photos: Iterable[Any], processes: int, *, batch_size: int, **options: Any
) -> Iterator[Block]:
    """What `Model.blocks` of the folders' models gives for the photos, in their order, made by so many processes.

    Args:
        identity: that of the model which the folders have to hold; see `Model.identity`.
        photos: taken from the iterable as they are needed, at most four blocks a process ahead.
        options: for `Model.blocks`.

    Raises:
        OutputError: if a folder holds another model by now, or a process was killed.

    >>> list(spread_blocks(model.folders, model.identity, paths, 2, batch_size=64))     # doctest: +SKIP
    """
    rest = iter(photos)
    blocks = iter(lambda: list(islice(rest, batch_size)), [])
    options["batch_size"] = batch_size
    with _workers(folders, identity, processes, options) as workers:
        waiting: deque[list[Any]] = deque()
        ended: list[Any] = []
        next_fed, next_done = cycle(workers), cycle(workers)
        for block in chain(blocks, repeat(None, AHEAD * processes)):
            if block is not None:
                next(next_fed).tasks.put([sent(each) for each in block])
                waiting.append(block)
            elif not ended:
                ended = [worker.tasks.put(None) for worker in workers]
            if len(waiting) == AHEAD * processes or (ended and waiting):
                yield replace(next(next_done).result(), photos=waiting.popleft())


@dataclass(frozen=True)
class _Worker:
    process: Any
    tasks: Any
    results: Any

    def result(self) -> Block:
        while True:
            try:
                found = self.results.get(timeout=PATIENCE)
            except queue.Empty:
                if not self.process.is_alive():
                    raise OutputError(
                        f"A process that predicts ended by itself, exit code {self.process.exitcode}; -9 is often too "
                        "little memory. Give fewer --processes; --resume goes on."
                    ) from None
                continue
            if isinstance(found, BaseException):
                raise found
            return found


@dataclass(frozen=True)
class _Sent:
    """A photo out of an archive on its way to another process, or why it cannot be read."""

    content: bytes
    error: str = ""

    def __call__(self) -> bytes:
        if self.error:
            raise OSError(self.error)
        return self.content


def sent(photo: Any) -> Any:
    """The photo as another process can take it: one out of an archive is read."""
    if not callable(photo):
        return photo
    try:
        return _Sent(photo())
    except Exception as error:
        return _Sent(b"", why_unreadable(error))


@contextmanager
def _workers(
    folders: Sequence[Path], identity: str, processes: int, options: dict[str, Any]
) -> Iterator[list[_Worker]]:
    """Processes that wait for blocks; what is not done in the end is dropped with them."""
    context = multiprocessing.get_context("spawn")
    made: list[_Worker] = []
    try:
        for number in range(processes):
            tasks, results = context.Queue(), context.Queue()
            share = _Share([*folders], identity, number, processes, options, tasks, results, [*warnings.filters])
            process = context.Process(target=_work, args=(share,), daemon=True)
            process.start()
            made.append(_Worker(process, tasks, results))
        yield made
    finally:
        for worker in made:
            worker.process.terminate()
            worker.tasks.cancel_join_thread()
        for worker in made:
            worker.process.join()


class _Share(NamedTuple):
    """What a process has to know."""

    folders: list[Path]
    identity: str
    number: int
    processes: int
    options: dict[str, Any]
    tasks: Any
    results: Any
    filters: list[Any]
    """What the first process does not want to be warned of."""


def _work(share: _Share) -> None:
    """What a process does until it is told that there is no more, or nobody is there to tell it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all; the first process ends the others
    warnings.filters[:] = share.filters  # type: ignore[index]
    try:
        _take_share(share)
        for block in loaded(share.folders, share.identity).blocks(_given(share.tasks), **share.options):
            share.results.put(replace(block, photos=[]))
    except BaselineError as error:
        share.results.put(error)


def _take_share(share: _Share) -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.set_device(share.number % torch.cuda.device_count())
    else:
        torch.set_num_threads(max(1, torch.get_num_threads() // share.processes))


def loaded(folders: Sequence[Path], identity: str) -> Model | Ensemble:
    """The model of the folders, in a process that was told its identity.

    Raises:
        OutputError: if it is another one by now.
    """
    from baseline.inference.model import load

    model = load(folders)
    if model.identity != identity:
        words = ", ".join(map(str, folders))
        raise OutputError(f"{words} was changed while its model predicted. Leave it as it is.")
    return model


def _given(tasks: Any) -> Iterator[Any]:
    parent = multiprocessing.parent_process()
    while True:
        try:
            block = tasks.get(timeout=PATIENCE)
        except queue.Empty:
            if parent is not None and not parent.is_alive():
                os._exit(1)
            continue
        if block is None:
            return
        yield from block
