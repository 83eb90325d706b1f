"""The source "folders": one folder per class, with or without folders per split above them."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from baseline.data.labels import order_classes
from baseline.data.sources.folders import (
    SPLIT_NAMES,
    describe_skipped,
    images_below,
    split_from_name,
    subfolders,
)
from baseline.data.sources.place import Evidence, Place, Source, SourceTable, make_rows
from baseline.errors import DataError, format_count, quoted_list

__all__ = ["ClassFolders", "FolderTree", "generic_names"]


CONTAINERS = frozenset(
    ("data", "dataset", "image", "images", "img", "imgs", "jpeg", "jpegimages", "jpg", "photos", "pictures")
)
"""Words of which the names of folders consist that hold all images, in lower case."""


GENERIC_NAMES = frozenset(
    ("annotation", "annotations", "annots", "aug", "augmented", "batch", "chunk", "color", "colour", "cropped", "crops",
     "extra", "gray", "grayscale", "grey", "ground", "groundtruth", "input", "inputs", "jpegs", "label", "labels",
     "mask", "masks", "original", "originals", "part", "parts", "photo", "pics", "picture", "png", "pred", "prediction",
     "predictions", "private", "public", "raw", "resized", "sample", "samples", "seg", "segmentation", "segmentations",
     "segmented", "set", "submission", "thumbnails", "tif", "tiff", "truth", "unlab", "unlabeled", "unlabelled",
     "unsup")
) | CONTAINERS | frozenset(SPLIT_NAMES)  # fmt: skip
"""Words of which the names of folders consist that hold images of any class, in lower case."""


MASK_NAMES = frozenset(
    ("annotation", "annotations", "annots", "groundtruth", "mask", "masks", "segmentation", "segmentations")
)
"""Words in the names of folders that hold masks of the images in a folder beside them, in lower case."""


PART_NAMES = CONTAINERS | frozenset(SPLIT_NAMES) | {"batch", "chunk", "part", "parts"}
"""Words that say of folders that differ in a number only that they are parts of one whole."""


@dataclass
class FolderReading:
    """Where the class folders are."""

    parents: list[tuple[str, str | None]]
    """Folders of class folders, relative to the place (`""` is the place itself), each with its split."""
    rows: list[tuple[str, str, str | None]] = field(default_factory=list)
    """Class folder, relative to the place, its class and its split."""
    notes: list[str] = field(default_factory=list)
    masks: int = 0
    """Number of images that are masks of others, in folders beside them in the class folders."""
    top: str = ""
    """The folder that contains the folders of splits, or else the class folders."""
    problem: str = ""
    """Why these folders cannot be read as classes."""

    @property
    def classes(self) -> list[str]:
        """The classes, in order."""
        return order_classes({label for _, label, _ in self.rows})


class FolderTree:
    """The folders below a place that contain images, by their path relative to it."""

    def __init__(self, images_by_folder: Counter[str]) -> None:
        self.direct: Counter[str] = Counter()
        """Number of images directly in a folder."""
        self.total: Counter[str] = Counter()
        """Number of images in a folder and below it."""
        self.children: dict[str, set[str]] = defaultdict(set)
        for folder, count in images_by_folder.items():
            parts = [] if folder == "." else folder.split("/")
            self.direct["/".join(parts)] += count
            for depth in range(len(parts) + 1):
                self.total["/".join(parts[:depth])] += count
                if depth < len(parts):
                    self.children["/".join(parts[:depth])].add(parts[depth])

    def below(self, folder: str) -> list[str]:
        """Return the paths of the folders in a folder, sorted."""
        return [join(folder, name) for name in sorted(self.children.get(folder, ()))]

    def has_folders(self, folder: str) -> bool:
        """Whether a folder has folders of images."""
        return bool(self.children.get(folder))


class ClassFolders(Source):
    """One folder per class."""

    name = "folders"
    example = "images/cat/1.jpg, or images/train/cat/1.jpg and images/valid/cat/2.jpg"

    def matches(self, place: Place) -> Evidence | None:
        if place.is_file or not place.images:
            return None
        tree = FolderTree(place.images_by_folder)
        insist = place.settings.source == self.name
        reading = read_class_folders(tree, insist)
        if not insist:
            leave_out_masks(tree, reading)
        if not reading.rows and not reading.problem:
            return None
        strength, objection = weigh(tree, reading)
        names = quoted_list([Path(parent).name for parent, split in reading.parents if split] or reading.classes, 4)
        layout = f"class folders{' in' if reading.parents[0][1] else ''} {names}"
        count = sum(tree.total[path] for path, _, _ in reading.rows)
        reason = f"{count:,} of {tree.total['']:,} images are in class folders"
        return Evidence(strength, "class folders" if objection else layout, reason, reading, objection)

    def rows(self, place: Place, evidence: Evidence) -> SourceTable:
        reading: FolderReading = evidence.found
        if reading.problem:
            raise DataError(f"{place.folder} {reading.problem}")
        class_of = {folder: (label, split) for folder, label, split in reading.rows}
        located = [(path, *folder_entry(place.relative(path), class_of)) for path in place.images]
        rows = make_rows(*zip(*[row for row in located if row[1] is not None], strict=True))
        notes = [*reading.notes, *folder_notes(place, reading)]
        rows["label"], note = place.name_codes(rows["label"], strict=True)
        return SourceTable(rows, describe_layout(place.folder, reading), "", [*notes, *note])


def folder_entry(path: str, class_of: dict[str, tuple[str, str | None]]) -> tuple[str | None, str | None]:
    """Return class and split of an image by the folders above it; both None if it is in no class folder."""
    while path := path.rpartition("/")[0]:
        if path in class_of:
            return class_of[path]
    return None, None


def join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def generic_names(names: Iterable[str]) -> set[str]:
    """Return those names of sibling folders that stand for splits, parts or containers rather than classes.

    What all of them have in common is left aside, unless it says itself that they are parts.

    >>> sorted(generic_names(["train", "test1", "cats"])), sorted(generic_names(["skin_images_1", "skin_images_2"]))
    (['test1', 'train'], ['skin_images_1', 'skin_images_2'])
    >>> generic_names(["class_1", "class_2"]), generic_names(["0", "1"]), generic_names(["label_a", "label_b"])
    (set(), set(), set())
    """
    words = {name: set(split_words(name)) for name in names}
    shared = set.intersection(*words.values()) if len(words) > 1 else set()
    if shared & PART_NAMES:
        return {name for name, parts in words.items() if parts - shared <= GENERIC_NAMES}
    return {name for name, parts in words.items() if parts - shared and parts - shared <= GENERIC_NAMES}


def split_words(name: str) -> list[str]:
    """Return the words of a name in lower case, without numbers."""
    name = re.sub(r"([a-z])([A-Z])", r"\1 \2", name)
    return [word for part in re.split(r"[\W_]+", name.lower()) if (word := part.strip("0123456789"))]


def read_class_folders(tree: FolderTree, insist: bool = False) -> FolderReading:
    """Find the class folders of a tree.

    Args:
        insist: take every folder as a class, even one that is named like a split.
    """
    folder = "" if insist and not tree.direct[""] and len(tree.children[""]) > 1 else enter(tree, "")
    notes = note_beside(tree, folder)
    splits = [] if insist else split_folders(tree, folder)
    if splits and not any(split == "train" for _, split in splits):
        if len(splits) == len(tree.children[folder]):
            names = quoted_list(Path(path).name for path, _ in splits)
            problem = f"contains {names} but no training images. Add a folder 'train'."
            return FolderReading([(folder, None)], problem=problem)
        splits = []
    if not splits:
        reading = read_unsplit(tree, folder, insist)
        reading.notes += notes
        return reading
    parents = [(enter(tree, path), split) for path, split in splits]
    reading = FolderReading(list(parents), top=folder, notes=notes)
    classes = {Path(path).name for parent, split in parents if split == "train" for path in tree.below(parent)}
    for parent, split in parents:
        labels = tree.below(parent)
        if len(labels) == 1 and not {Path(labels[0]).name} & classes and is_unlabeled(Path(labels[0]).name):
            count = format_count(tree.total[parent], "image")
            reading.notes.append(f"{count} in '{labels[0]}' ignored: not in class folders")
            reading.parents.remove((parent, split))
            continue
        reading.rows += [(path, Path(path).name, split) for path in labels]
    return reading


def is_unlabeled(name: str) -> bool:
    """Whether a folder in a split of images without labels is no class."""
    return bool(generic_names([name])) or name.lower() == "unknown" or split_from_name(name) is not None


def enter(tree: FolderTree, folder: str) -> str:
    """Descend while all class folders are in one folder: the only one, or one such as `images` beside others."""
    while not tree.direct[folder] and (inside := [path for path in tree.below(folder) if tree.has_folders(path)]):
        children = tree.below(folder)
        if len(children) > 1:
            inside = [path for path in inside if is_container(path)]
            beside = [path for path in children if path not in inside]
            if any(tree.has_folders(path) and not generic_names([Path(path).name]) for path in beside):
                break
            if any(split_from_name(Path(path).name) and tree.has_folders(path) for path in beside):
                break
        if len(inside) != 1 or Path(inside[0]).name.lower() in SPLIT_NAMES:
            break
        folder = inside[0]
    return folder


def is_container(path: str) -> bool:
    """Whether a folder's name says that it holds all images."""
    words = set(split_words(Path(path).name))
    return bool(words) and words <= CONTAINERS


