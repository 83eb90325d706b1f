"""The processes in which a server of this process decodes images."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path


def decoder_processes() -> list[int]:
    """The numbers of those that run, of children of this process."""
    processes = []
    for task in Path("/proc/self/task").iterdir():
        for number in (task / "children").read_text().split():
            with suppress(OSError):
                process = Path("/proc", number)
                is_decoder = b"server.decoder" in (process / "cmdline").read_bytes()
                if is_decoder and ") Z " not in (process / "stat").read_text():
                    processes.append(int(number))
    return processes


def wait_until_none_runs(seconds: float = 60) -> None:
    """Wait for those of servers that ended; one that runs on is a fault."""
    deadline = time.monotonic() + seconds
    while processes := decoder_processes():
        assert time.monotonic() < deadline, processes
        time.sleep(0.05)
