"""Run folder -> one page that shows and explains it, and its pictures. Knows a run's files; trains nothing.

Everything is read back from the folder (`manifest.json`, `predictions.csv`, `history.csv`, `lr_find.csv`, `split.csv`,
`audit/`, `model/`), so that the page can be made again later, elsewhere, and says the same. The model runs once, on the
few images that are shown with a Grad-CAM, and not again for a page that shows the same. The page holds its pictures,
styles and its one small script itself, and asks the browser (by its content security policy) to load nothing else.
"""

from __future__ import annotations

import io
import json
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np
import pandas as pd
from markupsafe import Markup
from PIL import Image

from baseline import __version__
from baseline.data.image import load_image, resize_image
from baseline.data.labels import explode_labels, label_matrix
from baseline.errors import DataError, OutputError, quoted_list
from baseline.evaluation.calibration import BIN_COUNT
from baseline.evaluation.explain import explain
from baseline.evaluation.label_errors import suspect_labels
from baseline.evaluation.metrics import evaluate
from baseline.files import read_json, sha256_of, write_atomic
from baseline.progress import Progress
from baseline.recipe.schema import describe_schedule, describe_trained, format_lr
from baseline.report import figures
from baseline.report.figures import THUMBNAIL_SIZE, ThumbnailCache
from baseline.report.html import percent, render
from baseline.runs.folder import headline_split, read_manifest, read_predictions

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["write_report"]


ERROR_COUNT, HIT_COUNT, RANDOM_COUNT, SAMPLE_COUNT = 12, 8, 24, 24
"""Images shown: most confident errors and least confident hits (these with Grad-CAM), random ones, training ones."""

SUSPECT_COUNT = 12
"""Images shown whose label may be wrong."""

PAIR_COUNT = 6
"""Pairs of copies that are shown of each kind."""

CONFUSION_COUNT = 15


REQUIRED_KEYS = ("recipe", "reasons", "metrics", "seconds", "stages", "data", "device", "versions", "finished")


def write_report(run: str | Path, progress: Progress | None = None) -> Path:
    """Writes `report.html` and its pictures (PNG) into the folder of a finished run, and returns the page's path.

    Images that are no longer where they were are shown as grey boxes, and the page says so.

    Raises:
        OutputError: if the folder holds no finished run, a newer version wrote it, or it cannot be written.
        DataError: if its prediction table lacks columns or holds what is no number.

    >>> write_report("runs/cifar10-20261122-101500")                               # doctest: +SKIP
    PosixPath('runs/cifar10-20261122-101500/report.html')
    """
    progress = progress or Progress()
    found = read_run(Path(run))
    with progress.bar("writing the report", 5, "parts") as bar:
        page: dict[str, Any] = {"run": found, "version": __version__}
        images = ThumbnailCache()
        for part in (headline_section, training_section, data_section, quality_section, examples_section):
            page |= part(found, images)
            bar.step()
        page |= time_section(found) | {"missing": images.missing, "asked": images.asked}
    target = found.folder / "report.html"
    write_atomic(target, render("report", page))
    progress.log(f"report: {target}")
    return target


@dataclass(frozen=True)
class RunFiles:
    """What a run folder holds."""

    folder: Path
    manifest: dict[str, Any]
    predictions: pd.DataFrame
    epochs: pd.DataFrame
    sweeps: pd.DataFrame | None
    """None where the folder has no `lr_find.csv`."""
    table: pd.DataFrame
    findings: list[dict[str, Any]]
    pairs: pd.DataFrame | None

    @property
    def recipe(self) -> dict[str, Any]:
        return self.manifest["recipe"]

    @property
    def many(self) -> bool:
        """Whether an image may have several labels."""
        return self.recipe.get("labels") == "many"

    @cached_property
    def split(self) -> str:
        """The split that the headline is measured on."""
        return headline_split(self.manifest["metrics"])

    @cached_property
    def rows(self) -> pd.DataFrame:
        """The predictions of that split, with `right`."""
        rows = self.predictions[self.predictions["split"] == self.split].reset_index(drop=True)
        return rows.copy().assign(  # a copy, in which a thousand classes are one block again
            right=rows["predicted"] == rows["label"]
        )

    @cached_property
    def numbers(self) -> dict[str, Any]:
        """What `evaluate` tells of `rows`: the manifest of an older version may not hold all of it."""
        return evaluate(self.rows, self.recipe.get("labels", "one"))[self.split]

    @cached_property
    def classes(self) -> list[str]:
        return [name.removeprefix("p_") for name in map(str, self.predictions) if name.startswith("p_")]

    @cached_property
    def probabilities(self) -> np.ndarray:
        """Images x classes, of `rows`."""
        return self.rows[[f"p_{name}" for name in self.classes]].to_numpy()


