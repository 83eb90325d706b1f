"""An architecture's variants, from a guess to a whole training: their recipes and run folders. Trains no network itself.

Variants of one body share the split, the decoded images and what frozen layers make of them. Each gets a run folder, so
that `baseline compare` takes it and, where a network was trained, `baseline report` and `baseline predict`.
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
from baseline.files import to_json, write_atomic
from baseline.parallel.executor import Job
from baseline.recipe.auto import resolve_epochs
from baseline.recipe.diff import diff_recipes
from baseline.recipe.schema import Stage
from baseline.runs.folder import read_manifest, read_predictions
from baseline.runs.manifest import build_manifest
from baseline.vision.resolve import resolve

if TYPE_CHECKING:
    import pandas as pd

    from baseline.experiments.zeroshot import ClipModel
    from baseline.progress import Progress
    from baseline.recipe.schema import Recipe
    from baseline.vision.weights import Weights

__all__ = [
    "ARCH_INDEPENDENT",
    "PROBES",
    "VARIANTS",
    "Architecture",
    "Probe",
    "prepare_architectures",
    "read_split_predictions",
    "resume_hint_on_interrupt",
]


VARIANTS = {
    "majority": "the most frequent class",
    "neighbors": "nearest neighbours on pretrained features",
    "logistic": "logistic regression on pretrained features",
    "head": "a new head on the frozen body",
    "fastai": "fastai's frozen stage, where BatchNorm moves",
    "groups": "the last layer groups fine-tuned",
    "all": "all layers fine-tuned, slice rates",
    "tta": "with test-time augmentation",
    "scratch": "all layers from random weights",
    "zeroshot": "zero-shot classification by CLIP",
}
"""From the lowest to the highest, the one that shows what pretraining is worth, and one that sees no training image."""


PROBES = ("majority", "neighbors", "logistic", "zeroshot")
"""Variants that train no network."""


ARCH_INDEPENDENT = ("majority", "zeroshot")
"""Variants that are the same for every body."""


HEAD_ONLY_STAGE = Stage("head", 10, steps=350)
"""For a head that nothing follows; before a fine-tune, two epochs are better (see benchmarks/README.md)."""

HEAD_FIRST_STAGE = Stage("head", 2, steps=70)

LAST_GROUPS_STAGE = Stage(0.55, 3, 3e-4, steps=100)

FROM_SCRATCH_STAGE = Stage("all", 10, 1e-3, batch_norm="moving", steps=500)
"""Without pretrained weights three epochs would show little but impatience."""


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
    """The bodies to climb with, on images that were audited and split once; the split is written into the folder.

    Args:
        clip: for the variant `zeroshot`.

    Raises:
        RecipeError: if the recipe has a budget.
        OutputError: if the folder was begun before and `resume` was not asked for, or with other images.
    """
    archs, split_file = list(dict.fromkeys(archs)), folder / "split.csv"
    begun = split_file.exists()
    if begun and not resume:
        raise OutputError(f"{folder} was begun before. Give --resume to go on with it, or choose another --out.")
    chosen, table, unread = prepare(images, recipe, folder, progress, **changes)
    if chosen.budget:
        raise RecipeError("--budget fits one training, and these are several. Leave it out; --preset quick is shorter.")
    if begun and split_file.read_text(encoding="utf-8") != split_to_csv(table):
        raise OutputError(f"{folder} was begun with other images or another split. Choose another --out.")
    write_atomic(split_file, split_to_csv(table))
    return [
        Architecture(
            images, table, unread, split_file, folder / arch if len(archs) > 1 else folder, wished, progress, clip
        )
        for arch, wished in ((arch, chosen.changed(arch=arch)) for arch in archs or (chosen.arch,))
    ]


@contextmanager
def resume_hint_on_interrupt(folder: Path, progress: Progress) -> Iterator[None]:
    """On Ctrl-C says how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        progress.log(f"interrupted: what is finished is kept; --out {shlex.quote(str(folder))} --resume does the rest")
        raise


@dataclass(frozen=True)
class Probe:
    """What was told without a network of its own."""

    told: np.ndarray
    """Probabilities, images x classes."""
    why: str
    """What was chosen on the valid images."""
    seconds: float
    parameters: int
    """Trained."""
    weights: Weights | None
    """Of the network whose features they are."""