def note_beside(tree: FolderTree, folder: str) -> list[str]:
    """Return a note on images in folders beside the one that was entered, and beside those above it."""
    beside = []
    while folder:
        above = folder.rpartition("/")[0]
        beside += [path for path in tree.below(above) if path != folder]
        folder = above
    count = format_count(sum(tree.total[path] for path in beside), "image")
    return [f"{count} in {quoted_list(beside, 3)} ignored: outside the class folders"] if beside else []


def split_folders(tree: FolderTree, folder: str) -> list[tuple[str, str]]:
    """Return the folders of class folders that are named after splits, with the split."""
    splits = [(path, split_from_name(Path(path).name)) for path in tree.below(folder) if tree.has_folders(path)]
    return [(path, split) for path, split in splits if split]


def read_unsplit(tree: FolderTree, folder: str, insist: bool) -> FolderReading:
    """Read class folders that are in no folders of splits."""
    paths = tree.below(folder)
    reading = FolderReading([(folder, None)])
    if not insist and (inner := class_then_split(tree, paths)):
        if any(tree.has_folders(path) for path, _, _ in inner):
            shown = quoted_list([Path(path).name for path in paths], 3)
            reading.problem = f"contains {shown}, each with its own splits and classes. Pass one of these folders."
        else:
            reading.rows = [(path, label, split) for path, label, split in inner]
        return reading
    if not insist and (letters := below_first_letters(tree, paths)):
        reading.rows = [(path, Path(path).name, None) for path in letters]
        return reading
    names = [Path(path).name for path in paths]
    if not insist and (repeated := count_repeated(tree, paths)):
        shown = quoted_list(names, 4)
        reading.problem = (f"contains {shown} with the same {repeated} class folders. Pass one of them, or "
                           "--label-from '([^/]+)/[^/]+$' for all.")  # fmt: skip
        return reading
    inside = {frozenset(tree.children.get(path, ())) for path in paths}
    if not insist and len(paths) > 1 and len(inside) == 1 and generic_names(names) == set(names) and all(inside):
        reading.problem = f"contains {quoted_list(names, 4)} with the same class folders. Pass one of them."
        return reading
    splits = {name for name in generic_names(names) if split_from_name(name) or "pred" in split_words(name)
              or set(split_words(name)) & {"unlabeled", "unlabelled", "unsup"}}  # fmt: skip
    classes = [name for name in names if name not in splits]
    if not insist and len(classes) >= 2 and splits - {"train"}:
        for name in sorted(splits):
            count = format_count(tree.total[join(folder, name)], "image")
            reading.notes.append(f"{count} in '{name}' ignored: it looks like a split, not a class "
                                 "(--source folders makes it a class)")  # fmt: skip
        names = classes
    reading.rows = [(join(folder, name), name, None) for name in names]
    deeper = [path for name in names for path in tree.below(join(folder, name))]
    if len({Path(path).name for path in deeper}) > 1 and sum(tree.total[path] for path in deeper) == tree.total[folder]:
        shown = quoted_list(dict.fromkeys(Path(path).name for path in deeper), 3)
        innermost = "--label-from '([^/]+)/[^/]+$' makes the innermost folders the classes"
        reading.notes.append(f"folders inside the class folders not used: {shown}; {innermost}")
    return reading


