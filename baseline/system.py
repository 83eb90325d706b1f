"""Facts about the machine and the installation: memory, CPU instructions, device, versions, locks, access rights."""

from __future__ import annotations

import ctypes
import errno
import gc
import glob
import importlib.metadata
import os
import platform
import shutil
import stat
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

__all__ = [
    "all_or_none",
    "bfloat16_instructions",
    "fast_imports",
    "free_memory_bytes",
    "is_intel_cpu",
    "is_running",
    "is_world_writable",
    "lock_file",
    "package_versions",
    "remove_leftovers",
    "replaceable_parent",
    "return_free_memory",
    "thread_count",
    "total_memory_bytes",
    "wait_for_gpu",
]


PACKAGES = ("fastai-baseline", "fastai", "torch", "torchvision", "timm", "numpy", "pandas", "pillow", "safetensors")
"""Packages whose versions are recorded with a run."""


ROOT = Path("/")


NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)
"""Errors of a disk that has no locks."""


def free_memory_bytes(root: Path = ROOT) -> int | None:
    """Return the memory in bytes that can be used without swapping, of the machine or the container if that has less.

    Returns None where the system does not report it, which is everywhere but on Linux.

    Args:
        root: folder that contains `proc` and `sys`.
    """
    limits = (_free_on_machine(root), _free_in_container(root))
    return min((free_bytes for free_bytes in limits if free_bytes is not None), default=None)


def _free_on_machine(root: Path) -> int | None:
    try:
        lines = (root / "proc/meminfo").read_text(encoding="ascii").splitlines()
        return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)
    except (OSError, ValueError, IndexError):
        return None


def _free_in_container(root: Path) -> int | None:
    """Return the limit of the control group (version 2) minus its usage, of which inactive file caches do not count."""
    try:
        name = (root / "proc/self/cgroup").read_text(encoding="utf-8").rpartition("::/")[2].strip()
        folder = root / "sys/fs/cgroup" / name
        max_bytes = int((folder / "memory.max").read_text(encoding="ascii"))
        used_bytes = int((folder / "memory.current").read_text(encoding="ascii"))
        statistics = dict(line.split() for line in (folder / "memory.stat").read_text(encoding="ascii").splitlines())
        return max(0, max_bytes - used_bytes + int(statistics.get("inactive_file", 0)))
    except (OSError, ValueError):  # no control group, or one without a limit ("max")
        return None


def return_free_memory() -> None:
    """Return memory that was freed to the system: the allocator of the GNU C library keeps much of it."""
    with suppress(OSError, AttributeError, TypeError):  # another C library; Windows
        ctypes.CDLL(None).malloc_trim(0)


def total_memory_bytes() -> int:
    """Return the total memory of the machine in bytes."""
    if not hasattr(os, "sysconf"):
        return _windows_memory()
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _windows_memory() -> int:
    """Return what `GlobalMemoryStatusEx` reports as the total memory: two 32-bit numbers, then 64-bit ones."""
    status = (ctypes.c_ulonglong * 8)()
    ctypes.cast(status, ctypes.POINTER(ctypes.c_ulong))[0] = ctypes.sizeof(status)
    kernel: Any = vars(ctypes)["windll"].kernel32
    kernel.GlobalMemoryStatusEx(ctypes.byref(status))
    return int(status[1])


def bfloat16_instructions() -> list[str]:
    """Return the names of the instruction sets that this CPU has for bfloat16."""
    import torch

    units = {
        "AMX": ("_is_amx_tile_supported", "amx_tile"), "AVX-512 BF16": ("_is_avx512_bf16_supported", "avx512_bf16"),
    }  # fmt: skip
    if not all(hasattr(torch.cpu, function) for function, _ in units.values()):  # before torch 2.6
        return [name for name, (_, flag) in units.items() if flag in cpu_info("flags")]
    return [name for name, (function, _) in units.items() if getattr(torch.cpu, function)()]


def cpu_info(field: str) -> set[str]:
    """Return the values of a field of `/proc/cpuinfo`, such as `"flags"`; none if there is no such file."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return set()
    return {value for line in lines if line.startswith(field) for value in line.split()}


def is_intel_cpu() -> bool:
    """Return whether the CPU is Intel's; False if the system does not name the vendor."""
    return "GenuineIntel" in {*cpu_info("vendor_id"), *platform.processor().split()}


