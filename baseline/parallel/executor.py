"""Jobs that do not depend on each other -> what each gives: one after the other here, or by Ray's workers.

Knows jobs and workers; knows no images, no models and no files. Ray decides where a job is done, and begins it again
when its worker was killed. Nothing is sent to Ray's makers, and its dashboard is not started.
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

from baseline.errors import BaselineError, OutputError, RecipeError, first_line
from baseline.progress import Progress, format_duration

__all__ = ["Executor", "Job", "get_executor"]


MAX_RETRIES = 3
"""So often a job is begun again whose worker was killed."""


CONNECT_TIMEOUT_SECONDS = 10.0
"""Seconds in which an address has to answer."""


POLL_SECONDS = 0.5
"""Seconds between looks for news from workers."""


@dataclass(frozen=True)
class Job:
    """One thing to do."""

    description: str
    """What it is, for the person who waits; empty for one of many that a bar counts."""
    function: Callable[[Progress], Any]
    """Does it. Where it goes to a worker, it and what it gives are pickled, and it may be done twice: a worker can be
    killed at any moment."""
    local: bool = False
    """It is not worth a worker, or needs what is in memory here."""


def get_executor(executor: str, progress: Progress) -> Executor:
    """What jobs are done by.

    Args:
        executor: empty: one after the other in this process. `"ray"`: by a Ray of this machine, which is started for it and
            ends with it, or by the cluster of `RAY_ADDRESS`, or by the one that a script has joined. `"ray://HOST:10001"`
            (from outside), `"ray:HOST:6379"` or `"ray:auto"` (on one of its machines): by a cluster.

    Raises:
        RecipeError: for other words, or if Ray is not installed.
        OutputError: if the address does not answer.

    >>> with get_executor("", Progress()) as here:
    ...     [made for _, made in here.as_completed([Job("", lambda show: 1), Job("", lambda show: 2)])]
    [1, 2]
    """
    if not executor:
        return Executor(progress)
    name, _, rest = executor.partition(":")
    if name != "ray" or (":" in executor and not rest.strip("/")):
        raise RecipeError(f"--on is '{executor}'; ray, ray:auto, ray:HOST:6379 or ray://HOST:10001 was needed.")
    if find_spec("ray") is None:
        raise RecipeError("--on ray needs the package ray: pip install 'fastai-baseline[ray]'.")
    address = executor if rest.startswith("//") else rest or os.environ.get("RAY_ADDRESS", "")
    _check_reachable(address)
    return _RayExecutor(progress, address)


class Executor:
    """Does jobs one after the other in this process."""

    remote = False
    """Whether several are done at once, elsewhere."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    def as_completed(self, jobs: Iterable[Job], count: int = 0) -> Iterator[tuple[Job, Any]]:
        """Does the jobs, and gives each with what came of it as soon as it is done.

        Args:
            jobs: taken from the iterable as they are needed.
            count: so many may be done at once, each with its share of the processors; as many as there are
                processors if not given.
        """
        for job in jobs:
            if job.description:
                self.progress.log(job.description)
            yield job, job.function(self.progress)

    def run(self, jobs: Iterable[Job], count: int = 0) -> None:
        """Does the jobs, and waits for the last."""
        for _ in self.as_completed(jobs, count):
            pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass


