"""Bodies: torchvision and timm models without their heads, and their layer groups."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import timm
import torch
import torchvision
from fastai.torch_core import params
from fastai.vision.learner import TimmBody, create_body, model_meta
from timm.models import group_parameters
from torch import Tensor, nn

from baseline.errors import RecipeError
from baseline.vision.copy_weights import copy_weights

if TYPE_CHECKING:
    from baseline.vision.network import Splitter
    from baseline.vision.weights import Weights

__all__ = ["build_timm_body", "build_torchvision_body", "device_of", "replace_pointwise_convs"]


WHOLE_MODELS = ("vit_", "swin_", "maxvit", "googlenet", "inception", "mnasnet", "shufflenet")
"""Prefixes of torchvision models that cannot be cut into a body of feature maps and a head; timm has all of them."""


def build_torchvision_body(arch: str, weights: Weights | None) -> tuple[nn.Module, Splitter]:
    """Return a torchvision model without its head, and its splitter."""
    if arch.startswith(WHOLE_MODELS):
        raise RecipeError(
            f"torchvision's '{arch}' cannot be cut into body and head. Use a similar timm model instead: "
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


class PointwiseConv(nn.Conv2d):
    """A 1 x 1 convolution with a stride that drops the pixels that the stride leaves out before it multiplies.

    On a CPU, the weight gradient of `nn.Conv2d` reads memory that is not its own in this case, if there are few input
    channels and they are stored last (torch 2.15): the process is killed.
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        rows, columns = self.stride
        return nn.functional.conv2d(input[..., ::rows, ::columns], weight, bias)


def replace_pointwise_convs(body: nn.Module) -> None:
    """Make `PointwiseConv`s of the strided 1 x 1 convolutions with few input channels, such as RepVGG's first one."""
    for module in body.modules():
        if type(module) is not nn.Conv2d or module.in_channels >= 16 or max(module.stride) == 1:
            continue
        if module.kernel_size == (1, 1) and module.padding == (0, 0) and module.groups == 1:
            module.__class__ = PointwiseConv


def split_halves(model: nn.Sequential) -> list[list[nn.Parameter]]:
    """Split into the first and second half of the body's blocks, and the head, like fastai does for ResNets."""
    blocks = list(model[0].children())
    blocks = list(blocks[0].children()) if len(blocks) == 1 else blocks
    middle = len(blocks) // 2
    return [params(nn.Sequential(*blocks[:middle])), params(nn.Sequential(*blocks[middle:])), params(model[1])]


def build_timm_body(arch: str, weights: Weights | None, options: Mapping[str, Any]) -> TimmBody:
    """Return a timm model without its head, as fastai cuts it."""
    model = timm.create_model(arch, pretrained=False, num_classes=0, **options)
    if weights is not None:
        copy_weights(model, weights, needed=("",))
    body = TimmBody(model, False, None, 3)
    body.needs_pool = body.needs_pool and getattr(model, "output_fmt", "NCHW") == "NCHW"
    return body


def split_timm_groups(model: nn.Sequential) -> list[list[nn.Parameter]]:
    """Split into timm's coarse layer groups in order, and the head.

    A model for which timm has none, or only one, is split into its blocks. Parameters of the model itself that timm
    forgets, such as tokens, belong to the first group.
    """
    body: Any = model[0].model
    by_name = dict(body.named_parameters())
    try:
        groups = group_parameters(body, body.group_matcher(coarse=True))
    except (AttributeError, AssertionError):
        groups = {}
    if len(groups) < 2:
        blocks = list(dict.fromkeys(map(block_name, by_name)))
        groups = group_parameters(body, lambda name: blocks.index(block_name(name)))
    names = [groups[number] for number in sorted(groups)]
    forgotten = [name for name in names[-1] if "." not in name]
    names = [[name for name in group if name not in forgotten] for group in names]
    names[0] += forgotten
    return [*([by_name[name] for name in group] for group in names if group), params(model[1])]


def block_name(name: str) -> str:
    """Return the start of a parameter's name that says in which block it is.

    >>> block_name("stages.0.blocks.1.mlp.fc1.weight"), block_name("stem.conv.weight"), block_name("pos_embed")
    ('stages.0.blocks.1', 'stem', '')
    """
    match = re.match(r"(?:\w+\.\d+(?:\.blocks\.\d+)?|\w+(?=\.))", name)
    return match.group() if match else ""


@torch.no_grad()
def only_averages(model: Any) -> bool:
    """Whether all that a timm model does with its feature maps before the logits is to average them."""
    maps = 4.0 * torch.arange(8 * model.num_features, device=device_of(model)).view(2, -1, 2, 2)  # exact averages
    try:
        return torch.equal(model.eval().forward_head(maps, pre_logits=True), maps.mean((2, 3)))
    except (RuntimeError, ValueError, AssertionError):
        return False
    finally:
        model.train()


def pooled_width(model: Any) -> int:
    """Return the number of features that a timm model pools itself."""
    return getattr(model, "head_hidden_size", None) or model.num_features


def _suggest_timm_models(arch: str) -> str:
    names = timm.list_models(f"*{arch.split('_')[0]}*")[:3]
    return ", ".join(names) or "see timm.list_models()"


def device_of(model: nn.Module) -> torch.device:
    """Return the device of the model's parameters."""
    return next(model.parameters()).device
