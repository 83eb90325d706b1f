"""What memory is left for this process. Knows what the system says of itself; holds nothing."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path

import torch

__all__ = ["bfloat16_instructions", "free_memory_bytes", "has_compiler", "package_versions", "total_memory_bytes"]


PACKAGES = ("fastai-baseline", "fastai", "torch", "torchvision", "timm", "numpy", "pandas", "pillow", "safetensors")


ROOT = Path("/")


def free_memory_bytes(root: Path = ROOT) -> int | None:
    """Bytes that can be taken without swapping, of the machine or of what a container is allowed, whichever is less.

    None where the system does not say so, as everywhere but on Linux.

    Args:
        root: where `proc` and `sys` lie.
    """
    found = [each for each in (_free_on_machine(root), _free_in_container(root)) if each is not None]
    return min(found, default=None)


def _free_on_machine(root: Path) -> int | None:
    try:
        lines = (root / "proc/meminfo").read_text(encoding="ascii").splitlines()
        return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)
    except (OSError, ValueError, IndexError):
        return None


def _free_in_container(root: Path) -> int | None:
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


def total_memory_bytes() -> int:
    """The machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def bfloat16_instructions() -> list[str]:
    """What this CPU computes bfloat16 with."""
    units = {"AMX": torch.cpu._is_amx_tile_supported, "AVX-512 BF16": torch.cpu._is_avx512_bf16_supported}
    return [name for name, has in units.items() if has()]


def device_type() -> str:
    from fastai.torch_core import default_device

    return str(default_device().type)


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that the numbers depend on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "unknown"
    return found


def has_compiler() -> bool:
    """Whether `torch.compile` finds what it builds with: a C++ compiler, and Triton where there is a GPU."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler
    from torch.utils._triton import has_triton

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return False
    return has_triton() or not torch.cuda.is_available()
