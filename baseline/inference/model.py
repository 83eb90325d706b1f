"""Load trained models and predict with them, one at a time or as an ensemble. No training data is needed.

>>> model = load("runs/cifar10-20261122-101500")                                   # doctest: +SKIP
>>> model.predict("holiday.jpg")[["predicted", "confidence"]]                      # doctest: +SKIP
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import torch
from fastai.torch_core import TensorImage, default_device
from fastcore.foundation import L
from fasttransform import Pipeline

from baseline.data.image import load_square
from baseline.data.labels import predicted_codes, predicted_labels
from baseline.errors import DataError, OutputError, WeightsError, format_count, system_errors
from baseline.evaluation.cut_points import average_cut_points
from baseline.evaluation.ensemble import average_probabilities
from baseline.evaluation.golden import golden_outputs, to_inputs
from baseline.evaluation.predict import predict_probabilities
from baseline.files import REFERENCE_FILE, read_json
from baseline.inference import DEFAULT_TTA
from baseline.inference.compatibility import check_compatible, check_transforms, with_statistics
from baseline.inference.empty_loaders import empty_loaders
from baseline.inference.features import recording
from baseline.inference.inputs import DecodeSpec, ItemTransforms, iterate_images, read_batches
from baseline.inference.output import printable_path
from baseline.progress import ConsoleProgress, Progress
from baseline.recipe.auto import resolve_frozen_precision, resolve_precision
from baseline.recipe.schema import Augment, Recipe
from baseline.system import bfloat16_instructions, is_intel_cpu
from baseline.vision.bodies import device_of
from baseline.vision.cpu_speedups import optimize_for_cpu
from baseline.vision.learner import learner, mixed_precision
from baseline.vision.model_folder import load_network, member_folders, model_folder, read_golden
from baseline.vision.own_parts import OwnParts, named_errors
from baseline.vision.rng import preserve_rng_state

if TYPE_CHECKING:
    from fastai.learner import Learner
    from torch import Tensor, nn

    from baseline.inference.features import Embeddings
    from baseline.inference.labeled import Evaluation, Unknown
    from baseline.inference.reference import Reference

if hasattr(
    os, "register_at_fork"
):  # the other threads of OpenMP do not exist in a forked process, which waits for them
    os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))

__all__ = ["Ensemble", "Model", "PredictionBatch", "load", "load_model"]


TOLERANCE = 1e-4
"""Maximum difference of a golden input's probability from the saved one, in float32."""


@dataclass(frozen=True)
class PredictionBatch:
    """Predictions for a batch of images, in the order of the images."""

    images: list[Any]
    """The images as passed in."""
    errors: list[str]
    """Why an image cannot be read; empty if it was read."""
    probabilities: np.ndarray
    """Images x classes, float64; NaN for an image that cannot be read."""
    predicted: list[str]
    """The predicted class; for multi-label models all predicted classes, joined by `;`."""
    confidence: np.ndarray
    """The probability of the predicted class; for multi-label models that of the least certain decision."""
    unlike: np.ndarray | None = None
    """How unlike the training images each image is, 0-1, NaN if unreadable; see `Reference.unlike`. None: not asked."""


def load(
    folder: str | Path | Sequence[str | Path], *, item_tfms: Any = None, batch_tfms: Any = None
) -> Model | Ensemble:
    """Load the model of a run folder, or of its `model/` folder alone; several models are loaded as an ensemble.

    No training data is needed, nothing is unpickled, and random states are left unchanged.

    Args:
        folder: a run folder; a folder of folds or seeds, which stands for all its runs; or a list of such folders.
        item_tfms: the transforms that were given to `make_baseline`, which a model folder cannot hold; `batch_tfms`
            likewise. They are needed if they also run on images to predict.

    Raises:
        OutputError: if there is no model folder, a newer version wrote it, its `model.json` is invalid, or several
            models do not share the same classes.
        WeightsError: if its tensors are damaged or do not fit the network that it names.

    >>> load("runs/mine").predict(["a.jpg", "b.jpg"])                              # doctest: +SKIP
    >>> load(["runs/mine", "runs/other"]).predict("a.jpg")                         # doctest: +SKIP
    """
    folders = [folder] if isinstance(folder, str | Path) else folder
    models = [load_model(member, item_tfms, batch_tfms) for path in folders for member in member_folders(path)]
    return models[0] if len(models) == 1 else Ensemble(models)


