"""Run + sample submission + test photos -> submission.csv, read back and checked. Knows files, ids and rows.

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

from baseline.data.sources.archives import is_archive, unpack
from baseline.data.sources.folders import photos_below
from baseline.data.sources.matching import Finder
from baseline.data.sources.reading import TABLE_ENDINGS, read_table, text_form
from baseline.data.sources.tables import image_column
from baseline.data.table import unpacked
from baseline.deploy.kaggle.submission_format import GIVEN, Naming, asked_shape, in_shape
from baseline.errors import DataError, OutputError, names
from baseline.files import KAGGLE_DEPTH, kaggle, place, read_json, write
from baseline.inference.model_folder import member_folders, model_folder
from baseline.progress import Terminal

if TYPE_CHECKING:
    from baseline.deploy.kaggle.submission_format import Shape
    from baseline.progress import Show

__all__ = ["Submission", "submit"]


SAMPLES = ("sample_submission", "samplesubmission", "sample-submission")
"""How the names of sample submissions begin, in lower case."""


SAMPLE_ENDINGS = (".csv", ".csv.zip")


LARGEST_SAMPLE = 2**31
"""Bytes of a sample submission out of a zip."""


LARGEST_LIST = 10_000_000
"""Bytes of a JSON file that may say what classes are called."""


SUM_WITHIN = 1e-6
"""So far may the probabilities of a photo be from 1 in all, as they are written."""


@dataclass(frozen=True)
class Submission:
    """What was written."""

    path: Path
    shape: Shape
    told: dict[str, str]
    """What was understood (`sample`, `photos`, `shape`), which photos could not be read (`unread`), and what was
    `checked`, in words."""

    def __str__(self) -> str:
        return "\n".join([*(f"{name}: {words}" for name, words in self.told.items()), str(self.path)])


@dataclass(frozen=True)
class _Sample:
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
    images: str | Path | None = None,
    *,
    out: str | Path | None = None,
    shape: str = "auto",
    codes: str | Mapping[str, str] | None = None,
    leave_extra: bool = False,
    overwrite: bool = False,
    show: Show | None = None,
) -> Submission:
    """Writes a submission with the sample's columns, ids and order, in the shape it asks for, and checks it.

    Probabilities are calibrated, with test-time augmentation. A test photo that cannot be read gets the mean of the
    others, and is told. The file is written under another name, read back, checked, and only then renamed.

    Args:
        run: the folder of a finished run, or of its model; several are averaged, as `baseline.load` does.
        sample: the competition's sample submission, or a zip of it; looked for below `/kaggle/input` if not given.
        images: the folder or archive of the test photos; beside the sample if not given. Ids may lack the ending, and
            name photos in folders below; where a photo of the name is in train and in test, that in test is meant.
        out: `submission.csv` in `/kaggle/working`, or where that is not, the working folder, if not given.
        shape: `"names"`, `"codes"`, `"probabilities"` or `"one-hot"`, where the sample is not to decide.
        codes: what each class is called in the sample, `{"ants": "0", "bees": "1"}` or `"ants=0,bees=1"`. Otherwise
            tables and JSON files beside the sample and the training photos are asked, and then the alphabet.
        leave_extra: photos without an id are passed over, instead of refused.
        overwrite: replaces a file that is there, once the new one was found right.
        show: where progress goes; the terminal if not given, `Show()` for nowhere.

    Raises:
        DataError: if the sample has no ids, ids come twice, ids have no photos, photos have no ids, no photo can be
            read, or columns and values do not fit the classes.
        OutputError: if the file is there already, cannot be written, or is not what was to be written.

    >>> submit("runs/mine", "sample_submission.csv").path                          # doctest: +SKIP
    PosixPath('/kaggle/working/submission.csv')
    """
    show = show or Terminal()
    asked = _read(_sample_path(sample))
    target = _target(out, asked, overwrite)
    given = [run] if isinstance(run, str | Path) else run
    runs = [folder for each in given for folder in member_folders(each)]
    classes, many = _classes(runs[0])
    where = _photo_folder(images, asked, show)
    column, paths = _photos(asked, where, given=images is not None)
    frame = asked.frame
    wanted = asked_shape(
        {name: list(frame[name]) for name in asked.columns if name != column},
        classes,
        lambda: _namings(runs, asked, classes),
        given=None if codes is None else Naming(_given_codes(codes, classes), GIVEN),
        many=many,
        wish=shape,
        name=asked.path.name,
    )
    left = _extra(paths, where if images is not None else _common(paths), runs, asked)
    if left and not leave_extra:
        raise DataError(
            f"{len(left):,} photos have no id in {asked.path.name}: {names(left, 3)}. Give --images FOLDER with the "
            "test photos alone, or --leave-extra to pass them over."
        )
    told = {
        "sample": f"{asked.path}: {len(asked.rows):,} rows, ids in '{column}'",
        "photos": f"{len(paths):,} below {where}" + (f"; {len(left):,} without an id are passed over" if left else ""),
        "shape": "; ".join(wanted.words),
    }
    table, unread = _predicted(runs, paths, classes, show)
    written = _as_text(asked, {column: list(frame[column]), **in_shape(table, wanted)})
    checks = _put(target, written, lambda path: _checked(path, asked, column, wanted, many))
    if unread:
        told["unread"] = f"{len(unread):,} photos, which got the mean of the others: {names(unread, 3)}"
    return Submission(target, wanted, told | {"checked": "; ".join(checks)})


def _sample_path(given: str | Path | None) -> Path:
    if given is not None:
        path = place(str(given))
        if not path.is_file():
            raise DataError(f"There is no file {path}. Give the competition's sample submission, a CSV file.")
        return path
    root = kaggle("input")
    found = sorted(_samples_below(root))
    if not found:
        raise DataError(f"There is no sample_submission*.csv below {root}. Give --sample FILE.")
    if len(found) > 1:
        raise DataError(f"There are {len(found)} sample submissions below {root}: {names(found)}. Give --sample FILE.")
    return found[0]


def _samples_below(root: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(root, followlinks=True):  # no deeper than so, links in circles neither
        if len(Path(folder).relative_to(root).parts) >= KAGGLE_DEPTH:
            folders.clear()
        names = {each for each in files if _is_sample(each) and each.lower().endswith(SAMPLE_ENDINGS)}
        yield from (Path(folder) / each for each in names if each.removesuffix(".zip") not in names - {each})


def _is_sample(name: str) -> bool:
    return name.lower().startswith(SAMPLES)


def _read(path: Path) -> _Sample:
    if path.suffix.lower() == ".zip":
        return _read_zipped(path)
    if not path.name.lower().endswith((".csv", ".tsv", ".txt")):
        raise DataError(f"{path} is no CSV file by its name. Give the competition's sample submission.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pd.errors.ParserWarning)  # of rows that are refused below
        read_table(path)  # which refuses what is no table
    encoding, delimiter = text_form(path)
    columns, *rows = _csv_rows(path, encoding, delimiter)
    if odd := next((number for number, row in enumerate(rows, 1) if len(row) != len(columns)), 0):
        raise DataError(f"Row {odd} of {path} has {len(rows[odd - 1])} values, its header {len(columns)}. Mend it.")
    if len(set(columns)) < len(columns):
        raise DataError(f"{path} has two columns of one name. Rename one.")
    return _Sample(path, columns, rows, delimiter)


def _read_zipped(path: Path) -> _Sample:
    """The one table in a zip, as Kaggle packs them."""
    with tempfile.TemporaryDirectory() as work:
        unpack(path, inside := Path(work) / "sample", max_bytes=LARGEST_SAMPLE)
        tables = [each for each in sorted(inside.rglob("*.[ct]sv")) if not each.name.startswith(".")]
        if len(tables) != 1:
            raise DataError(
                f"{path} holds {len(tables)} tables; one sample submission was needed. Give the file itself."
            )
        return replace(_read(tables[0]), path=path)


def _csv_rows(path: Path, encoding: str, delimiter: str) -> list[list[str]]:
    try:
        with path.open(encoding=encoding, newline="") as file:
            return [row for row in csv.reader(file, delimiter=delimiter) if row]
    except (OSError, UnicodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read: {error}.") from None


def _photo_folder(given: str | Path | None, asked: _Sample, show: Show) -> Path:
    where = place(str(given)) if given is not None else asked.path.parent
    if given is None and next(photos_below(where), None) is None:
        archives = [each for each in sorted(where.iterdir()) if is_archive(each)]
        tests = [each for each in archives if "test" in each.name.lower()]
        where = tests[0] if len(tests) == 1 else where
    if where.is_file() and is_archive(where):
        return unpacked(where, show)
    if not where.is_dir():
        raise DataError(f"There is no folder {where} to look for test photos in. Give --images FOLDER.")
    return where


def _photos(asked: _Sample, where: Path, given: bool) -> tuple[str, list[str]]:
    """The column of ids, and the photo of each."""
    finder, frame, name = Finder(where, "test"), asked.frame, asked.path.name
    column = image_column(frame, finder)
    if column is None:
        raise DataError(
            f"{name} has no column of ids: none of {names(asked.columns, 8)} names photos below {where}. Give the "
            "competition's own sample, or --images FOLDER."
        )
    ids = frame[column]
    if len(twice := ids[ids.duplicated()].unique()):
        raise DataError(f"{len(twice):,} ids of {name} come more than once: {names(twice, 3)}. Give each one row.")
    found = [finder.find(each.strip()) for each in ids]
    tests = [path for path in found if path and "test" in os.path.relpath(Path(path).parent, where).lower()]
    if tests and not given:
        known = set(tests)
        found = [path if path in known else None for path in found]
    if missing := [each for each, path in zip(ids, found, strict=True) if path is None]:
        raise DataError(
            f"{len(missing):,} of {len(ids):,} ids of {name} have no photo below {where}, or several: "
            f"{names(missing, 3)}. They are in its column '{column}'. Give --images FOLDER, or complete the photos."
        )
    return column, [os.path.normpath(str(path)) for path in found]


def _common(paths: Sequence[str]) -> Path:
    return Path(os.path.commonpath([Path(path).parent for path in paths]))


def _extra(paths: Sequence[str], folder: Path, runs: Sequence[Path], asked: _Sample) -> list[str]:
    """Photos in the folder of the test photos that have no id, and are no training photos either."""
    extra = set(map(os.path.normpath, photos_below(folder))) - set(paths)
    if extra:
        known = set().union(*map(_trained_on, runs))
        extra = {path for path in extra if _tail(path) not in known}
    if extra:
        extra -= _training_photos(asked.path.parent)
    return sorted(os.path.relpath(path, folder) for path in extra)


def _tail(path: str) -> str:
    """The last two parts of a path, which a photo keeps on another machine."""
    return "/".join(Path(path).parts[-2:])


def _trained_on(run: Path) -> set[str]:
    """The last two parts of the paths of all photos that the run saw or left out."""
    found: list[str] = []
    if (run / "split.csv").is_file():
        found += read_table(run / "split.csv")["path"].tolist()
    if (run / "manifest.json").is_file():
        found += [
            str(each.get("path")) for each in read_json(run / "manifest.json").get("data", {}).get("left_out", [])
        ]
    return {_tail(path) for path in found}


def _training_photos(folder: Path) -> set[str]:
    """The photos that training tables in the folder name."""
    found: set[str] = set()
    for path in _tables_in(folder):
        if "train" in path.name.lower() and (frame := _table(path)) is not None:
            finder = Finder(folder, "train")
            if (column := image_column(frame, finder)) is not None:
                found |= {os.path.normpath(each) for each in map(finder.find, frame[column]) if each}
    return found


def _classes(run: Path) -> tuple[list[str], bool]:
    """The run's classes, and whether a photo may have several."""
    folder = model_folder(run)
    if not (folder / "model.json").is_file():
        raise OutputError(f"{run} holds no model: there is no {folder / 'model.json'}. Give the folder of a run.")
    facts = read_json(folder / "model.json")
    return [str(each) for each in facts["classes"]], facts.get("labels") == "many"


