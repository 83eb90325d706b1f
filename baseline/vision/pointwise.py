"""Pointwise convolutions of a training step as matrix products in bfloat16, on CPUs with instructions for it.

Weights, gradients, biases and everything between the products stay in float32, and so do all passes without gradients.
AVX-512 BF16 was measured (`benchmarks/README.md`), AMX was not.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from baseline.vision.cpu_speedups import replaced_forwards

__all__ = ["bfloat16_pointwise"]

MIN_CHANNELS = 32
"""Fewest input and output channels with which the products were faster."""


@contextmanager
def bfloat16_pointwise(model: nn.Module) -> Iterator[None]:
    """Compute the model's pointwise convolutions in bfloat16 inside the context, in passes with gradients.

    Enter it before `optimize_for_cpu`, which then folds BatchNorm into these convolutions, too.

    Example:
        >>> model = nn.Conv2d(32, 64, 1)
        >>> with bfloat16_pointwise(model):
        ...     model(torch.ones(2, 32, 4, 4)).dtype
        torch.float32
    """
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d) and is_pointwise(layer)]
    with replaced_forwards(layers, pointwise_forward):
        yield


def is_pointwise(layer: nn.Conv2d) -> bool:
    """Whether `Bfloat16Pointwise` replaces the layer: kernel 1, stride 1, no padding or groups, and enough channels."""
    return (
        type(layer) is nn.Conv2d
        and layer.kernel_size == layer.stride == (1, 1)
        and layer.padding in ((0, 0), "same", "valid")
        and layer.groups == 1
        and min(layer.in_channels, layer.out_channels) >= MIN_CHANNELS
        and "forward" not in vars(layer)
    )


def pointwise_forward(layer: nn.Conv2d, images: Tensor) -> Tensor:
    """Forward pass of a pointwise convolution, by `Bfloat16Pointwise` if its weights are trained."""
    if not (torch.is_grad_enabled() and layer.weight.requires_grad):
        return nn.Conv2d.forward(layer, images)
    result: Tensor = Bfloat16Pointwise.apply(images, layer.weight, layer.bias)
    return result


class Bfloat16Pointwise(torch.autograd.Function):
    """A convolution of kernel 1 and stride 1 with both passes as matrix products in bfloat16."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        count, channels, height, width = images.shape
        rows = images.permute(0, 2, 3, 1).reshape(-1, channels).bfloat16()
        matrix = weight.view(len(weight), channels).bfloat16()
        ctx.save_for_backward(rows, matrix)
        ctx.shape = images.shape
        outputs = torch.empty((count, len(weight), height, width), memory_format=torch.channels_last)
        outputs.permute(0, 2, 3, 1).view(-1, len(weight)).copy_(rows @ matrix.t())
        return outputs if bias is None else outputs.add_(bias[:, None, None])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        (rows, matrix), (count, channels, height, width) = ctx.saved_tensors, ctx.shape
        full = gradient.permute(0, 2, 3, 1).reshape(-1, len(matrix))
        small = full.bfloat16()
        images = None
        if ctx.needs_input_grad[0]:
            images = (small @ matrix).float().view(count, height, width, channels).permute(0, 3, 1, 2)
        weight = (small.t() @ rows).float().view(len(matrix), channels, 1, 1)
        return images, weight, full.sum(0) if ctx.needs_input_grad[2] else None