def load_model(folder: str | Path, item_tfms: Any = None, batch_tfms: Any = None) -> Model:
    """Load the single model of a run folder, or of its `model/` folder alone.

    Raises:
        OutputError, WeightsError: as in `load`, and if the folder holds several models.
    """
    first, *others = member_folders(folder)
    if others:
        raise OutputError(
            f"{folder} holds {len(others) + 1} models, and one was needed. Pass one of them, such as {first}."
        )
    with preserve_rng_state():
        network, config = load_network(folder)
    parts = OwnParts(item_tfms, batch_tfms)
    check_transforms(folder, config, parts)
    return Model(
        network.to(default_device()), config, model_folder(folder), parts.item_tfms, with_statistics(parts, config)
    )


class BasePredictor:
    """What a single model and an ensemble have in common."""

    @property
    def members(self) -> tuple[Model, ...]:
        """The models whose probabilities are averaged; a single model is its own only member."""
        raise NotImplementedError

    @property
    def classes(self) -> list[str]:
        """Class names, in the order of the network's outputs."""
        return self.members[0].config["classes"]

    @property
    def multilabel(self) -> bool:
        """Whether an image may have several labels."""
        return self.members[0].config["task"] == "multilabel"

    @property
    def reference(self) -> Reference:
        """What the model folder keeps of the training images; see `baseline.inference.reference`.

        Raises:
            OutputError: if the folder has no `reference.safetensors`, or there are several models.
            WeightsError: if that file is damaged.
        """
        if len(self.members) > 1:
            raise OutputError("Only a single model tells how unlike its training images an image is. Pass one model.")
        return self.members[0]._reference

    @property
    def folders(self) -> list[Path]:
        """The model folders of the members."""
        return [member.folder for member in self.members]

    @system_errors()
    def predict(
        self,
        images: Any,
        *,
        tta: bool = DEFAULT_TTA,
        calibrated: bool = True,
        batch_size: int = 64,
        on_error: Literal["raise", "row"] = "raise",
        unlike: bool = False,
        progress: Progress | None = None,
    ) -> pd.DataFrame:
        """Return one row per image: `path`, `predicted`, `confidence`, and the probability of each class as `p_CLASS`.

        If the images are not all paths, the first column is `image`, their index from 0.

        Args:
            images: one image or several; each a path, a folder, bytes, an open file, a PIL image, an array H x W x 3,
                or a tensor 3 x H x W; integers from 0 to 255, or floats from 0 to 1. A DataFrame is read by its column
                `path`.
            tta: average over the views of the run's evaluation (test-time augmentation); if False, predict the plain
                image alone.
            calibrated: divide the logits by the fitted temperature, if there is one. The predicted classes are the same
                either way.
            on_error: what an image does that cannot be read: `"raise"` an error, or get a `"row"` with the reason in a
                column `error`, an empty `predicted` and NaN. The column is empty for images that were read.
            unlike: add a column `unlike`, 0 to 1: the share of the run's valid images that are less unlike its training
                images than this image. It tends to 1 for images of something else.
            progress: receives a message about files of a folder that are no images; the terminal by default.

        Raises:
            DataError: if an image cannot be read and `on_error` is `"raise"`, something is no image at all, a folder
                holds none, or a DataFrame has no column `path`.

        >>> model.predict("holiday/")                                              # doctest: +SKIP
        """
        if on_error not in ("raise", "row"):
            raise DataError(f"on_error is {on_error!r}. Pass 'raise' or 'row'.")
        inputs = list(iterate_images(images, progress or ConsoleProgress(), strict=on_error == "raise"))
        all_paths = all(isinstance(image, str | Path) for image in inputs)
        names = [printable_path(str(image)) for image in inputs] if all_paths else list(range(len(inputs)))
        batches = list(self.predict_batches(inputs, tta=tta, calibrated=calibrated, batch_size=batch_size,
                                            optimize=len(inputs) >= batch_size, unlike=unlike))  # fmt: skip
        errors = [error for batch in batches for error in batch.errors]
        for name, error in zip(names, errors, strict=True):
            if error and on_error == "raise":
                raise DataError(f"Image {name} cannot be read: {error}. Leave it out, or give on_error='row'.")
        columns = [f"p_{name}" for name in self.classes]
        empty = np.empty((0, len(columns)))
        probabilities = np.concatenate([batch.probabilities for batch in batches]) if batches else empty
        table = {
            "path" if all_paths else "image": names,
            "predicted": [label for batch in batches for label in batch.predicted],
            "confidence": np.concatenate([batch.confidence for batch in batches]) if batches else [],
        } | ({"error": errors} if on_error == "row" else {})
        if unlike:
            parts = [batch.unlike for batch in batches if batch.unlike is not None]
            table["unlike"] = np.concatenate(parts) if parts else []
        return pd.concat([pd.DataFrame(table), pd.DataFrame(probabilities, columns=columns)], axis=1)

    @system_errors()
    def evaluate(
        self, images: Any, *, splits: Sequence[str] = (), progress: Progress | None = None, tta: bool = DEFAULT_TTA,
        unknown: Unknown = "error", metric: str = "auto", reject_unlike: float = 0.0, coverage: float = 0.0,
        **settings: Any,
    ) -> Evaluation:  # fmt: skip
        """Measure the model on labeled images in any form that `make_baseline` reads.

        `baseline.experiments.evaluate_models` also compares the result with the test number of the run.

        Args:
            splits: only the images of these splits, if the images come with splits.
            unknown: what images do whose labels the model does not know: `"error"`, or `"drop"` to leave them out.
            metric, reject_unlike, coverage: see `baseline.inference.labeled.evaluate_model`, as for what is raised.
            **settings: how the images are read: fields of `DataSettings`, such as `label_col`.

        >>> model.evaluate("new/").scores["accuracy"]                              # doctest: +SKIP
        {'value': 0.91, 'interval': (0.87, 0.94)}
        """
        from baseline.inference.labeled import evaluate_model, read_labeled

        task = "multilabel" if self.multilabel else "single"
        table = read_labeled(images, task=task, splits=splits, progress=progress, **settings)
        return evaluate_model(
            self, table, tta=tta, unknown=unknown, metric=metric, reject_unlike=reject_unlike,  # type: ignore[arg-type]
            coverage=coverage, progress=progress,
        )  # fmt: skip

    def predict_batches(
        self,
        images: Iterable[Any],
        *,
        tta: bool = DEFAULT_TTA,
        calibrated: bool = True,
        batch_size: int = 64,
        optimize: bool = True,
        precision: str = "",
        unlike: bool = False,
    ) -> Iterator[PredictionBatch]:
        """Yield predictions in batches of `batch_size` images, in order, with the reason for each unreadable image.

        Images are read in threads while the network works, at most two batches ahead, so memory use does not depend on
        the number of images. The same images in the same batches give the same numbers.

        Args:
            images: consumed lazily: anything that `predict` takes, or functions that return it, which are called in the
                reading threads.
            optimize: speed up the forward pass on CPU (see `optimize_for_cpu`), which pays off from a few dozen images
                on.
            precision: number format of the forward pass; see `resolve_precision`.
            unlike: fill in `PredictionBatch.unlike`.
        """
        reference = self.reference if unlike else None
        specs = list(dict.fromkeys(member._decode_spec for member in self.members))
        with ExitStack() as stack:
            networks: list[nn.Module] = [member.network for member in self.members]
            autocasts = [member._autocast(precision) for member in self.members]
            optimized = not optimize
            for inputs, decoded in read_batches(images, batch_size, specs):
                readable = [squares for squares in decoded if not isinstance(squares, str)]
                by_member = [
                    [squares[specs.index(member._decode_spec)] for squares in readable] for member in self.members
                ]
                if readable and not optimized:
                    optimized = True
                    networks = [
                        stack.enter_context(member._optimized_network(squares[:2]))
                        for member, squares in zip(self.members, by_member, strict=True)
                    ]
                with recording(reference, networks[0]) as measured:
                    probabilities = [
                        member._predict_squares(network, squares, tta, autocast)
                        for member, network, squares, autocast in zip(
                            self.members, networks, by_member, autocasts, strict=True
                        )
                    ]
                yield self._make_batch(inputs, decoded, probabilities, calibrated, measured())

    def resolve_precision(self, precision: str = "") -> tuple[str, str]:
        """Return the number format of the forward pass, and the reason for it.

        If `precision` is empty it is that of the run's evaluation, which on a CPU is float32; `"float32"` and
        `"bfloat16"` are taken as they are; `"auto"` is bfloat16 on a CPU where that is faster. The format is empty if
        the members were evaluated in different formats.

        Raises:
            RecipeError: for bfloat16 on a CPU without instructions for it, or on a GPU other than CUDA's.
        """
        device = device_of(self.members[0].network).type
        if device not in ("cpu", "cuda"):
            return resolve_precision(precision or "auto", device)
        if device == "cuda":
            if precision not in ("", "auto"):
                return precision, "as given"
            formats = {member.config["precision"] for member in self.members}
            return ("", "each as evaluated") if len(formats) > 1 else (*formats, "as evaluated")
        return resolve_frozen_precision(precision or "float32", device, bfloat16_instructions(), is_intel_cpu())

    def _make_batch(
        self, images: list[Any], decoded: list[Any], member_probabilities: list[np.ndarray], calibrated: bool,
        measured: np.ndarray | None = None,
    ) -> PredictionBatch:  # fmt: skip
        """Combine the members' probabilities of the readable images into the predictions for all images."""
        configs = [member.config for member in self.members]
        task = "multilabel" if self.multilabel else "single"
        errors = [result if isinstance(result, str) else "" for result in decoded]
        readable = np.array([not error for error in errors], dtype=bool)
        mean, threshold = average_probabilities(
            member_probabilities,
            [config["temperature"] for config in configs],
            task,
            [member.threshold for member in self.members],
        )
        reported = mean if calibrated else np.mean(member_probabilities, axis=0)
        cut_points = average_cut_points([member.cut_points for member in self.members], len(self.classes))
        certainty = reported[np.arange(len(reported)), predicted_codes(mean, cut_points)]
        if threshold is not None:
            certainty = np.where(mean >= threshold, reported, 1 - reported).min(1)
        predicted = np.full(len(images), "", dtype=object)
        confidence = np.full(len(images), np.nan)
        probabilities = np.full((len(images), len(self.classes)), np.nan)
        predicted[readable] = predicted_labels(mean, self.classes, threshold, cut_points)
        confidence[readable], probabilities[readable] = certainty, reported
        unlike = None if measured is None else np.full(len(images), np.nan)
        if unlike is not None:
            unlike[readable] = measured
        return PredictionBatch(images, errors, probabilities, predicted.tolist(), confidence, unlike)


