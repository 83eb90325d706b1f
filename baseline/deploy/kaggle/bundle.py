"""What a kernel without internet lacks -> one folder to attach as a data set. Knows pip, weights and model folders.

| in the folder | what it is |
|---|---|
| `wheels/` | this package, and what the image lacks of what it needs |
| `weights/` | pretrained weights, under the names by which `find_weights` finds them in `/kaggle/input` |
| `model/` | a trained model, without its golden inputs, which are images |
| `README.md`, `bundle.json` | the two lines to paste; sha256 of every file |
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
from baseline.files import CARD_FILE, CONFIG_FILE, TENSORS_FILE, atomic_folder, sha256_of, to_json, write_atomic
from baseline.progress import Progress

__all__ = ["Bundle", "bundle"]


WEIGHTS_LIST = "bundle.json"

PROJECT = "fastai-baseline"

ON_KAGGLE = {
    "fastai", "fasttransform", "filelock", "huggingface-hub", "jinja2", "markupsafe", "matplotlib", "numpy", "pandas",
    "pillow", "platformdirs", "pyyaml", "rich", "safetensors", "scikit-learn", "scipy", "timm", "torch", "torchvision",
    "typer",
}  # fmt: skip
"""Packages of Kaggle's image, in whatever version."""


INSTALL_COMMAND = (
    "!pip install -q --no-index --no-deps "
    "$(dirname $(find /kaggle/input -name 'fastai_baseline-*.whl' | head -1))/*.whl"
)


@dataclass(frozen=True)
class Bundle:
    """A folder that was written."""

    folder: Path
    files: dict[str, int]
    """Their names in it, and bytes."""
    lines: tuple[str, str]
    """What to paste into a kernel that the folder is attached to."""

    def __str__(self) -> str:
        words = (
            f"{self.folder}: {len(self.files)} files, {sum(self.files.values()) / 1e6:.1f} MB. Attach it, and paste:"
        )
        return "\n".join([words, "", *self.lines])


