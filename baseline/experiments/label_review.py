"""Image table -> which labels are probably wrong, and a folder to mend them from. Knows features and folds.

Every image is judged by images that lie in other parts than its own, copies and groups always in one part: by logistic
regression on the features of the pretrained body (image and mirror image, averaged), and by the vote of the nearest
images; how much the vote counts is what gives the least log loss. From these out-of-fold probabilities confident
learning (Northcutt et al. 2021, JAIR 70; the package cleanlab) tells which labels are probably wrong. Images whose
nearest neighbours are far are unlike all others; the audit tells which copies have different labels.

It finds hard images, too: what it lists is for a person to look at, in the page that `gallery` makes.
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
from baseline.data.labels import is_multilabel
from baseline.data.prepare import load_images
from baseline.data.sources.match_images import match_rows
from baseline.data.sources.read_table import read_table
from baseline.data.split import fold_numbers, split, unit_ids
from baseline.data.table import check_table
from baseline.errors import DataError, OutputError, RecipeError, quoted_list
from baseline.evaluation.label_errors import _import_cleanlab, find_label_issues
from baseline.files import resolve_path, unique_path, write_atomic
from baseline.progress import ConsoleProgress, Progress
from baseline.recipe.load import load_recipe
from baseline.recipe.schema import Stage
from baseline.report.review_page import write_review_page
from baseline.runs.folder import create_run_folder, read_manifest
from baseline.vision.resolve import resolve
from baseline.vision.rng import seed_everything

if TYPE_CHECKING:
    from baseline.data.audit.findings import Audit
    from baseline.recipe.schema import Recipe

__all__ = ["LabelReview", "NeighborIndex", "clean", "find_neighbors", "outlier_scores", "predict_out_of_fold"]


SPLITS = ("train", "valid", "test")

MIN_IMAGE_SIZE = 128
"""Pixels, unless another size is given: at 80 the same labels are told apart much worse (`benchmarks/README.md`)."""

FOLD_COUNT = 5

NEIGHBOR_COUNT, VOTING_NEIGHBORS = 50, 10
"""That vote on an image's class, and by which it is found to be unlike all others."""

VOTE_SHARPNESS = 0.05
"""Cosine by which a neighbour is less like the image than the nearest one, so that its vote counts 1/e."""

VOTE_WEIGHTS = (0.0, 0.2, 0.35, 0.5)
"""What is tried for the share of the neighbours' vote."""

MAX_COMPARED = 50_000
"""Images among which neighbours are looked for, a random choice where there are more, so that time grows with the
number of images and no faster."""

PENALTIES = tuple(float(10 ** (power / 2)) for power in range(-8, 3))
"""What is tried for scikit-learn's C, from the most regularised on, until it gets worse."""

LARGE_DATASET = 10_000
"""Images from which on the first fold alone chooses C."""


