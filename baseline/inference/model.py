"""Model folders -> a model that predicts, one or several together. Knows networks, images and probabilities.

No training data is needed.

>>> model = load("runs/cifar10-20261122-101500")                                   # doctest: +SKIP
>>> model.predict("holiday.jpg")[["predicted", "confidence"]]                      # doctest: +SKIP
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from fastai.torch_core import default_device
from PIL import Image

from baseline.data.image import load_square, unreadable_reason
from baseline.data.labels import predicted_labels
from baseline.data.sources.folders import images_below
from baseline.errors import DataError, OutputError, WeightsError, quoted_list
from baseline.evaluation.ensemble import average_probabilities
from baseline.evaluation.predict import predict_probabilities
from baseline.inference.model_folder import load_network, member_folders, model_folder, read_golden
from baseline.recipe.auto import resolve_frozen_precision
from baseline.recipe.schema import Augment, Recipe
from baseline.system import bfloat16_instructions
from baseline.vision.augment import IMAGE_TYPES, resize_batch
from baseline.vision.cpu_speedups import optimize_for_cpu
from baseline.vision.dataloaders import empty_loaders
from baseline.vision.learner import learner, mixed_precision
from baseline.vision.network import device_of
from baseline.vision.rng import preserve_rng_state

if TYPE_CHECKING:
    from fastai.learner import Learner
    from torch import Tensor, nn

__all__ = ["Ensemble", "Model", "PredictionBatch", "golden_outputs", "load", "load_model"]


TOLERANCE = 1e-4
"""By how much a probability of a golden input may differ, in float32."""


@dataclass(frozen=True)
class PredictionBatch:
    """Predictions of some images, in their order."""

    images: list[Any]
    """As they were given."""
    errors: list[str]
    """Why an image cannot be read; empty where it was."""
    probabilities: np.ndarray
    """Images x classes, float64; of an image that cannot be read NaN."""
    predicted: list[str]
    """A class, or with many labels an image those predicted, with `;` between."""
    confidence: np.ndarray
    """The probability of the predicted class; with many labels that of the least sure decision."""


def load(folder: str | Path | Sequence[str | Path]) -> Model | Ensemble:
    """The model of a run folder, or of its `model/` alone, ready to predict; of several, all of them together.

    No training data is needed, nothing is unpickled, and random states stay as they were.

    Args:
        folder: a run; a folder of folds or seeds, which means all its runs; or a list of such.

    Raises:
        OutputError: if there is no model folder, a newer version wrote it, it says what cannot be, or several are not
            of the same classes.
        WeightsError: if its tensors are damaged or not those of the network it names.

    >>> load("runs/mine").predict(["a.jpg", "b.jpg"])                              # doctest: +SKIP
    >>> load(["runs/mine", "runs/other"]).predict("a.jpg")                         # doctest: +SKIP
    """
    given = [folder] if isinstance(folder, str | Path) else folder
    models = [load_model(each) for one in given for each in member_folders(one)]
    return models[0] if len(models) == 1 else Ensemble(models)


def load_model(folder: str | Path) -> Model:
    """The one model of a run folder, or of its `model/` alone; errors are those of `load`, and one for a folder of
    several."""
    first, *others = member_folders(folder)
    if others:
        raise OutputError(f"{folder} holds {len(others) + 1} models, and one was needed. Give one, such as {first}.")
    with preserve_rng_state():
        network, facts = load_network(folder)
    return Model(network.to(default_device()), facts, model_folder(folder))


class _Predictor:
    """What one model and several together do alike."""

    @property
    def members(self) -> tuple[Model, ...]:
        """The models whose probabilities are averaged; of one model, itself."""
        raise NotImplementedError

    @property
    def classes(self) -> list[str]:
        """In the order of the networks' outputs."""
        return self.members[0].config["classes"]

    @property
    def multilabel(self) -> bool:
        """Whether an image may have several labels."""
        return self.members[0].config["labels"] == "many"

    @property
    def folders(self) -> list[Path]:
        """Those of the members."""
        return [member.folder for member in self.members]

    def predict(self, images: Any, *, tta: bool = True, calibrated: bool = True, batch_size: int = 64) -> pd.DataFrame:
        """A row an image: `path` (or `image`, its number from 0, where it is no file), `predicted`, `confidence`, and
        the probability of each class as `p_CLASS`.

        Args:
            images: one image or many; each a path, a folder, bytes, a PIL image, or a uint8 array H x W x 3.
            tta: average over the views of the training's evaluation; without, the plain image alone.
            calibrated: divide by the fitted temperature, if there is one. What is predicted is the same without.

        Raises:
            DataError: if an image cannot be read; `predict_batches` goes on.

        >>> model.predict("holiday/")                                              # doctest: +SKIP
        """
        given = list(_iterate_images(images))
        by_path = all(isinstance(each, str | Path) for each in given)
        names = [str(each) for each in given] if by_path else list(range(len(given)))
        made = list(self.predict_batches(given, tta=tta, calibrated=calibrated, batch_size=batch_size,
                                optimize=len(given) >= batch_size))  # fmt: skip
        for name, error in zip(names, (error for block in made for error in block.errors), strict=True):
            if error:
                raise DataError(f"Image {name} cannot be read: {error}. Leave it out.")
        columns = [f"p_{name}" for name in self.classes]
        found = np.concatenate([block.probabilities for block in made]) if made else np.empty((0, len(columns)))
        told = {
            "path" if by_path else "image": names,
            "predicted": [each for block in made for each in block.predicted],
            "confidence": np.concatenate([block.confidence for block in made]) if made else [],
        }
        return pd.concat([pd.DataFrame(told), pd.DataFrame(found, columns=columns)], axis=1)

    def predict_batches(
        self,
        images: Iterable[Any],
        *,
        tta: bool = True,
        calibrated: bool = True,
        batch_size: int = 64,
        optimize: bool = True,
        precision: str = "",
    ) -> Iterator[PredictionBatch]:
        """Predictions as they are made, `batch_size` images at a time, in order; of an image that cannot be read, why.

        Images are read in threads while the network works, at most two blocks ahead, so that memory stays the same
        however many there are. The same images in the same blocks give the same numbers.

        Args:
            images: taken from the iterable as they are needed: what `predict` takes, or functions that return it,
                which are called in the reading threads.
            optimize: with quicker passes (see `optimize_for_cpu`), which pay from a few dozen images on.
            precision: the number format of the passes; see `resolve_precision`.
        """
        forms = list(dict.fromkeys(member._form for member in self.members))
        with ExitStack() as stack:
            networks: list[nn.Module] = [member.network for member in self.members]
            formats = [member._numbers(precision) for member in self.members]
            hurried = not optimize
            for given, squares in _read_batches(images, batch_size, forms):
                whole = [each for each in squares if not isinstance(each, str)]
                fitting = [[each[forms.index(member._form)] for each in whole] for member in self.members]
                if whole and not hurried:
                    hurried = True
                    networks = [
                        stack.enter_context(member._quick(some[:2]))
                        for member, some in zip(self.members, fitting, strict=True)
                    ]
                seen = [
                    member._seen(network, some, tta, numbers)
                    for member, network, some, numbers in zip(self.members, networks, fitting, formats, strict=True)
                ]
                yield self._block(given, squares, seen, calibrated)

    def resolve_precision(self, wish: str = "") -> tuple[str, str]:
        """The number format of passes and why: that of the run's evaluation, which on a CPU is float32, if nothing is
        wished; `"float32"` or `"bfloat16"` as wished; `"auto"`: on a CPU that has units for it, bfloat16.
        Empty where several were evaluated in formats that differ.

        Raises:
            RecipeError: for bfloat16 on a CPU that has nothing for it.
        """
        device = device_of(self.members[0].network).type
        if device != "cpu":
            if wish not in ("", "auto"):
                return wish, "as given"
            formats = {member.config["precision"] for member in self.members}
            return ("", "each as evaluated") if len(formats) > 1 else (*formats, "as evaluated")
        return resolve_frozen_precision(wish or "float32", device, bfloat16_instructions())

    def _block(
        self, images: list[Any], squares: list[Any], seen: list[np.ndarray], calibrated: bool
    ) -> PredictionBatch:
        facts = [member.config for member in self.members]
        labels = facts[0]["labels"]
        errors = [each if isinstance(each, str) else "" for each in squares]
        read = np.array([not error for error in errors], dtype=bool)
        mean, threshold = average_probabilities(
            seen, [each["temperature"] for each in facts], labels, facts[0]["threshold"]
        )
        told = mean if calibrated else np.mean(seen, axis=0)
        sure = told[np.arange(len(told)), mean.argmax(1)]
        if threshold is not None:
            sure = np.where(mean >= threshold, told, 1 - told).min(1)
        predicted = np.full(len(images), "", dtype=object)
        confidence = np.full(len(images), np.nan)
        found = np.full((len(images), len(self.classes)), np.nan)
        predicted[read], confidence[read], found[read] = predicted_labels(mean, self.classes, threshold), sure, told
        return PredictionBatch(images, errors, found, predicted.tolist(), confidence)


