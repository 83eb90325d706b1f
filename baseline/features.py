"""Outputs of a network's frozen first layers, computed once, and Learners that train the rest on them. Knows no epochs.

A stage that trains the head, or the last layer groups with still BatchNorm statistics, leaves everything before as it
is; running it again for every epoch is waste. `FrozenOutputs` computes what comes out of the frozen layers once a photo
and view, in one pass for all the stages that can use it, and keeps it in memory: maps as float16, features as float32.
What cannot be kept, or must not (random changes of the photos other than mirroring), is trained the usual way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from itertools import pairwise

import numpy as np
import torch
from fastai.data.core import DataLoaders, TfmdDL
from fastai.learner import Learner
from fastai.vision.learner import TimmBody
from torch import nn

from .data import SliceDL, Slices, memory_bytes, split_loader
from .learners import autocast
from .progress import Show
from .quick import quick
from .recipe import Recipe

__all__ = ["FrozenOutputs", "layers_of"]

MEMORY_SHARE = 1 / 4
"""Of the machine's memory, for outputs that are kept."""


class FrozenOutputs:
    """What the layers before a stage's trained ones make of the training and valid photos.

    Stages are named by their number in the recipe, from 1.
    """

    def __init__(self, learn: Learner, recipe: Recipe, show: Show | None = None) -> None:
        self.learn, self.recipe, self.show = learn, recipe, show or Show()
        self.layers = layers_of(learn.model)
        self.groups = [{id(p) for p in group} for group in learn.splitter(learn.model)]
        self.plan = {n: (self.cut(n), self._view(n)) for n in range(1, len(recipe.stages) + 1) if self._useful(n)}
        self.kept: dict[tuple[str, int, str], torch.Tensor] = {}
        self.targets: dict[str, torch.Tensor] = {}

    def learner(self, number: int) -> Learner:
        """A complete fastai Learner over the layers that the stage trains, on the outputs of those before.

        The layers are those of the whole network themselves: what this Learner learns, the network knows.
        """
        learn, stage = self.learn, self.recipe.stages[number - 1]
        cut, view = self.plan[number]
        self._compute(number)
        train, valid = self.kept["train", cut, view], self.kept["valid", cut, "plain"]
        count, size = len(learn.dls.train_ds), learn.dls.train.bs
        views = len(train) // count
        times = views if stage.views else 1  # each view of a photo in every epoch, instead of one of them by chance
        large = size
        if stage.trains == "head" and count >= 100 * size:  # a step costs so little there that its overhead counts
            large = 4 * size
        targets = self.targets["train"].repeat(times, *[1] * (self.targets["train"].ndim - 1))
        fit = _loader(train, targets, views // times, learn, bs=large, shuffle=True, drop_last=True)
        if learn.dls.train.weights is not None:
            fit.weights = np.tile(learn.dls.train.weights, times)
        check = _loader(valid, self.targets["valid"], 1, learn, bs=1024 if valid.ndim == 2 else max(size, 64))
        first = self.first_trained(number)
        return Learner(
            DataLoaders(fit, check),
            nn.Sequential(*self.layers[cut:]),
            loss_func=learn.loss_func,
            opt_func=learn.opt_func,
            metrics=learn.metrics,
            path=learn.path,
            splitter=lambda _: learn.splitter(learn.model)[first:],
        )

    def forget(self, number: int) -> None:
        """Drops what the stage has made wrong, and what no later stage sees."""
        wanted = {(cut, view) for n, (cut, view) in self.plan.items() if n > number}
        for split, cut, view in list(self.kept):
            seen = any(cut == c and view in (v, "plain") for c, v in wanted)
            if not seen or self._needs(cut) > self.first_trained(number):
                del self.kept[split, cut, view]

    def first_trained(self, number: int) -> int:
        """The number, from 0, of the first layer group that the stage trains."""
        trains = self.recipe.stages[number - 1].trains
        if trains == "all":
            return 0
        return len(self.groups) - (1 if trains == "head" else int(trains))

    def format(self) -> torch.autocast:
        """The number format of passes through frozen layers."""
        if next(self.learn.model.parameters()).device.type != "cpu":
            return autocast(self.learn)
        return torch.autocast("cpu", torch.bfloat16, enabled=self.recipe.frozen_precision == "bfloat16")

    def cut(self, number: int) -> int:
        """The number of layers before the first that the stage trains."""
        trained = set().union(*self.groups[self.first_trained(number) :])
        return next(n for n, layer in enumerate(self.layers) if any(id(p) in trained for p in layer.parameters()))

    def _useful(self, number: int) -> bool:
        """Whether the stage has a frozen part that gives the same every time, and there is room for what it gives."""
        stage, augment = self.recipe.stages[number - 1], self.recipe.augment
        still = augment.rotate == augment.lighting == augment.warp == 0 and augment.zoom == 1
        if self.recipe.freeze != "features" or stage.trains == "all" or self.cut(number) == 0:
            return False
        if stage.trains != "head" and not (still and stage.batch_norm == "still"):
            return False
        views = 2 if self._view(number) == "both" else 1
        photos = len(self.learn.dls.train_ds) * views + len(self.learn.dls.valid_ds)
        return photos * self._bytes_each(self.cut(number)) <= MEMORY_SHARE * memory_bytes()

    def _view(self, number: int) -> str:
        """Both views, one of the two by chance, or the plain photo: mirrored copies of it are all that can be kept."""
        stage = self.recipe.stages[number - 1]
        if stage.views:
            return "both"
        if not self.recipe.augment.flip:
            return "plain"
        return "either" if stage.trains == "head" or stage.epochs == 1 else "both"

    def _needs(self, cut: int) -> int:
        """How many layer groups have to stay as they are for the outputs at `cut` to hold."""
        before = {id(p) for layer in self.layers[:cut] for p in layer.parameters()}
        return max((number for number, group in enumerate(self.groups, 1) if group & before), default=0)

    def _bytes_each(self, cut: int) -> int:
        size = self.recipe.image_size
        device = next(self.learn.model.parameters()).device
        with torch.no_grad():
            output = nn.Sequential(*self.layers[:cut]).eval()(torch.zeros(1, 3, size, size, device=device))
        return output.numel() * (2 if output.ndim == 4 else 4)

    def _cuts(self, number: int) -> list[int]:
        """The stage's own cut, and those before it of later stages that see the same and whose layers stay frozen."""
        cut, view = self.plan[number]
        found = {cut}
        for later, (at, seen) in self.plan.items():
            between = range(number, later)
            if later > number and seen == view and all(self._needs(at) <= self.first_trained(n) for n in between):
                found.add(at)
        return sorted(at for at in found if at <= cut)

    def _compute(self, number: int) -> None:
        """One pass over the photos for this stage and for the later ones that it can serve."""
        cut, view = self.plan[number]
        sets = {"train": self.learn.dls.train_ds, "valid": self.learn.dls.valid_ds}
        views = {"train": view, "valid": "plain"}
        missing = [split for split in sets if (split, cut, views[split]) not in self.kept]
        total = sum(len(sets[split]) * (2 if views[split] == "both" else 1) for split in missing)
        if not total:
            return
        cuts = self._cuts(number)
        with self.show.bar("outputs of the frozen layers", total, "photos") as bar:
            for split in missing:
                loader = split_loader(self.learn.dls, sets[split].items, split)
                plain = torch.zeros(len(sets[split]), dtype=torch.bool)
                masks = {"plain": [plain], "both": [plain, ~plain], "either": [torch.rand(len(plain)) < 0.5]}
                passes = [self._pass(loader, mask, cuts, bar.step) for mask in masks[views[split]]]
                self.targets[split] = passes[0][1]
                for place, at in enumerate(cuts):
                    parts = [outputs[place] for outputs, _ in passes]
                    self.kept[split, at, views[split]] = torch.cat(parts) if len(parts) > 1 else parts[0]

    @torch.no_grad()
    def _pass(
        self, loader: TfmdDL, mirrored: torch.Tensor, cuts: list[int], step: Callable[[int], None]
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Outputs at every cut for each photo of the loader, and the targets."""
        before = nn.Sequential(*self.layers[: cuts[-1]]).eval()
        kept: list[torch.Tensor] = []
        targets = []
        at = 0
        with ExitStack() as stack:
            for photos, labels in loader:
                flip = mirrored[at : at + len(photos)].to(photos.device)[:, None, None, None]
                values = torch.where(flip, photos.flip(-1), photos).as_subclass(torch.Tensor)
                values = values.contiguous(memory_format=torch.channels_last)
                if not at:
                    stack.enter_context(quick(before, values, learns=False))
                for number, (start, end) in enumerate(pairwise([0, *cuts])):
                    with self.format():
                        values = before[start:end](values)
                    if len(kept) <= number:
                        kept.append(_room(len(mirrored), values))
                    kept[number][at : at + len(photos)] = values
                targets.append(labels.as_subclass(torch.Tensor))
                at += len(photos)
                step(len(photos))
        return kept, torch.cat(targets)


def layers_of(model: nn.Sequential) -> list[nn.Module]:
    """The network as layers that run one after the other, as finely as that can be told.

    torchvision bodies are sequences. A timm network is taken for the sequence of its children before the pooling where
    that computes the same; otherwise it is one layer.
    """
    body, head = model[0], model[1]
    layers = _flat(body)
    if isinstance(body, TimmBody):
        layers = [body]
        if body.needs_pool:
            after = ("global_pool", "classifier", "fc", "head")
            children = [child for name, child in body.model.named_children() if name not in after]
            candidate = [layer for child in children for layer in _flat(child)]
            layers = candidate if _same(body, candidate) else layers
    return [*layers, *_flat(head)]


def _flat(module: nn.Module) -> list[nn.Module]:
    if type(module) is not nn.Sequential:
        return [module]
    return [layer for child in module for layer in _flat(child)]


@torch.no_grad()
def _same(body: nn.Module, layers: Sequence[nn.Module]) -> bool:
    """Whether these layers compute what the body computes, seen on a small random photo."""
    device = next(body.parameters()).device
    photos = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)).to(device)
    training = body.training
    try:
        return torch.equal(body.eval()(photos), nn.Sequential(*layers)(photos))
    except (RuntimeError, TypeError, ValueError):  # a size that the network does not take, or no sequence at all
        return False
    finally:
        body.train(training)


def _room(count: int, like: torch.Tensor) -> torch.Tensor:
    """Memory for the outputs of `count` photos, channels last."""
    if like.ndim != 4:
        return torch.empty((count, *like.shape[1:]), dtype=torch.float32, device=like.device)
    _, channels, height, width = like.shape
    return torch.empty((count, height, width, channels), dtype=torch.float16, device=like.device).permute(0, 3, 1, 2)


def _loader(inputs: torch.Tensor, targets: torch.Tensor, views: int, learn: Learner, **options: object) -> SliceDL:
    rows = torch.arange(len(targets), device=inputs.device)
    slices = Slices(inputs, rows, targets, torch.Tensor, views=views)
    return SliceDL(slices, num_workers=0, device=learn.dls.device, **options)