@dataclass(frozen=True, eq=False)
class Model(BasePredictor):
    """A trained network and what is needed to use it; made by `load`."""

    network: nn.Sequential
    """In evaluation mode, on the GPU if there is one."""
    config: Mapping[str, Any]
    """Content of `model.json`; see `baseline.vision.model_folder`."""
    folder: Path
    item_tfms: Any = None
    batch_tfms: Any = None

    def __repr__(self) -> str:
        config = self.config
        return (
            f"Model({str(self.folder)!r}: {config['arch']}, {format_count(len(self.classes), 'class', 'classes')}, "
            f"{config['image_size']} px)"
        )

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the network, its classes, and the accuracy of its run where that is there."""
        from baseline.notebook import card, interval_chart, score_intervals

        count = format_count(len(self.classes), "class", "classes")
        names = f"{count}: {', '.join(self.classes[:12])}{', ...' if len(self.classes) > 12 else ''}"
        charts, run = [], self.folder.parent
        with suppress(OutputError, KeyError, TypeError):  # a model folder alone, or not its run
            metrics = read_json(run / "manifest.json", Any)["metrics"]
            charts = [interval_chart(score_intervals(metrics, bool(self.config["tta"])), "accuracy of the run")]
        title = f"{self.config['arch']}, {self.config['image_size']} px"
        return card(title, charts, [names], [run / "report.html", self.folder / "README.md"])

    @property
    def members(self) -> tuple[Model, ...]:
        """The model itself."""
        return (self,)

    @property
    def decoded_size(self) -> int:
        """Side length in pixels of the squares that images are decoded to."""
        return self._recipe.decoded_size

    @property
    def threshold(self) -> float | list[float]:
        """Uncalibrated probability from which a label is predicted: one for all classes, or one per class."""
        return self.config.get("thresholds") or self.config["threshold"]

    @property
    def cut_points(self) -> list[float]:
        """Cut points of the expected class number by calibrated probabilities; empty if the most probable class is
        predicted."""
        return [*self.config.get("cut_points", ())]

    @property
    def value_range(self) -> tuple[float, ...]:
        """The values of black and white in images of more than 8 bits; see `load_image`."""
        return tuple(self.config.get("value_range", ()))

    @cached_property
    def identity(self) -> str:
        """A hash of the network and its config: models of the same identity predict the same."""
        hashes = {name: text for name, text in self.config["sha256"].items() if name != REFERENCE_FILE}
        return hashlib.sha256(json.dumps({**self.config, "sha256": hashes}, sort_keys=True).encode()).hexdigest()

    @cached_property
    def learner(self) -> Learner:
        """A complete fastai Learner with a copy of the network: `predict`, `test_dl`, or training on DataLoaders."""
        recipe = self._recipe
        with preserve_rng_state():
            normal = (self.config["mean"], self.config["std"])
            dls = empty_loaders(self.classes, recipe, normal, self.item_tfms, self.batch_tfms)
            learn = learner(dls, recipe)
        if self.multilabel and self.config.get("thresholds"):
            learn.loss_func.thresh = torch.tensor(self.config["thresholds"])
        learn.model = copy.deepcopy(self.network)  # its body may have been cut in another way
        return learn

    @cached_property
    def _reference(self) -> Reference:
        from baseline.inference.reference import read_reference

        return read_reference(self.folder, self.config)

    @cached_property
    def _recipe(self) -> Recipe:
        config = self.config
        fields = {name: config[name] for name in ("arch", "head", "image_size", "resize", "task", "threshold")}
        return Recipe("model").changed(
            pretrained=False, value_range=self.value_range, augment=Augment(crop=config["crop"]), **fields
        )

    @contextmanager
    def predictor(
        self, *, tta: bool = DEFAULT_TTA, calibrated: bool = True, unlike: bool = False
    ) -> Iterator[Callable[[Sequence[np.ndarray]], PredictionBatch]]:
        """Context manager that prepares an optimized network once and yields a function that predicts squares (see
        `load_square`), for many calls.

        >>> with model.predictor(tta=False) as predict:                            # doctest: +SKIP
        ...     predict([model.load_square("a.jpg"), model.load_square("b.jpg")]).predicted
        ['ants', 'bees']
        """
        autocast, reference = self._autocast(), self.reference if unlike else None
        noise = [*np.random.default_rng(0).integers(0, 256, (2, *self.decoded_shape), dtype=np.uint8)]
        with self._optimized_network(noise) as network:

            def predict(squares: Sequence[np.ndarray]) -> PredictionBatch:
                with recording(reference, network) as measured:
                    probabilities = self._predict_squares(network, squares, tta, autocast)
                return self._make_batch([*squares], [*squares], [probabilities], calibrated, measured())

            yield predict

    @property
    def decoded_shape(self) -> tuple[int, int, int]:
        """Shape of the array that `load_square` returns."""
        return (self.decoded_size, self.decoded_size, 3)

    def load_square(self, image: Any) -> np.ndarray:
        """Decode and resize an image to the square that the network takes, `decoded_size` x `decoded_size` x 3, uint8.

        Raises whatever PIL raises for an image that cannot be read.
        """
        return load_square(image, *self._decode_spec)

    @system_errors()
    def embed(self, images: Any, *, batch_size: int = 64, progress: Progress | None = None) -> Embeddings:
        """Return the features of images: `paths`, and `features`, images x features, float32.

        Features are what the last linear layer takes (with the normalization directly before it), of the plain image.
        An image that cannot be read has NaN, and a reason in `errors`.

        >>> model.embed("holiday/").features.shape                                 # doctest: +SKIP
        (24, 1280)
        """
        from baseline.inference.features import embed_images

        inputs = list(iterate_images(images, progress or ConsoleProgress(), strict=False))
        return embed_images(self, inputs, batch_size, progress)

    def inputs(self, squares: Sequence[np.ndarray]) -> Tensor:
        """Return the network's input for squares: N x 3 x image_size x image_size, normalized, on its device."""
        device = device_of(self.network)
        if self._batch_pipeline is None:
            return to_inputs(np.stack(squares), self.config, device)
        images = TensorImage(torch.from_numpy(np.stack(squares)).to(device).permute(0, 3, 1, 2))
        with named_errors([("transform", t) for t in L(self.batch_tfms)], "Prediction"):
            return self._batch_pipeline(images).as_subclass(torch.Tensor)

    @cached_property
    def _batch_pipeline(self) -> Pipeline | None:
        """The batch transforms of the Learner, where some are the user's own."""
        return None if self.batch_tfms is None else Pipeline(self.learner.dls.valid.after_batch.fs, split_idx=1)

    @cached_property
    def _item_transform(self) -> ItemTransforms | None:
        return None if self.item_tfms is None else ItemTransforms(self.item_tfms)

    def check(self) -> float:
        """Return the largest difference between the probabilities of the folder's golden inputs now and when saved.

        Raises:
            OutputError: if the folder has no golden inputs.
            WeightsError: if the difference is above 1e-4, or `reference.safetensors` is damaged.
        """
        from baseline.inference.reference import read_reference

        if (self.folder / REFERENCE_FILE).exists():
            read_reference(self.folder, self.config)
        images, expected = read_golden(self.folder, self.config)
        actual = golden_outputs(self.network, self.config, images.numpy())["probabilities"]
        difference = float((actual - expected).abs().max())
        if not difference <= TOLERANCE:
            raise WeightsError(
                f"{self.folder} does not predict as it did when saved: the probability of a golden input differs by "
                f"{difference:.2g}, and at most {TOLERANCE:g} is allowed. Copy the folder again, or install the "
                "package versions that it was saved with."
            )
        return difference

    @property
    def _decode_spec(self) -> DecodeSpec:
        """Arguments of `load_square`: size in pixels, resize method, range of values, and the user's transforms."""
        return self.decoded_size, self.config["resize"], self.value_range, self._item_transform

    @contextmanager
    def _optimized_network(self, squares: list[np.ndarray]) -> Iterator[nn.Module]:
        """Yield an optimized copy of the network, so that the model can be used by others at the same time."""
        network = copy.deepcopy(self.network)
        with optimize_for_cpu(network, self.inputs(squares), trainable=False):
            yield network

    def _autocast(self, precision: str = "") -> torch.autocast:
        return mixed_precision(self.resolve_precision(precision)[0], device_of(self.network).type)

    def _predict_squares(
        self, network: nn.Module, squares: Sequence[np.ndarray], tta: bool, autocast: torch.autocast
    ) -> np.ndarray:
        """Uncalibrated probabilities, squares x classes, averaged over the plain image and its views."""
        if len(squares) == 0:
            return np.empty((0, len(self.classes)))
        views = tuple(self.config["tta"]) if tta else ()
        probabilities = predict_probabilities(
            network, self.inputs(squares), views, many=self.multilabel, numbers=autocast
        )
        return probabilities.mean(0).numpy()


class Ensemble(BasePredictor):
    """Several models that predict together, by the mean of their calibrated probabilities; made by `load`.

    They may differ in architecture, image size and views. An image is decoded once for all models that take it in the
    same size with the same resize method.

    Raises:
        OutputError: if they do not have the same classes in the same order, some are multi-label and some are not,
            their thresholds differ, or a model is included twice.
    """

    def __init__(self, members: Sequence[Model]) -> None:
        if not members:
            raise OutputError("There is no model to predict with. Pass the folder of a run.")
        check_compatible(members)
        self._members = tuple(members)

    @property
    def members(self) -> tuple[Model, ...]:
        """The models, in the order in which they were passed in."""
        return self._members

    @cached_property
    def identity(self) -> str:
        """A hash of the identities of all members, in their order."""
        return hashlib.sha256(" ".join(member.identity for member in self.members).encode()).hexdigest()

    def check(self) -> float:
        """Return the largest difference of any member; see `Model.check`."""
        return max(member.check() for member in self.members)
