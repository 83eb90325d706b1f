"""Compares baseline with other libraries on the same images, splits, backbone, ImageNet weights and image size.

    python benchmarks/peers.py cifar10 --images-per-class 250 --image-size 128 --seeds 3

Each peer runs in its own process, alternating for every seed. Prints medians over the seeds: test accuracy with and
without TTA, total seconds, seconds until the final validation accuracy of plain fastai was reached (interpolated), peak
memory, and ratios to plain fastai. `--out` stores every run as JSON lines.

| peer | what it is |
|---|---|
| baseline-quick and others | `make_baseline` with that preset and its own image size, audit included, nothing cached |
| fastai-fine-tune | plain fastai's `fine_tune(3)` |
| fastai | the 2020 article's recipe: freeze, lr_find, three epochs, unfreeze, three at slice(1e-6, 1e-4), tta |
| fastai-bf16 | the same with fastai's ChannelsLast and bfloat16 autocast on the CPU, which its own callback lacks |
| pytorch | the loop of PyTorch's transfer-learning tutorial (SGD, StepLR, whole network), 6 epochs, batches of 64 |
| timm | timm's loader, augmentation, AdamW and cosine schedule, 6 epochs |
| sklearn | logistic regression on the backbone's features |
| autogluon | AutoGluon's `MultiModalPredictor` with its own settings, 20 epochs (see `automl_peers.py`) |
| lightly-train | LightlyTrain's `train_image_classification`, 20 epochs (see `automl_peers.py`) |

The last two run only where they are named, each in an environment of its own:

    python -m venv ag && ag/bin/pip install autogluon.multimodal
    python -m venv lt && lt/bin/pip install "lightly-train[timm]"
    python benchmarks/peers.py cifar10 --peers autogluon,lightly-train --environments autogluon=ag,lightly-train=lt
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer

EPOCHS = 6


class Run:
    """Time and validation accuracy of one peer after each epoch."""

    def __init__(self) -> None:
        self.start = time.perf_counter()
        self.curve: list[tuple[float, float]] = []

    def record(self, accuracy: float) -> None:
        self.curve.append((time.perf_counter() - self.start, float(accuracy)))


def load_table(data: str, images_per_class: int, image_size: int, seed: int, test_images: int) -> tuple[Any, Any]:
    """Return the image table with its splits, and the recipe, for all peers."""
    import baseline

    recipe, table = baseline.load_images(data, images_per_class=images_per_class, progress=baseline.Progress())
    recipe = recipe.changed(image_size=image_size, seed=seed, arch="tf_efficientnet_lite0", batch_size=64)
    table = baseline.split(baseline.audit(table).usable, recipe)
    if test_images:
        test = table["split"] == "test"
        table = table[~test | table.index.isin(table[test].sample(test_images, random_state=0).index)]
    return table.reset_index(drop=True), recipe


# ---- the peers ------------------------------------------------------------------------------------------------------


def run_baseline(table: pd.DataFrame, recipe: Any, run: Run, preset: str) -> dict[str, float]:
    import baseline

    images = table[["path", "label", "split"]]
    with tempfile.TemporaryDirectory() as folder:
        result = baseline.make_baseline(
            images,
            recipe.name,
            preset=preset,
            seed=recipe.seed,
            arch=recipe.model.arch,
            cache_gb=0.0,
            out=Path(folder) / "run",
            progress=baseline.Progress(),
        )
    seconds = result.manifest["seconds"]
    at = sum(seconds[name] for name in ("data", "audit", "weights", "decoding", "estimate"))
    rows = result.history.epochs
    for number, stage in enumerate(result.history.stages, 1):
        epochs = rows[rows["stage"] == number]
        passed = at + stage["seconds"] - epochs["seconds"].sum()
        for epoch in epochs.itertuples():
            passed += epoch.seconds
            run.curve.append((passed, epoch.valid_accuracy))
        at += stage["seconds"]
    return {kind: result.metrics["test"][kind]["accuracy"] for kind in ("plain", "tta")}


def run_fastai(
    table: pd.DataFrame, recipe: Any, run: Run, bfloat16: bool = False, fine_tune: bool = False
) -> dict[str, float]:
    import fastai.callback.all  # noqa: F401  # gives Learner fit_one_cycle, lr_find and tta
    import torch
    from fastai.callback.channelslast import ChannelsLast
    from fastai.callback.core import Callback
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

    from baseline.vision.copy_weights import copy_weights
    from baseline.vision.weights import find_weights, normalization

    class Autocast(Callback):
        def before_batch(self) -> None:
            self.format = torch.autocast("cpu", torch.bfloat16)
            self.format.__enter__()

        def after_pred(self) -> None:
            self.format.__exit__(None, None, None)
            self.learn.pred = self.pred.float()

    class Watch(Callback):
        order = 60

        def after_epoch(self) -> None:
            if self.learn.epoch_is_real:
                run.record(self.recorder.log[3])

    set_seed(recipe.seed)
    rows = table[table["split"] != "test"].reset_index(drop=True)
    block = DataBlock(
        blocks=(ImageBlock, CategoryBlock),
        get_x=ColReader("path"),
        get_y=ColReader("label"),
        splitter=lambda frame: tuple(frame.index[frame["split"] == name].tolist() for name in ("train", "valid")),
        item_tfms=Resize(recipe.model.image_size),
        batch_tfms=[*aug_transforms(), Normalize.from_stats(*normalization(recipe.model.arch))],
    )
    dls = block.dataloaders(rows, bs=recipe.training.batch_size)
    extra = [ChannelsLast(), Autocast()] if bfloat16 else []
    learn = vision_learner(
        dls, recipe.model.arch, pretrained=False, normalize=False, metrics=accuracy, cbs=[*extra, Watch()]
    )
    copy_weights(learn.model[0].model, find_weights(recipe.model.arch), needed=("",))
    learn.freeze()
    learn.epoch_is_real = False
    with learn.no_bar(), learn.no_logging():
        rate = None if fine_tune else learn.lr_find(show_plot=False).valley
        learn.epoch_is_real = True
        if fine_tune:
            learn.fine_tune(EPOCHS // 2)
        else:
            learn.fit_one_cycle(EPOCHS // 2, rate)
            learn.unfreeze()
            learn.fit_one_cycle(EPOCHS - EPOCHS // 2, slice(1e-6, 1e-4))
        learn.epoch_is_real = False  # predicting has epochs, too
        test = dls.test_dl(table[table["split"] == "test"].reset_index(drop=True), with_labels=True)
        plain, targets = learn.get_preds(dl=test)
        mean, _ = learn.tta(dl=test)
    return {name: float((out.argmax(1) == targets).float().mean()) for name, out in (("plain", plain), ("tta", mean))}


def loaders(table: pd.DataFrame, transforms: dict[str, Any], batch_size: int) -> dict[str, Any]:
    """torch loaders per split, with torchvision's or timm's transforms."""
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset

    classes = sorted(table["label"].unique())

    class Images(Dataset):
        def __init__(self, rows: pd.DataFrame, transform: Any) -> None:
            self.paths, self.labels = list(rows["path"]), [classes.index(label) for label in rows["label"]]
            self.transform = transform

        def __len__(self) -> int:
            return len(self.paths)

        def __getitem__(self, item: int) -> tuple[Any, int]:
            with Image.open(self.paths[item]) as image:
                return self.transform(image.convert("RGB")), self.labels[item]

    return {
        split: DataLoader(
            Images(table[table["split"] == split], transforms["train" if split == "train" else "eval"]),
            batch_size,
            shuffle=split == "train",
        )
        for split in ("train", "valid", "test")
    }


def whole_network(recipe: Any, classes: int) -> Any:
    import timm

    from baseline.vision.copy_weights import copy_weights
    from baseline.vision.weights import find_weights

    model = timm.create_model(recipe.model.arch, num_classes=classes)
    copy_weights(model, find_weights(recipe.model.arch), needed=("conv_stem", "bn1", "blocks", "conv_head", "bn2"))
    return model


def accuracy_on(model: Any, loader: Any) -> float:
    import torch

    model.eval()
    with torch.inference_mode():
        hits = [(model(images).argmax(1) == labels).float().sum() for images, labels in loader]
    return float(sum(hits) / len(loader.dataset))


def fit(model: Any, loaders_: dict[str, Any], optimizer: Any, scheduler: Any, run: Run) -> dict[str, float]:
    """A plain loop over epochs."""
    import torch

    for epoch in range(EPOCHS):
        model.train()
        for images, labels in loaders_["train"]:
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
        scheduler(epoch + 1)
        run.record(accuracy_on(model, loaders_["valid"]))
    return {"plain": accuracy_on(model, loaders_["test"])}


def run_pytorch(table: pd.DataFrame, recipe: Any, run: Run) -> dict[str, float]:
    import torch
    from torchvision import transforms

    from baseline.vision.weights import normalization

    torch.manual_seed(recipe.seed)
    after = [transforms.ToTensor(), transforms.Normalize(*normalization(recipe.model.arch))]
    size = recipe.model.image_size
    both = {
        "train": transforms.Compose([transforms.RandomResizedCrop(size), transforms.RandomHorizontalFlip(), *after]),
        "eval": transforms.Compose([transforms.Resize(round(size * 256 / 224)), transforms.CenterCrop(size), *after]),
    }
    model = whole_network(recipe, table["label"].nunique())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=7, gamma=0.1)
    return fit(model, loaders(table, both, recipe.training.batch_size), optimizer, lambda _: schedule.step(), run)


def run_timm(table: pd.DataFrame, recipe: Any, run: Run) -> dict[str, float]:
    import torch
    from timm.data import create_transform
    from timm.optim import create_optimizer_v2
    from timm.scheduler import create_scheduler_v2

    from baseline.vision.weights import normalization

    torch.manual_seed(recipe.seed)
    mean, std = normalization(recipe.model.arch)
    size = (3, recipe.model.image_size, recipe.model.image_size)
    both = {
        "train": create_transform(size, is_training=True, mean=mean, std=std, interpolation="bicubic"),
        "eval": create_transform(size, mean=mean, std=std, interpolation="bicubic"),
    }
    model = whole_network(recipe, table["label"].nunique())
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.05)
    schedule, _ = create_scheduler_v2(optimizer, sched="cosine", num_epochs=EPOCHS, warmup_epochs=1, warmup_lr=1e-5)
    return fit(model, loaders(table, both, recipe.training.batch_size), optimizer, schedule.step, run)


def run_sklearn(table: pd.DataFrame, recipe: Any, run: Run) -> dict[str, float]:
    import numpy as np
    import torch
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from timm.data import create_transform

    from baseline.vision.weights import normalization

    mean, std = normalization(recipe.model.arch)
    size = (3, recipe.model.image_size, recipe.model.image_size)
    plain = create_transform(size, mean=mean, std=std, interpolation="bicubic", crop_pct=1.0)
    parts = loaders(table, {"train": plain, "eval": plain}, recipe.training.batch_size)
    model = whole_network(recipe, 2).eval()
    model.reset_classifier(0)
    features = {}
    with torch.inference_mode():
        for split, loader in parts.items():
            pairs = [(model(images).numpy(), labels.numpy()) for images, labels in loader]
            features[split] = tuple(np.concatenate(part) for part in zip(*pairs, strict=True))
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000)).fit(*features["train"])
    run.record(model.score(*features["valid"]))
    return {"plain": model.score(*features["test"])}


def run_elsewhere(table: pd.DataFrame, recipe: Any, run: Run, library: str, environment: Path) -> dict[str, float]:
    """Train a library of another environment, on the same images and weights; imports count."""
    import torch

    from baseline.vision.weights import normalization

    mean, std = normalization(recipe.model.arch)
    model = whole_network(recipe, 2)
    model.reset_classifier(0)
    settings = {"seed": recipe.seed, "image_size": recipe.model.image_size, "arch": recipe.model.arch}
    config = {"input_size": [3, 224, 224], "mean": mean, "std": std}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "weights").mkdir()
        torch.save(model.state_dict(), folder / "weights" / "pytorch_model.bin")
        (folder / "weights" / "config.json").write_text(json.dumps(
            {"architecture": recipe.model.arch, "num_features": model.num_features, "pretrained_cfg": config}
        ))  # fmt: skip
        (folder / "settings.json").write_text(json.dumps(settings | {"mean": mean, "std": std}))
        table[["path", "label", "split"]].to_csv(folder / "images.csv", index=False)
        script = Path(__file__).with_name("automl_peers.py")
        command = [environment / "bin" / "python", script, library, folder]
        run.start = time.perf_counter()
        line = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]
    accuracy = json.loads(line)
    run.record(accuracy["valid"])
    return {"plain": accuracy["test"]}


PEERS: dict[str, Callable[..., dict[str, float]]] = {
    "baseline-instant": partial(run_baseline, preset="instant"),
    "baseline-quick": partial(run_baseline, preset="quick"),
    "baseline-standard": partial(run_baseline, preset="standard"),
    "baseline-best": partial(run_baseline, preset="best"),
    "fastai": run_fastai,
    "fastai-bf16": partial(run_fastai, bfloat16=True),
    "fastai-fine-tune": partial(run_fastai, fine_tune=True),
    "pytorch": run_pytorch,
    "timm": run_timm,
    "sklearn": run_sklearn,
}

ELSEWHERE = ("autogluon", "lightly-train")
"""Peers that need an environment of their own."""


# ---- runs and medians --------------------------------------------------------------------------------------------


def run_peer(peer: str, settings: dict[str, Any], environment: Path | None) -> None:
    """Run one peer and print one line of JSON."""
    table, recipe = load_table(**settings)
    run = Run()
    trainer = partial(run_elsewhere, library=peer, environment=environment) if environment else PEERS[peer]
    accuracy = trainer(table, recipe, run)
    seconds = time.perf_counter() - run.start
    who = resource.RUSAGE_CHILDREN if environment else resource.RUSAGE_SELF
    memory = resource.getrusage(who).ru_maxrss / 1e6
    print(json.dumps({"peer": peer, "seed": settings["seed"], "test": accuracy, "seconds": round(seconds, 1),
                      "memory_gb": round(memory, 2), "curve": run.curve}))  # fmt: skip


def seconds_to(curve: list[tuple[float, float]], accuracy: float) -> float | None:
    """Return when the curve first reaches the accuracy, interpolated between epochs; None if never."""
    before = (0.0, 0.0)
    for at, value in curve:
        if value >= accuracy:
            share = (accuracy - before[1]) / max(value - before[1], 1e-9)
            return before[0] + share * (at - before[0])
        before = (at, value)
    return None


def summarize_peers(runs: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield one row per peer: medians over the seeds, and ratios to plain fastai with the same seed."""
    plain = {run["seed"]: run for run in runs if run["peer"] == "fastai"}
    for peer in dict.fromkeys(run["peer"] for run in runs):
        peer_runs = [run for run in runs if run["peer"] == peer]
        reached, ratios, totals = [], [], []
        for run in peer_runs:
            if (other := plain.get(run["seed"])) is not None:
                goal = other["curve"][-1][1]
                at, then = seconds_to(run["curve"], goal), seconds_to(other["curve"], goal)
                totals.append(run["seconds"] / other["seconds"])
                if at is not None and then is not None:
                    reached.append(at)
                    ratios.append(at / then)
        row = {
            "peer": peer,
            "seeds": len(peer_runs),
            "test": statistics.median(run["test"]["plain"] for run in peer_runs),
            "test, TTA": statistics.median(run["test"].get("tta", float("nan")) for run in peer_runs),
            "lowest": min(max(run["test"].values()) for run in peer_runs),
            "highest": max(max(run["test"].values()) for run in peer_runs),
            "seconds": statistics.median(run["seconds"] for run in peer_runs),
            "ratio of seconds": statistics.median(totals) if totals else float("nan"),
            "seconds to fastai's accuracy": statistics.median(reached)
            if len(reached) == len(peer_runs)
            else float("nan"),
            "ratio of seconds to accuracy": statistics.median(ratios)
            if len(ratios) == len(peer_runs)
            else float("nan"),
            "memory GB": statistics.median(run["memory_gb"] for run in peer_runs),
        }
        yield row