def bundle(
    folder: str | Path,
    archs: Sequence[str] = (),
    model: str | Path | None = None,
    *,
    everything: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Bundle:
    """A folder with all that a Kaggle kernel without internet needs of this package: attach it as a data set.

    Args:
        archs: architectures whose pretrained weights go with it; the default one's come in a wheel.
        model: a run folder or its `model/`, to predict with there.
        everything: wheels of all that this package needs, for this Python and system, instead of what Kaggle lacks.
        overwrite: a bundle that is there is replaced; any other folder is refused.

    Raises:
        OutputError: if the folder is there or cannot be written, pip fails, or the model is none.
        WeightsError: if weights cannot be had, or are not those of the architecture.
        RecipeError: for an architecture that does not exist.

    >>> bundle("kaggle-baseline", ["resnet18"], "runs/mine")                       # doctest: +SKIP
    """
    folder, progress = Path(folder).expanduser(), progress or Progress()
    if folder.exists() and not overwrite:
        raise OutputError(f"{folder} exists. Give --overwrite, or another folder.")
    if folder.exists() and not (folder / WEIGHTS_LIST).is_file():
        raise OutputError(f"{folder} is no bundle, and is not replaced. Give another folder.")
    if PathFinder.find_spec("pip") is None:  # importlib.util's would have setuptools give up its distutils here
        raise OutputError("Collecting wheels needs pip, which this Python lacks. Install it: python -m ensurepip")
    with atomic_folder(folder, overwrite=overwrite) as work:
        if model is not None:
            _copy_model(model, work / "model", progress)
        for arch in dict.fromkeys(archs):
            _copy_weights(arch, work / "weights", progress)
        build_wheels(work / "wheels", everything, progress)
        lines = _kernel_lines(archs, model)
        write_atomic(work / CARD_FILE, _write_readme(work, lines, everything))
        files = {path.relative_to(work).as_posix(): path for path in sorted(work.rglob("*")) if path.is_file()}
        sizes = {name: path.stat().st_size for name, path in files.items()}
        hashes = {name: sha256_of(path) for name, path in files.items()}
        write_atomic(
            work / WEIGHTS_LIST, to_json({"format": 1, "made_by": f"{PROJECT} {__version__}", "sha256": hashes})
        )
    return Bundle(folder, sizes, lines)


def _kernel_lines(archs: Sequence[str], model: str | Path | None) -> tuple[str, str]:
    if model is not None:
        return INSTALL_COMMAND, "!baseline submit $(dirname $(find /kaggle/input -name model.json | head -1))"
    arch = f" --arch {archs[0]}" if archs else ""
    return INSTALL_COMMAND, f"!baseline run /kaggle/input/COMPETITION{arch} --out /kaggle/working/run"


def _write_readme(work: Path, lines: tuple[str, str], everything: bool) -> str:
    wheels, weights = ([path.name for path in sorted((work / part).glob("*"))] for part in ("wheels", "weights"))
    which = "all that it needs" if everything else "what Kaggle's image lacks of what it needs"
    made = f"collected with Python {platform.python_version()} on {platform.system()} {platform.machine()}"
    parts = [
        f"# {PROJECT} {__version__} without internet",
        "Attach this folder to a kernel as a data set, and paste:",
        "```\n" + "\n".join(lines) + "\n```",
        f"Wheels of {PROJECT} and of {which}, {made}: {', '.join(wheels)}.",
        *([f"Pretrained weights, found by themselves: {', '.join(weights)}."] if weights else []),
        *(["A trained model, in `model/`."] if (work / "model").exists() else []),
    ]
    return "\n\n".join(parts) + "\n"


def _copy_model(model: str | Path, target: Path, progress: Progress) -> None:
    from baseline.inference.model import load_model

    source = load_model(model).folder
    for name in (CONFIG_FILE, TENSORS_FILE, CARD_FILE):
        if (source / name).is_file():
            write_atomic(target / name, (source / name).read_bytes())
    load_model(target)
    progress.log(f"model: {source}, without its golden inputs")


def _copy_weights(arch: str, target: Path, progress: Progress) -> None:
    """Copies the weights, having put them into their network and taken their sha256 again."""
    from baseline.vision.network import build_network
    from baseline.vision.weights import find_weights, kaggle_name

    found = find_weights(arch, progress=progress)
    build_network(arch, 2, found)
    content = found.path.read_bytes()
    if hashlib.sha256(content).hexdigest() != found.sha256:
        raise WeightsError(f"{found.path} changed while it was read. Try again.")
    write_atomic(target / kaggle_name(found), content)


def build_wheels(target: Path, everything: bool, progress: Progress) -> None:
    own = _build_own_wheel(target, progress)
    if everything:
        progress.log("wheels: all that it needs, which is some GB and takes minutes")
        _run_pip("wheel", "--wheel-dir", str(target), str(own))
        return
    lacking = [each for each in read_requirements(own) if normalize_name(each) not in ON_KAGGLE]
    progress.log(f"wheels: {', '.join(map(normalize_name, lacking))}")
    _run_pip("wheel", "--no-deps", "--wheel-dir", str(target), *lacking)


def _build_own_wheel(target: Path, progress: Progress) -> Path:
    """This package's wheel: built where it runs from its sources, else the index's of the same version."""
    root = Path(__file__).parents[3]
    from_sources = (root / "pyproject.toml").is_file()
    what = str(root) if from_sources else f"{PROJECT}=={__version__}"
    progress.log(f"wheels: {PROJECT} {__version__} from {root if from_sources else 'the package index'}")
    alone = ["--no-build-isolation"] if from_sources and find_spec("hatchling") else []
    _run_pip("wheel", "--no-deps", *alone, "--wheel-dir", str(target), what)
    return next(target.glob("fastai_baseline-*.whl"))


def read_requirements(wheel: Path) -> list[str]:
    """What the wheel needs, without its extras."""
    with zipfile.ZipFile(wheel) as file:
        metadata = next(name for name in file.namelist() if name.endswith(".dist-info/METADATA"))
        lines = file.read(metadata).decode().partition("\n\n")[0].splitlines()
    needs = [line.removeprefix("Requires-Dist: ") for line in lines if line.startswith("Requires-Dist: ")]
    return [each.replace(" ", "") for each in needs if "extra" not in each.partition(";")[2]]


def normalize_name(requirement: str) -> str:
    """A package's name as the index normalises it."""
    found = re.match(r"[\w.-]+", requirement)
    return re.sub(r"[-_.]+", "-", found.group() if found else requirement).lower()


def _run_pip(*words: str) -> None:
    command = [sys.executable, "-m", "pip", *words, "--quiet", "--disable-pip-version-check"]
    ended = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, env=os.environ)
    if ended.returncode:
        said = [line for line in ended.stderr.splitlines() if line.strip()] or ["it failed"]
        why = next((line for line in reversed(said) if line.startswith("ERROR")), said[-1])
        raise OutputError(f"pip cannot collect wheels: {why.removeprefix('ERROR: ')[:200]}. Is the index in reach?")