def read_run(folder: Path) -> RunFiles:
    manifest = read_manifest(folder)
    if lacking := [key for key in REQUIRED_KEYS if key not in manifest]:
        raise OutputError(
            f"{folder / 'manifest.json'} lacks {quoted_list(lacking)}. Give the folder of a finished run."
        )
    findings = folder / "audit" / "findings.json"
    run = RunFiles(
        folder,
        manifest,
        read_predictions(folder),
        read_run_table(folder / "history.csv"),
        read_run_table(folder / "lr_find.csv") if (folder / "lr_find.csv").exists() else None,
        read_run_table(folder / "split.csv", texts=True),
        read_json(findings)["findings"] if findings.exists() else [],
        read_run_table(folder / "audit" / "pairs.csv", texts=True)
        if (folder / "audit" / "pairs.csv").exists()
        else None,
    )
    if run.rows.empty:
        raise DataError(f"{folder / 'predictions.csv'} has no row of the split '{run.split}'. Run it again.")
    told = pd.concat([run.rows["label"], run.rows["predicted"]])
    if strange := sorted({*explode_labels(told, run.recipe.get("labels", "one")).dropna()} - {*run.classes}):
        raise DataError(f"{folder / 'predictions.csv'} has labels without a column p_LABEL: {quoted_list(strange)}.")
    return run


def read_run_table(path: Path, texts: bool = False) -> pd.DataFrame:
    """A table of the run folder; with `texts` every value is text as it stands, so that a class may be called NA."""
    options: dict[str, Any] = {"dtype": str, "keep_default_na": False} if texts else {}
    try:
        return pd.read_csv(path, **options)
    except OSError as error:
        raise OutputError(f"{path} cannot be read: {error.strerror}. Give the folder of a finished run.") from None
    except ValueError as error:
        raise OutputError(f"{path} is no whole table: {' '.join(str(error).split())[:120]}. Run it again.") from None


@dataclass(frozen=True)
class ImageCard:
    """An image as the page shows it."""

    image: Image.Image | None
    words: str
    """What it is, for those who cannot see it."""
    lines: list[str]
    """What stands below it."""
    path: str
    wrong: bool = False
    looked: Image.Image | None = None
    """The same with its Grad-CAM."""
    looked_words: str = ""


def save_sheet(run: RunFiles, name: str, cards: Sequence[ImageCard]) -> None:
    """The cards as a picture in the run folder; an image with a Grad-CAM has that one beside it."""
    pictures = []
    for card in cards:
        pictures.append((card.image, "\n".join(card.lines)))
        if card.looked is not None:
            pictures.append((card.looked, ""))
    if pictures:
        write_atomic(run.folder / f"{name}.png", figures.image_sheet(pictures))


def save_figure(run: RunFiles, name: str, figure: Figure, words: str) -> Markup:
    """The figure for the page, and as a PNG in the run folder."""
    write_atomic(run.folder / f"{name}.png", figures.png(figure))
    return Markup(figures.svg(figure, name, words))  # matplotlib and `svg` escape what is not theirs


def headline_section(run: RunFiles, _: ThumbnailCache) -> dict[str, Any]:
    """The number, its interval, and what to hold against it."""
    kind = "tta" if run.recipe["tta"] else "plain"
    found = run.manifest["metrics"][run.split][kind]
    low, high = found["interval"]
    return {
        "title": page_title(run),
        "found": found,
        "half": (high - low) / 2,
        "kind": kind,
        "images": len(run.rows),
        "sentences": explain(run.numbers)[1:],  # the first is the headline's own
        "numbers": [
            (split, way, numbers["images"], numbers[way])
            for split, numbers in run.manifest["metrics"].items()
            for way in (("plain", "tta") if run.recipe["tta"] else ("plain",))
        ],
    }


def page_title(run: RunFiles) -> str:
    """The recipe's, where it is for one data set; else what the images were called."""
    if run.recipe.get("data") or not run.manifest.get("images"):
        return run.recipe["title"] or run.recipe["name"]
    return Path(run.manifest["images"].rpartition(":")[2]).stem


