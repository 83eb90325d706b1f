"""Run + sample submission + test images -> submission.csv, read back and checked. Knows files, ids and rows.

The sample decides: its columns, its ids and their order stay to the letter; what it asks for is told by `shapes`.
"""

from __future__ import annotations

import csv
import io
import json
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from baseline.data.sources.archives import is_archive, unpack_archive
from baseline.data.sources.folders import images_below
from baseline.data.sources.match_images import ImageFinder
from baseline.data.sources.read_table import TABLE_SUFFIXES, detect_text_format, read_table
from baseline.data.sources.tables import find_image_column
from baseline.data.table import unpack_cached
from baseline.deploy.kaggle.submission_format import GIVEN, ClassNaming, detect_format, format_predictions
from baseline.errors import DataError, OutputError, quoted_list
from baseline.files import KAGGLE_SEARCH_DEPTH, kaggle_dir, read_json, resolve_path, write_atomic
from baseline.inference.model_folder import member_folders, model_folder
from baseline.progress import ConsoleProgress

if TYPE_CHECKING:
    from baseline.deploy.kaggle.submission_format import SubmissionFormat
    from baseline.progress import Progress

__all__ = ["Submission", "submit"]


SAMPLE_NAMES = ("sample_submission", "samplesubmission", "sample-submission")
"""How the names of sample submissions begin, in lower case."""


SAMPLE_SUFFIXES = (".csv", ".csv.zip")


MAX_SAMPLE_BYTES = 2**31
"""Bytes of a sample submission out of a zip."""


MAX_LISTED = 10_000_000
"""Bytes of a JSON file that may say what classes are called."""


SUM_TOLERANCE = 1e-6
"""So far may the probabilities of an image be from 1 in all, as they are written."""


@dataclass(frozen=True)
class Submission:
    """What was written."""

    path: Path
    shape: SubmissionFormat
    told: dict[str, str]
    """What was understood (`sample`, `images`, `shape`), which images could not be read (`unread`), and what was
    `checked`, in words."""

    def __str__(self) -> str:
        return "\n".join([*(f"{name}: {words}" for name, words in self.told.items()), str(self.path)])


@dataclass(frozen=True)
class SampleFile:
    """A sample submission to the letter."""

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
    """Writes a submission with the sample's columns, ids and order, in the shape it asks for, and checks it.

    Probabilities are calibrated, with test-time augmentation. A test image that cannot be read gets the mean of the
    others, and is told. The file is written under another name, read back, checked, and only then renamed.

    Args:
        run: the folder of a finished run, or of its model; several are averaged, as `baseline.load` does.
        sample: the competition's sample submission, or a zip of it; looked for below `/kaggle/input` if not given.
        images: the folder or archive of the test images; beside the sample if not given. Ids may lack the ending, and
            name images in folders below; where an image of the name is in train and in test, that in test is meant.
        out: `submission.csv` in `/kaggle/working`, or where that is not, the working folder, if not given.
        shape: `"names"`, `"codes"`, `"probabilities"` or `"one-hot"`, where the sample is not to decide.
        codes: what each class is called in the sample, `{"ants": "0", "bees": "1"}` or `"ants=0,bees=1"`. Otherwise
            tables and JSON files beside the sample and the training images are asked, and then the alphabet.
        leave_extra: images without an id are passed over, instead of refused.
        overwrite: replaces a file that is there, once the new one was found right.
        show: where progress goes; the terminal if not given, `Progress()` for nowhere.

    Raises:
        DataError: if the sample has no ids, ids come twice, ids have no images, images have no ids, no image can be
            read, or columns and values do not fit the classes.
        OutputError: if the file is there already, cannot be written, or is not what was to be written.

    >>> submit("runs/mine", "sample_submission.csv").path                          # doctest: +SKIP
    PosixPath('/kaggle/working/submission.csv')
    """
    progress = progress or ConsoleProgress()
    asked = read_sample(find_sample(sample))
    target = _output_file(out, asked, overwrite)
    given = [run] if isinstance(run, str | Path) else run
    runs = [folder for each in given for folder in member_folders(each)]
    classes, many = _run_classes(runs[0])
    where = _find_image_folder(image_dir, asked, progress)
    column, paths = _match_ids(asked, where, given=image_dir is not None)
    frame = asked.frame
    wanted = detect_format(
        {name: list(frame[name]) for name in asked.columns if name != column},
        classes,
        lambda: find_namings(runs, asked, classes),
        given=None if codes is None else ClassNaming(_parse_codes(codes, classes), GIVEN),
        many=many,
        wish=shape,
        name=asked.path.name,
    )
    left = _images_without_id(paths, where if image_dir is not None else _common_parent(paths), runs, asked)
    if left and not leave_extra:
        raise DataError(
            f"{len(left):,} images have no id in {asked.path.name}: {quoted_list(left, 3)}. Give --image-dir FOLDER with the "
            "test images alone, or --leave-extra to pass them over."
        )
    told = {
        "sample": f"{asked.path}: {len(asked.rows):,} rows, ids in '{column}'",
        "images": f"{len(paths):,} below {where}" + (f"; {len(left):,} without an id are passed over" if left else ""),
        "shape": "; ".join(wanted.words),
    }
    table, unread = _predict_all(runs, paths, classes, progress)
    written = _format_csv(asked, {column: list(frame[column]), **format_predictions(table, wanted)})
    checks = _write_checked(target, written, lambda path: _check_written(path, asked, column, wanted, many))
    if unread:
        told["unread"] = f"{len(unread):,} images, which got the mean of the others: {quoted_list(unread, 3)}"
    return Submission(target, wanted, told | {"checked": "; ".join(checks)})


