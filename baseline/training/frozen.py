"""Cached features: outputs of a network's frozen first layers, computed once, and Learners that train the other layers.

A stage that trains the head, or the last layer groups with frozen BatchNorm statistics, leaves all layers before them
unchanged; running those again in every epoch is wasted work. `FrozenOutputs` computes the outputs of the frozen layers
once per image and view, in one pass for all the stages that can use it: feature maps as float16, pooled features as
float32. Outputs of pretrained layers are kept in the cache on disk for the next run; others, and those that the cache
has no room for, in memory. A stage whose outputs do not fit, or change with every pass (random augmentation other than
flips), is trained the usual way.

This module knows layers, images and caches; it knows no epochs.
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
from fastai.callback.channelslast import ChannelsLast
from fastai.callback.core import TrainEvalCallback
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.progress import ProgressCallback
from fastai.data.core import DataLoaders
from fastai.learner import CastToTensor, Learner, Recorder
from torch import nn

from baseline.data.image import PIXELS_VERSION
from baseline.errors import RecipeError
from baseline.files import file_identities, fingerprint_of
from baseline.progress import Progress
from baseline.recipe.schema import NO_AUGMENT, Stage
from baseline.system import total_memory_bytes
from baseline.vision.augment import OWN_TYPES, describe_transforms, own_transforms, resize_batch
from baseline.vision.bodies import device_of
from baseline.vision.cache import ArrayCache
from baseline.vision.cpu_speedups import optimize_for_cpu
from baseline.vision.dataloaders import BatchLoader, BatchSource, encode_targets, split_loader
from baseline.vision.layers import find_layers, is_size_bound
from baseline.vision.learner import mixed_precision
from baseline.vision.network import is_body_and_head, layer_groups
from baseline.vision.own_loaders import is_own, own_table
from baseline.vision.own_parts import part_name
from baseline.vision.rng import preserve_rng_state

if TYPE_CHECKING:
    from baseline.recipe.schema import Recipe
    from baseline.vision.network import Splitter

__all__ = ["FreezePlan", "FrozenOutputs", "LayerSequence", "embeddings", "frozen_precision", "timed_embeddings"]


MEMORY_FRACTION = 1 / 4
"""Maximum fraction of the machine's memory for the outputs of one stage."""


OWN_CALLBACKS = (TrainEvalCallback, CastToTensor, Recorder, ProgressCallback, ChannelsLast, MixedPrecision)
"""Callbacks that every Learner has, or `baseline.learner` adds."""


class InputView(NamedTuple):
    """How images enter the network: `kind` and `size` in pixels.

    Kinds are `"plain"` (as they are), `"either"` (each flipped or not, at random) and `"both"` (all images as they are,
    then all flipped).
    """

    kind: str
    size: int


class LayerSequence:
    """A network as a sequence of layers, with its layer groups; analyzed once and shared by many plans.

    Args:
        splitter: function that returns the layer groups of the network.
        size: size in pixels of the images that the network was built for.
    """

    def __init__(self, model: nn.Module, splitter: Splitter, size: int) -> None:
        self.layers = find_layers(model, size) if is_body_and_head(model) else [model]
        self.size = size if is_size_bound(self.layers) else 0
        self.groups = [{id(p) for p in group} for group in layer_groups(model, splitter)]
        self.device = device_of(model)
        self.shapes: dict[tuple[int, int], tuple[tuple[int, ...], type]] = {}
        self.channels_last: set[int] = set()
        """Cuts with maps that are stored as N x H x W x C and used as N x C x H x W."""

    def shape(self, cut: int, size: int) -> tuple[tuple[int, ...], type]:
        """Return shape (maps of convolutions: channels last) and dtype of the stored output of one image at the cut."""
        if (cut, size) not in self.shapes:
            with torch.no_grad():
                inputs = torch.zeros(1, 3, size, size, device=self.device)
                inputs = inputs.contiguous(memory_format=torch.channels_last)
                output = nn.Sequential(*self.layers[:cut]).eval()(inputs)
            if is_channels_last(output):
                self.channels_last.add(cut)
                output = output.permute(0, 2, 3, 1)
            _, *shape = output.shape
            self.shapes[cut, size] = tuple(shape), np.float32 if output.ndim == 2 else np.float16
        return self.shapes[cut, size]


