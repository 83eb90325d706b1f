"""Numbers and images -> pictures. Knows arrays, tables and files of images; knows no models and no run.

Charts are matplotlib figures, written as PNG on white, and as SVG whose lines and letters have the colour of the text
around it, so that a page that is dark at night has dark charts at no cost. Sheets of images are put together by PIL,
which takes a twentieth of the time that matplotlib needs for a grid of axes.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from textwrap import wrap
from typing import Any, ParamSpec

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, PercentFormatter
from PIL import Image, ImageDraw, ImageFont

from baseline.data.image import load_image

__all__ = [
    "ThumbnailCache",
    "confusion_figure",
    "counts_figure",
    "curve_figure",
    "image_sheet",
    "ladder_figure",
    "lr_find_figure",
    "overlay_heatmap",
    "pairs_figure",
    "png",
    "reliability_figure",
    "svg",
    "time_figure",
    "training_figure",
]

THUMBNAIL_SIZE = 144
"""Pixels of an image's longer side in the page."""


INK = "#22262b"
"""Lines and letters: dark on a PNG's white; `svg` turns it into the colour of the page's text."""

BLUE, ORANGE, GREEN, RED, GREY = "#3b82c4", "#d9730d", "#2e9e5b", "#d64545", "#8a9099"
"""Each has a contrast of at least 3 against white and against the page's dark ground."""


STYLE: dict[Any, Any] = {
    "text.color": INK, "axes.edgecolor": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK,
    "grid.color": GREY, "grid.alpha": 0.35, "axes.grid": True, "axes.axisbelow": True, "axes.facecolor": "none",
    "figure.facecolor": "none", "legend.frameon": False, "axes.spines.top": False, "axes.spines.right": False,
    "font.size": 11, "axes.titlesize": 12, "lines.linewidth": 1.8,
}  # fmt: skip


SHADES = LinearSegmentedColormap.from_list("shades", ["#f4f8fc", "#9cc3e6", "#3b82c4", "#123a63"])


MAX_NAMED_CLASSES = 25
"""Classes up to which each has its name and its numbers in a chart; more would be too small to read."""


P = ParamSpec("P")


@contextmanager
def _figure_style() -> Iterator[None]:
    """Our colours; and no warning for letters that matplotlib's font lacks, which the page's own fonts have."""
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*[Gg]lyph .* missing")
        yield


