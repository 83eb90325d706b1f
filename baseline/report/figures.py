"""Charts and image sheets for reports, as PNG files and as SVG for pages.

Charts are matplotlib figures. They are saved as PNG on a white background, and as SVG whose lines and letters take the
color of the surrounding text, so that a page in dark mode gets dark charts for free. Sheets of images are composed
with PIL, which takes a twentieth of the time that matplotlib needs for a grid of axes.
"""

from __future__ import annotations

import io
import re
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from textwrap import wrap
from typing import Any, ParamSpec

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import (
    FuncFormatter,
    LogFormatter,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    NullLocator,
    PercentFormatter,
)
from PIL import Image, ImageDraw, ImageFont

from baseline.data.image import load_image
from baseline.metrics.registry import Metric
from baseline.report.headline import selection_metric
from baseline.terminal import escape_controls

__all__ = [
    "ThumbnailCache",
    "confusion_figure",
    "counts_figure",
    "curve_figure",
    "image_sheet",
    "ladder_figure",
    "lr_find_figure",
    "overlay_heatmap",
    "png",
    "reliability_figure",
    "svg",
    "time_figure",
    "training_figure",
    "unique_prefix",
]

THUMBNAIL_SIZE = 144
"""Longer side of an image in the page, in pixels."""


INK = "#22262b"
"""Color of lines and letters: dark on a PNG's white background; `svg` replaces it with the page's text color."""

BLUE, ORANGE, GREEN, RED, GRAY = "#3b82c4", "#d9730d", "#2e9e5b", "#d64545", "#8a9099"
"""Chart colors with a contrast of at least 3 against white and against the page's dark background."""


STYLE: dict[Any, Any] = {
    "text.color": INK, "axes.edgecolor": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK,
    "grid.color": GRAY, "grid.alpha": 0.35, "axes.grid": True, "axes.axisbelow": True, "axes.facecolor": "none",
    "figure.facecolor": "none", "legend.frameon": False, "axes.spines.top": False, "axes.spines.right": False,
    "font.size": 11, "axes.titlesize": 12, "lines.linewidth": 1.8,
}  # fmt: skip


SHADES = LinearSegmentedColormap.from_list("shades", ["#f4f8fc", "#9cc3e6", "#3b82c4", "#123a63"])


MAX_NAMED_CLASSES = 25
"""Maximum number of classes with a name and numbers each in a chart; more would be too small to read."""


P = ParamSpec("P")


@contextmanager
def figure_style() -> Iterator[None]:
    """Apply our colors, and ignore warnings about glyphs that matplotlib's font lacks: the page's fonts have them."""
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*[Gg]lyph .* missing")
        yield