def training_section(run: RunFiles, _: ThumbnailCache) -> dict[str, Any]:
    """Recipe and reasons, stages, and the curves."""
    stages = run.manifest["stages"]
    reasons = run.manifest["reasons"]
    hidden = {"stages", "presets", "expected", "title"}
    kept = {key: value for key, value in run.recipe.items() if key not in hidden and value not in ("", {}, [], None)}
    settings = [(key, format_setting(value), reasons.get(key, "")) for key, value in kept.items()]
    settings += [(key, "", why) for key, why in reasons.items() if key not in kept]
    metric = next((name for name in map(str, run.epochs) if name.startswith("valid_") and name != "valid_loss"), "")
    best = run.epochs[run.epochs["best"]].iloc[-1:]
    words = f"Losses, {metric.removeprefix('valid_').replace('_', ' ')} and learning rate of {len(run.epochs)} epochs"
    for row in best.to_dict("records"):
        words += f"; the best, {row[metric]:.2%} on valid, was epoch {row['epoch']} of stage {row['stage']}"
    context = {
        "settings": settings,
        "stages": [
            {
                **stage,
                "rate": format_lr(stage["lr"]),
                "trained": describe_trained(stage["trains"]),
                "course": describe_schedule(stage),
            }
            for stage in stages
        ],
        "weights": run.manifest.get("weights"),
        "training": save_figure(run, "training", figures.training_figure(run.epochs), words),
        "search": None,
    }
    if run.sweeps is not None:
        searched = [f"stage {n}: {format_lr(stages[n - 1]['lr'])}" for n in sorted(run.sweeps["stage"].unique())]
        words = f"Loss against learning rate; taken: {', '.join(searched) or 'the rates of the recipe'}"
        figure = figures.lr_find_figure(run.sweeps, stages)
        context["search"] = save_figure(run, "lr_find", figure, words)
    return context