def _draw(make: Callable[P, Figure]) -> Callable[P, Figure]:
    @wraps(make)
    def styled(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with _figure_style():
            return make(*args, **kwargs)

    return styled


@_draw
def lr_find_figure(sweeps: pd.DataFrame, stages: Sequence[dict[str, Any]]) -> Figure:
    """Loss against learning rate for every stage that searched, with the rate that was taken; a word where none did.

    Args:
        sweeps, stages: see `baseline.History`.
    """
    numbers = sorted(sweeps["stage"].unique())
    if not numbers:
        figure = Figure(figsize=(6, 1), layout="constrained")
        figure.text(0.5, 0.4, "No stage searched its learning rate: the recipe gives the rates.", ha="center")
        return figure
    figure = Figure(figsize=(5.5 * len(numbers), 3.6), layout="constrained")
    for axes, number in zip(figure.subplots(1, len(numbers), squeeze=False)[0], numbers, strict=True):
        curve = sweeps[sweeps["stage"] == number]
        axes.plot(curve["lr"], curve["loss"].ewm(alpha=0.1).mean(), color=BLUE)
        axes.set(xscale="log", xlabel="learning rate", ylabel="loss (smoothed)", title=f"stage {number}: search")
        if number <= len(stages):
            rate = _last_lr(stages[number - 1]["lr"])
            axes.axvline(rate, color=ORANGE, linestyle="--", label=f"taken: {rate:.1e}")
            axes.legend()
    return figure


def _last_lr(rate: Any) -> float:
    return float(rate[-1] if isinstance(rate, tuple | list) else rate)


@_draw
def training_figure(epochs: pd.DataFrame) -> Figure:
    """Losses, accuracy on valid and learning rate epoch by epoch, stages marked, the best epoch ringed.

    Args:
        epochs: see `baseline.History`.
    """
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    rows = epochs.reset_index(drop=True)
    steps = rows.index + 1
    left.plot(steps, rows["train_loss"], marker="o", color=BLUE, label="train (augmented)")
    left.plot(steps, rows["valid_loss"], marker="s", color=ORANGE, label="valid")
    left.set(xlabel="epoch")
    metric = next(name for name in map(str, rows) if name.startswith("valid_") and name != "valid_loss")
    middle.plot(steps, rows[metric], marker="s", color=GREEN, label="valid")
    best = rows[rows["best"]].index[-1:]
    middle.plot(best + 1, rows.loc[best, metric], "o", ms=14, mfc="none", mec=RED, label="best, kept")
    middle.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=1))
    right.plot(steps, rows["lr"], marker="o", color=GREY)
    right.set(yscale="log")
    titles = ("loss", f"{metric.removeprefix('valid_').replace('_', ' ')} on valid", "learning rate at epoch's end")
    starts = rows.index[rows["stage"].diff().fillna(1) != 0]
    for axes, title in zip((left, middle, right), titles, strict=True):
        axes.set_title(title, pad=22)
        for start in starts:
            axes.axvline(start + 0.5, color=GREY, linestyle=":", linewidth=1)
            words = f" {_stage_name(rows.loc[start, 'trains'])}"
            axes.text(start + 0.5, 1.02, words, transform=axes.get_xaxis_transform(), fontsize=9)
        axes.set_xlim(0.4, len(rows) + 0.6)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("epoch")
    left.legend()
    middle.legend()
    return figure


def _stage_name(what: Any) -> str:
    if str(what) in ("head", "all"):
        return str(what)
    return f"last {float(what):.0%}" if 0 < float(what) < 1 else f"last {what}"


@_draw
def counts_figure(counts: pd.DataFrame) -> Figure:
    """Images by class and split: a bar a class, or for more than `MAX_NAMED_CLASSES` a curve of sizes, largest first.

    Args:
        counts: classes x splits, images.
    """
    colours = dict(zip(("train", "valid", "test"), (BLUE, ORANGE, GREEN), strict=True))
    if len(counts) > MAX_NAMED_CLASSES:
        figure = Figure(figsize=(8, 3.2), layout="constrained")
        axes = figure.subplots()
        for split, dashes in zip(counts, ("-", "--", ":"), strict=False):
            sizes = counts[split].sort_values(ascending=False).to_numpy()
            axes.plot(np.arange(1, len(sizes) + 1), sizes, dashes, color=colours[str(split)], label=str(split))
        axes.set(xlabel="classes, largest first", ylabel="images", ylim=(0, None))
        axes.legend()
        return figure
    figure = Figure(figsize=(8, 0.9 + 0.28 * len(counts)), layout="constrained")
    axes = figure.subplots()
    left = np.zeros(len(counts))
    for split in counts:
        axes.barh(np.arange(len(counts)), counts[split], left=left, color=colours[str(split)], label=str(split))
        left += counts[split].to_numpy()
    axes.set_yticks(np.arange(len(counts)), _short_names(counts.index))
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set(xlabel="images")
    axes.legend(ncols=3, loc="lower left", bbox_to_anchor=(0, 1))
    return figure


@_draw
def confusion_figure(matrix: np.ndarray, classes: Sequence[str]) -> Figure:
    """Truth by prediction, each row as shares of its class; with names and counts up to `MAX_NAMED_CLASSES` classes.

    Args:
        matrix: truth x prediction, images.
    """
    count = len(classes)
    named = count <= MAX_NAMED_CLASSES
    side = 2.4 + 0.42 * count if named else 6
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    # off the diagonal of a large matrix one image is a pale dot: the square root shows it
    axes.imshow(shares if named else np.sqrt(shares), cmap=SHADES, vmin=0, vmax=1, interpolation="nearest")
    axes.set(xlabel="predicted", ylabel="truth")
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    if not named:
        axes.set_title("classes in the order of the tables; the darker, the larger a share of its class")
        return figure
    names = _short_names(classes)
    axes.set_xticks(range(count), names, rotation=60 if count > 2 else 0, ha="right" if count > 2 else "center")
    axes.set_yticks(range(count), names)
    for row, column in np.argwhere(matrix):
        colour = "#ffffff" if shares[row, column] > 0.55 else "#16191d"
        words = f"{matrix[row, column]:,}"
        axes.text(column, row, words, ha="center", va="center", fontsize=9 if len(words) < 5 else 7, color=colour)
    return figure


