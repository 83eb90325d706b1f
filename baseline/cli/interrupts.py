"""Signals that end a command: finished work is saved, half-written files are removed, and the exit code says which."""

from __future__ import annotations

import signal
import time
from typing import Any

__all__ = ["ignore_signals", "interrupt_on_signals", "interrupted_code", "is_interrupted"]


REPEAT_SECONDS = 1.0
"""Seconds after an interrupt in which further ones are ignored. Shells and programs that start a command often send
several, and the second would interrupt the removal of half-written files."""


_received: list[tuple[int, float]] = []
"""Signals that interrupted this process, with the time of each."""


def interrupt_on_signals() -> None:
    """Raise a KeyboardInterrupt on Ctrl-C, SIGTERM and SIGHUP; signals that the process ignores stay ignored.

    `nohup` ignores SIGHUP, and a shell SIGINT for commands that it starts in the background.
    """
    _set_handlers(_interrupt)


def ignore_signals() -> None:
    """Ignore these signals while the process ends, with an exit code that is already known."""
    _set_handlers(signal.SIG_IGN)


def is_interrupted() -> bool:
    """Return whether a signal interrupted this process."""
    return bool(_received)


def interrupted_code() -> int:
    """Return the exit code of a process that was interrupted: 128 plus the number of the signal, as in a shell."""
    return 128 + (_received[-1][0] if _received else signal.SIGINT)


def _interrupt(number: int, _: Any) -> None:
    now = time.monotonic()
    if _received and now - _received[-1][1] < REPEAT_SECONDS:
        return
    _received.append((number, now))
    raise KeyboardInterrupt


def _set_handlers(handler: Any) -> None:
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)
