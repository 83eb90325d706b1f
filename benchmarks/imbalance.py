"""Compares class balance, focal loss and label smoothing on images that were made imbalanced.

    python benchmarks/imbalance.py trashnet_256 hymenoptera_256 --seeds 2 --image-size 96
    python benchmarks/imbalance.py trashnet_256 --seeds 3 --pairs

Of the training and validation images, every second class keeps a tenth; the test images stay as they are. Trained are
the head alone, on features of the frozen body, by logistic regression and by steps, and with `--quick` the quick
preset. Prints the mean over the seeds of accuracy, balanced accuracy and macro F1 on test (valid where there is none),
in percent, without TTA. With `--pairs`, every image is pasted beside another one of its split and has the labels of
both; printed are micro F1, macro F1 and the mean average precision.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer
from PIL import Image
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

SINGLE_LABEL = (("loss", "focal"), ("label_smoothing", 0.1), ("class_balance", "sampler"))
"""Settings that need one label per image."""

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


def paired(table: pd.DataFrame, folder: Path, seed: int) -> pd.DataFrame:
    """Write every image beside a random other one of its split, and return the table with the labels of both."""
    folder.mkdir(parents=True)
    rows = []
    for split, images in table.groupby("split", sort=False):
        others = images.sample(frac=1, random_state=seed)
        for number, (left, right) in enumerate(zip(images.itertuples(), others.itertuples(), strict=True)):
            canvas = Image.new("RGB", (256, 128))
            for column, row in enumerate((left, right)):
                with Image.open(str(row.path)) as image:
                    canvas.paste(image.convert("RGB").resize((128, 128)), (128 * column, 0))
            canvas.save(path := folder / f"{split}{number}.png")
            rows.append({"path": str(path), "label": ";".join(sorted({left.label, right.label})), "split": split})
    return pd.DataFrame(rows)


def measure(table: pd.DataFrame, seed: int, image_size: int, changes: dict[str, Any], *, pairs: bool) -> np.ndarray:
    """Train once; return accuracy, balanced accuracy and macro F1 of the last split, or the metrics of pairs."""
    recipe = baseline.load_recipe("default").with_preset("quick").changed(image_size=image_size, seed=seed)
    recipe = recipe.changed(audit="none", split="provided", tta=(), task="multilabel" if pairs else "single", **changes)
    with tempfile.TemporaryDirectory() as out:
        result = baseline.make_baseline(table, recipe, out=Path(out) / "run", progress=baseline.Progress())
    if pairs:
        scores = result.metrics[result.predictions["split"].iloc[-1]]["tta"]
        return 100 * np.array([scores[name] for name in ("micro_f1", "macro_f1", "mean_average_precision")])
    rows = result.predictions[result.predictions["split"] == result.predictions["split"].iloc[-1]]
    truth, predicted = rows["label"], rows["plain_predicted"]
    scores = [(truth == predicted).mean(), recall_score(truth, predicted, average="macro")]
    return 100 * np.array([*scores, f1_score(truth, predicted, average="macro", zero_division=0)])


def main(
    sets: list[str],
    seeds: int = 2,
    image_size: int = 96,
    quick: Annotated[bool, typer.Option("--quick", help="Train the quick preset as well.")] = False,
    pairs: Annotated[bool, typer.Option("--pairs", help="Paste two images into one, with the labels of both.")] = False,
) -> None:
    """Train every variant on every set and print the table."""
    columns = ["micro F1", "macro F1", "mAP"] if pairs else ["accuracy", "balanced accuracy", "macro F1"]
    print(f"| set | variant | {' | '.join(columns)} |\n|---|---|---|---|---|")
    for data in sets:
        with tempfile.TemporaryDirectory() as folder:
            tables = [imbalanced(data, seed) for seed in range(seeds)]
            if pairs:
                tables = [paired(table, Path(folder) / str(seed), seed) for seed, table in enumerate(tables)]
            for name, changes in (VARIANTS | (QUICK if quick else {})).items():
                if pairs and any(item in SINGLE_LABEL for item in changes.items()):
                    continue
                scores = [measure(table, seed, image_size, changes, pairs=pairs) for seed, table in enumerate(tables)]
                cells = [f"{value:.1f}" for value in np.mean(scores, axis=0)]
                print(f"| {Path(data).stem} | {name.strip()} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    typer.run(main)
