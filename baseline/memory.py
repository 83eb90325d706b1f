"""What memory is left for this process. Knows what the system says of itself; holds nothing."""

from __future__ import annotations

from pathlib import Path

__all__ = ["free_memory"]

ROOT = Path("/")


def free_memory(root: Path = ROOT) -> int | None:
    """Bytes that can be taken without swapping, of the machine or of what a container is allowed, whichever is less.

    None where the system does not say so, as everywhere but on Linux.

    Args:
        root: where `proc` and `sys` lie.
    """
    found = [each for each in (_of_machine(root), _of_container(root)) if each is not None]
    return min(found, default=None)


def _of_machine(root: Path) -> int | None:
    try:
        lines = (root / "proc/meminfo").read_text(encoding="ascii").splitlines()
        return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)
    except (OSError, ValueError, IndexError):
        return None


def _of_container(root: Path) -> int | None:
    """Of control groups, version 2: the limit less what is in use, of which caches of files give way."""
    try:
        name = (root / "proc/self/cgroup").read_text(encoding="utf-8").rpartition("::/")[2].strip()
        folder = root / "sys/fs/cgroup" / name
        most = int((folder / "memory.max").read_text(encoding="ascii"))
        used = int((folder / "memory.current").read_text(encoding="ascii"))
        told = dict(line.split() for line in (folder / "memory.stat").read_text(encoding="ascii").splitlines())
        return max(0, most - used + int(told.get("inactive_file", 0)))
    except (OSError, ValueError):  # no control group, or one without a limit, which says "max"
        return None
