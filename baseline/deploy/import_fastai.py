"""A learner that fastai exported -> a model folder. Knows fastai's pickle and the folder; knows no training.

fastai's `Learner.export` writes a pickle, and loading one runs whatever code is in it: here only for who says so.
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
from baseline.errors import OutputError, RecipeError, WeightsError, first_line
from baseline.files import atomic_folder
from baseline.inference.model import TOLERANCE, golden_outputs, load_model
from baseline.inference.model_folder import FIELD_CHECKS, save_network
from baseline.progress import Progress
from baseline.recipe.schema import HEADS, RESIZES
from baseline.vision.augment import Resize
from baseline.vision.network import build_network
from baseline.vision.weights import is_torchvision

__all__ = ["Imported", "import_learner"]


GOLDEN_IMAGES = 4


@dataclass(frozen=True)
class Imported:
    """A model folder that was made from a learner."""

    folder: Path
    arch: str
    classes: int
    difference: float
    """The largest between a probability that the learner's network and the folder's make of the same tensors."""
    differs: list[str]
    """In what images are prepared otherwise than by the learner, in words."""
    images: int = 0
    """Images that both were asked, files and all."""
    same: int = 0
    """Of these, how many are predicted the same."""
    largest: float = 0.0
    """The largest difference of their probabilities."""

    def __str__(self) -> str:
        lines = [
            f"{self.folder}: {self.arch}, {self.classes:,} classes; the same network: of the same tensors the largest "
            f"difference of a probability is {self.difference:.1e}"
        ]
        lines += [f"prepared otherwise: {'; '.join(self.differs)}"] if self.differs else []
        if self.images:
            lines.append(
                f"of {self.images:,} images {self.same:,} are predicted the same ({self.same / self.images:.2%}), "
                f"largest difference of a probability {self.largest:.1e}"
            )
        elif self.differs:
            lines.append("what that changes is told with --images")
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
    """A model folder from what `Learner.export` of fastai wrote, of a `vision_learner` with classes.

    The folder's network is fastai's own body and head with the learner's tensors, and is compared with the learner's.
    Sizes and normalisation are found by sending pictures through the learner's transforms.

    Args:
        out: the new folder; the file's name without its ending, in the working folder, if not given.
        trust_pickle: whether the file may be opened, which runs whatever code is in it.
        arch: the architecture, for learners that do not tell it: those that `vision_learner` made do.
        images: the model is compared with the learner on them, files and all, and four are kept as golden inputs.

    Raises:
        OutputError: if it is not trusted or not there, the folder exists, or a model folder cannot express it.
        WeightsError: if it cannot be loaded, or the network does not give what the learner's gives.

    >>> import_learner("export.pkl", "mine", trust_pickle=True)                    # doctest: +SKIP
    """
    path, progress = Path(path).expanduser(), progress or Progress()
    if not trust_pickle:
        raise OutputError(
            f"{path} is a pickle: opening it runs whatever code is in it, so it was not opened. "
            "If you trust who made it, give --trust-pickle."
        )
    if not path.is_file():
        raise OutputError(f"There is no file {path}. Give what fastai's Learner.export wrote.")
    folder = Path(out).expanduser() if out else Path(path.stem)
    if folder.exists():
        raise OutputError(f"{folder} exists. Choose another --out.")
    paths = list(list_images([images] if isinstance(images, str) else images)[0]) if images else []
    learn = _load_pickle(path)
    with _raise_unsupported(path):
        facts, differs = _build_config(learn, _find_arch(learn, arch))
        model, facts = _convert(learn, facts)
    golden = _golden_tensors(model, facts, paths)
    theirs = golden_outputs(learn.model, facts, golden["images"].numpy())["probabilities"]
    difference = float((theirs - golden["probabilities"]).abs().max())
    if not difference <= TOLERANCE:
        raise WeightsError(
            f"{path} cannot be a model folder: with its tensors {facts['arch']} gives probabilities that differ by "
            f"{difference:.2g}. Its network has been changed in a way that a folder cannot tell."
        )
    with atomic_folder(folder) as work:
        save_network(model, facts | {"imported": {"from": path.name, "differs": differs}}, work, golden)
        load_model(work).check()
    compared = _compare(learn, folder, paths, progress) if paths else (0, 0, 0.0)
    return Imported(folder, facts["arch"], len(facts["classes"]), difference, differs, *compared)


def _load_pickle(path: Path) -> Learner:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = load_learner(path)
    except Exception as error:  # whatever is missing here, or whatever its code raises
        words = f"{path} cannot be loaded: {type(error).__name__}: {first_line(error)}"
        raise WeightsError(f"{words}. Use the versions that wrote it, or load its tensors in fastai.") from None
    if not isinstance(found, Learner):
        raise OutputError(f"{path} holds {type(found).__name__}, no fastai Learner. Give what Learner.export wrote.")
    found.model.eval()
    return found


class _Unsupported(Exception):
    """What a model folder cannot say, in words."""


@contextmanager
def _raise_unsupported(path: Path) -> Iterator[None]:
    try:
        yield
    except (_Unsupported, RecipeError) as error:
        raise OutputError(f"{path} cannot be a model folder: {first_line(error)}. Keep using it in fastai.") from None


def _find_arch(learn: Learner, given: str) -> str:
    found = given or getattr(learn, "arch", None)
    if not found:
        raise _Unsupported("it does not tell its architecture, as vision_learner's do; give --arch")
    if not isinstance(found, str):
        return str(getattr(found, "__name__", type(found).__name__))
    return _timm_name(found) if not given and is_torchvision(found) else found


def _timm_name(arch: str) -> str:
    """fastai takes named architectures from timm; a name that torchvision has, too, is timm's with its tag."""
    import timm

    tag = getattr(timm.get_pretrained_cfg(arch), "tag", "") if timm.is_model(arch) else ""
    return f"{arch}.{tag}" if tag else arch


