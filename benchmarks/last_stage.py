"""Compares variants of the last stage of the preset quick: layers, rate, steps, images per step, precision, averages.

    python benchmarks/last_stage.py hymenoptera_256:100 cifar10:100 --variants float32,bfloat16 --seeds 3
    python benchmarks/last_stage.py hymenoptera_256:20 trashnet_256:20 --variants probe,steps=100,steps=50,batch=8
    python benchmarks/last_stage.py hymenoptera_256:20 trashnet_256:20 --variants quick,trains=0.33,lr=4e-4,ema=0.99

FOLDER:N takes N images per class for training and validation, a tenth of them for validation, and at most 100 other
images per class for testing: of the test split, or of the validation split of a set without one. Every variant starts
from the same logistic regression on the same features, with which `probe` ends. Prints the accuracy on the test images
without TTA of the epoch that is kept and of the last one, the CPU seconds of the last stage, and the mean differences
to the first variant with their 95% intervals over all sets and seeds; runs already in the file are skipped.

`quick` is the preset itself. With its weights, the benchmark also measures test-time augmentation (`tta`: used always;
`tta, if valid gains`: as a run decides), and `wise`: the mean of the weights before and after the last stage (WiSE-FT),
in the proportion of eleven that is the best on the validation images, by accuracy and then by loss.
"""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
import typer
from fastai.learner import Learner
from scipy.stats import t

import baseline
from baseline.recipe.schema import Recipe
from baseline.training import stages
from baseline.vision.copy_weights import clone_weights
from baseline.vision.rng import seed_everything

TEST_IMAGES = 100
"""Most test images per class."""