def below_first_letters(tree: FolderTree, paths: Sequence[str]) -> list[str]:
    """Return the folders inside folders of single letters with which their names begin; none if there are others."""
    inner = [child for path in paths for child in tree.below(path)]
    pairs = [(Path(child).parent.name.lower(), Path(child).name.lower()) for child in inner]
    sorted_in = all(len(letter) == 1 < len(name) and name.startswith(letter) for letter, name in pairs)
    return inner if sorted_in and len(inner) > 1 and not any(tree.direct[path] for path in paths) else []


def count_repeated(tree: FolderTree, paths: Sequence[str]) -> int:
    """Return the number of class folders if all folders contain the same, more than there are folders; else 0."""
    if len(paths) < 2 or any(tree.direct[path] for path in paths):
        return 0
    inside = {frozenset(Path(child).name for child in tree.below(enter(tree, path))) for path in paths}
    names = next(iter(inside))
    named = not generic_names(names) and not any(name.isdigit() for name in names)
    return len(names) if len(inside) == 1 and named and len(names) > len(paths) else 0


def leave_out_masks(tree: FolderTree, reading: FolderReading) -> None:
    """Read only the folder of images in class folders that hold one and folders of their masks, and note that."""
    beside: list[str] = []
    for at, (path, label, split) in enumerate(reading.rows):
        inner = tree.below(path)
        images = [child for child in inner if is_container(child)]
        masks = [child for child in inner if set(split_words(Path(child).name)) & MASK_NAMES]
        if len(images) == 1 and masks and len(inner) == 1 + len(masks) and not tree.direct[path]:
            reading.rows[at] = (images[0], label, split)
            beside += masks
    if beside:
        reading.masks = sum(tree.total[path] for path in beside)
        shown = quoted_list(beside, 2)
        reading.notes.append(f"{format_count(reading.masks, 'image')} in {shown} ignored: masks")