def _namings(runs: Sequence[Path], asked: _Sample, classes: Sequence[str]) -> Iterator[Naming]:
    """What tables and JSON files beside the sample and the training photos call the classes."""
    folders = [asked.path.parent]
    for manifest in [run / "manifest.json" for run in runs if (run / "manifest.json").is_file()]:
        photos = read_json(manifest).get("photos")
        if photos and Path(photos).is_absolute():
            folders.append(Path(photos) if Path(photos).is_dir() else Path(photos).parent)
    for folder in dict.fromkeys(each for each in folders if each.is_dir()):
        for path in sorted(folder.glob("*.json")):
            yield from _in_json(path, classes)
        for path in _tables_in(folder):
            yield from _in_table(path, classes)


def _given_codes(codes: str | Mapping[str, str], classes: Sequence[str]) -> dict[str, str]:
    if isinstance(codes, str):
        pairs = [each.rpartition("=") for each in codes.split(",")]
        codes = {name.strip(): word.strip() for name, _, word in pairs}
    called = {each: str(codes[each]) for each in classes if each in codes}
    if set(codes) != set(classes) or len(set(called.values())) < len(classes) or not all(called.values()):
        raise DataError(
            f"--codes has to give each of the run's classes a word of its own; classes: {names(classes, 12)}, given: "
            f"{names(codes, 12)}. Write CLASS=WORD,CLASS=WORD."
        )
    return called


