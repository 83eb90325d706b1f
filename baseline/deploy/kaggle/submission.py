"""Write a submission.csv for a competition from a run, its sample submission and the test images, and verify it.

The sample decides: its columns, its ids and their order are kept exactly; `submission_format` detects which values it
asks for.
"""

from __future__ import annotations

import csv
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from baseline.data.labels import order_classes
from baseline.data.sources.archives import is_archive, unpack_archive
from baseline.data.sources.columns import find_image_column
from baseline.data.sources.folders import images_below
from baseline.data.sources.match_images import ImageFinder
from baseline.data.sources.read_table import TABLE_SUFFIXES, detect_text_format, read_table
from baseline.data.sources.sample_submission import is_sample_name
from baseline.data.sources.unpacked import unpack_cached
from baseline.deploy.kaggle.submission_format import GIVEN, ClassNaming, detect_format, format_predictions
from baseline.errors import DataError, OutputError, quoted_list, similar_path
from baseline.files import (
    KAGGLE_SEARCH_DEPTH,
    csv_rows,
    kaggle_dir,
    parse_json,
    replace_file,
    resolve_path,
    write_atomic,
)
from baseline.progress import ConsoleProgress
from baseline.reading import read_text
from baseline.runs.folder import read_manifest
from baseline.vision.model_folder import member_folders, model_folder, read_config

if TYPE_CHECKING:
    from baseline.deploy.kaggle.submission_format import SubmissionFormat
    from baseline.progress import Progress

__all__ = ["Submission", "submit"]


SAMPLE_SUFFIXES = (".csv", ".csv.zip")
"""File extensions of sample submissions."""


MAX_SAMPLE_BYTES = 2**31
"""Maximum size in bytes of a sample submission that is unpacked from a zip."""


MAX_JSON_BYTES = 10_000_000
"""Maximum size in bytes of a JSON file that is searched for class names."""


SUM_TOLERANCE = 1e-6
"""Maximum deviation from 1 of the sum of an image's probabilities, as written."""


@dataclass(frozen=True)
class Submission:
    """A submission that was written."""

    path: Path
    format: SubmissionFormat
    notes: dict[str, str]
    """What was detected (`sample`, `images`, `shape`), which images could not be read (`unread`), and what was
    `checked`."""

    def __str__(self) -> str:
        return "\n".join([*(f"{topic}: {text}" for topic, text in self.notes.items()), str(self.path)])


@dataclass(frozen=True)
class SampleFile:
    """A sample submission, exactly as written."""

    path: Path
    columns: list[str]
    rows: list[list[str]]
    delimiter: str

    @property
    def frame(self) -> pd.DataFrame:
        return pd.DataFrame(self.rows, columns=self.columns, dtype=str)