class FreezePlan:
    """Decides for each stage whether it runs on images or on stored outputs, at which cut and in which view.

    Stages are identified by their number in the recipe, from 1. `stages` maps those that run on stored outputs to their
    cut and view.

    Args:
        images: number of images by split.
        own_parts: what the user added to the Learner that has to run on the images of every epoch.

    Raises:
        RecipeError: if a stage trains more layer groups than the network has.
    """

    def __init__(
        self, network: LayerSequence, recipe: Recipe, images: Mapping[str, int], cache: ArrayCache,
        own_parts: Sequence[str] = (),
    ) -> None:  # fmt: skip
        self.own_parts = tuple(own_parts)
        self.network, self.recipe, self.images, self.cache = network, recipe, images, cache
        self.layers, self.groups = network.layers, network.groups
        for number, stage in enumerate(recipe.stages, 1):
            if (trained := stage.groups(len(self.groups))) > len(self.groups):
                raise RecipeError(
                    f"Stage {number} trains {trained} layer groups, but {recipe.model.arch} has {len(self.groups)}. "
                    "Use fewer in its `trains`."
                )
        self.full_view = InputView("plain", recipe.model.image_size)
        numbers = range(1, len(recipe.stages) + 1)
        self.stages = {n: (self.cut(n), self._training_view(n)) for n in numbers if self._can_be_cached(n)}

    def first_trained_group(self, number: int) -> int:
        """Return the index, from 0, of the first layer group that the stage trains."""
        return len(self.groups) - self.trained_groups(number)

    def trained_groups(self, number: int) -> int:
        """Return how many of the last layer groups the stage trains."""
        return self.recipe.stages[number - 1].groups(len(self.groups))

    def cut(self, number: int) -> int:
        """Return the number of layers before the first one that the stage trains."""
        trained = set().union(*self.groups[self.first_trained_group(number) :])
        return next(n for n, layer in enumerate(self.layers) if any(id(p) in trained for p in layer.parameters()))

    def needed_groups(self, cut: int) -> int:
        """Return how many of the first layer groups must stay unchanged for the outputs at `cut` to stay valid."""
        before = {id(p) for layer in self.layers[:cut] for p in layer.parameters()}
        return max((number for number, group in enumerate(self.groups, 1) if group & before), default=0)

    def is_pristine(self, number: int) -> bool:
        """Whether no earlier stage trains the layers before the cut, so their outputs are worth storing on disk."""
        needed = self.needed_groups(self.cut(number))
        return all(needed <= self.first_trained_group(n) for n in range(1, number))

    def shared_cuts(self, number: int) -> list[int]:
        """Return the cuts one pass serves: the stage's own, and earlier ones of later stages with the same view."""
        cut, view = self.stages[number]
        cuts = {cut}
        for later, (other, other_view) in self.stages.items():
            if later <= number or other_view != view:
                continue
            needed = self.needed_groups(other)
            if all(needed <= self.first_trained_group(n) for n in range(number, later)):
                cuts.add(other)
        return sorted(other for other in cuts if other <= cut)

    def shape(self, cut: int, view: InputView, images: int) -> tuple[tuple[int, ...], type]:
        """Return shape (channels last) and dtype of the stored outputs of `images` images."""
        shape, kind = self.network.shape(cut, view.size)
        return (images * (2 if view.kind == "both" else 1), *shape), kind

    def _can_be_cached(self, number: int) -> bool:
        """Whether the stage has frozen layers whose outputs are the same in every epoch, and there is room for them."""
        if not self._has_frozen_layers(number) or self.changing(number):
            return False
        size = self.recipe.stages[number - 1].image_size
        if self.network.size and (size or self.network.size) != self.network.size:
            return False
        sets = ((self._training_view(number), self.images["train"]), (self.full_view, self.images["valid"]))
        needed = sum(_size_in_bytes(*self.shape(self.cut(number), view, images)) for view, images in sets)
        return needed <= _max_bytes() or (self.is_pristine(number) and self.cache.could_fit(needed))

    def changing(self, number: int) -> tuple[str, ...]:
        """Return the names of what changes the stage's images in every epoch, so that outputs cannot be stored."""
        training, stage = self.recipe.training, self.recipe.stages[number - 1]
        if stage.trains == "probe":
            return ()
        blending = tuple(name for name in ("mixup", "cutmix") if getattr(training, name))
        return (*(self.recipe.augment.changing() if stage.augment else ()), *blending, *self.own_parts)

    def explain(self, number: int) -> str:
        """Return why the stage runs on images although it has frozen layers, and what it costs; or an empty text."""
        if not self._has_frozen_layers(number) or not (names := self.changing(number)):
            return ""
        stage = self.recipe.stages[number - 1]
        augmentation = self.recipe.augment.changing() if stage.augment else ()
        hint = "; with augment = false for this stage they could be" if names == augmentation else ""
        epochs = "its epoch runs" if stage.epochs == 1 else f"each of its {stage.epochs} epochs runs"
        what = f"{', '.join(names)} must see the images of every epoch"
        return f"{what}, so features are not cached and {epochs} the whole network{hint}"

    def _has_frozen_layers(self, number: int) -> bool:
        """Whether the stage leaves its first layers unchanged, BatchNorm statistics included."""
        stage = self.recipe.stages[number - 1]
        is_frozen = stage.is_head or stage.batch_norm == "frozen"
        return self.recipe.training.freeze == "features" and self.cut(number) > 0 and is_frozen

    def _training_view(self, number: int) -> InputView:
        """Return the view of the training images; flips are the only augmentation that stored outputs can have."""
        stage = self.recipe.stages[number - 1]
        size = stage.image_size or self.recipe.model.image_size
        if stage.views:
            return InputView("both", size)
        if not self.recipe.augment.flip:
            return InputView("plain", size)
        return InputView("either" if stage.is_head or stage.epochs == 1 else "both", size)


