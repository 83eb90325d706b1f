"""Compares class balance, focal loss and label smoothing on images that were made imbalanced.

    python benchmarks/imbalance.py trashnet_256 hymenoptera_256 --seeds 2 --image-size 96

Of the training and validation images, every second class keeps a tenth; the test images stay as they are. Trained are
the head alone, on features of the frozen body, by logistic regression and by steps, and with `--quick` the quick
preset. Prints the mean over the seeds of accuracy, balanced accuracy and macro F1 on test (valid where there is none),
in percent, without TTA.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer
from sklearn.metrics import f1_score, recall_score

import baseline
from baseline.recipe.schema import HEAD_STAGE, Stage

PROBE, STEPS = (Stage("probe"),), (HEAD_STAGE,)

VARIANTS: dict[str, dict[str, Any]] = {
    "logistic regression": {"stages": PROBE},
    "the same, class weights": {"stages": PROBE, "class_balance": "weights"},
    "the same, label smoothing 0.1": {"stages": PROBE, "label_smoothing": 0.1},
    "head by steps": {"stages": STEPS},
    "the same, class weights ": {"stages": STEPS, "class_balance": "weights"},
    "the same, sampler": {"stages": STEPS, "class_balance": "sampler"},
    "the same, focal loss": {"stages": STEPS, "loss": "focal"},
    "the same, label smoothing 0.1 ": {"stages": STEPS, "label_smoothing": 0.1},
}

QUICK: dict[str, dict[str, Any]] = {
    "quick": {},
    "quick, class weights": {"class_balance": "weights"},
    "quick, focal loss": {"loss": "focal"},
    "quick, label smoothing 0.1": {"label_smoothing": 0.1},
}


def imbalanced(folder: str, seed: int) -> pd.DataFrame:
    """Return the split table with a tenth of the training and validation images of every second class."""
    table = baseline.split(baseline.image_table(folder), baseline.load_recipe("default").changed(seed=seed))
    rare = sorted(table["label"].unique())[1::2]
    rank = table.sample(frac=1, random_state=seed).groupby(["label", "split"]).cumcount()
    count = table.groupby(["label", "split"])["path"].transform("size")
    last = "test" if (table["split"] == "test").any() else "valid"
    dropped = table["label"].isin(rare) & (table["split"] != last) & (rank.reindex(table.index) >= count / 10)
    return table[~dropped].reset_index(drop=True)


def measure(table: pd.DataFrame, seed: int, image_size: int, changes: dict[str, Any]) -> np.ndarray:
    """Train once; return accuracy, balanced accuracy and macro F1 of the last split."""
    recipe = baseline.load_recipe("default").with_preset("quick").changed(image_size=image_size, seed=seed)
    recipe = recipe.changed(audit="none", split="provided", tta=(), **changes)
    with tempfile.TemporaryDirectory() as out:
        result = baseline.make_baseline(table, recipe, out=Path(out) / "run", progress=baseline.Progress())
    rows = result.predictions[result.predictions["split"] == result.predictions["split"].iloc[-1]]
    truth, predicted = rows["label"], rows["plain_predicted"]
    scores = [(truth == predicted).mean(), recall_score(truth, predicted, average="macro")]
    return 100 * np.array([*scores, f1_score(truth, predicted, average="macro", zero_division=0)])


def main(
    sets: list[str],
    seeds: int = 2,
    image_size: int = 96,
    quick: Annotated[bool, typer.Option("--quick", help="Train the quick preset as well.")] = False,
) -> None:
    """Train every variant on every set and print the table."""
    print(f"| set | {' | '.join(['variant', 'accuracy', 'balanced accuracy', 'macro F1'])} |\n|---|---|---|---|---|")
    for folder in sets:
        tables = [imbalanced(folder, seed) for seed in range(seeds)]
        for name, changes in (VARIANTS | (QUICK if quick else {})).items():
            scores = [measure(table, seed, image_size, changes) for seed, table in enumerate(tables)]
            cells = [f"{value:.1f}" for value in np.mean(scores, axis=0)]
            print(f"| {Path(folder).stem} | {name.strip()} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    typer.run(main)
