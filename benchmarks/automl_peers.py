"""Trains AutoGluon or LightlyTrain on given images, with given ImageNet weights, and prints their accuracy.

`benchmarks/peers.py` calls this with the Python of an environment that has the library, as neither of them can be
installed beside baseline:

    ENVIRONMENT/bin/python benchmarks/automl_peers.py autogluon FOLDER

The folder holds `images.csv` (path, label, split), `settings.json`, and in `weights/` the backbone without its
classifier, in timm's layout. All other settings are the defaults of the library. LightlyTrain trains for as many epochs
as AutoGluon, with one of warm-up, because its default of 100,000 steps is meant for a GPU.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import sys
import types
from pathlib import Path
from typing import Any

Rows = dict[str, list[dict[str, str]]]
"""Path and label of the images of each split."""

EPOCHS = 20
"""AutoGluon's default."""


def train_autogluon(rows: Rows, folder: Path, settings: dict[str, Any]) -> dict[str, float]:
    import pandas as pd
    from autogluon.multimodal import MultiModalPredictor

    tables = {split: pd.DataFrame(part) for split, part in rows.items()}
    predictor = MultiModalPredictor(label="label", eval_metric="accuracy", path=str(folder / "out"))
    predictor.fit(
        tables["train"],
        tuning_data=tables["valid"],
        seed=settings["seed"],
        hyperparameters={
            "model.names": ["timm_image"],
            "model.timm_image.checkpoint_name": str(folder / "weights"),
            "model.timm_image.image_size": settings["image_size"],
        },
    )
    return {split: predictor.evaluate(tables[split], metrics=["accuracy"])["accuracy"] for split in ("valid", "test")}


def train_lightly(rows: Rows, folder: Path, settings: dict[str, Any]) -> dict[str, float]:
    os.environ["LIGHTLY_TRAIN_EVENTS_DISABLED"] = "true"  # it reports its use over the internet
    import lightly_train
    import timm

    def forward_intermediates(self: Any, images: Any, **_: Any) -> list[Any]:
        return [self.forward_features(images)]

    @timm.models.register_model
    def complete_backbone(pretrained: bool = False, **options: Any) -> Any:
        """LightlyTrain 0.18 leaves out an EfficientNet's last convolution, and fails with 320 features of 1,280."""
        names = ("in_chans", "num_classes")
        model = timm.create_model(settings["arch"], **{name: options[name] for name in names if name in options})
        model.forward_intermediates = types.MethodType(forward_intermediates, model)
        return model

    classes = dict(enumerate(sorted({row["label"] for row in rows["train"]})))
    for split, part in rows.items():
        with (folder / f"{split}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("image_path", "label"), *((row["path"], row["label"]) for row in part)])
    epoch = len(rows["train"]) // 16  # its batch size
    lightly_train.train_image_classification(
        out=folder / "out",
        model="timm/complete_backbone",
        data={"train": folder / "train.csv", "val": folder / "valid.csv", "classes": classes},
        steps=EPOCHS * epoch,
        seed=settings["seed"],
        model_args={"backbone_weights": folder / "weights" / "pytorch_model.bin", "lr_warmup_steps": epoch},
        transform_args={
            "image_size": (settings["image_size"], settings["image_size"]),
            "normalize": {"mean": settings["mean"], "std": settings["std"]},
        },
        logger_args={"val_every_num_steps": epoch},
    )
    model = lightly_train.load_model(folder / "out" / "exported_models" / "exported_best.pt")

    def accuracy(part: list[dict[str, str]]) -> float:
        hits = 0
        for start in range(0, len(part), 64):
            batch = part[start : start + 64]
            outputs = model.predict_batch([row["path"] for row in batch])
            hits += sum(classes[int(out["labels"][0])] == row["label"] for out, row in zip(outputs, batch, strict=True))
        return hits / len(part)

    return {split: accuracy(rows[split]) for split in ("valid", "test")}


TRAINERS = {"autogluon": train_autogluon, "lightly-train": train_lightly}


def main(library: str, folder: Path) -> None:
    """Train with the library and print one line of JSON; everything else goes to standard error."""
    rows: Rows = {"train": [], "valid": [], "test": []}
    with (folder / "images.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            rows[row.pop("split")].append(row)
    with contextlib.redirect_stdout(sys.stderr):
        accuracy = TRAINERS[library](rows, folder, json.loads((folder / "settings.json").read_text()))
    print(json.dumps(accuracy))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
