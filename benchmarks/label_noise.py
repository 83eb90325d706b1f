"""Measures how many randomly changed labels `baseline clean` finds in folders of images.

    python benchmarks/label_noise.py trashnet_256 hymenoptera_256 --share 0.1

The same fraction of images of each class gets another class at random. Prints the AUROC of `label_quality` for "the
label was changed", precision and recall of `is_label_issue`, and the precision among the first K images, where K is the
number of changed labels.
"""

from __future__ import annotations

import json
import tempfile
import time

import numpy as np
import pandas as pd
import typer
from sklearn.metrics import roc_auc_score

import baseline


def main(folders: list[str], share: float = 0.1, seed: int = 0) -> None:
    """Print one line of JSON per folder."""
    for folder in folders:
        table, rng = baseline.image_table(folder), np.random.default_rng(seed)
        changed = table.groupby("label")["path"].sample(frac=share, random_state=seed)
        codes, classes = pd.factorize(table["label"], sort=True)
        other = classes[(codes + rng.integers(1, len(classes), len(codes))) % len(classes)]
        labels = table["label"].mask(table["path"].isin(changed), other)
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as out:
            images = table.assign(label=labels)[["path", "label", "split"]]
            issues = baseline.clean(images, out=f"{out}/clean", progress=baseline.Progress()).issues
        wrong, hit = issues["path"].isin(changed), issues["is_label_issue"]
        row = {
            "folder": folder,
            "images": len(issues),
            "wrong": int(wrong.sum()),
            "auroc": round(float(roc_auc_score(wrong, -issues["label_quality"])), 4),
            "suspected": int(hit.sum()),
            "precision": round(float(wrong[hit].mean()), 3),
            "recall": round(float((wrong & hit).sum() / wrong.sum()), 3),
            "among the first": round(float(wrong.head(int(wrong.sum())).mean()), 3),
            "seconds": round(time.perf_counter() - start),
        }
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    typer.run(main)
