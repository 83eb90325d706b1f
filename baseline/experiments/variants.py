"""Training variants of one architecture, from a majority guess to full fine-tuning: their recipes and run folders.

The variants of an architecture share the split, the decoded images and the outputs of the frozen layers. Each gets a
run folder, so that `baseline compare` accepts it and, where a network was trained, so do `baseline report` and
`baseline predict`.
"""

from __future__ import annotations

import dataclasses
import shlex
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from baseline.data.prepare import prepare
from baseline.data.split import split_to_csv
from baseline.errors import OutputError, RecipeError
from baseline.experiments.jobs import training_job
from baseline.files import to_csv, to_json, write_atomic
from baseline.parallel.executor import Job
from baseline.reading import MAX_TABLE_BYTES, read_text
from baseline.recipe.auto import resolve_epochs
from baseline.recipe.diff import diff_recipes
from baseline.recipe.schema import HEAD_STAGE, Stage
from baseline.runs.folder import is_finished, read_manifest
from baseline.runs.manifest import build_manifest, describe_device
from baseline.vision.resolve import resolve

if TYPE_CHECKING:
    import pandas as pd

    from baseline.experiments.zeroshot import ClipModel
    from baseline.progress import Progress
    from baseline.recipe.schema import Recipe
    from baseline.training.state import StageRecord
    from baseline.vision.weights import Weights

__all__ = [
    "ARCH_INDEPENDENT",
    "PROBES",
    "VARIANTS",
    "Architecture",
    "Probe",
    "prepare_architectures",
    "resume_hint_on_interrupt",
]


VARIANTS = {
    "majority": "most frequent class",
    "neighbors": "nearest neighbors on pretrained features",
    "logistic": "logistic regression on pretrained features",
    "head": "new head on the frozen body",
    "fastai": "fastai's frozen stage, BatchNorm in train mode",
    "groups": "last layer groups fine-tuned",
    "all": "all layers fine-tuned, discriminative learning rates",
    "tta": "with TTA",
    "scratch": "all layers from random weights",
    "zeroshot": "zero-shot classification with CLIP",
}
"""Titles of the variants, in order of effort. `scratch` shows what pretraining is worth, and `zeroshot` sees no
training image."""


PROBES = ("majority", "neighbors", "logistic", "zeroshot")
"""Variants that train no network."""


ARCH_INDEPENDENT = ("majority", "zeroshot")
"""Variants that are the same for every architecture."""


HEAD_ONLY_STAGE = Stage("head", 10, steps=350)
"""Stage for a head that is not fine-tuned afterwards."""

LAST_GROUPS_STAGE = Stage(0.55, 3, 3e-4, steps=100)

FROM_SCRATCH_STAGE = Stage("all", 10, 1e-3, batch_norm="train", steps=500)
"""Stage without pretrained weights, which learn too little in three epochs for a fair comparison."""


def prepare_architectures(
    images: Any,
    recipe: Recipe,
    archs: Sequence[str],
    folder: Path,
    progress: Progress,
    changes: dict[str, Any],
    *,
    resume: bool,
    clip: ClipModel | None = None,
) -> list[Architecture]:
    """Return the architectures to compare, on images audited and split once; writes the split into the folder.

    Args:
        clip: the model of the variant `zeroshot`.

    Raises:
        RecipeError: if the recipe has a budget.
        OutputError: if the folder was started before and `resume` is false, or was started with other images.
    """
    archs, split_file = list(dict.fromkeys(archs)), folder / "split.csv"
    started = split_file.exists()
    if started and not resume:
        raise OutputError(f"{folder} was started before. Pass --resume to continue it, or choose another --out.")
    prepared = prepare(images, recipe, progress, **changes)
    base_recipe, table = prepared.recipe, prepared.table
    if base_recipe.training.budget:
        raise RecipeError("--budget is not supported for several trainings. Omit it; --preset quick is shorter.")
    if started and read_text(split_file, MAX_TABLE_BYTES) != split_to_csv(table):
        raise OutputError(f"{folder} was started with other images or another split. Choose another --out.")
    write_atomic(split_file, split_to_csv(table))
    return [
        Architecture(
            images,
            table,
            prepared.unreadable,
            split_file,
            folder / arch if len(archs) > 1 else folder,
            base_recipe.changed(arch=arch),
            progress,
            clip,
        )
        for arch in archs or (base_recipe.model.arch,)
    ]


@contextmanager
def resume_hint_on_interrupt(folder: Path, progress: Progress) -> Iterator[None]:
    """Log how to resume if Ctrl-C interrupts the block."""
    try:
        yield
    except KeyboardInterrupt:
        progress.log(
            f"interrupted: finished runs are kept; --out {shlex.quote(str(folder))} --resume makes the remaining ones"
        )
        raise


