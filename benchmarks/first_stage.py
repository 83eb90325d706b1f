"""Compares three starts of the quick preset: a probe alone, fine-tuned, and a head trained by gradient descent.

    python benchmarks/first_stage.py hymenoptera_256 trashnet_256 trashnet_256:25 cifar10:250 --seeds 3 --out runs.jsonl

FOLDER:N takes N images per class. Settings are those of the quick preset, without the audit. Prints a row per set: the
accuracy without TTA on test, or where there is no test split on valid, for each seed, and the mean CPU seconds of a
run. Runs already in the file are skipped.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer

import baseline
from baseline.recipe.schema import HEAD_STAGE, Stage

FINE_TUNE = Stage(0.55, 1, 2e-4, steps=100)

STARTS = {
    "logistic regression": (Stage("probe"),),
    "logistic regression, fine-tuned": (Stage("probe"), FINE_TUNE),
    "head by steps, fine-tuned": (HEAD_STAGE, FINE_TUNE),
}


def measure(data: str, start: str, seed: int) -> dict[str, object]:
    """Train once and return the accuracy and the CPU seconds of the whole run."""
    folder, _, count = data.rpartition(":") if data.rpartition(":")[2].isdecimal() else (data, "", "0")
    recipe = baseline.load_recipe("cifar10" if "cifar10" in folder else "default").with_preset("quick")
    recipe = recipe.changed(stages=STARTS[start], seed=seed, audit="none", images_per_class=int(count), tta=())
    start_seconds = time.process_time()
    with tempfile.TemporaryDirectory() as out:
        result = baseline.make_baseline(folder, recipe, out=Path(out) / "run", progress=baseline.Progress())
    split = "test" if "test" in result.metrics else "valid"
    accuracy = result.metrics[split]["tta"]["accuracy"]
    return {"set": Path(folder).stem + (f", {count} per class" if count != "0" else ""), "start": start, "seed": seed,
            "split": split, "images": result.metrics[split]["images"], "accuracy": accuracy,
            "cpu": round(time.process_time() - start_seconds, 1)}  # fmt: skip


def main(
    sets: list[str],
    seeds: int = 3,
    out: Annotated[Path, typer.Option(help="JSON lines file with all runs.")] = Path("first_stage.jsonl"),
) -> None:
    """Train every start on every set, seed by seed, and print the table."""
    runs = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    for seed in range(seeds):
        for data in sets:
            for start in STARTS:
                if any((run["data"], run["start"], run["seed"]) == (data, start, seed) for run in runs):
                    continue
                runs.append({"data": data, **measure(data, start, seed)})
                with out.open("a") as file:
                    file.write(json.dumps(runs[-1]) + "\n")
                print(runs[-1], flush=True)
    print(f"\n| set | {' | '.join(STARTS)} |\n|{'---|' * (len(STARTS) + 1)}")
    for data in sets:
        rows = [run for run in runs if run["data"] == data]
        cells = []
        for start in STARTS:
            runs_of_start = [run for run in rows if run["start"] == start]
            accuracies = ", ".join(f"{100 * run['accuracy']:.1f}" for run in runs_of_start)
            cells.append(f"{accuracies}%; {sum(run['cpu'] for run in runs_of_start) / len(runs_of_start):.0f} s")
        print(f"| {rows[0]['set']}, {rows[0]['images']:,} {rows[0]['split']} images | {' | '.join(cells)} |")


if __name__ == "__main__":
    typer.run(main)
