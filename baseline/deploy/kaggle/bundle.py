"""Collect everything that a Kaggle kernel without internet lacks in one folder, to attach as a dataset.

| in the folder | contents |
|---|---|
| `wheels/` | this package, and its requirements that Kaggle's image lacks |
| `weights/` | pretrained weights, under names by which `find_weights` finds them in `/kaggle/input` |
| `model/` | a trained model, without its golden inputs, which are images |
| `README.md`, `bundle.json` | the two lines to paste; the sha256 of every file |
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path

from baseline import __version__
from baseline.errors import OutputError, WeightsError
from baseline.files import (
    CARD_FILE,
    CONFIG_FILE,
    TENSORS_FILE,
    atomic_folder,
    is_inside,
    sha256_of,
    to_json,
    write_atomic,
)
from baseline.progress import Progress
from baseline.reading import MAX_WEIGHTS_BYTES, read_content

__all__ = ["Bundle", "bundle"]


BUNDLE_FILE = "bundle.json"
"""Name of the file that marks a folder as a bundle and lists the sha256 of its files."""

PROJECT = "fastai-baseline"

ON_KAGGLE = {
    "fastai", "fasttransform", "filelock", "huggingface-hub", "jinja2", "markupsafe", "matplotlib", "numpy", "pandas",
    "pillow", "platformdirs", "pyyaml", "rich", "safetensors", "scikit-learn", "scipy", "thinc", "timm", "torch",
    "torchvision", "typer",
}  # fmt: skip
"""Packages in Kaggle's image, in any version."""


INSTALL_COMMAND = (
    "!pip install -q --no-index --no-deps "
    "$(dirname $(find /kaggle/input -name 'fastai_baseline-*.whl' | head -1))/*.whl"
)
"""Line that installs the wheels in a kernel."""


@dataclass(frozen=True)
class Bundle:
    """A bundle that was written."""

    folder: Path
    files: dict[str, int]
    """Names in the folder, and sizes in bytes."""
    lines: tuple[str, str]
    """Lines to paste into a kernel that the folder is attached to."""

    def __str__(self) -> str:
        megabytes, plural = sum(self.files.values()) / 1e6, "" if len(self.files) == 1 else "s"
        summary = f"{self.folder}: {len(self.files)} file{plural}, {megabytes:.1f} MB. Attach it, and paste:"
        return "\n".join([summary, "", *self.lines])