@dataclass(frozen=True, eq=False)
class Architecture:
    """An architecture, and what its variants share."""

    images: Any
    """As they were given."""
    table: pd.DataFrame
    unread: pd.DataFrame
    split_file: Path
    folder: Path
    """For the run folders of its variants."""
    wished: Recipe
    progress: Progress
    clip: ClipModel | None = None
    """For the variant `zeroshot`."""

    @cached_property
    def settled(self) -> tuple[Recipe, Weights | None]:
        """The recipe of all variants, but for what each of them trains, and the weights."""
        recipe, weights, _ = resolve(self.wished.changed(presets={}), self.table, self.progress)
        split_file = str(self.split_file.absolute())
        done_once = {"split": "auto", "audit": "none", "images_per_class": 0, "keep_if": "", "keep_model": ""}
        return recipe.changed(split_file=split_file, **done_once), weights

    @property
    def recipe(self) -> Recipe:
        return self.settled[0]

    @cached_property
    def features(self) -> tuple[np.ndarray, float]:
        """What the body makes of every image, in the table's order, and the seconds it takes."""
        from baseline.training.frozen import timed_embeddings
        from baseline.vision.dataloaders import dataloaders
        from baseline.vision.learner import learner
        from baseline.vision.rng import seed_everything

        recipe, weights = self.settled
        with seed_everything(recipe.seed):
            learn = learner(
                dataloaders(self.table, recipe, path=self.folder, progress=self.progress), recipe, weights=weights
            )
            return timed_embeddings(learn, self.table, recipe, progress=self.progress)

    def planned(self, variant: str) -> Recipe:
        """The recipe of a variant."""
        recipe = self.recipe
        before = tuple(stage for stage in recipe.stages if stage.trains == "head") or (HEAD_FIRST_STAGE,)
        deep = next((stage for stage in reversed(recipe.stages) if stage.trains != "head"), LAST_GROUPS_STAGE)
        groups = deep if deep.trains != "all" else dataclasses.replace(LAST_GROUPS_STAGE, epochs=deep.epochs)
        top = groups.lr[-1] if isinstance(groups.lr, tuple) else groups.lr
        whole = dataclasses.replace(groups, trains="all", lr=top if isinstance(top, str) else (top / 10, top))
        moving = dataclasses.replace(groups, trains="head", lr="find", batch_norm="moving", image_size=0)
        every: dict[str, dict[str, Any]] = {
            "head": {"stages": (HEAD_ONLY_STAGE,)},
            "fastai": {"stages": (moving,), "freeze": "fastai", "head": "fastai"},
            "groups": {"stages": (*before, groups)},
            "all": {"stages": (*before, whole)},
            "scratch": {"stages": (FROM_SCRATCH_STAGE,), "scratch": True, "weights": ""},
        }
        if variant == "zeroshot" and self.clip:
            every[variant] = {"arch": self.clip.arch, "weights": self.clip.weights}
        changed = recipe.changed(**every.get(variant, {}))
        images = int((self.table["split"] == "train").sum())
        return changed.changed(stages=resolve_epochs(changed.stages, images, int(changed.batch_size))[0])

    def probe(self, variant: str, train: np.ndarray, valid: np.ndarray, asked: np.ndarray) -> Probe:
        """What a variant without a network tells of some rows of the table.

        Args:
            train, valid, asked: which rows, as flags or numbers.
        """
        from baseline.data.labels import classes_in, label_matrix
        from baseline.experiments.probes import logistic_regression, majority, nearest_neighbors

        many, classes = self.recipe.labels == "many", classes_in(self.table, self.recipe.labels)
        if variant == "zeroshot":
            return self._zero_shot(classes, self.table["path"].iloc[asked].tolist())
        weights = self.settled[1]
        label = self.table["label"]
        # of one label a ; is a part of its name
        flags = (label_matrix(label, classes) if many else label.to_numpy()[:, None] == np.array(classes)).astype(float)
        if variant == "majority":
            return Probe(majority(flags[train], len(asked)), "", 0.0, 0, weights)
        features, seconds = self.features
        began = time.perf_counter()
        known = (features[train], flags[train], features[valid], flags[valid], features[asked])
        if variant == "neighbors":
            told, count = nearest_neighbors(*known)
            why, parameters = f"{count} neighbours", 0
        else:
            told, strength = logistic_regression(*known, many=many)
            why, parameters = f"C {strength:g}", (features.shape[1] + 1) * flags.shape[1]
        return Probe(told, why, round(seconds + time.perf_counter() - began, 2), parameters, weights)

    def _zero_shot(self, classes: Sequence[str], paths: Sequence[str]) -> Probe:
        from baseline.experiments.zeroshot import class_prompts, load_clip

        assert self.clip
        reads = load_clip(self.clip, self.progress)
        began = time.perf_counter()
        prompts = class_prompts(classes, self.clip.prompt)
        told = reads.probabilities(paths, prompts, workers=self.recipe.workers, progress=self.progress)
        return Probe(told, self.clip.words, round(time.perf_counter() - began, 2), 0, reads.weights)

    def job(self, words: str, variant: str, folder: Path) -> Job:
        """What makes the variant's run folder, unless it is there already.

        Raises:
            OutputError: if it is there, made by another recipe or prompt.
            RecipeError: for zero-shot classification of images with many labels.
        """
        planned = self.planned(variant)
        if variant == "zeroshot" and planned.labels == "many":
            raise RecipeError("The variant zeroshot takes one label an image, and these have many. Leave it out.")
        if (folder / "manifest.json").exists():
            check_same_recipe(folder, planned)
            if self.clip and variant == "zeroshot":
                check_same_prompt(folder, self.clip)
            return Job(words, partial(log_finished_run, folder), here=True)
        if variant in PROBES:
            return Job(words, lambda progress: run_probe(self, variant, folder, planned), here=True)
        return training_job(words, self.images, planned, folder)


