"""Outputs of a network's frozen first layers, computed once, and Learners that train the rest on them. Knows no epochs.

A stage that trains the head, or the last layer groups with still BatchNorm statistics, leaves everything before as it
is; running it again for every epoch is waste. `FrozenOutputs` computes what comes out of the frozen layers once an image
and view, in one pass for all the stages that can use it: maps as float16, features as float32. Outputs of pretrained
layers are kept in the cache, for the next run; others, and where the cache takes no more, in memory. What cannot be
kept, or must not (random changes of the images other than mirroring), is trained the usual way.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.vision.learner import TimmBody
from torch import nn

from baseline.errors import RecipeError
from baseline.progress import Progress
from baseline.recipe.schema import Stage
from baseline.system import total_memory_bytes
from baseline.vision.augment import is_cacheable, resize_batch
from baseline.vision.cache import ArrayCache, file_fingerprint
from baseline.vision.cpu_speedups import optimize_for_cpu
from baseline.vision.dataloaders import BatchLoader, BatchSource, encode_targets, split_loader
from baseline.vision.learner import mixed_precision
from baseline.vision.network import device_of
from baseline.vision.rng import preserve_rng_state
from baseline.vision.weights import normalisation

if TYPE_CHECKING:
    from baseline.recipe.schema import Recipe
    from baseline.vision.network import Splitter

__all__ = [
    "FreezePlan",
    "FrozenOutputs",
    "LayerSequence",
    "embeddings",
    "find_layers",
    "frozen_precision",
    "timed_embeddings",
]


MEMORY_FRACTION = 1 / 4
"""Of the machine's memory, for outputs that are kept there."""


class InputView(NamedTuple):
    """How images are seen: plain, mirrored by chance (either), or both, one below the other; and how large."""

    kind: str
    size: int


class LayerSequence:
    """A network as layers that run one after the other, with its layer groups; looked at once for many plans.

    Args:
        splitter: from the network to its layer groups.
    """

    def __init__(self, model: nn.Sequential, splitter: Splitter) -> None:
        self.layers = find_layers(model)
        self.groups = [{id(p) for p in group} for group in splitter(model)]
        self.device = device_of(model)
        self.shapes: dict[tuple[int, int], tuple[tuple[int, ...], type]] = {}

    def shape(self, cut: int, size: int) -> tuple[tuple[int, ...], type]:
        """Shape, channels last, and type of what is kept of one image at the cut."""
        if (cut, size) not in self.shapes:
            with torch.no_grad():
                inputs = torch.zeros(1, 3, size, size, device=self.device)
                output = nn.Sequential(*self.layers[:cut]).eval()(inputs)
            _, *rest = output.shape if output.ndim != 4 else output.permute(0, 2, 3, 1).shape
            self.shapes[cut, size] = tuple(rest), np.float16 if output.ndim == 4 else np.float32
        return self.shapes[cut, size]