def submit(
    run: str | Path | Sequence[str | Path],
    sample: str | Path | None = None,
    image_dir: str | Path | None = None,
    *,
    out: str | Path | None = None,
    shape: str = "auto",
    codes: str | Mapping[str, str] | None = None,
    leave_extra: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Submission:
    """Write and verify a submission with the sample's columns, ids and order, in the format it asks for.

    Probabilities are calibrated and use test-time augmentation (TTA). A test image that cannot be read gets the mean of
    the others, and is reported. The file is written under another name, read back, verified, and only then renamed.

    Args:
        run: the folder of a finished run, or of its model; several are averaged, as `baseline.load` does.
        sample: the competition's sample submission, or a zip of it; default: searched for beside the run's
            images, then below `/kaggle/input`.
        image_dir: the folder or archive of the test images; default: the sample's folder. Ids may lack the file
            extension, and may name images in subfolders; if both train and test contain an image of that name, the one
            in test is used.
        out: the file to write; default: `submission.csv` in `/kaggle/working` if that exists, else in the working
            directory.
        shape: `"names"`, `"codes"`, `"probabilities"` or `"one-hot"`, to override what the sample asks for.
        codes: the name of each class in the sample, `{"ants": "0", "bees": "1"}` or `"ants=0,bees=1"`. Default: names
            from tables and JSON files beside the sample and the training images, and finally alphabetical order.
        leave_extra: skip images without an id instead of refusing them.
        overwrite: replace an existing file, once the new one is verified.
        progress: where progress is reported; default: the terminal. `Progress()` reports nothing.

    Raises:
        DataError: if the sample has no ids, ids are duplicated, ids have no images, images have no ids, no image can be
            read, or columns and values do not match the classes.
        OutputError: if the file exists, cannot be written, or fails verification.

    >>> submit("runs/mine", "sample_submission.csv").path                          # doctest: +SKIP
    PosixPath('/kaggle/working/submission.csv')
    """
    progress = progress or ConsoleProgress()
    sample_file = read_sample(find_sample(sample, run if isinstance(run, str | Path) else run[0]))
    target = output_path(out, sample_file, overwrite)
    folders = [run] if isinstance(run, str | Path) else run
    runs = [member for folder in folders for member in member_folders(folder)]
    classes, multilabel = read_classes(runs[0])
    test_folder = find_test_folder(image_dir, sample_file, progress)
    column, paths = match_ids(sample_file, test_folder, explicit=image_dir is not None)
    frame = sample_file.frame
    submission_format = detect_format(
        {name: list(frame[name]) for name in sample_file.columns if name != column},
        classes,
        lambda: find_namings(runs, sample_file, classes),
        codes=None if codes is None else ClassNaming(parse_codes(codes, classes), GIVEN),
        multilabel=multilabel,
        requested=shape,
        sample_name=sample_file.path.name,
    )
    folder = test_folder if image_dir is not None else _common_parent(paths)
    extra = images_without_id(paths, folder, runs, sample_file)
    if extra and not leave_extra:
        raise DataError(
            f"{_count(extra, 'image')} {_have(extra)} no id in {sample_file.path.name}: {quoted_list(extra, 3)}. Pass "
            "--image-dir FOLDER with the test images alone, or --leave-extra to skip them."
        )
    skipped = f"; {len(extra):,} without an id skipped" if extra else ""
    notes = {
        "sample": f"{sample_file.path}: {_count(sample_file.rows, 'row')}, ids in '{column}'",
        "images": f"{len(paths):,} in {test_folder}{skipped}",
        "shape": "; ".join(submission_format.notes),
    }
    table, unread = predict_test_images(runs, paths, classes, progress)
    predictions = format_predictions(table, submission_format)
    text = format_csv(sample_file, {column: list(frame[column]), **predictions})
    checks = write_checked(
        target, text, lambda path: check_written(path, sample_file, column, submission_format, multilabel)
    )
    if unread:
        notes["unread"] = f"{_count(unread, 'image')}, filled with the mean of the others: {quoted_list(unread, 3)}"
    return Submission(target, submission_format, notes | {"checked": "; ".join(checks)})


def _count(items: Sized, noun: str) -> str:
    return f"{len(items):,} {noun}{'' if len(items) == 1 else 's'}"


def _have(items: Sized) -> str:
    return "has" if len(items) == 1 else "have"


def find_sample(sample: str | Path | None, run: str | Path = "") -> Path:
    """Return the path of the sample submission.

    If it is not given, it is searched for beside the images of the run, and then below Kaggle's input folder.
    """
    if sample is not None:
        path = resolve_path(str(sample))
        if not path.is_file():
            problem = f"There is no file {path}.{similar_path(path)}"
            raise DataError(f"{problem} Pass the competition's sample submission, a CSV file.")
        return path
    root = kaggle_dir("input")
    places = {"beside the images of the run": _samples_beside_images(Path(run)), f"below {root}": _samples_below(root)}
    for place, samples in places.items():
        paths = sorted(samples)
        if len(paths) > 1:
            raise DataError(
                f"There are {len(paths)} sample submissions {place}: {quoted_list(paths)}. Pass --sample FILE."
            )
        if paths:
            return paths[0]
    raise DataError(f"There is no sample_submission*.csv beside the run's images or below {root}. Pass --sample FILE.")


def _samples_beside_images(run: Path) -> Iterator[Path]:
    """Sample submissions in the folder of the run's images, or in the folder that it is in."""
    if not (run / "manifest.json").exists():
        return
    images = Path(str(read_manifest(run).get("images") or ""))
    for folder in dict.fromkeys((images, images.parent)) if images.is_absolute() else ():
        files = [path for path in folder.iterdir() if is_sample_file(path.name)] if folder.is_dir() else []
        yield from files
        if files:
            return


def is_sample_file(name: str) -> bool:
    """Whether a file name is that of a sample submission in a form that can be read."""
    return is_sample_name(name) and name.lower().endswith(SAMPLE_SUFFIXES)


def _samples_below(root: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(root, followlinks=True):  # the depth limit also ends circular links
        if len(Path(folder).relative_to(root).parts) >= KAGGLE_SEARCH_DEPTH:
            folders.clear()
        names = set(filter(is_sample_file, files))
        yield from (Path(folder) / name for name in names if name.removesuffix(".zip") not in names - {name})


def read_sample(path: Path) -> SampleFile:
    """Read a sample submission, a text table or a zip that contains one."""
    if path.suffix.lower() == ".zip":
        return _read_from_zip(path)
    if not path.name.lower().endswith((".csv", ".tsv", ".txt")):
        raise DataError(f"{path} is not a .csv, .tsv or .txt file. Pass the competition's sample submission.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pd.errors.ParserWarning)  # about rows that are refused below
        note = read_table(path).attrs.get("note", "")  # raises if it is not a table
    encoding, delimiter = detect_text_format(path, "cp1252" if "cp1252" in note else "")
    columns, *rows = parse_csv(path, encoding, delimiter)
    if bad := next((number for number, row in enumerate(rows, 1) if len(row) != len(columns)), 0):
        raise DataError(
            f"Row {bad} of {path} has {len(rows[bad - 1])} values, but the header has {len(columns)}. Fix the file."
        )
    if len(set(columns)) < len(columns):
        raise DataError(f"{path} has two columns of the same name. Rename one.")
    return SampleFile(path, columns, rows, delimiter)


def _read_from_zip(path: Path) -> SampleFile:
    """Read the only table in a zip, as Kaggle packs them."""
    with tempfile.TemporaryDirectory() as work:
        unpack_archive(path, inside := Path(work) / "sample", max_bytes=MAX_SAMPLE_BYTES)
        tables = [file for file in sorted(inside.rglob("*.[ct]sv")) if not file.name.startswith(".")]
        if len(tables) != 1:
            raise DataError(
                f"{path} contains {_count(tables, 'table')}, but must contain exactly one sample submission. Pass the "
                "file itself."
            )
        return replace(read_sample(tables[0]), path=path)


def parse_csv(path: Path, encoding: str, delimiter: str) -> list[list[str]]:
    """Return the rows of a CSV file, header included, without empty lines."""
    try:
        with path.open(encoding=encoding, newline="") as file:
            return [row for row in csv.reader(file, delimiter=delimiter) if row]
    except (OSError, UnicodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read: {error}.") from None


def find_test_folder(image_dir: str | Path | None, sample: SampleFile, progress: Progress) -> Path:
    """Return the folder to search for test images, unpacking an archive if necessary."""
    path = resolve_path(str(image_dir)) if image_dir is not None else sample.path.parent
    if image_dir is None and next(images_below(path), None) is None:
        archives = [file for file in sorted(path.iterdir()) if is_archive(file)]
        tests = [file for file in archives if "test" in file.name.lower()]
        path = tests[0] if len(tests) == 1 else path
    if path.is_file() and is_archive(path):
        return unpack_cached(path, progress)
    if not path.is_dir():
        problem = f"There is no folder {path} to search for test images.{similar_path(path)}"
        raise DataError(f"{problem} Pass --image-dir FOLDER.")
    return path


def match_ids(sample: SampleFile, folder: Path, explicit: bool) -> tuple[str, list[str]]:
    """Return the column of ids, and the path of each id's image.

    Args:
        explicit: whether the caller named the folder; otherwise images in test folders are preferred.
    """
    finder, frame, name = ImageFinder(folder, "test"), sample.frame, sample.path.name
    column = find_image_column(frame, finder)
    if column is None:
        raise DataError(
            f"{name} has no column of ids: none of {quoted_list(sample.columns, 8)} names images in {folder}. Pass the "
            "competition's own sample, or --image-dir FOLDER."
        )
    ids = frame[column]
    if len(duplicates := ids[ids.duplicated()].unique()):
        raise DataError(
            f"{_count(duplicates, 'id')} of {name} {'appears' if len(duplicates) == 1 else 'appear'} more than once: "
            f"{quoted_list(duplicates, 3)}. Keep one row per id."
        )
    paths = [finder.find(text.strip()) for text in ids]
    tests = [path for path in paths if path and "test" in os.path.relpath(Path(path).parent, folder).lower()]
    if tests and not explicit:
        allowed = set(tests)
        paths = [path if path in allowed else None for path in paths]
    if missing := [text for text, path in zip(ids, paths, strict=True) if path is None]:
        raise DataError(
            f"{len(missing):,} of {_count(ids, 'id')} of {name} {_have(missing)} no image in {folder}, or several: "
            f"{quoted_list(missing, 3)}. Ids are in its column '{column}'. Pass --image-dir FOLDER, or add the images."
        )
    return column, [os.path.normpath(str(path)) for path in paths]


def _common_parent(paths: Sequence[str]) -> Path:
    return Path(os.path.commonpath([Path(path).parent for path in paths]))


def images_without_id(paths: Sequence[str], folder: Path, runs: Sequence[Path], sample: SampleFile) -> list[str]:
    """Return images in the folder of the test images that have no id and are not training images either."""
    extra = set(map(os.path.normpath, images_below(folder))) - set(paths)
    if extra:
        known = set().union(*map(_trained_tails, runs))
        extra = {path for path in extra if _path_tail(path) not in known}
    if extra:
        extra -= training_images(sample.path.parent)
    return sorted(os.path.relpath(path, folder) for path in extra)


def _path_tail(path: str) -> str:
    """Return the last two parts of a path, which stay the same on another machine."""
    return "/".join(Path(path).parts[-2:])


def _trained_tails(run: Path) -> set[str]:
    """Return the last two path parts of all images that the run used or left out."""
    paths: list[str] = []
    if (run / "split.csv").is_file():
        paths += read_table(run / "split.csv")["path"].tolist()
    if (run / "manifest.json").is_file():
        left_out = read_manifest(run).get("data", {}).get("left_out", [])
        paths += [str(row.get("path")) for row in left_out]
    return {_path_tail(path) for path in paths}


def training_images(folder: Path) -> set[str]:
    """Return the images that training tables in the folder list."""
    images: set[str] = set()
    for path in _find_tables(folder):
        if "train" in path.name.lower() and (frame := _read_table_or_none(path)) is not None:
            finder = ImageFinder(folder, "train")
            if (column := find_image_column(frame, finder)) is not None:
                images |= {os.path.normpath(image) for image in map(finder.find, frame[column]) if image}
    return images


def read_classes(run: Path) -> tuple[list[str], bool]:
    """Return the run's classes, and whether an image may have several."""
    folder = model_folder(run)
    if not (folder / "model.json").is_file():
        raise OutputError(f"{run} contains no model: there is no {folder / 'model.json'}. Pass the folder of a run.")
    facts = read_config(folder / "model.json")
    return facts["classes"], facts["task"] == "multilabel"


def find_namings(runs: Sequence[Path], sample: SampleFile, classes: Sequence[str]) -> Iterator[ClassNaming]:
    """Yield the class names that tables and JSON files beside the sample and the training images give."""
    folders = [sample.path.parent]
    for manifest in [run / "manifest.json" for run in runs if (run / "manifest.json").is_file()]:
        images = read_manifest(manifest.parent).get("images")
        if images and Path(images).is_absolute():
            folders.append(Path(images) if Path(images).is_dir() else Path(images).parent)
    for folder in dict.fromkeys(path for path in folders if path.is_dir()):
        for path in sorted(folder.glob("*.json")):
            yield from namings_from_json(path, classes)
        for path in _find_tables(folder):
            yield from namings_from_table(path, classes)


def parse_codes(codes: str | Mapping[str, str], classes: Sequence[str]) -> dict[str, str]:
    """Return the name that the caller gives to each class.

    >>> parse_codes("ants=0,bees=1", ["ants", "bees"])
    {'ants': '0', 'bees': '1'}
    """
    if isinstance(codes, str):
        pairs = [pair.rpartition("=") for pair in codes.split(",")]
        codes = {label.strip(): name.strip() for label, _, name in pairs}
    names = {label: str(codes[label]) for label in classes if label in codes}
    if set(codes) != set(classes) or len(set(names.values())) < len(classes) or not all(names.values()):
        raise DataError(
            f"--codes must give each of the run's classes a name of its own; classes: {quoted_list(classes, 12)}, "
            f"given: {quoted_list(codes, 12)}. Write CLASS=NAME,CLASS=NAME."
        )
    return names


def namings_from_json(path: Path, classes: Sequence[str]) -> Iterator[ClassNaming]:
    """Yield class names from a JSON file: a list of the classes, or a mapping in either direction."""
    try:
        content = parse_json(read_text(path, MAX_JSON_BYTES))
    except (OSError, ValueError):
        return
    if isinstance(content, list):
        content = {str(number): value for number, value in enumerate(content)}
    if not isinstance(content, dict) or not all(isinstance(value, str | int) for value in content.values()):
        return
    forward = {str(key): str(value) for key, value in content.items()}
    for mapping in (forward, {value: key for key, value in forward.items()}):
        names = {label: mapping[label] for label in classes if label in mapping}
        if len(names) == len(set(names.values())) == len(classes):
            yield ClassNaming(names, f"by {path.name}")


def namings_from_table(path: Path, classes: Sequence[str]) -> Iterator[ClassNaming]:
    """Yield class names from columns with one value per class, in a table that has a column of classes."""
    frame = _read_table_or_none(path)
    if frame is None:
        return
    for labels in frame.columns:
        if not set(classes) <= set(frame[labels]):
            continue
        rows = frame[frame[labels].isin(classes)]
        for other in frame.columns.drop(labels):
            pairs = rows[[labels, other]].drop_duplicates()
            if len(pairs) == len(classes) == pairs[labels].nunique() == pairs[other].nunique() and all(pairs[other]):
                yield ClassNaming(dict(pairs.itertuples(index=False)), f"by '{labels}' and '{other}' of {path.name}")


def _find_tables(folder: Path) -> list[Path]:
    """Return the tables at the top of a folder, without submissions."""
    tables = [path for path in sorted(folder.iterdir()) if path.is_file() and path.suffix.lower() in TABLE_SUFFIXES]
    return [path for path in tables if "submission" not in path.name.lower()]


def _read_table_or_none(path: Path) -> pd.DataFrame | None:
    try:
        return read_table(path).astype(str)
    except DataError:
        return None


def predict_test_images(
    runs: Sequence[Path], paths: Sequence[str], classes: Sequence[str], progress: Progress
) -> tuple[pd.DataFrame, list[str]]:
    """Return `predicted` and `p_CLASS` of the images, in order, and the unreadable images, which got the mean.

    Raises:
        DataError: if no image can be read.
    """
    columns = [f"p_{name}" for name in classes]
    table = _predict_readable(runs, paths, classes, progress)
    unreadable = table[columns].isna().any(axis=1).to_numpy()
    if unreadable.all():
        raise DataError(
            f"None of {_count(paths, 'test image')} can be read; the first is {paths[0]}. Pass other images."
        )
    if unreadable.any():
        mean = table.loc[~unreadable, columns].mean()
        table.loc[unreadable, columns] = mean.to_numpy()
        table.loc[unreadable, "predicted"] = classes[int(np.argmax(mean.to_numpy()))]
    return table, [path for path, failed in zip(paths, unreadable, strict=True) if failed]


def _predict_readable(
    runs: Sequence[Path], paths: Sequence[str], classes: Sequence[str], progress: Progress
) -> pd.DataFrame:
    """Return `predicted` and calibrated `p_CLASS` of the images, in order; NaN where an image cannot be read."""
    from baseline.inference.model import load

    probabilities, predicted = [np.empty((0, len(classes)))], []
    with progress.bar("predicting", len(paths), "images") as bar:
        for block in load(runs).predict_batches(paths):
            probabilities.append(block.probabilities)
            predicted += block.predicted
            bar.step(len(block.images))
    table = pd.DataFrame(np.concatenate(probabilities), columns=[f"p_{name}" for name in classes])
    return table.assign(predicted=predicted)


def output_path(out: str | Path | None, sample: SampleFile, overwrite: bool) -> Path:
    """Return the file to write, after checking that its folder is writable."""
    working = kaggle_dir("working")
    path = resolve_path(str(out)) if out is not None else (working if working.is_dir() else Path.cwd())
    path = path / "submission.csv" if path.is_dir() else path
    if path.exists() and path.samefile(sample.path):
        raise OutputError(f"{path} is the sample itself. Choose another --out.")
    if path.exists() and not overwrite:
        raise OutputError(f"{path} already exists. Pass --overwrite, or choose another --out.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent):
            return path
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}. Choose another --out.") from None


def format_csv(sample: SampleFile, columns: Mapping[str, Sequence[str]]) -> str:
    """Return the text of a CSV file with the sample's delimiter and order of columns."""
    rows = zip(*(columns[name] for name in sample.columns), strict=True)
    return csv_rows([sample.columns, *rows], sample.delimiter)


def write_checked(target: Path, text: str, check: Callable[[Path], list[str]]) -> list[str]:
    """Write under another name, run `check` on the file, and rename it; return what `check` returns."""
    unchecked = target.with_name(f".{target.name}.unchecked")
    try:
        write_atomic(unchecked, text)
        passed = check(unchecked)
        replace_file(unchecked, target)
    finally:
        unchecked.unlink(missing_ok=True)
    return passed


def check_written(
    path: Path, sample: SampleFile, column: str, submission_format: SubmissionFormat, multilabel: bool
) -> list[str]:
    """Verify a written file against the sample, and return the checks that passed.

    Raises:
        OutputError: naming the first check that failed.
    """
    columns, *rows = parse_csv(path, "utf-8", sample.delimiter)
    index = sample.columns.index(column)
    _require(columns == sample.columns, "its columns are not the sample's")
    _require(len(rows) == len(sample.rows), f"it has {_count(rows, 'row')}, but the sample has {len(sample.rows):,}")
    same_ids = [row[index] for row in rows] == [row[index] for row in sample.rows]
    _require(same_ids, "its ids are not the sample's in the sample's order")
    values = [[value for position, value in enumerate(row) if position != index] for row in rows]
    _require(all(value for row in values for value in row), "values are missing")
    passed = [_count(rows, "row"), "columns, ids and their order as in the sample", "no missing values"]
    if submission_format.kind in ("names", "codes"):
        return [*passed, _check_label_values([value for [value] in values], submission_format)]
    numbers = np.array(values, dtype=float)
    in_range = np.isfinite(numbers).all() and (numbers >= 0).all() and (numbers <= 1).all()
    _require(bool(in_range), "numbers are outside 0 to 1")
    passed.append("all numbers from 0 to 1")
    if len(submission_format.names) > 1 and not multilabel:
        deviation = float(np.abs(numbers.sum(1) - 1).max())
        _require(deviation <= SUM_TOLERANCE, f"the sum of a row differs from 1 by {deviation:.2g}")
        passed.append(f"each row's sum within {SUM_TOLERANCE:g} of 1")
    return passed


def _check_label_values(values: list[str], submission_format: SubmissionFormat) -> str:
    names, separator = set(submission_format.names.values()), submission_format.separator
    labels = {label for value in values for label in (value.split(separator) if separator else [value])}
    _require(labels <= names, f"{quoted_list(order_classes(labels - names), 3)} do not name classes")
    return f"{len(labels)} of {len(names)} classes occur, and nothing else"


def _require(condition: bool, problem: str) -> None:
    if not condition:
        raise OutputError(f"The submission was not written: {problem}. This is a bug in baseline; please report it.")
