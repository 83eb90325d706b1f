"""TODO."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import timm
import torch
import torchvision
from fastai.callback.hook import num_features_model
from fastai.torch_core import params
from fastai.vision.learner import TimmBody, add_head, create_body, default_split, model_meta
from timm.models import group_parameters
from torch import nn

from baseline.errors import RecipeError, WeightsError
from baseline.vision.weights import check_arch, is_torchvision, state_dict

if TYPE_CHECKING:
    from baseline.vision.weights import Weights

__all__ = ["build_network", "copy_weights", "device_of"]


Splitter = Callable[[nn.Sequential], Any]
"""From a network to its layer groups, each a list of parameters, first layers first."""


WHOLE_MODELS = ("vit_", "swin_", "maxvit", "googlenet", "inception", "mnasnet", "shufflenet")
"""torchvision families that cannot be cut into a body of feature maps and a head; timm has all of them."""


def device_of(model: nn.Module) -> torch.device:
    """Where the model's parameters are."""
    return next(model.parameters()).device


def build_network(
    arch: str, classes: int, weights: Weights | None, head: str = "linear"
) -> tuple[nn.Sequential, Splitter]:
    """`Sequential(body, head)` and the function that splits its parameters into layer groups, first layers first.

    Args:
        arch: a torchvision or timm name.
        classes: the number of outputs.
        weights: for the body; random where None.
        head: `"linear"` or `"fastai"`; see `Recipe.head`.
    """
    check_arch(arch)
    body, splitter = build_torchvision_body(arch, weights) if is_torchvision(arch) else build_timm_body(arch, weights)
    if isinstance(body, TimmBody):
        features, pool = body.model.num_features, body.needs_pool
    else:
        features, pool = num_features_model(body), True
    kind: dict[str, Any] = {"lin_ftrs": [], "concat_pool": False, "ps": 0.0} if head == "linear" else {}
    return add_head(body, features, classes, pool=pool, **kind), splitter


def build_torchvision_body(arch: str, weights: Weights | None) -> tuple[nn.Module, Splitter]:
    if arch.startswith(WHOLE_MODELS):
        raise RecipeError(
            f"'{arch}' of torchvision has no body to cut off. timm has its like: {_timm_suggestion(arch)}."
        )
    maker = getattr(torchvision.models, arch)
    model = maker(weights=None)
    meta = model_meta.get(maker, {})
    children = [name for name, _ in model.named_children()]
    cut = meta.get("cut") or (children.index("features") + 1 if "features" in children else children.index("avgpool"))
    if weights is not None:
        copy_weights(model, weights, needed=tuple(f"{name}." for name in children[:cut]))
    return create_body(model, cut=cut), meta.get("split") or split_halves


def split_halves(model: nn.Sequential) -> list[list[nn.Parameter]]:
    """First and second half of the body's blocks, and the head: fastai's idea of three groups for resnets."""
    blocks = list(model[0].children())
    blocks = list(blocks[0].children()) if len(blocks) == 1 else blocks
    middle = len(blocks) // 2
    return [params(nn.Sequential(*blocks[:middle])), params(nn.Sequential(*blocks[middle:])), params(model[1])]


def build_timm_body(arch: str, weights: Weights | None) -> tuple[nn.Module, Splitter]:
    model = timm.create_model(arch, pretrained=False, num_classes=0)
    if weights is not None:
        copy_weights(model, weights, needed=("",))
    body = TimmBody(model, False, None, 3)
    body.needs_pool = body.needs_pool and getattr(model, "output_fmt", "NCHW") == "NCHW"
    return body, split_timm_groups if hasattr(model, "group_matcher") else default_split


def split_timm_groups(model: nn.Sequential) -> list[list[nn.Parameter]]:
    """timm's coarse layer groups in order, then the head."""
    body: Any = model[0].model
    by_name = dict(body.named_parameters())
    groups = group_parameters(body, body.group_matcher(coarse=True))
    return [*([by_name[name] for name in names] for _, names in sorted(groups.items())), params(model[1])]


def copy_weights(model: nn.Module, weights: Weights, needed: tuple[str, ...]) -> None:
    """Copies every parameter and buffer whose name begins as `needed` says; all must be there, of the same shape."""
    given = state_dict(weights)
    own = {name: value for name, value in model.state_dict().items() if name.startswith(needed)}
    counters = {name for name in own if name.endswith("num_batches_tracked")}
    wrong = [n for n in own if n not in counters and (n not in given or given[n].shape != own[n].shape)]
    if wrong:
        raise WeightsError(
            f"{weights.path} holds no weights of {weights.arch}: {len(wrong)} of {len(own) - len(counters)} tensors "
            f"are missing or of another shape, the first '{wrong[0]}'. Give its own file, or change --arch."
        )
    if bad := [name for name in own if name in given and not torch.isfinite(given[name]).all()]:
        raise WeightsError(f"{weights.path} holds values that are no numbers, first in '{bad[0]}'. Get it again.")
    model.load_state_dict({name: given[name] for name in own if name in given}, strict=False)


def _timm_suggestion(arch: str) -> str:
    near = timm.list_models(f"*{arch.split('_')[0]}*")[:3]
    return ", ".join(near) or "see timm.list_models()"


def clone_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}
