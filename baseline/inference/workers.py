"""Predict images in several local processes, and yield the predictions in the images' order.

Each process loads the model onto its own GPU, or uses its share of the CPU. Batch `i` goes to process `i` modulo the
number of processes, so that images are batched in the same way as in a single process.
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
"""Number of batches sent to a process in advance; it reads up to three before it returns the first."""


POLL_INTERVAL_SECONDS = 1.0
"""Seconds between checks that the process at the other end is still alive."""


def predict_in_workers(
    folders: Sequence[Path], identity: str, images: Iterable[Any], processes: int, *, batch_size: int, **options: Any
) -> Iterator[PredictionBatch]:
    """Yield what `Model.predict_batches` of the folders' models yields for the images, predicted by several processes.

    Args:
        identity: identity of the model that the folders must hold; see `Model.identity`.
        images: consumed lazily, at most four batches per process ahead.
        options: keyword arguments for `Model.predict_batches`.

    Raises:
        OutputError: if a folder holds a different model by now, or a process was killed.

    >>> list(predict_in_workers(model.folders, model.identity, paths, 2, batch_size=64))     # doctest: +SKIP
    """
    remaining = iter(images)
    batches = iter(lambda: list(islice(remaining, batch_size)), [])
    options["batch_size"] = batch_size
    with start_workers(folders, identity, processes, options) as workers:
        pending: deque[list[Any]] = deque()
        finished = False
        next_to_feed, next_to_read = cycle(workers), cycle(workers)
        for batch in chain(batches, repeat(None, BATCHES_AHEAD * processes)):
            if batch is not None:
                next(next_to_feed).tasks.put([encode_for_worker(image) for image in batch])
                pending.append(batch)
            elif not finished:
                finished = True
                for worker in workers:
                    worker.tasks.put(None)
            if len(pending) == BATCHES_AHEAD * processes or (finished and pending):
                yield replace(next(next_to_read).result(), images=pending.popleft())


@dataclass(frozen=True)
class PredictionWorker:
    """A process that predicts, and the queues to and from it."""

    process: Any
    tasks: Any
    results: Any

    def result(self) -> PredictionBatch:
        """Wait for the next batch of predictions."""
        while True:
            try:
                result = self.results.get(timeout=POLL_INTERVAL_SECONDS)
            except queue.Empty:
                if not self.process.is_alive():
                    raise OutputError(
                        f"A prediction process ended unexpectedly with exit code {self.process.exitcode}; -9 often "
                        "means too little memory. Use fewer --processes, and --resume to continue."
                    ) from None
                continue
            if isinstance(result, BaseException):
                raise result
            return result


@dataclass(frozen=True)
class EncodedImage:
    """The bytes of an archive member on its way to another process, or why it cannot be read."""

    content: bytes
    error: str = ""

    def __call__(self) -> bytes:
        if self.error:
            raise OSError(self.error)
        return self.content


def encode_for_worker(image: Any) -> Any:
    """Return the image in a form that can be sent to another process: an archive member is read."""
    if not callable(image):
        return image
    try:
        return EncodedImage(image())
    except Exception as error:
        return EncodedImage(b"", unreadable_reason(error))


@contextmanager
def start_workers(
    folders: Sequence[Path], identity: str, processes: int, options: dict[str, Any]
) -> Iterator[list[PredictionWorker]]:
    """Start processes that wait for batches, and terminate them on exit; unfinished batches are dropped."""
    context = multiprocessing.get_context("spawn")
    workers: list[PredictionWorker] = []
    try:
        for index in range(processes):
            tasks, results = context.Queue(), context.Queue()
            task = WorkerTask([*folders], identity, index, processes, options, tasks, results, [*warnings.filters])
            process = context.Process(target=run_worker, args=(task,), daemon=True)
            with blocked_interrupts():
                process.start()
            workers.append(PredictionWorker(process, tasks, results))
        yield workers
    finally:
        for worker in workers:
            worker.process.terminate()
            worker.tasks.cancel_join_thread()
        for worker in workers:
            worker.process.join()


@contextmanager
def blocked_interrupts() -> Iterator[None]:
    """Start processes that Ctrl-C and SIGHUP, which reach all processes of a terminal, do not end while they import."""
    if not (hasattr(signal, "pthread_sigmask") and hasattr(signal, "SIGHUP")):  # Windows
        yield
        return
    from multiprocessing.resource_tracker import ensure_running

    ensure_running()  # it unblocks them
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class WorkerTask(NamedTuple):
    """Everything that a worker process needs."""

    folders: list[Path]
    identity: str
    worker_index: int
    processes: int
    options: dict[str, Any]
    tasks: Any
    results: Any
    warning_filters: list[Any]
    """The parent's warning filters."""


def run_worker(task: WorkerTask) -> None:
    """Predict batches until there are no more or the parent process has ended; the main function of a worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent terminates the workers
    warnings.filters[:] = task.warning_filters  # type: ignore[index]
    try:
        assign_device(task)
        model = load_checked(task.folders, task.identity)
        for batch in model.predict_batches(iterate_tasks(task.tasks), **task.options):
            task.results.put(replace(batch, images=[]))
    except BaselineError as error:
        task.results.put(error)


def assign_device(task: WorkerTask) -> None:
    """Select the worker's GPU, or limit it to its share of the CPU threads."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.set_device(task.worker_index % torch.cuda.device_count())
    else:
        torch.set_num_threads(max(1, torch.get_num_threads() // task.processes))


def load_checked(folders: Sequence[Path], identity: str) -> Model | Ensemble:
    """Load the model of the folders, and check that it is the one with this identity.

    Raises:
        OutputError: if it is a different one by now.
    """
    from baseline.inference.model import load

    model = load(folders)
    if model.identity != identity:
        names = ", ".join(map(str, folders))
        raise OutputError(f"{names} changed while predicting. Leave the model as it is until the job has finished.")
    return model


def iterate_tasks(tasks: Any) -> Iterator[Any]:
    """Yield the images of the batches in the queue, and end the process if its parent has ended."""
    parent = multiprocessing.parent_process()
    while True:
        try:
            batch = tasks.get(timeout=POLL_INTERVAL_SECONDS)
        except queue.Empty:
            if parent is not None and not parent.is_alive():
                os._exit(1)
            continue
        if batch is None:
            return
        yield from batch