@dataclass(frozen=True, eq=False)
class Model(_Predictor):
    """A trained network and what is needed to use it; made by `load`."""

    network: nn.Sequential
    """In evaluation mode, on the GPU where there is one."""
    config: Mapping[str, Any]
    """What `model.json` says; see the module `networks`."""
    folder: Path

    @property
    def members(self) -> tuple[Model, ...]:
        """The model itself."""
        return (self,)

    @property
    def decoded_size(self) -> int:
        """Pixels, side of the squares that images are decoded to."""
        return self._recipe.decoded_size

    @cached_property
    def identity(self) -> str:
        """A hash of the network and all facts: models of one identity predict the same."""
        return hashlib.sha256(json.dumps(self.config, sort_keys=True).encode()).hexdigest()

    @cached_property
    def learner(self) -> Learner:
        """A complete fastai Learner with a copy of the network: `predict`, `test_dl`, or training on DataLoaders."""
        recipe = self._recipe
        with preserve_rng_state():
            learn = learner(empty_loaders(self.classes, recipe, (self.config["mean"], self.config["std"])), recipe)
        learn.model.load_state_dict(self.network.state_dict())
        return learn

    @cached_property
    def _recipe(self) -> Recipe:
        facts = self.config
        taken = ("arch", "head", "image_size", "resize", "labels", "threshold")
        return Recipe("model", scratch=True, augment=Augment(crop=facts["crop"]), **{key: facts[key] for key in taken})

    @contextmanager
    def predictor(
        self, *, tta: bool = True, calibrated: bool = True
    ) -> Iterator[Callable[[Sequence[np.ndarray]], PredictionBatch]]:
        """Inside, a function that predicts squares (see `load_square`), with quicker passes prepared once for many calls.

        >>> with model.predictor(tta=False) as predicted:                              # doctest: +SKIP
        ...     predicted([model.load_square("a.jpg"), model.load_square("b.jpg")]).predicted
        ['ants', 'bees']
        """
        numbers = self._numbers()
        noise = [*np.random.default_rng(0).integers(0, 256, (2, *self.decoded_shape), dtype=np.uint8)]
        with self._quick(noise) as network:
            yield lambda squares: self._block(
                [*squares], [*squares], [self._seen(network, squares, tta, numbers)], calibrated
            )

    @property
    def decoded_shape(self) -> tuple[int, int, int]:
        """That of a `load_square`."""
        return (self.decoded_size, self.decoded_size, 3)

    def load_square(self, image: Any) -> np.ndarray:
        """The square that is left of an image for the network, uint8; what cannot be read raises whatever PIL raises."""
        return load_square(image, self.decoded_size, self.config["resize"])

    def inputs(self, squares: Sequence[np.ndarray]) -> Tensor:
        """What the network takes: N x 3 x image_size x image_size, normalised, on its device."""
        return _to_inputs(np.stack(squares), self.config, device_of(self.network))

    def check(self) -> float:
        """The largest difference between what the network makes of the folder's golden inputs now and what it made of
        them when it was saved, as a probability.

        Raises:
            OutputError: if the folder keeps no golden inputs.
            WeightsError: if it is above 1e-4.
        """
        images, expected = read_golden(self.folder, self.config)
        found = golden_outputs(self.network, self.config, images.numpy())["probabilities"]
        difference = float((found - expected).abs().max())
        if not difference <= TOLERANCE:
            raise WeightsError(
                f"{self.folder} does not predict as when it was saved: the probability of a golden input differs by "
                f"{difference:.2g}, at most {TOLERANCE:g} was allowed. Copy it again, or use the versions it tells."
            )
        return difference

    @property
    def _form(self) -> tuple[int, str]:
        """Of a `load_square`: pixels, and how an image becomes one."""
        return self.decoded_size, self.config["resize"]

    @contextmanager
    def _quick(self, squares: list[np.ndarray]) -> Iterator[nn.Module]:
        """A copy of the network with quicker passes, so that others may use the model meanwhile."""
        network = copy.deepcopy(self.network)
        with optimize_for_cpu(network, self.inputs(squares), learns=False):
            yield network

    def _numbers(self, precision: str = "") -> torch.autocast:
        return mixed_precision(self.resolve_precision(precision)[0], device_of(self.network).type)

    def _seen(
        self, network: nn.Module, squares: Sequence[np.ndarray], tta: bool, numbers: torch.autocast
    ) -> np.ndarray:
        """Uncalibrated probabilities, squares x classes, mean over the plain image and its views."""
        if len(squares) == 0:
            return np.empty((0, len(self.classes)))
        views = tuple(self.config["tta"]) if tta else ()
        return (
            predict_probabilities(network, self.inputs(squares), views, many=self.multilabel, numbers=numbers)
            .mean(0)
            .numpy()
        )


