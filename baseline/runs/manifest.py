"""TODO."""

from __future__ import annotations

import dataclasses
import hashlib
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from baseline.data.prepare import count_by_split
from baseline.data.split import split_to_csv
from baseline.parallel.distributed import world_size
from baseline.recipe.diff import flatten_plain
from baseline.recipe.schema import Recipe
from baseline.runs.folder import FORMAT
from baseline.system import device_type, package_versions

if TYPE_CHECKING:
    import pandas as pd

    from baseline.vision.weights import Weights

__all__ = ["build_manifest", "recipe_from_manifest"]


def recipe_from_manifest(run: Path, facts: Mapping[str, Any]) -> Recipe:
    """The recipe that a run's folder tells of.

    Raises:
        OutputError: if it has a field that this version does not know.
    """
    from baseline.errors import incompatible_version

    try:
        return Recipe(**facts["recipe"])
    except TypeError:
        raise incompatible_version(run) from None


def build_manifest(
    recipe: Recipe,
    images: Any,
    table: pd.DataFrame,
    unread: pd.DataFrame,
    weights: Weights | None,
    metrics: dict[str, Any],
    stages: list[dict[str, Any]],
    seconds: dict[str, float],
) -> dict[str, Any]:
    """What `manifest.json` says of every run, however its predictions were made.

    Args:
        images: as they were given to `make_baseline`.
        table: the images with their splits.
        unread: those that were left out, with `path` and `reason`.
        seconds: by part of the run.
    """
    return {
        "format": FORMAT,
        "recipe": recipe.as_dict(),
        "images": source_name(images),
        "metrics": metrics,
        "seconds": seconds,
        "stages": stages,
        "data": _data_summary(table, unread, recipe.labels),
        "weights": dataclasses.asdict(weights) if weights else "random",
        "device": describe_device(),
        "versions": package_versions(),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _data_summary(table: pd.DataFrame, unread: pd.DataFrame, labels: str) -> dict[str, Any]:
    """Counts, and the sha256 of `split.csv`, so that another run can tell whether it saw the same images and splits."""
    from baseline.data.labels import classes_in

    return {
        "classes": classes_in(table, labels),
        "images": count_by_split(table),
        "left_out": unread.to_dict("records"),
        "sha256": hashlib.sha256(split_to_csv(table).encode()).hexdigest(),
    }


def logger_config(chosen: Recipe, images: Any, table: pd.DataFrame) -> dict[str, Any]:
    """What loggers are told of a run before it trains: its recipe, its images and the machine, flat."""
    recipe = {key: value for key, value in chosen.as_dict().items() if key not in ("log", "presets", "expected")}
    given = {"given": source_name(images) or "a table", **count_by_split(table)}
    return flatten_plain(
        {**recipe, "images": given, "device": describe_device(), "version": package_versions()["fastai-baseline"]}
    )


def source_name(images: Any) -> str | None:
    """What the manifest needs to find the images again: a data set's name or a path; a DataFrame has neither."""
    from baseline.data.sources.datasets import DATASETS
    from baseline.data.sources.external import is_external

    if isinstance(images, str) and (images in DATASETS or is_external(images)):
        return images
    return str(Path(images).expanduser().absolute()) if isinstance(images, str | Path) else None


def describe_device() -> str:
    import torch

    several = f"{world_size()} x " if world_size() > 1 else ""
    if device_type() == "cuda":
        return several + torch.cuda.get_device_name()
    return f"{several}{platform.processor() or platform.machine()} CPU, {torch.get_num_threads()} threads"