class FrozenOutputs:
    """Computes and stores the frozen-layer outputs that a `FreezePlan` calls for."""

    def __init__(
        self, learn: Learner, recipe: Recipe, progress: Progress | None = None, own: Sequence[str] | None = None
    ) -> None:
        if is_own(learn.dls) or vars(learn.dls).get("own_batch_tfms"):  # they replace the recipe's
            recipe = recipe.changed(augment=NO_AUGMENT)
        self.learn, self.recipe, self.progress = learn, recipe, progress or Progress()
        self.cache = ArrayCache(0 if has_own_transforms(learn) else recipe.options.cache_gb, self.progress)
        self.rows = {"train": learn.dls.train_ds, "valid": learn.dls.valid_ds}
        if is_own(learn.dls):
            self.rows = {
                str(split): rows.reset_index(drop=True) for split, rows in own_table(learn.dls).groupby("split")
            }
        else:
            self.rows = {split: dataset.items for split, dataset in self.rows.items()}
        images = {split: len(rows) for split, rows in self.rows.items()}
        parts = own_parts(learn) if own is None else own
        network = LayerSequence(learn.model, learn.splitter, recipe.model.image_size)
        self.plan = FreezePlan(network, recipe, images, self.cache, parts)
        self.fingerprints: dict[str, str] = {}
        self.outputs: dict[tuple[str, int, InputView], torch.Tensor] = {}
        self.targets: dict[str, torch.Tensor] = {}
        self.cached_seconds = 0.0
        """Seconds that the outputs read from the cache, for the last stage requested, once took to compute."""

    def learner(self, number: int) -> Learner | None:
        """Return a fastai Learner over the layers that the stage trains, on the outputs of the layers before them.

        It shares its layers with the complete network, so training one trains the other. None for a stage that has to
        be trained on images.
        """
        if number not in self.plan.stages:
            return None
        learn, stage, plan = self.learn, self.recipe.stages[number - 1], self.plan
        self.cached_seconds = 0.0
        cut, view = plan.stages[number]
        sets = (("train", view), ("valid", plan.full_view))
        if not all((split, cut, view) in self.outputs or self.obtain(split, view, number) for split, view in sets):
            return None
        train, valid = self.outputs["train", cut, view], self.outputs["valid", cut, plan.full_view]
        count, size = len(self.rows["train"]), learn.dls.train.bs
        views = len(train) // count
        repeats = views if stage.views else 1  # all views of an image in each epoch, instead of a random one
        train_size = size
        if stage.trains == "head" and count >= 100 * size:  # steps are so cheap there that their overhead matters
            train_size = 4 * size
        targets = self.targets["train"].repeat(repeats, *[1] * (self.targets["train"].ndim - 1))
        fit = _batch_loader(train, targets, views // repeats, learn, bs=train_size, shuffle=True, drop_last=True)
        if (weights := getattr(learn.dls.train, "weights", None)) is not None:
            fit.weights = np.tile(weights, repeats)
        check = _batch_loader(valid, self.targets["valid"], 1, learn, bs=1024 if valid.ndim == 2 else max(size, 64))
        first = plan.first_trained_group(number)
        return Learner(
            DataLoaders(fit, check),
            nn.Sequential(*plan.layers[cut:]),
            loss_func=learn.loss_func,
            opt_func=learn.opt_func,
            metrics=learn.metrics,
            path=learn.path,
            wd=learn.wd,
            wd_bn_bias=learn.wd_bn_bias,
            moms=learn.moms,
            cbs=[callback for callback in learn.cbs if getattr(callback, "cacheable", False)],
            splitter=lambda _: layer_groups(learn.model, learn.splitter)[first:],
        )

    def cached_stages(self) -> list[int]:
        """Return the numbers of the stages whose outputs are all in the cache already."""
        plan = self.plan
        keys_by_stage = {
            number: [self._key("train", cut, view), self._key("valid", cut, plan.full_view)]
            for number, (cut, view) in plan.stages.items()
            if plan.is_pristine(number)
        }
        return [number for number, keys in keys_by_stage.items() if all(self.cache.has(key) for key in keys)]

    def release(self, number: int) -> None:
        """Free the outputs that training the stage has invalidated, and those that no later stage uses."""
        plan = self.plan
        later_stages = {(cut, view) for n, (cut, view) in plan.stages.items() if n > number}
        for split, cut, view in list(self.outputs):
            is_used = any(cut == c and view in (v, plan.full_view) for c, v in later_stages)
            if not is_used or plan.needed_groups(cut) > plan.first_trained_group(number):
                del self.outputs[split, cut, view]

    def obtain(self, split: str, view: InputView, number: int) -> bool:
        """Read from the cache, or compute, the outputs for this stage and for later ones that the same pass can serve.

        Returns:
            False where there is no room for them, neither in the cache nor in memory.
        """
        rows, plan = self.rows[split], self.plan
        self.targets[split] = encode_targets(self.learn.dls, rows)
        cache = self.cache if plan.is_pristine(number) else ArrayCache(0)
        uncached = {"what": "outputs"}  # images of the user's may have no files to identify them by
        keys = {cut: self._key(split, cut, view) if cache.max_bytes else uncached for cut in plan.shared_cuts(number)}
        with cache.lock(next(iter(keys.values()))):
            arrays = {cut: cache.get(key) for cut, key in keys.items()}
            missing = {cut: plan.shape(cut, view, len(rows)) for cut, array in arrays.items() if array is None}
            allocated = {cut: cache.allocate(keys[cut], *shape) for cut, shape in missing.items()}
            if any(allocated[cut] is None and _size_in_bytes(*shape) > _max_bytes() for cut, shape in missing.items()):
                return False
            arrays |= {
                cut: np.empty(*shape) if allocated[cut] is None else allocated[cut] for cut, shape in missing.items()
            }
            outputs = {cut: torch.from_numpy(np.asarray(array)) for cut, array in arrays.items()}
            outputs |= {cut: outputs[cut].permute(0, 3, 1, 2) for cut in plan.network.channels_last & outputs.keys()}
            start = time.perf_counter()
            if missing:
                self.compute(split, view, {cut: outputs[cut] for cut in missing})
            else:
                self.progress.log(f"outputs of the frozen layers, {split}: from the cache")
                self.cached_seconds += max(map(cache.compute_seconds, keys.values()))
            seconds = time.perf_counter() - start
            for cut, array in allocated.items():
                if array is not None:
                    cache.commit(keys[cut], array, seconds)
        self.outputs |= {(split, cut, view): outputs[cut] for cut in outputs}
        return True

    def _key(self, split: str, cut: int, view: InputView) -> dict[str, Any]:
        """Return everything that the outputs depend on."""
        if split not in self.fingerprints:
            paths, images = self.rows[split]["path"], vars(self.learn.dls).get("decoded")
            known = [images.identities[images.rows[path]] for path in paths] if images else file_identities(paths)
            self.fingerprints[split] = fingerprint_of(known)
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
            "decoded": (recipe.decoded_size, recipe.model.image_size, recipe.model.resize),
            "pixels": (PIXELS_VERSION, recipe.data.value_range),
            "transforms": describe_transforms(self.learn.dls.valid),
            "precision": (recipe.model.precision, recipe.model.frozen_precision),
        }

    @torch.no_grad()
    def compute(self, split: str, view: InputView, outputs: dict[int, torch.Tensor]) -> None:
        """Fill in the outputs of the split's images at every cut."""
        rows = self.rows[split]
        unflipped = torch.zeros(len(rows), dtype=torch.bool)
        random = torch.rand(len(rows), generator=torch.Generator().manual_seed(self.recipe.seed)) < 0.5
        masks = {"plain": [unflipped], "both": [unflipped, ~unflipped], "either": [random]}[view.kind]
        before = nn.Sequential(*self.plan.layers[: max(outputs)]).eval()
        flips = " and their flips" if view.kind == "both" else ""
        title, total = f"outputs of the frozen layers, {split}{flips}", len(rows) * len(masks)
        with self.progress.bar(title, total, "images") as bar, preserve_rng_state(), ExitStack() as stack:
            at = 0
            for mask in masks:
                for images, _ in split_loader(self.learn.dls, rows, split):
                    indices = torch.arange(at, at + len(images))
                    flip = mask[indices % len(rows)].to(images.device)
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
    """Return the pooled features of each image: N x features, float32, in the table's order.

    Images are not augmented. Features are kept in the cache for the next call, like the outputs of frozen layers.

    Args:
        learn: a Learner from `baseline.learner`, over DataLoaders of this table.
        recipe: the recipe that the Learner was made from, with every "auto" resolved.
        views: `("flip",)` averages the features of each image and of its flipped copy.

    Raises:
        RecipeError: if they do not fit into memory, or the network is a single layer that cannot be cut.

    >>> embeddings(learn, table, recipe).shape                                     # doctest: +SKIP
    (2527, 1280)
    """
    return timed_embeddings(learn, table, recipe, views, progress)[0].mean(0)


