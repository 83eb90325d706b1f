"""Networks: a torchvision or timm body without its head, fastai's head, and layer groups."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeGuard

from fastai.callback.hook import num_features_model
from fastai.vision.learner import TimmBody, add_head
from torch import nn

from baseline.errors import RecipeError
from baseline.recipe.schema import HEADS
from baseline.vision.bodies import (
    build_timm_body,
    build_torchvision_body,
    only_averages,
    pooled_width,
    replace_pointwise_convs,
    split_timm_groups,
)
from baseline.vision.sizes import nearest_size, size_options, size_problem
from baseline.vision.weights import check_arch, is_torchvision

if TYPE_CHECKING:
    from baseline.vision.weights import Weights

__all__ = ["FEATURES", "Splitter", "build_network", "features_of", "find_head", "is_body_and_head", "layer_groups"]


Splitter = Callable[[Any], Any]
"""Function from a network to its layer groups, each a list of parameters, first layers first."""


FEATURES = ("maps", "pooled", "fastai")
"""What a body hands to the head: feature maps that the head pools, or features that timm pooled itself, with the layers
that some models have between pooling and logits. `"fastai"` is a timm body as fastai cuts it, at the model's own size.
"""


def build_network(
    arch: str,
    classes: int,
    weights: Weights | None,
    head: str = "linear",
    *,
    image_size: int = 0,
    dynamic: bool = False,
    features: str = "",
) -> tuple[nn.Sequential, Splitter]:
    """Return `Sequential(body, head)` and the function that splits its parameters into layer groups.

    Args:
        arch: a torchvision or timm name.
        classes: number of outputs.
        weights: weights of the body; None for random ones. timm resamples position embeddings for the image size.
        head: `"linear"` or `"fastai"`; see `ModelSettings.head`.
        image_size: height and width of the input in pixels, for models built for a size; 0 for the model's own.
        dynamic: whether the network has to accept other sizes, too, where timm offers that.
        features: one of `FEATURES`; empty for maps where timm only averages them, and pooled features elsewhere.

    Raises:
        RecipeError: if the architecture does not exist, its head cannot be cut off, its features cannot be pooled, or
            it does not accept images of the size.
        WeightsError: if the weights belong to another architecture.
    """
    check_arch(arch)
    if image_size and not features and (problem := size_problem(arch, image_size)):
        raise RecipeError(
            f"{arch} does not accept images of {image_size} pixels: {problem}. "
            f"Use --image-size {nearest_size(arch, image_size)}."
        )
    options: dict[str, Any] = {"lin_ftrs": [], "concat_pool": False, "ps": 0.0} if head == "linear" else {}
    if is_torchvision(arch):
        body, splitter = build_torchvision_body(arch, weights)
        replace_pointwise_convs(body)
        return add_head(body, num_features_model(body), classes, **options), splitter
    body = build_timm_body(arch, weights, {} if features == "fastai" else size_options(arch, image_size, dynamic))
    replace_pointwise_convs(body)
    if features != "fastai":
        body.needs_pool = features == "maps" or (not features and body.needs_pool and only_averages(body.model))
    width = body.model.num_features if body.needs_pool else pooled_width(body.model)
    return add_head(body, width, classes, pool=body.needs_pool, **options), split_timm_groups


def features_of(body: nn.Module) -> str:
    """Return which of `FEATURES` a body hands to the head."""
    return "pooled" if isinstance(body, TimmBody) and not body.needs_pool else "maps"


def is_body_and_head(model: nn.Module) -> TypeGuard[nn.Sequential]:
    """Whether the network is a sequence of a body and a head, as fastai's `vision_learner` makes it."""
    return isinstance(model, nn.Sequential) and len(model) == 2


def layer_groups(model: nn.Module, splitter: Splitter) -> list[list[nn.Parameter]]:
    """Return the parameters of a network by layer group; a splitter that returns a flat list makes one group."""
    groups = list(splitter(model))
    return [groups] if groups and isinstance(groups[0], nn.Parameter) else [list(group) for group in groups]


def find_head(model: nn.Module, arch: str, classes: int, head: str) -> str | None:
    """Return the kind of head with which `build_network` builds this network, `head` first; None if it cannot."""
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    for kind in dict.fromkeys((head, *HEADS)):
        try:
            built = build_network(arch, classes, None, kind)[0]
        except Exception:  # no architecture of that name, or one without a head
            return None
        if shapes == {name: value.shape for name, value in built.state_dict().items()}:
            return kind
    return None
