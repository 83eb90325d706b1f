"""What a temperature fitted on few images does to the log loss of others, with and without a prior around 1.

    python benchmarks/temperatures.py runs/cifar10 runs/trashnet

Of each run's test images (valid, where there is no test split) some are drawn 200 times, a temperature is fitted on
them, and the log loss of the rest is told: uncalibrated, by the likeliest temperature (Guo et al. 2017), and by
`baseline.fit_temperature`. So for the probabilities as they are, and for sharper (logits times 2) and flatter (by 2) ones.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import typer

import baseline
from baseline.evaluation import calibration
from baseline.evaluation.calibration import fit_temperature
from baseline.runs.folder import headline_split, read_manifest, read_predictions

DRAWS = 200
MOST = 3000
"""Images that the loss is taken of."""


def main(runs: list[Path]) -> None:
    """Prints a table for each run."""
    chance, prior = np.random.default_rng(0), calibration.PRIOR_STRENGTH
    for run in runs:
        split = headline_split(read_manifest(run)["metrics"])
        table = read_predictions(run)
        table = table[table["split"] == split].assign(split="valid").reset_index(drop=True)
        for bend in (1.0, 2.0, 0.5):
            bent = baseline.calibrate(table, 1 / bend)
            print(f"{run}, {len(bent):,} images, logits times {bend:g}")
            for count in (5, 12, 25, 50, 100, 250, 1000):
                if count > len(bent) / 2:
                    break
                lost = []
                for _ in range(DRAWS):
                    rows = chance.permutation(len(bent))
                    some, rest = bent.iloc[rows[:count]], bent.iloc[rows[count : count + MOST]]
                    found = [1.0]
                    for calibration.PRIOR_STRENGTH in (math.inf, prior):
                        found.append(fit_temperature(some))
                    lost.append([baseline.calibrate(rest, each)["loss"].mean() for each in found])
                plain, likeliest, ours = np.mean(lost, axis=0)
                print(
                    f"{count:6} images: {plain:.3f} plain, {likeliest:.3f} likeliest, {ours:.3f} with the prior",
                    flush=True,
                )


if __name__ == "__main__":
    typer.run(main)