@dataclass(frozen=True)
class LabelReview:
    """What was found."""

    issues: pd.DataFrame
    """One row an image, the most suspicious first: `path, split, given_label, predicted_label` (most probable out of
    fold), `confidence` (its probability, 0-1), `label_quality` (probability of the given label: 0 is worst),
    `is_label_issue`, `outlier_score` (0 is worst), `is_outlier_issue`, and `conflict`: a copy of the image
    that has another label, else empty."""
    folder: Path
    """Holds `issues.csv` and `clean.html`, and `fixes.csv` if suggestions were accepted."""
    run: Path | None
    """The run that the images, splits and labels are of."""
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
    shown: int = 500,
    progress: Progress | None = None,
    **changes: Any,
) -> LabelReview:
    """Judges every label out of fold and writes what is suspected: `issues.csv`, and `clean.html` to decide on.

    Args:
        images: the folder of a finished run, whose images, splits, labels and recipe are taken, or what
            `make_baseline` takes.
        recipe: as for `make_baseline`.
        out: a folder that holds no run; `clean-NAME-DATE-TIME` if not given.
        splits: which images are judged.
        folds: parts; 5, or as many as the smallest class has images, if not given.
        oof: a table of `path` and `p_CLASS` columns with out-of-fold probabilities, instead of logistic regression.
        accept: writes `fixes.csv` without a person: suggestions of suspected labels from this confidence on.
        shown: images in the page, at most, of each kind.
        **changes: fields of `Recipe` to change.

    Raises:
        DataError: if cleanlab is missing, images have several labels or are gone, or a class has one image only.
        OutputError: if the folder cannot be written, or holds a run or an earlier cleaning.

    >>> found = clean("runs/mine")                                                 # doctest: +SKIP
    >>> found.issues.query("is_label_issue")                                       # doctest: +SKIP
    """
    progress = progress or ConsoleProgress()
    _import_cleanlab()
    if strange := [name for name in splits if name not in SPLITS]:
        raise RecipeError(f"There is no split {quoted_list(strange)}. Known: {', '.join(SPLITS)}.")
    run = find_run_folder(images)
    chosen, table = load_run_images(run, changes) if run else load_images(images, recipe, progress=progress, **changes)
    if "image_size" not in changes and chosen.image_size < MIN_IMAGE_SIZE:
        chosen = chosen.changed(image_size=MIN_IMAGE_SIZE)
    if is_multilabel(table["label"], chosen.labels):
        raise DataError("Labels are judged where an image has one, and these images have several. Give one column.")
    check_table(table, chosen.labels)
    name = run.resolve().name if run else review_name(images, chosen)
    folder = Path(out).expanduser() if out else unique_path(Path(f"clean-{name}-{datetime.now():%Y%m%d-%H%M%S}"))
    if (folder / "issues.csv").exists():
        raise OutputError(f"{folder} holds an earlier cleaning. Choose another --out, or remove it.")
    with create_run_folder(folder, name) as folder, seed_everything(chosen.seed):
        checked = audit(table, grouped=True, progress=progress)
        if len(checked.unreadable):
            check_table(checked.usable, chosen.labels)
        usable = checked.usable if run else split(checked.usable, chosen)
        rows = usable[usable["split"].isin(splits)].reset_index(drop=True)
        parts = assign_folds(rows, folds, chosen.seed)
        features = extract_features(rows, chosen, folder, progress)
        near = find_neighbors(features, parts, progress)
        probabilities = (
            read_probabilities(Path(oof), rows)
            if oof
            else predict_out_of_fold(features, rows["label"], parts, near, progress)
        )
        issues = find_label_issues(rows, probabilities, outlier_scores(near), conflicting_copies(checked))
        write_atomic(folder / "issues.csv", issues.to_csv(index=False))
        fixes = None
        if accept is not None:
            fixes = folder / "fixes.csv"
            write_atomic(fixes, accept_suggestions(issues, accept).to_csv(index=False))
        write_review_page(folder / "clean.html", issues, name, shown, progress)
    return LabelReview(issues, folder, run, fixes)


class NeighborIndex(NamedTuple):
    """Of every image the most similar ones of other parts, the nearest first."""

    rows: np.ndarray
    """images x neighbours."""
    likeness: np.ndarray
    """The cosine of their features, images x neighbours, float32."""


