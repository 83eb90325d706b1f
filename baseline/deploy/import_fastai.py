"""Convert an exported fastai learner to a model folder.

fastai's `Learner.export` writes a pickle, and loading a pickle runs any code in it: it is only opened if the caller
trusts it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fastai.learner import Learner, load_learner
from fastai.vision.core import PILImage
from PIL import Image
from torch import Tensor, nn

from baseline.data.image import load_image, load_square
from baseline.data.sources.image_list import list_images
from baseline.errors import OutputError, RecipeError, WeightsError, first_line, similar_path
from baseline.evaluation.golden import golden_outputs
from baseline.files import atomic_folder
from baseline.inference.model import TOLERANCE, load_model
from baseline.progress import Progress
from baseline.recipe.schema import HEADS, RESIZES
from baseline.vision.augment import LoadImage, Resize
from baseline.vision.model_folder import FIELD_CHECKS, save_network
from baseline.vision.network import build_network, features_of
from baseline.vision.weights import is_torchvision

__all__ = ["Imported", "import_learner"]


GOLDEN_IMAGES = 4
"""Number of golden inputs in an imported model folder."""


@dataclass(frozen=True)
class Imported:
    """A model folder that was converted from a learner."""

    folder: Path
    arch: str
    classes: int
    network_difference: float
    """Largest probability difference between the learner's network and the folder's, on the same tensors."""
    preprocessing_differences: list[str]
    """How the preparation of images differs from the learner's."""
    images: int = 0
    """Number of images that both were run on, from the files on."""
    agreeing: int = 0
    """Number of those images with the same prediction."""
    max_difference: float = 0.0
    """Largest difference between their probabilities."""

    def __str__(self) -> str:
        lines = [
            f"{self.folder}: {self.arch}, {self.classes:,} class{'' if self.classes == 1 else 'es'}; same network: "
            f"largest probability difference on the same tensors {self.network_difference:.1e}"
        ]
        if self.preprocessing_differences:
            lines.append(f"preprocessing differs: {'; '.join(self.preprocessing_differences)}")
        if self.images:
            lines.append(
                f"same prediction for {self.agreeing:,} of {self.images:,} image{'' if self.images == 1 else 's'} "
                f"({self.agreeing / self.images:.2%}), largest probability difference {self.max_difference:.1e}"
            )
        elif self.preprocessing_differences:
            lines.append("pass --images to see the effect on predictions")
        return "\n".join(lines)


def import_learner(
    path: str | Path,
    out: str | Path | None = None,
    *,
    trust_pickle: bool = False,
    arch: str = "",
    images: str | Sequence[str] = (),
    progress: Progress | None = None,
) -> Imported:
    """Convert the output of fastai's `Learner.export` to a model folder, for a `vision_learner` that classifies.

    The folder's network is fastai's own body and head with the learner's tensors, and is compared with the learner's.
    Sizes and normalization are determined by sending images through the learner's transforms.

    Args:
        out: the new folder; default: the file's name without its extension, in the working directory.
        trust_pickle: whether the file may be opened, which runs any code in it.
        arch: the architecture, for learners that do not record it; those of `vision_learner` do.
        images: images to compare model and learner on, from the files on; four are kept as golden inputs.

    Raises:
        OutputError: if the file is not trusted or does not exist, the folder exists, or a model folder cannot represent
            the learner.
        WeightsError: if the file cannot be loaded, or the network's outputs differ from the learner's.

    >>> import_learner("export.pkl", "mine", trust_pickle=True)                    # doctest: +SKIP
    """
    path, progress = Path(path).expanduser(), progress or Progress()
    if not trust_pickle:
        raise OutputError(
            f"{path} is a pickle: opening it runs any code in it, so it was not opened. "
            "If you trust its author, pass --trust-pickle."
        )
    if not path.is_file():
        raise OutputError(
            f"There is no file {path}.{similar_path(path)} Pass a file that fastai's Learner.export wrote."
        )
    folder = Path(out).expanduser() if out else Path(path.stem)
    if folder.exists():
        raise OutputError(f"{folder} exists. Choose another --out.")
    paths = list(list_images([images] if isinstance(images, str) else images)[0]) if images else []
    learn = _load_pickle(path)
    with _unsupported_errors(path):
        facts, differences = build_config(learn, find_arch(learn, arch))
        model, facts = convert_network(learn, facts)
    golden = _make_golden(model, facts, paths)
    theirs = golden_outputs(learn.model, facts, golden["images"].numpy())["probabilities"]
    network_difference = float((theirs - golden["probabilities"]).abs().max())
    if not network_difference <= TOLERANCE:
        raise WeightsError(
            f"{path} cannot become a model folder: with its tensors, probabilities of {facts['arch']} differ by "
            f"{network_difference:.2g}. Its network was modified in a way that a model folder cannot represent."
        )
    with atomic_folder(folder) as work:
        save_network(model, facts | {"imported": {"from": path.name, "differs": differences}}, work, golden)
        load_model(work).check()
    comparison = compare_predictions(learn, folder, paths, progress) if paths else (0, 0, 0.0)
    return Imported(folder, facts["arch"], len(facts["classes"]), network_difference, differences, *comparison)


