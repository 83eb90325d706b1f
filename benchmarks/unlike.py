"""How well distances to training features tell unknown images from images like those of training.

    python benchmarks/unlike.py SETS [--preset instant] [--per-class 120]

SETS is a folder with `hymenoptera_256`, `alpaca_256`, `trashnet_256`, `gtsrb_speed_tracks` and, for the pairs with it,
`cifar10`. A model is trained on each set, and the AUROC of several distances is measured between its own test images
and the images of other sets, or of a class that was left out of training. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import roc_auc_score

import baseline
from baseline.inference.features import feature_layers, unit_rows
from baseline.training.frozen import embeddings
from baseline.vision.rng import seed_everything

QUIET = baseline.Progress()

PAIRS = (
    ("hymenoptera_256", "alpaca_256"),
    ("hymenoptera_256", "cifar10"),
    ("alpaca_256", "hymenoptera_256"),
    ("trashnet_256", "hymenoptera_256"),
    ("trashnet_256", "alpaca_256"),
    ("gtsrb_speed_tracks", "cifar10"),
    ("cifar10", "gtsrb_speed_tracks"),
    ("cifar10", "trashnet_256"),
)
"""Known images, and unknown ones."""

LEFT_OUT = (("trashnet_256", "plastic"), ("trashnet_256", "cardboard"), ("cifar10", "dog"), ("cifar10", "ship"),
            ("gtsrb_speed_tracks", "speed_120"))  # fmt: skip
"""Sets, and a class that is left out of training and becomes unknown."""


def read(sets: Path, name: str, per_class: int) -> pd.DataFrame:
    """Return an image table with at most this many images per class."""
    archive = sets / name / "images.tar.xz"
    place = archive if archive.exists() else sets / name
    table = baseline.load_images(place, progress=QUIET, preset="standard")[1]
    rows = table.groupby("label", group_keys=False).sample(frac=1, random_state=0).groupby("label").head(per_class)
    return rows.assign(split=None).sort_index().reset_index(drop=True)


def fit(table: pd.DataFrame, preset: str, unknown: pd.DataFrame, folder: Path) -> dict[str, np.ndarray]:
    """Train on a table, and return the features and probabilities of its splits and of the unknown images."""
    recipe = baseline.load_recipe("default").with_preset(preset)
    table = baseline.split(table, recipe)
    recipe, weights, _ = baseline.resolve(recipe, table)
    with seed_everything(0):
        unknown = unknown.assign(label=table["label"].iloc[0], split="test")  # not trained on
        dls = baseline.dataloaders(pd.concat([table, unknown], ignore_index=True), recipe, path=folder)
        learn = baseline.learner(dls, recipe, weights=weights, path=folder)
        baseline.train(learn, recipe, QUIET)
        parts = dict([*table.groupby("split")])
        parts["unknown"] = unknown
        features = {name: embeddings(learn, rows, recipe) for name, rows in parts.items()}
    classifier = feature_layers(learn.model)[1].eval()
    with torch.no_grad():
        for name in ("test", "unknown"):
            logits = classifier(torch.from_numpy(features[name].copy()).to(next(classifier.parameters()).device))
            features[f"{name} confidence"] = logits.softmax(1).max(1).values.cpu().numpy()
    features["labels"] = parts["train"]["label"].to_numpy()
    return features


def cosine_distance(features: np.ndarray, reference: np.ndarray, k: int) -> np.ndarray:
    """Return the mean cosine distance to the k nearest reference images."""
    similarity = unit_rows(features) @ unit_rows(reference).T
    return 1 - np.sort(similarity, axis=1)[:, -k:].mean(1)


def mahalanobis(features: np.ndarray, reference: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the distance to the nearest class mean, with one shrunken covariance for all classes (Lee et al. 2018)."""
    from sklearn.covariance import LedoitWolf

    means = np.stack([reference[labels == name].mean(0) for name in np.unique(labels)])
    centered = reference - means[np.searchsorted(np.unique(labels), labels)]
    precision = LedoitWolf().fit(centered).precision_
    changes = features[:, None] - means
    return np.einsum("ncf,fg,ncg->nc", changes, precision, changes).min(1)


def scores(features: dict[str, np.ndarray]) -> dict[str, float]:
    """Return the AUROC of each distance between test images and unknown ones."""
    rng, train = np.random.default_rng(0), features["train"]
    distances = {}
    for size in (128, 256, 512):
        subset = train[rng.permutation(len(train))[:size]]
        distances[f"nearest of {size}"] = [cosine_distance(features[name], subset, 1) for name in ("test", "unknown")]
    distances |= {
        f"mean of {k} nearest of all": [cosine_distance(features[name], train, k) for name in ("test", "unknown")]
        for k in (1, 5)
    }
    distances["euclidean, nearest"] = [
        np.sqrt(np.maximum((features[n] ** 2).sum(1)[:, None] - 2 * features[n] @ train.T + (train**2).sum(1), 0)).min(
            1
        )
        for n in ("test", "unknown")
    ]
    distances["Mahalanobis"] = [mahalanobis(features[n], train, features["labels"]) for n in ("test", "unknown")]
    distances["1 - confidence"] = [1 - features[f"{name} confidence"] for name in ("test", "unknown")]
    truth = np.repeat([0, 1], [len(part) for part in distances["Mahalanobis"]])
    return {name: float(roc_auc_score(truth, np.concatenate(parts))) for name, parts in distances.items()}


def cases(sets: Path, per_class: int) -> Iterator[tuple[str, pd.DataFrame, pd.DataFrame]]:
    """Yield the name of each case, its known images, and its unknown ones."""
    tables = {name: read(sets, name, per_class) for name in sorted({name for pair in PAIRS for name in pair})}
    for known, strange in PAIRS:
        yield (
            f"{known} / {strange}",
            tables[known],
            tables[strange].sample(min(300, len(tables[strange])), random_state=0),
        )
    for known, name in LEFT_OUT:
        is_left_out = tables[known]["label"] == name
        rest = tables[known][~is_left_out].reset_index(drop=True)
        yield f"{known} / its class {name}", rest, tables[known][is_left_out]


def main() -> None:
    """Measure every case and print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("sets", type=Path)
    parser.add_argument("--preset", default="instant")
    parser.add_argument("--per-class", type=int, default=120)
    options = parser.parse_args()
    rows, start = {}, time.perf_counter()
    with TemporaryDirectory() as folder:
        for name, known, unknown in cases(options.sets, options.per_class):
            rows[name] = scores(fit(known, options.preset, unknown, Path(folder)))
            print(name, {key: round(value, 3) for key, value in rows[name].items()}, flush=True)
    table = pd.DataFrame(rows).T
    table.loc["mean"] = table.mean()
    print("\n| known / unknown | " + " | ".join(table) + " |\n|---" + "|---" * len(table.columns) + "|")
    for name, values in table.iterrows():
        print(f"| {name} | " + " | ".join(f"{value:.3f}" for value in values) + " |")
    print(f"\n{time.perf_counter() - start:.0f} s, preset {options.preset}")


if __name__ == "__main__":
    main()
