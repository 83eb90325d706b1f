"""Item and batch transforms: loading, resizing and augmenting images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from fastai.torch_core import TensorImage
from fastai.vision.augment import aug_transforms
from fastai.vision.core import PILImage
from fasttransform import Transform
from PIL import Image

from baseline.data.image import load_image, resize_image
from baseline.errors import missing_image

if TYPE_CHECKING:
    from baseline.recipe.schema import Augment, Recipe

__all__ = ["IMAGE_TYPES", "resize_batch"]

IMAGE_TYPES = (str, Path, bytes, np.ndarray, Image.Image)
"""Types that `load_image` accepts as a source."""


def load_existing_image(source: Any, size: int, value_range: Sequence[float] = ()) -> Image.Image:
    """Call `load_image`.

    Raises:
        DataError: if the file is missing; the message says what to do.
    """
    try:
        return load_image(source, size, value_range)
    except FileNotFoundError as error:
        raise missing_image(error) from None


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
    """Apply fastai's augmentation to training batches only, since resampling validation batches changes nothing."""

    order, split_idx = 30, 0

    def __init__(self, transforms: Sequence[Any]) -> None:
        super().__init__()
        self.transforms = transforms

    def encodes(self, images: TensorImage):  # type: ignore[no-untyped-def]
        for transform in self.transforms:
            images = transform(images, split_idx=0)
        return images


class ResizeValid(Transform):
    """Resize validation images to the network's input size, if images were decoded larger for random crops."""

    order, split_idx = 30, 1

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def encodes(self, images: TensorImage):  # type: ignore[no-untyped-def]
        return resize_batch(images, self.size).as_subclass(TensorImage)


class RandomFlip(Transform):
    """Flip each image of a training batch horizontally with probability 0.5.

    fastai's own flip resamples images, which takes eight times as long.
    """

    order, split_idx = 30, 0

    def encodes(self, images: TensorImage):  # type: ignore[no-untyped-def]
        mask = torch.rand(len(images), device=images.device) < 0.5
        images[mask] = images[mask].flip(-1)
        return images


def resize_batch(images: torch.Tensor, size: int) -> torch.Tensor:
    """Resize images, N x C x H x W, to squares of `size` pixels; 0 leaves them unchanged."""
    if size in (0, images.shape[-1]):
        return images
    return F.interpolate(images.as_subclass(torch.Tensor), (size, size), mode="bilinear", antialias=True)


def batch_transforms(recipe: Recipe) -> list[Transform]:
    """Return the batch transforms that the recipe's augmentation needs."""
    augment = recipe.augment
    if is_cacheable(augment):
        return [RandomFlip()] if augment.flip else []
    transforms = aug_transforms(
        do_flip=augment.flip,
        max_rotate=augment.rotate,
        max_zoom=augment.zoom,
        max_lighting=augment.lighting,
        max_warp=augment.warp,
        p_affine=augment.probability,
        p_lighting=augment.probability,
        **({} if augment.crop == 1 else {"size": recipe.model.image_size, "min_scale": augment.crop}),
    )
    return [TrainOnly(transforms), ResizeValid(recipe.model.image_size)]


def is_cacheable(augment: Augment) -> bool:
    """Whether flips are the only augmentation, so that outputs of frozen layers can be cached."""
    return augment.rotate == augment.lighting == augment.warp == 0 and augment.zoom == augment.crop == 1