def device_type() -> str:
    """Return the type of fastai's default device, such as `"cuda"` or `"cpu"`."""
    with fast_imports():
        from fastai.torch_core import default_device

    return str(default_device().type)


def wait_for_gpu(device: str) -> None:
    """Wait until a GPU has computed what it was given, which it does while Python goes on.

    Args:
        device: the type of a device; nothing is waited for on others than `"cuda"` and `"mps"`.
    """
    import torch

    if device in ("cuda", "mps"):
        getattr(torch, device).synchronize()


is_command = False
"""Whether this process runs a command and nothing else, so that no garbage of a caller is frozen with the imports."""


MANY_MODULES = 100
"""Number of modules that are imported at once from which freezing them saves more time than it takes."""


@contextmanager
def fast_imports() -> Iterator[None]:
    """Import libraries with a fifth less CPU time: the garbage collector pauses, as imports create no garbage.

    What libraries warn of while they are imported, such as what they themselves use that is deprecated, is not shown.
    """
    enabled, modules = gc.isenabled(), len(sys.modules)
    gc.disable()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        if is_command and len(sys.modules) > modules + MANY_MODULES:
            gc.freeze()  # the first collection would walk through all that was imported, for half a second
        if enabled:
            gc.enable()


def is_world_writable(folder: Path) -> bool:
    """Return whether every user of the machine can write to a folder; False if it cannot be examined."""
    try:
        return os.name == "posix" and bool(folder.stat().st_mode & stat.S_IWOTH)
    except OSError:
        return False


def replaceable_parent(folder: Path) -> Path | None:
    """Return the folder above that every user can write to, and so replace what is in it; a sticky one is none."""
    for parent in dict.fromkeys((*folder.parents, *folder.resolve().parents)):
        with suppress(OSError):
            if is_world_writable(parent) and not parent.stat().st_mode & stat.S_ISVTX:
                return parent
    return None


def is_running(number: str) -> bool:
    """Return whether a process may exist; True where that cannot be examined.

    Args:
        number: its id in decimal digits.
    """
    if os.name != "posix" or not number.isdecimal():
        return True
    try:
        os.kill(int(number), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # of another user
        pass
    return True


def remove_leftovers(folder: Path, kind: str) -> None:
    """Remove what processes that were killed left beside a folder, under the names `.FOLDER.KIND-PROCESS`."""
    for leftover in folder.parent.glob(f".{glob.escape(folder.name)}.{kind}-*"):
        if not is_running(leftover.name.rpartition("-")[2]):
            shutil.rmtree(leftover, ignore_errors=True)


@contextmanager
def lock_file(path: Path, wait: Callable[[], object] | None = None, *, soft: bool = True) -> Iterator[None]:
    """Hold the operating system's lock on a file. It ends with the process that holds it, however that ends.

    Args:
        path: made if it does not exist.
        wait: called if another process holds the lock, which is then waited for; None to raise an error at once.
        soft: whether a file that is removed afterwards is the lock where the disk has none, as far as the installed
            filelock supports it; otherwise there is no lock then.

    Raises:
        BlockingIOError: if another process holds the lock, and is not waited for.
        OSError: if the file cannot be made.

    >>> with lock_file(Path("images.lock"), wait=lambda: print("waiting for another run")):
    ...     pass
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path, fallback_to_soft=soft)
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if wait is None:
                raise BlockingIOError(errno.EWOULDBLOCK, "another process holds its lock", str(path)) from None
            wait()
            lock.acquire()
    except NotImplementedError:  # what filelock 3.16 raises for ENOSYS
        pass
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    try:
        yield
    finally:
        lock.release()


@contextmanager
def all_or_none(*files: Path) -> Iterator[None]:
    """Remove those of several files that the block has made if it fails or is interrupted before all are there."""
    new = [file for file in files if not file.exists()]
    try:
        yield
    except BaseException:
        for file in new:
            with suppress(OSError):
                file.unlink()
        raise


def thread_count() -> int:
    """Return the number of threads that torch computes with in this process."""
    import torch

    return torch.get_num_threads()


def package_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that results depend on."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "unknown"
    return versions