def timed_embeddings(
    learn: Learner, table: pd.DataFrame, recipe: Recipe, views: tuple[str, ...] = (), progress: Progress | None = None
) -> tuple[np.ndarray, float]:
    """Return the features of each view, views x N x features, and the seconds they took, now or when they were cached.

    The first view is the image as it is; see `embeddings`.
    """
    start = time.perf_counter()
    plain = recipe.changed(stages=(Stage("head", 1, augment=False),), freeze="features", mixup=0, cutmix=0)
    frozen = FrozenOutputs(learn, plain, progress, own=())
    frozen.rows = {"all": table.assign(split="all").reset_index(drop=True)}
    view = InputView("both", recipe.model.image_size) if views else frozen.plan.full_view
    if 1 not in frozen.plan.stages or not frozen.obtain("all", view, 1):
        raise RecipeError(
            f"There is no room for the features of {len(table):,} images from '{recipe.model.arch}', neither in the "
            "cache nor in memory. Use fewer images, or a larger --cache-gb."
        )
    features = frozen.outputs["all", frozen.plan.cut(1), view].numpy()
    return features.reshape(-1, len(table), features.shape[1]), time.perf_counter() - start + frozen.cached_seconds


def own_parts(learn: Learner) -> list[str]:
    """Return the names of what the user added to a Learner that has to see the images of every epoch.

    Transforms and callbacks with the attribute `cacheable = True` promise to work on stored outputs, too.
    """
    if is_own(learn.dls):
        return ["the transforms of your DataLoaders"]
    callbacks = [c for c in learn.cbs if not isinstance(c, OWN_CALLBACKS) and not getattr(c, "cacheable", False)]
    names = [*own_transforms(loader_transforms(learn)), *map(part_name, callbacks)]
    return list(dict.fromkeys(names))