def main(
    data: str,
    images_per_class: int = 250,
    image_size: int = 128,
    seeds: int = 3,
    test_images: Annotated[int, typer.Option(help="A sample of the test split; 0 for all.")] = 0,
    peers: Annotated[str, typer.Option(help="Names separated by commas.")] = ",".join(PEERS),
    out: Annotated[Path | None, typer.Option(help="JSON lines file to append to.")] = None,
    environments: Annotated[
        str, typer.Option(help=f"Folders of virtual environments for {' and '.join(ELSEWHERE)}: NAME=FOLDER,...")
    ] = "",
    only: Annotated[str, typer.Option(hidden=True)] = "",
    seed: Annotated[int, typer.Option(hidden=True)] = 0,
) -> None:
    """Run the peers in alternation and print a table of medians."""
    settings = {
        "data": data,
        "images_per_class": images_per_class,
        "image_size": image_size,
        "test_images": test_images,
    }
    folders = {
        name: Path(folder) for name, _, folder in (part.partition("=") for part in environments.split(",") if part)
    }
    if lacking := [peer for peer in (only or peers).split(",") if peer in ELSEWHERE and peer not in folders]:
        raise typer.BadParameter(f"{lacking[0]} needs an environment of its own: --environments {lacking[0]}=FOLDER")
    if only:
        run_peer(only, {**settings, "seed": seed}, folders.get(only))
        return
    runs = [json.loads(line) for line in out.read_text().splitlines()] if out and out.exists() else []
    options = [f"--{key.replace('_', '-')}={value}" for key, value in settings.items() if key != "data"]
    for number in range(seeds):
        for peer in peers.split(","):
            if any(run["peer"] == peer and run["seed"] == number for run in runs):
                continue
            command = [sys.executable, __file__, data, *options, f"--only={peer}", f"--seed={number}"]
            command.append(f"--environments={environments}")
            line = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]
            runs.append(json.loads(line))
            print(line, file=sys.stderr, flush=True)
            if out:
                with out.open("a") as file:
                    file.write(line + "\n")
    print(pd.DataFrame(summarize_peers(runs)).to_string(index=False, float_format="{:.3f}".format))


if __name__ == "__main__":
    typer.run(main)