def load_table(data: str, seed: int, size: int) -> tuple[Recipe, pd.DataFrame]:
    """Return the recipe of the quick preset and the image table with splits, drawn with the seed."""
    folder, _, count = data.rpartition(":")
    recipe, table = baseline.load_images(folder, progress=baseline.Progress())
    given = [name for name in ("test", "valid") if (table["split"] == name).any()]
    rng, rows = np.random.default_rng(seed), []
    for _, group in table.groupby("label", sort=True):
        shuffled = group.iloc[rng.permutation(len(group))]
        is_test = shuffled["split"] == given[0] if given else np.arange(len(group)) < min(TEST_IMAGES, len(group) // 3)
        rows.append(shuffled[is_test][:TEST_IMAGES].assign(split="test"))
        others = shuffled[~is_test][: int(count)]
        valid = max(1, round(len(others) / 10))
        rows += [others[:valid].assign(split="valid"), others[valid:].assign(split="train")]
    return recipe.changed(seed=seed, image_size=size, audit="none", tta=()), pd.concat(rows, ignore_index=True)


def train_variant(recipe: Recipe, table: pd.DataFrame, variant: str) -> dict[str, Any]:
    """Train once; return the accuracy on the test images and the CPU seconds of the last stage."""
    name, _, number = variant.partition("=")
    probe, last = recipe.stages
    if name in ("trains", "lr", "steps"):
        value: Any = "all" if number == "all" else int(number) if name == "steps" else float(number)
        last = dataclasses.replace(last, **{name: value})
    recipe = recipe.changed(stages=(probe,) if name == "probe" else (probe, last))
    recipe = recipe.changed(batch_size=int(number)) if name == "batch" else recipe
    recipe = recipe.changed(ema=float(number)) if name == "ema" else recipe
    recipe, weights, _ = baseline.resolve(recipe, table)
    seconds: list[float] = []
    last_accuracy: list[float] = []
    before: dict[str, torch.Tensor] = {}
    fit_stage, has_bfloat16_steps = stages.fit_stage, stages.has_bfloat16_steps

    def timed(*arguments: Any) -> None:
        start = time.process_time()
        fit_stage(*arguments)
        seconds.append(time.process_time() - start)
        if len(seconds) == 1:
            before.update(clone_weights(learn.model))
        if len(seconds) == len(recipe.stages):
            last_accuracy.append(test_accuracy(learn, table))

    vars(stages)["fit_stage"] = timed
    if name in ("float32", "bfloat16"):
        vars(stages)["has_bfloat16_steps"] = lambda _: name == "bfloat16"
    try:
        with seed_everything(recipe.seed):
            learn = baseline.learner(baseline.dataloaders(table, recipe), recipe, weights=weights)
            history = baseline.train(learn, recipe)
    finally:
        vars(stages).update(fit_stage=fit_stage, has_bfloat16_steps=has_bfloat16_steps)
    best = int(history.epochs[history.epochs["best"]]["stage"].iloc[-1])
    accuracy = test_accuracy(learn, table)
    counts = table["split"].value_counts()
    extra = measure_averages(learn, table, before) if name == "quick" else {}
    return {**extra, "accuracy": accuracy, "last": last_accuracy[0], "cpu": round(seconds[-1], 1), "best": best,
            "epochs": recipe.stages[-1].epochs, "batch": recipe.training.batch_size,
            "train": int(counts["train"]), "test": int(counts["test"])}  # fmt: skip


def measure_averages(learn: Learner, table: pd.DataFrame, before: dict[str, torch.Tensor]) -> dict[str, float]:
    """Return the accuracy on the test images with TTA, and of means of the weights before and after the last stage."""
    accuracies = {}
    for name, choice in (("tta", "always"), ("tta, if valid gains", "auto")):
        rows = baseline.predict(learn, table, views=("flip",), splits=("valid", "test"), tta_choice=choice)
        test = rows[rows["split"] == "test"]
        accuracies[name] = float((test["label"] == test["predicted"]).mean())
    after, scores = clone_weights(learn.model), {}
    for tenths in range(11):
        share = tenths / 10
        learn.model.load_state_dict({
            key: torch.lerp(before[key], value, share) if value.is_floating_point() else value
            for key, value in after.items()
        })  # fmt: skip
        valid = baseline.predict(learn, table, views=(), splits=("valid",))
        right = float((valid["label"] == valid["predicted"]).mean())
        scores[right, -float(valid["loss"].mean())] = share, test_accuracy(learn, table)
    learn.model.load_state_dict(after)
    accuracies["share"], accuracies["wise"] = scores[max(scores)]
    return accuracies


def test_accuracy(learn: Learner, table: pd.DataFrame) -> float:
    """Return the accuracy of the current weights on the test images, without TTA."""
    predictions = baseline.predict(learn, table, views=(), splits=("test",))
    return float((predictions["label"] == predictions["predicted"]).mean())


def mean_difference(points: pd.Series) -> str:
    """Return the mean of differences and its 95% interval."""
    half = t.ppf(0.975, len(points) - 1) * points.std() / np.sqrt(len(points))
    return f"{points.mean():+.2f} points ({points.mean() - half:+.2f} to {points.mean() + half:+.2f})"


def summarize(runs: pd.DataFrame, variants: list[str]) -> None:
    """Print a row per set and the paired differences to the first variant."""
    print(f"\n| set | {' | '.join(variants)} |\n|{'---|' * (len(variants) + 1)}")
    for data, group in runs.groupby("data", sort=False):
        cells = []
        for variant in variants:
            rows = group[group["variant"] == variant]
            best, last = (", ".join(f"{100 * value:.1f}" for value in rows[name]) for name in ("accuracy", "last"))
            cells.append(f"{best}%; last {last}%; {rows['cpu'].mean():.1f} s")
        print(f"| {data}, {group['train'].iloc[0]} train, {group['test'].iloc[0]} test | {' | '.join(cells)} |")
    for name in ("accuracy", "last"):
        wide = runs.pivot(index=["data", "seed"], columns="variant", values=name).dropna()
        for variant in variants[1:] if len(wide) > 1 else ():
            difference = 100 * (wide[variant] - wide[variants[0]])
            print(f"{name}, {variant} - {variants[0]}: {mean_difference(difference)}, {len(wide)} pairs")
    if "wise" in runs:
        quick = runs[runs["variant"] == "quick"]
        for name in ("tta", "tta, if valid gains", "wise"):
            difference = 100 * (quick[name] - quick["accuracy"])
            counts = f"better in {(difference > 1e-9).sum()}, worse in {(difference < -1e-9).sum()} of {len(quick)}"
            print(f"{name} - quick: {mean_difference(difference)}, {counts}")
        print(f"wise: mean share of the weights after the last stage {quick['share'].mean():.2f}")


def main(
    sets: Annotated[list[str], typer.Argument(help="FOLDER:N or NAME:N, N images per class.")],
    variants: Annotated[
        str, typer.Option(help="quick, probe, float32, bfloat16, or trains, lr, steps, batch, ema=VALUE; with commas.")
    ],
    seeds: int = 3,
    size: Annotated[int, typer.Option(help="Image size in pixels.")] = 128,
    out: Annotated[Path, typer.Option(help="JSON lines file with all runs.")] = Path("last_stage.jsonl"),
) -> None:
    """Train every variant on every set and print the table."""
    runs = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    names = variants.split(",")
    for seed in range(seeds):
        for data in sets:
            recipe, table = load_table(data, seed, size)
            for variant in names:
                run = {"data": Path(data).name, "size": size, "seed": seed, "variant": variant}
                if any(run.items() <= other.items() for other in runs):
                    continue
                runs.append({**run, **train_variant(recipe, table, variant)})
                with out.open("a") as file:
                    file.write(json.dumps(runs[-1]) + "\n")
                print(runs[-1], flush=True)
    frame = pd.DataFrame(runs)
    frame = frame[frame["data"].isin([Path(data).name for data in sets]) & (frame["size"] == size)]
    summarize(frame[frame["variant"].isin(names) & (frame["seed"] < seeds)], names)


if __name__ == "__main__":
    typer.run(main)
