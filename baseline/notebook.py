"""How results and progress look in a notebook: Jupyter, Colab, Kaggle or VS Code.

A result is a card of HTML: its number, a chart, sentences and links. Colors and fonts are those of the notebook, light
or dark, and styles are inline, as several of these programs drop style sheets. Progress is one output that changes.
IPython is never imported, only used where it runs already.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

__all__ = ["NotebookOutput", "card", "interval_chart", "is_notebook", "score_intervals", "text_table"]

BLUE = "#3b82c4"
"""Color of marks, with a contrast of at least 3 on white and on the dark backgrounds of notebooks."""

SECONDS_BETWEEN_UPDATES = 0.2

MAX_WIDTH = {True: "36em", False: "none"}
"""Maximum width of a chart, and of anything else in a card."""

LINES_STYLE = "margin:0;font-family:monospace;white-space:pre-wrap;word-break:normal;overflow-wrap:anywhere"
"""Style of the lines of progress; without it, nbconvert and JupyterLab may use another font and break words."""

MAX_SHORT_CELL = 26
"""Maximum number of characters of a cell that stays on one line."""


def is_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return getattr(shell, "kernel", None) is not None


class NotebookOutput:
    """One output of a cell that shows the latest line; a click opens the lines before it.

    >>> lines = NotebookOutput(display=None)
    >>> lines.log("reading images")
    >>> print(lines.html("12 of 40"))                                                # doctest: +ELLIPSIS
    <details><summary>12 of 40</summary><pre style="margin:0;...">reading images</pre></details>
    """

    def __init__(self, display: Any = True) -> None:
        self.lines: list[str] = []
        self._display = display
        self._handle: Any = None
        self._updated = 0.0

    def log(self, line: str) -> None:
        """Add a line."""
        self.lines.append(line)
        self.show(line, at_once=True)

    def show(self, line: str, *, at_once: bool = False) -> None:
        """Show a line that is not kept, such as the state of a bar."""
        now = time.monotonic()
        if self._display is None or not (at_once or now - self._updated > SECONDS_BETWEEN_UPDATES):
            return
        self._updated = now
        data = {"text/html": self.html(line), "text/plain": line}
        if self._handle is None:
            self._handle = sys.modules["IPython"].display.display(data, raw=True, display_id=True)
        else:
            self._handle.update(data, raw=True)

    def html(self, line: str) -> str:
        """Return the output with this line; nothing is to be opened before the first line that is kept.

        >>> print(NotebookOutput().html("predicting: 8 of 8"))
        <div>predicting: 8 of 8</div>
        """
        if not self.lines:
            return f"<div>{escape(line)}</div>"
        lines = escape("\n".join(self.lines))
        return f'<details><summary>{escape(line)}</summary><pre style="{LINES_STYLE}">{lines}</pre></details>'


def card(title: str, parts: Iterable[str] = (), sentences: Iterable[str] = (), files: Iterable[Path] = ()) -> str:
    """Return the HTML of a result.

    Args:
        title: the number with its interval.
        parts: HTML, such as a chart.
        sentences: text below it.
        files: what is linked to, if it exists.
    """
    charts = "".join(f'<div style="max-width:{MAX_WIDTH["<svg" in part]}">{part}</div>' for part in parts)
    texts = "".join(f'<div style="margin:.25em 0">{escape(sentence)}</div>' for sentence in sentences)
    links = " · ".join(f'<a href="{escape(_href(file))}" target="_blank">{escape(str(file))}</a>' for file in files
                       if file.exists())  # fmt: skip
    return (
        f'<div style="border-left:3px solid {BLUE};padding:.1em 0 .1em 1em;max-width:60em;line-height:1.45">'
        f'<div style="font-size:1.25em;font-weight:600">{escape(title)}</div>{charts}{texts}'
        f'<div style="margin-top:.4em">{links}</div></div>'
    )


def _href(file: Path) -> str:
    """Return the link to a file, relative to the working folder, which notebooks open links from."""
    from urllib.parse import quote

    try:
        return quote(Path(os.path.relpath(file)).as_posix())
    except ValueError:  # on another drive of Windows
        return file.absolute().as_uri()


def text_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table of text as HTML. Columns of numbers and other short cells are to the right, and do not wrap."""
    short = [number > 0 and max(map(len, cells)) <= MAX_SHORT_CELL
             for number, cells in enumerate(zip(headings, *rows, strict=True))]  # fmt: skip
    lines = "".join(_row("td", row, short) for row in rows)
    return (
        f'<div style="overflow-x:auto"><table style="margin:.4em 0">{_row("th", headings, short)}{lines}</table></div>'
    )


