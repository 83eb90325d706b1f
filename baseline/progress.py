"""What a long job tells the person who waits: lines, and bars with the time left. Knows no images and no models.

Rooms are handed a `Progress` and call `say`, `bar` and `numbers`; they never print. `Progress` itself is silent, `ConsoleProgress`
draws, and the `LoggingProgress` of the module `loggers` keeps the numbers, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

__all__ = ["Bar", "ConsoleProgress", "Progress", "format_duration"]


class Bar(Protocol):
    """One running bar."""

    def step(self, n: int = 1, note: str = "") -> None:
        """Moves the bar by `n` units; `note` replaces the text at its end (a loss, a name) unless empty."""


class _SilentBar:
    def step(self, n: int = 1, note: str = "") -> None:
        pass


class Progress:
    """Says nothing. Pass `progress=Progress()` to `make_baseline` to silence it."""

    part_of_series = False
    """It shows one run of several: how to go on when it is interrupted is told by whoever makes them."""

    def log(self, line: str) -> None:
        """Tells one finished fact, on a line of its own."""

    @contextmanager
    def bar(self, title: str, total: int, unit: str = "") -> Iterator[Bar]:
        """A bar of `total` units, 0 where unknown; `unit="bytes"` shows sizes and speed, any other word a count."""
        yield _SilentBar()

    def log_metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Takes numbers of training, by name, at a step: training batches since the run began, over all stages."""


class ConsoleProgress(Progress):
    """Lines and bars on standard error by rich: plain lines without bars where that is no terminal or a notebook.

    `NO_COLOR` and `TERM=dumb` are honoured by rich itself. Standard output stays free for results.
    """

    def __init__(self) -> None:
        from rich.console import Console

        self.console = Console(stderr=True, highlight=False, soft_wrap=True)

    def log(self, line: str) -> None:
        self.console.print(line, markup=False)

    @contextmanager
    def bar(self, title: str, total: int, unit: str = "") -> Iterator[Bar]:
        if not (self.console.is_terminal or self.console.is_jupyter):
            yield _SilentBar()
            return
        with _rich_progress(self.console, unit) as progress:
            yield _ConsoleBar(progress, progress.add_task(title, total=total or None, note=""))


class _ConsoleBar:
    def __init__(self, progress: Any, task: Any) -> None:
        self.progress, self.task = progress, task

    def step(self, n: int = 1, note: str = "") -> None:
        fields = {"note": note} if note else {}
        self.progress.update(self.task, advance=n, **fields)


def _rich_progress(console: Any, unit: str) -> Any:
    from rich import progress as p

    amount = [p.DownloadColumn(), p.TransferSpeedColumn()] if unit == "bytes" else [p.MofNCompleteColumn()]
    columns = [p.TextColumn("{task.description}"), p.BarColumn(), *amount, p.TimeElapsedColumn()]
    left = p.TimeRemainingColumn()
    note = p.TextColumn("{task.fields[note]}")
    return p.Progress(*columns, p.TextColumn("left"), left, note, console=console, transient=True)


def format_duration(seconds: float) -> str:
    """Seconds in words.

    >>> format_duration(45.2), format_duration(400)
    ('45 s', '7 min')
    """
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
