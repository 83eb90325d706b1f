"""Item and batch transforms: loading, resizing and augmenting images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from fastai.data.core import TfmdDL
from fastai.data.transforms import IntToFloatTensor, Normalize, ToTensor
from fastai.torch_core import TensorImage
from fastai.vision.augment import RandomErasing, aug_transforms
from fastai.vision.core import PILImage
from fasttransform import Transform
from PIL import Image
from timm.data.auto_augment import rand_augment_transform

from baseline.data.image import load_image, resize_image
from baseline.errors import unusable_image
from baseline.vision.own_parts import part_name, runs_at_prediction

if TYPE_CHECKING:
    from baseline.recipe.schema import Recipe

__all__ = ["IMAGE_TYPES", "resize_batch"]

IMAGE_TYPES = (str, Path, bytes, np.ndarray, Image.Image)
"""Types that `load_image` accepts as a source."""


def load_existing_image(source: Any, size: int, value_range: Sequence[float] = ()) -> Image.Image:
    """Call `load_image`.

    Raises:
        DataError: if the file is missing, or cannot be decoded any more; the message says what to do.
    """
    try:
        return load_image(source, size, value_range)
    except Exception as error:
        raise unusable_image(source, error) from None


class LoadImage(Transform):
    """`load_image` as a fastai type transform."""

    value_range: Sequence[float] = ()
    """Learners that were exported before it existed do not have it."""

    def __init__(self, size: int, value_range: Sequence[float] = ()) -> None:
        super().__init__()
        self.size, self.value_range = size, value_range

    def encodes(self, source):  # type: ignore[no-untyped-def]  # fastcore dispatches on annotations
        return PILImage(load_existing_image(source, self.size, self.value_range))


class Resize(Transform):
    """`resize_image` as a fastai item transform, run before `ToTensor`."""

    order = 1

    def __init__(self, size: int, resize: str) -> None:
        super().__init__()
        self.size, self.resize = size, resize

    def encodes(self, image: PILImage):  # type: ignore[no-untyped-def]
        return PILImage(resize_image(image, self.size, self.resize))


class TrainOnly(Transform):
    """Apply fastai's augmentation to training batches only, since resampling validation batches changes nothing.

    `enabled` is False in a stage with `augment = false`; `otherwise` is then applied instead.
    """

    order, split_idx = 30, 0

    def __init__(self, transforms: Sequence[Any], otherwise: Sequence[Any] = ()) -> None:
        super().__init__()
        self.transforms, self.otherwise, self.enabled = transforms, otherwise, True

    def encodes(self, images: TensorImage):  # type: ignore[no-untyped-def]
        for transform in self.transforms if self.enabled else self.otherwise:
            images = transform(images, split_idx=0)
        return images


class TrainOnlyFirst(TrainOnly):
    """The same on uint8 images, before `IntToFloatTensor`. A DataBlock keeps one transform of each class only."""

    order = 5


class TrainOnlyLast(TrainOnly):
    """The same after `Normalize`."""

    order = 100


class RandAugment(Transform):
    """timm's RandAugment on the images of a batch, two operations per image."""

    def __init__(self, magnitude: int) -> None:
        super().__init__()
        self.augment = rand_augment_transform(f"rand-m{magnitude}-n2-mstd0.5", {})

    def encodes(self, images: TensorImage):  # type: ignore[no-untyped-def]
        arrays = images.permute(0, 2, 3, 1).cpu().numpy()
        augmented = [np.asarray(self.augment(Image.fromarray(array))) for array in np.ascontiguousarray(arrays)]
        return TensorImage(torch.from_numpy(np.stack(augmented)).permute(0, 3, 1, 2)).to(images.device)


class ResizeValid(Transform):
    """Resize images to the network's input size, if they were decoded larger for random crops."""

    order = 30

    def __init__(self, size: int, split_idx: int | None = 1) -> None:
        super().__init__(split_idx=split_idx)
        self.size = size

    def encodes(self, images: TensorImage):  # type: ignore[no-untyped-def]
        return resize_batch(images, self.size).as_subclass(TensorImage)


