"""Network + images -> where in each image the evidence for a class lies. Knows tensors; knows no files.

Grad-CAM: R. R. Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization",
ICCV 2017, https://arxiv.org/abs/1610.02391. Its weights are gradients of a class's score with respect to the last
feature map, so that only the head has to be differentiated: the body runs forward, once, and needs no hooks, because
our networks are `Sequential(body, head)` and the map is what passes between the two.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

__all__ = ["grad_cam"]


def grad_cam(model: nn.Sequential, images: torch.Tensor, classes: Sequence[int]) -> np.ndarray | None:
    """How much each place of the last feature map speaks for a class, the most telling place of an image being 1.

    Args:
        model: `Sequential(body, head)` in evaluation mode, as `network` makes it.
        images: N x 3 x H x W, normalised as the network wants them.
        classes: for each image the number of the class that is asked about.

    Returns:
        N x h x w, float32, 0-1; all 0 for an image where no place speaks for the class. None where the body ends in no
        map of places: transformers, and images so small that the map is a single place.

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
        scores = model[1](maps)
        asked = scores[torch.arange(len(scores)), torch.as_tensor(classes, device=scores.device)]
        (slopes,) = torch.autograd.grad(asked.sum(), maps)
    weights = slopes.mean(dim=(2, 3), keepdim=True)
    places = (weights * maps.detach()).sum(1).relu()
    most = places.amax(dim=(1, 2), keepdim=True)
    return (places / most.clamp_min(torch.finfo(places.dtype).tiny)).cpu().numpy()
