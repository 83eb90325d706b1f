"""The five works that this project follows, each by one recipe on images of its kind, in full.

    python benchmarks/origins.py DATA
    python benchmarks/origins.py DATA --only debris --only "debris, frozen"

Below the folder are looked for hymenoptera_256, alpaca_256, trashnet_256 (a folder for each class) and
gtsrb_speed_tracks/metadata.csv (with a column `group`). Printed is a Markdown table: the number with TTA and its 95 %
interval beside the one that its origin tells, and with which body. Origins had other images where no set is named.
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
    "ants_bees": ("ants_bees", "hymenoptera_256", {}, "about 95 % (ResNet-18)"),
    "alpaca": ("alpaca", "alpaca_256", {}, ""),
    "debris, scratch": ("debris", "trashnet_256", {"pretrained": False, "image_size": 128}, "70 % (ResNet-18)"),
    "debris, frozen": ("debris", "trashnet_256", {"stages": FROZEN}, "88.5 % (ResNet-18)"),
    "debris": ("debris", "trashnet_256", {}, "89.2 % (ResNet-18)"),
    "debris, six classes": ("debris", "trashnet_256", {"positive": ""}, ""),
    "skylines": ("skylines", "gtsrb_speed_tracks/metadata.csv", {}, ""),
    "try_your_own": ("try_your_own", "trashnet_256", {"images_per_class": 20}, ""),
}
"""By name: recipe, images, what is changed, and the origin's number."""


def row(name: str, images: Path, seed: int, out: Path) -> str:
    recipe, data, changes, published = RUNS[name]
    done = baseline.make_baseline(
        images / data, recipe, seed=seed, out=out, progress=baseline.ConsoleProgress(), **changes
    )
    split = headline_split(done.metrics)
    found = done.metrics[split]["tta"]
    low, high = found["interval"]
    counts = f"{done.manifest['data']['images']['train']:,} train, {done.metrics[split]['images']:,} {split}"
    number = f"{found['accuracy']:.1%} ({100 * low:.1f} to {100 * high:.1f})"
    body = f"{done.recipe.model.arch}, {done.recipe.model.image_size} px"
    seconds = f"{sum(done.manifest['seconds'].values()):.0f}"
    print(f"{name}: {done.manifest['device']}, torch {done.manifest['versions']['torch']}", file=sys.stderr)
    return f"| {' | '.join([name, data, counts, body, number, published, seconds])} |"


def main(
    images: Path,
    only: Annotated[list[str] | None, typer.Option(help=f"Some of: {'; '.join(RUNS)}.")] = None,
    seed: int = 0,
    runs: Annotated[Path | None, typer.Option(help="Keeps the run folders here.")] = None,
) -> None:
    """Runs the origins and prints a table."""
    print("| run | images | how many | body | accuracy, TTA | published | seconds |\n|---|---|---|---|---|---|---|")
    for name in only or RUNS:
        with tempfile.TemporaryDirectory() as folder:
            print(row(name, images, seed, (runs or Path(folder)) / name.replace(", ", "-")), flush=True)


if __name__ == "__main__":
    typer.run(main)
