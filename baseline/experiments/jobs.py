"""Executor jobs that train a run folder."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from baseline.parallel.executor import Job

if TYPE_CHECKING:
    from baseline.progress import Progress

__all__ = ["training_job"]


def training_job(title: str, images: Any, recipe: Any, folder: Path, /, **changes: Any) -> Job:
    """Return a job that makes a run folder with `make_baseline`, which takes the same arguments."""
    return Job(title, partial(run_training, images, recipe, folder, changes))


def run_training(images: Any, recipe: Any, folder: Path, changes: dict[str, Any], progress: Progress) -> None:
    from baseline.make import make_baseline

    progress.part_of_series = True
    try:
        # the result is dropped, so that its network and images are freed before the next run
        make_baseline(images, recipe, out=folder, progress=progress, **changes)
    finally:
        progress.part_of_series = False