def with_figure_style(make: Callable[P, Figure]) -> Callable[P, Figure]:
    """Decorate a function that makes a figure so that it draws in our style."""

    @wraps(make)
    def styled(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with figure_style():
            return make(*args, **kwargs)

    return styled


@with_figure_style
def lr_find_figure(sweep: pd.DataFrame, stages: Sequence[Mapping[str, Any]]) -> Figure:
    """Plot loss against learning rate in the search of one stage, and mark the rate that was used.

    Args:
        sweep, stages: see `baseline.training.state.History`; the rows of one search.
    """
    number = int(sweep["stage"].iloc[0])
    figure = Figure(figsize=(5, 3.4), layout="constrained")
    axes = figure.subplots()
    axes.plot(sweep["lr"], sweep["loss"].ewm(alpha=0.1).mean(), color=BLUE)
    title = f"stage {number}: learning rate search"
    axes.set(xscale="log", xlabel="learning rate", ylabel="loss (smoothed)", title=title)
    label_rates(axes.xaxis)
    if number <= len(stages):
        rate = last_group_lr(stages[number - 1]["lr"])
        axes.axvline(rate, color=ORANGE, linestyle="--", label=f"used: {rate:.1e}")
        axes.legend()
    return figure


def label_rates(axis: Any) -> None:
    """Write the rates of a logarithmic axis as in the text, such as 1e-03, which takes no parser of formulas.

    Over more than three decades it has ticks at powers of ten only: the others, without labels, take longest to draw.
    """
    axis.set_major_formatter(LogFormatter())
    axis.set_minor_formatter(LogFormatter())
    low, high = axis.get_view_interval()
    if high > 1000 * low:
        axis.set_minor_locator(NullLocator())


def last_group_lr(rate: Any) -> float:
    """Return the learning rate of the last layer group."""
    return float(rate[-1] if isinstance(rate, tuple | list) else rate)


@with_figure_style
def training_figure(epochs: pd.DataFrame, panel: str) -> Figure:
    """Plot the losses, the metric on valid or the learning rate by epoch; mark the stages and the epoch that is kept.

    Args:
        epochs: see `baseline.training.state.History`.
        panel: which of the three to plot: loss, metric or rate.
    """
    figure = Figure(figsize=(4, 3.2), layout="constrained")
    axes, rows = figure.subplots(), epochs.reset_index(drop=True)
    draw = {"loss": draw_losses, "metric": draw_metric, "rate": draw_rates}
    axes.set_title(draw[panel](axes, rows), pad=26)
    for number, start in enumerate(rows.index[rows["stage"].diff().fillna(1) != 0]):
        axes.axvline(start + 0.5, color=GRAY, linestyle=":", linewidth=1)
        label = f" {stage_label(rows.loc[start, 'trains'])}"
        axes.text(start + 0.5, 1.02 + 0.07 * (number % 2), label, transform=axes.get_xaxis_transform(), fontsize=9)
    axes.set_xlim(0.4, len(rows) + 0.6)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("epoch")
    return figure


def draw_losses(axes: Any, rows: pd.DataFrame) -> str:
    """Plot the losses by epoch, and return the title."""
    axes.plot(rows.index + 1, rows["train_loss"], marker="o", color=BLUE, label="train (augmented)")
    axes.plot(rows.index + 1, rows["valid_loss"], marker="s", color=ORANGE, label="valid")
    axes.legend()
    return "loss"


def draw_metric(axes: Any, rows: pd.DataFrame) -> str:
    """Plot the metric that decides which epoch is kept, mark that epoch, and return the title."""
    metric = next(name for name in map(str, rows) if name.startswith("valid_") and name != "valid_loss")
    axes.plot(rows.index + 1, rows[metric], marker="s", color=GREEN, label="valid")
    best = rows[rows["best"]].index[-1:]
    axes.plot(best + 1, rows.loc[best, metric], "o", ms=14, mfc="none", mec=RED, label="kept epoch")
    if selection_metric(metric).percent:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=1))
    axes.legend()
    return f"validation {metric.removeprefix('valid_').replace('_', ' ')}"


def draw_rates(axes: Any, rows: pd.DataFrame) -> str:
    """Plot the learning rate at the end of each epoch, and return the title."""
    rates = rows["lr"].where(rows["lr"] > 0)  # a probe takes no steps
    axes.plot(rows.index + 1, rates, marker="o", color=GRAY)
    if rates.notna().any():
        axes.set(yscale="log")
        label_rates(axes.yaxis)
    return "learning rate at end of epoch"


def stage_label(trains: Any) -> str:
    """Return a short name of what a stage trains: head, all, or the last layer groups."""
    if str(trains) in ("probe", "head", "all"):
        return str(trains)
    return f"last {float(trains):.0%}" if 0 < float(trains) < 1 else f"last {trains}"


