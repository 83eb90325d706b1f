"""Run-time estimates.

Network + recipe -> how long it will take. This module knows throughput; it trains nothing.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from baseline.system import wait_for_gpu
from baseline.training.frozen import FreezePlan, FrozenOutputs, LayerSequence, frozen_precision
from baseline.training.lr_find import SWEEP_STEPS
from baseline.training.stages import step_precision
from baseline.vision.cache import ArrayCache
from baseline.vision.cpu_speedups import optimize_for_cpu
from baseline.vision.learner import mixed_precision
from baseline.vision.network import layer_groups
from baseline.vision.rng import preserve_rng_state

if TYPE_CHECKING:
    from fastai.learner import Learner

    from baseline.recipe.schema import Recipe
    from baseline.vision.network import Splitter

__all__ = ["Estimate", "Throughput", "estimate_run", "estimate_seconds"]

ENOUGH_SECONDS = 0.2
"""Seconds after which no further pass is measured: a pass that takes so long varies little."""

PROBE_PASSES = 300
"""Number of passes through the head that solving for it is counted as."""


@dataclass(frozen=True)
class Estimate:
    """Estimated seconds of training, by stage, of evaluation, and of the features of the probe beside the result."""

    stages: tuple[float, ...]
    evaluation: float
    reference: float = 0.0

    @property
    def total(self) -> float:
        return sum(self.stages) + self.evaluation + self.reference


MEASUREMENTS: dict[tuple, dict[tuple, float]] = {}
"""Seconds per image measured in this process: by network, batch and precision, and by the part of the network."""


class Throughput:
    """Seconds per image that parts of a network take on this machine, measured when first needed.

    Networks of the same layers share their measurements, so that of several runs in one process, such as those of a
    ladder or of several seeds, only the first measures.

    Args:
        model: the network; it is copied and stays unchanged.
        images: number of images per batch, at most that of the recipe.
        shape: height and width of the images in pixels; squares by default.
    """

    def __init__(
        self, model: nn.Sequential, splitter: Splitter, recipe: Recipe, images: int = 32, shape: Sequence[int] = ()
    ) -> None:
        self.image_shape = shape
        self.model, self.splitter, self.recipe = copy.deepcopy(model), splitter, recipe
        self.images = min(images, int(recipe.training.batch_size))
        self.network = LayerSequence(self.model, splitter, recipe.model.image_size)
        self.layers, self.device = self.network.layers, self.network.device
        groups, settings = [len(group) for group in self.network.groups], recipe.model
        network = (repr(model), *groups, self.device, torch.get_num_threads())
        batch = (self.images, settings.precision, settings.frozen_precision)
        self.measured = MEASUREMENTS.setdefault((*network, *batch), {})

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

        with step_precision(layers, self.recipe), optimize_for_cpu(layers, inputs):
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
        images = torch.rand(self.images, 3, *(self.image_shape or (size, size)), device=self.device)
        return images.contiguous(memory_format=torch.channels_last)

    def _autocast(self) -> torch.autocast:
        return mixed_precision(self.recipe.model.precision, self.device.type)

    def _seconds(self, run_pass: Callable[[], object], passes: int = 3) -> float:
        """Return the median seconds per image; a first pass, which sets up kernels and memory, is not counted."""
        durations: list[float] = []
        while len(durations) <= passes and sum(durations[1:]) < ENOUGH_SECONDS:
            start = time.perf_counter()
            run_pass()
            wait_for_gpu(self.device.type)
            durations.append(time.perf_counter() - start)
        return statistics.median(durations[1:]) / self.images


def estimate_seconds(
    throughput: Throughput,
    recipe: Recipe,
    images: Mapping[str, int],
    cached: Sequence[int] = (),
    own_parts: Sequence[str] = (),
) -> Estimate:
    """Estimate how long training and evaluation will take.

    Args:
        throughput: measured on the recipe's network.
        recipe: a recipe with every "auto" resolved.
        images: number of images by split.
        cached: numbers of the stages, from 1, whose outputs of frozen layers are in the cache already.
        own_parts: what the user added that has to run on the images of every epoch, so that stages are not cached.
    """
    plan = FreezePlan(throughput.network, recipe, images, ArrayCache(recipe.options.cache_gb), own_parts)
    stages = [_stage_seconds(throughput, plan, number, number in cached) for number in range(1, len(recipe.stages) + 1)]
    views = 1 + sum({"flip": 1, "five_crops": 5}[view] for view in recipe.evaluation.tta)
    evaluated = images["valid"] + images.get("test", 0)
    evaluation = evaluated * views * throughput.forward(0, recipe.model.image_size)
    return Estimate(tuple(stages), evaluation, 0.0 if 1 in cached else _reference_seconds(throughput, plan))


def estimate_run(learn: Learner, recipe: Recipe, images: Mapping[str, int], shape: tuple[int, ...] = ()) -> Estimate:
    """Estimate how long a run of the recipe will take with this Learner, on this machine, with what is in the cache.

    Args:
        images: number of images by split.
        shape: height and width of the images, where they are not those of the recipe.
    """
    throughput, frozen = Throughput(learn.model, learn.splitter, recipe, shape=shape), FrozenOutputs(learn, recipe)
    return estimate_seconds(throughput, recipe, images, frozen.cached_stages(), frozen.plan.own_parts)


def _reference_seconds(throughput: Throughput, plan: FreezePlan) -> float:
    """Return the seconds of the features that the probe beside a result needs; see `runs.probe_reference`."""
    recipe, images = plan.recipe, plan.images
    if recipe.stages[0].trains != "probe" or len(recipe.stages) == 1 or 1 not in plan.stages:
        return 0.0
    views = 2 if "flip" in recipe.evaluation.tta else 1
    rows = images.get("test", 0) or images["valid"]
    return rows * views * throughput.frozen(plan.stages[1][0], recipe.model.image_size)


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
    if stage.trains == "probe":
        rows = PROBE_PASSES * images["train"] * (2 if view.kind == "both" else 1)
        return seconds + (rows + images["valid"]) * throughput.forward(cut, large)
    steps = stage.epochs * images["train"] * (2 if stage.views else 1)
    if stage.lr == "find":
        steps += SWEEP_STEPS * min(int(recipe.training.batch_size), images["train"])
    step = throughput.step(cut, plan.first_trained_group(number), small, stage.batch_norm == "train")
    return seconds + steps * step + stage.epochs * images["valid"] * throughput.forward(cut, large)
