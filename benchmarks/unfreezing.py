"""What to train after the head: plans of stages on several data sets, everything else the same.

    python benchmarks/unfreezing.py trashnet_256 hymenoptera_256 gtsrb_speed_tracks/metadata.csv:group cifar10:250

Printed is, by data set and plan, the accuracy with TTA (0-1; on test, or on valid where there is no test split) and the
seconds of training, medians over `--seeds`. `NAME:group` splits by groups; `NAME:N` takes N training photos a class.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer

import baseline
from baseline import Stage

HEAD = Stage("head", 2, "find")
PLANS = {
    "head 10": (Stage("head", 10, "find", views=("flip",)),),
    "head 2, last 1/3": (HEAD, Stage(0.33, 3, 3e-4)),
    "head 2, last 55 %": (HEAD, Stage(0.55, 3, 3e-4)),
    "head 10, last 55 %": (Stage("head", 10, "find", views=("flip",)), Stage(0.55, 3, 3e-4)),
    "head 2, all": (HEAD, Stage("all", 3, 3e-4)),
    "head 2, last 55 %, all": (HEAD, Stage(0.55, 2, 3e-4), Stage("all", 2, (2e-5, 2e-4))),
}
STILL = {"flip": True, "rotate": 0.0, "zoom": 1.0, "lighting": 0.0, "warp": 0.0}


def one(data: str, stages: tuple[Stage, ...], image_size: int, seed: int) -> dict[str, float]:
    name, _, how = data.partition(":")
    given = {"split": "group"} if how == "group" else {"photos_per_class": int(how)} if how else {}
    recipe = baseline.load_recipe("default").changed(stages=stages, presets={}, augment=STILL, image_size=image_size)
    with tempfile.TemporaryDirectory() as folder:
        done = baseline.make_baseline(name, recipe, seed=seed, out=f"{folder}/run", show=baseline.Show(), **given)
    split = "test" if "test" in done.metrics else "valid"
    seconds = done.manifest["seconds"]["training"] - sum(s["features_seconds"] for s in done.manifest["stages"])
    return {"accuracy": done.metrics[split]["tta"]["accuracy"], "seconds": seconds}


def main(
    data: list[str],
    seeds: int = 3,
    image_size: int = 128,
    out: Annotated[Path | None, typer.Option(help="JSON lines, added to.")] = None,
) -> None:
    """Runs every plan on every data set and prints a table."""
    rows = []
    for seed in range(seeds):
        for each in data:
            for plan, stages in PLANS.items():
                row = {"data": Path(each).stem, "plan": plan, "seed": seed, **one(each, stages, image_size, seed)}
                rows.append(row)
                print(json.dumps(row), file=sys.stderr, flush=True)
                if out:
                    with out.open("a") as file:
                        file.write(json.dumps(row) + "\n")
    table = pd.DataFrame(rows).groupby(["plan", "data"], sort=False)[["accuracy", "seconds"]].median().unstack()
    print(table.to_string(float_format="{:.3f}".format))


if __name__ == "__main__":
    typer.run(main)
