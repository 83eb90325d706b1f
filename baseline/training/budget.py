"""Network + recipe -> how long it will take, and the recipe that fits a budget. Knows rates; trains nothing."""

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
from baseline.recipe.schema import describe_trained
from baseline.training.frozen import FreezePlan, LayerSequence, frozen_precision
from baseline.training.lr_find import SWEEP_STEPS
from baseline.vision.cache import ArrayCache
from baseline.vision.cpu_speedups import optimize_for_cpu
from baseline.vision.learner import mixed_precision
from baseline.vision.rng import preserve_rng_state

if TYPE_CHECKING:
    import pandas as pd

    from baseline.progress import Progress
    from baseline.recipe.schema import Recipe
    from baseline.vision.network import Splitter

__all__ = ["Estimate", "Throughput", "estimate_seconds", "fit_to_budget"]


IMAGE_SIZES = (64, 80, 96, 112, 128, 160, 192, 224, 256, 288)

EPOCHS = (1, 2, 3, 4, 6, 8, 12)

HEAD_EPOCHS = 10
"""Of a plan that trains a head and no more."""

SAFETY_FACTOR = 1.15
"""A plan is taken to need so many times its estimate."""


@dataclass(frozen=True)
class Estimate:
    """Seconds of training, by stage, and of evaluation."""

    stages: tuple[float, ...]
    evaluation: float

    @property
    def total(self) -> float:
        return sum(self.stages) + self.evaluation