@dataclass(frozen=True)
class Probe:
    """Predictions made without training a network."""

    probabilities: np.ndarray
    """Images x classes."""
    choice: str
    """What was selected on the validation images, such as the number of neighbors."""
    seconds: float
    parameters: int
    """Number of trained parameters."""
    weights: Weights | None
    """Weights of the network that computed the features."""


@dataclass(frozen=True, eq=False)
class Architecture:
    """An architecture, and what its variants share."""

    images: Any
    """The images as the caller gave them."""
    table: pd.DataFrame
    unreadable: pd.DataFrame
    split_file: Path
    folder: Path
    """Folder for the run folders of its variants."""
    requested: Recipe
    """Recipe before its automatic settings are resolved."""
    progress: Progress
    clip: ClipModel | None = None
    """Model of the variant `zeroshot`."""

    @cached_property
    def resolved(self) -> tuple[Recipe, Weights | None]:
        """The recipe that all variants share, apart from their stages, and the weights."""
        recipe, weights, _ = resolve(self.requested.changed(presets={}), self.table, self.progress)
        split_file = str(self.split_file.absolute())
        done_once = {"split": "auto", "audit": "none", "images_per_class": 0}
        return recipe.changed(split_file=split_file, **done_once), weights

    @property
    def recipe(self) -> Recipe:
        return self.resolved[0]

    @cached_property
    def features(self) -> tuple[np.ndarray, float]:
        """Features of every image, in the table's order (images x features), and the seconds that they took."""
        from baseline.training.frozen import timed_embeddings
        from baseline.vision.dataloaders import dataloaders
        from baseline.vision.learner import learner
        from baseline.vision.rng import seed_everything

        recipe, weights = self.resolved
        with seed_everything(recipe.seed):
            learn = learner(
                dataloaders(self.table, recipe, path=self.folder, progress=self.progress), recipe, weights=weights
            )
            features, seconds = timed_embeddings(learn, self.table, recipe, progress=self.progress)
            return features[0], seconds

    def variant_recipe(self, variant: str) -> Recipe:
        """Return the recipe of a variant."""
        recipe = self.recipe
        head_stages = tuple(stage for stage in recipe.stages if stage.is_head) or (HEAD_STAGE,)
        last_stage = next((stage for stage in reversed(recipe.stages) if not stage.is_head), LAST_GROUPS_STAGE)
        groups_stage = (
            last_stage
            if last_stage.trains != "all"
            else dataclasses.replace(LAST_GROUPS_STAGE, epochs=last_stage.epochs)
        )
        max_lr = groups_stage.lr[-1] if isinstance(groups_stage.lr, tuple) else groups_stage.lr
        all_layers_stage = dataclasses.replace(
            groups_stage, trains="all", lr=max_lr if isinstance(max_lr, str) else (max_lr / 10, max_lr)
        )
        fastai_stage = dataclasses.replace(groups_stage, trains="head", lr="find", batch_norm="train", image_size=0)
        changes: dict[str, dict[str, Any]] = {
            "head": {"stages": (HEAD_ONLY_STAGE,)},
            "fastai": {"stages": (fastai_stage,), "freeze": "fastai", "head": "fastai"},
            "groups": {"stages": (*head_stages, groups_stage)},
            "all": {"stages": (*head_stages, all_layers_stage)},
            "scratch": {"stages": (FROM_SCRATCH_STAGE,), "pretrained": False, "weights": ""},
        }
        if variant == "zeroshot" and self.clip:
            changes[variant] = {"arch": self.clip.arch, "weights": self.clip.weights}
        changed = recipe.changed(**changes.get(variant, {}))
        images = int((self.table["split"] == "train").sum())
        return changed.changed(stages=resolve_epochs(changed.stages, images, int(changed.training.batch_size))[0])

    def probe(self, variant: str, train: np.ndarray, valid: np.ndarray, predict: np.ndarray) -> Probe:
        """Return the predictions of a variant that trains no network.

        Args:
            train, valid, predict: rows of the table, as boolean masks or row numbers.
        """
        from baseline.data.labels import classes_in, label_matrix
        from baseline.experiments.probes import logistic_regression, majority, nearest_neighbors

        many, classes = self.recipe.data.task == "multilabel", classes_in(self.table, self.recipe.data.task)
        if variant == "zeroshot":
            return self._zero_shot(classes, self.table["path"].iloc[predict].tolist())
        weights = self.resolved[1]
        label = self.table["label"]
        # with one label per image, a semicolon is part of the class name
        flags = (label_matrix(label, classes) if many else label.to_numpy()[:, None] == np.array(classes)).astype(float)
        if variant == "majority":
            return Probe(majority(flags[train], len(predict)), "", 0.0, 0, weights)
        features, seconds = self.features
        start = time.perf_counter()
        arrays = (features[train], flags[train], features[valid], flags[valid], features[predict])
        if variant == "neighbors":
            probabilities, count = nearest_neighbors(*arrays)
            choice, parameters = f"{count} neighbors", 0
        else:
            probabilities, strength = logistic_regression(*arrays, many=many)
            choice, parameters = f"C {strength:g}", (features.shape[1] + 1) * flags.shape[1]
        return Probe(probabilities, choice, round(seconds + time.perf_counter() - start, 2), parameters, weights)

    def _zero_shot(self, classes: Sequence[str], paths: Sequence[str]) -> Probe:
        from baseline.experiments.zeroshot import class_prompts, load_clip

        assert self.clip
        classifier = load_clip(self.clip, self.progress)
        start = time.perf_counter()
        prompts = class_prompts(classes, self.clip.prompt)
        probabilities = classifier.probabilities(
            paths, prompts, value_range=self.recipe.data.value_range, workers=self.recipe.options.workers,
            progress=self.progress,
        )  # fmt: skip
        return Probe(probabilities, self.clip.description, round(time.perf_counter() - start, 2), 0, classifier.weights)

    def job(self, title: str, variant: str, folder: Path) -> Job:
        """Return the job that makes the variant's run folder, or keeps it if it is finished.

        Raises:
            OutputError: if the folder was made with another recipe or prompt.
            RecipeError: for zero-shot classification of multi-label images.
        """
        recipe = self.variant_recipe(variant)
        if variant == "zeroshot" and recipe.data.task == "multilabel":
            raise RecipeError("The variant zeroshot needs one label per image, and these have several. Omit it.")
        if is_finished(folder):
            check_same_recipe(folder, recipe)
            if self.clip and variant == "zeroshot":
                check_same_prompt(folder, self.clip)
            return Job(title, partial(log_finished_run, folder), local=True)
        if variant in PROBES:
            return Job(title, lambda progress: run_probe(self, variant, folder, recipe), local=True)
        return training_job(title, self.images, recipe, folder)


