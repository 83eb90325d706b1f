"""What a model folder keeps of the images of its run, to recognize out-of-distribution images and to predict sets of
classes that contain the true one at a given rate.

`reference.safetensors`, at most 2 MB, holds the features of some training images, how far the valid images are from
these, and how probable the label of each valid image was. No image can be seen in it, but it tells a little about the
training images: `baseline push` and `baseline bundle` leave it out.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from baseline.data.labels import rarest_label
from baseline.errors import OutputError, RecipeError, WeightsError, first_line, format_count
from baseline.evaluation.calibration import calibrate
from baseline.evaluation.table import class_codes, class_columns, probability_matrix
from baseline.files import (
    CARD_FILE,
    CONFIG_FILE,
    GOLDEN_FILE,
    REFERENCE_FILE,
    TENSORS_FILE,
    parse_json,
    read_json,
    sha256_of,
    to_json,
    write_atomic,
)
from baseline.inference.features import record_features, unit_rows
from baseline.reading import check_regular, check_tensor_header
from baseline.vision.cpu_speedups import optimize_for_cpu
from baseline.vision.dataloaders import split_loader
from baseline.vision.learner import autocast
from baseline.vision.own_loaders import is_own
from baseline.vision.rng import preserve_rng_state

if TYPE_CHECKING:
    from fastai.learner import Learner

    from baseline.recipe.schema import Recipe

__all__ = [
    "Reference",
    "describe_coverage",
    "measure_reference",
    "read_reference",
    "unknown_files",
    "write_reference",
]

FORMAT = 1
"""Version of the layout of the file."""

MAX_TRAIN, MAX_VALID, MAX_SCORES = 512, 512, 50_000
"""Maximum number of training images whose features are stored, of valid images whose distance to them is measured, and
of valid images whose label's probability is stored."""

MAX_FEATURE_BYTES = 1_500_000
"""Maximum size of the features, 2 bytes each."""

MAX_FILE_BYTES = 8_000_000
"""Maximum size of a file that is read."""


@dataclass(frozen=True)
class Reference:
    """The content of `reference.safetensors`."""

    features: np.ndarray
    """Features of training images, M x features, float32, each of length 1."""
    distances: np.ndarray
    """Cosine distance of valid images to the nearest of these, ascending."""
    scores: np.ndarray
    """1 - calibrated probability of the label (with TTA) of valid images, ascending; empty with several labels."""

    @cached_property
    def _transposed(self) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(self.features.T))

    def unlike(self, features: np.ndarray) -> np.ndarray:
        """Return how unlike the training images each image is, 0 to 1: the share of valid images that are less unlike.

        Beyond the most unlike valid image, the value approaches 1 as the distance grows.

        Args:
            features: N x features, from `record_features` or `embed_images`.

        >>> reference = Reference(np.eye(2, dtype=np.float32), np.array([0.1, 0.2, 0.3]), np.empty(0))
        >>> reference.unlike(np.array([[1.0, 0], [1, 0.1], [1, 1], [-1, -1]], np.float32)).round(2).tolist()
        [0.0, 0.01, 0.73, 0.96]
        """
        return self.rank(nearest_distance(features, self._transposed))

    def rank(self, distances: np.ndarray) -> np.ndarray:
        """Return what `unlike` returns for distances to the nearest training image."""
        count = len(self.distances)
        steps = np.arange(count + 1) / (count + 1)
        inside = np.interp(distances, np.concatenate([[0.0], self.distances]), steps)
        furthest = max(float(self.distances[-1]), 1e-6)
        beyond = 1 - np.minimum(furthest / np.maximum(distances, 1e-12), 1.0)
        return inside + beyond / (count + 1)

    def check_rate(self, rate: float) -> None:
        """Raise a `RecipeError` if a share of images to reject is invalid, or the valid images are too few for it."""
        if not 0 < rate < 1:
            raise RecipeError(f"The share of images to reject is {rate:g}; needed: above 0 and below 1, such as 0.05.")
        if (needed := math.ceil(1 / rate - 1 - 1e-9)) > len(self.distances):
            images = format_count(len(self.distances), "valid image")
            raise RecipeError(
                f"The model was measured on {images}, and to reject {rate:.2%} of such images, {needed:,} are needed. "
                f"Reject at least {1 / (len(self.distances) + 1):.2%}, or train with more valid images."
            )

    def set_threshold(self, coverage: float) -> float:
        """Return the score up to which a class belongs to the set that contains the true one at this rate.

        Raises:
            RecipeError: if the coverage is invalid, or there are too few valid images for it.
        """
        if not 0 < coverage < 1:
            raise RecipeError(f"The coverage is {coverage:g}; needed: above 0 and below 1, such as 0.95.")
        count = len(self.scores)
        if not count:
            raise RecipeError("Sets of classes need one label per image, and this model predicts several.")
        rank = math.ceil((count + 1) * coverage - 1e-9)
        if rank > count:
            needed = math.ceil(coverage / (1 - coverage) - 1e-9)
            raise RecipeError(
                f"The model was measured on {format_count(count, 'valid image')}, and a coverage of {coverage:.4g} "
                f"needs {needed:,}. Ask for at most {count / (count + 1):.3f}, or train with more valid images."
            )
        return float(self.scores[rank - 1])