def find_sample(given: str | Path | None) -> Path:
    if given is not None:
        path = resolve_path(str(given))
        if not path.is_file():
            raise DataError(f"There is no file {path}. Give the competition's sample submission, a CSV file.")
        return path
    root = kaggle_dir("input")
    found = sorted(_samples_below(root))
    if not found:
        raise DataError(f"There is no sample_submission*.csv below {root}. Give --sample FILE.")
    if len(found) > 1:
        raise DataError(
            f"There are {len(found)} sample submissions below {root}: {quoted_list(found)}. Give --sample FILE."
        )
    return found[0]


def _samples_below(root: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(root, followlinks=True):  # no deeper than so, links in circles neither
        if len(Path(folder).relative_to(root).parts) >= KAGGLE_SEARCH_DEPTH:
            folders.clear()
        names = {each for each in files if _has_sample_name(each) and each.lower().endswith(SAMPLE_SUFFIXES)}
        yield from (Path(folder) / each for each in names if each.removesuffix(".zip") not in names - {each})


def _has_sample_name(name: str) -> bool:
    return name.lower().startswith(SAMPLE_NAMES)


def read_sample(path: Path) -> SampleFile:
    if path.suffix.lower() == ".zip":
        return _read_from_zip(path)
    if not path.name.lower().endswith((".csv", ".tsv", ".txt")):
        raise DataError(f"{path} is no CSV file by its name. Give the competition's sample submission.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pd.errors.ParserWarning)  # of rows that are refused below
        read_table(path)  # which refuses what is no table
    encoding, delimiter = detect_text_format(path)
    columns, *rows = _parse_csv(path, encoding, delimiter)
    if odd := next((number for number, row in enumerate(rows, 1) if len(row) != len(columns)), 0):
        raise DataError(f"Row {odd} of {path} has {len(rows[odd - 1])} values, its header {len(columns)}. Mend it.")
    if len(set(columns)) < len(columns):
        raise DataError(f"{path} has two columns of one name. Rename one.")
    return SampleFile(path, columns, rows, delimiter)


def _read_from_zip(path: Path) -> SampleFile:
    """The one table in a zip, as Kaggle packs them."""
    with tempfile.TemporaryDirectory() as work:
        unpack_archive(path, inside := Path(work) / "sample", max_bytes=MAX_SAMPLE_BYTES)
        tables = [each for each in sorted(inside.rglob("*.[ct]sv")) if not each.name.startswith(".")]
        if len(tables) != 1:
            raise DataError(
                f"{path} holds {len(tables)} tables; one sample submission was needed. Give the file itself."
            )
        return replace(read_sample(tables[0]), path=path)


def _parse_csv(path: Path, encoding: str, delimiter: str) -> list[list[str]]:
    try:
        with path.open(encoding=encoding, newline="") as file:
            return [row for row in csv.reader(file, delimiter=delimiter) if row]
    except (OSError, UnicodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read: {error}.") from None


def _find_image_folder(given: str | Path | None, asked: SampleFile, progress: Progress) -> Path:
    where = resolve_path(str(given)) if given is not None else asked.path.parent
    if given is None and next(images_below(where), None) is None:
        archives = [each for each in sorted(where.iterdir()) if is_archive(each)]
        tests = [each for each in archives if "test" in each.name.lower()]
        where = tests[0] if len(tests) == 1 else where
    if where.is_file() and is_archive(where):
        return unpack_cached(where, progress)
    if not where.is_dir():
        raise DataError(f"There is no folder {where} to look for test images in. Give --image-dir FOLDER.")
    return where


def _match_ids(asked: SampleFile, where: Path, given: bool) -> tuple[str, list[str]]:
    """The column of ids, and the image of each."""
    finder, frame, name = ImageFinder(where, "test"), asked.frame, asked.path.name
    column = find_image_column(frame, finder)
    if column is None:
        raise DataError(
            f"{name} has no column of ids: none of {quoted_list(asked.columns, 8)} names images below {where}. Give the "
            "competition's own sample, or --image-dir FOLDER."
        )
    ids = frame[column]
    if len(twice := ids[ids.duplicated()].unique()):
        raise DataError(
            f"{len(twice):,} ids of {name} come more than once: {quoted_list(twice, 3)}. Give each one row."
        )
    found = [finder.find(each.strip()) for each in ids]
    tests = [path for path in found if path and "test" in os.path.relpath(Path(path).parent, where).lower()]
    if tests and not given:
        known = set(tests)
        found = [path if path in known else None for path in found]
    if missing := [each for each, path in zip(ids, found, strict=True) if path is None]:
        raise DataError(
            f"{len(missing):,} of {len(ids):,} ids of {name} have no image below {where}, or several: "
            f"{quoted_list(missing, 3)}. They are in its column '{column}'. Give --image-dir FOLDER, or complete the images."
        )
    return column, [os.path.normpath(str(path)) for path in found]


def _common_parent(paths: Sequence[str]) -> Path:
    return Path(os.path.commonpath([Path(path).parent for path in paths]))


def _images_without_id(paths: Sequence[str], folder: Path, runs: Sequence[Path], asked: SampleFile) -> list[str]:
    """Images in the folder of the test images that have no id, and are no training images either."""
    extra = set(map(os.path.normpath, images_below(folder))) - set(paths)
    if extra:
        known = set().union(*map(_trained_image_tails, runs))
        extra = {path for path in extra if _path_tail(path) not in known}
    if extra:
        extra -= _training_images(asked.path.parent)
    return sorted(os.path.relpath(path, folder) for path in extra)


def _path_tail(path: str) -> str:
    """The last two parts of a path, which an image keeps on another machine."""
    return "/".join(Path(path).parts[-2:])


def _trained_image_tails(run: Path) -> set[str]:
    """The last two parts of the paths of all images that the run saw or left out."""
    found: list[str] = []
    if (run / "split.csv").is_file():
        found += read_table(run / "split.csv")["path"].tolist()
    if (run / "manifest.json").is_file():
        found += [
            str(each.get("path")) for each in read_json(run / "manifest.json").get("data", {}).get("left_out", [])
        ]
    return {_path_tail(path) for path in found}


def _training_images(folder: Path) -> set[str]:
    """The images that training tables in the folder name."""
    found: set[str] = set()
    for path in _find_tables(folder):
        if "train" in path.name.lower() and (frame := _read_table(path)) is not None:
            finder = ImageFinder(folder, "train")
            if (column := find_image_column(frame, finder)) is not None:
                found |= {os.path.normpath(each) for each in map(finder.find, frame[column]) if each}
    return found


def _run_classes(run: Path) -> tuple[list[str], bool]:
    """The run's classes, and whether an image may have several."""
    folder = model_folder(run)
    if not (folder / "model.json").is_file():
        raise OutputError(f"{run} holds no model: there is no {folder / 'model.json'}. Give the folder of a run.")
    facts = read_json(folder / "model.json")
    return [str(each) for each in facts["classes"]], facts.get("labels") == "many"


def find_namings(runs: Sequence[Path], asked: SampleFile, classes: Sequence[str]) -> Iterator[ClassNaming]:
    """What tables and JSON files beside the sample and the training images call the classes."""
    folders = [asked.path.parent]
    for manifest in [run / "manifest.json" for run in runs if (run / "manifest.json").is_file()]:
        images = read_json(manifest).get("images")
        if images and Path(images).is_absolute():
            folders.append(Path(images) if Path(images).is_dir() else Path(images).parent)
    for folder in dict.fromkeys(each for each in folders if each.is_dir()):
        for path in sorted(folder.glob("*.json")):
            yield from _naming_from_json(path, classes)
        for path in _find_tables(folder):
            yield from _namings_from_table(path, classes)


def _parse_codes(codes: str | Mapping[str, str], classes: Sequence[str]) -> dict[str, str]:
    if isinstance(codes, str):
        pairs = [each.rpartition("=") for each in codes.split(",")]
        codes = {name.strip(): word.strip() for name, _, word in pairs}
    called = {each: str(codes[each]) for each in classes if each in codes}
    if set(codes) != set(classes) or len(set(called.values())) < len(classes) or not all(called.values()):
        raise DataError(
            f"--codes has to give each of the run's classes a word of its own; classes: {quoted_list(classes, 12)}, given: "
            f"{quoted_list(codes, 12)}. Write CLASS=WORD,CLASS=WORD."
        )
    return called


def _naming_from_json(path: Path, classes: Sequence[str]) -> Iterator[ClassNaming]:
    """A list of the classes, or words for them, either way round."""
    try:
        read = json.loads(path.read_text(encoding="utf-8")) if path.stat().st_size <= MAX_LISTED else None
    except (OSError, ValueError):
        return
    if isinstance(read, list):
        read = {str(place): each for place, each in enumerate(read)}
    if not isinstance(read, dict) or not all(isinstance(each, str | int) for each in read.values()):
        return
    forward = {str(key): str(value) for key, value in read.items()}
    for words in (forward, {value: key for key, value in forward.items()}):
        called = {each: words[each] for each in classes if each in words}
        if len(called) == len(set(called.values())) == len(classes):
            yield ClassNaming(called, f"by {path.name}")


def _namings_from_table(path: Path, classes: Sequence[str]) -> Iterator[ClassNaming]:
    """Columns that have one word for each class, in a table that has a column of classes."""
    frame = _read_table(path)
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
    """Tables at the top of a folder, without submissions."""
    found = [each for each in sorted(folder.iterdir()) if each.is_file() and each.suffix.lower() in TABLE_SUFFIXES]
    return [each for each in found if "submission" not in each.name.lower()]


def _read_table(path: Path) -> pd.DataFrame | None:
    try:
        return read_table(path).astype(str)
    except DataError:
        return None


def _predict_all(
    runs: Sequence[Path], paths: Sequence[str], classes: Sequence[str], progress: Progress
) -> tuple[pd.DataFrame, list[str]]:
    """`predicted` and `p_CLASS` of the images, in order, and those that could not be read and got the mean.

    Raises:
        DataError: if none can be read.
    """
    columns = [f"p_{each}" for each in classes]
    table = _predict_runs(runs, paths, classes, progress)
    bad = table[columns].isna().any(axis=1).to_numpy()
    if bad.all():
        raise DataError(f"None of {len(paths):,} test images can be read, first {paths[0]}. Give images.")
    if bad.any():
        mean = table.loc[~bad, columns].mean()
        table.loc[bad, columns] = mean.to_numpy()
        table.loc[bad, "predicted"] = classes[int(np.argmax(mean.to_numpy()))]
    return table, [path for path, failed in zip(paths, bad, strict=True) if failed]


def _predict_runs(
    runs: Sequence[Path], paths: Sequence[str], classes: Sequence[str], progress: Progress
) -> pd.DataFrame:
    """`predicted` and calibrated `p_CLASS` of the images, in order; NaN where an image cannot be read."""
    from baseline.inference.model import load

    found, predicted = [np.empty((0, len(classes)))], []
    with progress.bar("predicting", len(paths), "images") as bar:
        for block in load(runs).predict_batches(paths):
            found.append(block.probabilities)
            predicted += block.predicted
            bar.step(len(block.images))
    table = pd.DataFrame(np.concatenate(found), columns=[f"p_{each}" for each in classes])
    return table.assign(predicted=predicted)


def _output_file(out: str | Path | None, asked: SampleFile, overwrite: bool) -> Path:
    """The file to write, in a folder that was tried."""
    working = kaggle_dir("working")
    path = resolve_path(str(out)) if out is not None else (working if working.is_dir() else Path.cwd())
    path = path / "submission.csv" if path.is_dir() else path
    if path.exists() and path.samefile(asked.path):
        raise OutputError(f"{path} is the sample itself. Choose another --out.")
    if path.exists() and not overwrite:
        raise OutputError(f"{path} exists already. Give --overwrite, or choose another --out.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent):
            return path
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}. Choose another --out.") from None


def _format_csv(asked: SampleFile, columns: Mapping[str, Sequence[str]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, delimiter=asked.delimiter, lineterminator="\n")
    writer.writerow(asked.columns)
    writer.writerows(zip(*(columns[name] for name in asked.columns), strict=True))
    return text.getvalue()


def _write_checked(target: Path, text: str, check: Any) -> list[str]:
    """Writes under another name, checks what can be read back, and renames."""
    fresh = target.with_name(f".{target.name}.unchecked")
    try:
        write_atomic(fresh, text)
        found = check(fresh)
        fresh.replace(target)
    finally:
        fresh.unlink(missing_ok=True)
    return found


def _check_written(path: Path, asked: SampleFile, column: str, wanted: SubmissionFormat, many: bool) -> list[str]:
    """What was found right of a written file, in words.

    Raises:
        OutputError: naming the first thing that is not.
    """
    columns, *rows = _parse_csv(path, "utf-8", asked.delimiter)
    place = asked.columns.index(column)
    _check(columns == asked.columns, "its columns are not the sample's")
    _check(len(rows) == len(asked.rows), f"it has {len(rows):,} rows, the sample {len(asked.rows):,}")
    same = [row[place] for row in rows] == [row[place] for row in asked.rows]
    _check(same, "its ids are not the sample's in the sample's order")
    filled = [[value for at, value in enumerate(row) if at != place] for row in rows]
    _check(all(value for row in filled for value in row), "values are missing")
    found = [f"{len(rows):,} rows", "columns, ids and their order as in the sample", "no value missing"]
    if wanted.kind in ("names", "codes"):
        words = set(wanted.called.values())
        parts = {
            part for [value] in filled for part in (value.split(wanted.separator) if wanted.separator else [value])
        }
        _check(parts <= words, f"{quoted_list(sorted(parts - words), 3)} stand for no class")
        return [*found, f"{len(parts)} of {len(words)} classes occur, and nothing else"]
    numbers = np.array(filled, dtype=float)
    _check(bool(np.isfinite(numbers).all() and (numbers >= 0).all() and (numbers <= 1).all()), "numbers leave 0 to 1")
    found.append("all numbers from 0 to 1")
    if len(wanted.called) > 1 and not many:
        furthest = float(np.abs(numbers.sum(1) - 1).max())
        _check(furthest <= SUM_TOLERANCE, f"a row's sum is {furthest:.2g} from 1")
        found.append(f"each row's sum within {SUM_TOLERANCE:g} of 1")
    return found


def _check(holds: bool, words: str) -> None:
    if not holds:
        raise OutputError(f"The submission was not written: {words}. This is a fault of baseline's own; tell us of it.")
