"""Golden outputs: what a saved network predicts for a few images, kept in its folder so that it can check itself."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from baseline.evaluation.predict import predict_probabilities
from baseline.vision.augment import resize_batch
from baseline.vision.learner import mixed_precision

__all__ = ["golden_outputs", "to_inputs"]


def golden_outputs(network: nn.Module, config: Mapping[str, Any], images: np.ndarray) -> dict[str, Tensor]:
    """Return the golden tensors that a model folder keeps for `Model.check`: images and their probabilities.

    The probabilities are those of the plain images, uncalibrated, in float32, computed on the CPU.

    Args:
        images: N x size x size x 3, uint8, as `baseline.data.image.load_square` returns them.
    """
    cpu_network = copy.deepcopy(network).cpu().eval()
    autocast = mixed_precision("float32", "cpu")
    inputs = to_inputs(images, config, torch.device("cpu"))
    many = config["task"] == "multilabel"
    probabilities = predict_probabilities(cpu_network, inputs, (), many=many, numbers=autocast)[0]
    return {"images": torch.from_numpy(images), "probabilities": probabilities.float().clone()}


def to_inputs(squares: np.ndarray, config: Mapping[str, Any], device: torch.device) -> Tensor:
    """Convert squares to N x 3 x image_size x image_size, float32, normalized as in training."""
    images = torch.from_numpy(squares).to(device).permute(0, 3, 1, 2).float().div_(255)
    mean, std = (torch.tensor(config[name], device=device).view(1, 3, 1, 1) for name in ("mean", "std"))
    return resize_batch(images, config["image_size"]).sub_(mean).div_(std)
