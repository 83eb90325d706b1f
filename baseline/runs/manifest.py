"""TODO."""

from __future__ import annotations

from typing import Any
from collections.abc import Mapping
from pathlib import Path
from datetime import UTC
import dataclasses
from datetime import datetime
import hashlib
import platform
from baseline.runs.folder import (FORMAT)
from baseline.recipe.schema import (Recipe)
from baseline.data.prepare import (_counts)
from baseline.system import (_device, versions)
from baseline.parallel.distributed import (count)
from baseline.recipe.diff import (plain)
from baseline.data.split import (split_csv)
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd
    from baseline.vision.weights import (Weights)

__all__ = ["manifest_of", "recipe_of"]



def recipe_of(run: Path, facts: Mapping[str, Any]) -> Recipe:
    """The recipe that a run's folder tells of.

    Raises:
        OutputError: if it has a field that this version does not know.
    """
    from baseline.errors import another_version

    try:
        return Recipe(**facts["recipe"])
    except TypeError:
        raise another_version(run) from None



def manifest_of(
    recipe: Recipe,
    photos: Any,
    table: pd.DataFrame,
    unread: pd.DataFrame,
    weights: Weights | None,
    metrics: dict[str, Any],
    stages: list[dict[str, Any]],
    seconds: dict[str, float],
) -> dict[str, Any]:
    """What `manifest.json` says of every run, however its predictions were made.

    Args:
        photos: as they were given to `make_baseline`.
        table: the photos with their splits.
        unread: those that were left out, with `path` and `reason`.
        seconds: by part of the run.
    """
    return {
        "format": FORMAT,
        "recipe": recipe.as_dict(),
        "photos": _photos_words(photos),
        "metrics": metrics,
        "seconds": seconds,
        "stages": stages,
        "data": _fingerprint(table, unread, recipe.labels),
        "weights": dataclasses.asdict(weights) if weights else "random",
        "device": _device_words(),
        "versions": versions(),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }



def _fingerprint(table: pd.DataFrame, unread: pd.DataFrame, labels: str) -> dict[str, Any]:
    """Counts, and the sha256 of `split.csv`, so that another run can tell whether it saw the same photos and splits."""
    from baseline.data.labels import classes_in

    return {
        "classes": classes_in(table, labels),
        "photos": _counts(table),
        "left_out": unread.to_dict("records"),
        "sha256": hashlib.sha256(split_csv(table).encode()).hexdigest(),
    }



def _facts(chosen: Recipe, photos: Any, table: pd.DataFrame) -> dict[str, Any]:
    """What loggers are told of a run before it trains: its recipe, its photos and the machine, flat."""
    recipe = {key: value for key, value in chosen.as_dict().items() if key not in ("log", "presets", "expected")}
    given = {"given": _photos_words(photos) or "a table", **_counts(table)}
    return plain({**recipe, "photos": given, "device": _device_words(), "version": versions()["fastai-baseline"]})



def _photos_words(photos: Any) -> str | None:
    """What the manifest needs to find the photos again: a data set's name or a path; a DataFrame has neither."""
    from baseline.data.sources.datasets import DATASETS
    from baseline.data.sources.external import is_foreign

    if isinstance(photos, str) and (photos in DATASETS or is_foreign(photos)):
        return photos
    return str(Path(photos).expanduser().absolute()) if isinstance(photos, str | Path) else None



def _device_words() -> str:
    import torch

    several = f"{count()} x " if count() > 1 else ""
    if _device() == "cuda":
        return several + torch.cuda.get_device_name()
    return f"{several}{platform.processor() or platform.machine()} CPU, {torch.get_num_threads()} threads"