def format_setting(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {format_setting(each)}" for key, each in value.items())
    if isinstance(value, tuple | list):
        return ", ".join(map(format_setting, value))
    return {True: "yes", False: "no"}.get(value, str(value)) if isinstance(value, bool) else str(value)


def data_section(run: RunFiles, images: ThumbnailCache) -> dict[str, Any]:
    """Counts, what the audit found, some training images, and pairs of copies."""
    labels = explode_labels(run.table["label"], run.recipe.get("labels", "one"))  # a row a label, by the image's index
    table = run.table.drop(columns="label").join(labels)
    counts = pd.crosstab(table["label"], table["split"])
    counts = counts[[split for split in ("train", "valid", "test") if split in counts]]
    smallest, largest = counts.sum(axis=1).min(), counts.sum(axis=1).max()
    words = f"Images of {len(counts)} classes by split; the smallest class has {smallest:,}, the largest {largest:,}"
    sample = [image_card(images, row["path"], row["label"], "a training image of") for row in sample_images(run)]
    save_sheet(run, "sample", sample)
    return {
        "counts": counts,
        "totals": run.table["split"].value_counts(),
        "class_counts": save_figure(run, "classes", figures.counts_figure(counts), words),
        "findings": run.findings,
        "left_out": run.manifest["data"].get("left_out", []),
        "sample": sample,
        "pairs": [] if run.pairs is None else list(pair_cards(run.pairs, images)),
    }


def sample_images(run: RunFiles) -> list[dict[Any, Any]]:
    """Training images of as many classes as there is room for, the same number of each."""
    rows = run.table[run.table["split"] == "train"]
    labels = rows["label"].unique()
    chosen = np.sort(np.random.default_rng(0).permutation(labels)[:SAMPLE_COUNT])
    each = max(1, min(4, SAMPLE_COUNT // max(1, len(chosen))))
    picked = rows[rows["label"].isin(chosen)].groupby("label").sample(frac=1, random_state=0)
    return picked.groupby("label", sort=True).head(each).sort_values("label", kind="stable").to_dict("records")


def pair_cards(
    pairs: pd.DataFrame, images: ThumbnailCache
) -> Iterable[tuple[str, int, list[tuple[ImageCard, ImageCard]]]]:
    """By what they are, how many there are and the first of them."""
    near = pairs[pairs["kind"] == "near"].sort_values("distance", key=lambda bits: bits.astype(int), kind="stable")
    parts = {
        "Leaks: copies in two splits": pairs[pairs["leak"] == "True"],
        "Conflicts: copies with different labels": pairs[pairs["conflict"] == "True"],
        "Near-duplicates": near,
    }
    for title, part in parts.items():
        if len(part):
            shown = [
                (
                    image_card(images, row["path"], row["label"], "an image of", row["split"]),
                    image_card(images, row["other"], row["other_label"], "its copy, labelled", row["other_split"]),
                )
                for row in part.head(PAIR_COUNT).to_dict("records")
            ]
            yield title, len(part), shown


def image_card(images: ThumbnailCache, path: str, label: str, words: str, split: str = "") -> ImageCard:
    lines = [label or "no label", *([split] if split else [])]
    return ImageCard(images.get(path), f"{words} {label or 'no label'}", lines, path)


def quality_section(run: RunFiles, _: ThumbnailCache) -> dict[str, Any]:
    """Confusions, classes one by one, and whether the confidence can be trusted."""
    tta = run.numbers["tta"]
    bins = pd.DataFrame(tta["reliability"]).dropna(subset="confidence")
    words = (
        f"Share right against confidence in {BIN_COUNT} bins; on average they are {100 * tta['ece']:.1f} points apart"
    )
    context: dict[str, Any] = {
        "confusion": None,
        "confused": tta.get("confused", [])[:CONFUSION_COUNT],
        "large": len(run.classes) > figures.MAX_NAMED_CLASSES,
        "bins": bins.to_dict("records"),
        "ece": tta["ece"],
        "lean": float(np.average(bins["confidence"] - bins["accuracy"], weights=bins["images"])),
        "temperature": run.manifest.get("calibration", {}).get(run.split, {}).get("words", ""),
        "reliability": save_figure(run, "reliability", figures.reliability_figure(bins), words),
    }
    matrix = None if run.many else count_confusions(run)
    most = [""] * len(run.classes)
    if matrix is not None:
        right = int(np.trace(matrix))
        words = f"Truth by prediction for {len(run.classes)} classes: {right:,} of {matrix.sum():,} images are right"
        for first in context["confused"][:1]:
            words += f"; most often {first['label']} is taken for {first['predicted']}, {first['images']} times"
        context["confusion"] = save_figure(run, "confusion", figures.confusion_figure(matrix, run.classes), words)
        wrong = matrix - np.diag(matrix.diagonal())
        most = [f"{run.classes[row.argmax()]} ({row.max()})" if row.any() else "" for row in wrong]
    each = zip(tta["classes"].items(), most, strict=True)
    return context | {"per_class": [{"name": name, "taken_for": what, **row} for (name, row), what in each]}


def count_confusions(run: RunFiles) -> np.ndarray:
    """Truth x prediction, images: memory for classes x classes, and no more."""
    number = {name: at for at, name in enumerate(run.classes)}
    truth, told = (run.rows[column].map(number).to_numpy() for column in ("label", "predicted"))
    count = len(number)
    return np.bincount(truth * count + told, minlength=count * count).reshape(count, count)


def examples_section(run: RunFiles, images: ThumbnailCache) -> dict[str, Any]:
    """Most confident errors and least confident hits with Grad-CAM, and random predictions."""
    rows = run.rows
    errors = rows[~rows["right"]].sort_values("confidence", ascending=False, kind="stable").head(ERROR_COUNT)
    hits = rows[rows["right"]].sort_values("confidence", kind="stable").head(HIT_COUNT)
    shown = pd.concat([errors, hits])
    places, why_not = gradcam_maps(run, shown, images)
    cards = [
        prediction_card(run, images, row, where) for row, where in zip(shown.to_dict("records"), places, strict=True)
    ]
    chosen = rows.sample(min(RANDOM_COUNT, len(rows)), random_state=int(run.recipe.get("seed", 0)) % 2**32)
    suspects = pd.DataFrame() if run.many else suspect_labels(run.predictions)
    parts = {
        "errors": cards[: len(errors)],
        "hits": cards[len(errors) :],
        "random": [prediction_card(run, images, row, None) for row in chosen.to_dict("records")],
        "suspects": [suspect_card(images, row) for row in suspects.head(SUSPECT_COUNT).to_dict("records")],
    }
    for name, part in parts.items():
        save_sheet(run, name, part)
    if len(suspects):
        write_atomic(run.folder / "suspected_labels.csv", suspects.to_csv(index=False))
    return {**parts, "why_not": why_not, "suspected": len(suspects), "held_out": len(run.predictions)}


def suspect_card(images: ThumbnailCache, row: dict[Any, Any]) -> ImageCard:
    sure = percent(row["suggested_probability"])
    lines = [f"label: {row['label']}", f"perhaps: {row['suggested']} ({sure})", row["split"]]
    words = f"an image labelled {row['label']}, perhaps of {row['suggested']}"
    return ImageCard(images.get(row["path"]), words, lines, row["path"], wrong=True)


def prediction_card(run: RunFiles, images: ThumbnailCache, row: dict[Any, Any], where: np.ndarray | None) -> ImageCard:
    truth, told, sure = row["label"] or "no label", row["predicted"] or "no label", percent(row["confidence"])
    image = images.get(row["path"])
    looked = None
    if where is not None and (square := images.read(row["path"], THUMBNAIL_SIZE)) is not None:
        looked = figures.overlay_heatmap(
            resize_image(square, THUMBNAIL_SIZE, run.recipe["resize"]), where, THUMBNAIL_SIZE
        )
    words = f"an image of {truth}, predicted {told} with confidence {sure}"
    lines = [f"truth: {truth}", f"predicted: {told}", f"confidence: {sure}"]
    asked = run.classes[gradcam_class(run, row)]
    return ImageCard(image, words, lines, row["path"], not row["right"], looked, f"what spoke for {asked} in it")


def gradcam_class(run: RunFiles, row: dict[Any, Any]) -> int:
    """The class that a Grad-CAM shows the evidence for: the predicted one; of many the one most surely wrong, or,
    where all are right, the least sure."""
    if not run.many:
        return run.classes.index(row["predicted"])
    values = np.array([row[f"p_{name}"] for name in run.classes])
    truth, said = (label_matrix(pd.Series([row[column]]), run.classes)[0] for column in ("label", "predicted"))
    sure = np.where(said, values, 1 - values)
    return int(np.where(truth != said, sure, -1).argmax() if (truth != said).any() else sure.argmin())


def gradcam_maps(run: RunFiles, shown: pd.DataFrame, images: ThumbnailCache) -> tuple[list[np.ndarray | None], str]:
    """For each image where the evidence for its predicted class lies, else None; and why there is none, if so.

    What was found is kept in `gradcam.npz`, so that a page made again needs no network, and in a tenth of the memory.
    """
    nothing: list[np.ndarray | None] = [None] * len(shown)
    rows = shown.to_dict("records")
    at_hand = [at for at, row in enumerate(rows) if images.get(row["path"]) is not None]
    if not at_hand:
        return nothing, "the images are not at hand"
    if not (run.folder / "model" / "model.json").exists():
        return nothing, "the run folder holds no model"
    paths, asked = [rows[at]["path"] for at in at_hand], [gradcam_class(run, rows[at]) for at in at_hand]
    key = json.dumps([sha256_of(run.folder / "model" / "model.safetensors"), paths, asked])
    found = load_saved_maps(run.folder / "gradcam.npz", key)
    if found is None:
        found, facts = compute_maps(run, paths, asked)
        if found is None:
            words = f"not available for {facts['arch']} at {facts['image_size']} pixels"
            return nothing, f"{words}: its last layers keep no map of places"
        buffer = io.BytesIO()
        np.savez_compressed(buffer, key=key, places=found)
        write_atomic(run.folder / "gradcam.npz", buffer.getvalue())
    for at, where in zip(at_hand, found, strict=True):
        nothing[at] = where
    return nothing, ""


def load_saved_maps(path: Path, key: str) -> np.ndarray | None:
    """The maps that an earlier page was made with, if they are of the same network, images and classes."""
    try:
        with np.load(path, allow_pickle=False) as kept:
            return kept["places"] if str(kept["key"]) == key else None
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        return None


def compute_maps(run: RunFiles, paths: Sequence[str], asked: Sequence[int]) -> tuple[np.ndarray | None, dict[str, Any]]:
    """Grad-CAM maps of the images for these classes, and the facts of the network."""
    import torch

    from baseline.evaluation.gradcam import grad_cam
    from baseline.inference.model_folder import load_network
    from baseline.vision.rng import preserve_rng_state

    with preserve_rng_state():  # a network is born with random weights before it gets its own
        model, facts = load_network(run.folder)
    size, resize = facts["image_size"], facts["resize"]
    squares = [resize_image(load_image(path, size), size, resize) for path in paths]
    inputs = torch.from_numpy(np.stack([np.asarray(each) for each in squares])).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(facts[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    return grad_cam(model, (inputs - mean) / std, asked), facts


def time_section(run: RunFiles) -> dict[str, Any]:
    seconds = dict(run.manifest.get("time") or run.manifest["seconds"])
    seconds = {name: value for name, value in seconds.items() if value >= 0.005}
    words = "Seconds by part: " + ", ".join(f"{name} {value:.1f}" for name, value in seconds.items())
    return {
        "seconds": seconds,
        "total": sum(run.manifest["seconds"].values()),
        "where": save_figure(run, "time", figures.time_figure(seconds), words),
        "command": f"baseline run {shlex.quote(str(run.folder / 'manifest.json'))}",
    }
