"""Depthwise convolutions whose weights learn quickly on a CPU. Knows one kernel; knows no stages."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

__all__ = ["quick_depthwise"]


@contextmanager
def quick_depthwise(model: nn.Module) -> Iterator[None]:
    """Inside, depthwise convolutions of `model` on maps smaller than their kernel compute their own weight gradient.

    Where the kernel covers more than the map (5 x 5 on the 2 x 2 and 4 x 4 maps at the end of an EfficientNet at 64
    px), oneDNN's weight gradient falls onto a slow path: 33 ms against 2.6 ms for 64 x 1152 x 2 x 2 floats (torch
    2.15, AVX2, 2 threads). Outputs and input gradients are torch's own; weight gradients agree to rounding. On a GPU
    nothing is changed.
    """
    chosen = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d) and _is_plain_depthwise(layer)]
    for layer in chosen:
        vars(layer)["forward"] = partial(_forward, layer)
    try:
        yield
    finally:
        for layer in chosen:
            del vars(layer)["forward"]


def _is_plain_depthwise(layer: nn.Conv2d) -> bool:
    return (
        type(layer) is nn.Conv2d
        and layer.weight.device.type == "cpu"
        and layer.in_channels == layer.out_channels == layer.groups > 1
        and layer.stride == layer.dilation == (1, 1)
        and layer.padding_mode == "zeros"
        and not isinstance(layer.padding, str)
        and layer.bias is None
    )


def _forward(layer: nn.Conv2d, photos: torch.Tensor) -> torch.Tensor:
    height, width = photos.shape[-2:]
    if layer.weight.requires_grad and torch.is_grad_enabled() and layer.weight[0, 0].numel() > height * width:
        return _Depthwise.apply(photos, layer.weight, layer.padding)
    return nn.Conv2d.forward(layer, photos)


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, photos: torch.Tensor, weight: torch.Tensor, padding: Any) -> torch.Tensor:
        ctx.save_for_backward(photos, weight)
        ctx.padding = padding
        return F.conv2d(photos, weight, None, 1, padding, 1, len(weight))

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        photos, weight = ctx.saved_tensors
        shape = ((1, 1), ctx.padding, (1, 1), False, (0, 0), len(weight))
        mask = (ctx.needs_input_grad[0], False, False)
        inputs = torch.ops.aten.convolution_backward(gradient, photos, weight, None, *shape, mask)[0]
        return inputs, _weight_gradient(photos, gradient, weight, ctx.padding), None


def _weight_gradient(photos: torch.Tensor, gradient: torch.Tensor, weight: torch.Tensor, padding: Any) -> torch.Tensor:
    """One product and one sum for each of the kernel's places."""
    rows, columns = gradient.shape[-2:]
    padded = F.pad(photos, (padding[1], padding[1], padding[0], padding[0])).permute(0, 2, 3, 1)
    last = gradient.permute(0, 2, 3, 1)
    places = [
        (padded[:, top : top + rows, left : left + columns] * last).sum((0, 1, 2))
        for top in range(weight.shape[2])
        for left in range(weight.shape[3])
    ]
    return torch.stack(places, 1).view_as(weight)