@_draw
def reliability_figure(bins: pd.DataFrame) -> Figure:
    """How often predictions were right against how sure they were, and how many predictions were so sure.

    Args:
        bins: one row a bin that has predictions: `from, to, images, confidence, accuracy`, and `interval` of the latter
            (all but the images 0-1).
    """
    figure = Figure(figsize=(5, 5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    middle, width = (bins["from"] + bins["to"]) / 2, bins["to"] - bins["from"]
    above.bar(middle, bins["accuracy"], width=0.92 * width, color=BLUE, label="right, and its interval")
    above.vlines(middle, *zip(*bins["interval"], strict=True), color=INK, linewidth=1)
    above.plot([0, 1], [0, 1], color=INK, linestyle="--", linewidth=1, label="as sure as right")
    above.plot(bins["confidence"], bins["accuracy"], "o", color=ORANGE, markersize=5, label="mean confidence")
    above.set(ylabel="share right", ylim=(0, 1), xlim=(0, 1))
    above.legend(loc="lower center", bbox_to_anchor=(0.45, 1), ncols=3, fontsize=9, columnspacing=1.2)
    below.bar(middle, bins["images"], width=0.92 * width, color=GREY)
    below.set(xlabel="confidence", ylabel="predictions")
    for axis in (above.yaxis, above.xaxis):
        axis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    return figure


@_draw
def time_figure(seconds: dict[str, float]) -> Figure:
    """Seconds by what was done in them, most first."""
    figure = Figure(figsize=(8, 0.8 + 0.3 * len(seconds)), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh(list(seconds), list(seconds.values()), color=BLUE)
    axes.bar_label(bars, [f" {value:.1f}" for value in seconds.values()], fontsize=9)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.grid(axis="y", visible=False)
    axes.set(xlabel="seconds")
    return figure


@_draw
def ladder_figure(variants: pd.DataFrame) -> Figure:
    """Accuracy of each variant, in the order of the table, with its interval and seconds; its name is above it.

    As wide as a phone is.

    Args:
        variants: see `baseline.Ladder.table`.
    """
    rows = variants.iloc[::-1].to_dict("records")
    archs = [name for name in dict.fromkeys(variants["arch"]) if name]
    colours = dict(zip(archs, (BLUE, ORANGE, GREEN, RED, GREY) * len(archs), strict=False))
    names = [
        "\n".join(wrap(name, 46, break_on_hyphens=False)) for name in _short_names([row["words"] for row in rows], 90)
    ]
    more = [0.4 * name.count("\n") for name in names]
    places = np.cumsum([1 + below for below in (0, *more[:-1])])
    figure = Figure(figsize=(5, 0.9 + 0.46 * places[-1] + 0.2 * (len(archs) > 1)), layout="constrained")
    axes = figure.subplots()
    for at, name, row in zip(places, names, rows, strict=True):
        colour = colours.get(row["arch"], GREY)
        axes.plot([row["low"], row["high"]], [at, at], color=colour, linewidth=3, solid_capstyle="butt", alpha=0.6)
        axes.plot(row["accuracy"], at, "o", color=colour)
        beside: dict[str, Any] = {
            "xycoords": axes.get_yaxis_transform(),
            "textcoords": "offset points",
            "annotation_clip": False,
        }
        axes.annotate(name, (0, at), (4, 6), va="bottom", fontsize=10, **beside).set_in_layout(False)
        axes.annotate(
            f"{row['accuracy']:.1%}, {row['seconds']:,.0f} s", (1, at), (6, 0), va="center", fontsize=10, **beside
        )
    for name in archs if len(archs) > 1 else ():
        axes.plot([], [], "o", color=colours[name], label=name)
    low, high = axes.get_xlim()
    axes.set_xlim(low, min(high, 1 + 0.02 * (high - low)))  # half a dot
    axes.set_ylim(places[0] - 0.4, places[-1] + 0.6 + more[-1])
    axes.xaxis.set_major_locator(MaxNLocator(7, steps=(1, 2, 2.5, 5, 10)))
    axes.set_xticks([tick for tick in axes.get_xticks() if max(low, 0) <= tick <= min(high, 1)])
    axes.set_yticks([])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g}%"))
    axes.set(xlabel="accuracy, 95 % interval")
    if len(archs) > 1:
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    return figure


@_draw
def curve_figure(trainings: pd.DataFrame, lines: dict[str, np.ndarray], words: dict[str, str]) -> Figure:
    """Accuracy by training images: each training a dot, means joined, the fitted law dashed and to twice the images.

    As wide as a phone is.

    Args:
        trainings: see `baseline.Curve.table`.
        lines: by variant, images and accuracies of its law, 2 x points.
        words: what each variant is called.
    """
    figure = Figure(figsize=(5, 3.6 + 0.2 * len(lines)), layout="constrained")
    axes = figure.subplots()
    for variant, colour in zip(lines, (BLUE, ORANGE, GREEN, RED, GREY) * len(lines), strict=False):
        rows = trainings[trainings["variant"] == variant]
        means = rows.groupby("images")["accuracy"].mean()
        axes.plot(rows["images"], rows["accuracy"], "o", color=colour, alpha=0.35, markersize=4)
        axes.plot(means.index, means, "-o", color=colour, markersize=5, label=words[variant])
        axes.plot(*lines[variant], "--", color=colour, linewidth=1.2)
    axes.set(xscale="log", xlabel="training images", ylabel="accuracy")
    least, most = axes.get_xlim()
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if most < 50 * least else (1,)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g}%"))
    axes.plot([], [], "--", color=GREY, linewidth=1.2, label="power law, to twice the images")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1))
    return figure


