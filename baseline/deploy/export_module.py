"""A model as a single torch module: uint8 images in, calibrated probabilities out.

Everything that `Model.predict` does to an upright RGB image is implemented in operations that both torch and ONNX can
export: Pillow's bicubic resizing to the last bit, normalization, the network, the TTA views, the temperature.
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
"""Number of fractional bits in the fixed-point weights with which Pillow resamples 8-bit images."""


class ExportModule(nn.Module):
    """Map uint8 images, N x H x W x 3, upright RGB, to the probabilities of `Model.predict`, N x classes, float32.

    Args:
        network: the network that `load_network` returns; it is copied.
        facts: the model's configuration, which `load_network` returns, too.
        decoded_size: side in pixels of the squares that images are decoded to (see `Recipe.decoded_size`).
        views: `facts["tta"]`, or empty for the plain image alone.
        any_size: resize images of any size; if false, they must be squares of `decoded_size` pixels.
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
        self.multilabel, self.temperature = facts["task"] == "multilabel", facts["temperature"] or 1.0
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(facts[name], dtype=torch.float32).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        planes = images.permute(0, 3, 1, 2)
        if self.any_size:
            planes = pillow_resize(planes, self.decoded_size, self.resize)
        inputs = (resize_batch(planes.float() / 255, self.image_size) - self.mean) / self.std
        views = list(augmented_views(inputs, self.views))
        return self._calibrate(self.network(torch.cat(views)).unflatten(0, (len(views), -1))).float()

    def _calibrate(self, outputs: Tensor) -> Tensor:
        """Average the probabilities of outputs, views x N x classes, over views and apply the temperature."""
        if len(outputs) == 1:  # the logits themselves can be scaled
            scaled = outputs[0]
        else:
            outputs = outputs.double()  # float32 would round probabilities near 1, whose logarithms matter
            if self.multilabel:
                scaled = outputs.sigmoid().mean(0).log() - (-outputs).sigmoid().mean(0).log()
            else:
                scaled = outputs.softmax(-1).mean(0).log()
        scaled = scaled / self.temperature
        return scaled.sigmoid() if self.multilabel else scaled.softmax(-1)


def pillow_resize(planes: Tensor, size: int, resize: str) -> Tensor:
    """Resize upright RGB images, N x 3 x H x W, exactly as `baseline.data.image.resize_image` does, to the last bit.

    Both passes of Pillow, the width first, are matrix products with its fixed-point weights, each rounded to 8 bits; in
    float64 they are exact.

    Returns:
        N x 3 x size x size, float64, whole numbers from 0 to 255.

    >>> from baseline.data.image import Image, resize_image
    >>> noise = torch.randint(256, (40, 71, 3), dtype=torch.uint8)
    >>> ours = pillow_resize(noise.permute(2, 0, 1)[None], 32, "squish")[0].permute(1, 2, 0)
    >>> theirs = resize_image(Image.fromarray(noise.numpy()), 32, "squish")
    >>> bool((ours.numpy() == theirs).all())
    True
    """
    y, x = (torch.arange(side, dtype=torch.float64) for side in planes.shape[2:])
    height, width = y[-1] + 1, x[-1] + 1
    rows, columns = (source_region(*sides, size, resize) for sides in ((height, width), (width, height)))
    columns_resized = _round_to_uint8(planes.double() @ resize_weights(x, *columns, size).T)
    return _round_to_uint8(resize_weights(y, *rows, size) @ columns_resized)


def source_region(side: Tensor, other: Tensor, size: int, resize: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return start and end of the region that is used along one side, its new length, and its offset in the square."""
    zero, full = torch.zeros_like(side), torch.full_like(side, size)
    if resize == "crop":
        shorter = torch.minimum(side, other)
        return (side - shorter) / 2, (side + shorter) / 2, full, zero
    if resize == "pad":
        length = torch.minimum((side / other * size).round(), full)
        return zero, side, length, ((full - length) / 2).round()
    return zero, side, full, zero


def resize_weights(pixels: Tensor, start: Tensor, end: Tensor, length: Tensor, offset: Tensor, size: int) -> Tensor:
    """Return Pillow's bicubic weight of each source pixel in each of `size` new ones, size x side, times 2 ** 22."""
    new = (torch.arange(size, dtype=torch.float64) - offset)[:, None]
    scale = (end - start) / length
    support = scale.clamp(min=1)
    center = start + (new + 0.5) * scale
    low, high = (center - 2 * support + 0.5).floor(), (center + 2 * support + 0.5).floor()
    inside = (pixels >= low) & (pixels < high)
    weights = torch.where(inside, _bicubic((pixels - center + 0.5) * (1 / support)), 0.0)
    weights = weights / weights.sum(1, keepdim=True) * 2**PRECISION_BITS
    rounded = (weights.abs() + 0.5).floor() * weights.sign()
    return torch.where((new >= 0) & (new < length), rounded, 0.0)


def _bicubic(x: Tensor) -> Tensor:
    x = x.abs()
    inner, outer = (1.5 * x - 2.5) * x * x + 1, (((x - 5) * x + 8) * x - 4) * -0.5
    return torch.where(x < 1, inner, torch.where(x < 2, outer, 0.0))


def _round_to_uint8(sums: Tensor) -> Tensor:
    return ((sums + 2 ** (PRECISION_BITS - 1)) / 2**PRECISION_BITS).floor().clamp(0, 255)