def class_then_split(tree: FolderTree, paths: Sequence[str]) -> list[tuple[str, str, str]]:
    """Return folder, class and split where each class folder has folders train, valid or test; empty if they do not."""
    found = []
    for path in paths:
        inner = [(child, Path(path).name, split_from_name(Path(child).name)) for child in tree.below(path)]
        named = [(child, label, split) for child, label, split in inner if split]
        unnamed = [child for child, _, split in inner if not split]
        if tree.direct[path] or not named or any(not generic_names([Path(child).name]) for child in unnamed):
            return []
        found += named
    has_train = any(split == "train" for _, _, split in found)
    return found if len(paths) > 1 and has_train and len({split for _, _, split in found}) > 1 else []


def weigh(tree: FolderTree, reading: FolderReading) -> tuple[float, str]:
    """Return the strength of class folders as evidence, and what speaks against them."""
    if reading.problem:
        return 0.3, f"the folder {reading.problem.partition('. ')[0]}"
    images = sum(tree.total[path] for path, _, _ in reading.rows)
    classes = reading.classes
    generic = generic_names(classes)
    if len(generic) == len(classes):
        names = quoted_list(classes, 4)
        one = f"{names} does not look like the name of a class"
        return 0.1, one if len(generic) == 1 else f"{names} do not look like names of classes"
    if len(classes) == 1:
        return 0.2, f"there is only one, {quoted_list(classes)}"
    if len(classes) > images / 2 and images > 9:
        return 0.4, f"there are {len(classes):,} of them for {images:,} images"
    unlabeled = sum(
        tree.total[path]
        for path in tree.below("")
        if path not in {parent.split("/")[0] for parent, _ in reading.parents if parent} and is_unlabeled(path)
    )
    total = tree.total[""] - reading.masks
    share = images / max(1, total - (unlabeled if reading.parents[0][1] else 0))
    return 0.9 * min(1.0, share), ""


def describe_layout(folder: Path, reading: FolderReading) -> str:
    parents = [(folder / parent, split) for parent, split in reading.parents]
    if parents[0][1] is None:
        inside = ", each with a folder per split" if any(split for _, _, split in reading.rows) else ""
        return f"one folder per class in {parents[0][0]}{inside}"
    return f"one folder per class, in {quoted_list(parent.name for parent, _ in parents)} of {folder}"


def folder_notes(place: Place, reading: FolderReading) -> Iterator[str]:
    """Yield sentences about everything in the place that is ignored, and about empty class folders."""
    parents = [place.folder / parent for parent, _ in reading.parents]
    listing = {folder: (images, others) for folder, images, others in place.folders}
    if reading.parents[0][1] is not None:
        top = place.folder / reading.top
        noted = " ".join(reading.notes)
        unused = [path for path in subfolders(top) if not any(path == p or path in p.parents for p in parents)]
        ignored = [path for path in unused if f"{path.name}/" not in noted and holds_images(path)]
        if unlabeled := [path for path in ignored if split_from_name(path.name)]:
            yield f"{describe_images(place, unlabeled)} ignored: not in class folders"
        if unnamed := [path for path in ignored if path not in unlabeled]:
            yield f"{describe_images(place, unnamed)} ignored: not named after a split"
    if loose := sum(len(listing[str(parent)][0]) for parent in parents):
        yield f"{format_count(loose, 'image')} outside the class folders ignored"
    class_folders = [path for parent in parents for path in subfolders(parent)]
    if empty := [path.name for path in class_folders if not holds_images(path)]:
        yield f"no images in {quoted_list(empty, 3)}"
    if others := [name for path in class_folders for name in listing.get(str(path), ([], []))[1]]:
        yield describe_skipped(others)


def describe_images(place: Place, folders: Sequence[Path]) -> str:
    """Return the number of images in some folders of a place, and the names of the folders."""
    inside = tuple(f"{place.relative(folder)}/" for folder in folders)
    count = sum(count for name, count in place.images_by_folder.items() if f"{name}/".startswith(inside))
    return f"{format_count(count, 'image')} in {quoted_list((folder.name for folder in folders), 3)}"


def holds_images(folder: Path) -> bool:
    """Whether there are images anywhere below a folder."""
    return next(images_below(folder), None) is not None
