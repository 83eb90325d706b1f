"""Label review: find labels that are probably wrong, and write a page to fix them on.

Every label is checked with images of other folds; duplicates and groups are always in one fold. Two predictions are
mixed: logistic regression on the features of the pretrained body (averaged over the image and its mirror image), and a
vote of the nearest images. The weight of the vote is the one with the lowest log loss. From these out-of-fold
probabilities, confident learning (Northcutt et al. 2021, JAIR 70) finds labels that are probably wrong, by the same
rule as in the report of a run. Images whose nearest neighbors are far away are outliers; the audit finds duplicates
with other labels.

The result includes images that are merely hard. It is meant for a person to look at, on the page that
`baseline.report.review_page` writes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from baseline.data.audit.findings import audit
from baseline.data.label_fixes import FIX_COLUMNS
from baseline.data.labels import is_multilabel, order_classes
from baseline.data.prepare import load_images
from baseline.data.sources.match_images import match_rows
from baseline.data.sources.read_table import read_table
from baseline.data.split import fold_numbers, split, unit_ids
from baseline.data.table import check_table
from baseline.errors import DataError, OutputError, RecipeError, quoted_list
from baseline.evaluation.label_errors import find_label_issues
from baseline.files import resolve_path, to_csv, unique_path, write_atomic
from baseline.progress import ConsoleProgress, Progress
from baseline.recipe.load import load_recipe
from baseline.recipe.schema import Stage
from baseline.report.review_page import write_review_page
from baseline.runs.folder import create_run_folder, read_manifest
from baseline.system import all_or_none
from baseline.vision.resolve import resolve
from baseline.vision.rng import seed_everything

if TYPE_CHECKING:
    from baseline.data.audit.findings import Audit
    from baseline.recipe.schema import Recipe

__all__ = ["LabelReview", "NeighborIndex", "clean", "find_neighbors", "outlier_scores", "predict_out_of_fold"]


SPLITS = ("train", "valid", "test")

MIN_IMAGE_SIZE = 128
"""Minimum image size in pixels, unless the caller sets another: at 80 px wrong labels are found much less reliably
(`benchmarks/README.md`)."""

FOLD_COUNT = 5
"""Default number of folds."""

NEIGHBOR_COUNT, VOTING_NEIGHBORS = 50, 10
"""Number of nearest neighbors that vote on an image's class, and number whose distance makes it an outlier."""

VOTE_SHARPNESS = 0.05
"""Difference in cosine similarity from the nearest neighbor at which a neighbor's vote counts 1/e."""

VOTE_WEIGHTS = (0.0, 0.2, 0.35, 0.5)
"""Weights of the neighbors' vote that are tried."""

MAX_COMPARED = 50_000
"""Maximum number of images among which neighbors are searched, a random sample of larger datasets, so that the time
grows linearly with the number of images."""

PENALTIES = tuple(float(10 ** (power / 2)) for power in range(-8, 3))
"""Values of scikit-learn's C that are tried, from the strongest regularization on, until the loss rises."""

LARGE_DATASET = 10_000
"""With at least this many images, C is chosen on the first fold only."""


@dataclass(frozen=True)
class LabelReview:
    """Result of a label review."""

    issues: pd.DataFrame
    """One row per image, the most suspicious first: `path, split, given_label, predicted_label` (most probable class
    out of fold), `confidence` (its probability, 0-1), `label_quality` (probability of the given label: 0 is worst),
    `is_label_issue`, `outlier_score` (0 is worst), `is_outlier_issue`, and `conflict`: a duplicate of the image that
    has another label, else empty."""
    folder: Path
    """Contains `issues.csv` and `clean.html`, and `fixes.csv` if suggestions were accepted."""
    run: Path | None
    """Run that the images, splits and labels were taken from."""
    fixes: Path | None


