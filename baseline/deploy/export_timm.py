"""Write a model as timm saves its own: `timm.create_model("local-dir:FOLDER", pretrained=True)` loads it.

BatchNorm of the head and the temperature become part of timm's classifier, so that the softmax of its output (with
several labels per image, the sigmoid) is what `Model.predict` returns without TTA.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import timm
import torch
from fastai.vision.learner import TimmBody
from PIL import Image
from safetensors.torch import save
from torch import Tensor, nn

from baseline.errors import OutputError
from baseline.files import to_json, write_atomic
from baseline.vision.sizes import size_options
from baseline.vision.weights import is_torchvision

if TYPE_CHECKING:
    from baseline.inference.model import Model

__all__ = ["describe_preprocessing", "fold_head", "needs_pickle", "timm_network", "timm_runner", "write_timm"]


CROP_MODES = {"squish": "squash", "crop": "center", "pad": "border"}
"""timm's names of the ways to resize."""

CARD = """\
---
library_name: timm
pipeline_tag: image-classification
tags: [timm, image-classification]
---
# {title}

A network of timm with {count} classes, which `labels.txt` and `config.json` list. It was trained with fastai-baseline.

```python
import timm
import torch
from PIL import Image

folder = "."  # or the name of a repository of the Hugging Face Hub, after "hf-hub:" in place of "local-dir:"
model = timm.create_model(f"local-dir:{{folder}}", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
with torch.no_grad():
    outputs = model(transform(Image.open("image.jpg").convert("RGB"))[None])
probabilities = outputs.{activation}
label = model.pretrained_cfg["label_names"][int(probabilities.argmax())]
```

{preprocessing}

timm before 1.0.26 loads a folder only if it has `pytorch_model.bin`, which an export with such a timm writes; it loads
this model from the hub without that file.
"""


def write_timm(model: Model, folder: Path) -> None:
    """Write `config.json`, `model.safetensors` and a card to a folder; for an older timm, `pytorch_model.bin`, too.

    Raises:
        OutputError: if timm does not have the architecture, or the head is more than a linear layer.
    """
    network = timm_network(model)
    tensors = {name: value.contiguous().clone() for name, value in network.state_dict().items()}
    write_atomic(folder / "model.safetensors", save(tensors, {"format": "pt"}))
    if needs_pickle():
        torch.save(tensors, folder / "pytorch_model.bin")
    write_atomic(folder / "config.json", to_json(timm_settings(model, network)))
    activation = "sigmoid()[0]" if model.multilabel else "softmax(-1)[0]"
    title = f"{', '.join(model.classes[:6])}: {model.config['arch']}"
    card = CARD.format(
        title=" ".join(title.split()), count=len(model.classes), activation=activation,
        preprocessing=describe_preprocessing(model.config),
    )  # fmt: skip
    write_atomic(folder / "README.md", card)


def needs_pickle() -> bool:
    """Whether the installed timm, before 1.0.26, reads no safetensors file of a folder, but only what torch saves."""
    return tuple(map(int, re.findall(r"\d+", timm.__version__)[:3])) < (1, 0, 26)


def timm_network(model: Model) -> nn.Module:
    """Return the network as one of timm's, on the CPU in evaluation mode."""
    arch = model.config["arch"]
    body = model.network[0].cpu()
    weight, bias = fold_head(model.network[1], model.config["temperature"] or 1.0)
    if not timm.is_model(arch):
        raise OutputError(f"timm has no architecture {arch}, so it cannot load the model. Export it to onnx instead.")
    fixed = is_torchvision(arch) or model.config["features"] == "fastai"
    options = {} if fixed else size_options(arch, model.config["image_size"])
    network = timm.create_model(arch, pretrained=False, num_classes=len(model.classes), **options).eval()
    classifier = network.get_classifier()  # type: ignore[operator]
    names = [name for name, module in network.named_modules() if module is classifier]
    if not isinstance(classifier, nn.Linear) or classifier.weight.shape != weight.shape:
        raise OutputError(f"timm's {arch} has no linear classifier for the features. Export it to onnx instead.")
    tensors = body_tensors(body, [name for name in network.state_dict() if not name.startswith(f"{names[0]}.")])
    try:
        network.load_state_dict({**tensors, f"{names[0]}.weight": weight, f"{names[0]}.bias": bias})
    except RuntimeError:
        raise OutputError(f"timm's {arch} has other tensors than the network. Export it to onnx instead.") from None
    return network


