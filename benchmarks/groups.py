"""What frames of the same thing on both sides of a split are worth, as a picture: two runs, apart in `--split` alone.

    python benchmarks/groups.py gtsrb_speed_tracks/metadata.csv docs/groups.png

Bars are test accuracies with TTA of the default recipe's quick preset; lines are 95 % intervals, by Wilson.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from matplotlib.figure import Figure

import baseline

WORDS = {
    "random": "split at random:\nframes of one sign on both sides",
    "group": "split by sign:\nsigns that training never saw",
}


def main(table: Path, picture: Path) -> None:
    found = {}
    for split in WORDS:
        with tempfile.TemporaryDirectory() as folder:
            done = baseline.make_baseline(table, split=split, preset="quick", out=f"{folder}/run")
        found[split] = done.metrics["test"]
        low, high = found[split]["tta"]["interval"]
        print(
            f"{split}: {found[split]['tta']['accuracy']:.1%} ({low:.1%} to {high:.1%}), {found[split]['images']} images"
        )
    drawn(found).savefig(picture, dpi=110)


def drawn(found: dict[str, dict]) -> Figure:
    """Two bars with their intervals, from the metrics of the test split by way of splitting."""
    figure = Figure(figsize=(6.4, 2.2), layout="constrained")
    axes = figure.subplots()
    for place, (split, color) in enumerate(zip(WORDS, ("#b0413e", "#2a6f97"), strict=True)):
        numbers = found[split]["tta"]
        share, (low, high) = numbers["accuracy"], numbers["interval"]
        axes.barh(place, share, height=0.6, color=color)
        axes.errorbar(share, place, xerr=[[share - low], [high - share]], color="black", capsize=4)
        words = f"{share:.1%} ({100 * low:.1f} to {100 * high:.1f})"
        axes.text(0.02, place, words, color="white", va="center", fontweight="bold")
    axes.set_yticks(range(2), WORDS.values())
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.set_xlabel(
        f"accuracy on {found['random']['images']} and {found['group']['images']} test images, same training"
    )
    axes.spines[["top", "right"]].set_visible(False)
    return figure


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
