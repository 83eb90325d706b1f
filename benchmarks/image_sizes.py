"""Compares image sizes of the quick preset on few images of CIFAR-10.

    python benchmarks/image_sizes.py CIFAR10_FOLDER --per-class 25,100 --sizes 80,128 --seeds 2

The folder has train/CLASS and test/CLASS. Of the first, N images per class are drawn, a tenth of them for validation;
of the second, the first 100 of each class are the test images. Prints the test accuracy without TTA of logistic
regression on frozen features and of the quick preset, and the CPU seconds of the whole run.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import typer

import baseline
from baseline.recipe.schema import Stage

STAGES = {"logistic regression": (Stage("probe"),), "quick": (Stage("probe"), Stage(0.55, 1, 2e-4, steps=100))}

TEST_IMAGES = 100
"""Test images per class."""


def sample(folder: Path, per_class: int, seed: int) -> pd.DataFrame:
    """Return the image table with splits."""
    rng, rows = np.random.default_rng(seed), []
    for name in sorted(path.name for path in (folder / "test").iterdir()):
        rows += [(str(path), name, "test") for path in sorted((folder / "test" / name).iterdir())[:TEST_IMAGES]]
    for name in sorted(path.name for path in (folder / "train").iterdir()):
        files = sorted((folder / "train" / name).iterdir())
        drawn = [files[number] for number in rng.permutation(len(files))[:per_class]]
        valid = max(1, round(per_class / 10))
        rows += [(str(path), name, "valid" if at < valid else "train") for at, path in enumerate(drawn)]
    return pd.DataFrame(rows, columns=["path", "label", "split"])


def measure(table: pd.DataFrame, seed: int, image_size: int, trained: str) -> tuple[float, float]:
    """Train once; return the test accuracy and CPU seconds."""
    recipe = baseline.load_recipe("cifar10").with_preset("quick").changed(image_size=image_size, seed=seed)
    recipe = recipe.changed(stages=STAGES[trained], audit="none", split="provided", tta=())
    start = time.process_time()
    with tempfile.TemporaryDirectory() as out:
        result = baseline.make_baseline(table, recipe, out=Path(out) / "run", progress=baseline.Progress())
    return result.metrics["test"]["tta"]["accuracy"], time.process_time() - start


def main(folder: Path, per_class: str = "25,100", sizes: str = "80,128", seeds: int = 2) -> None:
    """Train every combination and print the table."""
    print("| images per class | pixels | trained | test accuracy by seed | CPU seconds |\n|---|---|---|---|---|")
    for count in map(int, per_class.split(",")):
        tables = [sample(folder, count, seed) for seed in range(seeds)]
        for image_size in map(int, sizes.split(",")):
            for trained in STAGES:
                results = [measure(table, seed, image_size, trained) for seed, table in enumerate(tables)]
                accuracies = ", ".join(f"{accuracy:.1%}" for accuracy, _ in results)
                seconds = f"{np.mean([seconds for _, seconds in results]):.0f}"
                print(f"| {count} | {image_size} | {trained} | {accuracies} | {seconds} |", flush=True)


if __name__ == "__main__":
    typer.run(main)
