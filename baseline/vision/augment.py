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

from baseline.data.image import fit_photo, open_photo
from baseline.errors import gone

if TYPE_CHECKING:
    from baseline.recipe.schema import Augment, Recipe

__all__ = ["PHOTO_FORMS", "shrunk"]

PHOTO_FORMS = (str, Path, bytes, np.ndarray, Image.Image)
"""What `baseline.photos.open_photo` takes."""


def _opened(source: Any, size: int) -> Image.Image:
    try:
        return open_photo(source, size)
    except FileNotFoundError as error:
        raise gone(error) from None


class OpenPhoto(Transform):
    """`open_photo` as fastai's type transform."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def encodes(self, source):  # type: ignore[no-untyped-def]  # fastcore dispatches on annotations
        return PILImage(_opened(source, self.size))


class Fit(Transform):
    """`fit_photo` as fastai's item transform, before its `ToTensor`."""

    order = 1

    def __init__(self, size: int, resize: str) -> None:
        super().__init__()
        self.size, self.resize = size, resize

    def encodes(self, image: PILImage):  # type: ignore[no-untyped-def]
        return PILImage(fit_photo(image, self.size, self.resize))


class OnTraining(Transform):
    """fastai's random changes, on training batches only: on valid ones its own would resample, and change nothing."""

    order, split_idx = 30, 0

    def __init__(self, changes: Sequence[Any]) -> None:
        super().__init__()
        self.changes = changes

    def encodes(self, photos: TensorImage):  # type: ignore[no-untyped-def]
        for change in self.changes:
            photos = change(photos, split_idx=0)
        return photos


class Whole(Transform):
    """Valid photos that were decoded larger, for random crops of training photos, at the size the network sees."""

    order, split_idx = 30, 1

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def encodes(self, photos: TensorImage):  # type: ignore[no-untyped-def]
        return shrunk(photos, self.size).as_subclass(TensorImage)


class Mirror(Transform):
    """Half of the photos of a training batch, left to right: fastai's flip resamples them, at eight times the cost."""

    order, split_idx = 30, 0

    def encodes(self, photos: TensorImage):  # type: ignore[no-untyped-def]
        chosen = torch.rand(len(photos), device=photos.device) < 0.5
        photos[chosen] = photos[chosen].flip(-1)
        return photos


def shrunk(photos: torch.Tensor, size: int) -> torch.Tensor:
    """The photos, N x C x H x W, as squares of `size` pixels where that is another size; 0 leaves them."""
    if size in (0, photos.shape[-1]):
        return photos
    return F.interpolate(photos.as_subclass(torch.Tensor), (size, size), mode="bilinear", antialias=True)


def _augmentation(recipe: Recipe) -> list[Transform]:
    augment = recipe.augment
    if is_still(augment):
        return [Mirror()] if augment.flip else []
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
    return [OnTraining(changes), Whole(recipe.image_size)]


def is_still(augment: Augment) -> bool:
    """Whether photos are changed in no other way than mirroring."""
    return augment.rotate == augment.lighting == augment.warp == 0 and augment.zoom == augment.crop == 1