def _load_pickle(path: Path) -> Learner:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            learn = load_learner(path)
    except Exception as error:  # a missing package, or anything that its code raises
        message = f"{path} cannot be loaded: {type(error).__name__}: {first_line(error)}"
        raise WeightsError(f"{message}. Use the versions that wrote it, or load its tensors in fastai.") from None
    if not isinstance(learn, Learner):
        raise OutputError(
            f"{path} contains an object of type {type(learn).__name__}, not a fastai Learner. Pass a file that "
            "Learner.export wrote."
        )
    learn.model.eval()
    return learn


class _Unsupported(Exception):
    """A property of the learner that a model folder cannot represent."""


@contextmanager
def _unsupported_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (_Unsupported, RecipeError) as error:
        message = f"{path} cannot become a model folder: {first_line(error)}"
        raise OutputError(f"{message}. Keep using it in fastai.") from None


def find_arch(learn: Learner, arch: str) -> str:
    """Return the learner's architecture, `arch` if that is given, under the name that `build_network` takes."""
    recorded = arch or getattr(learn, "arch", None)
    if not recorded:
        raise _Unsupported("it does not record its architecture, as vision_learner does; pass --arch")
    if not isinstance(recorded, str):
        return str(getattr(recorded, "__name__", type(recorded).__name__))
    return _timm_name(recorded) if not arch and is_torchvision(recorded) else recorded


def _timm_name(arch: str) -> str:
    """Return the name with its timm tag: fastai takes named architectures from timm even where torchvision has them."""
    import timm

    tag = getattr(timm.get_pretrained_cfg(arch), "tag", "") if timm.is_model(arch) else ""
    return f"{arch}.{tag}" if tag else arch


def build_config(learn: Learner, arch: str) -> tuple[dict[str, Any], list[str]]:
    """Return a model folder's configuration without the head, and how its preprocessing differs from the learner's."""
    classes, multilabel = find_classes(learn)
    sizes = {find_image_size(learn, width, height) for width, height in ((300, 400), (500, 350), (640, 640))}
    if len(sizes) > 1:
        raise _Unsupported("its transforms do not bring images to a single size")
    decoded, side = sizes.pop()
    resize, differences = find_resize(learn)
    if decoded < side:
        differences.append(f"images of {decoded} pixels were enlarged to {side}")
    crop = min(1.0, (side / decoded) ** 2 * (1 + 1e-9))
    mean, std = find_normalization(learn)
    facts: dict[str, Any] = {
        "arch": arch, "classes": classes, "image_size": side, "resize": resize, "mean": mean, "std": std, "tta": [],
        "value_range": _own_value_range(learn),
        "task": "multilabel" if multilabel else "single", **find_thresholds(learn),
        "temperature": None, "crop": crop, "precision": "float32",
    }  # fmt: skip
    if invalid := [name for name, value in facts.items() if not FIELD_CHECKS[name][0](value)]:
        name = invalid[0]
        raise _Unsupported(f"its {name} is {str(facts[name])[:80]}, but must be {FIELD_CHECKS[name][1]}")
    return facts, differences