@with_figure_style
def counts_figure(counts: pd.DataFrame) -> Figure:
    """Plot the number of images by class and split.

    There is a bar for each class, or for more than `MAX_NAMED_CLASSES` a curve of class sizes, largest first.

    Args:
        counts: number of images, classes x splits.
    """
    colors = dict(zip(("train", "valid", "test"), (BLUE, ORANGE, GREEN), strict=True))
    if len(counts) > MAX_NAMED_CLASSES:
        figure = Figure(figsize=(5, 3.2), layout="constrained")
        axes = figure.subplots()
        for split, dashes in zip(counts, ("-", "--", ":"), strict=False):
            sizes = counts[split].sort_values(ascending=False).to_numpy()
            axes.plot(np.arange(1, len(sizes) + 1), sizes, dashes, color=colors[str(split)], label=str(split))
        axes.set(xlabel="classes, largest first", ylabel="images", ylim=(0, None))
        axes.legend()
        return figure
    figure = Figure(figsize=(5, 0.9 + 0.28 * len(counts)), layout="constrained")
    axes = figure.subplots()
    left = np.zeros(len(counts))
    for split in counts:
        axes.barh(np.arange(len(counts)), counts[split], left=left, color=colors[str(split)], label=str(split))
        left += counts[split].to_numpy()
    axes.set_yticks(np.arange(len(counts)), shorten_names(counts.index))
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set(xlabel="images")
    axes.legend(ncols=3, loc="lower left", bbox_to_anchor=(0, 1))
    return figure


@with_figure_style
def confusion_figure(matrix: np.ndarray, classes: Sequence[str]) -> Figure:
    """Plot the confusion matrix, each row as shares of its class; with names and counts up to `MAX_NAMED_CLASSES`.

    Args:
        matrix: number of images, truth x prediction.
    """
    count = len(classes)
    named = count <= MAX_NAMED_CLASSES
    side = 2.4 + 0.42 * count if named else 6
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    # off the diagonal of a large matrix a single image is a pale dot; the square root makes it visible
    axes.imshow(shares if named else np.sqrt(shares), cmap=SHADES, vmin=0, vmax=1, interpolation="nearest")
    axes.set(xlabel="predicted", ylabel="truth")
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    if not named:
        axes.set_title("classes in the order of the tables; darker is a larger share of the class")
        return figure
    names = shorten_names(classes)
    is_long = max(map(len, names)) > 14
    if is_long:
        figure.set_size_inches(side + 3, side + 2)
    rotation, align = (60, "right") if count > 2 or is_long else (0, "center")
    axes.set_xticks(range(count), names, rotation=rotation, ha=align)
    axes.set_yticks(range(count), names)
    for row, column in np.argwhere(matrix):
        color = "#ffffff" if shares[row, column] > 0.55 else "#16191d"
        text = f"{matrix[row, column]:,}"
        axes.text(column, row, text, ha="center", va="center", fontsize=9 if len(text) < 5 else 7, color=color)
    return figure


