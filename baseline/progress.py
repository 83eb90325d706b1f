"""Progress of long jobs: log lines, progress bars with the remaining time, and training metrics.

Functions take a `Progress` and call `log`, `bar` and `log_metrics`; they never print. `Progress` itself is silent,
`ConsoleProgress` writes to the terminal, and `LoggingProgress` (in `training.loggers`) also records the metrics.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from baseline.notebook import NotebookOutput, is_notebook
from baseline.terminal import escape_controls, make_console, shorten_runs

__all__ = ["Bar", "ConsoleProgress", "Progress", "format_duration"]


LOG_SECONDS = 30
"""Seconds between the lines of a step where no bar can be drawn."""


class Bar(Protocol):
    """A running progress bar."""

    def step(self, n: int = 1, note: str = "") -> None:
        """Advance the bar by `n` units; a non-empty `note` replaces the text at its end (a loss, a name)."""


class _SilentBar:
    def step(self, n: int = 1, note: str = "") -> None:
        pass


class Progress:
    """Silent progress and base class of the others. Pass `progress=Progress()` to `make_baseline` to silence it."""

    part_of_series = False
    """Whether the run is one of a series; then the series, not the run, says how to resume after an interrupt."""

    def log(self, line: str) -> None:
        """Write one line."""

    @contextmanager
    def bar(self, title: str, total: int, unit: str = "") -> Iterator[Bar]:
        """Show a bar of `total` units (0 if unknown); `unit="bytes"` shows size and speed, any other unit a count."""
        yield _SilentBar()

    def log_metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Record training metrics by name; `step` counts the training batches since the start, over all stages."""

    def log_summary(self, values: Mapping[str, float]) -> None:
        """Record the final metrics of a run by name."""


class ConsoleProgress(Progress):
    """Lines and bars on standard error, drawn by rich; outside a terminal or notebook a line every 30 s, not a bar.

    A notebook shows a single line that changes; a click opens the lines before it.
    Rich itself honors `NO_COLOR` and `TERM=dumb`. Standard output stays free for results.
    """

    def __init__(self) -> None:
        self.cell = NotebookOutput() if is_notebook() else None
        self.console = make_console(stderr=True, soft_wrap=True)

    def log(self, line: str) -> None:
        if self.cell:
            self.cell.log(escape_controls(shorten_runs(line)))
            return
        self.console.print(shorten_runs(line), markup=False)

    @contextmanager
    def bar(self, title: str, total: int, unit: str = "") -> Iterator[Bar]:
        if self.cell:
            yield _NotebookBar(self.cell, title, total, unit)
            return
        if not self.console.is_terminal:
            yield _LogBar(self, title, total, unit)
            return
        with _rich_progress(self.console, unit) as progress:
            yield _ConsoleBar(progress, progress.add_task(escape_controls(title), total=total or None, note=""))


class _LogBar:
    """Writes a line every `LOG_SECONDS`, as a bar cannot be drawn in a log."""

    def __init__(self, progress: Progress, title: str, total: int, unit: str) -> None:
        self.progress, self.title, self.total, self.unit = progress, title, total, unit
        self.done, self.start = 0, time.monotonic()
        self.next_line = self.start + LOG_SECONDS

    def step(self, n: int = 1, note: str = "") -> None:
        self.done += n
        now = time.monotonic()
        if now >= self.next_line:
            self.next_line = now + LOG_SECONDS
            self.progress.log(describe_progress(self.title, self.done, self.total, self.unit, now - self.start))


def describe_progress(title: str, done: int, total: int, unit: str, seconds: float) -> str:
    """Return a line about a step that runs.

    >>> describe_progress("stage 2", 640, 2270, "batches", 35)
    'stage 2: 640 of 2,270 batches, 35 s, about 89 s left'
    >>> describe_progress("cifar.tar", 5_000_000, 0, "bytes", 40)
    'cifar.tar: 5 MB, 40 s'
    """
    scale, name = (1_000_000, "MB") if unit == "bytes" else (1, unit)
    of = f" of {total / scale:,.0f}" if total else ""
    left = f", about {format_duration(seconds * (total - done) / done)} left" if 0 < done < total else ""
    return f"{title}: {done / scale:,.0f}{of} {name}".rstrip() + f", {format_duration(seconds)}{left}"


class _ConsoleBar:
    def __init__(self, progress: Any, task: Any) -> None:
        self.progress, self.task = progress, task

    def step(self, n: int = 1, note: str = "") -> None:
        fields = {"note": escape_controls(note)} if note else {}
        self.progress.update(self.task, advance=n, **fields)


class _NotebookBar:
    def __init__(self, cell: NotebookOutput, title: str, total: int, unit: str) -> None:
        self.cell, self.title, self.total, self.unit = cell, title, total, unit
        self.began, self.done, self.note = time.monotonic(), 0, ""

    def step(self, n: int = 1, note: str = "") -> None:
        self.done, self.note = self.done + n, note or self.note
        seconds = time.monotonic() - self.began
        left = seconds * (self.total - self.done) / self.done if self.total and self.done else 0
        count = f"{self.done / 1e6:.0f} of {self.total / 1e6:.0f} MB" if self.unit == "bytes" else (
            f"{self.done:,} of {self.total:,}" if self.total else f"{self.done:,}"
        )  # fmt: skip
        parts = (f"{self.title}: {count}", f"{format_duration(left)} left" if left else "", self.note)
        self.cell.show("; ".join(part for part in parts if part))


def _rich_progress(console: Any, unit: str) -> Any:
    from rich import progress as rich

    amount = [rich.DownloadColumn(), rich.TransferSpeedColumn()] if unit == "bytes" else [rich.MofNCompleteColumn()]
    columns = [rich.TextColumn("{task.description}"), rich.BarColumn(), *amount, rich.TimeElapsedColumn()]
    remaining = rich.TimeRemainingColumn()
    note = rich.TextColumn("{task.fields[note]}")
    return rich.Progress(*columns, rich.TextColumn("left"), remaining, note, console=console, transient=True)


def format_duration(seconds: float) -> str:
    """Return a duration as text, in seconds below 90 seconds, else in minutes.

    >>> format_duration(45.2), format_duration(400)
    ('45 s', '7 min')
    """
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
