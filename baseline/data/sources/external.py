"""Export datasets of torchvision and Hugging Face to class folders in the cache."""

from __future__ import annotations

import gzip
import hashlib
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sized
from pathlib import Path
from typing import Any

from baseline.data.sources.archives import report_write_errors
from baseline.data.sources.cached_images import fill_once
from baseline.errors import BaselineError, DataError, missing_package, unknown_name
from baseline.files import cache_home, file_identity, resolve_path
from baseline.progress import Progress

__all__ = ["export_external", "is_external", "pending_export"]


EXTERNAL_PREFIXES = ("torchvision", "hf")
"""Prefixes, before a colon, of the names of external datasets."""


DEBIAN = Path("/usr/share/datasets")
"""Folder in which Debian's dataset-* packages install their files."""


TORCHVISION = (
    "CIFAR10", "CIFAR100", "Caltech101", "Country211", "DTD", "EMNIST", "EuroSAT", "FGVCAircraft", "FER2013",
    "FashionMNIST", "Flowers102", "Food101", "GTSRB", "Imagenette", "KMNIST", "MNIST", "OxfordIIITPet", "PCAM",
    "QMNIST", "RenderedSST2", "SEMEION", "STL10", "SUN397", "SVHN", "StanfordCars", "USPS",
)  # fmt: skip
"""Supported classification datasets of torchvision."""


def is_external(images: str) -> bool:
    """Return whether `images` names a dataset of torchvision or Hugging Face rather than a folder.

    >>> is_external("torchvision:CIFAR10"), is_external("images/")
    (True, False)
    """
    kind, colon, _ = images.partition(":")
    return bool(colon) and kind in EXTERNAL_PREFIXES


def export_external(name: str, progress: Progress | None = None) -> Path:
    """Export `torchvision:NAME` or `hf:NAME-OR-FOLDER` as PNG files SPLIT/CLASS/NUMBER.png in the cache.

    The files of torchvision datasets are taken from the cache or Debian's dataset packages, or downloaded by
    torchvision. A Hugging Face dataset (extra `hf`) is a folder written by `save_to_disk`, any folder that
    `load_dataset` accepts, or a name on the Hub.

    Returns:
        The folder in the cache.

    Raises:
        DataError: if there is no such dataset or it cannot be loaded.
    """
    progress, folder = progress or Progress(), cached_export(name)
    kind, _, external_name = name.partition(":")
    loader = {"torchvision": load_torchvision, "hf": load_hugging_face}[kind]

    def export(folder: Path) -> None:
        with report_write_errors(folder):
            work = Path(tempfile.mkdtemp(prefix=f".{folder.name}.tmp-", dir=folder.parent))
            try:
                write_splits(loader(external_name, work, progress), work / "new", name, progress)
                (work / "new").rename(folder)
            finally:
                shutil.rmtree(work, ignore_errors=True)

    if fill_once(folder, export, lambda line: progress.log(f"data: {line}")):
        progress.log(f"data: {name} as class folders in {folder}")
    return folder


def cached_export(name: str) -> Path:
    """Return the folder in the cache for the images of a dataset."""
    kind, _, external_name = name.partition(":")
    if kind == "torchvision" and external_name not in TORCHVISION:
        raise DataError(unknown_name("dataset of torchvision", external_name, TORCHVISION))
    if not external_name:
        raise DataError("hf: has no name. Pass hf:NAME for a dataset on the Hub, or hf:FOLDER.")
    identity = external_name
    if kind == "hf" and (local := resolve_path(external_name)).exists():
        identity = f"{local} {file_identity(local)}"
    safe_name = "".join(c if c.isalnum() or c in "-." else "_" for c in external_name)[-60:]
    suffix = f"-{hashlib.sha256(identity.encode()).hexdigest()[:8]}" if kind == "hf" else ""
    return cache_home() / "datasets" / f"{kind}-{safe_name}{suffix}"


def pending_export(name: str) -> str:
    """Return what `export_external` would download, and from where; empty if it needs only files on this machine."""
    kind, _, external_name = name.partition(":")
    local_files = list_debian_files(external_name) if kind == "torchvision" else is_saved(external_name)
    if local_files or cached_export(name).exists():
        return ""
    if kind == "torchvision":
        return "torchvision would download them"
    if Path(external_name).exists():
        return "Hugging Face datasets would load the folder, and download what it names"
    return "they would be downloaded from the Hugging Face Hub"


def is_saved(name: str) -> bool:
    """Return whether a folder was written by `save_to_disk`, and so holds all of its images."""
    return any((Path(name) / file).exists() for file in ("dataset_dict.json", "dataset_info.json"))


def write_splits(splits: dict[str, Iterable[tuple[Any, str]]], folder: Path, name: str, progress: Progress) -> None:
    """Write pairs of image and label as PNG files, `folder`/SPLIT/CLASS/NUMBER.png."""
    for split, items in splits.items():
        total = len(items) if isinstance(items, Sized) else 0
        with progress.bar(f"{name}, {split}", total, "images") as bar:
            for number, (image, label) in enumerate(items):
                target = folder / split / class_folder_name(label, name) / f"{number:06}.png"
                target.parent.mkdir(parents=True, exist_ok=True)
                image.save(target, compress_level=1)
                bar.step()


