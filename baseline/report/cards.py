"""Images as a page shows them: thumbnails with captions, and Grad-CAM heatmaps of predictions.

The model runs once, on the few images that are shown with a Grad-CAM, and not again for a report that shows the same
images.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from baseline.data.image import load_image, resize_image
from baseline.data.labels import label_matrix
from baseline.files import sha256_of, write_atomic
from baseline.reading import load_npz
from baseline.report import figures
from baseline.report.figures import THUMBNAIL_SIZE, ThumbnailCache
from baseline.report.html import percent
from baseline.report.run_files import RunFiles

__all__ = ["ImageCard", "gradcam_maps", "image_card", "pair_cards", "prediction_card", "save_sheet", "suspect_card"]


MIN_MAP_CELLS = 4
"""Height and width of a Grad-CAM map below which it is a smear that locates nothing."""

MAX_MAPS_BYTES = 10**8
"""Maximum size of the saved heatmaps of a run in bytes."""

PAIR_COUNT = 6
"""Number of pairs of duplicates shown of each kind."""


@dataclass(frozen=True)
class ImageCard:
    """An image as the page shows it."""

    image: Image.Image | None
    alt: str
    """Alternative text for screen readers."""
    caption: list[str]
    """Lines below the image."""
    path: str
    wrong: bool = False
    heatmap: Image.Image | None = None
    """The image with its Grad-CAM laid over it."""
    heatmap_alt: str = ""


def save_sheet(run: RunFiles, name: str, cards: Sequence[ImageCard]) -> None:
    """Save the cards as a picture in the run folder; a Grad-CAM is next to its image."""
    images = []
    for card in cards:
        images.append((card.image, "\n".join(card.caption)))
        if card.heatmap is not None:
            images.append((card.heatmap, ""))
    if images:
        write_atomic(run.folder / f"{name}.png", figures.image_sheet(images))


def pair_cards(
    pairs: pd.DataFrame, images: ThumbnailCache
) -> Iterable[tuple[str, int, list[tuple[ImageCard, ImageCard]]]]:
    """Yield for each kind of pair its title, the number of pairs, and the cards of the first of them."""
    near = pairs[pairs["kind"] == "near"].sort_values("distance", key=lambda bits: bits.astype(int), kind="stable")
    kinds = {
        "Leaks: duplicates across splits": pairs[pairs["leak"] == "True"],
        "Conflicts: duplicates with different labels": pairs[pairs["conflict"] == "True"],
        "Near-duplicates": near,
    }
    for title, rows in kinds.items():
        if len(rows):
            cards = [
                (
                    image_card(images, row["path"], row["label"], "an image of", row["split"]),
                    image_card(images, row["other"], row["other_label"], "its duplicate, labeled", row["other_split"]),
                )
                for row in rows.head(PAIR_COUNT).to_dict("records")
            ]
            yield title, len(rows), cards


def image_card(images: ThumbnailCache, path: str, label: str, prefix: str, split: str = "") -> ImageCard:
    """Return the card of an image with its label; `prefix` is the alternative text before the label."""
    caption = [label or "no label", *([split] if split else [])]
    return ImageCard(images.get(path), f"{prefix} {label or 'no label'}", caption, path)


def suspect_card(images: ThumbnailCache, row: dict[Any, Any]) -> ImageCard:
    """Return the card of an image whose label may be wrong."""
    probability = percent(row["suggested_probability"])
    caption = [f"label: {row['label']}", f"suggested: {row['suggested']} ({probability})", row["split"]]
    alt = f"an image labeled {row['label']}, possibly of {row['suggested']}"
    return ImageCard(images.get(row["path"]), alt, caption, row["path"], wrong=True)


def prediction_card(
    run: RunFiles, images: ThumbnailCache, row: dict[Any, Any], heatmap: np.ndarray | None
) -> ImageCard:
    """Return the card of a prediction, with its Grad-CAM where there is one."""
    truth, predicted = row["label"] or "no label", row["predicted"] or "no label"
    confidence = percent(row["confidence"])
    image = images.get(row["path"])
    overlay = None
    if heatmap is not None and (original := images.read(row["path"], THUMBNAIL_SIZE)) is not None:
        square = resize_image(original, THUMBNAIL_SIZE, run.recipe["resize"])
        overlay = figures.overlay_heatmap(square, heatmap, THUMBNAIL_SIZE)
    alt = f"an image of {truth}, predicted {predicted} with confidence {confidence}"
    caption = [f"truth: {truth}", f"predicted: {predicted}", f"confidence: {confidence}"]
    explained = run.classes[gradcam_class(run, row)]
    heatmap_alt = f"Grad-CAM: the evidence for {explained} in it"
    return ImageCard(image, alt, caption, row["path"], not row["right"], overlay, heatmap_alt)


def gradcam_class(run: RunFiles, row: dict[Any, Any]) -> int:
    """Return the class whose evidence a Grad-CAM shows: the predicted one.

    With many labels, it is the most confident wrong decision or, where all are correct, the least confident one.
    """
    if not run.many:
        return run.classes.index(row["predicted"])
    probabilities = np.array([row[f"p_{name}"] for name in run.classes])
    truth, predicted = (label_matrix(pd.Series([row[column]]), run.classes)[0] for column in ("label", "predicted"))
    confidence = np.where(predicted, probabilities, 1 - probabilities)
    wrong = truth != predicted
    return int(np.where(wrong, confidence, -1).argmax() if wrong.any() else confidence.argmin())


def gradcam_maps(run: RunFiles, shown: pd.DataFrame, images: ThumbnailCache) -> tuple[list[np.ndarray | None], str]:
    """Return the Grad-CAM heatmap of each image, or None for it, and the reason where there are none at all.

    The heatmaps are cached in `gradcam.npz`, so that writing the report again needs no network and a tenth of the
    memory.
    """
    heatmaps: list[np.ndarray | None] = [None] * len(shown)
    rows = shown.to_dict("records")
    readable = [at for at, row in enumerate(rows) if images.get(row["path"]) is not None]
    if not readable:
        return heatmaps, "the images are no longer available"
    if not (run.folder / "model" / "model.json").exists():
        return heatmaps, "the run folder has no model"
    paths, classes = [rows[at]["path"] for at in readable], [gradcam_class(run, rows[at]) for at in readable]
    try:
        key = json.dumps([sha256_of(run.folder / "model" / "model.safetensors"), paths, classes])
    except OSError as error:
        return heatmaps, f"the model cannot be read: {error.strerror}"
    saved = run.folder / "gradcam.npz"
    maps = load_saved_maps(saved, key)
    if maps is None:
        maps, facts = compute_maps(run, paths, classes)
        if facts.get("transforms"):
            return heatmaps, "not available where images go through transforms of your own"
        if maps is None:
            where = f"{facts['arch']} at {facts['image_size']} pixels"
            return heatmaps, f"not available for {where}, whose last layers keep no spatial map"
        buffer = io.BytesIO()
        np.savez_compressed(buffer, key=key, places=maps)
        if saved.is_fifo():
            saved.unlink()
        write_atomic(saved, buffer.getvalue())
    height, width = maps.shape[1:]
    if min(height, width) < MIN_MAP_CELLS:
        regions = f"{height} x {width} regions at {run.recipe['image_size']} pixels"
        return heatmaps, f"not shown: the last layers keep {regions}, which is too coarse"
    for at, heatmap in zip(readable, maps, strict=True):
        heatmaps[at] = heatmap
    return heatmaps, ""


def load_saved_maps(path: Path, key: str) -> np.ndarray | None:
    """Return the heatmaps of an earlier report if they are of the same network, images and classes, else None."""
    try:
        saved_key, maps = load_npz(path, ("key", "places"), MAX_MAPS_BYTES)
    except (OSError, ValueError):
        return None
    return maps if str(saved_key) == key else None


def compute_maps(
    run: RunFiles, paths: Sequence[str], classes: Sequence[int]
) -> tuple[np.ndarray | None, dict[str, Any]]:
    """Return the Grad-CAM heatmaps of the images for these classes, and the facts of the network."""
    import torch

    from baseline.evaluation.gradcam import grad_cam
    from baseline.vision.model_folder import load_network
    from baseline.vision.rng import preserve_rng_state

    with preserve_rng_state():  # building a network draws random weights before it loads its own
        model, facts = load_network(run.folder)
    if facts.get("transforms"):  # which a model folder cannot hold
        return None, facts
    size, resize = facts["image_size"], facts["resize"]
    squares = [resize_image(load_image(path, size, facts["value_range"]), size, resize) for path in paths]
    inputs = torch.from_numpy(np.stack([np.asarray(square) for square in squares])).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(facts[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    return grad_cam(model, (inputs - mean) / std, classes), facts
