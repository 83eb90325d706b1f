"""Recipe + DataLoaders -> a complete fastai Learner. Knows networks and weights; knows no photos, no stages.

The network is put together as fastai's `vision_learner` does it, from the same parts (`create_body` or `TimmBody`,
`add_head`, `Learner`), because three things must differ: weights come from a checked file, normalisation belongs to
the weights and not to a list of known names, and timm's layer groups are timm's own instead of two.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import fastai.callback.all  # noqa: F401  # gives Learner fit_one_cycle, lr_find and its progress bar
import timm
import torch
import torchvision
from fastai.callback.channelslast import ChannelsLast
from fastai.callback.hook import num_features_model
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.losses import BCEWithLogitsLossFlat, CrossEntropyLossFlat
from fastai.metrics import F1ScoreMulti, accuracy
from fastai.torch_core import default_device, params
from fastai.vision.learner import TimmBody, add_head, create_body, default_split, model_meta
from timm.models import group_parameters
from torch import nn

from .errors import RecipeError, WeightsError
from .recipe import Recipe
from .weights import Weights, check_arch, find_weights, is_torchvision, state_dict

__all__ = ["autocast", "device_of", "learner", "load_weights", "network", "number_format"]

Splitter = Callable[[nn.Sequential], Any]
"""From a network to its layer groups, each a list of parameters, first layers first."""

UNCUT = ("vit_", "swin_", "maxvit", "googlenet", "inception", "mnasnet", "shufflenet")
"""torchvision families that cannot be cut into a body of feature maps and a head; timm has all of them."""


def learner(
    dls: DataLoaders, recipe: Recipe, *, weights: Weights | None = None, path: Path | str | None = None
) -> Learner:
    """A fastai Learner over the recipe's network: pretrained body, fastai's head, discriminative layer groups.

    The body's weights are `weights`, else what `find_weights` finds; with `recipe.scratch` they are random. The
    Learner is on the device of `dls`, in evaluation mode, with all layers trainable until a stage freezes some.

    Raises:
        RecipeError: if the architecture does not exist or has no body that can be cut off.
        WeightsError: if the weights cannot be had or are not of this architecture.
    """
    if weights is None and not recipe.scratch:
        weights = find_weights(recipe.arch, recipe.weights)
    model, splitter = network(recipe.arch, len(dls.vocab), weights, recipe.head)
    learn = Learner(
        dls,
        model,
        loss_func=_loss(dls, recipe),
        splitter=splitter,
        metrics=F1ScoreMulti(recipe.threshold, average="micro") if recipe.labels == "many" else accuracy,
        path=path,
        cbs=ChannelsLast(),
    )
    if recipe.precision in ("float16", "bfloat16"):
        learn.to_fp16() if recipe.precision == "float16" else learn.to_bf16()
    model.to(default_device()).eval()
    return learn


def _loss(dls: DataLoaders, recipe: Recipe) -> Any:
    """Cross-entropy, weighted by how rare a class is where that is wished; for many labels binary cross-entropy."""
    if recipe.labels == "many":
        return BCEWithLogitsLossFlat(thresh=recipe.threshold)
    if recipe.balance != "weights":
        return CrossEntropyLossFlat()
    counts = dls.train_ds.items["label"].value_counts()
    shares = [len(dls.train_ds) / (len(dls.vocab) * counts[name]) for name in dls.vocab]
    return CrossEntropyLossFlat(weight=torch.tensor(shares, dtype=torch.float32, device=default_device()))


def device_of(model: nn.Module) -> torch.device:
    """Where the model's parameters are."""
    return next(model.parameters()).device


def autocast(learn: Learner) -> torch.autocast:
    """The number format that the Learner trains in, for a forward pass outside its loop."""
    mixed = getattr(learn, "mixed_precision", None)
    bfloat16 = mixed is not None and "bf16" in str(mixed.amp_mode).lower()
    name = "float32" if mixed is None else "bfloat16" if bfloat16 else "float16"
    return number_format(name, device_of(learn.model).type)


def number_format(name: str, device: str) -> torch.autocast:
    """Inside, passes run in the format of that name: `"float16"`, `"bfloat16"`, any other is float32."""
    return torch.autocast(
        device, torch.float16 if name == "float16" else torch.bfloat16, enabled=name in ("float16", "bfloat16")
    )


def network(arch: str, classes: int, weights: Weights | None, head: str = "linear") -> tuple[nn.Sequential, Splitter]:
    """`Sequential(body, head)` and the function that splits its parameters into layer groups, first layers first.

    Args:
        arch: a torchvision or timm name.
        classes: the number of outputs.
        weights: for the body; random where None.
        head: `"linear"` or `"fastai"`; see `Recipe.head`.
    """
    check_arch(arch)
    body, splitter = _torchvision_body(arch, weights) if is_torchvision(arch) else _timm_body(arch, weights)
    if isinstance(body, TimmBody):
        features, pool = body.model.num_features, body.needs_pool
    else:
        features, pool = num_features_model(body), True
    kind: dict[str, Any] = {"lin_ftrs": [], "concat_pool": False, "ps": 0.0} if head == "linear" else {}
    return add_head(body, features, classes, pool=pool, **kind), splitter


def _torchvision_body(arch: str, weights: Weights | None) -> tuple[nn.Module, Splitter]:
    if arch.startswith(UNCUT):
        raise RecipeError(f"'{arch}' of torchvision has no body to cut off. timm has its like: {_timm_like(arch)}.")
    maker = getattr(torchvision.models, arch)
    model = maker(weights=None)
    meta = model_meta.get(maker, {})
    children = [name for name, _ in model.named_children()]
    cut = meta.get("cut") or (children.index("features") + 1 if "features" in children else children.index("avgpool"))
    if weights is not None:
        load_weights(model, weights, needed=tuple(f"{name}." for name in children[:cut]))
    return create_body(model, cut=cut), meta.get("split") or _halves


def _halves(model: nn.Sequential) -> list[list[nn.Parameter]]:
    """First and second half of the body's blocks, and the head: fastai's idea of three groups for resnets."""
    blocks = list(model[0].children())
    blocks = list(blocks[0].children()) if len(blocks) == 1 else blocks
    middle = len(blocks) // 2
    return [params(nn.Sequential(*blocks[:middle])), params(nn.Sequential(*blocks[middle:])), params(model[1])]


def _timm_body(arch: str, weights: Weights | None) -> tuple[nn.Module, Splitter]:
    model = timm.create_model(arch, pretrained=False, num_classes=0)
    if weights is not None:
        load_weights(model, weights, needed=("",))
    body = TimmBody(model, False, None, 3)
    body.needs_pool = body.needs_pool and getattr(model, "output_fmt", "NCHW") == "NCHW"
    return body, _timm_split if hasattr(model, "group_matcher") else default_split


def _timm_split(model: nn.Sequential) -> list[list[nn.Parameter]]:
    """timm's coarse layer groups in order, then the head."""
    body: Any = model[0].model
    by_name = dict(body.named_parameters())
    groups = group_parameters(body, body.group_matcher(coarse=True))
    return [*([by_name[name] for name in names] for _, names in sorted(groups.items())), params(model[1])]


def load_weights(model: nn.Module, weights: Weights, needed: tuple[str, ...]) -> None:
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


def _timm_like(arch: str) -> str:
    near = timm.list_models(f"*{arch.split('_')[0]}*")[:3]
    return ", ".join(near) or "see timm.list_models()"
