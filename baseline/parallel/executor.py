"""Run independent jobs one after the other in this process, or several at once on Ray workers.

Ray decides where a job runs, and restarts it if its worker was killed. Ray's usage statistics are turned off, and its
dashboard is not started.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

from baseline.errors import BaselineError, OutputError, RecipeError, first_line, missing_package
from baseline.progress import Progress, format_duration

__all__ = ["Executor", "Job", "get_executor"]


MAX_RETRIES = 3
"""Maximum number of times that a job is restarted after its worker was killed."""


CONNECT_TIMEOUT_SECONDS = 10.0
"""Seconds to wait for an address, or for the workers' messages."""


POLL_SECONDS = 0.5
"""Seconds to wait for finished jobs before messages from workers are shown."""


@dataclass(frozen=True)
class Job:
    """A function to run, here or on a worker."""

    description: str
    """What the job does, for progress lines; empty for one of many jobs that a bar counts."""
    function: Callable[[Progress], Any]
    """Runs the job. If it is sent to a worker, it and its result are pickled, and it may run twice, because a worker
    can be killed at any moment."""
    local: bool = False
    """Run in this process: the job is not worth a worker, or needs objects in memory."""


def get_executor(executor: str, progress: Progress) -> Executor:
    """Return the executor of this name.

    Args:
        executor: empty to run jobs one after the other in this process. `"ray"` for a Ray on this machine, which is
            started for the jobs and ends with them, or the cluster of `RAY_ADDRESS`, or the one that a script has
            connected to. `"ray://HOST:10001"` (from outside), `"ray:HOST:6379"` or `"ray:auto"` (on one of its
            machines) for a cluster.

    Raises:
        RecipeError: for any other name, or if Ray is not installed.
        OutputError: if the address does not answer.

    >>> with get_executor("", Progress()) as executor:
    ...     jobs = [Job("", lambda progress: 1), Job("", lambda progress: 2)]
    ...     [result for _, result in executor.as_completed(jobs)]
    [1, 2]
    """
    if not executor:
        return Executor(progress)
    name, _, location = executor.partition(":")
    if name != "ray" or (":" in executor and not location.strip("/")):
        raise RecipeError(f"--executor is '{executor}'; ray, ray:auto, ray:HOST:6379 or ray://HOST:10001 was needed.")
    if find_spec("ray") is None:
        raise RecipeError(f"{missing_package('--executor ray', 'the package ray', 'ray')}.")
    address = executor if location.startswith("//") else location or os.environ.get("RAY_ADDRESS", "")
    check_reachable(address)
    return RayExecutor(progress, address)


class Executor:
    """Runs jobs one after the other in this process."""

    remote = False
    """Whether jobs run on workers, several at once."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    def as_completed(self, jobs: Iterable[Job], max_workers: int = 0) -> Iterator[tuple[Job, Any]]:
        """Run the jobs, and yield each with its result as soon as it has finished.

        Args:
            jobs: consumed lazily.
            max_workers: maximum number of jobs at once, each with its share of the processors; 0 for one for each
                processor.
        """
        for job in jobs:
            if job.description:
                self.progress.log(job.description)
            yield job, job.function(self.progress)

    def run(self, jobs: Iterable[Job], max_workers: int = 0) -> None:
        """Run the jobs, and wait for the last one."""
        for _ in self.as_completed(jobs, max_workers):
            pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass


def check_reachable(address: str) -> None:
    """Raise an error if nothing listens at the address; Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if address in ("", "auto", "local"):
        return
    if not host or not port.isdecimal():
        raise RecipeError(f"Ray's address is '{address}'; HOST:PORT was needed, such as head:6379 or ray://head:10001.")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_TIMEOUT_SECONDS).close()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise OutputError(
            f"Ray at {address} cannot be reached: {reason}. Start it there, or omit --executor."
        ) from None