def clean(
    images: str | Path | pd.DataFrame | None = None,
    recipe: str | Path | Recipe = "default",
    *,
    out: str | Path | None = None,
    splits: Sequence[str] = SPLITS,
    folds: int | None = None,
    oof: str | Path | None = None,
    accept: float | None = None,
    max_images: int = 500,
    progress: Progress | None = None,
    **changes: Any,
) -> LabelReview:
    """Score every label with out-of-fold predictions, and write the suspected ones as `issues.csv` and `clean.html`.

    Args:
        images: the folder of a finished run, whose images, splits, labels and recipe are used, or images as for
            `make_baseline`.
        recipe: as for `make_baseline`.
        out: a folder that holds no run; `clean-NAME-DATE-TIME` if not given.
        splits: splits whose labels are checked.
        folds: number of folds; if not given, 5, or as many as the smallest class has images.
        oof: a table of `path` and `p_CLASS` columns with out-of-fold probabilities, to use instead of own predictions.
        accept: write `fixes.csv` without a review, with the suggestions for suspected labels from this confidence on.
        max_images: maximum number of images of each kind on the page.
        **changes: fields of `Recipe` to change.

    Raises:
        DataError: if images have several labels or no longer exist, or a class has a single image.
        OutputError: if the folder cannot be written, or holds a run or an earlier label review.

    >>> review = clean("runs/mine")                                                # doctest: +SKIP
    >>> review.issues.query("is_label_issue")                                      # doctest: +SKIP
    """
    progress = progress or ConsoleProgress()
    if unknown := [name for name in splits if name not in SPLITS]:
        raise RecipeError(f"There is no split {quoted_list(unknown)}. Known: {', '.join(SPLITS)}.")
    run = find_run_folder(images)
    base_recipe, table = (
        load_run_images(run, changes) if run else load_images(images, recipe, progress=progress, **changes)
    )
    if "image_size" not in changes and base_recipe.model.image_size < MIN_IMAGE_SIZE:
        base_recipe = base_recipe.changed(image_size=MIN_IMAGE_SIZE)
    if is_multilabel(table["label"], base_recipe.data.task):
        raise DataError(
            "A label review needs one label per image, and these images have several. Pass one label column."
        )
    check_table(table, base_recipe.data.task)
    name = run.resolve().name if run else review_name(images, base_recipe)
    folder = Path(out).expanduser() if out else unique_path(Path(f"clean-{name}-{datetime.now():%Y%m%d-%H%M%S}"))
    if (folder / "issues.csv").exists():
        raise OutputError(f"{folder} holds an earlier label review. Choose another --out, or remove it.")
    with create_run_folder(folder, name) as folder, seed_everything(base_recipe.seed):
        data_audit = audit(table, grouped=True, progress=progress)
        if len(data_audit.unreadable):
            check_table(data_audit.usable, base_recipe.data.task)
        usable = data_audit.usable if run else split(data_audit.usable, base_recipe)
        rows = usable[usable["split"].isin(splits)].reset_index(drop=True)
        fold_ids = assign_folds(rows, folds, base_recipe.seed)
        features = extract_features(rows, base_recipe, folder, progress)
        neighbors = find_neighbors(features, fold_ids, progress)
        probabilities = (
            read_probabilities(Path(oof), rows)
            if oof
            else predict_out_of_fold(features, rows["label"], fold_ids, neighbors, progress)
        )
        issues = find_label_issues(rows, probabilities, outlier_scores(neighbors), conflicting_copies(data_audit))
        fixes = None if accept is None else folder / "fixes.csv"
        with all_or_none(folder / "clean.html", folder / "fixes.csv"):
            write_review_page(folder / "clean.html", issues, name, max_images, progress)
            if fixes is not None and accept is not None:
                write_atomic(fixes, to_csv(accept_suggestions(issues, accept)))
            write_atomic(folder / "issues.csv", to_csv(issues))  # last: a folder that has one is complete
    return LabelReview(issues, folder, run, fixes)


class NeighborIndex(NamedTuple):
    """The most similar images of other folds for every image, the nearest first."""

    rows: np.ndarray
    """Row numbers, images x neighbors."""
    similarity: np.ndarray
    """Cosine of their features, images x neighbors, float32."""


