"""Several processes of one run: which of them this is, and what they tell each other. Knows no images, no training.

They are begun by `launch` (`baseline run --processes 2`), by `torchrun` or by `accelerate launch`, which name them in
the environment, and are joined by torch.distributed: NCCL between GPUs, gloo for everything else. Where there is but
one, all of this gives back what it is given.

fastai's own distributed context is not used: its loader pads each epoch with images seen twice, and the wrapped network
is no sequence of layers any more, which frozen outputs need. Gradients are averaged after each backward pass instead.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import torch

__all__ = [
    "all_gather",
    "all_reduce_mean",
    "broadcast_from_rank0",
    "environment_world_size",
    "launch",
    "process_group",
    "rank",
    "world_size",
]


TIMEOUT_SECONDS = timedelta(days=1)
"""How long one process waits for the others; what has died is seen by who began them."""


GRACE_SECONDS = 30
"""Seconds that a process has to end in, once it is told to."""


FORWARDED_VARIABLES = 3
"""Seconds in which the first process says what another has ended with, if it is the same."""


T = TypeVar("T")


def world_size() -> int:
    """How many processes this run has.

    >>> world_size(), rank()
    (1, 0)
    """
    dist = _torch_distributed()
    return dist.get_world_size() if dist else 1


def rank() -> int:
    """Which of them this is, from 0: the first writes, and speaks."""
    dist = _torch_distributed()
    return dist.get_rank() if dist else 0


def environment_world_size() -> int:
    """How many processes the environment names, whether they are joined yet or not."""
    return int(os.environ.get("WORLD_SIZE", 1))


def _torch_distributed() -> Any:
    """torch.distributed, where this process is joined with others; it need not be imported to know that it is not."""
    dist = sys.modules.get("torch.distributed")
    return dist if dist and dist.is_available() and dist.is_initialized() else None


@contextmanager
def process_group() -> Iterator[None]:
    """Inside, this process is joined with the others that the environment names, each on a GPU of its own."""
    if environment_world_size() < 2 or _torch_distributed():
        yield
        return
    import torch
    import torch.distributed as dist

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
    threading.Thread(target=_exit_with_parent, args=(os.getppid(),), daemon=True).start()
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=TIMEOUT_SECONDS)
    # fastai, which reads them, would wait for the others wherever it detaches a tensor, in steps of the first only, too
    told = {name: os.environ.pop(name) for name in ("WORLD_SIZE", "RANK") if name in os.environ}
    try:
        yield
    finally:
        os.environ |= told
        dist.destroy_process_group()


def _exit_with_parent(parent: int) -> None:
    """Ends this process, which may be waiting for one that is no more, with the one that began it."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def broadcast_from_rank0(make: Callable[[], T]) -> T:
    """What the first process makes, in all of them; the others wait for it."""
    if world_size() == 1:
        return make()
    import torch
    import torch.distributed as dist

    told = [make() if rank() == 0 else None]
    dist.broadcast_object_list(told, device=torch.device("cpu"))
    return told[0]  # type: ignore[return-value]


def all_gather(value: T) -> list[T]:
    """The values of all processes, in their order, in each of them."""
    if world_size() == 1:
        return [value]
    import torch.distributed as dist

    found: list[Any] = [None] * world_size()
    dist.all_gather_object(found, value)
    return found


def all_reduce_mean(tensors: Sequence[torch.Tensor]) -> None:
    """Makes each tensor the mean of all processes' own, in place."""
    if world_size() == 1 or not tensors:
        return
    import torch
    import torch.distributed as dist

    flat = torch.cat([each.detach().reshape(-1).float() for each in tensors])
    dist.all_reduce(flat)
    flat /= world_size()
    at = 0
    for each in tensors:
        each.detach().copy_(flat[at : at + each.numel()].view(each.shape))
        at += each.numel()


def launch(processes: int, words: Sequence[str]) -> tuple[int, str]:
    """Runs `python -m baseline` with these words in so many processes; the exit code of the first that fails, else 0.

    Only the first one's output is shown; if another fails first, and not the first with the same, its last line is
    given back. The rest are ended.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    threads = os.environ.get("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes),
             "OMP_NUM_THREADS": threads}  # fmt: skip
    running: list[subprocess.Popen[bytes]] = []
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryFile() as silent:
        try:
            for each in range(processes):
                env = {**os.environ, **group, "RANK": str(each), "LOCAL_RANK": str(each)}
                quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": silent} if each else {}
                running.append(subprocess.Popen([sys.executable, "-m", "baseline", *words], env=env, **quiet))
            while any(process.poll() is None for process in running) and not _first_failure(running):
                time.sleep(0.05)
            failed = _first_failure(running)
            if failed and failed[0] is not running[0]:
                if failed[0].returncode > 1:  # an error in words, which the first may be about to say, too
                    with suppress(subprocess.TimeoutExpired):
                        if running[0].wait(FORWARDED_VARIABLES) == failed[0].returncode:
                            return failed[0].returncode, ""
                silent.seek(0)
                lines = silent.read().decode(errors="replace").strip().splitlines()
                last = lines[-1] if lines else f"baseline: a process ended with {failed[0].returncode}"
                return abs(failed[0].returncode), last
            return (abs(failed[0].returncode) if failed else 0), ""
        except KeyboardInterrupt:  # which all of them got, too, and write what they have
            for process in running:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(GRACE_SECONDS)
            return 130, ""
        finally:
            for process in running:
                process.terminate()
            for process in running:
                try:
                    process.wait(GRACE_SECONDS)
                except subprocess.TimeoutExpired:  # it waits for one that has gone
                    process.kill()
                    process.wait()


def _first_failure(running: Sequence[subprocess.Popen[bytes]]) -> list[subprocess.Popen[bytes]]:
    return [process for process in running if process.poll()]
