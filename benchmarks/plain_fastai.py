"""The 2020 article's recipe in plain fastai 2, on the photos, split, body and image size of a finished baseline run.

    python benchmarks/plain_fastai.py runs/mine

What is the same: the training, valid and test photos (read from the run's manifest), the body and its ImageNet
weights, the image size and the batch size. What is fastai's: everything else. Body frozen by `freeze` for three
epochs at the rate of `lr_find`, then all layers for three epochs at `slice(1e-6, 1e-4)`, then `tta`.
Prints one JSON object: accuracies (0-1) on the test split and seconds by part.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import fastai.callback.all  # noqa: F401  # gives Learner fit_one_cycle, lr_find and tta
import pandas as pd
import torch
from fastai.data.transforms import Normalize
from fastai.vision.all import (
    CategoryBlock,
    ColReader,
    DataBlock,
    ImageBlock,
    Resize,
    accuracy,
    aug_transforms,
    set_seed,
    vision_learner,
)

import baseline
from baseline.learners import load_weights
from baseline.save import read_manifest
from baseline.weights import find_weights, normalisation


def main(run: Path) -> None:
    manifest = read_manifest(run)
    recipe = baseline.Recipe(**manifest["recipe"])
    table = pd.read_csv(run / "split.csv")
    set_seed(recipe.seed)
    seconds: dict[str, float] = {}
    began = last = time.perf_counter()

    def lap(name: str) -> None:
        nonlocal last
        now = time.perf_counter()
        seconds[name], last = round(now - last, 1), now

    rows = table[table["split"] != "test"].reset_index(drop=True)
    block = DataBlock(
        blocks=(ImageBlock, CategoryBlock),
        get_x=ColReader("path"),
        get_y=ColReader("label"),
        splitter=lambda frame: (
            frame.index[frame["split"] == "train"].tolist(),
            frame.index[frame["split"] == "valid"].tolist(),
        ),
        item_tfms=Resize(recipe.image_size),
        batch_tfms=aug_transforms(),
    )
    dls = block.dataloaders(rows, bs=recipe.batch_size)
    learn = plain_learner(dls, recipe.arch)
    lap("data and network")
    rate = learn.lr_find(show_plot=False).valley
    lap("lr_find")
    learn.fit_one_cycle(3, rate)
    lap("3 epochs frozen")
    learn.unfreeze()
    learn.fit_one_cycle(3, slice(1e-6, 1e-4))
    lap("3 epochs unfrozen")
    test = dls.test_dl(table[table["split"] == "test"].reset_index(drop=True), with_labels=True)
    plain, targets = learn.get_preds(dl=test)
    lap("predict")
    mean, _ = learn.tta(dl=test)
    lap("tta")
    seconds["total"] = round(time.perf_counter() - began, 1)
    hits = {name: float((out.argmax(1) == targets).float().mean()) for name, out in (("plain", plain), ("tta", mean))}
    print(json.dumps({"accuracy": hits, "lr": float(rate), "seconds": seconds, "threads": torch.get_num_threads()}))


def plain_learner(dls, arch: str):
    """fastai's own vision_learner; only the weights' file is ours, because timm would ask a hub for them."""
    dls.add_tfms([Normalize.from_stats(*normalisation(arch))], "after_batch")
    learn = vision_learner(dls, arch, pretrained=False, normalize=False, metrics=accuracy)
    load_weights(learn.model[0].model, find_weights(arch), needed=("",))
    learn.freeze()
    return learn


if __name__ == "__main__":
    main(Path(sys.argv[1]))