def find_thresholds(learn: Learner) -> dict[str, Any]:
    """Return the fields of a model folder for the threshold of the loss function, which may be one per class."""
    values = np.asarray(getattr(learn.loss_func, "thresh", 0.5), dtype=float).ravel().tolist()
    return {"threshold": values[0]} if len(values) == 1 else {"threshold": 0.5, "thresholds": values}


def find_classes(learn: Learner) -> tuple[list[str], bool]:
    """Return the learner's classes, and whether an image may have several."""
    names = [type(transform).__name__ for pipeline in learn.dls.tls[1:] for transform in pipeline.tfms.fs]
    multilabel = any(name in ("MultiCategorize", "EncodedMultiCategorize") for name in names)
    if len(learn.dls.tls) != 2 or not (multilabel or "Categorize" in names):
        raise _Unsupported("its target is not a single CategoryBlock or MultiCategoryBlock per image")
    return [str(name) for name in learn.dls.vocab], multilabel


def apply_transforms(learn: Learner, image: Image.Image) -> tuple[Tensor, Tensor]:
    """Return an image after the learner's item transforms, 1 x 3 x H x W, and after its batch transforms."""
    loader = learn.dls.valid
    for transforms in (loader.after_item, loader.after_batch):
        transforms.split_idx = 1
    item = loader.after_item((PILImage(image),))[0]
    if not isinstance(item, Tensor) or item.ndim != 3 or len(item) != 3:
        raise _Unsupported("its transforms do not produce images with three channels")
    batch = item[None].to(next(learn.model.parameters()).device)
    return batch.as_subclass(Tensor), loader.after_batch((batch,))[0].as_subclass(Tensor)


def _own_resize(learn: Learner) -> Any:
    """Return the transform that makes squares in learners that this library exported; None for others."""
    return next((item for item in learn.dls.valid.after_item.fs if isinstance(item, Resize)), None)


def _own_value_range(learn: Learner) -> list[float]:
    """Return the values of black and white of learners that this library exported; empty for others."""
    transforms = learn.dls.tls[0].tfms.fs if learn.dls.tls else []
    return next((list(item.value_range) for item in transforms if isinstance(item, LoadImage)), [])


def _open_like(learn: Learner, path: str) -> Image.Image:
    own = _own_resize(learn)
    return PILImage.create(path) if own is None else load_image(path, own.size, _own_value_range(learn))


def find_image_size(learn: Learner, width: int, height: int) -> tuple[int, int]:
    """Return the side of the squares after item transforms, and after batch transforms."""
    outputs = apply_transforms(learn, Image.new("RGB", (width, height)))
    for output in outputs:
        height, width = output.shape[-2:]
        if height != width:
            raise _Unsupported(f"it takes images of {width} x {height} pixels, and only squares are supported")
    return outputs[0].shape[-1], outputs[1].shape[-1]


def find_resize(learn: Learner) -> tuple[str, list[str]]:
    """Return how images become squares, and how that differs from what the learner does."""
    if own := _own_resize(learn):
        return own.resize, []
    by_name = {type(item).__name__: item for item in learn.dls.valid.after_item.fs}
    differences = ["images are rotated by their EXIF orientation"]
    if transform := by_name.get("Resize"):
        if transform.mode != Image.Resampling.BICUBIC:
            differences.append("bicubic instead of bilinear resizing")
        if transform.method == "pad" and transform.pad_mode != "zeros":
            differences.append(f"black bars instead of {transform.pad_mode} padding")
        return (transform.method if transform.method in RESIZES else "squish"), differences
    names = ", ".join(by_name) or "no transform"
    return "squish", [*differences, f"squished to a square, instead of {names}"]


