"""How often the sets of classes of `--coverage` contain the true class.

    python benchmarks/coverage.py SETS [--preset instant] [--per-class 150]

SETS is the folder of `benchmarks/unlike.py`. A model is trained on each set; its valid and test predictions are divided
200 times at random into as many images for the threshold as there are valid images, and others to measure the coverage
on. Prints a Markdown table: the mean coverage, the mean number of classes in a set, and the coverage on the test images
with the threshold of the valid images, as a run has it.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
from unlike import QUIET, read

import baseline
from baseline.evaluation.calibration import calibrate, fit_temperature
from baseline.evaluation.table import class_codes, class_columns, probability_matrix
from baseline.inference.reference import Reference, class_sets
from baseline.vision.rng import seed_everything

SETS = ("hymenoptera_256", "trashnet_256", "gtsrb_speed_tracks", "cifar10")

DIVISIONS = 200


def predictions_of(table: pd.DataFrame, preset: str, folder: Path) -> pd.DataFrame:
    """Train on a table, and return the calibrated predictions of its valid and test images."""
    recipe = baseline.load_recipe("default").with_preset(preset)
    table = baseline.split(table, recipe)
    recipe, weights, _ = baseline.resolve(recipe, table)
    with seed_everything(0):
        learn = baseline.learner(baseline.dataloaders(table, recipe, path=folder), recipe, weights=weights, path=folder)
        baseline.train(learn, recipe, QUIET)
        predictions = baseline.predict(learn, table, recipe.evaluation.tta)
    return calibrate(predictions, fit_temperature(predictions))


def measure(table: pd.DataFrame, coverage: float) -> tuple[float, float, float]:
    """Return the mean coverage over random divisions, the mean size of a set, and the coverage on test."""
    classes = class_columns(table)
    probabilities, labels = probability_matrix(table, classes), table["label"].to_numpy()
    scores = 1 - probabilities[np.arange(len(table)), class_codes(table, "label", classes)]
    is_valid = (table["split"] == "valid").to_numpy()

    def on(calibration: np.ndarray) -> tuple[float, float]:
        reference = Reference(np.empty((0, 0)), np.empty(0), np.sort(scores[calibration]))
        sets = class_sets(probabilities[~calibration], reference.set_threshold(coverage), classes)
        hits = [label in names for label, names in zip(labels[~calibration], sets, strict=True)]
        return float(np.mean(hits)), float(np.mean([len(names) for names in sets]))

    rng = np.random.default_rng(0)
    draws = [on(rng.permutation(is_valid)) for _ in range(DIVISIONS)]
    mean, size = np.mean(draws, axis=0)
    return float(mean), float(size), on(is_valid)[0]


def main() -> None:
    """Measure every set and print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("sets", type=Path)
    parser.add_argument("--preset", default="instant")
    parser.add_argument("--per-class", type=int, default=150)
    options = parser.parse_args()
    print(
        "| images | valid | test | accuracy | asked | covered | classes in a set | valid to test |\n" + "|---" * 8 + "|"
    )
    with TemporaryDirectory() as folder:
        for name in SETS:
            table = predictions_of(read(options.sets, name, options.per_class), options.preset, Path(folder))
            counts = table["split"].value_counts()
            accuracy = float((table["predicted"] == table["label"]).mean())
            for coverage in (0.9, 0.95):
                mean, size, test = measure(table, coverage)
                cells = (f"{counts['valid']}", f"{counts['test']}", f"{accuracy:.1%}", f"{coverage:.0%}")
                print(f"| {name} | {' | '.join(cells)} | {mean:.1%} | {size:.2f} | {test:.1%} |", flush=True)


if __name__ == "__main__":
    main()
