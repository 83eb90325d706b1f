"""Compares which layers to train after the head: stages on several datasets, everything else the same.

    python benchmarks/unfreezing.py trashnet_256 hymenoptera_256 gtsrb_speed_tracks/metadata.csv:group cifar10:250

Prints the accuracy with TTA per dataset and plan (0-1; on test, or on the validation split if there is no test split)
and the seconds of training, medians over `--seeds`. `NAME:group` splits by groups; `NAME:N` uses N training images per
class.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer

import baseline
from baseline import Stage

FLIP = {"flip": True, "rotate": 0.0, "zoom": 1.0, "lighting": 0.0, "warp": 0.0}
STRONG = {"flip": True, "rotate": 10.0, "zoom": 1.1, "lighting": 0.2, "warp": 0.2, "probability": 0.75}
SHORT = Stage("head", 2, "find")
LONG = Stage("head", 10, "find", views=("flip",))
PLANS: dict[str, tuple[tuple[Stage, ...], dict[str, Any]]] = {
    "head 10": ((LONG,), FLIP),
    "head 10, all, more augmented": ((LONG, Stage("all", 3, "find")), STRONG),
    "head 2, last 1/3": ((SHORT, Stage(0.33, 3, 3e-4)), FLIP),
    "head 2, last 55%": ((SHORT, Stage(0.55, 3, 3e-4)), FLIP),
    "head 10, last 55%": ((LONG, Stage(0.55, 3, 3e-4)), FLIP),
    "head 2, all": ((SHORT, Stage("all", 3, 3e-4)), FLIP),
    "head 2, last 55%, all": ((SHORT, Stage(0.55, 2, 3e-4), Stage("all", 2, (2e-5, 2e-4))), FLIP),
}


def train_plan(
    data: str, stages: tuple[Stage, ...], augment: dict[str, Any], image_size: int, seed: int
) -> dict[str, float]:
    name, _, option = data.partition(":")
    changes = {"split": "group"} if option == "group" else {"images_per_class": int(option)} if option else {}
    recipe = baseline.load_recipe("default").changed(stages=stages, presets={}, augment=augment, image_size=image_size)
    with tempfile.TemporaryDirectory() as folder:
        result = baseline.make_baseline(
            name, recipe, seed=seed, out=f"{folder}/run", progress=baseline.Progress(), **changes
        )
    split = "test" if "test" in result.metrics else "valid"
    seconds = result.manifest["seconds"]["training"] - sum(s["features_seconds"] for s in result.manifest["stages"])
    return {"accuracy": result.metrics[split]["tta"]["accuracy"], "seconds": seconds}


def main(
    data: list[str],
    seeds: int = 3,
    image_size: int = 128,
    out: Annotated[Path | None, typer.Option(help="JSON lines file to append to; finished runs are skipped.")] = None,
) -> None:
    """Run every plan on every dataset and print a table."""
    rows = [json.loads(line) for line in out.read_text().splitlines()] if out and out.exists() else []
    finished = {(row["data"], row["plan"], row["seed"]) for row in rows}
    for seed in range(seeds):
        for dataset in data:
            for plan, (stages, augment) in PLANS.items():
                if (dataset, plan, seed) in finished:
                    continue
                row = {
                    "data": dataset,
                    "plan": plan,
                    "seed": seed,
                    **train_plan(dataset, stages, augment, image_size, seed),
                }
                rows.append(row)
                print(json.dumps(row), file=sys.stderr, flush=True)
                if out:
                    with out.open("a") as file:
                        file.write(json.dumps(row) + "\n")
    table = pd.DataFrame(rows).groupby(["plan", "data"], sort=False)[["accuracy", "seconds"]].median().unstack()
    print(table.to_string(float_format="{:.3f}".format))


if __name__ == "__main__":
    typer.run(main)
