"""The run's headline and a few of its images, for the page of `baseline serve`.

`split.csv` and the manifest are text that anyone may have written. An image is read once, when the server starts, and
only if it lies in the run's own image folder; what the server hands out is decoded and encoded again.
"""

from __future__ import annotations

import csv
import random
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from baseline.data.image import read_image_bytes
from baseline.errors import first_line, format_count
from baseline.files import cache_home, is_inside, kaggle_dir
from baseline.progress import Progress
from baseline.reading import MAX_TABLE_BYTES, check_regular
from baseline.report.headline import describe_headline
from baseline.runs.folder import headline_split, read_manifest

if TYPE_CHECKING:
    from baseline.deploy.server.predictor import Predictor

__all__ = ["Example", "find_examples", "run_summary"]


MAX_EXAMPLES = 8
"""Maximum number of example images on the page."""

MAX_TRIED, MAX_SECONDS, MAX_SECONDS_EACH = 200, 20, 5
"""Maximum number of rows of `split.csv` that are tried, and seconds for all of them and for one."""


@dataclass(frozen=True)
class Example:
    """An image of the run, decoded and encoded again."""

    label: str
    image: bytes
    """A PNG."""
    small: bytes
    """A JPEG."""


def run_summary(folder: Path, predictor: Predictor, examples: bool, progress: Progress) -> tuple[str, list[Example]]:
    """Return the run's headline and some of its images with labels; both empty for a model folder alone."""
    if not (folder / "manifest.json").exists():
        return "", []
    try:
        manifest = read_manifest(folder)
        headline, split = describe_headline(manifest), headline_split(manifest["metrics"])
        return headline, find_examples(folder / "split.csv", split, manifest, predictor, progress) if examples else []
    except (OSError, ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
        progress.log(f"the page omits the run's result and images: {first_line(error)}")
        return "", []


def find_examples(
    path: Path, split: str, manifest: Mapping[str, Any], predictor: Predictor, progress: Progress
) -> list[Example]:
    """Return some images of the split that still exist, taking turns between classes."""
    folders, outside, end = image_folders(manifest), 0, time.monotonic() + MAX_SECONDS
    examples: list[Example] = []
    for image, label in _shuffled_rows(path, split):
        if len(examples) == MAX_EXAMPLES or time.monotonic() > end:
            break
        if not any(is_inside(image, folder) for folder in folders):
            outside += 1
            continue
        try:
            content = read_image_bytes(image) if image.stat().st_size <= predictor.limits.bytes else b""
        except OSError:
            continue
        if (encoded := predictor.encode_again(content, MAX_SECONDS_EACH)) is not None:
            examples.append(Example(label, *encoded))
    if outside:
        progress.log(f"the page omits {format_count(outside, 'image')} outside of the run's image folder")
    return examples


def image_folders(manifest: Mapping[str, Any]) -> list[Path]:
    """Return the folders that hold the images of a run; none for a table in memory, or all of the user's files."""
    images = str(manifest.get("images") or "")
    place = Path(images)
    if not images:
        return []
    if not place.is_absolute():  # the name of a data set
        return [cache_home(), kaggle_dir("input")]
    folders = [place] if place.is_dir() else [place.parent, cache_home()]  # archives are unpacked into the cache
    image_dir = dict(dict(manifest["recipe"]).get("data", {})).get("image_dir")
    folders += [Path(image_dir)] if image_dir else []
    return [folder for folder in folders if folder.is_absolute() and not is_inside(Path.home(), folder)]


def _shuffled_rows(path: Path, split: str) -> Iterator[tuple[Path, str]]:
    check_regular(path, MAX_TABLE_BYTES)
    with path.open(encoding="utf-8", newline="") as file:
        rows = [(Path(row["path"]), row["label"]) for row in csv.DictReader(file) if row["split"] == split]
    random.Random(0).shuffle(rows)
    counts: dict[str, int] = {}
    turns = []
    for image, label in rows:
        counts[label] = counts.get(label, 0) + 1
        turns.append((counts[label], image, label))
    yield from ((image, label) for _, image, label in sorted(turns, key=lambda turn: turn[0])[:MAX_TRIED])
