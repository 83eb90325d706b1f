"""Grad-CAM heatmaps: where in an image the evidence for a class lies.

Grad-CAM: R. R. Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization",
ICCV 2017, https://arxiv.org/abs/1610.02391. It weights the channels of the last feature map by the gradients of the
class score, so only what comes after that map has to be differentiated: the head, and the pooling where the body has
its own. The tokens of a transformer are a map, too. Where only its class token is pooled, the other tokens have no
effect after the last block, and the map is the input of that block.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from baseline.vision.network import features_of

__all__ = ["grad_cam"]


def grad_cam(model: nn.Sequential, images: Tensor, classes: Sequence[int]) -> np.ndarray | None:
    """Return how strongly each location of the last feature map supports a class, scaled to a maximum of 1 per image.

    Args:
        model: `Sequential(body, head)` in evaluation mode, as `network` builds it.
        images: N x 3 x H x W, normalized as the network expects them.
        classes: for each image the index of the class to explain.

    Returns:
        N x h x w, float32, 0-1; all 0 for an image in which no location supports the class. None where the body has no
        map of locations before its features are pooled, and for images so small that it has a single location.

    >>> body = nn.Conv2d(3, 2, 1, bias=False)
    >>> grad_cam(nn.Sequential(body, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())),
    ...          torch.rand(1, 3, 4, 5), [0]).shape
    (1, 4, 5)
    """
    for run in (run_from_features, run_from_last_block):
        features, outputs = run(model, images)
        maps = locations(model, features)
        if maps is None or len(maps) != len(images):
            return None
        scores = outputs[torch.arange(len(outputs)), torch.as_tensor(classes, device=outputs.device)]
        slopes = locations(model, torch.autograd.grad(scores.sum(), features)[0])
        if slopes.any() or features_of(model[0]) == "maps":
            break
    heatmaps = (slopes.mean(dim=(2, 3), keepdim=True) * maps.detach()).sum(1).relu()
    maxima = heatmaps.amax(dim=(1, 2), keepdim=True)
    return (heatmaps / maxima.clamp_min(torch.finfo(heatmaps.dtype).tiny)).cpu().numpy()


def run_from_features(model: nn.Sequential, images: Tensor) -> tuple[Any, Tensor]:
    """Return the features that are pooled, and the outputs as a function of them."""
    body, head = model[0], model[1]
    timm_model: Any = body.model if features_of(body) == "pooled" else None
    with torch.no_grad():
        features = timm_model.forward_features(images) if timm_model else body(images)
    if not isinstance(features, Tensor):
        return None, images
    with torch.enable_grad():
        features = features.detach().float().requires_grad_(True)
        return features, head(timm_model.forward_head(features) if timm_model else features)


def run_from_last_block(model: nn.Sequential, images: Tensor) -> tuple[Any, Tensor]:
    """Return the input of the body's last block, and the outputs as a function of it."""
    timm_model: Any = model[0].model
    inputs: list[Any] = []

    def begin(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        torch.set_grad_enabled(True)
        inputs.append(args[0].detach().requires_grad_(True) if isinstance(args[0], Tensor) else None)
        return (inputs[-1], *args[1:]) if isinstance(args[0], Tensor) else args

    block = timm_model.get_submodule(timm_model.feature_info[-1]["module"])
    hook = block.register_forward_pre_hook(begin)
    try:
        with torch.no_grad():  # up to the block
            outputs = model(images)
    finally:
        hook.remove()
    return inputs[-1], outputs


def locations(model: nn.Sequential, features: Any) -> Any:
    """Return maps or tokens as N x channels x h x w; None if they are neither, or have a single location."""
    timm_model = getattr(model[0], "model", None)
    if not isinstance(features, Tensor) or features.ndim not in (3, 4):
        return None
    if features.ndim == 3:
        count = features.shape[1]
        prefixes = (getattr(timm_model, "num_prefix_tokens", 0), 0, 1)  # class tokens and registers
        first = next((n for n in prefixes if n < count and isqrt(count - n) ** 2 == count - n), None)
        if first is None:
            return None
        features = features[:, first:].unflatten(1, (isqrt(count - first), -1)).permute(0, 3, 1, 2)
    elif features.shape[-1] == getattr(timm_model, "num_features", 0) != features.shape[1]:
        features = features.permute(0, 3, 1, 2)
    return features if features.shape[-2] * features.shape[-1] > 1 else None
