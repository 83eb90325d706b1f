"""Builds `manifest.json`, which says what a run was given, what it chose and what it measured."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Required

from typing_extensions import TypedDict

from baseline.data.prepare import RunRequest, count_by_split
from baseline.data.split import split_to_csv
from baseline.errors import RecipeError, format_count, incompatible_version
from baseline.evaluation.results import Metrics
from baseline.files import MANIFEST_FORMAT
from baseline.parallel.distributed import world_size
from baseline.recipe.diff import flatten_plain, flatten_recipe
from baseline.recipe.legacy import upgrade_recipe
from baseline.recipe.load import recipe_from_dict
from baseline.recipe.schema import Recipe
from baseline.system import device_type, package_versions, thread_count

if TYPE_CHECKING:
    import pandas as pd

    from baseline.training.state import StageRecord
    from baseline.vision.weights import Weights
else:
    StageRecord = dict[str, Any]

__all__ = [
    "DataSummary",
    "Manifest",
    "WeightsRecord",
    "build_manifest",
    "describe_device",
    "logger_config",
    "recipe_from_manifest",
    "source_name",
]


class DataSummary(TypedDict):
    """The images of a run."""

    classes: list[str]
    images: dict[str, int]
    """Number of images by split."""
    left_out: list[dict[Any, Any]]
    """`path`, `label` and `reason` of each image that could not be read."""
    sha256: str
    """Hash of `split.csv`: whether another run used the same images and splits."""


class WeightsRecord(TypedDict):
    """The weights that training started from."""

    arch: str
    path: str
    sha256: str
    origin: str


class Manifest(TypedDict, total=False):
    """Content of `manifest.json`, a plain dictionary. Manifests of older versions may lack all fields but two."""

    recipe: Required[dict[str, Any]]
    """The recipe with every `"auto"` resolved, in groups; `recipe_from_manifest` returns it as a `Recipe`."""
    metrics: Required[Metrics]
    format: int
    images: str | None
    """Name or absolute path of the images; None for a table in memory."""
    image_shape: tuple[int, ...]
    """Height and width of the images, in pixels, where the run was made on DataLoaders of the user's."""
    data: DataSummary
    weights: WeightsRecord | Literal["random"]
    stages: list[StageRecord]
    seconds: dict[str, float]
    """Seconds by step of the run."""
    time: dict[str, float]
    """The same with training divided into its parts, longest first."""
    bound: str
    """Which part took most of the time, and what makes it faster."""
    estimated_seconds: float
    calibration: dict[str, Any]
    """See `baseline.evaluation.calibration.calibration_report`."""
    probe: dict[str, Any]
    """Logistic regression on features of the frozen body, beside the result; see `baseline.runs.probe_reference`."""
    folds: dict[str, Any]
    """Cross-validation beside the result of few images; see `baseline.runs.probe_reference`."""
    thresholds: dict[str, float]
    """The threshold of each class, where they were chosen on the valid split; else all have that of the recipe."""
    cut_points: list[float]
    """Cut points of the expected class number, where they gain on the valid split; see `evaluation.cut_points`."""
    asked: RunRequest
    """What the run was started with."""
    own_parts: dict[str, list[str]]
    """Names of the caller's own transforms, loss, metrics and callbacks, by argument; left out if there are none."""
    reasons: dict[str, str]
    """Why each `"auto"` was resolved as it was, by field."""
    device: str
    threads: int
    """Number of threads that torch computed with; on a CPU, the last digits of a result depend on it."""
    versions: dict[str, str]
    finished: str
    """Date and time in ISO 8601, UTC."""


def recipe_from_manifest(run: Path, manifest: Mapping[str, Any]) -> Recipe:
    """Return the recipe in a run's manifest, or in the state of an unfinished run.

    Raises:
        OutputError: if it has a field that this version does not know.
    """
    try:
        return recipe_from_dict(upgrade_recipe(manifest["recipe"]))
    except RecipeError:
        raise incompatible_version(run) from None


def build_manifest(
    recipe: Recipe,
    images: Any,
    table: pd.DataFrame,
    unreadable: pd.DataFrame,
    weights: Weights | None,
    metrics: Metrics,
    stages: list[StageRecord],
    seconds: dict[str, float],
) -> Manifest:
    """Return the fields that the manifests of all runs have in common.

    Args:
        images: as they were given to `make_baseline`.
        table: the image table with its splits.
        unreadable: `path`, `label` and `reason` of the images that were left out.
        seconds: by part of the run.
    """
    return {
        "format": MANIFEST_FORMAT,
        "recipe": recipe.as_dict(),
        "images": source_name(images),
        "metrics": metrics,
        "seconds": seconds,
        "stages": stages,
        "data": _data_summary(table, unreadable, recipe.data.task),
        "weights": _weights_record(weights) if weights else "random",
        "device": describe_device(),
        "threads": thread_count(),
        "versions": package_versions(),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _weights_record(weights: Weights) -> WeightsRecord:
    return {"arch": weights.arch, "path": str(weights.path), "sha256": weights.sha256, "origin": weights.origin}


def _data_summary(table: pd.DataFrame, unreadable: pd.DataFrame, task: str) -> DataSummary:
    """Counts, and the sha256 of `split.csv`, which shows whether another run used the same images and splits."""
    from baseline.data.labels import classes_in

    return {
        "classes": classes_in(table, task),
        "images": count_by_split(table),
        "left_out": unreadable.to_dict("records"),
        "sha256": hashlib.sha256(split_to_csv(table).encode()).hexdigest(),
    }


def logger_config(recipe: Recipe, images: Any, table: pd.DataFrame) -> dict[str, Any]:
    """Return what loggers record of a run before it trains: recipe, images and machine, under flat names."""
    fields = {key: value for key, value in recipe.as_dict().items() if key not in ("options", "presets", "expected")}
    source = {"source": source_name(images) or "a table", **count_by_split(table)}
    machine = {"device": describe_device(), "version": package_versions()["fastai-baseline"]}
    return flatten_plain({**flatten_recipe(fields), "images": source, **machine})


def source_name(images: Any) -> str | None:
    """Return the name of a dataset or an absolute path that identifies the images; None for a DataFrame."""
    from baseline.data.sources.place import optional_module

    datasets, external = optional_module("datasets"), optional_module("external")
    if isinstance(images, str) and datasets and images in datasets.DATASETS:
        return images
    if isinstance(images, str) and external and external.is_external(images):
        return images
    return str(Path(images).expanduser().absolute()) if isinstance(images, str | Path) else None


def describe_device() -> str:
    """Return the name of the device, with the number of processes or threads: `x86_64 CPU, 2 threads`."""
    import torch

    count = f"{world_size()} x " if world_size() > 1 else ""
    if (device := device_type()) == "cuda":
        return count + torch.cuda.get_device_name()
    name = f"{count}{platform.processor() or platform.machine()}"
    return f"{name} CPU, {format_count(thread_count(), 'thread')}" if device == "cpu" else f"{name} GPU ({device})"