def nearest_distance(features: np.ndarray, transposed: torch.Tensor) -> np.ndarray:
    """Return the cosine distance of images, N x features, to the nearest of reference features, features x M."""
    if not len(features):
        return np.empty(0)
    similarity = (torch.from_numpy(unit_rows(features)) @ transposed).max(1).values.numpy()
    return np.maximum(1 - similarity.astype(float), 0.0)


def describe_coverage(reference: Reference, coverage: float) -> str:
    """Return a sentence about how far the coverage may be from the asked one; empty where that is under 2 points.

    Given n valid images, the coverage on many new images has a beta distribution (Vovk 2012).

    >>> describe_coverage(Reference(np.empty(0), np.empty(0), np.zeros(99)), 0.95)
    'with 99 valid images, sets for a coverage of 95% cover 90% to 98% of images like these (95% interval)'
    >>> describe_coverage(Reference(np.empty(0), np.empty(0), np.zeros(9999)), 0.95)
    ''
    """
    from scipy.stats import beta

    count = len(reference.scores)
    rank = math.ceil((count + 1) * coverage - 1e-9)
    low, high = beta.ppf((0.025, 0.975), rank, count + 1 - rank)
    if high - low < 0.04:
        return ""
    return (
        f"with {count:,} valid images, sets for a coverage of {100 * coverage:.4g}% cover {low:.0%} to {high:.0%} of "
        "images like these (95% interval)"
    )


def measure_reference(
    train: np.ndarray, valid: np.ndarray, predictions: pd.DataFrame, temperature: float | None, task: str
) -> Reference:
    """Return the reference of features of training and valid images.

    Args:
        train, valid: images x features; see `select_images` for which images.
        predictions: the prediction table of the run.
        temperature: the run's, or None.
    """
    features = unit_rows(train).astype(np.float16)
    distances = np.sort(nearest_distance(valid, torch.from_numpy(features.astype(np.float32)).T))
    rows = predictions[predictions["split"] == "valid"]
    scores = np.empty(0)
    if task == "single" and len(rows):
        rows = rows.iloc[sample_rows(len(rows), MAX_SCORES)]
        classes = class_columns(rows)
        calibrated = probability_matrix(calibrate(rows, temperature or 1.0), classes)
        scores = np.sort(1 - calibrated[np.arange(len(rows)), class_codes(rows, "label", classes)])
    return Reference(features.astype(np.float32), distances, scores)


def sample_rows(count: int, limit: int) -> np.ndarray:
    """Return at most `limit` of the numbers below `count`, ascending, at random but always the same."""
    return np.sort(np.random.default_rng(0).permutation(count)[:limit])