def _build_config(learn: Learner, arch: str) -> tuple[dict[str, Any], list[str]]:
    """What a model folder tells, all but the head, and in what it prepares images otherwise."""
    classes, many = _find_classes(learn)
    sides = {_find_image_size(learn, wide, high) for wide, high in ((300, 400), (500, 350), (640, 640))}
    if len(sides) > 1:
        raise _Unsupported("its transforms do not bring images to one size")
    decoded, side = sides.pop()
    resize, differs = _find_resize(learn)
    if decoded < side:
        differs.append(f"images of {decoded} pixels were enlarged to {side}")
    share = min(1.0, (side / decoded) ** 2 * (1 + 1e-9))
    mean, std = _find_normalization(learn)
    facts: dict[str, Any] = {
        "arch": arch, "classes": classes, "image_size": side, "resize": resize, "mean": mean, "std": std, "tta": [],
        "labels": "many" if many else "one", "threshold": float(getattr(learn.loss_func, "thresh", 0.5)),
        "temperature": None, "crop": share, "precision": "float32",
    }  # fmt: skip
    if wrong := [name for name, value in facts.items() if not FIELD_CHECKS[name][0](value)]:
        raise _Unsupported(f"its {wrong[0]} is {str(facts[wrong[0]])[:80]}, needed: {FIELD_CHECKS[wrong[0]][1]}")
    return facts, differs


def _find_classes(learn: Learner) -> tuple[list[str], bool]:
    """Its classes, and whether an image may have several."""
    names = [type(each).__name__ for part in learn.dls.tls[1:] for each in part.tfms.fs]
    many = any(name in ("MultiCategorize", "EncodedMultiCategorize") for name in names)
    if len(learn.dls.tls) != 2 or not (many or "Categorize" in names):
        raise _Unsupported("it predicts something else than one CategoryBlock or MultiCategoryBlock of one image")
    return [str(each) for each in learn.dls.vocab], many


def _prepare(learn: Learner, image: Image.Image) -> tuple[Tensor, Tensor]:
    """A picture after the learner's item transforms, 1 x 3 x H x W, and after its batch transforms."""
    loader = learn.dls.valid
    for transforms in (loader.after_item, loader.after_batch):
        transforms.split_idx = 1
    item = loader.after_item((PILImage(image),))[0]
    if not isinstance(item, Tensor) or item.ndim != 3 or len(item) != 3:
        raise _Unsupported("its transforms do not make pictures of three colours")
    batch = item[None].to(next(learn.model.parameters()).device)
    return batch.as_subclass(Tensor), loader.after_batch((batch,))[0].as_subclass(Tensor)


def _own_resize(learn: Learner) -> Any:
    """What makes squares in an export of this library; None in others."""
    return next((each for each in learn.dls.valid.after_item.fs if isinstance(each, Resize)), None)


def _open_like(learn: Learner, path: str) -> Image.Image:
    own = _own_resize(learn)
    return PILImage.create(path) if own is None else load_image(path, own.size)


def _find_image_size(learn: Learner, wide: int, high: int) -> tuple[int, int]:
    """Of the squares after item and after batch transforms."""
    made = _prepare(learn, Image.new("RGB", (wide, high)))
    for each in made:
        if each.shape[-1] != each.shape[-2]:
            raise _Unsupported(f"it sees images of {each.shape[-1]} x {each.shape[-2]} pixels, and squares were needed")
    return made[0].shape[-1], made[1].shape[-1]


