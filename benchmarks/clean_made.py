"""How many labels that were made wrong by chance `baseline clean` finds in folders of images.

    python benchmarks/clean_made.py trashnet_256 hymenoptera_256 --share 0.1

Of each class the same share of images gets another class, drawn evenly. Printed are AUROC of `label_quality` for "the
label was changed", precision and recall of `is_label_issue`, and the share of changed labels among as many images, the
first ones, as were changed.
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
    """Prints one JSON line a folder."""
    for folder in folders:
        table, rng = baseline.image_table(folder), np.random.default_rng(seed)
        changed = table.groupby("label")["path"].sample(frac=share, random_state=seed)
        codes, classes = pd.factorize(table["label"], sort=True)
        other = classes[(codes + rng.integers(1, len(classes), len(codes))) % len(classes)]
        labels = table["label"].mask(table["path"].isin(changed), other)
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as out:
            given = table.assign(label=labels)[["path", "label", "split"]]
            issues = baseline.clean(given, out=f"{out}/clean", progress=baseline.Progress()).issues
        wrong, hit = issues["path"].isin(changed), issues["is_label_issue"]
        told = {
            "folder": folder,
            "images": len(issues),
            "wrong": int(wrong.sum()),
            "auroc": round(float(roc_auc_score(wrong, -issues["label_quality"])), 4),
            "suspected": int(hit.sum()),
            "precision": round(float(wrong[hit].mean()), 3),
            "recall": round(float((wrong & hit).sum() / wrong.sum()), 3),
            "among the first": round(float(wrong.head(int(wrong.sum())).mean()), 3),
            "seconds": round(time.perf_counter() - began),
        }
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    typer.run(main)
