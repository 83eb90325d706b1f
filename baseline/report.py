"""History and findings -> pictures. Knows numbers and photos; knows no models."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from .training import History

__all__ = ["lr_find_figure", "pairs_figure", "png", "training_figure"]


def lr_find_figure(history: History) -> Figure:
    """Loss against learning rate for every stage that searched, with the rate that was taken; a word where none did."""
    from matplotlib.figure import Figure

    numbers = sorted(history.sweeps["stage"].unique())
    figure = Figure(figsize=(6 * max(1, len(numbers)), 4), layout="constrained")
    if not numbers:
        figure.text(0.5, 0.5, "No stage searched its learning rate: the recipe gives the rates.", ha="center")
        return figure
    for axes, number in zip(figure.subplots(1, len(numbers), squeeze=False)[0], numbers, strict=True):
        curve, stage = history.sweeps[history.sweeps["stage"] == number], _stage(history, number)
        axes.plot(curve["lr"], curve["loss"].ewm(alpha=0.1).mean(), color="tab:blue")
        axes.set(xscale="log", xlabel="learning rate", ylabel="loss (smoothed)", title=f"stage {number}: search")
        if stage is not None:
            rate = stage["lr"][-1] if isinstance(stage["lr"], tuple | list) else stage["lr"]
            axes.axvline(rate, color="tab:orange", linestyle="--", label=f"taken: {rate:.1e}")
            axes.legend()
        axes.grid(alpha=0.3)
    return figure


def training_figure(history: History) -> Figure:
    """Losses and validation accuracy epoch by epoch, stages marked, the best epoch ringed."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    rows = history.epochs.reset_index(drop=True)
    steps = rows.index + 1
    left.plot(steps, rows["train_loss"], marker="o", label="train (augmented)")
    left.plot(steps, rows["valid_loss"], marker="o", label="valid")
    left.set(title="loss", xlabel="epoch")
    metric = next(name for name in map(str, rows) if name.startswith("valid_") and name != "valid_loss")
    right.plot(steps, rows[metric], marker="o", color="tab:green", label="valid")
    best = rows[rows["best"]].index[-1:]
    right.plot(best + 1, rows.loc[best, metric], "o", ms=14, mfc="none", mec="tab:red", label="best, kept")
    right.set(title=f"{metric.removeprefix('valid_').replace('_', ' ')} on the valid split", xlabel="epoch")
    right.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=1))
    starts = rows.index[rows["stage"].diff().fillna(1) != 0]
    for axes in (left, right):
        for start in starts:
            axes.axvline(start + 0.5, color="gray", linestyle=":", linewidth=1)
            words = f" {rows.loc[start, 'trains']}"
            axes.text(start + 0.5, 1.0, words, transform=axes.get_xaxis_transform(), va="bottom", color="gray")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend()
        axes.grid(alpha=0.3)
    return figure


def pairs_figure(pairs: pd.DataFrame, title: str, most: int = 18) -> Figure:
    """The first pairs of an audit side by side, each with labels, splits and distance (bits of the hash)."""
    from matplotlib.figure import Figure

    shown = pairs.head(most)
    across = 3
    down = -(-len(shown) // across)
    figure = Figure(figsize=(3.9 * across, 2.3 * down + 0.6), layout="constrained")
    counted = f"{len(pairs):,}" if len(pairs) <= most else f"the first {most} of {len(pairs):,}"
    figure.suptitle(f"{title.replace('_', ' ')}: {counted} pairs")
    grid = figure.subplots(down, 2 * across, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for number, row in enumerate(shown.to_dict("records")):
        for side, prefix in enumerate(("", "other_")):
            axes = grid[number // across][2 * (number % across) + side]
            axes.imshow(_small(row["other" if side else "path"]))
            words = [str(row[f"{prefix}label"])[:24], row[f"{prefix}split"] or "", "" if side else row["kind"]]
            axes.set_title(" ".join(word for word in words if word), fontsize=8)
    return figure


def _small(path: str) -> Any:
    """The photo at most 160 px wide and high; a blank where it is gone meanwhile."""
    from PIL import Image

    from .photos import open_photo

    try:
        image = open_photo(path, 160)
    except OSError:
        return Image.new("RGB", (160, 160), "lightgray")
    image.thumbnail((160, 160))
    return image


def png(figure: Figure) -> bytes:
    """The figure as a PNG file's content."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def _stage(history: History, number: int) -> dict | None:
    return history.stages[number - 1] if number <= len(history.stages) else None