def find_normalization(learn: Learner) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation per channel, derived from what becomes of black, gray and white images."""
    black, gray, white = (
        apply_transforms(learn, Image.new("RGB", (320, 320), (level,) * 3))[1][0].cpu().double().mean((1, 2))
        for level in (0, 51, 255)
    )
    std = 1 / (white - black)
    mean = -black * std
    if not torch.allclose((0.2 - mean) / std, gray, atol=1e-4):
        raise _Unsupported("its transforms change colors by more than a mean and a standard deviation")
    return mean.numpy().round(6).tolist(), std.numpy().round(6).tolist()


def convert_network(learn: Learner, facts: dict[str, Any]) -> tuple[nn.Sequential, dict[str, Any]]:
    """Return a model folder's network with the learner's tensors, and the configuration with its head."""
    learner_shapes = {name: value.shape for name, value in learn.model.state_dict().items()}
    arch, classes = facts["arch"], facts["classes"]
    facts |= {"features": features_of(learn.model[0])}
    sizes = {"image_size": facts["image_size"], "features": facts["features"]}
    for head in HEADS:
        model = build_network(arch, len(classes), None, head, **sizes)[0].eval()
        shapes = {name: value.shape for name, value in model.state_dict().items()}
        if shapes == learner_shapes:
            model.load_state_dict(learn.model.state_dict())
            check_activation(learn, facts)
            return model, facts | {"head": head}
    body, own_body = (
        {name: shape for name, shape in group.items() if name.startswith("0.")} for group in (learner_shapes, shapes)
    )
    if body == own_body:
        raise _Unsupported(f"its head is custom: neither fastai's nor one linear layer, for {len(classes)} classes")
    mismatch = next(
        (name for name in shapes if learner_shapes.get(name) != shapes[name]), next(iter(learner_shapes), "any tensor")
    )
    raise _Unsupported(f"its network is not {arch} as fastai cuts it: the first mismatch is in '{mismatch}'")


@torch.inference_mode()
def check_activation(learn: Learner, facts: dict[str, Any]) -> None:
    """Raise if the learner does not turn outputs into probabilities by softmax, or sigmoid for several labels."""
    outputs = torch.linspace(-3, 4, 2 * len(facts["classes"])).view(2, -1)
    theirs = learn.loss_func.activation(outputs) if hasattr(learn.loss_func, "activation") else outputs
    ours = outputs.sigmoid() if facts["task"] == "multilabel" else outputs.softmax(-1)
    if not torch.allclose(theirs, ours, atol=1e-5):
        kind = "sigmoid" if facts["task"] == "multilabel" else "softmax"
        raise _Unsupported(f"its loss {type(learn.loss_func).__name__} does not use {kind} for probabilities")


def _make_golden(model: nn.Module, facts: dict[str, Any], paths: list[str]) -> dict[str, Tensor]:
    """Return golden inputs and outputs for the first images, or for random ones, as a learner contains no images."""
    side = round(facts["image_size"] / facts["crop"] ** 0.5)
    images: list[Any] = list(paths[:GOLDEN_IMAGES])
    if not images:
        noise = np.random.default_rng(0).integers(0, 256, (GOLDEN_IMAGES, 8, 8, 3), dtype=np.uint8)
        images = list(noise)
    try:
        squares = [load_square(image, side, facts["resize"], facts["value_range"]) for image in images]
        return golden_outputs(model, facts, np.stack(squares))
    except OSError as error:
        raise OutputError(f"An image of --images cannot be read: {first_line(error)}. Remove it.") from None


@torch.inference_mode()
def compare_predictions(learn: Learner, folder: Path, paths: list[str], progress: Progress) -> tuple[int, int, float]:
    """Return the number of images, of equal predictions, and the largest difference; both start from the files."""
    model, agreeing, max_difference, count = load_model(folder), 0, 0.0, 0
    with progress.bar("comparing", len(paths), "images") as bar:
        for path in paths:
            (block,) = model.predict_batches([path], optimize=False)
            bar.step()
            if block.errors[0]:
                continue
            outputs = learn.model(apply_transforms(learn, _open_like(learn, path))[1])[0].cpu().double()
            theirs = (outputs.sigmoid() if model.multilabel else outputs.softmax(-1)).numpy()
            ours = block.probabilities[0]
            threshold = np.asarray(model.threshold)
            decisions = [p >= threshold if model.multilabel else p.argmax(keepdims=True) for p in (ours, theirs)]
            agreeing += int((decisions[0] == decisions[1]).all())
            max_difference = float(np.maximum(max_difference, np.abs(ours - theirs).max()))
            count += 1
    return count, agreeing, max_difference