def log_finished_run(run: Path, progress: Progress) -> None:
    device = read_manifest(run).get("device", "")
    progress.log(f"{run}: already finished" + (f", on {device}" if device != describe_device() else ""))


def check_same_recipe(run: Path, recipe: Recipe) -> None:
    """Raise an OutputError if a finished run was made with another recipe than the given one."""
    if changes := diff_recipes(read_manifest(run)["recipe"], recipe.as_dict()):
        listing = ", ".join(f"{key} {old} (now {new})" for key, (old, new) in list(changes.items())[:3])
        raise OutputError(f"{run} was made with another recipe: {listing}. Choose another --out.")


def check_same_prompt(run: Path, clip: ClipModel) -> None:
    """Raise an OutputError if a finished zero-shot run was made with another CLIP model or prompt."""
    if (description := read_manifest(run)["stages"][0]["why"]) != clip.description:
        raise OutputError(f"{run} was made with {description} (now {clip.description}). Choose another --out.")


def run_probe(architecture: Architecture, variant: str, run: Path, recipe: Recipe) -> None:
    """Make the run folder of a variant that trains no network."""
    from baseline.data.labels import classes_in
    from baseline.evaluation.cut_points import with_cut_points
    from baseline.evaluation.metrics import evaluate
    from baseline.evaluation.table import prediction_table

    table = architecture.table
    train, valid, test = ((table["split"] == name).to_numpy() for name in ("train", "valid", "test"))
    predict = np.concatenate([np.flatnonzero(valid), np.flatnonzero(test)])
    probe = architecture.probe(variant, train, valid, predict)
    threshold = recipe.evaluation.threshold if recipe.data.task == "multilabel" else None
    rows = table.iloc[predict].reset_index(drop=True)
    metric = recipe.evaluation.metric
    predictions = prediction_table(
        rows, probe.probabilities, probe.probabilities, classes_in(table, recipe.data.task), threshold, metric=metric
    )
    if recipe.data.task == "single" and recipe.evaluation.thresholds == "auto":
        predictions = with_cut_points(predictions, probe.probabilities, metric)
    stage: StageRecord = {
        "trains": VARIANTS[variant], "why": probe.choice, "seconds": probe.seconds, "parameters": probe.parameters
    }  # fmt: skip
    metrics = evaluate(predictions, recipe.data.task, metric)
    manifest = build_manifest(recipe, architecture.images, table, architecture.unreadable, probe.weights, metrics,
                              [stage], {"training": probe.seconds})  # fmt: skip
    if cut_points := predictions.attrs.pop("cut_points", []):
        manifest["cut_points"] = cut_points
    write_atomic(run / "split.csv", split_to_csv(table))
    write_atomic(run / "predictions.csv", to_csv(predictions))
    write_atomic(run / "manifest.json", to_json(manifest))
