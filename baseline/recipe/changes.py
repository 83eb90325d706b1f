"""The keyword arguments that change a recipe, for type checkers: `make_baseline(images, image_size=128)`.

A test compares the keys and types with the fields in `baseline.recipe.schema`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict

from baseline.recipe.schema import Augment, RunOptions, Stage

__all__ = ["RecipeChanges"]


class RecipeChanges(TypedDict, total=False):
    """Fields of a recipe by flat name, whole groups, and the preset."""

    preset: Literal["auto", "instant", "quick", "standard", "best"]
    name: str
    title: str
    # data
    data: str | Mapping[str, Any]
    image_col: str
    label_col: str
    group_col: str
    split_col: str
    image_dir: str
    label_from: str
    source: str
    label_delim: str
    bins: int
    missing: Literal["auto", "drop", "error"]
    encoding: str
    min_per_class: int
    other: str
    task: Literal["auto", "single", "multilabel"]
    positive: str
    images_per_class: int
    value_range: str | Sequence[float]
    fixes: str | Path | Sequence[str | Path]
    audit: Literal["tell", "strict", "none"]
    # split
    split: str | Mapping[str, Any]
    split_file: str
    fold: int
    valid_fraction: float
    test_fraction: float
    leaks: Literal["keep", "drop"]
    # model
    model: Mapping[str, Any]
    arch: str
    pretrained: bool
    weights: str
    head: Literal["linear", "fastai"]
    image_size: int
    small_set_size: int
    resize: Literal["squish", "crop", "pad"]
    precision: Literal["auto", "float32", "float16", "bfloat16"]
    frozen_precision: Literal["auto", "float32", "bfloat16"]
    # training
    training: Mapping[str, Any]
    batch_size: int | Literal["auto"]
    class_balance: Literal["none", "weights", "sampler"]
    freeze: Literal["features", "fastai"]
    loss: Literal["cross_entropy", "focal"]
    label_smoothing: float
    mixup: float
    cutmix: float
    weight_decay: float | Literal["auto"]
    ema: float
    patience: int
    budget: str
    augment: Augment | Mapping[str, Any]
    stages: Sequence[Stage | Mapping[str, Any]]
    # evaluation
    evaluation: Mapping[str, Any]
    tta: Sequence[Literal["flip", "five_crops"]]
    tta_choice: Literal["auto", "always"]
    metric: str
    threshold: float
    thresholds: Literal["auto", "one"]
    # options
    options: RunOptions | Mapping[str, Any]
    workers: int
    cache_gb: float
    loggers: str | Sequence[str]
    presets: Mapping[str, Mapping[str, Any]]
    expected: Mapping[str, Any]