@with_figure_style
def reliability_figure(bins: pd.DataFrame) -> Figure:
    """Plot accuracy against confidence (a reliability diagram), and the number of predictions by confidence.

    Args:
        bins: one row per bin that has predictions: `from, to, images, confidence, accuracy`, and `interval` of the
            accuracy (all but the images 0-1).
    """
    figure = Figure(figsize=(5, 5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    middle, width = (bins["from"] + bins["to"]) / 2, bins["to"] - bins["from"]
    above.bar(middle, bins["accuracy"], width=0.92 * width, color=BLUE, label="accuracy, 95% confidence interval")
    above.vlines(middle, *zip(*bins["interval"], strict=True), color=INK, linewidth=1)
    above.plot([0, 1], [0, 1], color=INK, linestyle="--", linewidth=1, label="perfect calibration")
    above.plot(bins["confidence"], bins["accuracy"], "o", color=ORANGE, markersize=5, label="mean confidence")
    above.set(ylabel="accuracy", ylim=(0, 1), xlim=(0, 1))
    above.legend(loc="lower center", bbox_to_anchor=(0.45, 1), ncols=3, fontsize=9, columnspacing=1.2)
    below.bar(middle, bins["images"], width=0.92 * width, color=GRAY)
    below.set(xlabel="confidence", ylabel="predictions")
    for axis in (above.yaxis, above.xaxis):
        axis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    return figure


@with_figure_style
def time_figure(seconds: dict[str, float]) -> Figure:
    """Plot seconds by part of the run, in the order given."""
    figure = Figure(figsize=(5, 0.8 + 0.3 * len(seconds)), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh(list(seconds), list(seconds.values()), color=BLUE)
    axes.bar_label(bars, [f" {value:.1f}" for value in seconds.values()], fontsize=9)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.grid(axis="y", visible=False)
    axes.set(xlabel="seconds")
    return figure


@with_figure_style
def ladder_figure(variants: pd.DataFrame, metric: Metric | None = None) -> Figure:
    """Plot the accuracy, or a metric, of each variant in the order of the table, with interval, seconds and name.

    The figure is as wide as a phone.

    Args:
        variants: see `baseline.experiments.ladder.Ladder.table`.
    """
    rows = variants.iloc[::-1].to_dict("records")
    key, low_key, high_key = ("accuracy", "low", "high")
    if metric:
        key, low_key, high_key = (f"{metric.name}{end}" for end in ("", "_low", "_high"))
    percent = metric is None or metric.percent
    archs = [name for name in dict.fromkeys(variants["arch"]) if name]
    colors = dict(zip(archs, (BLUE, ORANGE, GREEN, RED, GRAY) * len(archs), strict=False))
    names = [
        "\n".join(wrap(name, 46, break_on_hyphens=False)) for name in shorten_names([row["words"] for row in rows], 90)
    ]
    extra_lines = [0.4 * name.count("\n") for name in names]
    heights = np.cumsum([1 + below for below in (0, *extra_lines[:-1])])
    figure = Figure(figsize=(5, 0.9 + 0.46 * heights[-1] + 0.2 * (len(archs) > 1)), layout="constrained")
    axes = figure.subplots()
    for height, name, row in zip(heights, names, rows, strict=True):
        color = colors.get(row["arch"], GRAY)
        axes.plot(
            [row[low_key], row[high_key]], [height, height], color=color, linewidth=3, solid_capstyle="butt", alpha=0.6
        )
        axes.plot(row[key], height, "o", color=color)
        value = metric.text(row[key], 1) if metric else f"{row[key]:.1%}"
        position: dict[str, Any] = {
            "xycoords": axes.get_yaxis_transform(),
            "textcoords": "offset points",
            "annotation_clip": False,
        }
        axes.annotate(name, (0, height), (4, 6), va="bottom", fontsize=10, **position).set_in_layout(False)
        axes.annotate(f"{value}, {row['seconds']:,.0f} s", (1, height), (6, 0), va="center", fontsize=10, **position)
    for name in archs if len(archs) > 1 else ():
        axes.plot([], [], "o", color=colors[name], label=name)
    low, high = axes.get_xlim()
    if percent:
        high = min(high, 1 + 0.02 * (high - low))  # room for half a dot
        axes.set_xlim(low, high)
    axes.set_ylim(heights[0] - 0.4, heights[-1] + 0.6 + extra_lines[-1])
    axes.xaxis.set_major_locator(MaxNLocator(7, steps=(1, 2, 2.5, 5, 10)))
    if percent:
        axes.set_xticks([tick for tick in axes.get_xticks() if max(low, 0) <= tick <= min(high, 1)])
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g}%"))
    axes.set_yticks([])
    axes.set(xlabel=f"{metric.title if metric else 'accuracy'}, 95% confidence interval")
    if len(archs) > 1:
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    return figure


@with_figure_style
def curve_figure(
    trainings: pd.DataFrame,
    lines: dict[str, np.ndarray],
    names: dict[str, str],
    bands: dict[str, np.ndarray],
    metric: Metric,
) -> Figure:
    """Plot a metric against the number of training images.

    Each training is a dot, means are joined, and the fitted power law is dashed, up to twice the images. The figure is
    as wide as a phone.

    Args:
        trainings: see `baseline.experiments.learning_curve.LearningCurve.table`.
        lines: by variant, images and values of its power law, 2 x points; none for a variant without one.
        names: by variant, its name in the legend.
        bands: by variant, images and the ends of the 95% confidence interval of the forecast, 3 x points.
        metric: the column of the trainings to plot.
    """
    figure = Figure(figsize=(5, 3.8 + 0.2 * len(names)), layout="constrained")
    axes = figure.subplots()
    for variant, color in zip(names, (BLUE, ORANGE, GREEN, RED, GRAY) * len(names), strict=False):
        rows = trainings[trainings["variant"] == variant]
        means = rows.groupby("images")[metric.name].mean()
        axes.plot(rows["images"], rows[metric.name], "o", color=color, alpha=0.35, markersize=4)
        axes.plot(means.index, means, "-o", color=color, markersize=5, label=names[variant])
        if variant in lines:
            axes.plot(*lines[variant], "--", color=color, linewidth=1.2)
            axes.fill_between(*bands[variant], color=color, alpha=0.2, linewidth=0)
    axes.set(xscale="log", xlabel="training images", ylabel=metric.title)
    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 50 * low else (1,)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    if metric.percent:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g}%"))
    axes.plot([], [], "--", color=GRAY, linewidth=1.2, label="power law, up to twice the images")
    axes.fill_between([], [], [], color=GRAY, alpha=0.3, label="95% confidence interval of the forecast")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1))
    return figure