class FreezePlan:
    """What each stage of a recipe runs on: whole images, or kept outputs at a cut, seen in a view.

    Stages are named by their number in the recipe, from 1; `stages` has those that run on kept outputs.

    Args:
        images: how many there are, by split.

    Raises:
        RecipeError: if a stage trains more layer groups than the network has.
    """

    def __init__(self, network: LayerSequence, recipe: Recipe, images: Mapping[str, int], cache: ArrayCache) -> None:
        self.network, self.recipe, self.images, self.cache = network, recipe, images, cache
        self.layers, self.groups = network.layers, network.groups
        for number, stage in enumerate(recipe.stages, 1):
            if (trained := stage.groups(len(self.groups))) > len(self.groups):
                words = f"{trained} layer groups; {recipe.arch} has {len(self.groups)}"
                raise RecipeError(f"Stage {number} trains {words}.")
        self.full_view = InputView("plain", recipe.image_size)
        numbers = range(1, len(recipe.stages) + 1)
        self.stages = {n: (self.cut(n), self._view(n)) for n in numbers if self._useful(n)}

    def first_trained_group(self, number: int) -> int:
        """The number, from 0, of the first layer group that the stage trains."""
        return len(self.groups) - self.trained_groups(number)

    def trained_groups(self, number: int) -> int:
        """How many last layer groups the stage trains."""
        return self.recipe.stages[number - 1].groups(len(self.groups))

    def cut(self, number: int) -> int:
        """The number of layers before the first that the stage trains."""
        trained = set().union(*self.groups[self.first_trained_group(number) :])
        return next(n for n, layer in enumerate(self.layers) if any(id(p) in trained for p in layer.parameters()))

    def needed_groups(self, cut: int) -> int:
        """How many layer groups have to stay as they are for the outputs at `cut` to hold."""
        before = {id(p) for layer in self.layers[:cut] for p in layer.parameters()}
        return max((number for number, group in enumerate(self.groups, 1) if group & before), default=0)

    def is_pristine(self, number: int) -> bool:
        """Whether the layers before the stage's are still as they were at the start, and so worth a place on disk."""
        needs = self.needed_groups(self.cut(number))
        return all(needs <= self.first_trained_group(n) for n in range(1, number))

    def shared_cuts(self, number: int) -> list[int]:
        """The stage's own cut, and those before it of later stages that see the same and whose layers stay frozen."""
        cut, view = self.stages[number]
        found = {cut}
        for later, (at, seen) in self.stages.items():
            between = range(number, later)
            if (
                later > number
                and seen == view
                and all(self.needed_groups(at) <= self.first_trained_group(n) for n in between)
            ):
                found.add(at)
        return sorted(at for at in found if at <= cut)

    def shape(self, cut: int, view: InputView, images: int) -> tuple[tuple[int, ...], type]:
        """Shape and type of what is kept of so many images, channels last."""
        shape, kind = self.network.shape(cut, view.size)
        return (images * (2 if view.kind == "both" else 1), *shape), kind

    def _useful(self, number: int) -> bool:
        """Whether the stage has a frozen part that gives the same every time, and there is room for what it gives."""
        stage, still = self.recipe.stages[number - 1], is_cacheable(self.recipe.augment)
        if self.recipe.freeze != "features" or self.cut(number) == 0:
            return False
        if stage.trains != "head" and not (still and stage.batch_norm == "still"):
            return False
        sets = ((self._view(number), self.images["train"]), (self.full_view, self.images["valid"]))
        needed = sum(_size_in_bytes(*self.shape(self.cut(number), view, images)) for view, images in sets)
        return needed <= _max_bytes() or (self.is_pristine(number) and self.cache.could_fit(needed))

    def _view(self, number: int) -> InputView:
        """Both views, one of the two by chance, or the plain image: mirrored copies of it are all that can be kept."""
        stage = self.recipe.stages[number - 1]
        size = stage.image_size or self.recipe.image_size
        if stage.views:
            return InputView("both", size)
        if not self.recipe.augment.flip:
            return InputView("plain", size)
        return InputView("either" if stage.trains == "head" or stage.epochs == 1 else "both", size)


