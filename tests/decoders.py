"""The processes in which a server of this process decodes images."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path


def decoder_processes() -> list[int]:
    """The numbers of those that run, of children of this process."""
    found = []
    for task in Path("/proc/self/task").iterdir():
        for number in (task / "children").read_text().split():
            with suppress(OSError):
                process = Path("/proc", number)
                is_decoder = b"server.decoder" in (process / "cmdline").read_bytes()
                if is_decoder and ") Z " not in (process / "stat").read_text():
                    found.append(int(number))
    return found
