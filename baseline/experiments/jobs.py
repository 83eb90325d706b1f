"""TODO."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from baseline.parallel.executor import Job

if TYPE_CHECKING:
    from baseline.progress import Show

__all__ = ["training"]


def training(words: str, photos: Any, recipe: Any, folder: Path, **changes: Any) -> Job:
    """The job that makes a run folder with `make_baseline`, of whose arguments these are."""
    return Job(words, partial(_train, photos, recipe, folder, changes))


def _train(photos: Any, recipe: Any, folder: Path, changes: dict[str, Any], show: Show) -> None:
    from baseline.make import make_baseline

    show.several = True
    try:
        # of what it returns nothing is kept: its network and photos go before the next run needs the room
        make_baseline(photos, recipe, out=folder, show=show, **changes)
    finally:
        show.several = False
