"""TODO."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from baseline.parallel.executor import Job

if TYPE_CHECKING:
    from baseline.progress import Progress

__all__ = ["training_job"]


def training_job(words: str, images: Any, recipe: Any, folder: Path, **changes: Any) -> Job:
    """The job that makes a run folder with `make_baseline`, of whose arguments these are."""
    return Job(words, partial(run_training, images, recipe, folder, changes))


def run_training(images: Any, recipe: Any, folder: Path, changes: dict[str, Any], progress: Progress) -> None:
    from baseline.make import make_baseline

    progress.several = True
    try:
        # of what it returns nothing is kept: its network and images go before the next run needs the room
        make_baseline(images, recipe, out=folder, progress=progress, **changes)
    finally:
        progress.several = False
