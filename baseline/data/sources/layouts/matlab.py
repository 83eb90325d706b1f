"""The source "matlab": labels in .mat files, as for Oxford Flowers 102, Stanford Cars and Stanford Dogs."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any, Literal

import numpy as np

from baseline.data.sources.annotations import Annotated, Annotation, AnnotationSource, split_of
from baseline.data.sources.place import Evidence, Place, foreign_content
from baseline.reading import COPIES, TooLargeError, check_memory_for, check_regular

__all__ = ["Matlab"]


MAX_MAT_BYTES, BLOCK_BYTES, COMPRESSED = 2**32, 2**20, 15
"""Maximum size of a .mat file in bytes, the bytes that are unpacked at once, and the type of compressed variables."""


class Matlab(AnnotationSource):
    """Labels in .mat files."""

    name = "matlab"
    title = "MATLAB files"
    example = "imagelabels.mat and setid.mat beside jpg/image_00001.jpg, or cars_train_annos.mat beside cars_train/"

    def matches(self, place: Place) -> Evidence | None:
        files = place.find("*.mat")
        if place.is_file or not files or not place.images:
            return None
        contents = {path: content for path in files[:40] if (content := place.load(path, load_variables))}
        names = next((plain(content["class_names"]) for content in contents.values() if "class_names" in content), [])
        found: dict[str | None, tuple[Path, list[Annotation]]] = {}
        for path, content in contents.items():
            split = split_of(path, place)
            items = (
                read_structs(content, names, split)
                or read_file_list(content, split)
                or read_numbered(place, content, contents)
            )
            if items:
                found.setdefault(split, (path, items))
        if not found:
            return None
        used = [found[split] for split in ("train", "valid", "test") if split in found] or [next(iter(found.values()))]
        items = [item for _, part in used for item in part]
        if len(used) == 1 and len({item.split for item in items}) == 1:
            items = [Annotation(item.image, item.labels) for item in items]
        annotated = Annotated(items, [path for path, _ in used], place.folder)
        return self.evidence(place, annotated)


def load_variables(path: Path) -> dict[str, Any]:
    """Return the variables of a .mat file; none if it cannot be read."""
    from scipy.io import loadmat

    try:
        check_unpacked_size(path)
        return {key: value for key, value in loadmat(path, simplify_cells=True).items() if not key.startswith("__")}
    except TooLargeError:
        raise
    except Exception:  # scipy raises whatever its readers and zlib raise
        return {}


def check_unpacked_size(path: Path) -> None:
    """Check that the variables of a .mat file, which may be compressed, fit into memory.

    Raises:
        TooLargeError: if they do not.
    """
    check_regular(path, MAX_MAT_BYTES)
    total = 0
    with path.open("rb") as file:
        order: Literal["little", "big"] = "little" if file.read(128)[126:] == b"IM" else "big"
        while len(tag := file.read(8)) == 8:
            kind, size = int.from_bytes(tag[:4], order), int.from_bytes(tag[4:], order)
            start, unpacker = file.tell(), zlib.decompressobj()
            while kind == COMPRESSED and (block := file.read(min(BLOCK_BYTES, start + size - file.tell()))):
                while block and not unpacker.eof:
                    total += len(unpacker.decompress(block, BLOCK_BYTES))
                    check_memory_for(COPIES * total, path)
                    block = unpacker.unconsumed_tail
            file.seek(start + size)


def plain(values: Any) -> list[str]:
    """Return a cell array as a list of texts."""
    return [str(value) for value in np.atleast_1d(np.asarray(values, dtype=object)).ravel()]


@foreign_content()
def read_structs(content: dict[str, Any], names: list[str], split: str | None) -> list[Annotation]:
    """Read an array of structs with the fields `fname` and `class`."""
    structs = content.get("annotations")
    if not isinstance(structs, list | np.ndarray) or not len(structs) or not isinstance(structs[0], dict):
        return []
    if "class" not in structs[0] or "fname" not in structs[0]:
        return []
    numbers = [int(struct["class"]) for struct in structs]
    labels = [names[number - 1] if 0 < number <= len(names) else str(number) for number in numbers]
    return [Annotation(str(struct["fname"]), (label,), split) for struct, label in zip(structs, labels, strict=True)]


@foreign_content()
def read_file_list(content: dict[str, Any], split: str | None) -> list[Annotation]:
    """Read a list of paths, whose folders are the classes."""
    if "file_list" not in content or "labels" not in content:
        return []
    return [Annotation(name, (Path(name).parent.name,), split) for name in plain(content["file_list"]) if "/" in name]


@foreign_content()
def read_numbered(place: Place, content: dict[str, Any], contents: dict[Path, dict[str, Any]]) -> list[Annotation]:
    """Read labels in the order of the images' names, with splits from a file of their numbers."""
    labels = np.atleast_1d(content.get("labels", []))
    images = sorted(place.images)
    if labels.ndim != 1 or len(labels) != len(images) or "file_list" in content:
        return []
    sets = next((other for other in contents.values() if {"trnid", "tstid"} <= set(other)), {})
    splits: dict[int, str] = {}
    for key, split in (("trnid", "train"), ("valid", "valid"), ("tstid", "test")):
        splits |= {int(number): split for number in np.atleast_1d(sets.get(key, []))}
    return [
        Annotation(place.relative(path), (str(label),), splits.get(number))
        for number, (path, label) in enumerate(zip(images, labels.tolist(), strict=True), 1)
    ]
