"""Weights of one network into another: copied, converted to an image size, and compared."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

import timm
import torch
from torch import nn

from baseline.errors import WeightsError
from baseline.vision.weights import is_torchvision, state_dict

if TYPE_CHECKING:
    from baseline.vision.weights import Weights

__all__ = ["clone_weights", "convert_weights", "copy_weights", "find_mismatches"]


def convert_weights(arch: str, tensors: Mapping[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    """Return weights under the model's names and resampled for its size by timm's own code, where timm has any."""
    convert = getattr(sys.modules[timm.model_entrypoint(arch).__module__], "checkpoint_filter_fn", None)
    return dict(convert(dict(tensors), model)) if convert else dict(tensors)


def copy_weights(model: nn.Module, weights: Weights, needed: tuple[str, ...]) -> None:
    """Copy all parameters and buffers whose names start with one of the `needed` prefixes.

    Raises:
        WeightsError: if one is missing, has another shape, or holds values that are not finite.
    """
    tensors = state_dict(weights)
    own = {name: value for name, value in model.state_dict().items() if name.startswith(needed)}
    mismatched = find_mismatches(tensors, own)
    if mismatched and not is_torchvision(weights.arch):
        with suppress(Exception):  # of code that expects the weights of this architecture
            converted = convert_weights(weights.arch, tensors, model)
            tensors, mismatched = converted, find_mismatches(converted, own)
    if mismatched:
        count = len(find_mismatches({}, own))
        raise WeightsError(
            f"{weights.path} does not hold weights of {weights.arch}: {len(mismatched)} of {count} tensors are "
            f"missing or have another shape, the first is '{mismatched[0]}'. Pass a file of this architecture, or "
            "change --arch."
        )
    if invalid := [name for name in own if name in tensors and not torch.isfinite(tensors[name]).all()]:
        raise WeightsError(f"{weights.path} holds NaN or infinite values, first in '{invalid[0]}'. Download it again.")
    model.load_state_dict({name: tensors[name] for name in own if name in tensors}, strict=False)


def find_mismatches(tensors: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor]) -> list[str]:
    """Return the names of a model's own tensors that are missing or have another shape, counters left out."""
    names = [name for name in own if not name.endswith("num_batches_tracked")]
    return [name for name in names if name not in tensors or tensors[name].shape != own[name].shape]


def clone_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return a copy of the model's state dict."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}