def _in_json(path: Path, classes: Sequence[str]) -> Iterator[Naming]:
    """A list of the classes, or words for them, either way round."""
    try:
        read = json.loads(path.read_text(encoding="utf-8")) if path.stat().st_size <= LARGEST_LIST else None
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
            yield Naming(called, f"by {path.name}")


def _in_table(path: Path, classes: Sequence[str]) -> Iterator[Naming]:
    """Columns that have one word for each class, in a table that has a column of classes."""
    frame = _table(path)
    if frame is None:
        return
    for labels in frame.columns:
        if not set(classes) <= set(frame[labels]):
            continue
        rows = frame[frame[labels].isin(classes)]
        for other in frame.columns.drop(labels):
            pairs = rows[[labels, other]].drop_duplicates()
            if len(pairs) == len(classes) == pairs[labels].nunique() == pairs[other].nunique() and all(pairs[other]):
                yield Naming(dict(pairs.itertuples(index=False)), f"by '{labels}' and '{other}' of {path.name}")


def _tables_in(folder: Path) -> list[Path]:
    """Tables at the top of a folder, without submissions."""
    found = [each for each in sorted(folder.iterdir()) if each.is_file() and each.suffix.lower() in TABLE_ENDINGS]
    return [each for each in found if "submission" not in each.name.lower()]