def _row(tag: str, cells: Sequence[str], short: Sequence[bool]) -> str:
    align = {True: "text-align:right;white-space:nowrap", False: "text-align:left"}
    texts = (
        f'<{tag} style="color:inherit;{align[is_short]}">{escape(cell)}</{tag}>'
        for cell, is_short in zip(cells, short, strict=True)
    )
    return f"<tr>{''.join(texts)}</tr>"


def score_intervals(metrics: Mapping[str, Any], tta: bool) -> list[tuple[str, float, float, float]]:
    """Return the name, accuracy and ends of its interval for each split, and each with TTA if it was used."""
    views = (("plain", ""), ("tta", " with TTA")) if tta else (("plain", ""),)
    return [
        (f"{split}{words}", numbers[view]["accuracy"], *numbers[view]["interval"])
        for split, numbers in metrics.items()
        for view, words in views
    ]


def interval_chart(rows: Sequence[tuple[str, float, float, float]], description: str) -> str:
    """Return a chart of shares (0 to 1) with their intervals as an `<svg>` element.

    Args:
        rows: name, value, and the ends of the interval, from top to bottom.
        description: what it shows, for screen readers.
    """
    low, high, step = _axis(min(row[2] for row in rows), max(row[3] for row in rows))
    names = 9 + 7 * max(len(name) for name, *_ in rows)
    width, height = names + 520, 26 * len(rows) + 28

    def x(share: float) -> float:
        return round(names + 10 + 320 * (share - low) / (high - low), 1)

    marks = []
    for number, (name, value, first, last) in enumerate(rows):
        y = 16 + 26 * number
        marks += [
            f'<text x="{names}" y="{y + 4}" text-anchor="end">{escape(name)}</text>',
            f'<path d="M{x(first)} {y}H{x(last)}" stroke="{BLUE}" stroke-width="4" opacity=".55"/>',
            f'<circle cx="{x(value)}" cy="{y}" r="5" fill="{BLUE}"/>',
            f'<text x="{names + 345}" y="{y + 4}">{value:.1%}<tspan opacity=".7"> ({first:.1%} to {last:.1%})</tspan>'
            "</text>",
        ]
    ticks = [low + number * step for number in range(round((high - low) / step) + 1)]
    bottom = 26 * len(rows) + 4
    marks += [
        f'<path d="M{x(tick)} 4V{bottom}" stroke="currentColor" opacity=".2"/>'
        f'<text x="{x(tick)}" y="{bottom + 16}" text-anchor="middle" opacity=".7">{100 * tick:.4g}%</text>'
        for tick in ticks
    ]
    style = "font:13px system-ui,sans-serif;max-width:100%;display:block"
    return (
        f'<svg role="img" aria-label="{escape(description)}" viewBox="0 0 {width} {height}" width="{width}" '
        f'style="{style}" fill="currentColor">{"".join(marks)}</svg>'
    )


def _axis(low: float, high: float) -> tuple[float, float, float]:
    """Return the ends of an axis of shares and the distance of its ticks.

    >>> _axis(0.846, 0.903)
    (0.84, 0.92, 0.02)
    """
    steps = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
    step = next((step for step in steps if high - low <= 3.5 * step), steps[-1])
    first, last = math.floor(low / step + 1e-9), max(math.ceil(high / step - 1e-9), math.floor(low / step + 1e-9) + 1)
    return round(first * step, 4), round(last * step, 4), step
