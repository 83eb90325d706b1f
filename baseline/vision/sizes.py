"""Which image sizes an architecture accepts, and how it is built for one."""

from __future__ import annotations

from functools import cache
from inspect import signature
from typing import Any

import timm
import torch
from torch import nn

from baseline.errors import RecipeError, first_line
from baseline.parallel.memory import build_without_values
from baseline.vision.bodies import build_torchvision_body, device_of, pooled_width
from baseline.vision.copy_weights import convert_weights, find_mismatches
from baseline.vision.rng import preserve_rng_state
from baseline.vision.weights import is_torchvision

__all__ = ["nearest_size", "own_size", "size_options", "size_problem"]


@cache
def skeleton(arch: str, image_size: int = 0, dynamic: bool = False) -> Any:
    """Return a timm model without its head, or a torchvision body, without values where that is possible."""

    def build() -> nn.Module:
        if is_torchvision(arch):
            return build_torchvision_body(arch, None)[0]
        return timm.create_model(arch, num_classes=0, **size_options(arch, image_size, dynamic))

    try:
        return build_without_values(build)
    except Exception:  # a few compute with their own values while they are built
        with preserve_rng_state():
            return build()


@cache
def size_options(arch: str, image_size: int, dynamic: bool = False) -> dict[str, Any]:
    """Return the options with which timm builds the model for an image size; none if it accepts that as it is."""
    if not image_size:
        return {}
    model = skeleton(arch)
    names = {name for kind in type(model).__mro__ for name in signature(kind).parameters}
    options: dict[str, Any] = {"dynamic_img_size": True} if dynamic and "dynamic_img_size" in names else {}
    if "img_size" in names or model.default_cfg.get("fixed_input_size"):
        try:
            pooled_features(model, image_size)
        except Exception:  # timm's models check their input with assertions, or fail in the middle
            options["img_size"] = image_size
    return options


@torch.no_grad()
def pooled_features(model: nn.Module, size: int) -> Any:
    """Return what a model without its head computes from two black images."""
    return model.eval()(torch.zeros(2, 3, size, size, device=device_of(model)))


@cache
def size_problem(arch: str, image_size: int, *, pretrained: bool = False, stage_size: int = 0) -> str:
    """Return why the architecture does not accept images of that size in pixels; empty if it does.

    Nothing is computed: the network has no values where that is possible.

    Args:
        pretrained: whether weights for the architecture's own size have to fit, too.
        stage_size: a size that has to be accepted by the network that is built for `image_size`.

    Raises:
        RecipeError: if the architecture's features cannot be pooled.
    """
    size = stage_size or image_size
    try:
        model = skeleton(arch, image_size, bool(stage_size))
        shape = tuple(getattr(pooled_features(model, size), "shape", ()))
    except RecipeError:
        raise
    except Exception as error:
        return first_line(error)
    if is_torchvision(arch):
        return ""
    if shape != (2, pooled_width(model)):
        raise RecipeError(
            f"The features of '{arch}' cannot be pooled: for 2 images of {size} pixels their shape is {shape}, and "
            f"one vector per image, {(2, pooled_width(model))}, was needed. Use another --arch."
        )
    if size % size_step(arch):
        return f"a multiple of {size_step(arch)} is needed"
    if pretrained and not fits_weights(arch, model):
        return f"its pretrained weights are for {own_size(arch)} pixels, and timm cannot resample them"
    return ""


def own_size(arch: str) -> int:
    """Return the image size that the architecture was made for, in pixels."""
    return 224 if is_torchvision(arch) else skeleton(arch).default_cfg["input_size"][-1]


def size_step(arch: str) -> int:
    """Return the number that image sizes have to be a multiple of: the side of a patch, for models with patches."""
    patches: Any = None if is_torchvision(arch) else getattr(skeleton(arch), "patch_embed", None)
    return int(patches.feat_ratio()) if hasattr(patches, "feat_ratio") else 1


def nearest_size(arch: str, image_size: int, *, pretrained: bool = False, within: int = 0) -> int:
    """Return the size in pixels nearest to `image_size` that the architecture accepts; see `size_problem`.

    Args:
        within: the size that the network is built for, if it is not the one to be found.

    Raises:
        RecipeError: if it does not even accept its own size.

    >>> nearest_size("vit_tiny_patch16_224", 100), nearest_size("resnet18", 100)
    (96, 100)
    """

    def problem(size: int) -> str:
        return size_problem(arch, within or size, pretrained=pretrained, stage_size=size if within else 0)

    step, bad, good = size_step(arch), image_size, within or own_size(arch)
    if not problem(image_size):
        return image_size
    if reason := problem(good):
        raise RecipeError(f"{arch} does not accept images of its own {good} pixels: {reason}. Use another --arch.")
    near = {image_size // unit * unit + more for unit in (step, 32) for more in (0, unit)}
    nearer = (size for size in near - {0} if abs(size - image_size) < abs(good - image_size))
    in_order = sorted(nearer, key=lambda size: (abs(size - image_size), -size))
    good = next((size for size in in_order if not problem(size)), good)
    while abs(good - bad) > step:
        middle = (good + bad) // 2 // step * step or step
        bad, good = (middle, good) if problem(middle) else (bad, middle)
    return good


def fits_weights(arch: str, model: nn.Module) -> bool:
    """Whether weights for the architecture's own image size fit a model that was built for another."""
    tensors, needed = skeleton(arch).state_dict(), model.state_dict()
    different = find_mismatches(tensors, needed)
    try:
        zeros = {name: torch.zeros(tensors[name].shape) for name in different}
        return not different or not find_mismatches(convert_weights(arch, tensors | zeros, model), needed)
    except Exception:  # of timm's code, about tensors that it cannot resample
        return False
