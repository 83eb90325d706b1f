"""Networks: a torchvision or timm body without its head, fastai's head, and layer groups."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from inspect import signature
from typing import TYPE_CHECKING, Any, TypeGuard

import timm
import torch
import torchvision
from fastai.callback.hook import num_features_model
from fastai.torch_core import params
from fastai.vision.learner import TimmBody, add_head, create_body, model_meta
from timm.models import group_parameters
from torch import nn

from baseline.errors import RecipeError, WeightsError, first_line
from baseline.recipe.schema import HEADS
from baseline.vision.rng import preserve_rng_state
from baseline.vision.weights import check_arch, is_torchvision, state_dict

if TYPE_CHECKING:
    from baseline.vision.weights import Weights

__all__ = ["FEATURES", "build_network", "copy_weights", "device_of", "features_of", "nearest_size", "size_problem"]


Splitter = Callable[[Any], Any]
"""Function from a network to its layer groups, each a list of parameters, first layers first."""


WHOLE_MODELS = ("vit_", "swin_", "maxvit", "googlenet", "inception", "mnasnet", "shufflenet")
"""Prefixes of torchvision models that cannot be cut into a body of feature maps and a head; timm has all of them."""


def device_of(model: nn.Module) -> torch.device:
    """Return the device of the model's parameters."""
    return next(model.parameters()).device


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
        head: `"linear"` or `"fastai"`; see `Recipe.head`.
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
        return add_head(body, num_features_model(body), classes, **options), splitter
    body = build_timm_body(arch, weights, {} if features == "fastai" else size_options(arch, image_size, dynamic))
    if features != "fastai":
        body.needs_pool = features == "maps" or (not features and body.needs_pool and only_averages(body.model))
    width = body.model.num_features if body.needs_pool else pooled_width(body.model)
    return add_head(body, width, classes, pool=body.needs_pool, **options), split_timm_groups


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


def build_timm_body(arch: str, weights: Weights | None, options: Mapping[str, Any]) -> TimmBody:
    """Return a timm model without its head, as fastai cuts it."""
    model = timm.create_model(arch, pretrained=False, num_classes=0, **options)
    if weights is not None:
        copy_weights(model, weights, needed=("",))
    body = TimmBody(model, False, None, 3)
    body.needs_pool = body.needs_pool and getattr(model, "output_fmt", "NCHW") == "NCHW"
    return body


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


def features_of(body: nn.Module) -> str:
    """Return which of `FEATURES` a body hands to the head."""
    return "pooled" if isinstance(body, TimmBody) and not body.needs_pool else "maps"


@cache
def skeleton(arch: str, image_size: int = 0, dynamic: bool = False) -> Any:
    """Return a timm model without its head, or a torchvision body, without values where that is possible."""

    def build() -> nn.Module:
        if is_torchvision(arch):
            return build_torchvision_body(arch, None)[0]
        return timm.create_model(arch, num_classes=0, **size_options(arch, image_size, dynamic))

    try:
        with torch.device("meta"):
            return build()
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


def split_timm_groups(model: nn.Sequential) -> list[list[nn.Parameter]]:
    """Split into timm's coarse layer groups in order, and the head.

    A model for which timm has none is split into its blocks. Parameters of the model itself that timm forgets, such as
    tokens, belong to the first group.
    """
    body: Any = model[0].model
    by_name = dict(body.named_parameters())
    try:
        groups = group_parameters(body, body.group_matcher(coarse=True))
    except (AttributeError, AssertionError):
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


def convert_weights(arch: str, tensors: Mapping[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    """Return weights under the model's names and resampled for its size by timm's own code, where timm has any."""
    convert = getattr(sys.modules[timm.model_entrypoint(arch).__module__], "checkpoint_filter_fn", None)
    return dict(convert(dict(tensors), model)) if convert else dict(tensors)


def fits_weights(arch: str, model: nn.Module) -> bool:
    """Whether weights for the architecture's own image size fit a model that was built for another."""
    tensors, needed = skeleton(arch).state_dict(), model.state_dict()
    different = find_mismatches(tensors, needed)
    try:
        zeros = {name: torch.zeros(tensors[name].shape) for name in different}
        return not different or not find_mismatches(convert_weights(arch, tensors | zeros, model), needed)
    except Exception:  # of timm's code, about tensors that it cannot resample
        return False


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
            f"missing or have another shape, the first is '{mismatched[0]}'. Give a file of this architecture, or "
            "change --arch."
        )
    if invalid := [name for name in own if name in tensors and not torch.isfinite(tensors[name]).all()]:
        raise WeightsError(f"{weights.path} holds NaN or infinite values, first in '{invalid[0]}'. Download it again.")
    model.load_state_dict({name: tensors[name] for name in own if name in tensors}, strict=False)


def find_mismatches(tensors: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor]) -> list[str]:
    """Return the names of a model's own tensors that are missing or have another shape, counters left out."""
    names = [name for name in own if not name.endswith("num_batches_tracked")]
    return [name for name in names if name not in tensors or tensors[name].shape != own[name].shape]


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
