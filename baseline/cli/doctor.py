"""The command `doctor`: checks the installation. It changes nothing and downloads nothing."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator
from importlib.util import find_spec
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
    """Yield what torch will compute on, found without loading torch, which takes seconds."""
    from baseline.system import cpu_flags

    threads = os.environ.get("OMP_NUM_THREADS", "")
    limit = f", limited to {threads} threads by OMP_NUM_THREADS" if threads else ""
    yield "device", _gpu() or f"cpu, {os.cpu_count()} cores{limit}"
    flags = cpu_flags()
    yield "bfloat16 on the CPU", "yes" if "avx512_bf16" in flags or "amx_bf16" in flags else "no: emulated, much slower"
    yield "AMX", "yes" if "amx_tile" in flags else "no"


def _gpu() -> str:
    """Return the first GPU that torch can use, its memory and how many there are; empty without one."""
    if platform.system() == "Darwin" and platform.machine() == "arm64":
        return "mps, the GPU of this Mac"
    if version := _torch_backend("hip"):
        return f"torch was built for ROCm {version}; rocm-smi lists its GPUs"
    if not _torch_backend("cuda") or shutil.which("nvidia-smi") is None:
        return ""
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    ended = subprocess.run(query, capture_output=True, text=True, check=False)
    gpus = [line.rpartition(", ") for line in ended.stdout.splitlines()] if ended.returncode == 0 else []
    if not gpus:
        return ""
    name, _, mebibytes = gpus[0]
    memory = f", {int(mebibytes) / 1024:.0f} GiB" if mebibytes.isdigit() else ""
    return f"cuda: {name}{memory}; {len(gpus)} in all"


def _torch_backend(name: str) -> str:
    """Return the version of CUDA (`cuda`) or ROCm (`hip`) that torch was built for; empty if it was built without.

    It is read from the file `torch/version.py`, as importing torch takes seconds.
    """
    spec = find_spec("torch")
    file = Path(spec.origin or "").with_name("version.py") if spec else Path()
    match = re.search(rf"^{name}\b[^=]*= '([^']+)'", file.read_text() if file.is_file() else "", re.MULTILINE)
    return match.group(1) if match else ""


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
    from baseline.vision.weights import PACKAGES, find_in_package

    for arch in (EMBEDDED_ARCH, "resnet18", "resnet50", "mobilenet_v2"):
        package = PACKAGES[arch][0] if find_in_package(arch) else ""
        source = f"the installed package {package}" if package else next(map(str, _weight_files(arch)), "")
        yield f"weights of {arch}", source or "not on this machine; needs internet once, or --weights PATH"


def _weight_files(arch: str) -> Iterator[Path]:
    """Yield files that are named as torchvision, timm and Kaggle inputs name the weights of an architecture.

    What torchvision and timm publish is not looked up, as importing them takes seconds.
    """
    from baseline.files import cache_home
    from baseline.vision.weights import find_on_kaggle

    user_cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    torch_home = Path(os.environ.get("TORCH_HOME") or user_cache / "torch")
    hub_cache = Path(
        os.environ.get("HF_HUB_CACHE") or Path(os.environ.get("HF_HOME", user_cache / "huggingface"), "hub")
    )
    for folder in (torch_home / "hub/checkpoints", cache_home() / "weights"):
        yield from folder.glob(f"{arch}-*.pth")
    for folder in (hub_cache, cache_home() / "weights"):
        for name in ("model.safetensors", "pytorch_model.bin"):
            yield from folder.glob(f"models--timm--{arch}.*/snapshots/*/{name}")
    yield from (file for file, _ in find_on_kaggle(arch, []))


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
