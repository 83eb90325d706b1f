"""Runs the recipes of the five works that this project follows, on images of the same kind.

    python benchmarks/prior_work.py DATA
    python benchmarks/prior_work.py DATA --only debris --only "debris, frozen"

Expected subfolders: hymenoptera_256, alpaca_256, trashnet_256 (a folder for each class) and
gtsrb_speed_tracks/metadata.csv (with a column `group`). Prints a Markdown table: the accuracy with TTA and its 95%
confidence interval next to the published one, and the backbone. Unless a dataset is named, the work had other images.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

import baseline
from baseline import Stage
from baseline.runs.folder import headline_split

FROZEN = (Stage("head", 10, "find"),)
RUNS: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "ants_bees": ("ants_bees", "hymenoptera_256", {}, "about 95% (ResNet-18)"),
    "alpaca": ("alpaca", "alpaca_256", {}, ""),
    "debris, scratch": ("debris", "trashnet_256", {"pretrained": False, "image_size": 128}, "70% (ResNet-18)"),
    "debris, frozen": ("debris", "trashnet_256", {"stages": FROZEN}, "88.5% (ResNet-18)"),
    "debris": ("debris", "trashnet_256", {}, "89.2% (ResNet-18)"),
    "debris, six classes": ("debris", "trashnet_256", {"positive": ""}, ""),
    "skylines": ("skylines", "gtsrb_speed_tracks/metadata.csv", {}, ""),
    "try_your_own": ("try_your_own", "trashnet_256", {"images_per_class": 20}, ""),
}
"""By name: recipe, images, changed settings, and the published result."""


def row(name: str, images: Path, seed: int, out: Path) -> str:
    recipe, data, changes, published = RUNS[name]
    result = baseline.make_baseline(
        images / data, recipe, seed=seed, out=out, progress=baseline.ConsoleProgress(), **changes
    )
    split = headline_split(result.metrics)
    scores = result.metrics[split]["tta"]
    low, high = scores["interval"]
    counts = f"{result.manifest['data']['images']['train']:,} train, {result.metrics[split]['images']:,} {split}"
    accuracy = f"{scores['accuracy']:.1%} ({100 * low:.1f} to {100 * high:.1f})"
    backbone = f"{result.recipe.model.arch}, {result.recipe.model.image_size} px"
    seconds = f"{sum(result.manifest['seconds'].values()):.0f}"
    print(f"{name}: {result.manifest['device']}, torch {result.manifest['versions']['torch']}", file=sys.stderr)
    return f"| {' | '.join([name, data, counts, backbone, accuracy, published, seconds])} |"


def main(
    images: Path,
    only: Annotated[list[str] | None, typer.Option(help=f"Some of: {'; '.join(RUNS)}.")] = None,
    seed: int = 0,
    runs: Annotated[Path | None, typer.Option(help="Folder for the run folders.")] = None,
) -> None:
    """Run the recipes and print a table."""
    print("| run | images | counts | backbone | accuracy, TTA | published | seconds |\n|---|---|---|---|---|---|---|")
    for name in only or RUNS:
        with tempfile.TemporaryDirectory() as folder:
            print(row(name, images, seed, (runs or Path(folder)) / name.replace(", ", "-")), flush=True)


if __name__ == "__main__":
    typer.run(main)