def _check_reachable(address: str) -> None:
    """An error if nobody listens there: Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if address in ("", "auto", "local"):
        return
    if not host or not port.isdecimal():
        raise RecipeError(f"Ray's address is '{address}'; HOST:PORT was needed, such as head:6379 or ray://head:10001.")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_TIMEOUT_SECONDS).close()
    except (OSError, OverflowError) as error:
        words = getattr(error, "strerror", None) or first_line(error)
        raise OutputError(f"Ray at {address} cannot be reached: {words}. Start it there, or leave --on out.") from None


class _RayExecutor(Executor):
    remote = True

    def __init__(self, progress: Progress, address: str) -> None:
        super().__init__(progress)
        self.address = address
        self.own = False

    def as_completed(self, jobs: Iterable[Job], count: int = 0) -> Iterator[tuple[Job, Any]]:
        rest, aside = iter(jobs), deque[Job]()
        team: _WorkerPool | None = None
        try:
            while True:
                while (team is None or team.has_room) and (job := next(rest, None)) is not None:
                    if job.local:
                        aside.append(job)
                        continue
                    team = team or self._team(count)
                    team.send(job)
                if aside:
                    yield from super().as_completed([aside.popleft()])
                elif team is None or not team.waiting:
                    return
                if team is not None:
                    yield from team.done(0 if aside else POLL_SECONDS)
        finally:
            if team is not None:
                team.end()

    def _team(self, count: int) -> _WorkerPool:
        """Workers, with a share of the processors each, or a GPU."""
        ray = self._joined()
        from fastai.torch_core import default_device

        found = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        cpus = [int(node.get("CPU", 0)) for node in found]
        gpus = int(sum(node.get("GPU", 0) for node in found)) if default_device().type == "cuda" else 0
        wished = os.environ.get("OMP_NUM_THREADS", "")
        at_once = min(count or sum(cpus), gpus or sum(cpus))
        share = int(wished) if wished.isdecimal() else min(sum(cpus) // max(1, at_once), max(cpus, default=1))
        threads = max(1, share)
        slots = min(gpus or sum(cpus), sum(each // threads for each in cpus))
        if not slots:
            raise RecipeError(f"No machine of this Ray has {threads} CPUs. Set OMP_NUM_THREADS to fewer.")
        # a few more than can be done, so that no worker waits for this process
        room = count if 0 < count <= slots else slots + max(2, slots // 2)
        self.progress.log(f"Ray: at most {min(room, slots)} at once, threads of each: {threads}")
        options = {"num_cpus": threads, "num_gpus": 1 if gpus else 0, "scheduling_strategy": "SPREAD"}
        return _WorkerPool(ray, room, options, _CallerContext.of_this(threads), self.progress)

    def _joined(self) -> Any:
        """Ray, connected."""
        import ray

        if ray.is_initialized():
            if self.address and not self.own:
                raise RecipeError(
                    "This script has joined a Ray already. Give executor='ray' to use it, or ray.shutdown()."
                )
            return ray
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray warns of what this will mean one day
        begun: dict[str, Any] = {} if self.address else {"include_dashboard": False}
        main = threading.current_thread() is threading.main_thread()
        handler = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(self.address or "local", log_to_driver=False, logging_level=logging.ERROR, **begun)
        except Exception as error:
            where = f"at {self.address} cannot be joined" if self.address else "did not start"
            raise OutputError(f"Ray {where}: {first_line(error)}. Mend it, or leave --on out.") from None
        finally:
            if main:  # Ray takes the signal for itself
                signal.signal(signal.SIGTERM, handler)
        self.own = True
        return ray

    def __exit__(self, *error: object) -> None:
        if self.own:
            import ray

            ray.shutdown()


class _WorkerPool:
    """Workers that do jobs in no order."""

    def __init__(self, ray: Any, room: int, options: dict[str, Any], asker: _CallerContext, progress: Progress) -> None:
        self.ray, self.room, self.asker, self.progress = ray, room, asker, progress
        self.work = ray.remote(max_retries=MAX_RETRIES, **options)(_run_job)
        self.lines = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(_MessageQueue).remote()
        self.waiting: dict[Any, Job] = {}

    @property
    def has_room(self) -> bool:
        return len(self.waiting) < self.room

    def send(self, job: Job) -> None:
        self.waiting[self.work.remote(job, self.asker, self.lines)] = job

    def done(self, seconds: float) -> Iterator[tuple[Job, Any]]:
        """What has ended, after so many seconds at most."""
        if self.waiting:
            ended, _ = self.ray.wait([*self.waiting], num_returns=len(self.waiting), timeout=0)
            ended = ended or self.ray.wait([*self.waiting], timeout=seconds)[0]
            for line in self._told():
                self.progress.log(line)
            for task in ended:
                job = self.waiting.pop(task)
                yield job, self._result(task, job)

    def end(self) -> None:
        """Drops what is not done."""
        if not self.ray.is_initialized():
            return
        for task in self.waiting:
            self.ray.cancel(task, force=True)
        self.ray.kill(self.lines)

    def _told(self) -> list[str]:
        with suppress(self.ray.exceptions.RayError):  # news may be lost; results are not
            return self.ray.get(self.lines.taken.remote(), timeout=CONNECT_TIMEOUT_SECONDS)
        return []

    def _result(self, task: Any, job: Job) -> Any:
        what, ray = job.description or "a part of the work", self.ray
        try:
            found = ray.get(task)
        except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError, ray.exceptions.NodeDiedError):
            raise OutputError(
                f"{what}: its worker ended {MAX_RETRIES + 1} times, often for too little memory. What is finished is kept; "
                "give each worker more, and --resume goes on."
            ) from None
        if isinstance(found, BaselineError):
            raise found
        made, seconds, where = found
        if job.description:
            self.progress.log(f"{job.description}: done in {format_duration(seconds)} on {where}")
        return made


class _MessageQueue:
    """What workers tell; lives in a process of its own."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def tell(self, line: str) -> None:
        self.told.append(line)

    def taken(self) -> list[str]:
        told, self.told = self.told, []
        return told


@dataclass(frozen=True)
class _CallerContext:
    """What a worker has to have as the process that asks."""

    folder: str
    settings: dict[str, str]
    threads: int
    facts: dict[str, str]

    @classmethod
    def of_this(cls, threads: int) -> _CallerContext:
        settings = {name: value for name, value in os.environ.items() if name.startswith("BASELINE_")}
        return cls(str(Path.cwd()), settings, threads, _environment_facts())

    def follow(self) -> None:
        """Takes its folder, settings and number of threads.

        Raises:
            OutputError: if this machine has another installation, or not its folder.
        """
        import torch

        os.environ.update(self.settings)
        torch.set_num_threads(self.threads)
        here = socket.gethostname()
        for name, value in _environment_facts().items():
            if value != self.facts[name]:
                raise OutputError(f"{here} has {name} {value}, and {self.facts[name]} was needed, as where this was "
                                  "begun: numbers would differ. Install the same on all machines.")  # fmt: skip
        try:
            os.chdir(self.folder)
        except OSError as error:
            raise OutputError(f"{here} cannot go to {self.folder}: {error.strerror}. All machines of the Ray need the "
                              "working folder, the images and --out under the same paths.") from None  # fmt: skip


def _environment_facts() -> dict[str, str]:
    """What numbers depend on."""
    from fastai.torch_core import default_device

    from baseline.system import bfloat16_instructions, package_versions

    return {
        **package_versions(),
        "device": default_device().type,
        "bfloat16": " and ".join(bfloat16_instructions()) or "no units",
    }


def _run_job(job: Job, asker: _CallerContext, lines: Any) -> Any:
    """In a worker: what came of the job, its seconds and where it was done; or what is wrong with what was asked."""
    where = f"{socket.gethostname()}, process {os.getpid()}"
    try:
        asker.follow()
        if job.description:
            lines.tell.remote(f"{job.description}: begun on {where}")
        began = time.perf_counter()
        made = job.function(Progress())
        return made, time.perf_counter() - began, where
    except BaselineError as error:
        return error
