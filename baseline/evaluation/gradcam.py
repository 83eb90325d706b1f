"""Grad-CAM heatmaps: where in an image the evidence for a class lies.

Grad-CAM: R. R. Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization",
ICCV 2017, https://arxiv.org/abs/1610.02391. It weights the channels of the last feature map by the gradients of the
class score, so only the head has to be differentiated. Because our networks are `Sequential(body, head)`, the map is
what the body hands to the head: the body runs forward once, without gradients, and no hooks are needed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

__all__ = ["grad_cam"]


def grad_cam(model: nn.Sequential, images: torch.Tensor, classes: Sequence[int]) -> np.ndarray | None:
    """Return how strongly each location of the last feature map supports a class, scaled to a maximum of 1 per image.

    Args:
        model: `Sequential(body, head)` in evaluation mode, as `network` builds it.
        images: N x 3 x H x W, normalized as the network expects them.
        classes: for each image the index of the class to explain.

    Returns:
        N x h x w, float32, 0-1; all 0 for an image in which no location supports the class. None where the body does
        not end in a spatial map: transformers, and images so small that the map has a single location.

    >>> body = nn.Conv2d(3, 2, 1, bias=False)
    >>> grad_cam(nn.Sequential(body, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())),
    ...          torch.rand(1, 3, 4, 5), [0]).shape
    (1, 4, 5)
    """
    with torch.no_grad():
        maps = model[0](images)
    if maps.ndim != 4 or maps.shape[-1] * maps.shape[-2] < 2:
        return None
    with torch.enable_grad():
        maps = maps.detach().float().requires_grad_(True)
        logits = model[1](maps)
        scores = logits[torch.arange(len(logits)), torch.as_tensor(classes, device=logits.device)]
        (gradients,) = torch.autograd.grad(scores.sum(), maps)
    weights = gradients.mean(dim=(2, 3), keepdim=True)
    heatmaps = (weights * maps.detach()).sum(1).relu()
    maxima = heatmaps.amax(dim=(1, 2), keepdim=True)
    return (heatmaps / maxima.clamp_min(torch.finfo(heatmaps.dtype).tiny)).cpu().numpy()
