"""Run-time estimates, and the recipe that fits a time budget.

Network + recipe -> how long it will take. This module knows throughput; it trains nothing.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from baseline.data.prepare import count_by_split
from baseline.errors import RecipeError
from baseline.recipe.auto import resolve_epochs
from baseline.recipe.describe import describe_trained
from baseline.training.frozen import FreezePlan, LayerSequence, frozen_precision
from baseline.training.lr_find import SWEEP_STEPS
from baseline.vision.cache import ArrayCache
from baseline.vision.cpu_speedups import optimize_for_cpu
from baseline.vision.learner import mixed_precision
from baseline.vision.network import layer_groups
from baseline.vision.rng import preserve_rng_state

if TYPE_CHECKING:
    import pandas as pd

    from baseline.progress import Progress
    from baseline.recipe.schema import Recipe
    from baseline.vision.network import Splitter

__all__ = ["Estimate", "Throughput", "estimate_seconds", "fit_to_budget"]


IMAGE_SIZES = (64, 80, 96, 112, 128, 160, 192, 224, 256, 288)
"""Image sizes, in pixels, of the plans that a budget is fitted with."""

EPOCHS = (1, 2, 3, 4, 6, 8, 12)
"""Numbers of epochs of the last stage in these plans."""

HEAD_EPOCHS = 10
"""Number of epochs of a plan that trains only the head."""

SAFETY_FACTOR = 1.15
"""Factor by which estimates are multiplied before they are compared with a budget."""


@dataclass(frozen=True)
class Estimate:
    """Estimated seconds of training, by stage, and of evaluation."""

    stages: tuple[float, ...]
    evaluation: float

    @property
    def total(self) -> float:
        return sum(self.stages) + self.evaluation


class Throughput:
    """Seconds per image that parts of a network take on this machine, measured when first needed.

    Args:
        model: the network; it is copied and stays unchanged.
        images: number of images per batch, at most that of the recipe.
    """

    def __init__(self, model: nn.Sequential, splitter: Splitter, recipe: Recipe, images: int = 32) -> None:
        self.model, self.splitter, self.recipe = copy.deepcopy(model), splitter, recipe
        self.images = min(images, int(recipe.training.batch_size))
        self.network = LayerSequence(self.model, splitter, recipe.model.image_size)
        self.layers, self.device = self.network.layers, self.network.device
        self.measured: dict[tuple, float] = {}

    def frozen(self, cut: int, size: int) -> float:
        """Return the seconds per image of a forward pass through the frozen layers, those before the cut."""
        return self._measure_once(("frozen", cut, size), lambda: self._frozen(cut, size))

    def forward(self, cut: int, size: int) -> float:
        """Return the seconds per image of a forward pass through the layers from the cut on."""
        return self._measure_once(("forward", cut, size), lambda: self._forward(cut, size))

    def step(self, cut: int, first: int, size: int, update_batch_norm: bool) -> float:
        """Return the seconds per image of a training step on the layers from the cut on.

        Layer groups from `first` on are trained; `update_batch_norm` updates the statistics of BatchNorm layers.
        """
        return self._measure_once(
            ("step", cut, first, size, update_batch_norm), lambda: self._step(cut, first, size, update_batch_norm)
        )

    def _measure_once(self, key: tuple, measure: Callable[[], float]) -> float:
        if key not in self.measured:
            with preserve_rng_state():
                self.measured[key] = measure()
        return self.measured[key]

    def _frozen(self, cut: int, size: int) -> float:
        layers, images = nn.Sequential(*self.layers[:cut]).eval(), self._images(size)
        with (
            torch.no_grad(),
            frozen_precision(self.recipe, self.device.type),
            optimize_for_cpu(layers, images, trainable=False),
        ):
            return self._seconds(lambda: layers(images))

    def _forward(self, cut: int, size: int) -> float:
        layers, inputs = nn.Sequential(*self.layers[cut:]).eval(), self._inputs(cut, size)
        with torch.no_grad(), self._autocast(), optimize_for_cpu(layers, inputs, trainable=False):
            return self._seconds(lambda: layers(inputs))

    def _step(self, cut: int, first: int, size: int, update_batch_norm: bool) -> float:
        layers, inputs = nn.Sequential(*self.layers[cut:]), self._inputs(cut, size)
        for number, group in enumerate(layer_groups(self.model, self.splitter)):
            for parameter in group:
                parameter.requires_grad_(number >= first)

        def step() -> None:
            with self._autocast():
                outputs = layers(inputs)
            outputs.float().square().mean().backward()

        with optimize_for_cpu(layers, inputs):
            layers.train(update_batch_norm)
            try:
                return self._seconds(step)
            finally:
                self.model.zero_grad(set_to_none=True)
                self.model.requires_grad_(True).eval()

    @torch.no_grad()
    def _inputs(self, cut: int, size: int) -> torch.Tensor:
        return nn.Sequential(*self.layers[:cut]).eval()(self._images(size))

    def _images(self, size: int) -> torch.Tensor:
        images = torch.rand(self.images, 3, size, size, device=self.device)
        return images.contiguous(memory_format=torch.channels_last)

    def _autocast(self) -> torch.autocast:
        return mixed_precision(self.recipe.model.precision, self.device.type)

    def _seconds(self, run_pass: Callable[[], object], passes: int = 3) -> float:
        """Return the median seconds per image; a first pass, which sets up kernels and memory, is not counted."""
        durations = []
        for _ in range(passes + 1):
            start = time.perf_counter()
            run_pass()
            if self.device.type == "cuda":
                torch.cuda.synchronize()
            durations.append(time.perf_counter() - start)
        return sorted(durations[1:])[passes // 2] / self.images


def estimate_seconds(
    throughput: Throughput, recipe: Recipe, images: Mapping[str, int], cached: Sequence[int] = ()
) -> Estimate:
    """Estimate how long training and evaluation will take.

    Args:
        throughput: measured on the recipe's network.
        recipe: a recipe with every "auto" resolved.
        images: number of images by split.
        cached: numbers of the stages, from 1, whose outputs of frozen layers are in the cache already.
    """
    plan = FreezePlan(throughput.network, recipe, images, ArrayCache(recipe.options.cache_gb))
    stages = [_stage_seconds(throughput, plan, number, number in cached) for number in range(1, len(recipe.stages) + 1)]
    views = 1 + sum({"flip": 1, "five_crops": 5}[view] for view in recipe.evaluation.tta)
    evaluated = images["valid"] + images.get("test", 0)
    return Estimate(tuple(stages), evaluated * views * throughput.forward(0, recipe.model.image_size))


def _stage_seconds(throughput: Throughput, plan: FreezePlan, number: int, is_cached: bool) -> float:
    recipe, images = plan.recipe, plan.images
    stage = recipe.stages[number - 1]
    small, large = stage.image_size or recipe.model.image_size, recipe.model.image_size
    cut, view = plan.stages.get(number, (0, plan.full_view))
    seconds = 0.0
    is_shared = any(cut in plan.shared_cuts(n) and plan.stages[n][1] == view for n in plan.stages if n < number)
    if cut and not is_cached and not is_shared:
        views = 2 if view.kind == "both" else 1
        seconds = images["train"] * views * throughput.frozen(cut, small)
        seconds += images["valid"] * throughput.frozen(cut, large)
    steps = stage.epochs * images["train"] * (2 if stage.views else 1)
    if stage.lr == "find":
        steps += SWEEP_STEPS * min(int(recipe.training.batch_size), images["train"])
    step = throughput.step(cut, plan.first_trained_group(number), small, stage.batch_norm == "train")
    return seconds + steps * step + stage.epochs * images["valid"] * throughput.forward(cut, large)


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
    bases = [*bases, *(_head_only(base) for base in bases if base.stages[0].trains == "head")]
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
        f"{shortest:.1f} s on this machine. Give a longer --budget, or --images-per-class."
    )


def expected_error(plan: Recipe) -> float:
    """Return the expected error of a plan, on a relative scale.

    Fitted to runs on CIFAR-10 (45,000 images, EfficientNet-Lite0): training only the head leaves 2.3 times the error of
    one epoch of the last layers; the error falls with the image size to the power 0.94 (80 px 9.5 %, 96 px 8.0 %) and
    with the epochs to the power 0.22 (96 px, three epochs 6.3 %).
    """
    last = plan.stages[-1]
    relative_error = 1.0 if last.trains != "head" else 2.3
    return relative_error * plan.model.image_size**-0.94 * (last.epochs**-0.22 if last.trains != "head" else 1.0)


def _head_only(base: Recipe) -> Recipe:
    head = base.stages[0]
    return base.changed(stages=(dataclasses.replace(head, epochs=max(head.epochs, HEAD_EPOCHS)),))


def _candidate_recipes(base: Recipe, bases: Sequence[Recipe], resizable: bool, images: int) -> Iterator[Recipe]:
    largest = max(recipe.model.image_size for recipe in bases)
    sizes = (
        {base.model.image_size, *(size for size in IMAGE_SIZES if size <= largest)}
        if resizable
        else {base.model.image_size}
    )
    *first, last = resolve_epochs(base.stages, images, int(base.training.batch_size))[0]
    min_epochs = dataclasses.replace(last, epochs=1).epochs_of(images, int(base.training.batch_size))
    epochs = {max(count, min_epochs) for count in EPOCHS} if last.trains != "head" else {last.epochs}
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
    from baseline.vision.decoded import estimate_decoding_seconds
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
