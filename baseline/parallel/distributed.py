"""Communication between the processes of one distributed training.

The processes are started by `launch` (`baseline run --processes 2`), by `torchrun` or by `accelerate launch`, which
describe the group in environment variables, and are connected by torch.distributed: NCCL between GPUs, gloo for
everything else. In a single process every function returns what it is passed.

fastai's own distributed context is not used: its loader pads each epoch with repeated images, and a wrapped network is
no longer a sequence of layers, which frozen outputs need. Gradients are averaged after each backward pass instead.
"""

from __future__ import annotations

import os
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

from baseline.errors import RecipeError, TrainingError, first_line

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


GROUP_TIMEOUT = timedelta(days=1)
"""Time that a process waits for the others; whoever started them notices a process that has died."""


GRACE_SECONDS = 30
"""Seconds that a process has to shut down after it is asked to terminate."""


SAME_FAILURE_SECONDS = 3
"""Seconds to wait for the first process to report the failure that another process has ended with."""


T = TypeVar("T")


def world_size() -> int:
    """Return the number of processes in this run.

    >>> world_size(), rank()
    (1, 0)
    """
    dist = torch_distributed()
    return dist.get_world_size() if dist else 1


def rank() -> int:
    """Return the index of this process, from 0; only rank 0 writes files and prints."""
    dist = torch_distributed()
    return dist.get_rank() if dist else 0


def environment_world_size() -> int:
    """Return the number of processes that the environment names, whether or not they are connected yet.

    Raises:
        RecipeError: if it is not a number.
    """
    size = os.environ.get("WORLD_SIZE", "1")
    if not (size.isdecimal() and size.isascii() and len(size) < 10):
        raise RecipeError(f"WORLD_SIZE is {size!r}; a number of processes was needed. Unset it, or pass --processes N.")
    return int(size)


def torch_distributed() -> Any:
    """Return torch.distributed if this process is in a group, else None, without importing torch to find out."""
    dist = sys.modules.get("torch.distributed")
    return dist if dist and dist.is_available() and dist.is_initialized() else None


@contextmanager
def process_group() -> Iterator[None]:
    """Context manager in which this process is connected to the others of the environment, each on its own GPU."""
    if environment_world_size() < 2 or torch_distributed():
        yield
        return
    import torch
    import torch.distributed as dist

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
    threading.Thread(target=exit_with_parent, args=(os.getppid(),), daemon=True).start()
    try:
        backend = choose_backend(torch.cuda.device_count(), dist.is_nccl_available())
        with quiet_stdout():
            dist.init_process_group(backend, timeout=GROUP_TIMEOUT)
    except (RuntimeError, ValueError) as error:  # a variable is missing, or no process listens there
        raise TrainingError(
            f"The processes that WORLD_SIZE names cannot be connected: {first_line(error)}. Unset it, or start them "
            "with --processes N or torchrun."
        ) from error
    # fastai reads these and would wait for the other processes wherever it detaches a tensor, even in steps that only
    # rank 0 takes
    hidden = {name: os.environ.pop(name) for name in ("WORLD_SIZE", "RANK") if name in os.environ}
    try:
        yield
    finally:
        os.environ |= hidden
        dist.destroy_process_group()


@contextmanager
def quiet_stdout() -> Iterator[None]:
    """Drop what compiled libraries print: Gloo of torch 2.9 lists its connections, in the midst of `--json`."""
    sys.stdout.flush()
    try:
        stdout = os.dup(1)
    except OSError:  # it is closed
        yield
        return
    nothing = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, 1)
        yield
    finally:
        os.dup2(stdout, 1)
        os.close(stdout)
        os.close(nothing)


def choose_backend(gpus: int, has_nccl: bool = True) -> str:
    """Return the backend of torch.distributed: NCCL needs a GPU for each process of this machine, Gloo none.

    Args:
        gpus: number of GPUs of this machine.
        has_nccl: whether torch was built with NCCL, which on Windows it is not.

    >>> os.environ["LOCAL_WORLD_SIZE"] = "2"
    >>> choose_backend(0), choose_backend(1), choose_backend(2)
    ('gloo', 'gloo', 'cpu:gloo,cuda:nccl')
    >>> del os.environ["LOCAL_WORLD_SIZE"]
    """
    local = os.environ.get("LOCAL_WORLD_SIZE", "")
    processes = int(local) if local.isdecimal() and len(local) < 10 else environment_world_size()
    return "cpu:gloo,cuda:nccl" if has_nccl and gpus >= processes else "gloo"