def class_folder_name(label: str, name: str) -> str:
    """Return a folder name for a label; different labels have different names."""
    if not label.strip():
        raise DataError(f"{name} has a class with an empty name, which cannot be a folder.")
    safe = label.replace("%", "%25").replace("/", "%2F")
    return f"%2E{safe[1:]}" if safe.startswith(".") else safe


class NamedTargets:
    """A torchvision dataset that yields pairs of image and class name."""

    def __init__(self, items: Any) -> None:
        self.items = items
        self.classes = [str(label) for label in getattr(items, "classes", [])]

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[tuple[Any, str]]:
        for number in range(len(self.items)):
            image, target = self.items[number]
            yield image, self.classes[target] if self.classes else str(target)


def load_torchvision(name: str, work: Path, progress: Progress) -> dict[str, Iterable[tuple[Any, str]]]:
    """Return the train and test splits of a torchvision dataset as pairs of image and class name."""
    import torchvision

    dataset_class = getattr(torchvision.datasets, name)
    raw = work / name / "raw"
    if debian_files := list_debian_files(name):
        raw.mkdir(parents=True)
        for file in debian_files:
            with gzip.open(file) as packed, (raw / file.stem).open("wb") as plain:
                shutil.copyfileobj(packed, plain)
        progress.log(f"data: using the files in {debian_files[0].parent}")
    else:
        progress.log(f"data: loading {name} with torchvision, which downloads it")
    splits: dict[str, Iterable[tuple[Any, str]]] = {}
    for split in ("train", "test"):
        try:
            splits[split] = NamedTargets(open_torchvision(dataset_class, split, str(work), download=not debian_files))
        except BaselineError:
            raise
        except Exception as error:  # torchvision's downloaders raise whatever urllib, tarfile and others raise
            reason = " ".join(str(error).split())[:120]
            raise DataError(
                f"torchvision cannot load {name}: {reason}. The first download needs internet access"
                + (", or install Debian's package dataset-fashion-mnist." if name == "FashionMNIST" else ".")
            ) from None
    return splits


def open_torchvision(dataset_class: Any, split: str, root: str, download: bool) -> Any:
    """Open one split; some classes of torchvision take `train=True`, others `split="train"`."""
    import inspect

    parameters = inspect.signature(dataset_class).parameters
    options: dict[str, Any] = {"download": download} if "download" in parameters else {}
    if "train" in parameters:
        return dataset_class(root, train=split == "train", **options)
    return dataset_class(root, split=split, **options)


def list_debian_files(name: str) -> list[Path]:
    """Return the IDX files that a Debian package installed for a dataset of the MNIST family."""
    folder = DEBIAN / {"FashionMNIST": "fashion-mnist", "MNIST": "mnist"}.get(name, "none")
    return sorted(folder.glob("*-ubyte.gz")) if folder.is_dir() else []


class HuggingFaceSplit:
    """A Hugging Face split that yields pairs of image and class name."""

    def __init__(self, items: Any, image: str, label: str) -> None:
        self.items, self.image, self.label = items, image, label
        feature = items.features[label]
        self.label_name = feature.int2str if hasattr(feature, "int2str") else str

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[tuple[Any, str]]:
        for row in self.items:
            image, label = row[self.image], row[self.label]
            if image is not None and label not in (None, -1):  # -1 marks withheld test labels
                yield (
                    image if image.mode in ("L", "RGB", "RGBA", "1", "P") else image.convert("RGB"),
                    self.label_name(label),
                )


def load_hugging_face(name: str, work: Path, progress: Progress) -> dict[str, Iterable[tuple[Any, str]]]:
    """Return the splits of a Hugging Face dataset as pairs of image and class name."""
    try:
        import datasets as hugging_face
    except ImportError:
        raise DataError(f"{missing_package(f'hf:{name}', 'the package datasets', 'hf')}.") from None
    origin = "" if Path(name).exists() else ", which looks for it on the network"
    progress.log(f"data: loading {name} with Hugging Face datasets{origin}")
    try:
        loaded = (
            hugging_face.load_from_disk(name)
            if is_saved(name)
            else hugging_face.load_dataset(name, cache_dir=str(work / "hf"))
        )
    except Exception as error:  # its many builders raise almost any exception
        raise DataError(f"hf:{name} cannot be loaded: {' '.join(str(error).split())[:160]}.") from None
    loaded = loaded if isinstance(loaded, dict) else {"train": loaded}
    splits: dict[str, Iterable[tuple[Any, str]]] = {}
    for split, items in loaded.items():
        kinds = {column: type(feature).__name__ for column, feature in items.features.items()}
        image = next((column for column, kind in kinds.items() if kind == "Image"), None)
        labels = [column for column, kind in kinds.items() if kind == "ClassLabel"] or [
            c for c in kinds if c == "label"
        ]
        if image is None or not labels:
            raise DataError(
                f"hf:{name} has no column of images or no column of labels; its columns: {', '.join(kinds)}."
            )
        splits[str(split)] = HuggingFaceSplit(items, image, labels[0])
    return splits
