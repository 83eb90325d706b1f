"""Data sets of torchvision and Hugging Face -> class folders in the cache. Knows their objects; knows no tables."""

from __future__ import annotations

import gzip
import hashlib
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sized
from pathlib import Path
from typing import Any

from baseline.data.sources.archives import report_write_errors
from baseline.errors import BaselineError, DataError, unknown_name
from baseline.files import cache_home, resolve_path
from baseline.progress import Progress

__all__ = ["export_external", "is_external"]


EXTERNAL_PREFIXES = ("torchvision", "hf")

DEBIAN = Path("/usr/share/datasets")
"""Where Debian's dataset-* packages put their files."""


TORCHVISION = (
    "CIFAR10", "CIFAR100", "Caltech101", "Country211", "DTD", "EMNIST", "EuroSAT", "FGVCAircraft", "FER2013",
    "FashionMNIST", "Flowers102", "Food101", "GTSRB", "Imagenette", "KMNIST", "MNIST", "OxfordIIITPet", "PCAM",
    "QMNIST", "RenderedSST2", "SEMEION", "STL10", "SUN397", "SVHN", "StanfordCars", "USPS",
)  # fmt: skip


def is_external(images: str) -> bool:
    """Whether this names a data set of torchvision or Hugging Face, and no folder."""
    kind, colon, _ = images.partition(":")
    return bool(colon) and kind in EXTERNAL_PREFIXES