class Ensemble(_Predictor):
    """Several models that predict together, by the mean of their calibrated probabilities; made by `load`.

    They may differ in architecture, image size and views. An image is decoded once for all models that take it in the
    same size and form.

    Raises:
        OutputError: if they have not the same classes in the same order, some take several labels an image and some
            one, their thresholds differ, or one is there twice.
    """

    def __init__(self, members: Sequence[Model]) -> None:
        if not members:
            raise OutputError("No model was given to predict with. Give the folder of a run.")
        _check_compatible(members)
        self._members = tuple(members)

    @property
    def members(self) -> tuple[Model, ...]:
        """The models, in the order in which they were given."""
        return self._members

    @cached_property
    def identity(self) -> str:
        """A hash of all members' identities, in their order."""
        return hashlib.sha256(" ".join(member.identity for member in self.members).encode()).hexdigest()

    def check(self) -> float:
        """The largest difference of any member; see `Model.check`."""
        return max(member.check() for member in self.members)


def _check_compatible(members: Sequence[Model]) -> None:
    first = members[0]
    seen: dict[str, Path] = {}
    for member in members:
        both = f"{member.folder} and {first.folder}"
        if member.classes != first.classes:
            other = quoted_list(sorted(set(member.classes) ^ set(first.classes))) or "their order"
            raise OutputError(f"{both} have not the same classes: they differ in {other}. Give runs of the same.")
        for name in ("labels", *(["threshold"] if first.multilabel else [])):
            if (one := member.config[name]) != (two := first.config[name]):
                raise OutputError(f"{both} differ in {name}, {one} and {two}, and have no average.")
        if member.identity in seen:
            raise OutputError(f"{member.folder} is there twice, also as {seen[member.identity]}. Leave one out.")
        seen[member.identity] = member.folder


