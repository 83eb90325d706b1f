"""Networks: a torchvision or timm body without its head, fastai's head, and layer groups."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeGuard

import timm
import torch
import torchvision
from fastai.callback.hook import num_features_model
from fastai.torch_core import params
from fastai.vision.learner import TimmBody, add_head, create_body, default_split, model_meta
from timm.models import group_parameters
from torch import nn

from baseline.errors import RecipeError, WeightsError
from baseline.recipe.schema import HEADS
from baseline.vision.weights import check_arch, is_torchvision, state_dict

if TYPE_CHECKING:
    from baseline.vision.weights import Weights

__all__ = ["build_network", "copy_weights", "device_of"]


Splitter = Callable[[Any], Any]
"""Function from a network to its layer groups, each a list of parameters, first layers first."""


WHOLE_MODELS = ("vit_", "swin_", "maxvit", "googlenet", "inception", "mnasnet", "shufflenet")
"""Prefixes of torchvision models that cannot be cut into a body of feature maps and a head; timm has all of them."""


def device_of(model: nn.Module) -> torch.device:
    """Return the device of the model's parameters."""
    return next(model.parameters()).device


def build_network(
    arch: str, classes: int, weights: Weights | None, head: str = "linear"
) -> tuple[nn.Sequential, Splitter]:
    """Return `Sequential(body, head)` and the function that splits its parameters into layer groups.

    Args:
        arch: a torchvision or timm name.
        classes: number of outputs.
        weights: weights of the body; None for random ones.
        head: `"linear"` or `"fastai"`; see `Recipe.head`.

    Raises:
        RecipeError: if the architecture does not exist or its head cannot be cut off.
        WeightsError: if the weights belong to another architecture.
    """
    check_arch(arch)
    body, splitter = build_torchvision_body(arch, weights) if is_torchvision(arch) else build_timm_body(arch, weights)
    if isinstance(body, TimmBody):
        features, pool = body.model.num_features, body.needs_pool
    else:
        features, pool = num_features_model(body), True
    options: dict[str, Any] = {"lin_ftrs": [], "concat_pool": False, "ps": 0.0} if head == "linear" else {}
    return add_head(body, features, classes, pool=pool, **options), splitter


def build_torchvision_body(arch: str, weights: Weights | None) -> tuple[nn.Module, Splitter]:
    """Return a torchvision model without its head, and its splitter."""
    if arch.startswith(WHOLE_MODELS):
        raise RecipeError(
            f"torchvision's '{arch}' cannot be cut into body and head. Give a similar timm model instead: "
            f"{_suggest_timm_models(arch)}."
        )
    builder = getattr(torchvision.models, arch)
    model = builder(weights=None)
    meta = model_meta.get(builder, {})
    children = [name for name, _ in model.named_children()]
    cut = meta.get("cut") or (children.index("features") + 1 if "features" in children else children.index("avgpool"))
    if weights is not None:
        copy_weights(model, weights, needed=tuple(f"{name}." for name in children[:cut]))
    return create_body(model, cut=cut), meta.get("split") or split_halves


def split_halves(model: nn.Sequential) -> list[list[nn.Parameter]]:
    """Split into the first and second half of the body's blocks, and the head, like fastai does for ResNets."""
    blocks = list(model[0].children())
    blocks = list(blocks[0].children()) if len(blocks) == 1 else blocks
    middle = len(blocks) // 2
    return [params(nn.Sequential(*blocks[:middle])), params(nn.Sequential(*blocks[middle:])), params(model[1])]


def build_timm_body(arch: str, weights: Weights | None) -> tuple[nn.Module, Splitter]:
    """Return a timm model without its head, and its splitter."""
    model = timm.create_model(arch, pretrained=False, num_classes=0)
    if weights is not None:
        copy_weights(model, weights, needed=("",))
    body = TimmBody(model, False, None, 3)
    body.needs_pool = body.needs_pool and getattr(model, "output_fmt", "NCHW") == "NCHW"
    return body, split_timm_groups if hasattr(model, "group_matcher") else default_split


def split_timm_groups(model: nn.Sequential) -> list[list[nn.Parameter]]:
    """Split into timm's coarse layer groups in order, and the head."""
    body: Any = model[0].model
    by_name = dict(body.named_parameters())
    groups = group_parameters(body, body.group_matcher(coarse=True))
    return [*([by_name[name] for name in names] for _, names in sorted(groups.items())), params(model[1])]


def copy_weights(model: nn.Module, weights: Weights, needed: tuple[str, ...]) -> None:
    """Copy all parameters and buffers whose names start with one of the `needed` prefixes.

    Raises:
        WeightsError: if one is missing, has another shape, or holds values that are not finite.
    """
    tensors = state_dict(weights)
    own = {name: value for name, value in model.state_dict().items() if name.startswith(needed)}
    counters = {name for name in own if name.endswith("num_batches_tracked")}
    mismatched = [n for n in own if n not in counters and (n not in tensors or tensors[n].shape != own[n].shape)]
    if mismatched:
        raise WeightsError(
            f"{weights.path} does not hold weights of {weights.arch}: {len(mismatched)} of {len(own) - len(counters)} "
            f"tensors are missing or have another shape, the first is '{mismatched[0]}'. Give a file of this "
            "architecture, or change --arch."
        )
    if invalid := [name for name in own if name in tensors and not torch.isfinite(tensors[name]).all()]:
        raise WeightsError(f"{weights.path} holds NaN or infinite values, first in '{invalid[0]}'. Download it again.")
    model.load_state_dict({name: tensors[name] for name in own if name in tensors}, strict=False)


def _suggest_timm_models(arch: str) -> str:
    names = timm.list_models(f"*{arch.split('_')[0]}*")[:3]
    return ", ".join(names) or "see timm.list_models()"


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


def clone_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return a copy of the model's state dict."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}