def shorten_names(names: Any, max_length: int = 28) -> list[str]:
    """Return names for matplotlib: shortened, with $ escaped, because it would start a formula."""
    texts = [str(name) for name in names]
    return [(text if len(text) <= max_length else text[: max_length - 1] + "…").replace("$", r"\$") for text in texts]


MAX_CAPTION_LINES = 6
"""Maximum number of lines below an image of a sheet, as the name of a class may have thousands."""


def image_sheet(
    images: Sequence[tuple[Image.Image | None, str]], columns: int = 6, side: int = 120, title: str = ""
) -> bytes:
    """Return a grid of images with captions (lines) as the content of a PNG file; None becomes a gray square."""
    font = ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", 11)
    above = 34 if title else 10
    lines = max((min(caption.count("\n") + 1, MAX_CAPTION_LINES) for _, caption in images), default=1)
    width, height = side + 10, side + 12 + 14 * lines
    columns = min(columns, max(1, len(images)))
    sheet = Image.new("RGB", (width * columns + 10, height * -(-len(images) // columns) + above), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((10, 10), title, fill=INK, font=font.font_variant(size=14))
    for number, (image, caption) in enumerate(images):
        left, top = 10 + width * (number % columns), above + height * (number // columns)
        tile = fit_within(image, side) if image is not None else Image.new("RGB", (side, side), "lightgray")
        sheet.paste(tile, (left + (side - tile.width) // 2, top + (side - tile.height) // 2))
        for row, line in enumerate(caption.split("\n")[:MAX_CAPTION_LINES]):
            draw.text((left, top + side + 2 + 14 * row), ellipsize(line, font, side), fill=INK, font=font)
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()


def fit_within(image: Image.Image, side: int) -> Image.Image:
    """Return the image scaled to fit a square of `side` pixels."""
    scale = side / max(image.size)
    return image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))


def ellipsize(line: str, font: Any, width: int) -> str:
    """Return the line, cut and ended with an ellipsis where it is wider than `width` pixels.

    Characters that break a line are escaped: the layout of text refuses them. At most `width` characters are measured.
    """
    line = escape_controls(line)[:width]
    if font.getlength(line) <= width:
        return line
    while line and font.getlength(line + "…") > width:
        line = line[:-1]
    return line + "…"


def overlay_heatmap(image: Image.Image, heatmap: np.ndarray, side: int = 160) -> Image.Image:
    """Return the image with a Grad-CAM heatmap laid over it: yellow is the strongest evidence for the class, dark none.

    Args:
        heatmap: h x w, 0-1; it covers the full image.
        side: side of the returned square, in pixels.
    """
    square = image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
    smooth = Image.fromarray(heatmap.astype(np.float32)).resize((side, side), Image.Resampling.BICUBIC)
    values = np.clip(np.asarray(smooth), 0, 1)
    colors = matplotlib.colormaps["inferno"](values)[..., :3] * 255
    blended = 0.5 * np.asarray(square, dtype=np.float32) + 0.5 * colors
    return Image.fromarray(blended.astype(np.uint8))


def png(*row: Figure) -> bytes:
    """Return the figures, of the same height, side by side as the content of a PNG file, on a white background."""
    pictures = []
    for figure in row:
        pictures.append(buffer := io.BytesIO())
        with figure_style():
            apply_layout(figure)
            figure.savefig(buffer, format="png", dpi=120, facecolor="white")
    if len(row) > 1:
        pixels = np.hstack([np.asarray(Image.open(picture).convert("RGB")) for picture in pictures])
        Image.fromarray(pixels).save(buffer := io.BytesIO(), "PNG")
    return buffer.getvalue()


def unique_prefix(folder: Path) -> str:
    """Return a prefix for the ids of a figure that may be shown beside others, the same for the same folder."""
    return f"figure-{zlib.crc32(str(folder).encode()):08x}"


def apply_layout(figure: Figure) -> None:
    """Place the axes by the figure's layout engine and remove it, since with one `savefig` draws every figure twice."""
    if (engine := figure.get_layout_engine()) is not None:
        FigureCanvasAgg(figure)
        engine.execute(figure)
        figure.set_layout_engine(None)


def svg(figure: Figure, name: str, description: str) -> str:
    """Return the figure as an `<svg>` element for a page, in the color of the page's text.

    Args:
        name: prefix of the element's ids, unique within the page.
        description: what the figure shows, for screen readers.
    """
    from html import escape

    buffer = io.StringIO()
    with figure_style(), matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        apply_layout(figure)
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    text = buffer.getvalue()
    # its style sheet would apply to the full page; the template sets its strokes instead
    text = re.sub(r"<(metadata|style)\b.*?</\1>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(
        r'\s(?:xmlns(?::\w+)?|version|width|height)="[^"]*"(?=[^<]*viewBox)|\sxmlns(?::\w+)?="[^"]*"', "", text
    )
    text = re.sub(r'(\sid="|url\(#|xlink:href="#)', rf"\g<1>{name}-", text)
    text = re.sub(r"(font(?:-family)?:[^;\"]*?)'DejaVu Sans'[^;\"]*", r"\1inherit-sans", text)
    text = text.replace("inherit-sans", "system-ui, sans-serif").replace(INK, "currentColor")
    return text.replace("<svg", f'<svg role="img" aria-label="{escape(description, quote=True)}"', 1)


@dataclass
class ThumbnailCache:
    """Thumbnails by path, each read once; it also knows which images could not be read."""

    side: int = THUMBNAIL_SIZE
    """Longer side, in pixels."""
    images: dict[str, Image.Image | None] = field(default_factory=dict)
    """Thumbnails read so far; None for an image that is missing or damaged."""

    def get(self, path: str) -> Image.Image | None:
        """Return the thumbnail, or None where the image is missing or damaged."""
        if path not in self.images:
            self.images[path] = self.read(path, self.side)
            if (image := self.images[path]) is not None:
                image.thumbnail((self.side, self.side))
        return self.images[path]

    def read(self, path: str, size: int) -> Image.Image | None:
        """Return the image, at least `size` pixels large where it has them, or None where it is missing or damaged."""
        try:
            return load_image(path, size, "image")
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):  # raised by PIL for damaged files
            return None

    @property
    def missing(self) -> list[str]:
        """Paths of the images that could not be read."""
        return [path for path, image in self.images.items() if image is None]

    @property
    def requested_count(self) -> int:
        """Number of images requested so far."""
        return len(self.images)
