"""A bound on the memory that the threads of one process use at the same time."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from baseline.system import free_memory_bytes, total_memory_bytes

__all__ = ["MemoryLimit"]


FRACTION = 1 / 4
"""Fraction of the memory that is free at first use that may be reserved at the same time."""


class MemoryLimit:
    """Lets threads wait until the memory that they need fits below a limit.

    A reservation above the limit waits until it is the only one. A thread that holds a reservation is not made to wait
    for a second one, so that it cannot wait for itself.

    Args:
        max_bytes: the limit; 0 is a quarter of the memory that is free at first use.

    >>> limit = MemoryLimit(10**9)
    >>> with limit.reserve(3 * 10**9):
    ...     limit.used_bytes
    1000000000
    """

    def __init__(self, max_bytes: int = 0) -> None:
        self.max_bytes = max_bytes
        self._reset()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._reset)

    def _reset(self) -> None:
        self.used_bytes, self.changed, self.thread = 0, threading.Condition(), threading.local()

    @contextmanager
    def reserve(self, size: int) -> Iterator[None]:
        """Context manager that waits until `size` bytes are free, and gives them back at its end."""
        if getattr(self.thread, "has_reservation", False):
            yield
            return
        self.max_bytes = self.max_bytes or int((free_memory_bytes() or total_memory_bytes() / 2) * FRACTION)
        size = min(size, self.max_bytes)
        with self.changed:
            self.changed.wait_for(lambda: self.used_bytes + size <= self.max_bytes)
            self.used_bytes += size
        self.thread.has_reservation = True
        try:
            yield
        finally:
            self.thread.has_reservation = False
            with self.changed:
                self.used_bytes -= size
                self.changed.notify_all()