def find_neighbors(features: np.ndarray, fold_ids: np.ndarray, progress: Progress | None = None) -> NeighborIndex:
    """Find the most similar images of other folds, so that duplicates of an image are not among them.

    Features are used as they are: standardized ones vote as well, but separate outliers from other images much worse
    (`benchmarks/README.md`).

    Args:
        features: images x features, from `baseline.training.frozen.embeddings`.
        fold_ids: the fold of each image, from 0.

    >>> index = find_neighbors(np.array([[0.0, 1], [0, 1.1], [1, 0], [1.1, 0]]), np.array([0, 1, 0, 1]))
    >>> index.rows[:, 0].tolist()
    [1, 0, 3, 2]
    """
    import torch
    from fastai.torch_core import default_device

    norms = np.linalg.norm(features, axis=1, keepdims=True)
    unit = torch.from_numpy((features / np.maximum(norms, 1e-12)).astype(np.float32)).to(default_device())
    compared = np.sort(np.random.default_rng(0).permutation(len(unit))[:MAX_COMPARED])
    candidates = {int(fold): compared[fold_ids[compared] != fold] for fold in np.unique(fold_ids)}
    count = min(NEIGHBOR_COUNT, *(len(others) for others in candidates.values()))
    index = NeighborIndex(np.empty((len(unit), count), int), np.empty((len(unit), count), np.float32))
    with (progress or Progress()).bar("looking for similar images", len(unit), "images") as bar:
        for fold, others in candidates.items():
            other_features = unit[others].T
            members = np.flatnonzero(fold_ids == fold)
            for rows in np.array_split(members, max(1, len(members) // 1000)):
                similarity, columns = (unit[rows] @ other_features).topk(count)
                index.rows[rows], index.similarity[rows] = others[columns.cpu().numpy()], similarity.cpu().numpy()
                bar.step(len(rows))
    return index


def outlier_scores(neighbors: NeighborIndex) -> np.ndarray:
    """Score how typical each image's distance (one minus cosine) to its nearest neighbors is, 0 to 1: 0 is worst.

    The score is cleanlab's: the exponential of minus the mean distance, divided by its median over all images.
    """
    distance = np.maximum(1 - neighbors.similarity[:, :VOTING_NEIGHBORS].mean(1), 0)
    return np.exp(-distance / max(float(np.median(distance)), 1e-12))


def predict_out_of_fold(
    features: np.ndarray,
    labels: pd.Series,
    fold_ids: np.ndarray,
    neighbors: NeighborIndex | None = None,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Predict class probabilities for each image from the images of other folds; see the module.

    C of the logistic regression and the weight of the neighbors' vote are those with the lowest log loss.

    Args:
        features: images x features, from `baseline.training.frozen.embeddings`; standardized here.
        fold_ids: the fold of each image, from 0.
        neighbors: from `find_neighbors`; searched if not given.

    Returns:
        images x classes, columns `p_CLASS` in alphabetical order; each row sums to 1.

    >>> rng = np.random.default_rng(0)
    >>> labels = pd.Series(["a", "b"] * 20)
    >>> features = rng.normal(size=(40, 3)) + 4 * (labels == "b").to_numpy()[:, None]
    >>> probabilities = predict_out_of_fold(features, labels, np.arange(40) // 2 % 4)
    >>> (probabilities["p_b"] > 0.5).tolist() == (labels == "b").tolist()
    True
    """
    progress = progress or Progress()
    neighbors = neighbors or find_neighbors(features, fold_ids, progress)
    classes = order_classes(labels.unique())
    truth = pd.Index(classes).get_indexer(pd.Index(labels))
    inputs, probabilities = standardize(features), np.zeros((len(truth), len(classes)))
    all_folds = np.unique(fold_ids)
    search_folds = all_folds[:1] if len(truth) >= LARGE_DATASET else all_folds
    max_fits = len(all_folds) + len(search_folds) * len(PENALTIES)
    with progress.bar("predicting each fold from the others", max_fits, "fits") as bar:
        best, min_loss = PENALTIES[0], np.inf
        for strength in PENALTIES:
            for fold in search_folds:
                fit_and_predict(probabilities, inputs, truth, fold_ids == fold, strength)
                bar.step()
            if (loss := log_losses(probabilities, truth)[np.isin(fold_ids, search_folds)].mean()) > min_loss:
                break
            best, min_loss = strength, loss
        for fold in all_folds:
            fit_and_predict(probabilities, inputs, truth, fold_ids == fold, best)
            bar.step()
    vote = neighbor_vote(neighbors, truth, len(classes))
    mixtures = ((1 - weight) * probabilities + weight * vote for weight in VOTE_WEIGHTS)
    best_mixture = min(mixtures, key=lambda mixture: log_losses(mixture, truth).mean())
    return pd.DataFrame(best_mixture, columns=[f"p_{name}" for name in classes])


def find_run_folder(images: Any) -> Path | None:
    """Return the run folder if `images` is one, or its manifest; otherwise None."""
    if not isinstance(images, str | Path):
        return None
    path = Path(images).expanduser()
    path = path.parent if path.name == "manifest.json" else path
    return path if (path / "manifest.json").is_file() else None


def load_run_images(run: Path, changes: dict[str, Any]) -> tuple[Recipe, pd.DataFrame]:
    """Return the recipe of a run, and its images from its `split.csv`.

    Raises:
        DataError: if the file lacks a column, or images no longer exist.
    """
    read_manifest(run)
    run_recipe = load_recipe(run / "manifest.json").changed(**changes)
    table = read_table(run / "split.csv")
    if absent := [name for name in ("path", "label", "split") if name not in table]:
        raise DataError(f"{run / 'split.csv'} has no column {quoted_list(absent)}. Pass the folder of a finished run.")
    group = table["group"].where(table["group"] != "", None) if "group" in table else None
    missing = [path for path in table["path"] if not Path(path).is_file()]
    if missing:
        raise DataError(
            f"{len(missing):,} of {len(table):,} images of {run} no longer exist: {quoted_list(missing, 3)}. "
            "Restore them, or give the images where they are now instead of the run."
        )
    return run_recipe, table.assign(group=group)


def review_name(images: Any, recipe: Recipe) -> str:
    """Return the name for the output folder: that of the image folder or table, otherwise the recipe's."""
    stem = Path(images).stem if isinstance(images, str | Path) and Path(images).exists() else ""
    return stem or recipe.name


def assign_folds(rows: pd.DataFrame, folds: int | None, seed: int) -> np.ndarray:
    """Return the fold of each image; duplicates, or groups if they are known, are in one fold.

    Raises:
        DataError: if there are fewer than two classes, or fewer than two images (or groups) of a class.
    """
    grouped = "group" in rows and bool(rows["group"].notna().any())
    units = unit_ids(rows, "group" if grouped else "duplicate_id")
    per_class = pd.Series(units).groupby(rows["label"].to_numpy()).nunique()
    if len(per_class) < 2:
        raise DataError(
            f"All images belong to one class, {quoted_list(per_class.index)}; at least two classes were needed."
        )
    if (smallest := int(per_class.min())) < 2:
        unit = "group" if grouped else "image (and its duplicates)"
        raise DataError(
            f"Class '{per_class.idxmin()}' has only one {unit}; to judge its label, at least two were needed. Add some."
        )
    return fold_numbers(rows["label"], units, folds or min(FOLD_COUNT, smallest), seed, grouped=grouped)


def conflicting_copies(data_audit: Audit) -> dict[str, str]:
    """Map the path of each image to that of a duplicate with another label, if there is one."""
    pairs = data_audit.pairs[data_audit.pairs["conflict"]]
    return dict(zip(pairs["other"], pairs["path"], strict=True)) | dict(zip(pairs["path"], pairs["other"], strict=True))


def extract_features(rows: pd.DataFrame, recipe: Recipe, folder: Path, progress: Progress) -> np.ndarray:
    """Return the features of every image, averaged over the image and its mirror image: images x features."""
    from baseline.training.frozen import embeddings
    from baseline.vision.dataloaders import dataloaders
    from baseline.vision.learner import learner

    plain = {"pretrained": True, "class_balance": "none", "budget": "", "presets": {}, "loggers": ()}
    recipe = recipe.changed(**plain, freeze="features", stages=(Stage("head", 1),))
    # dataloaders need a train and a valid split, but nothing is trained
    split_rows = rows.assign(split=["valid", *["train"] * (len(rows) - 1)])
    recipe, weights, _ = resolve(recipe, split_rows, progress)
    dls = dataloaders(split_rows, recipe, path=folder, progress=progress)
    learn = learner(dls, recipe, weights=weights, path=folder)
    return embeddings(learn, rows, recipe, ("flip",), progress)


def fit_and_predict(
    probabilities: np.ndarray, inputs: np.ndarray, truth: np.ndarray, in_fold: np.ndarray, strength: float
) -> None:
    """Fit on the images outside the fold, and write the probabilities of those inside it into `probabilities`."""
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():  # a fit that has nearly converged predicts as well
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = LogisticRegression(C=strength, max_iter=200, tol=1e-3).fit(inputs[~in_fold], truth[~in_fold])
    rows = np.flatnonzero(in_fold)
    logits = model.decision_function(inputs[in_fold]).astype(np.float64)
    if logits.ndim == 1:
        logits = np.stack([np.zeros(len(logits)), logits], axis=1)
    exponentials = np.exp(logits - logits.max(1, keepdims=True))
    probabilities[rows] = 0
    probabilities[np.ix_(rows, model.classes_)] = exponentials / exponentials.sum(1, keepdims=True)


def standardize(features: np.ndarray) -> np.ndarray:
    """Return the features with mean 0 and standard deviation 1, float32."""
    centered = features - features.mean(0)
    return (centered / np.maximum(centered.std(0), 1e-6)).astype(np.float32)


def log_losses(probabilities: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return the log loss of each image."""
    return -np.log(np.maximum(probabilities[np.arange(len(truth)), truth], 1e-6))


def neighbor_vote(neighbors: NeighborIndex, truth: np.ndarray, classes: int) -> np.ndarray:
    """Return the class frequencies among each image's neighbors, weighted by similarity: images x classes."""
    weights = np.exp((neighbors.similarity - neighbors.similarity[:, :1]) / VOTE_SHARPNESS)
    votes = np.zeros((len(truth), classes))
    for rank in range(weights.shape[1]):
        votes[np.arange(len(truth)), truth[neighbors.rows[:, rank]]] += weights[:, rank]
    return votes / votes.sum(1, keepdims=True)


def read_probabilities(file: Path, rows: pd.DataFrame) -> pd.DataFrame:
    """Read out-of-fold probabilities from a table, in the order of `rows`.

    Raises:
        DataError: if the table lacks columns or images.
    """
    table = read_table(resolve_path(str(file)))
    columns = [name for name in map(str, table) if name.startswith("p_")]
    if "path" not in table or not columns:
        raise DataError(f"{file} lacks the columns path and p_CLASS for each class. Pass a table with these columns.")
    positions = match_rows(rows["path"], table["path"], str(file))
    if (missing := positions < 0).any():
        raise DataError(
            f"{file} lacks {int(missing.sum()):,} of {len(rows):,} images, first '{rows['path'][missing].iloc[0]}'. "
            "Pass probabilities of all images, or other --splits."
        )
    values = table[columns].apply(pd.to_numeric, errors="coerce").iloc[positions]
    return values.assign(path=rows["path"].to_numpy()).reset_index(drop=True)[columns]


def accept_suggestions(issues: pd.DataFrame, confidence: float) -> pd.DataFrame:
    """Return the suggestions for suspected labels from this confidence on, as a table of fixes."""
    accepted = issues[issues["is_label_issue"] & (issues["confidence"] >= confidence)]
    columns = dict(zip(("path", "given_label", "predicted_label"), FIX_COLUMNS, strict=True))
    return accepted[list(columns)].rename(columns=columns)
