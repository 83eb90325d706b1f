"""The recipe that fits a time budget: image size and epochs by estimates of their run time."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from baseline.data.prepare import count_by_split
from baseline.errors import RecipeError
from baseline.files import file_identities
from baseline.progress import Progress
from baseline.recipe.auto import resolve_epochs
from baseline.recipe.describe import describe_trained
from baseline.training.budget import Throughput, estimate_seconds
from baseline.vision.cache import ArrayCache
from baseline.vision.decoded import cache_key, decode_images

if TYPE_CHECKING:
    import pandas as pd

    from baseline.recipe.schema import Recipe

__all__ = ["expected_error", "fit_to_budget", "plan_for_budget", "reserve_seconds"]


IMAGE_SIZES = (64, 80, 96, 112, 128, 160, 192, 224, 256, 288)
"""Image sizes, in pixels, of the plans that a budget is fitted with."""

EPOCHS = (1, 2, 3, 4, 6, 8, 12)
"""Numbers of epochs of the last stage in these plans."""

HEAD_EPOCHS = 10
"""Number of epochs of a plan that trains only the head."""

SAFETY_FACTOR = 1.15
"""Factor by which estimates are multiplied before they are compared with a budget."""


def fit_to_budget(
    throughput: Throughput,
    bases: Sequence[Recipe],
    images: Mapping[str, int],
    seconds: float,
    *,
    resizable: bool = True,
) -> tuple[Recipe, str]:
    """Return the most promising plan that fits the time, and the reason for the choice.

    Plans are variants of the given recipes: they differ in image size and in the epochs of the last stage, or train
    only the head if the recipe starts with one. They are ranked by `expected_error`. Throughput is first measured at
    one image size and scaled by the number of pixels; the chosen plan was measured at its own size.

    Args:
        throughput: measures the network of the recipes.
        bases: recipes with every "auto" resolved, such as the presets of a recipe.
        images: number of images by split.
        seconds: the time for training and evaluation.
        resizable: whether the image size may differ from that of the recipe.

    Raises:
        RecipeError: if even the fastest plan takes longer.
    """
    bases = [*bases, *(_head_only(base) for base in bases if base.stages[0].is_head)]
    plans = sorted(
        (p for base in bases for p in _candidate_recipes(base, bases, resizable, images["train"])), key=expected_error
    )
    scaled = _ScaledThroughput(throughput, min(plan.model.image_size for plan in plans))
    shortest = float("inf")
    for plan in plans:
        needed = 0.0
        for measured in (scaled, throughput):
            needed = SAFETY_FACTOR * estimate_seconds(measured, plan, images).total
            if needed > seconds:
                break
        if needed <= seconds:
            stages = ", then ".join(f"{describe_trained(s.trains)} (epochs: {s.epochs})" for s in plan.stages)
            margin = f"needs {needed:.0f} of the {seconds:.0f} s left, including a margin of {SAFETY_FACTOR - 1:.0%}"
            return plan, f"{plan.model.image_size} px, {stages}; {margin}"
        shortest = min(shortest, needed)
    raise RecipeError(
        f"The budget leaves {max(seconds, 0):.1f} s for training and evaluation; the fastest plan needs about "
        f"{shortest:.1f} s on this machine. Use a longer --budget, or --images-per-class."
    )


def expected_error(plan: Recipe) -> float:
    """Return the expected error of a plan, on a relative scale.

    Fitted to runs on CIFAR-10 (45,000 images, EfficientNet-Lite0): training only the head leaves 2.3 times the error of
    one epoch of the last layers; the error falls with the image size to the power 0.94 (80 px 9.5%, 96 px 8.0%) and
    with the epochs to the power 0.22 (96 px, three epochs 6.3%).
    """
    last = plan.stages[-1]
    relative_error = 2.3 if last.is_head else last.epochs**-0.22
    return relative_error * plan.model.image_size**-0.94


def _head_only(base: Recipe) -> Recipe:
    head = base.stages[0]
    epochs = 1 if head.trains == "probe" else max(head.epochs, HEAD_EPOCHS)
    return base.changed(stages=(dataclasses.replace(head, epochs=epochs),))


def _candidate_recipes(base: Recipe, bases: Sequence[Recipe], resizable: bool, images: int) -> Iterator[Recipe]:
    largest = max(recipe.model.image_size for recipe in bases)
    sizes = (
        {base.model.image_size, *(size for size in IMAGE_SIZES if size <= largest)}
        if resizable
        else {base.model.image_size}
    )
    *first, last = resolve_epochs(base.stages, images, int(base.training.batch_size))[0]
    min_epochs = dataclasses.replace(last, epochs=1).epochs_of(images, int(base.training.batch_size))
    epochs = {max(count, min_epochs) for count in EPOCHS} if not last.is_head else {last.epochs}
    for size, count in itertools.product(sorted(sizes), sorted(epochs)):
        stages = [*first, dataclasses.replace(last, epochs=count)]
        stages = [dataclasses.replace(stage, image_size=min(stage.image_size, size)) for stage in stages]
        yield base.changed(image_size=size, stages=tuple(stages))


class _ScaledThroughput(Throughput):
    """Throughput at any image size, scaled by the number of pixels from measurements at one size."""

    def __init__(self, throughput: Throughput, size: int) -> None:
        self.base, self.size, self.network = throughput, size, throughput.network

    def frozen(self, cut: int, size: int) -> float:
        return self.base.frozen(cut, self.size) * (size / self.size) ** 2

    def forward(self, cut: int, size: int) -> float:
        return self.base.forward(cut, self.size) * (size / self.size) ** 2

    def step(self, cut: int, first: int, size: int, update_batch_norm: bool) -> float:
        return self.base.step(cut, first, self.size, update_batch_norm) * (size / self.size) ** 2


def plan_for_budget(
    recipe: Recipe, table: pd.DataFrame, end: float, resizable: bool, progress: Progress
) -> tuple[Recipe, str]:
    """Return the recipe changed so that the run ends by `end` (seconds of `time.perf_counter`), and the reason."""
    from fastai.torch_core import default_device

    from baseline.data.labels import classes_in
    from baseline.vision.network import build_network
    from baseline.vision.resolve import resolve_image_sizes
    from baseline.vision.sizes import size_problem

    classes = classes_in(table, recipe.data.task)
    model, splitter = build_network(
        recipe.model.arch, len(classes), None, recipe.model.head, image_size=recipe.model.image_size, dynamic=True
    )
    model = model.to(default_device()).to(memory_format=torch.channels_last)
    presets = ("standard", *recipe.presets) if recipe.presets else ()
    bases = [recipe.with_preset(preset) for preset in presets] or [recipe]
    if any(size_problem(recipe.model.arch, recipe.model.image_size, stage_size=size) for size in IMAGE_SIZES[:2]):
        resizable = False  # one network cannot stand for the others
        bases = [resolve_image_sizes(base.changed(image_size=recipe.model.image_size))[0] for base in bases]
    largest = max(bases, key=lambda base: base.model.image_size)
    seconds_left = end - time.perf_counter() - reserve_seconds(0) - estimate_decoding_seconds(table, largest)
    plan, reason = fit_to_budget(
        Throughput(model, splitter, recipe), bases, count_by_split(table), seconds_left, resizable=resizable
    )
    progress.log(f"budget {recipe.training.budget}: {reason}")
    return plan.changed(budget="", presets={}), reason


def reserve_seconds(evaluation: float) -> float:
    """Return the seconds of a budget that are reserved for evaluation and for writing the results."""
    return 1.3 * evaluation + 8


def estimate_decoding_seconds(table: pd.DataFrame, recipe: Recipe, samples: int = 32) -> float:
    """Estimate how long decoding the table's images will take, from a few of them; 0 if they are in the cache."""
    paths = sorted(set(table["path"]))
    if ArrayCache(recipe.options.cache_gb).has(cache_key(file_identities(paths), recipe)):
        return 0.0
    sample = paths[:: max(1, len(paths) // samples)]
    pixels = np.empty((len(sample), recipe.decoded_size, recipe.decoded_size, 3), dtype=np.uint8)
    start = time.perf_counter()
    decode_images(sample, pixels, recipe, Progress())
    return (time.perf_counter() - start) / len(sample) * len(paths)