def golden_outputs(network: nn.Module, facts: Mapping[str, Any], images: np.ndarray) -> dict[str, Tensor]:
    """What a model folder keeps to be checked by: images, and their probabilities, plain, float32, made on the CPU.

    Args:
        images: N x size x size x 3, uint8, as `baseline.images.square` makes them.
    """
    still = copy.deepcopy(network).cpu().eval()
    numbers = mixed_precision("float32", "cpu")
    inputs = _to_inputs(images, facts, torch.device("cpu"))
    found = predict_probabilities(still, inputs, (), many=facts["labels"] == "many", numbers=numbers)[0]
    return {"images": torch.from_numpy(images), "probabilities": found.float().clone()}


def _read_batches(
    images: Iterable[Any], batch_size: int, forms: Sequence[tuple[int, str]]
) -> Iterator[tuple[list[Any], list[Any]]]:
    """Images in blocks, and for each its squares, one a form (pixels, resize), or why there are none."""
    rest = iter(images)
    blocks = iter(lambda: list(islice(rest, batch_size)), [])
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        ahead: deque[tuple[list[Any], list[Future]]] = deque()
        try:
            while True:
                for block in islice(blocks, 3 - len(ahead)):
                    ahead.append((block, [pool.submit(_load_squares, each, forms) for each in block]))
                if not ahead:
                    return
                given, futures = ahead.popleft()
                yield given, [future.result() for future in futures]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _load_squares(image: Any, forms: Sequence[tuple[int, str]]) -> list[np.ndarray] | str:
    try:
        content = image() if callable(image) else image
        if not isinstance(content, IMAGE_TYPES):
            return f"a path, bytes, an array or a PIL image was needed, not {type(content).__name__}"
        if isinstance(content, Image.Image) and len(forms) > 1:
            content = content.copy()  # else a file not yet read would be read in the size of the first form
        return [load_square(content, *form) for form in forms]
    except Exception as error:
        return unreadable_reason(error)


def _to_inputs(squares: np.ndarray, facts: Mapping[str, Any], device: torch.device) -> Tensor:
    """N x 3 x image_size x image_size, float32, normalised as in training."""
    images = torch.from_numpy(squares).to(device).permute(0, 3, 1, 2).float().div_(255)
    mean, std = (torch.tensor(facts[name], device=device).view(1, 3, 1, 1) for name in ("mean", "std"))
    return resize_batch(images, facts["image_size"]).sub_(mean).div_(std)


def _iterate_images(images: Any) -> Iterator[Any]:
    """Images one by one; a folder is all images in it."""
    one = isinstance(images, np.ndarray) and images.ndim < 4 and images.dtype != object
    if isinstance(images, str | Path | bytes) or hasattr(images, "getexif") or one:
        images = [images]
    for image in images:
        if isinstance(image, str | Path) and os.path.isdir(image):  # noqa: PTH112  # no error for a name too long
            yield from images_below(Path(image))
        else:
            yield image
