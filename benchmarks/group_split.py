"""Draws how much leakage from shared groups inflates the accuracy: two runs that differ in `--split` only.

    python benchmarks/group_split.py gtsrb_speed_tracks/metadata.csv docs/groups.png

Bars are test accuracies with TTA of the default recipe's quick preset; lines are 95% confidence intervals, Wilson's.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from matplotlib.figure import Figure

import baseline

LABELS = {
    "random": "split at random:\nframes of one sign on both sides",
    "group": "split by sign:\nsigns not in training",
}


def main(table: Path, picture: Path) -> None:
    metrics = {}
    for split in LABELS:
        with tempfile.TemporaryDirectory() as folder:
            result = baseline.make_baseline(table, split=split, preset="quick", out=f"{folder}/run")
        metrics[split] = result.metrics["test"]
        scores, images = metrics[split]["tta"], metrics[split]["images"]
        low, high = scores["interval"]
        print(f"{split}: {scores['accuracy']:.1%} ({low:.1%} to {high:.1%}), {images} images")
    plot(metrics).savefig(picture, dpi=110)


def plot(metrics: dict[str, dict]) -> Figure:
    """Return a figure with a bar and its confidence interval for each split method."""
    figure = Figure(figsize=(6.4, 2.2), layout="constrained")
    axes = figure.subplots()
    for position, (split, color) in enumerate(zip(LABELS, ("#b0413e", "#2a6f97"), strict=True)):
        scores = metrics[split]["tta"]
        share, (low, high) = scores["accuracy"], scores["interval"]
        axes.barh(position, share, height=0.6, color=color)
        axes.errorbar(share, position, xerr=[[share - low], [high - share]], color="black", capsize=4)
        text = f"{share:.1%} ({100 * low:.1f} to {100 * high:.1f})"
        axes.text(0.02, position, text, color="white", va="center", fontweight="bold")
    axes.set_yticks(range(2), LABELS.values())
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.set_xlabel(
        f"accuracy on {metrics['random']['images']} and {metrics['group']['images']} test images, same training"
    )
    axes.spines[["top", "right"]].set_visible(False)
    return figure


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