def select_images(table: pd.DataFrame, width: int, task: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the training and the valid images whose features are used, all classes in turn.

    Args:
        width: number of features of an image.
    """
    result = []
    for split, limit in (("train", min(MAX_TRAIN, MAX_FEATURE_BYTES // (2 * width))), ("valid", MAX_VALID)):
        rows = table[table["split"] == split].reset_index(drop=True)
        shuffled = rows.iloc[np.random.default_rng(0).permutation(len(rows))]
        labels = rarest_label(shuffled["label"]) if task == "multilabel" else shuffled["label"]
        turn = shuffled.groupby(labels.to_numpy(), sort=False).cumcount().to_numpy()
        result.append(rows.loc[np.sort(shuffled.index[np.argsort(turn, kind="stable")][:limit])])
    return result[0], result[1]


def write_reference(
    folder: Path, learn: Learner, recipe: Recipe, table: pd.DataFrame, predictions: pd.DataFrame
) -> None:
    """Write the reference of a run into its model folder; nothing where there is none, or images are the caller's own.

    Features come from the cache where the backbone is as it was before training, and else from one more pass over the
    selected images.

    Args:
        folder: the run folder.
        predictions: the prediction table of the run, which has valid images.
    """
    from baseline.vision.model_folder import read_config

    target = folder / "model"
    if not (target / "model.json").exists() or is_own(learn.dls):
        return
    config = read_config(target / "model.json")
    with preserve_rng_state():
        cached = cached_features(learn, recipe)
        width = cached["train"].shape[1] if cached else feature_width(learn, table)
        samples = dict(zip(("train", "valid"), select_images(table, width, recipe.data.task), strict=True))
        features = {
            split: cached[split][rows.index] if cached else compute_features(learn, rows, split)
            for split, rows in samples.items()
        }
    reference = measure_reference(
        features["train"], features["valid"], predictions, config["temperature"], recipe.data.task
    )
    save_reference(target, reference)


def cached_features(learn: Learner, recipe: Recipe) -> dict[str, np.ndarray]:
    """Return the features of all training and valid images from the cache of a head stage; empty if not there.

    They are there if the backbone is as it was before training, and pools before the head's only linear layer.
    """
    from baseline.training.frozen import FrozenOutputs

    if recipe.model.head != "linear" or not recipe.options.cache_gb:
        return {}
    frozen = FrozenOutputs(learn, recipe)
    plan = frozen.plan
    for number in frozen.cached_stages():
        cut, view = plan.stages[number]
        if not recipe.stages[number - 1].is_head:
            continue
        views = (("train", view), ("valid", plan.full_view))
        if all(frozen.obtain(split, kind, number) for split, kind in views):
            arrays = {split: frozen.outputs[split, cut, kind].numpy() for split, kind in views}
            if all(array.ndim == 2 for array in arrays.values()):
                return {split: array[: len(frozen.rows[split])] for split, array in arrays.items()}
    return {}


def feature_width(learn: Learner, table: pd.DataFrame) -> int:
    """Return the number of features of an image."""
    rows = table[table["split"] == "valid"].head(1)
    return int(compute_features(learn, rows, "valid").shape[1])


@torch.no_grad()
def compute_features(learn: Learner, rows: pd.DataFrame, split: str) -> np.ndarray:
    """Return the features of images of a split, without augmentation: images x features, float32."""
    parts: list[np.ndarray] = []
    learn.model.eval()
    with ExitStack() as stack:
        for images, _ in split_loader(learn.dls, rows, split):
            inputs = images.as_subclass(torch.Tensor).contiguous(memory_format=torch.channels_last)
            if not parts:
                stack.enter_context(optimize_for_cpu(learn.model, inputs, trainable=False))
                outputs = stack.enter_context(record_features(learn.model))
            with autocast(learn):
                learn.model(inputs)
            parts.append(outputs.pop().float().cpu().numpy())
    return np.concatenate(parts)


def save_reference(folder: Path, reference: Reference) -> None:
    """Write `reference.safetensors` into a model folder, and its sha256 into `model.json`."""
    tensors = {
        "features": torch.from_numpy(reference.features.astype(np.float16)),
        "distances": torch.from_numpy(reference.distances.astype(np.float32)),
        "scores": torch.from_numpy(reference.scores.astype(np.float32)),
    }
    facts = {"format": FORMAT, "network": sha256_of(folder / "model.safetensors"), "sha256": tensor_hash(tensors)}
    # one entry, because safetensors writes several in any order
    content = save(tensors, {"reference": json.dumps(facts, sort_keys=True)})
    write_atomic(folder / REFERENCE_FILE, content)
    config = read_json(folder / CONFIG_FILE)
    if "sha256" in config:  # the first model folders have none
        config["sha256"][REFERENCE_FILE] = hashlib.sha256(content).hexdigest()
        write_atomic(folder / CONFIG_FILE, to_json(config))


def unknown_files(folder: Path) -> list[str]:
    """Return the names of the files of a model folder that are not part of a model, and that nothing reads."""
    known = {TENSORS_FILE, CONFIG_FILE, GOLDEN_FILE, REFERENCE_FILE, CARD_FILE}
    files = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return sorted({path.relative_to(folder).as_posix() for path in files} - known)


def tensor_hash(tensors: Mapping[str, torch.Tensor]) -> str:
    """Return the SHA-256 of tensors, with their names and shapes."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tuple(tensors[name].shape)} {tensors[name].dtype}\n".encode())
        digest.update(tensors[name].contiguous().numpy().tobytes())
    return digest.hexdigest()