def _find_resize(learn: Learner) -> tuple[str, list[str]]:
    """How images become squares, and in what that is not quite what the learner does."""
    if own := _own_resize(learn):
        return own.resize, []
    by_name = {type(each).__name__: each for each in learn.dls.valid.after_item.fs}
    differs = ["images are turned as their EXIF says"]
    if found := by_name.get("Resize"):
        if found.mode != Image.Resampling.BICUBIC:
            differs.append("resized bicubic, not bilinear")
        if found.method == "pad" and found.pad_mode != "zeros":
            differs.append(f"black bars, not {found.pad_mode}")
        return (found.method if found.method in RESIZES else "squish"), differs
    return "squish", [*differs, f"squeezed to the whole square, not by {', '.join(by_name) or 'nothing'}"]


def _find_normalization(learn: Learner) -> tuple[list[float], list[float]]:
    """Mean and standard deviation by colour, from what becomes of black, grey and white."""
    black, grey, white = (
        _prepare(learn, Image.new("RGB", (320, 320), (level,) * 3))[1][0].double().mean((1, 2)).cpu()
        for level in (0, 51, 255)
    )
    std = 1 / (white - black)
    mean = -black * std
    if not torch.allclose((0.2 - mean) / std, grey, atol=1e-4):
        raise _Unsupported("its transforms change colours otherwise than by a mean and a standard deviation")
    return mean.numpy().round(6).tolist(), std.numpy().round(6).tolist()


def _convert(learn: Learner, facts: dict[str, Any]) -> tuple[nn.Sequential, dict[str, Any]]:
    """The network of a model folder with the learner's tensors, and the facts with its head."""
    given = {name: value.shape for name, value in learn.model.state_dict().items()}
    arch, classes = facts["arch"], facts["classes"]
    for head in HEADS:
        model = build_network(arch, len(classes), None, head)[0].eval()
        wanted = {name: value.shape for name, value in model.state_dict().items()}
        if wanted == given:
            model.load_state_dict(learn.model.state_dict())
            _check_activation(learn, facts)
            return model, facts | {"head": head}
    body = [{name: shape for name, shape in each.items() if name.startswith("0.")} for each in (given, wanted)]
    if body[0] == body[1]:
        raise _Unsupported(f"its head is its own: neither fastai's nor one linear layer, for {len(classes)} classes")
    lacking = next((name for name in wanted if given.get(name) != wanted[name]), next(iter(given), "any tensor"))
    raise _Unsupported(f"its network is not {arch} as fastai cuts it, first in '{lacking}'")


@torch.inference_mode()
def _check_activation(learn: Learner, facts: dict[str, Any]) -> None:
    outputs = torch.linspace(-3, 4, 2 * len(facts["classes"])).view(2, -1)
    theirs = learn.loss_func.activation(outputs) if hasattr(learn.loss_func, "activation") else outputs
    ours = outputs.sigmoid() if facts["labels"] == "many" else outputs.softmax(-1)
    if not torch.allclose(theirs, ours, atol=1e-5):
        kind = "sigmoid" if facts["labels"] == "many" else "softmax"
        raise _Unsupported(f"its loss {type(learn.loss_func).__name__} does not make probabilities by {kind}")


def _golden_tensors(model: nn.Module, facts: dict[str, Any], paths: list[str]) -> dict[str, Tensor]:
    """Golden inputs: the first images, or drawn ones, as there are none in a learner."""
    side = round(facts["image_size"] / facts["crop"] ** 0.5)
    kept: list[Any] = list(paths[:GOLDEN_IMAGES])
    if not kept:
        drawn = np.random.default_rng(0).integers(0, 256, (GOLDEN_IMAGES, 8, 8, 3), dtype=np.uint8)
        kept = list(drawn)
    try:
        return golden_outputs(model, facts, np.stack([load_square(each, side, facts["resize"]) for each in kept]))
    except OSError as error:
        raise OutputError(f"An image of --images cannot be read: {first_line(error)}. Leave it out.") from None


@torch.inference_mode()
def _compare(learn: Learner, folder: Path, paths: list[str], progress: Progress) -> tuple[int, int, float]:
    """Images, those predicted the same, and the largest difference, from the files on, each in its own way."""
    model, same, worst, count = load_model(folder), 0, 0.0, 0
    with progress.bar("comparing", len(paths), "images") as bar:
        for path in paths:
            (block,) = model.predict_batches([path], optimize=False)
            bar.step()
            if block.errors[0]:
                continue
            outputs = learn.model(_prepare(learn, _open_like(learn, path))[1])[0].double().cpu()
            theirs = (outputs.sigmoid() if model.multilabel else outputs.softmax(-1)).numpy()
            ours = block.probabilities[0]
            limit = model.config["threshold"]
            decided = [each >= limit if model.multilabel else each.argmax(keepdims=True) for each in (ours, theirs)]
            same += int((decided[0] == decided[1]).all())
            worst, count = float(np.maximum(worst, np.abs(ours - theirs).max())), count + 1
    return count, same, worst