def body_tensors(body: nn.Module, names: list[str]) -> dict[str, Tensor]:
    """Return the tensors of a body under timm's names; those of torchvision have the same order where timm has the same
    network."""
    if isinstance(body, TimmBody):
        return dict(body.model.state_dict())
    return dict(zip(names, body.state_dict().values(), strict=False))


@torch.no_grad()
def fold_head(head: nn.Module, temperature: float) -> tuple[Tensor, Tensor]:
    """Return weight and bias of the linear layer that computes what a head does after pooling, over the temperature.

    Raises:
        OutputError: if the head has more than BatchNorm and one linear layer.

    >>> head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(8), nn.Linear(8, 3)).eval()
    >>> weight, bias = fold_head(head, 2.0)
    >>> maps = torch.rand(2, 8, 4, 4)
    >>> torch.allclose(maps.mean((2, 3)) @ weight.T + bias, head(maps) / 2, atol=1e-6)
    True
    """
    leaves = [module for module in head.modules() if not list(module.children())]
    skipped = (nn.AdaptiveAvgPool2d, nn.Dropout, nn.Identity, nn.Flatten)
    layers = [leaf for leaf in leaves if not isinstance(leaf, skipped) and type(leaf).__name__ != "Flatten"]
    kinds = [type(layer) for layer in layers]
    if kinds not in ([nn.Linear], [nn.BatchNorm1d, nn.Linear]):
        raise OutputError("timm's classifier is one linear layer, and the head has more. Export the model to onnx.")
    linear: Any = layers[-1].cpu()
    weight = linear.weight.double()
    bias = torch.zeros(len(weight), dtype=torch.double) if linear.bias is None else linear.bias.double()
    if len(layers) == 2:
        norm: Any = layers[0].cpu()
        scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
        bias = bias + weight @ (norm.bias.double() - scale * norm.running_mean.double())
        weight = weight * scale
    return (weight / temperature).float(), (bias / temperature).float()


def timm_settings(model: Model, network: Any) -> dict[str, Any]:
    """Return the content of `config.json`, from which timm builds the network and its transform."""
    config, size = model.config, model.config["image_size"]
    arguments = {key: value for key, value in size_options(config["arch"], size).items() if value is not None}
    fields = ("classifier", "first_conv", "fixed_input_size")
    cfg = {key: network.pretrained_cfg[key] for key in fields if network.pretrained_cfg.get(key) is not None}
    return {
        "architecture": config["arch"].partition(".")[0], "num_classes": len(model.classes),
        "num_features": network.num_features, "label_names": model.classes,
        **({"model_args": arguments} if arguments and not is_torchvision(config["arch"]) else {}),
        "pretrained_cfg": {
            **cfg, "num_classes": len(model.classes), "input_size": [3, size, size], "interpolation": "bicubic",
            "crop_pct": 1.0, "crop_mode": CROP_MODES[config["resize"]], "mean": config["mean"], "std": config["std"],
            "label_names": model.classes,
        },
    }  # fmt: skip


def describe_preprocessing(config: Mapping[str, Any]) -> str:
    """Return how timm's transform differs from what the model was trained with.

    >>> describe_preprocessing({"resize": "squish", "crop": 1.0})
    "timm's transform resizes images as in training."
    """
    if config["crop"] < 1:
        return (
            "timm's transform resizes images at once, and in training it was in two steps, so numbers differ slightly."
        )
    return {
        "squish": "timm's transform resizes images as in training.",
        "crop": "timm's transform crops after resizing, and in training it was before, so numbers differ slightly.",
        "pad": "timm's transform pads images with their mean color, and in training it was black: pad them yourself.",
    }[config["resize"]]


@contextmanager
def timm_runner(folder: Path, model: Model) -> Iterator[Callable[[np.ndarray], np.ndarray]]:
    """Yield a function from squares, N x size x size x 3, uint8, to probabilities, as a user of timm gets them."""
    network = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    settings = timm.data.resolve_model_data_config(network)
    transform: Any = timm.data.create_transform(**settings, is_training=False)

    @torch.inference_mode()
    def run(images: np.ndarray) -> np.ndarray:
        if model.config["crop"] == 1:
            inputs = torch.stack([transform(Image.fromarray(image)) for image in images])
        else:  # resized twice, which timm's transform does not do
            inputs = model.inputs([*images])
        outputs = network(inputs)
        return (outputs.sigmoid() if model.multilabel else outputs.softmax(-1)).numpy()

    yield run