def exit_with_parent(parent: int) -> None:
    """End this process when its parent ends; it may be waiting for a process that no longer exists."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def broadcast_from_rank0(make: Callable[[], T]) -> T:
    """Call `make` on rank 0 and return its result on every process; the others wait for it."""
    if world_size() == 1:
        return make()
    import torch
    import torch.distributed as dist

    values = [make() if rank() == 0 else None]
    dist.broadcast_object_list(values, device=torch.device("cpu"))
    return values[0]  # type: ignore[return-value]


def all_gather(value: T) -> list[T]:
    """Return the values of all processes on every process, in the order of their ranks."""
    if world_size() == 1:
        return [value]
    import torch.distributed as dist

    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def all_reduce_mean(tensors: Sequence[torch.Tensor]) -> None:
    """Replace each tensor by its mean over all processes, in place."""
    if world_size() == 1 or not tensors:
        return
    import torch
    import torch.distributed as dist

    flat = torch.cat([tensor.detach().reshape(-1).float() for tensor in tensors])
    flat = flat if flat.device.type in ("cpu", "cuda") else flat.cpu()  # Gloo knows no other devices
    dist.all_reduce(flat)
    flat /= world_size()
    offset = 0
    for tensor in tensors:
        tensor.detach().copy_(flat[offset : offset + tensor.numel()].view(tensor.shape))
        offset += tensor.numel()


def launch(processes: int, arguments: Sequence[str]) -> tuple[int, str]:
    """Run `python -m baseline` with these arguments in several processes.

    Only the output of rank 0 is shown. As soon as one process fails the others are terminated.

    Returns:
        The exit code of the first process that fails, else 0; and the last line that the processes other than rank 0
        wrote to stderr, if rank 0 was not the first to fail and does not fail in the same way.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    threads = os.environ.get("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes),
             "OMP_NUM_THREADS": threads}  # fmt: skip
    running: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryFile() as stderr:
        try:
            for index in range(processes):
                env = {**os.environ, **group, "RANK": str(index), "LOCAL_RANK": str(index)}
                output: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": stderr} if index else {}
                running.append(subprocess.Popen([sys.executable, "-m", "baseline", *arguments], env=env, **output))
            while any(process.poll() is None for process in running) and not failed_processes(running):
                time.sleep(0.05)
            failed = failed_processes(running)
            if failed and failed[0] is not running[0]:
                if failed[0].returncode > 1:  # an error with a message, which rank 0 may be about to print, too
                    with suppress(subprocess.TimeoutExpired):
                        if running[0].wait(SAME_FAILURE_SECONDS) == failed[0].returncode:
                            return failed[0].returncode, ""
                stderr.seek(0)
                lines = stderr.read().decode(errors="replace").strip().splitlines()
                last = lines[-1] if lines else f"baseline: a process ended with exit code {failed[0].returncode}"
                return abs(failed[0].returncode), last
            return (abs(failed[0].returncode) if failed else 0), ""
        except KeyboardInterrupt:  # Ctrl-C has reached all processes, another signal this one only
            for process in running:
                process.terminate()
            for process in running:  # they save their state
                with suppress(subprocess.TimeoutExpired):
                    process.wait(GRACE_SECONDS)
            return 130, ""
        finally:
            for process in running:
                process.terminate()
            for process in running:
                try:
                    process.wait(GRACE_SECONDS)
                except subprocess.TimeoutExpired:  # it is waiting for a process that no longer exists
                    process.kill()
                    process.wait()


def failed_processes(running: Sequence[subprocess.Popen[bytes]]) -> list[subprocess.Popen[bytes]]:
    """Return the processes that have ended with an exit code other than 0.

    Those that a signal ended come first, as the others may have failed because of them.
    """
    return sorted((process for process in running if process.poll()), key=lambda process: process.returncode > 0)