def bundle(
    folder: str | Path,
    archs: Sequence[str] = (),
    model: str | Path | None = None,
    *,
    everything: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Bundle:
    """Collect in one folder all that a Kaggle kernel without internet needs of this package, to attach as a dataset.

    Args:
        archs: architectures whose pretrained weights to include; those of the default one come in a wheel.
        model: a run folder or its `model/`, to predict with in the kernel.
        everything: include wheels of all requirements, for this Python version and operating system, instead of only
            those that Kaggle lacks.
        overwrite: replace an existing bundle; any other folder is refused.

    Raises:
        OutputError: if the folder exists or cannot be written, pip fails, or there is no model.
        WeightsError: if weights cannot be found, or are not those of the architecture.
        RecipeError: if an architecture does not exist.

    >>> bundle("kaggle-baseline", ["resnet18"], "runs/mine")                       # doctest: +SKIP
    """
    folder, progress = Path(folder).expanduser(), progress or Progress()
    if folder.exists() and not overwrite:
        raise OutputError(f"{folder} exists. Pass --overwrite, or choose another folder.")
    if folder.exists() and not (folder / BUNDLE_FILE).is_file():
        raise OutputError(f"{folder} is not a bundle, so it is not replaced. Choose another folder.")
    # not importlib.util.find_spec, with which setuptools would replace distutils in this process
    if PathFinder.find_spec("pip") is None:
        raise OutputError("Collecting wheels needs pip, which this Python lacks. Install it: python -m ensurepip")
    with atomic_folder(folder, overwrite=overwrite) as work:
        if model is not None:
            bundle_model(model, work / "model", progress)
        for arch in dict.fromkeys(archs):
            bundle_weights(arch, work / "weights", progress)
        build_wheels(work / "wheels", everything, progress)
        lines = _kernel_lines(archs, model)
        write_atomic(work / CARD_FILE, _readme(work, lines, everything))
        files = {path.relative_to(work).as_posix(): path for path in sorted(work.rglob("*")) if path.is_file()}
        sizes = {name: path.stat().st_size for name, path in files.items()}
        hashes = {name: sha256_of(path) for name, path in files.items()}
        write_atomic(
            work / BUNDLE_FILE, to_json({"format": 1, "made_by": f"{PROJECT} {__version__}", "sha256": hashes})
        )
    return Bundle(folder, sizes, lines)


def _kernel_lines(archs: Sequence[str], model: str | Path | None) -> tuple[str, str]:
    if model is not None:
        return INSTALL_COMMAND, "!baseline submit $(dirname $(find /kaggle/input -name model.json | head -1))"
    arch = f" --arch {archs[0]}" if archs else ""
    return INSTALL_COMMAND, f"!baseline run /kaggle/input/COMPETITION{arch} --out /kaggle/working/run"


def _readme(work: Path, lines: tuple[str, str], everything: bool) -> str:
    wheels, weights = ([path.name for path in sorted((work / part).glob("*"))] for part in ("wheels", "weights"))
    requirements = "all its requirements" if everything else "its requirements that Kaggle's image lacks"
    origin = f"collected with Python {platform.python_version()} on {platform.system()} {platform.machine()}"
    parts = [
        f"# {PROJECT} {__version__} without internet",
        "Attach this folder to a kernel as a dataset, and paste:",
        "```\n" + "\n".join(lines) + "\n```",
        f"Wheels of {PROJECT} and {requirements}, {origin}: {', '.join(wheels)}.",
        *([f"Pretrained weights, found automatically: {', '.join(weights)}."] if weights else []),
        *(["A trained model, in `model/`."] if (work / "model").exists() else []),
    ]
    return "\n\n".join(parts) + "\n"


def bundle_model(model: str | Path, target: Path, progress: Progress) -> None:
    """Copy a model folder without its golden inputs, and check that the copy loads."""
    from baseline.inference.model import load_model

    source = load_model(model).folder
    for name in (CONFIG_FILE, TENSORS_FILE, CARD_FILE):
        if name == CARD_FILE and not is_inside(source / name, source):
            progress.log(f"model: {source / name} is left out, because it is a link to a file elsewhere")
        elif (source / name).is_file():
            write_atomic(target / name, read_content(source / name, MAX_WEIGHTS_BYTES))
    load_model(target)
    progress.log(f"model: {source}, without its golden inputs")


def bundle_weights(arch: str, target: Path, progress: Progress) -> None:
    """Copy pretrained weights after loading them into their network and verifying their sha256."""
    from baseline.vision.network import build_network
    from baseline.vision.weights import find_weights, kaggle_name

    weights = find_weights(arch, progress=progress)
    build_network(arch, 2, weights)
    content = weights.path.read_bytes()
    if hashlib.sha256(content).hexdigest() != weights.sha256:
        raise WeightsError(f"{weights.path} changed while it was read. Try again.")
    write_atomic(target / kaggle_name(weights), content)


def build_wheels(target: Path, everything: bool, progress: Progress) -> None:
    """Build or download the wheels of this package and its requirements, all or only those that Kaggle lacks."""
    own = _build_own_wheel(target, progress)
    if everything:
        progress.log("wheels: all requirements, several GB, which takes minutes")
        _run_pip("wheel", "--wheel-dir", str(target), str(own))
        return
    missing = [line for line in read_requirements(own) if normalize_name(line) not in ON_KAGGLE]
    progress.log(f"wheels: {', '.join(map(normalize_name, missing))}")
    _run_pip("wheel", "--no-deps", "--wheel-dir", str(target), *missing)


def _build_own_wheel(target: Path, progress: Progress) -> Path:
    """Build this package's wheel from its sources if it runs from them, else download that of the same version."""
    root = Path(__file__).parents[3]
    from_sources = (root / "pyproject.toml").is_file()
    requirement = str(root) if from_sources else f"{PROJECT}=={__version__}"
    progress.log(f"wheels: {PROJECT} {__version__} from {root if from_sources else 'the package index'}")
    isolation = ["--no-build-isolation"] if from_sources and find_spec("hatchling") else []
    _run_pip("wheel", "--no-deps", *isolation, "--wheel-dir", str(target), requirement)
    return next(target.glob("fastai_baseline-*.whl"))


def read_requirements(wheel: Path) -> list[str]:
    """Return the requirements of a wheel, without those of its extras."""
    with zipfile.ZipFile(wheel) as file:
        metadata = next(name for name in file.namelist() if name.endswith(".dist-info/METADATA"))
        lines = file.read(metadata).decode().partition("\n\n")[0].splitlines()
    requirements = [line.removeprefix("Requires-Dist: ") for line in lines if line.startswith("Requires-Dist: ")]
    return [line.replace(" ", "") for line in requirements if "extra" not in line.partition(";")[2]]


def normalize_name(requirement: str) -> str:
    """Return a requirement's package name as the index normalizes it.

    >>> normalize_name("Python_multipart>=0.0.9")
    'python-multipart'
    """
    match = re.match(r"[\w.-]+", requirement)
    return re.sub(r"[-_.]+", "-", match.group() if match else requirement).lower()


def _run_pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", *arguments, "--quiet", "--disable-pip-version-check"]
    result = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, env=os.environ)
    if result.returncode:
        lines = [line for line in result.stderr.splitlines() if line.strip()] or ["it failed"]
        reason = next((line for line in reversed(lines) if line.startswith("ERROR")), lines[-1])
        raise OutputError(
            f"pip cannot collect wheels: {reason.removeprefix('ERROR: ')[:200]}. Is the package index reachable?"
        )