def loader_transforms(learn: Learner) -> list[Any]:
    """Return all transforms of items and batches that the Learner's loaders run."""
    pipelines = ("after_item", "before_batch", "after_batch")
    return [t for loader in (learn.dls.train, learn.dls.valid) for p in pipelines for t in getattr(loader, p).fs]


def has_own_transforms(learn: Learner) -> bool:
    """Whether the user added transforms, which the keys of the cache on disk do not know."""
    return is_own(learn.dls) or not all(type(t) in OWN_TYPES for t in loader_transforms(learn))


def frozen_precision(recipe: Recipe, device: str) -> torch.autocast:
    """Return an autocast context for passes through frozen layers; on a GPU it has the precision of training."""
    name = recipe.model.frozen_precision if device == "cpu" else recipe.model.precision
    return mixed_precision(name, device)


def _size_in_bytes(shape: tuple[int, ...], dtype: type) -> int:
    return math.prod(shape) * np.dtype(dtype).itemsize


def _max_bytes() -> float:
    return MEMORY_FRACTION * total_memory_bytes()


def is_channels_last(output: torch.Tensor) -> bool:
    """Whether maps, N x C x H x W, are channels last in memory, as convolutions on channels-last images return them."""
    return output.ndim == 4 and output.is_contiguous(memory_format=torch.channels_last)


def _batch_loader(
    inputs: torch.Tensor, targets: torch.Tensor, views: int, learn: Learner, **options: object
) -> BatchLoader:
    rows = torch.arange(len(targets), device=inputs.device)
    source = BatchSource(inputs, rows, targets, torch.Tensor, views=views)
    return BatchLoader(source, num_workers=0, device=learn.dls.device, **options)