def export_external(name: str, progress: Progress | None = None) -> Path:
    """The images of `torchvision:NAME` or `hf:NAME-OR-FOLDER` as PNG files, `SPLIT/CLASS/NUMBER.png`, in the cache.

    torchvision's files are looked for in the cache, in Debian's dataset packages, then downloaded by torchvision.
    Hugging Face data sets (extra `hf`) may be a folder saved by `save_to_disk`, any folder that `load_dataset` takes,
    or a name on the hub.

    Raises:
        DataError: if there is no such data set or it cannot be had.
    """
    progress = progress or Progress()
    kind, _, which = name.partition(":")
    maker = {"torchvision": _load_torchvision, "hf": _load_hugging_face}[kind]
    if kind == "torchvision" and which not in TORCHVISION:
        raise DataError(unknown_name("data set of torchvision", which, TORCHVISION))
    if not which:
        raise DataError("hf: has no name. Give hf:NAME for one on the hub, or hf:FOLDER.")
    exact = which
    if kind == "hf" and (local := resolve_path(which)).exists():
        exact = f"{local} {local.stat().st_mtime_ns}"
    safe = "".join(each if each.isalnum() or each in "-." else "_" for each in which)[-60:]
    mark = f"-{hashlib.sha256(exact.encode()).hexdigest()[:8]}" if kind == "hf" else ""
    folder = cache_home() / "datasets" / f"{kind}-{safe}{mark}"
    if not folder.is_dir():
        with report_write_errors(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            work = Path(tempfile.mkdtemp(prefix=f".{folder.name}.tmp-", dir=folder.parent))
            try:
                _write_splits(maker(which, work, progress), work / "new", name, progress)
                (work / "new").rename(folder)
            finally:
                shutil.rmtree(work, ignore_errors=True)
        progress.log(f"data: {name} as class folders in {folder}")
    return folder


def _write_splits(parts: dict[str, Iterable[tuple[Any, str]]], folder: Path, name: str, progress: Progress) -> None:
    for split, items in parts.items():
        total = len(items) if isinstance(items, Sized) else 0
        with progress.bar(f"{name}, {split}", total, "images") as bar:
            for number, (image, label) in enumerate(items):
                target = folder / split / _folder_name(label, name) / f"{number:06}.png"
                target.parent.mkdir(parents=True, exist_ok=True)
                image.save(target, compress_level=1)
                bar.step()


def _folder_name(label: str, name: str) -> str:
    """The label as a folder's name, each label another one."""
    if not label.strip():
        raise DataError(f"{name} has a class without a name, which no folder can have.")
    safe = label.replace("%", "%25").replace("/", "%2F")
    return f"%2E{safe[1:]}" if safe.startswith(".") else safe


class _NamedTargets:
    """A torchvision data set whose targets are class names."""

    def __init__(self, items: Any) -> None:
        self.items = items
        self.classes = [str(each) for each in getattr(items, "classes", [])]

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[tuple[Any, str]]:
        for number in range(len(self.items)):
            image, target = self.items[number]
            yield image, self.classes[target] if self.classes else str(target)


def _load_torchvision(which: str, work: Path, progress: Progress) -> dict[str, Iterable[tuple[Any, str]]]:
    import torchvision

    maker = getattr(torchvision.datasets, which)
    raw = work / which / "raw"
    if local := _load_debian(which):
        raw.mkdir(parents=True)
        for file in local:
            with gzip.open(file) as packed, (raw / file.stem).open("wb") as plain:
                shutil.copyfileobj(packed, plain)
        progress.log(f"data: the files of {local[0].parent}")
    parts: dict[str, Iterable[tuple[Any, str]]] = {}
    for split in ("train", "test"):
        try:
            parts[split] = _NamedTargets(_open_torchvision(maker, split, str(work), download=not local))
        except BaselineError:
            raise
        except Exception as error:  # its downloaders raise whatever urllib, tarfile and others raise
            why = " ".join(str(error).split())[:120]
            raise DataError(
                f"torchvision cannot give {which}: {why}. It downloads once and needs internet for that"
                + (", or Debian's package dataset-fashion-mnist." if which == "FashionMNIST" else ".")
            ) from None
    return parts


def _open_torchvision(maker: Any, split: str, root: str, download: bool) -> Any:
    """torchvision says which split is meant in two ways."""
    import inspect

    options: dict[str, Any] = {"download": download} if "download" in inspect.signature(maker).parameters else {}
    if "train" in inspect.signature(maker).parameters:
        return maker(root, train=split == "train", **options)
    return maker(root, split=split, **options)


def _load_debian(which: str) -> list[Path]:
    """idx files of a Debian package, for the data sets of the MNIST family."""
    folder = DEBIAN / {"FashionMNIST": "fashion-mnist", "MNIST": "mnist"}.get(which, "none")
    return sorted(folder.glob("*-ubyte.gz")) if folder.is_dir() else []


class _HuggingFaceSplit:
    """A Hugging Face split as images and class names."""

    def __init__(self, items: Any, image: str, label: str) -> None:
        self.items, self.image, self.label = items, image, label
        feature = items.features[label]
        self.word = feature.int2str if hasattr(feature, "int2str") else str

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[tuple[Any, str]]:
        for row in self.items:
            image, label = row[self.image], row[self.label]
            if image is not None and label not in (None, -1):  # -1 is how withheld test labels are written
                yield image if image.mode in ("L", "RGB", "RGBA", "1", "P") else image.convert("RGB"), self.word(label)


def _load_hugging_face(which: str, work: Path, progress: Progress) -> dict[str, Iterable[tuple[Any, str]]]:
    try:
        import datasets as hugging_face
    except ImportError:
        raise DataError(f"hf:{which} needs the package datasets: pip install 'fastai-baseline[hf]'.") from None
    progress.log(f"data: {which} by Hugging Face datasets")
    try:
        saved = (Path(which) / "dataset_dict.json").exists() or (Path(which) / "dataset_info.json").exists()
        found = (
            hugging_face.load_from_disk(which)
            if saved
            else hugging_face.load_dataset(which, cache_dir=str(work / "hf"))
        )
    except Exception as error:  # its many builders raise nearly every kind
        raise DataError(f"hf:{which} cannot be had: {' '.join(str(error).split())[:160]}.") from None
    found = found if isinstance(found, dict) else {"train": found}
    parts: dict[str, Iterable[tuple[Any, str]]] = {}
    for split, items in found.items():
        kinds = {column: type(feature).__name__ for column, feature in items.features.items()}
        image = next((column for column, kind in kinds.items() if kind == "Image"), None)
        labels = [column for column, kind in kinds.items() if kind == "ClassLabel"] or [
            c for c in kinds if c == "label"
        ]
        if image is None or not labels:
            raise DataError(f"hf:{which} has no column of images or none of labels; its columns: {', '.join(kinds)}.")
        parts[str(split)] = _HuggingFaceSplit(items, image, labels[0])
    return parts