def read_reference(folder: Path, config: Mapping[str, Any]) -> Reference:
    """Read the reference of a model folder.

    Args:
        config: the content of `model.json`, with the hash of the tensors.

    Raises:
        OutputError: if there is none.
        WeightsError: if it is damaged, or belongs to another network.
    """
    path = folder / REFERENCE_FILE
    if not path.exists():
        raise OutputError(
            f"{folder} has no {REFERENCE_FILE}: an older version wrote it, or it was left out. If the images of the "
            "run still exist, add it with: baseline reference RUN"
        )
    try:
        check_regular(path, MAX_FILE_BYTES)
        check_tensor_header(path)
        with safe_open(path, "pt") as file:
            facts = parse_json((file.metadata() or {}).get("reference", "{}"))
            names = sorted(file.keys())
            tensors = {name: file.get_tensor(name) for name in names}
    except (OSError, SafetensorError, ValueError) as error:
        raise WeightsError(f"{path} is damaged: {first_line(error)}. Copy it again.") from None
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        raise OutputError(f"{path} has another format than {FORMAT}, which this version reads. Update baseline.")
    if names != ["distances", "features", "scores"] or facts.get("sha256") != tensor_hash(tensors):
        raise WeightsError(f"{path} is damaged: its content does not match its hash. Copy it again.")
    if facts.get("network") != config["sha256"].get("model.safetensors"):
        raise WeightsError(f"{path} belongs to another network. Copy it again, with its own model.safetensors.")
    expected = config["sha256"].get(REFERENCE_FILE, "")
    if expected and sha256_of(path) != expected:
        raise WeightsError(f"{path} is damaged: its sha256 is not the one in {CONFIG_FILE}. Copy it again.")
    features, distances, scores = (tensors[name].float().numpy() for name in ("features", "distances", "scores"))
    if features.ndim != 2 or not len(features) or distances.ndim != 1 or not len(distances) or scores.ndim != 1:
        raise WeightsError(f"{path} does not hold features and distances. Copy it again.")
    return Reference(features, distances.astype(float), scores.astype(float))


def class_sets(probabilities: np.ndarray, threshold: float, classes: Sequence[str]) -> list[list[str]]:
    """Return for each image the classes whose probability is at least 1 - threshold, and in any case the most probable.

    >>> class_sets(np.array([[0.5, 0.4, 0.1], [0.3, 0.3, 0.4]]), 0.65, ["a", "b", "c"])
    [['a', 'b'], ['c']]
    """
    sets = []
    for row in probabilities:
        order = np.argsort(-row, kind="stable")
        count = max(1, int((1 - row <= threshold).sum()))
        sets.append([] if np.isnan(row).any() else [classes[at] for at in order[:count]])
    return sets