class RayExecutor(Executor):
    """Runs jobs on Ray workers, several at once."""

    remote = True

    def __init__(self, progress: Progress, address: str) -> None:
        super().__init__(progress)
        self.address = address
        self.owns_ray = False

    def as_completed(self, jobs: Iterable[Job], max_workers: int = 0) -> Iterator[tuple[Job, Any]]:
        remaining, local_jobs = iter(jobs), deque[Job]()
        pool: WorkerPool | None = None
        try:
            while True:
                while (pool is None or pool.has_capacity) and (job := next(remaining, None)) is not None:
                    if job.local:
                        local_jobs.append(job)
                        continue
                    pool = pool or self._create_pool(max_workers)
                    pool.submit(job)
                if local_jobs:
                    yield from super().as_completed([local_jobs.popleft()])
                elif pool is None or not pool.pending:
                    return
                if pool is not None:
                    yield from pool.finished_jobs(0 if local_jobs else POLL_SECONDS)
        finally:
            if pool is not None:
                pool.shutdown()

    def _create_pool(self, max_workers: int) -> WorkerPool:
        """Return a pool of workers, each with a GPU or its share of the processors."""
        ray = self._connect()
        from fastai.torch_core import default_device

        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        cpus = [int(node.get("CPU", 0)) for node in nodes]
        gpus = int(sum(node.get("GPU", 0) for node in nodes)) if default_device().type == "cuda" else 0
        requested = os.environ.get("OMP_NUM_THREADS", "")
        at_once = min(max_workers or sum(cpus), gpus or sum(cpus))
        share = int(requested) if requested.isdecimal() else min(sum(cpus) // max(1, at_once), max(cpus, default=1))
        threads = max(1, share)
        slots = min(gpus or sum(cpus), sum(count // threads for count in cpus))
        if not slots:
            raise RecipeError(f"No machine of this Ray has {threads} CPUs. Set OMP_NUM_THREADS to a lower number.")
        # a few more jobs than can run at once, so that no worker has to wait for this process
        capacity = max_workers if 0 < max_workers <= slots else slots + max(2, slots // 2)
        self.progress.log(f"Ray: at most {min(capacity, slots)} at once, threads for each: {threads}")
        resources = {"num_cpus": threads, "num_gpus": 1 if gpus else 0, "scheduling_strategy": "SPREAD"}
        return WorkerPool(ray, capacity, resources, CallerContext.from_this_process(threads), self.progress)

    def _connect(self) -> Any:
        """Connect to Ray, starting it if necessary, and return the module."""
        import ray

        if ray.is_initialized():
            if self.address and not self.owns_ray:
                raise RecipeError(
                    "This script is connected to a Ray already. Pass executor='ray' to use it, or call ray.shutdown()."
                )
            return ray
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # without it Ray warns of a future change
        options: dict[str, Any] = {} if self.address else {"include_dashboard": False}
        in_main_thread = threading.current_thread() is threading.main_thread()
        handler = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(self.address or "local", log_to_driver=False, logging_level=logging.ERROR, **options)
        except Exception as error:
            problem = f"Ray at {self.address} cannot be joined" if self.address else "Ray did not start"
            raise OutputError(f"{problem}: {first_line(error)}. Repair it, or omit --executor.") from None
        finally:
            if in_main_thread:  # Ray replaces the handler
                signal.signal(signal.SIGTERM, handler)
        self.owns_ray = True
        return ray

    def __exit__(self, *error: object) -> None:
        if self.owns_ray:
            import ray

            ray.shutdown()


class WorkerPool:
    """Ray workers that run jobs in any order."""

    def __init__(
        self, ray: Any, capacity: int, resources: dict[str, Any], context: CallerContext, progress: Progress
    ) -> None:
        self.ray, self.capacity, self.context, self.progress = ray, capacity, context, progress
        self.remote_function = ray.remote(max_retries=MAX_RETRIES, **resources)(run_job)
        self.messages = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(MessageQueue).remote()
        self.pending: dict[Any, Job] = {}

    @property
    def has_capacity(self) -> bool:
        return len(self.pending) < self.capacity

    def submit(self, job: Job) -> None:
        """Send a job to the workers."""
        self.pending[self.remote_function.remote(job, self.context, self.messages)] = job

    def finished_jobs(self, timeout_seconds: float) -> Iterator[tuple[Job, Any]]:
        """Yield the jobs that have finished, with their results, and wait for the first one if there is none yet."""
        if self.pending:
            finished, _ = self.ray.wait([*self.pending], num_returns=len(self.pending), timeout=0)
            finished = finished or self.ray.wait([*self.pending], timeout=timeout_seconds)[0]
            for line in self._new_messages():
                self.progress.log(line)
            for task in finished:
                job = self.pending.pop(task)
                yield job, self._result(task, job)

    def shutdown(self) -> None:
        """Cancel the jobs that have not finished."""
        if not self.ray.is_initialized():
            return
        for task in self.pending:
            self.ray.cancel(task, force=True)
        self.ray.kill(self.messages)

    def _new_messages(self) -> list[str]:
        with suppress(self.ray.exceptions.RayError):  # messages may be lost; results are not
            return self.ray.get(self.messages.pop_all.remote(), timeout=CONNECT_TIMEOUT_SECONDS)
        return []

    def _result(self, task: Any, job: Job) -> Any:
        description, ray = job.description or "a part of the work", self.ray
        try:
            outcome = ray.get(task)
        except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError, ray.exceptions.NodeDiedError):
            raise OutputError(
                f"{description}: its worker ended {MAX_RETRIES + 1} times, often for too little memory. What is "
                "finished is kept; give each worker more memory, and --resume to continue."
            ) from None
        if isinstance(outcome, BaselineError):
            raise outcome
        result, seconds, place = outcome
        if job.description:
            self.progress.log(f"{job.description}: finished in {format_duration(seconds)} on {place}")
        return result


class MessageQueue:
    """Messages from workers; lives in a process of its own."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def put(self, message: str) -> None:
        self.messages.append(message)

    def pop_all(self) -> list[str]:
        messages, self.messages = self.messages, []
        return messages


@dataclass(frozen=True)
class CallerContext:
    """What a worker must have in common with the process that sends the jobs."""

    folder: str
    variables: dict[str, str]
    threads: int
    environment: dict[str, str]

    @classmethod
    def from_this_process(cls, threads: int) -> CallerContext:
        variables = {name: value for name, value in os.environ.items() if name.startswith("BASELINE_")}
        return cls(str(Path.cwd()), variables, threads, numeric_environment())

    def apply(self) -> None:
        """Adopt the caller's environment variables, number of threads and working folder.

        Raises:
            OutputError: if this machine has a different installation, or no such folder.
        """
        import torch

        os.environ.update(self.variables)
        torch.set_num_threads(self.threads)
        host = socket.gethostname()
        for name, value in numeric_environment().items():
            if value != self.environment[name]:
                raise OutputError(
                    f"{host} has {name} {value}, and this job was started with {self.environment[name]}: the numbers "
                    "would differ. Install the same versions on all machines."
                )
        try:
            os.chdir(self.folder)
        except OSError as error:
            raise OutputError(
                f"{host} cannot change to {self.folder}: {error.strerror}. All machines of the cluster need the "
                "working folder, the images and --out under the same paths."
            ) from None


def numeric_environment() -> dict[str, str]:
    """Return the versions and the hardware that numerical results depend on."""
    from fastai.torch_core import default_device

    from baseline.system import bfloat16_instructions, is_intel_cpu, package_versions

    return {
        **package_versions(),
        "device": default_device().type,
        "bfloat16": " and ".join(bfloat16_instructions()) or "none",
        "processor": "Intel" if is_intel_cpu() else "not Intel",  # the precision "auto" depends on it
    }


def run_job(job: Job, context: CallerContext, messages: Any) -> Any:
    """Run a job in a worker.

    Returns:
        The job's result, its seconds and the place where it ran; or the error, if the library raised one.
    """
    place = f"{socket.gethostname()}, process {os.getpid()}"
    try:
        context.apply()
        if job.description:
            messages.put.remote(f"{job.description}: started on {place}")
        start = time.perf_counter()
        result = job.function(Progress())
        return result, time.perf_counter() - start, place
    except BaselineError as error:
        return error
