"""Measures the log loss of other images with a temperature fitted on few, with and without a prior around 1.

    python benchmarks/temperatures.py runs/cifar10 runs/trashnet

A temperature is fitted on random samples of each run's test images (validation images if there is no test split), 200
times, and the log loss on the remaining images is reported: uncalibrated, with the maximum-likelihood temperature (Guo
et al. 2017), and with `baseline.evaluation.calibration.fit_temperature`; also with logits times 2 and divided by 2.
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
MAX_IMAGES = 3000
"""Maximum number of images to compute the loss on."""


def main(runs: list[Path]) -> None:
    """Print a table for each run."""
    rng, prior = np.random.default_rng(0), calibration.PRIOR_STRENGTH
    for run in runs:
        split = headline_split(read_manifest(run)["metrics"])
        table = read_predictions(run)
        table = table[table["split"] == split].assign(split="valid").reset_index(drop=True)
        for factor in (1.0, 2.0, 0.5):
            scaled = baseline.calibrate(table, 1 / factor)
            print(f"{run}, {len(scaled):,} images, logits times {factor:g}")
            for count in (5, 12, 25, 50, 100, 250, 1000):
                if count > len(scaled) / 2:
                    break
                losses = []
                for _ in range(DRAWS):
                    rows = rng.permutation(len(scaled))
                    sample, others = scaled.iloc[rows[:count]], scaled.iloc[rows[count : count + MAX_IMAGES]]
                    temperatures = [1.0]
                    for calibration.PRIOR_STRENGTH in (math.inf, prior):
                        temperatures.append(fit_temperature(sample))
                    losses.append([baseline.calibrate(others, t)["loss"].mean() for t in temperatures])
                uncalibrated, ml, ours = np.mean(losses, axis=0)
                results = f"{uncalibrated:.3f} uncalibrated, {ml:.3f} maximum likelihood, {ours:.3f} with the prior"
                print(f"{count:6} images: {results}", flush=True)


if __name__ == "__main__":
    typer.run(main)