class Throughput:
    """Seconds an image that parts of a network take on this machine, each measured when it is first asked for.

    Args:
        model: is copied, and stays as it is.
        images: in a batch, at most the recipe's.
    """

    def __init__(self, model: nn.Sequential, splitter: Splitter, recipe: Recipe, images: int = 32) -> None:
        self.model, self.splitter, self.recipe = copy.deepcopy(model), splitter, recipe
        self.images = min(images, int(recipe.batch_size))
        self.network = LayerSequence(self.model, splitter)
        self.layers, self.device = self.network.layers, self.network.device
        self.known: dict[tuple, float] = {}

    def frozen(self, cut: int, size: int) -> float:
        """Forward through the first layers, in the format of frozen ones."""
        return self._remembered(("frozen", cut, size), lambda: self._frozen(cut, size))

    def forward(self, cut: int, size: int) -> float:
        """Forward through the layers from the cut on."""
        return self._remembered(("forward", cut, size), lambda: self._forward(cut, size))

    def step(self, cut: int, first: int, size: int, moving: bool) -> float:
        """Forward and backward through the layers from the cut on; groups from `first` on learn."""
        return self._remembered(("step", cut, first, size, moving), lambda: self._step(cut, first, size, moving))

    def _remembered(self, key: tuple, measure: Callable[[], float]) -> float:
        if key not in self.known:
            with preserve_rng_state():
                self.known[key] = measure()
        return self.known[key]

    def _frozen(self, cut: int, size: int) -> float:
        before, images = nn.Sequential(*self.layers[:cut]).eval(), self._images(size)
        with (
            torch.no_grad(),
            frozen_precision(self.recipe, self.device.type),
            optimize_for_cpu(before, images, trainable=False),
        ):
            return self._seconds(lambda: before(images))

    def _forward(self, cut: int, size: int) -> float:
        rest, inputs = nn.Sequential(*self.layers[cut:]).eval(), self._inputs(cut, size)
        with torch.no_grad(), self._format(), optimize_for_cpu(rest, inputs, trainable=False):
            return self._seconds(lambda: rest(inputs))

    def _step(self, cut: int, first: int, size: int, moving: bool) -> float:
        rest, inputs = nn.Sequential(*self.layers[cut:]), self._inputs(cut, size)
        for number, group in enumerate(self.splitter(self.model)):
            for parameter in group:
                parameter.requires_grad_(number >= first)

        def step() -> None:
            with self._format():
                outputs = rest(inputs)
            outputs.float().square().mean().backward()

        with optimize_for_cpu(rest, inputs):
            rest.train(moving)
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

    def _format(self) -> torch.autocast:
        return mixed_precision(self.recipe.precision, self.device.type)

    def _seconds(self, pass_once: Callable[[], object], passes: int = 3) -> float:
        """Of so many passes the median's, an image; the first, which also sets up kernels and memory, is not counted."""
        taken = []
        for _ in range(passes + 1):
            began = time.perf_counter()
            pass_once()
            if self.device.type == "cuda":
                torch.cuda.synchronize()
            taken.append(time.perf_counter() - began)
        return sorted(taken[1:])[passes // 2] / self.images


def estimate_seconds(
    rates: Throughput, recipe: Recipe, images: Mapping[str, int], ready: Sequence[int] = ()
) -> Estimate:
    """About how long training and evaluation will take.

    Args:
        recipe: with every "auto" settled.
        images: how many there are, by split.
        ready: numbers of stages, from 1, whose outputs of frozen layers are in the cache already.
    """
    plan = FreezePlan(rates.network, recipe, images, ArrayCache(recipe.cache_gb))
    stages = [_stage_seconds(rates, plan, number, number in ready) for number in range(1, len(recipe.stages) + 1)]
    views = 1 + sum({"flip": 1, "five_crops": 5}[view] for view in recipe.tta)
    evaluated = images["valid"] + images.get("test", 0)
    return Estimate(tuple(stages), evaluated * views * rates.forward(0, recipe.image_size))


def _stage_seconds(rates: Throughput, plan: FreezePlan, number: int, ready: bool) -> float:
    recipe, images = plan.recipe, plan.images
    stage = recipe.stages[number - 1]
    small, large = stage.image_size or recipe.image_size, recipe.image_size
    cut, view = plan.stages.get(number, (0, plan.full_view))
    seconds = 0.0
    shared = any(cut in plan.shared_cuts(n) and plan.stages[n][1] == view for n in plan.stages if n < number)
    if cut and not ready and not shared:
        views = 2 if view.kind == "both" else 1
        seconds = images["train"] * views * rates.frozen(cut, small) + images["valid"] * rates.frozen(cut, large)
    steps = stage.epochs * images["train"] * (2 if stage.views else 1)
    if stage.lr == "find":
        steps += SWEEP_STEPS * min(int(recipe.batch_size), images["train"])
    step = rates.step(cut, plan.first_trained_group(number), small, stage.batch_norm == "moving")
    return seconds + steps * step + stage.epochs * images["valid"] * rates.forward(cut, large)


def fit_to_budget(
    rates: Throughput, bases: Sequence[Recipe], images: Mapping[str, int], seconds: float, *, resizable: bool = True
) -> tuple[Recipe, str]:
    """Of all plans made from these recipes the one that promises most and fits into the seconds, and why.

    Plans differ in image size and in the epochs of the last stage, or train a head alone where a recipe begins with
    one. They are thought to leave an error in proportion to `expected_error`. Rates are measured at one size first and taken
    in proportion to the pixels; the plan that is taken was measured at its own.

    Args:
        bases: recipes with every "auto" settled, such as a recipe's presets.
        resizable: whether the image size may be another than the recipe's.

    Raises:
        RecipeError: if even the quickest plan takes longer.
    """
    bases = [*bases, *(_head_only(base) for base in bases if base.stages[0].trains == "head")]
    plans = sorted(
        (p for base in bases for p in _candidate_recipes(base, bases, resizable, images["train"])), key=expected_error
    )
    rough = _ScaledThroughput(rates, min(plan.image_size for plan in plans))
    least = float("inf")
    for plan in plans:
        needed = 0.0
        for measured in (rough, rates):
            needed = SAFETY_FACTOR * estimate_seconds(measured, plan, images).total
            if needed > seconds:
                break
        if needed <= seconds:
            stages = ", then ".join(f"{describe_trained(s.trains)} (epochs: {s.epochs})" for s in plan.stages)
            spare = f"{needed:.0f} of {seconds:.0f} s left, with {SAFETY_FACTOR - 1:.0%} to spare"
            return plan, f"{plan.image_size} px, {stages}; {spare}"
        least = min(least, needed)
    raise RecipeError(
        f"The budget leaves {max(seconds, 0):.1f} s for training and evaluation; the quickest plan needs about "
        f"{least:.1f} s here. Give a longer --budget, or --images-per-class."
    )


def expected_error(plan: Recipe) -> float:
    """The error that a plan is thought to leave, on a scale of its own.

    From runs on CIFAR-10 (45,000 images, EfficientNet-Lite0): a head alone leaves 2.3 times the error of one epoch of
    the last layers; the error falls with size to the power 0.94 (80 px 9.5 %, 96 px 8.0 %) and with epochs to the power
    0.22 (96 px, three epochs 6.3 %).
    """
    last = plan.stages[-1]
    tuned = 1.0 if last.trains != "head" else 2.3
    return tuned * plan.image_size**-0.94 * (last.epochs**-0.22 if last.trains != "head" else 1.0)


def _head_only(base: Recipe) -> Recipe:
    head = base.stages[0]
    return base.changed(stages=(dataclasses.replace(head, epochs=max(head.epochs, HEAD_EPOCHS)),))


def _candidate_recipes(base: Recipe, bases: Sequence[Recipe], resizable: bool, images: int) -> Iterator[Recipe]:
    largest = max(recipe.image_size for recipe in bases)
    sizes = {base.image_size, *(size for size in IMAGE_SIZES if size <= largest)} if resizable else {base.image_size}
    *first, last = resolve_epochs(base.stages, images, int(base.batch_size))[0]
    least = dataclasses.replace(last, epochs=1).epochs_of(images, int(base.batch_size))
    epochs = {max(count, least) for count in EPOCHS} if last.trains != "head" else {last.epochs}
    for size, count in itertools.product(sorted(sizes), sorted(epochs)):
        stages = [*first, dataclasses.replace(last, epochs=count)]
        stages = [dataclasses.replace(stage, image_size=min(stage.image_size, size)) for stage in stages]
        yield base.changed(image_size=size, stages=tuple(stages))


class _ScaledThroughput(Throughput):
    """Rates at any size, from those measured at one: in proportion to the pixels."""

    def __init__(self, rates: Throughput, size: int) -> None:
        self.rates, self.size, self.network = rates, size, rates.network

    def frozen(self, cut: int, size: int) -> float:
        return self.rates.frozen(cut, self.size) * (size / self.size) ** 2

    def forward(self, cut: int, size: int) -> float:
        return self.rates.forward(cut, self.size) * (size / self.size) ** 2

    def step(self, cut: int, first: int, size: int, moving: bool) -> float:
        return self.rates.step(cut, first, self.size, moving) * (size / self.size) ** 2


def plan_for_budget(
    chosen: Recipe, table: pd.DataFrame, end: float, resizable: bool, progress: Progress
) -> tuple[Recipe, str]:
    """The recipe made to end by then, seconds of `time.perf_counter`, and why it is what it is."""
    import torch
    from fastai.torch_core import default_device

    from baseline.data.labels import classes_in
    from baseline.training.budget import Throughput, fit_to_budget
    from baseline.vision.decoded import estimate_decoding_seconds
    from baseline.vision.network import build_network

    model, splitter = build_network(chosen.arch, len(classes_in(table, chosen.labels)), None, chosen.head)
    model = model.to(default_device()).to(memory_format=torch.channels_last)
    presets = ("standard", *chosen.presets) if chosen.presets else ()
    bases = [chosen.with_preset(preset) for preset in presets] or [chosen]
    largest = max(bases, key=lambda base: base.image_size)
    left = end - time.perf_counter() - reserve_seconds(0) - estimate_decoding_seconds(table, largest)
    plan, why = fit_to_budget(
        Throughput(model, splitter, chosen), bases, count_by_split(table), left, resizable=resizable
    )
    progress.log(f"budget {chosen.budget}: {why}")
    return plan.changed(budget="", presets={}), why


def reserve_seconds(evaluation: float) -> float:
    """Seconds before the end of a budget that are kept for evaluation and for writing the results."""
    return 1.3 * evaluation + 8
