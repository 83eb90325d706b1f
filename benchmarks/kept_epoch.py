"""Compares rules for the epoch that a run keeps, by the accuracy of all its epochs on test images.

    python benchmarks/kept_epoch.py hymenoptera_256:20 cifar10:100 --preset standard --seeds 3 --size 96

FOLDER:N takes N images per class for training and validation, a tenth of them for validation, and at most 100 other
images per class for testing, as in `last_stage.py`. Trains the stages of the preset, predicts the valid and test images
with the weights of every epoch, and prints the accuracy on the test images of the epoch that each rule keeps: the best
on valid images; the last of its stage if it is within one standard error of the best and better than earlier stages,
else the best (the rule of `baseline`); and the last. Runs already in the file are skipped.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import numpy as np
import typer
from last_stage import load_table
from torch import Tensor, nn

import baseline
from baseline.training.state import BestWeights
from baseline.vision.copy_weights import clone_weights
from baseline.vision.rng import seed_everything

RULES = ("best", "last if close", "last")


def run(data: str, preset: str, seed: int, size: int) -> list[dict[str, Any]]:
    """Train once; return for each epoch the accuracy and loss on valid images and the accuracy on test images."""
    recipe, table = load_table(data, seed, size)
    stages = baseline.load_images(data.rpartition(":")[0], preset=preset, progress=baseline.Progress())[0].stages
    recipe, weights, _ = baseline.resolve(recipe.changed(stages=stages), table)
    networks: list[dict[str, Tensor]] = []
    offer = BestWeights.offer

    def offer_copy(best: BestWeights, *arguments: Any) -> bool:
        networks.append(clone_weights(best.model))
        return offer(best, *arguments)

    BestWeights.offer = offer_copy
    try:
        with seed_everything(recipe.seed):
            learn = baseline.learner(baseline.dataloaders(table, recipe), recipe, weights=weights)
            history = baseline.train(learn, recipe)
    finally:
        BestWeights.offer = offer
    epochs = []
    for network, stage in zip(networks, history.epochs["stage"], strict=True):
        learn.model.load_state_dict(network)
        rows = baseline.predict(learn, table, views=(), splits=("valid", "test"))
        rows["correct"] = rows["label"] == rows["predicted"]
        valid, test = (rows[rows["split"] == split] for split in ("valid", "test"))
        facts = {"stage": int(stage), "n_valid": len(valid), "valid_loss": float(valid["loss"].mean())}
        accuracies = {f"{name}_acc": float(part["correct"].mean()) for name, part in (("valid", valid), ("test", test))}
        epochs.append(facts | accuracies)
    return epochs


def kept(epochs: list[dict[str, Any]], rule: str) -> int:
    """Return the index of the epoch that a rule keeps."""
    scores = [(epoch["valid_acc"], -epoch["valid_loss"]) for epoch in epochs]
    if rule == "last":
        return len(epochs) - 1
    if rule == "best":
        return scores.index(max(scores))
    choice, weights = -1, BestWeights(SimpleNamespace(model=nn.Identity()))
    for number, epoch in enumerate(epochs):
        is_last = epoch["stage"] not in [later["stage"] for later in epochs[number + 1 :]]
        accuracy, images = epoch["valid_acc"], epoch["n_valid"]
        error = np.sqrt(accuracy * (1 - accuracy) / max(1, images - 1)) if is_last else np.nan
        if weights.offer(accuracy, epoch["valid_loss"], images, epoch["stage"], error):
            choice = number
    return choice


def summarize(runs: list[dict[str, Any]]) -> None:
    """Print a row per set and preset, and for each rule the mean difference to the best on valid images."""
    accuracy = {
        rule: np.array([one["epochs"][kept(one["epochs"], rule)]["test_acc"] for one in runs]) for rule in RULES
    }
    print(f"\n| set | valid images | {' | '.join(RULES)} |\n|{'---|' * (len(RULES) + 2)}")
    for data in dict.fromkeys(one["data"] for one in runs):
        rows = [at for at, one in enumerate(runs) if one["data"] == data]
        cells = [", ".join(f"{100 * accuracy[rule][at]:.1f}" for at in rows) + "%" for rule in RULES]
        print(f"| {Path(data).name} | {runs[rows[0]]['epochs'][0]['n_valid']} | {' | '.join(cells)} |")
    for rule in RULES[1:]:
        difference = 100 * (accuracy[rule] - accuracy["best"])
        better, worse = (int((sign * difference > 1e-9).sum()) for sign in (1, -1))
        print(f"{rule} - best: {difference.mean():+.2f} points, better in {better}, worse in {worse} of {len(runs)}")


def main(
    sets: Annotated[list[str], typer.Argument(help="FOLDER:N or NAME:N, N images per class.")],
    preset: str = "quick",
    seeds: int = 3,
    size: Annotated[int, typer.Option(help="Image size in pixels.")] = 96,
    out: Annotated[Path, typer.Option(help="JSON lines file with all runs.")] = Path("kept_epoch.jsonl"),
) -> None:
    """Train on every set and print the table."""
    runs = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    wanted = [{"data": data, "seed": seed, "size": size, "preset": preset} for seed in range(seeds) for data in sets]
    for facts in wanted:
        if not any(facts.items() <= other.items() for other in runs):
            runs.append({**facts, "epochs": run(facts["data"], preset, facts["seed"], size)})
            with out.open("a") as file:
                file.write(json.dumps(runs[-1]) + "\n")
    summarize([one for facts in wanted for one in runs if facts.items() <= one.items()])


if __name__ == "__main__":
    typer.run(main)
