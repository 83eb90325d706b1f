"""A model as one torch module: images as bytes in, calibrated probabilities out. Knows tensors; knows no files.

All that `Model.predict` does to an image once it is upright RGB is done here in operations that torch and ONNX can both
carry: Pillow's bicubic resizing to the last bit, normalisation, the network, the views, the temperature.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from baseline.evaluation.predict import augmented_views
from baseline.vision.augment import resize_batch

__all__ = ["ExportModule"]


PRECISION_BITS = 22
"""Of the fixed-point weights that Pillow resamples pictures of 8 bits with."""


class ExportModule(nn.Module):
    """uint8 images, N x H x W x 3, upright RGB -> probabilities, N x classes, float32, as `Model.predict` tells them.

    Args:
        network: what `load_network` gives; it is copied.
        facts: likewise.
        decoded_size: pixels, side of the squares that images are decoded to (see `Recipe.decoded_size`).
        views: `facts["tta"]`, or none for the plain image alone.
        any_size: images are resized here; without, they must be squares of `decoded_size` pixels.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, network: nn.Module, facts: Mapping[str, Any], decoded_size: int, views: tuple[str, ...], *, any_size: bool
    ) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).cpu().float().eval().requires_grad_(False)
        self.decoded_size, self.views, self.any_size = decoded_size, views, any_size
        self.image_size, self.resize = facts["image_size"], facts["resize"]
        self.many, self.temperature = facts["labels"] == "many", facts["temperature"] or 1.0
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(facts[name], dtype=torch.float32).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        planes = images.permute(0, 3, 1, 2)
        if self.any_size:
            planes = pillow_resize(planes, self.decoded_size, self.resize)
        inputs = (resize_batch(planes.float() / 255, self.image_size) - self.mean) / self.std
        views = list(augmented_views(inputs, self.views))
        return self._calibrated(self.network(torch.cat(views)).unflatten(0, (len(views), -1))).float()

    def _calibrated(self, outputs: Tensor) -> Tensor:
        """Of outputs, views x N x classes, the mean of the probabilities, at the temperature."""
        if len(outputs) == 1:  # then the same as outputs divided by it
            scaled = outputs[0]
        else:
            outputs = outputs.double()  # float32 would round shares near 1, whose logarithms count
            if self.many:
                scaled = outputs.sigmoid().mean(0).log() - (-outputs).sigmoid().mean(0).log()
            else:
                scaled = outputs.softmax(-1).mean(0).log()
        scaled = scaled / self.temperature
        return scaled.sigmoid() if self.many else scaled.softmax(-1)


def pillow_resize(planes: Tensor, size: int, resize: str) -> Tensor:
    """What `baseline.images.fit_image` makes of upright RGB pictures, N x 3 x H x W, the same to the last bit.

    N x 3 x size x size, float64, whole numbers from 0 to 255.

    Both passes of Pillow are matrix products of its fixed-point weights, each rounded to 8 bits; in float64 they are
    exact. Like Pillow 13 it goes across first, or down first where the height is much reduced, which rounds otherwise.

    >>> from PIL import Image
    >>> noise = torch.randint(256, (40, 71, 3), dtype=torch.uint8)
    >>> ours = pillow_resize(noise.permute(2, 0, 1)[None], 32, "squish")[0].permute(1, 2, 0)
    >>> theirs = Image.fromarray(noise.numpy()).resize((32, 32), Image.Resampling.BICUBIC)
    >>> bool((ours.numpy() == theirs).all())
    True
    """
    down, across = (torch.arange(side, dtype=torch.float64) for side in planes.shape[2:])
    height, width = down[-1] + 1, across[-1] + 1
    rows, columns = (_source_region(*sides, size, resize) for sides in ((height, width), (width, height)))
    matrices = planes.double(), _resize_weights(down, *rows, size), _resize_weights(across, *columns, size).T
    less_high, less_wide = height - rows[2], width - columns[2]
    down_first = (less_high > 0) & (less_high > 2 * less_wide)
    return torch.cond(down_first, _down_first, _across_first, matrices)


def _across_first(planes: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    return _to_uint8(rows @ _to_uint8(planes @ columns))


def _down_first(planes: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    return _to_uint8(_to_uint8(rows @ planes) @ columns)


def _source_region(side: Tensor, other: Tensor, size: int, resize: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of one side of a picture: from where to where it is taken, how many pixels that becomes, where these begin."""
    nothing, whole = torch.zeros_like(side), torch.full_like(side, size)
    if resize == "crop":
        seen = torch.minimum(side, other)
        return (side - seen) / 2, (side + seen) / 2, whole, nothing
    if resize == "pad":
        made = torch.minimum((side / other * size).round(), whole)
        return nothing, side, made, ((whole - made) / 2).round()
    return nothing, side, whole, nothing


def _resize_weights(pixels: Tensor, begin: Tensor, end: Tensor, made: Tensor, first: Tensor, size: int) -> Tensor:
    """Pillow's bicubic weights of each pixel of a side in each of `size` new ones, size x side, times 2 ** 22."""
    new = (torch.arange(size, dtype=torch.float64) - first)[:, None]
    scale = (end - begin) / made
    wide = scale.clamp(min=1)
    centre = begin + (new + 0.5) * scale
    low, high = (centre - 2 * wide + 0.5).floor(), (centre + 2 * wide + 0.5).floor()
    inside = (pixels >= low) & (pixels < high)
    weights = torch.where(inside, _bicubic((pixels - centre + 0.5) * (1 / wide)), 0.0)
    weights = weights / weights.sum(1, keepdim=True) * 2**PRECISION_BITS
    rounded = (weights.abs() + 0.5).floor() * weights.sign()
    return torch.where((new >= 0) & (new < made), rounded, 0.0)


def _bicubic(x: Tensor) -> Tensor:
    x = x.abs()
    near, far = (1.5 * x - 2.5) * x * x + 1, (((x - 5) * x + 8) * x - 4) * -0.5
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


def _to_uint8(sums: Tensor) -> Tensor:
    return ((sums + 2 ** (PRECISION_BITS - 1)) / 2**PRECISION_BITS).floor().clamp(0, 255)