def _table(path: Path) -> pd.DataFrame | None:
    try:
        return read_table(path).astype(str)
    except DataError:
        return None


def _predicted(
    runs: Sequence[Path], paths: Sequence[str], classes: Sequence[str], show: Show
) -> tuple[pd.DataFrame, list[str]]:
    """`predicted` and `p_CLASS` of the photos, in order, and those that could not be read and got the mean.

    Raises:
        DataError: if none can be read.
    """
    columns = [f"p_{each}" for each in classes]
    table = _seen(runs, paths, classes, show)
    bad = table[columns].isna().any(axis=1).to_numpy()
    if bad.all():
        raise DataError(f"None of {len(paths):,} test photos can be read, first {paths[0]}. Give photos.")
    if bad.any():
        mean = table.loc[~bad, columns].mean()
        table.loc[bad, columns] = mean.to_numpy()
        table.loc[bad, "predicted"] = classes[int(np.argmax(mean.to_numpy()))]
    return table, [path for path, failed in zip(paths, bad, strict=True) if failed]


def _seen(runs: Sequence[Path], paths: Sequence[str], classes: Sequence[str], show: Show) -> pd.DataFrame:
    """`predicted` and calibrated `p_CLASS` of the photos, in order; NaN where a photo cannot be read."""
    from baseline.inference.model import load

    found, predicted = [np.empty((0, len(classes)))], []
    with show.bar("predicting", len(paths), "photos") as bar:
        for block in load(runs).blocks(paths):
            found.append(block.probabilities)
            predicted += block.predicted
            bar.step(len(block.photos))
    table = pd.DataFrame(np.concatenate(found), columns=[f"p_{each}" for each in classes])
    return table.assign(predicted=predicted)