class FrozenOutputs:
    """What the layers before a stage's trained ones make of the training and valid images, by `FreezePlan`."""

    def __init__(self, learn: Learner, recipe: Recipe, progress: Progress | None = None) -> None:
        self.learn, self.recipe, self.progress = learn, recipe, progress or Progress()
        self.cache = ArrayCache(recipe.cache_gb, self.progress)
        self.rows = {"train": learn.dls.train_ds.items, "valid": learn.dls.valid_ds.items}
        images = {split: len(rows) for split, rows in self.rows.items()}
        self.plan = FreezePlan(LayerSequence(learn.model, learn.splitter), recipe, images, self.cache)
        self.fingerprints: dict[str, str] = {}
        self.outputs: dict[tuple[str, int, InputView], torch.Tensor] = {}
        self.targets: dict[str, torch.Tensor] = {}
        self.cached_seconds = 0.0
        """Seconds that outputs found in the cache, for the last stage asked for, had taken to compute."""

    def learner(self, number: int) -> Learner | None:
        """A complete fastai Learner over the layers that the stage trains, on the outputs of those before.

        The layers are those of the whole network themselves: what this Learner learns, the network knows. None for a
        stage that has to be trained the usual way.
        """
        if number not in self.plan.stages:
            return None
        learn, stage, plan = self.learn, self.recipe.stages[number - 1], self.plan
        self.cached_seconds = 0.0
        cut, view = plan.stages[number]
        sets = (("train", view), ("valid", plan.full_view))
        if not all((split, cut, seen) in self.outputs or self.obtain(split, seen, number) for split, seen in sets):
            return None
        train, valid = self.outputs["train", cut, view], self.outputs["valid", cut, plan.full_view]
        count, size = len(self.rows["train"]), learn.dls.train.bs
        views = len(train) // count
        times = views if stage.views else 1  # each view of an image in every epoch, instead of one of them by chance
        large = size
        if stage.trains == "head" and count >= 100 * size:  # a step costs so little there that its overhead counts
            large = 4 * size
        targets = self.targets["train"].repeat(times, *[1] * (self.targets["train"].ndim - 1))
        fit = _batch_loader(train, targets, views // times, learn, bs=large, shuffle=True, drop_last=True)
        if learn.dls.train.weights is not None:
            fit.weights = np.tile(learn.dls.train.weights, times)
        check = _batch_loader(valid, self.targets["valid"], 1, learn, bs=1024 if valid.ndim == 2 else max(size, 64))
        first = plan.first_trained_group(number)
        return Learner(
            DataLoaders(fit, check),
            nn.Sequential(*plan.layers[cut:]),
            loss_func=learn.loss_func,
            opt_func=learn.opt_func,
            metrics=learn.metrics,
            path=learn.path,
            splitter=lambda _: learn.splitter(learn.model)[first:],
        )

    def cached_stages(self) -> list[int]:
        """Stages whose outputs are all in the cache already."""
        plan = self.plan
        wanted = {
            number: [self._key("train", cut, view), self._key("valid", cut, plan.full_view)]
            for number, (cut, view) in plan.stages.items()
            if plan.is_pristine(number)
        }
        return [number for number, keys in wanted.items() if all(self.cache.has(key) for key in keys)]

    def release(self, number: int) -> None:
        """Drops what the stage has made wrong, and what no later stage sees."""
        plan = self.plan
        wanted = {(cut, view) for n, (cut, view) in plan.stages.items() if n > number}
        for split, cut, view in list(self.outputs):
            seen = any(cut == c and view in (v, plan.full_view) for c, v in wanted)
            if not seen or plan.needed_groups(cut) > plan.first_trained_group(number):
                del self.outputs[split, cut, view]

    def obtain(self, split: str, view: InputView, number: int) -> bool:
        """Outputs for this stage and for the later ones that one pass can serve: from the cache, else computed."""
        rows, plan = self.rows[split], self.plan
        self.targets[split] = encode_targets(self.learn.dls, rows)
        cache = self.cache if plan.is_pristine(number) else ArrayCache(0)
        keys = {cut: self._key(split, cut, view) for cut in plan.shared_cuts(number)}
        with cache.lock(next(iter(keys.values()))):
            found = {cut: cache.get(key) for cut, key in keys.items()}
            missing = {cut: plan.shape(cut, view, len(rows)) for cut, array in found.items() if array is None}
            rooms = {cut: cache.allocate(keys[cut], *shape) for cut, shape in missing.items()}
            if any(rooms[cut] is None and _size_in_bytes(*shape) > _max_bytes() for cut, shape in missing.items()):
                return False
            found |= {cut: np.empty(*shape) if rooms[cut] is None else rooms[cut] for cut, shape in missing.items()}
            outputs = {cut: _to_channels_first(torch.from_numpy(np.asarray(array))) for cut, array in found.items()}
            began = time.perf_counter()
            if missing:
                self.compute(split, view, {cut: outputs[cut] for cut in missing})
            else:
                self.progress.log(f"outputs of the frozen layers, {split}: from the cache")
                self.cached_seconds += max(map(cache.compute_seconds, keys.values()))
            spent = time.perf_counter() - began
            for cut, room in rooms.items():
                if room is not None:
                    cache.commit(keys[cut], room, spent)
        self.outputs |= {(split, cut, view): outputs[cut] for cut in outputs}
        return True

    def _key(self, split: str, cut: int, view: InputView) -> dict[str, Any]:
        """Everything that the outputs depend on."""
        if split not in self.fingerprints:
            self.fingerprints[split] = file_fingerprint(self.rows[split]["path"])
        recipe, layers = self.recipe, nn.Sequential(*self.plan.layers[:cut])
        digest = hashlib.sha256(repr(layers).encode())
        for value in layers.state_dict().values():
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
        return {
            "what": "outputs",
            "images": self.fingerprints[split],
            "layers": digest.hexdigest(),
            "cut": cut,
            "view": view,
            "seed": recipe.seed if view.kind == "either" else None,
            "decoded": (recipe.decoded_size, recipe.image_size, recipe.resize),
            "normalised": normalisation(recipe.arch),
            "precision": (recipe.precision, recipe.frozen_precision),
        }

    @torch.no_grad()
    def compute(self, split: str, view: InputView, outputs: dict[int, torch.Tensor]) -> None:
        """Fills in the outputs of these images at every cut."""
        rows = self.rows[split]
        plain = torch.zeros(len(rows), dtype=torch.bool)
        chance = torch.rand(len(rows), generator=torch.Generator().manual_seed(self.recipe.seed)) < 0.5
        masks = {"plain": [plain], "both": [plain, ~plain], "either": [chance]}[view.kind]
        before = nn.Sequential(*self.plan.layers[: max(outputs)]).eval()
        title, total = f"outputs of the frozen layers, {split}", len(rows) * len(masks)
        with self.progress.bar(title, total, "images") as bar, preserve_rng_state(), ExitStack() as stack:
            at = 0
            for mirrored in masks:
                for images, _ in split_loader(self.learn.dls, rows, split):
                    chosen = torch.arange(at, at + len(images))
                    flip = mirrored[chosen % len(rows)].to(images.device)
                    values = images.as_subclass(torch.Tensor)
                    values[flip] = values[flip].flip(-1)
                    values = resize_batch(values, view.size).contiguous(memory_format=torch.channels_last)
                    if not at:
                        stack.enter_context(optimize_for_cpu(before, values, trainable=False))
                    for start, cut in pairwise([0, *sorted(outputs)]):
                        with frozen_precision(self.recipe, values.device.type):
                            values = before[start:cut](values)
                        outputs[cut][at : at + len(images)].copy_(values)
                    at += len(images)
                    bar.step(len(images))


def embeddings(
    learn: Learner, table: pd.DataFrame, recipe: Recipe, views: tuple[str, ...] = (), progress: Progress | None = None
) -> np.ndarray:
    """What the network's body makes of each image, pooled: images x features, float32, in the table's order.

    Images are seen whole. With the weights that the body came with they are kept in the cache for the next time, as
    the outputs of frozen layers are.

    Args:
        learn: of `baseline.learner`, over DataLoaders of this table.
        recipe: settled, the one that the Learner was made by.
        views: `("flip",)` takes the mean of the image's features and of its mirror image's.

    Raises:
        RecipeError: if the machine's memory does not hold them, or the network is one layer that cannot be cut.

    >>> embeddings(learn, table, recipe).shape                                     # doctest: +SKIP
    (2527, 1280)
    """
    return timed_embeddings(learn, table, recipe, views, progress)[0]


def timed_embeddings(
    learn: Learner, table: pd.DataFrame, recipe: Recipe, views: tuple[str, ...] = (), progress: Progress | None = None
) -> tuple[np.ndarray, float]:
    """What `embeddings` gives, and the seconds that it takes to compute, now or before."""
    began = time.perf_counter()
    frozen = FrozenOutputs(learn, recipe.changed(stages=(Stage("head", 1),), freeze="features"), progress)
    frozen.rows = {"all": table.assign(split="all").reset_index(drop=True)}
    view = InputView("both", recipe.image_size) if views else frozen.plan.full_view
    if 1 not in frozen.plan.stages or not frozen.obtain("all", view, 1):
        raise RecipeError(f"The features of {len(table):,} images by '{recipe.arch}' cannot be kept: they need memory. "
                          "Give fewer images, or a larger --cache-gb.")  # fmt: skip
    found = frozen.outputs["all", frozen.plan.cut(1), view].numpy()
    found = found.reshape(-1, len(table), found.shape[1]).mean(0) if views else found
    return found, time.perf_counter() - began + frozen.cached_seconds


def frozen_precision(recipe: Recipe, device: str) -> torch.autocast:
    """The number format of passes through frozen layers; on a GPU that of training."""
    name = recipe.frozen_precision if device == "cpu" else recipe.precision
    return mixed_precision(name, device)


def find_layers(model: nn.Sequential) -> list[nn.Module]:
    """The network as layers that run one after the other, as finely as that can be told.

    torchvision bodies are sequences. A timm network is taken for the sequence of its children before the pooling where
    that computes the same; otherwise it is one layer.
    """
    body, head = model[0], model[1]
    layers = _flatten(body)
    if isinstance(body, TimmBody):
        layers = [body]
        if body.needs_pool:
            after = ("global_pool", "classifier", "fc", "head")
            children = [child for name, child in body.model.named_children() if name not in after]
            candidate = [layer for child in children for layer in _flatten(child)]
            layers = candidate if _computes_same(body, candidate) else layers
    return [*layers, *_flatten(head)]


def _flatten(module: nn.Module) -> list[nn.Module]:
    if type(module) is not nn.Sequential:
        return [module]
    return [layer for child in module for layer in _flatten(child)]


@torch.no_grad()
def _computes_same(body: nn.Module, layers: Sequence[nn.Module]) -> bool:
    """Whether these layers compute what the body computes, seen on a small random image."""
    device = device_of(body)
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)).to(device)
    training = body.training
    try:
        return torch.equal(body.eval()(images), nn.Sequential(*layers)(images))
    except (RuntimeError, TypeError, ValueError):  # a size that the network does not take, or no sequence at all
        return False
    finally:
        body.train(training)


def _size_in_bytes(shape: tuple[int, ...], dtype: type) -> int:
    return math.prod(shape) * np.dtype(dtype).itemsize


def _max_bytes() -> float:
    return MEMORY_FRACTION * total_memory_bytes()


def _to_channels_first(outputs: torch.Tensor) -> torch.Tensor:
    """Maps are kept as N x H x W x C, so that they are channels last in memory, and handed on as N x C x H x W."""
    return outputs.permute(0, 3, 1, 2) if outputs.ndim == 4 else outputs


def _batch_loader(
    inputs: torch.Tensor, targets: torch.Tensor, views: int, learn: Learner, **options: object
) -> BatchLoader:
    rows = torch.arange(len(targets), device=inputs.device)
    slices = BatchSource(inputs, rows, targets, torch.Tensor, views=views)
    return BatchLoader(slices, num_workers=0, device=learn.dls.device, **options)