def read_split_predictions(run: Path, split: str, augmented: bool) -> pd.DataFrame:
    """What a variant predicted for the split, with test-time augmentation or without."""
    table = read_predictions(run, ("path", "label", "split", "predicted", "plain_predicted"))
    table = table[table["split"] == split]
    return table if augmented else table.assign(predicted=table["plain_predicted"])


def log_finished_run(run: Path, progress: Progress) -> None:
    progress.log(f"{run}: kept from before")


def check_same_recipe(run: Path, planned: Recipe) -> None:
    """An error if a finished variant was made by another recipe than the one planned now."""
    if found := diff_recipes(read_manifest(run)["recipe"], planned.as_dict()):
        words = ", ".join(f"{key} {then} (now {now})" for key, (then, now) in list(found.items())[:3])
        raise OutputError(f"{run} was made by another recipe: {words}. Choose another --out.")


def check_same_prompt(run: Path, clip: ClipModel) -> None:
    if (then := read_manifest(run)["stages"][0]["why"]) != clip.words:
        raise OutputError(f"{run} was made by {then} (now {clip.words}). Choose another --out.")


def run_probe(body: Architecture, variant: str, run: Path, recipe: Recipe) -> None:
    """A run folder of what is predicted without a network of its own."""
    from baseline.data.labels import classes_in
    from baseline.evaluation.metrics import evaluate
    from baseline.evaluation.table import prediction_table

    table = body.table
    train, valid, test = ((table["split"] == name).to_numpy() for name in ("train", "valid", "test"))
    asked = np.concatenate([np.flatnonzero(valid), np.flatnonzero(test)])
    found = body.probe(variant, train, valid, asked)
    threshold = recipe.threshold if recipe.labels == "many" else None
    rows = table.iloc[asked].reset_index(drop=True)
    predicted = prediction_table(rows, found.told, found.told, classes_in(table, recipe.labels), threshold)
    stage = {"trains": VARIANTS[variant], "why": found.why, "seconds": found.seconds, "parameters": found.parameters}
    numbers = evaluate(predicted, recipe.labels)
    manifest = build_manifest(recipe, body.images, table, body.unread, found.weights, numbers, [stage],
                           {"training": found.seconds})  # fmt: skip
    write_atomic(run / "split.csv", split_to_csv(table))
    write_atomic(run / "predictions.csv", predicted.to_csv(index=False))
    write_atomic(run / "manifest.json", to_json(manifest))