def _target(out: str | Path | None, asked: _Sample, overwrite: bool) -> Path:
    """The file to write, in a folder that was tried."""
    working = kaggle("working")
    path = place(str(out)) if out is not None else (working if working.is_dir() else Path.cwd())
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


def _as_text(asked: _Sample, columns: Mapping[str, Sequence[str]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, delimiter=asked.delimiter, lineterminator="\n")
    writer.writerow(asked.columns)
    writer.writerows(zip(*(columns[name] for name in asked.columns), strict=True))
    return text.getvalue()


def _put(target: Path, text: str, check: Any) -> list[str]:
    """Writes under another name, checks what can be read back, and renames."""
    fresh = target.with_name(f".{target.name}.unchecked")
    try:
        write(fresh, text)
        found = check(fresh)
        fresh.replace(target)
    finally:
        fresh.unlink(missing_ok=True)
    return found


def _checked(path: Path, asked: _Sample, column: str, wanted: Shape, many: bool) -> list[str]:
    """What was found right of a written file, in words.

    Raises:
        OutputError: naming the first thing that is not.
    """
    columns, *rows = _csv_rows(path, "utf-8", asked.delimiter)
    place = asked.columns.index(column)
    _require(columns == asked.columns, "its columns are not the sample's")
    _require(len(rows) == len(asked.rows), f"it has {len(rows):,} rows, the sample {len(asked.rows):,}")
    same = [row[place] for row in rows] == [row[place] for row in asked.rows]
    _require(same, "its ids are not the sample's in the sample's order")
    filled = [[value for at, value in enumerate(row) if at != place] for row in rows]
    _require(all(value for row in filled for value in row), "values are missing")
    found = [f"{len(rows):,} rows", "columns, ids and their order as in the sample", "no value missing"]
    if wanted.kind in ("names", "codes"):
        words = set(wanted.called.values())
        parts = {
            part for [value] in filled for part in (value.split(wanted.separator) if wanted.separator else [value])
        }
        _require(parts <= words, f"{names(sorted(parts - words), 3)} stand for no class")
        return [*found, f"{len(parts)} of {len(words)} classes occur, and nothing else"]
    numbers = np.array(filled, dtype=float)
    _require(bool(np.isfinite(numbers).all() and (numbers >= 0).all() and (numbers <= 1).all()), "numbers leave 0 to 1")
    found.append("all numbers from 0 to 1")
    if len(wanted.called) > 1 and not many:
        furthest = float(np.abs(numbers.sum(1) - 1).max())
        _require(furthest <= SUM_WITHIN, f"a row's sum is {furthest:.2g} from 1")
        found.append(f"each row's sum within {SUM_WITHIN:g} of 1")
    return found


def _require(holds: bool, words: str) -> None:
    if not holds:
        raise OutputError(f"The submission was not written: {words}. This is a fault of baseline's own; tell us of it.")
