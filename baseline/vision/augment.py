"""TODO."""

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
"""What `baseline.images.open_image` takes."""


def load_existing_image(source: Any, size: int) -> Image.Image:
    try:
        return load_image(source, size)
    except FileNotFoundError as error:
        raise missing_image(error) from None


class LoadImage(Transform):
    """`load_image` as fastai's type transform."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def encodes(self, source):  # type: ignore[no-untyped-def]  # fastcore dispatches on annotations
        return PILImage(load_existing_image(source, self.size))


class Resize(Transform):
    """`resize_image` as fastai's item transform, before its `ToTensor`."""

    order = 1

    def __init__(self, size: int, resize: str) -> None:
        super().__init__()
        self.size, self.resize = size, resize

    def encodes(self, image: PILImage):  # type: ignore[no-untyped-def]
        return PILImage(resize_image(image, self.size, self.resize))


class TrainOnly(Transform):
    """fastai's random changes, on training batches only: on valid ones its own would resample, and change nothing."""

    order, split_idx = 30, 0

    def __init__(self, changes: Sequence[Any]) -> None:
        super().__init__()
        self.changes = changes

    def encodes(self, images: TensorImage):  # type: ignore[no-untyped-def]
        for change in self.changes:
            images = change(images, split_idx=0)
        return images


class ResizeValid(Transform):
    """Valid images that were decoded larger, for random crops of training images, at the size the network sees."""

    order, split_idx = 30, 1

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def encodes(self, images: TensorImage):  # type: ignore[no-untyped-def]
        return resize_batch(images, self.size).as_subclass(TensorImage)


class RandomFlip(Transform):
    """Half of the images of a training batch, left to right: fastai's flip resamples them, at eight times the cost."""

    order, split_idx = 30, 0

    def encodes(self, images: TensorImage):  # type: ignore[no-untyped-def]
        chosen = torch.rand(len(images), device=images.device) < 0.5
        images[chosen] = images[chosen].flip(-1)
        return images


def resize_batch(images: torch.Tensor, size: int) -> torch.Tensor:
    """The images, N x C x H x W, as squares of `size` pixels where that is another size; 0 leaves them."""
    if size in (0, images.shape[-1]):
        return images
    return F.interpolate(images.as_subclass(torch.Tensor), (size, size), mode="bilinear", antialias=True)


def batch_transforms(recipe: Recipe) -> list[Transform]:
    augment = recipe.augment
    if is_cacheable(augment):
        return [RandomFlip()] if augment.flip else []
    changes = aug_transforms(
        do_flip=augment.flip,
        max_rotate=augment.rotate,
        max_zoom=augment.zoom,
        max_lighting=augment.lighting,
        max_warp=augment.warp,
        p_affine=augment.probability,
        p_lighting=augment.probability,
        **({} if augment.crop == 1 else {"size": recipe.image_size, "min_scale": augment.crop}),
    )
    return [TrainOnly(changes), ResizeValid(recipe.image_size)]


def is_cacheable(augment: Augment) -> bool:
    """Whether images are changed in no other way than mirroring."""
    return augment.rotate == augment.lighting == augment.warp == 0 and augment.zoom == augment.crop == 1