class RandomFlip(Transform):
    """Flip each image of a training batch horizontally with probability 0.5.

    fastai's own flip resamples images, which takes eight times as long.
    """

    order, split_idx = 30, 0

    def encodes(self, images: TensorImage):  # type: ignore[no-untyped-def]
        return flip_randomly(images)


class RandomFlipVertical(Transform):
    """Flip each image of a training batch vertically with probability 0.5."""

    order, split_idx = 30, 0

    def encodes(self, images: TensorImage):  # type: ignore[no-untyped-def]
        return flip_randomly(images, -2)


def flip_randomly(images: TensorImage, dimension: int = -1) -> TensorImage:
    """Flip each image of the batch, in place, with probability 0.5."""
    mask = torch.rand(len(images), device=images.device) < 0.5
    images[mask] = images[mask].flip(dimension)
    return images


def resize_batch(images: torch.Tensor, size: int) -> torch.Tensor:
    """Resize images, N x C x H x W, to squares of `size` pixels; 0 leaves them unchanged."""
    if size in (0, images.shape[-1]):
        return images
    return F.interpolate(images.as_subclass(torch.Tensor), (size, size), mode="bilinear", antialias=True)


def batch_transforms(recipe: Recipe) -> list[Transform]:
    """Return the batch transforms that the recipe's augmentation needs."""
    augment, size = recipe.augment, recipe.model.image_size
    if not augment.changing():
        return [RandomFlip()] if augment.flip else []
    transforms = aug_transforms(
        do_flip=augment.flip or augment.dihedral,
        flip_vert=augment.dihedral,
        max_rotate=augment.rotate,
        max_zoom=augment.zoom,
        max_lighting=augment.lighting,
        max_warp=augment.warp,
        p_affine=augment.probability,
        p_lighting=augment.probability,
        **({} if augment.crop == 1 else {"size": size, "min_scale": augment.crop}),
    )
    transforms += [RandomFlipVertical()] if augment.flip_vertical and not augment.dihedral else []
    plain = [ResizeValid(size, split_idx=None), *([RandomFlip()] if augment.flip else [])]
    first = [TrainOnlyFirst([RandAugment(augment.rand_augment)])] if augment.rand_augment else []
    last = [TrainOnlyLast([RandomErasing(augment.erase)])] if augment.erase else []
    return [*first, TrainOnly(transforms, plain), ResizeValid(size), *last]


OWN_TYPES = (LoadImage, Resize, TrainOnlyFirst, TrainOnly, TrainOnlyLast, ResizeValid, RandomFlip, ToTensor,
             IntToFloatTensor, Normalize)  # fmt: skip
"""Transforms whose effect on batches of decoded images, and on cached features, is accounted for."""


def own_transforms(transforms: Iterable[Any]) -> list[str]:
    """Return the names of the transforms that come from the user, except those that say they are `cacheable`.

    A transform with the attribute `cacheable = True` promises to give the same image in every epoch.
    """
    own = [t for t in transforms if type(t) not in OWN_TYPES and not getattr(t, "cacheable", False)]
    return [part_name(transform) for transform in own]


def describe_transforms(loader: TfmdDL) -> list[tuple[str, dict[str, str]]]:
    """Return class and parameters of each transform of `OWN_TYPES` that validation images pass, for keys of caches."""
    transforms = [*loader.after_item.fs, *loader.before_batch.fs, *loader.after_batch.fs]
    return [
        (part_name(t), {name: str(v.tolist() if isinstance(v, torch.Tensor) else v) for name, v in vars(t).items()})
        for t in transforms
        if runs_at_prediction(t)
    ]


def set_augmentation(loader: Any, enabled: bool) -> None:
    """Turn the recipe's augmentation on or off in a loader's batch transforms; flips stay."""
    for transform in loader.after_batch.fs:
        if isinstance(transform, TrainOnly):
            transform.enabled = enabled
