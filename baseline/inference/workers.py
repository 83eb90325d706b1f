"""Model folders + images -> blocks of predictions, in order, by several processes. Knows processes; knows no files.

Each process has the model of the folder on a GPU of its own, or on its share of the CPU, and block `i` goes to process
`i` modulo their number, so that the same images meet the same blocks as in one process.
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

from baseline.data.image import unreadable_reason
from baseline.errors import BaselineError, OutputError

if TYPE_CHECKING:
    from baseline.inference.model import Ensemble, Model, PredictionBatch

__all__ = ["encode_for_worker", "load_checked", "predict_in_workers"]


BATCHES_AHEAD = 4
"""Blocks that a process is given ahead; it reads up to three before it gives back the first."""


TIMEOUT_SECONDS = 1.0
"""Seconds between looks whether the other side still lives."""


def predict_in_workers(
    folders: Sequence[Path], identity: str, images: Iterable[Any], processes: int, *, batch_size: int, **options: Any
) -> Iterator[PredictionBatch]:
    """What `Model.predict_batches` of the folders' models gives for the images, in their order, made by so many processes.

    Args:
        identity: that of the model which the folders have to hold; see `Model.identity`.
        images: taken from the iterable as they are needed, at most four blocks a process ahead.
        options: for `Model.predict_batches`.

    Raises:
        OutputError: if a folder holds another model by now, or a process was killed.

    >>> list(predict_in_workers(model.folders, model.identity, paths, 2, batch_size=64))     # doctest: +SKIP
    """
    rest = iter(images)
    blocks = iter(lambda: list(islice(rest, batch_size)), [])
    options["batch_size"] = batch_size
    with _start_workers(folders, identity, processes, options) as workers:
        waiting: deque[list[Any]] = deque()
        ended: list[Any] = []
        next_fed, next_done = cycle(workers), cycle(workers)
        for block in chain(blocks, repeat(None, BATCHES_AHEAD * processes)):
            if block is not None:
                next(next_fed).tasks.put([encode_for_worker(each) for each in block])
                waiting.append(block)
            elif not ended:
                ended = [worker.tasks.put(None) for worker in workers]
            if len(waiting) == BATCHES_AHEAD * processes or (ended and waiting):
                yield replace(next(next_done).result(), images=waiting.popleft())


@dataclass(frozen=True)
class _Worker:
    process: Any
    tasks: Any
    results: Any

    def result(self) -> PredictionBatch:
        while True:
            try:
                found = self.results.get(timeout=TIMEOUT_SECONDS)
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
class _EncodedImage:
    """An image out of an archive on its way to another process, or why it cannot be read."""

    content: bytes
    error: str = ""

    def __call__(self) -> bytes:
        if self.error:
            raise OSError(self.error)
        return self.content


def encode_for_worker(image: Any) -> Any:
    """The image as another process can take it: one out of an archive is read."""
    if not callable(image):
        return image
    try:
        return _EncodedImage(image())
    except Exception as error:
        return _EncodedImage(b"", unreadable_reason(error))


@contextmanager
def _start_workers(
    folders: Sequence[Path], identity: str, processes: int, options: dict[str, Any]
) -> Iterator[list[_Worker]]:
    """Processes that wait for blocks; what is not done in the end is dropped with them."""
    context = multiprocessing.get_context("spawn")
    made: list[_Worker] = []
    try:
        for number in range(processes):
            tasks, results = context.Queue(), context.Queue()
            share = _WorkerTask([*folders], identity, number, processes, options, tasks, results, [*warnings.filters])
            process = context.Process(target=_run_worker, args=(share,), daemon=True)
            process.start()
            made.append(_Worker(process, tasks, results))
        yield made
    finally:
        for worker in made:
            worker.process.terminate()
            worker.tasks.cancel_join_thread()
        for worker in made:
            worker.process.join()


class _WorkerTask(NamedTuple):
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


def _run_worker(share: _WorkerTask) -> None:
    """What a process does until it is told that there is no more, or nobody is there to tell it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all; the first process ends the others
    warnings.filters[:] = share.filters  # type: ignore[index]
    try:
        _apply_task(share)
        for block in load_checked(share.folders, share.identity).predict_batches(
            _next_tasks(share.tasks), **share.options
        ):
            share.results.put(replace(block, images=[]))
    except BaselineError as error:
        share.results.put(error)


def _apply_task(share: _WorkerTask) -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.set_device(share.number % torch.cuda.device_count())
    else:
        torch.set_num_threads(max(1, torch.get_num_threads() // share.processes))


def load_checked(folders: Sequence[Path], identity: str) -> Model | Ensemble:
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


def _next_tasks(tasks: Any) -> Iterator[Any]:
    parent = multiprocessing.parent_process()
    while True:
        try:
            block = tasks.get(timeout=TIMEOUT_SECONDS)
        except queue.Empty:
            if parent is not None and not parent.is_alive():
                os._exit(1)
            continue
        if block is None:
            return
        yield from block