def _short_names(classes: Any, most: int = 28) -> list[str]:
    """Class names as matplotlib should write them: short, and a $ as a $, which would else begin a formula."""
    names = [str(name) for name in classes]
    return [(name if len(name) <= most else name[: most - 1] + "…").replace("$", r"\$") for name in names]


def image_sheet(images: Sequence[tuple[Image.Image | None, str]], across: int = 6, side: int = 120) -> bytes:
    """Images in rows, each with its words (lines) below, as a PNG file's content; grey where an image is None."""
    font = ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", 11)
    lines = max((words.count("\n") + 1 for _, words in images), default=1)
    wide, high = side + 10, side + 12 + 14 * lines
    across = min(across, max(1, len(images)))
    page = Image.new("RGB", (wide * across + 10, high * -(-len(images) // across) + 10), "white")
    pen = ImageDraw.Draw(page)
    for number, (image, words) in enumerate(images):
        left, top = 10 + wide * (number % across), 10 + high * (number // across)
        shown = _fit_within(image, side) if image is not None else Image.new("RGB", (side, side), "lightgray")
        page.paste(shown, (left + (side - shown.width) // 2, top + (side - shown.height) // 2))
        for row, line in enumerate(words.split("\n")):
            pen.text((left, top + side + 2 + 14 * row), _ellipsize(line, font, side), fill=INK, font=font)
    buffer = io.BytesIO()
    page.save(buffer, "PNG")
    return buffer.getvalue()


def _fit_within(image: Image.Image, side: int) -> Image.Image:
    """The image as large as goes into a square of so many pixels."""
    scale = side / max(image.size)
    return image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))


def _ellipsize(line: str, font: Any, width: int) -> str:
    if font.getlength(line) <= width:
        return line
    while line and font.getlength(line + "…") > width:
        line = line[:-1]
    return line + "…"


def overlay_heatmap(image: Image.Image, places: np.ndarray, side: int = 160) -> Image.Image:
    """The image with the places of a Grad-CAM laid over it: yellow speaks most for the class, dark least.

    Args:
        places: h x w, 0-1; it covers the whole image.
        side: pixels, of the square that is returned.
    """
    square = image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
    smooth = Image.fromarray(places.astype(np.float32)).resize((side, side), Image.Resampling.BICUBIC)
    heat = np.clip(np.asarray(smooth), 0, 1)
    colours = matplotlib.colormaps["inferno"](heat)[..., :3] * 255
    mixed = 0.5 * np.asarray(square, dtype=np.float32) + 0.5 * colours
    return Image.fromarray(mixed.astype(np.uint8))


@_draw
def pairs_figure(pairs: pd.DataFrame, title: str, most: int = 18) -> Figure:
    """The first pairs of an audit side by side, each with labels, splits and distance (bits of the hash)."""
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
            axes.imshow(_thumbnail(row["other" if side else "path"]))
            words = [str(row[f"{prefix}label"])[:24], row[f"{prefix}split"] or "", "" if side else row["kind"]]
            axes.set_title(" ".join(word for word in words if word).replace("$", r"\$"), fontsize=8)
    return figure


def _thumbnail(path: str) -> Any:
    """The image at most 160 px wide and high; a blank where it is gone meanwhile."""
    try:
        image = load_image(path, 160)
    except OSError:
        return Image.new("RGB", (160, 160), "lightgray")
    image.thumbnail((160, 160))
    return image


def png(figure: Figure) -> bytes:
    """The figure as a PNG file's content, on white."""
    buffer = io.BytesIO()
    with _figure_style():
        figure.savefig(buffer, format="png", dpi=120, facecolor="white")
    return buffer.getvalue()


def svg(figure: Figure, name: str, words: str) -> str:
    """The figure as an `<svg>` element for a page, in the colour of the page's text.

    Args:
        name: a word that no other figure of the page has; it goes before the ids of this one's parts.
        words: what the figure shows, for those who cannot see it.
    """
    from html import escape

    buffer = io.StringIO()
    with _figure_style(), matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    text = buffer.getvalue()
    # the style sheet in it would be the whole page's; what it says of strokes stands in the template
    text = re.sub(r"<(metadata|style)\b.*?</\1>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(
        r'\s(?:xmlns(?::\w+)?|version|width|height)="[^"]*"(?=[^<]*viewBox)|\sxmlns(?::\w+)?="[^"]*"', "", text
    )
    text = re.sub(r'(\sid="|url\(#|xlink:href="#)', rf"\g<1>{name}-", text)
    text = re.sub(r"(font(?:-family)?:[^;\"]*?)'DejaVu Sans'[^;\"]*", r"\1inherit-sans", text)
    text = text.replace("inherit-sans", "system-ui, sans-serif").replace(INK, "currentColor")
    return text.replace("<svg", f'<svg role="img" aria-label="{escape(words, quote=True)}"', 1)


@dataclass
class ThumbnailCache:
    """Images by path, small, each read once; and which of them were gone."""

    side: int = THUMBNAIL_SIZE
    """Pixels, longer side."""
    seen: dict[str, Image.Image | None] = field(default_factory=dict)

    def get(self, path: str) -> Image.Image | None:
        if path not in self.seen:
            self.seen[path] = self.read(path, self.side)
            if (image := self.seen[path]) is not None:
                image.thumbnail((self.side, self.side))
        return self.seen[path]

    def read(self, path: str, size: int) -> Image.Image | None:
        """The image, at least of so many pixels where it has them; None where it is gone or damaged."""
        try:
            return load_image(path, size)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):  # what PIL says of damaged files
            return None

    @property
    def missing(self) -> list[str]:
        return [path for path, image in self.seen.items() if image is None]

    @property
    def asked(self) -> int:
        return len(self.seen)