def find_neighbors(features: np.ndarray, parts: np.ndarray, progress: Progress | None = None) -> NeighborIndex:
    """The most similar images of other parts, so that copies of an image are not among them.

    Features are taken as they are: standardised ones vote as well, but tell strangers from the rest much worse
    (`benchmarks/README.md`).

    Args:
        features: images x features, of `baseline.embeddings`.
        parts: of each image the part that it lies in, from 0.

    >>> found = find_neighbors(np.array([[0.0, 1], [0, 1.1], [1, 0], [1.1, 0]]), np.array([0, 1, 0, 1]))
    >>> found.rows[:, 0].tolist()
    [1, 0, 3, 2]
    """
    import torch
    from fastai.torch_core import default_device

    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    unit = torch.from_numpy((features / np.maximum(lengths, 1e-12)).astype(np.float32)).to(default_device())
    compared = np.sort(np.random.default_rng(0).permutation(len(unit))[:MAX_COMPARED])
    sides = {int(part): compared[parts[compared] != part] for part in np.unique(parts)}
    count = min(NEIGHBOR_COUNT, *(len(others) for others in sides.values()))
    found = NeighborIndex(np.empty((len(unit), count), int), np.empty((len(unit), count), np.float32))
    with (progress or Progress()).bar("looking for similar images", len(unit), "images") as bar:
        for part, others in sides.items():
            against = unit[others].T
            for rows in np.array_split(members := np.flatnonzero(parts == part), max(1, len(members) // 1000)):
                likeness, at = (unit[rows] @ against).topk(count)
                found.rows[rows], found.likeness[rows] = others[at.cpu().numpy()], likeness.cpu().numpy()
                bar.step(len(rows))
    return found


def outlier_scores(near: NeighborIndex) -> np.ndarray:
    """How usual each image's distance (one minus cosine) to its nearest others is, above 0 and below 1: 0 is worst.

    The score is cleanlab's: the exponential of minus the mean distance over its median.
    """
    distance = np.maximum(1 - near.likeness[:, :VOTING_NEIGHBORS].mean(1), 0)
    return np.exp(-distance / max(float(np.median(distance)), 1e-12))


def predict_out_of_fold(
    features: np.ndarray,
    labels: pd.Series,
    parts: np.ndarray,
    near: NeighborIndex | None = None,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """The probability of each class for each image, by images of other parts; see the module.

    C of the logistic regression and the share of the neighbours' vote are those with the least log loss.

    Args:
        features: images x features, of `baseline.embeddings`; standardised here.
        parts: of each image the part that it lies in, from 0.
        near: of `find_neighbors`; looked for if not given.

    Returns:
        images x classes, columns `p_CLASS` in alphabetical order; each row sums to 1.

    >>> rng = np.random.default_rng(0)
    >>> labels = pd.Series(["a", "b"] * 20)
    >>> features = rng.normal(size=(40, 3)) + 4 * (labels == "b").to_numpy()[:, None]
    >>> found = predict_out_of_fold(features, labels, np.arange(40) // 2 % 4)
    >>> (found["p_b"] > 0.5).tolist() == (labels == "b").tolist()
    True
    """
    progress = progress or Progress()
    near = near or find_neighbors(features, parts, progress)
    classes, truth = np.unique(labels.to_numpy(dtype=str), return_inverse=True)
    inputs, found = standardize(features), np.zeros((len(truth), len(classes)))
    numbers = np.unique(parts)
    tried = numbers[:1] if len(truth) >= LARGE_DATASET else numbers
    with progress.bar("judging each image by the others", len(numbers) + len(tried) * len(PENALTIES), "fits") as bar:
        best, least = PENALTIES[0], np.inf
        for strength in PENALTIES:
            for part in tried:
                fit_and_predict(found, inputs, truth, parts == part, strength)
                bar.step()
            if (loss := log_losses(found, truth)[np.isin(parts, tried)].mean()) > least:
                break
            best, least = strength, loss
        for part in numbers:
            fit_and_predict(found, inputs, truth, parts == part, best)
            bar.step()
    vote = neighbor_vote(near, truth, len(classes))
    mixed = ((1 - weight) * found + weight * vote for weight in VOTE_WEIGHTS)
    chosen = min(mixed, key=lambda each: log_losses(each, truth).mean())
    return pd.DataFrame(chosen, columns=[f"p_{name}" for name in classes])


def find_run_folder(images: Any) -> Path | None:
    """The run folder, if that is what was given: the folder itself, or its manifest."""
    if not isinstance(images, str | Path):
        return None
    path = Path(images).expanduser()
    path = path.parent if path.name == "manifest.json" else path
    return path if (path / "manifest.json").is_file() else None


def load_run_images(run: Path, changes: dict[str, Any]) -> tuple[Recipe, pd.DataFrame]:
    """The recipe of a run, and its images as its `split.csv` has them."""
    read_manifest(run)
    chosen = load_recipe(run / "manifest.json").changed(**changes)
    table = read_table(run / "split.csv")
    if missing := [name for name in ("path", "label", "split") if name not in table]:
        raise DataError(f"{run / 'split.csv'} has no column {quoted_list(missing)}. Give the folder of a finished run.")
    group = table["group"].where(table["group"] != "", None) if "group" in table else None
    gone = [path for path in table["path"] if not Path(path).is_file()]
    if gone:
        raise DataError(
            f"{len(gone):,} of {len(table):,} images of {run} are not there any more: {quoted_list(gone, 3)}. "
            "Put them back, or clean the images where they are now."
        )
    return chosen, table.assign(group=group)


def review_name(images: Any, chosen: Recipe) -> str:
    """What the folder is called after: a folder's or a table's name, else the recipe's."""
    words = Path(images).stem if isinstance(images, str | Path) and Path(images).exists() else ""
    return words or chosen.name


def assign_folds(rows: pd.DataFrame, folds: int | None, seed: int) -> np.ndarray:
    """The part that each image lies in; copies, and groups where they are known, lie in one."""
    grouped = "group" in rows and bool(rows["group"].notna().any())
    units = unit_ids(rows, "group" if grouped else "twins")
    per_class = pd.Series(units).groupby(rows["label"].to_numpy()).nunique()
    if len(per_class) < 2:
        raise DataError(
            f"All images are of one class, {quoted_list(per_class.index)}. At least two classes were needed."
        )
    if (least := int(per_class.min())) < 2:
        what = "group" if grouped else "image (and its copies)"
        raise DataError(f"Class '{per_class.idxmin()}' has one {what} only: none is left to judge it by. Add some.")
    return fold_numbers(rows["label"], units, folds or min(FOLD_COUNT, least), seed, grouped=grouped)


def conflicting_copies(checked: Audit) -> dict[str, str]:
    """By path, a copy of the image that has another label."""
    pairs = checked.pairs[checked.pairs["conflict"]]
    return dict(zip(pairs["other"], pairs["path"], strict=True)) | dict(zip(pairs["path"], pairs["other"], strict=True))


def extract_features(rows: pd.DataFrame, chosen: Recipe, folder: Path, progress: Progress) -> np.ndarray:
    """Of every image and its mirror image, averaged: images x features."""
    from baseline.training.frozen import embeddings
    from baseline.vision.dataloaders import dataloaders
    from baseline.vision.learner import learner

    plain = {"scratch": False, "compile": False, "balance": "none", "budget": "", "presets": {}, "log": ()}
    recipe = chosen.changed(**plain, freeze="features", stages=(Stage("head", 1),))
    sides = rows.assign(split=["valid", *["train"] * (len(rows) - 1)])  # any: nothing is trained
    recipe, weights, _ = resolve(recipe, sides, progress)
    dls = dataloaders(sides, recipe, path=folder, progress=progress)
    learn = learner(dls, recipe, weights=weights, path=folder)
    return embeddings(learn, rows, recipe, ("flip",), progress)


def fit_and_predict(
    found: np.ndarray, inputs: np.ndarray, truth: np.ndarray, held: np.ndarray, strength: float
) -> None:
    """Fills in the probabilities of the held-out rows."""
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():  # probabilities of a fit that is nearly there are as good
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = LogisticRegression(C=strength, max_iter=200, tol=1e-3).fit(inputs[~held], truth[~held])
    rows = np.flatnonzero(held)
    logits = model.decision_function(inputs[held]).astype(np.float64)
    if logits.ndim == 1:
        logits = np.stack([np.zeros(len(logits)), logits], axis=1)
    shares = np.exp(logits - logits.max(1, keepdims=True))
    found[rows] = 0
    found[np.ix_(rows, model.classes_)] = shares / shares.sum(1, keepdims=True)


def standardize(features: np.ndarray) -> np.ndarray:
    centred = features - features.mean(0)
    return (centred / np.maximum(centred.std(0), 1e-6)).astype(np.float32)


def log_losses(probabilities: np.ndarray, truth: np.ndarray) -> np.ndarray:
    return -np.log(np.maximum(probabilities[np.arange(len(truth)), truth], 1e-6))


def neighbor_vote(near: NeighborIndex, truth: np.ndarray, classes: int) -> np.ndarray:
    """The share of each class among an image's neighbours, the more alike the more it counts: images x classes."""
    weights = np.exp((near.likeness - near.likeness[:, :1]) / VOTE_SHARPNESS)
    found = np.zeros((len(truth), classes))
    for rank in range(weights.shape[1]):
        found[np.arange(len(truth)), truth[near.rows[:, rank]]] += weights[:, rank]
    return found / found.sum(1, keepdims=True)


def read_probabilities(file: Path, rows: pd.DataFrame) -> pd.DataFrame:
    """Out-of-fold probabilities from a table, in the order of `rows`."""
    given = read_table(resolve_path(str(file)))
    columns = [name for name in map(str, given) if name.startswith("p_")]
    if "path" not in given or not columns:
        raise DataError(f"{file} lacks the columns path and p_CLASS for each class. Give a table that has them.")
    found = match_rows(rows["path"], given["path"], str(file))
    if (lost := found < 0).any():
        raise DataError(f"{file} lacks {int(lost.sum()):,} of {len(rows):,} images, first "
                        f"'{rows['path'][lost].iloc[0]}'. Give probabilities of all, or other --splits.")  # fmt: skip
    values = given[columns].apply(pd.to_numeric, errors="coerce").iloc[found]
    return values.assign(path=rows["path"].to_numpy()).reset_index(drop=True)[columns]


def accept_suggestions(issues: pd.DataFrame, confidence: float) -> pd.DataFrame:
    """Fixes: the suggestions of suspected labels from this confidence on."""
    taken = issues[issues["is_label_issue"] & (issues["confidence"] >= confidence)]
    columns = dict(zip(("path", "given_label", "predicted_label"), FIX_COLUMNS, strict=True))
    return taken[list(columns)].rename(columns=columns)
