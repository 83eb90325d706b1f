"""A CSV, TSV, Parquet file or DataFrame -> rows of path, label, split, group. Knows columns and names of files.

Columns are taken as named by the caller, else found by name and by content: the image column is the one whose values
are photos on disk, whole paths or bare ids, with or without an ending. Text is read as text: an id `0012` stays so.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from .errors import DataError, unknown
from .memory import free_memory

__all__ = [
    "PHOTO_ENDINGS",
    "ROW_BYTES",
    "SEPARATOR",
    "SPLIT_NAMES",
    "TABLE_ENDINGS",
    "Columns",
    "Finder",
    "classes_of",
    "decisions",
    "each_label",
    "flags_of",
    "has_many",
    "image_column",
    "is_photo",
    "listed_photos",
    "names",
    "photos_below",
    "place",
    "rarest",
    "read_table",
    "rows_by_path",
    "rows_of",
    "text_form",
]

PHOTO_ENDINGS = frozenset(
    {".avif", ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff",
     ".webp"}
)  # fmt: skip
"""Names with these endings, in either case, are photos."""

TABLE_ENDINGS = (".csv", ".tsv", ".parquet")

SPLIT_NAMES = {
    "train": "train", "training": "train",
    "valid": "valid", "val": "valid", "validation": "valid", "dev": "valid",
    "test": "test", "testing": "test",
}  # fmt: skip
"""What folders and the values of a split column are called, in lower case."""

IMAGE_NAMES = (
    "path", "image_path", "img_path", "filepath", "file_path", "image", "img", "photo", "picture", "file", "filename",
    "file_name", "image_name", "img_name", "fname", "image_id", "img_id", "photo_id", "id", "name",
)  # fmt: skip
LABEL_NAMES = (
    "label", "labels", "class", "classes", "class_name", "target", "category", "tag", "tags", "breed", "species",
    "diagnosis", "y",
)  # fmt: skip
GROUP_NAMES = (
    "group", "group_id", "groups", "patient", "patient_id", "subject", "subject_id", "person", "photographer",
    "individual", "individual_id", "site", "location", "session", "series", "series_id", "video", "video_id", "track",
    "track_id", "sequence", "sequence_id",
)  # fmt: skip
RESERVED = ("bytes", "fold", "frames", "height", "mode", "reason", "turned", "twins", "width")
"""Columns that are ours; a table's own of such a name gets an underscore."""

SPLIT_COLUMNS = ("split", "set", "subset", "partition", "phase")
READ_BYTES, ROW_BYTES = 250, 1100
"""Of memory that a row of a table takes when it is read, and when it becomes rows of photos; beside its text, which
takes `TEXT_COPIES` times what it has on disk (300,000 rows of 34 and 434 bytes: 213 and 1,116; 988 and 1,701)."""
TEXT_COPIES = 2.5

SEPARATOR = ";"
"""Between the labels of one photo that has several."""


@dataclass(frozen=True)
class Columns:
    """Which column is what; empty where it has to be found."""

    image: str = ""
    label: str = ""
    """One column, or several between commas: 0 and 1 in each."""
    group: str = ""
    split: str = ""
    images: str = ""
    """The folder that names in the image column belong to; the table's own where empty."""


@dataclass
class Rows:
    """What a table gave."""

    table: pd.DataFrame
    words: str
    """Which column was taken for what."""
    oddities: list[str] = field(default_factory=list)


def read_table(path: Path, row_bytes: int = READ_BYTES) -> pd.DataFrame:
    """The file's rows, every value of a CSV or TSV as text, missing ones empty.

    UTF-8 with and without a byte-order mark and UTF-16 with one are read; the delimiter of a .csv is looked for.

    Args:
        row_bytes: what a row of a CSV or TSV takes of memory at most, beside its text, in all that will be made of it.

    Raises:
        DataError: if it cannot be read, is in another encoding, has no rows, or needs more memory than there is.
    """
    try:
        _refuse_too_large(path, row_bytes)
        frame = _parquet(path) if path.suffix.lower() == ".parquet" else _text(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from None
    if frame.empty:
        raise DataError(f"{path} has a header but no rows. Give a table with one row a photo.")
    return frame


def listed_photos(path: Path, column: str = "") -> list[str]:
    """The paths of photos in one column of a table, found by its name where none is given, from the table's folder on.

    They need not be there.

    Raises:
        DataError: if the table cannot be read or has no such column.
    """
    frame = read_table(path).rename(columns=str)
    _known(frame, column, path.name, "image")
    only = str(frame.columns[0]) if len(frame.columns) == 1 else ""
    column = column or _named(frame, IMAGE_NAMES) or only
    if not column:
        raise DataError(f"No column of {path} is named as photos are: {names(frame.columns)}. Give --image-col.")
    return [str(path.parent / value) for value in _texts(frame[column])]


def rows_of(frame: pd.DataFrame, name: str, folder: Path, columns: Columns) -> Rows:
    """Rows of `path` (absolute), `label`, `split`, `group` and the frame's other columns.

    Args:
        frame: a table with one row a photo.
        name: what to call it in errors.
        folder: where its photos are looked for, unless `columns.images` says another.

    Raises:
        DataError: if no column holds images or labels, images are missing, a row comes twice, a photo has two labels,
            or a label is empty.
    """
    frame = frame.rename(columns=str).reset_index(drop=True)
    if len(twice := frame.columns[frame.columns.duplicated()]):
        raise DataError(f"{name} has two columns '{twice[0]}'. Rename one.")
    frame = frame.rename(columns={column: f"{column}_" for column in RESERVED})
    for option, given in (("image", columns.image), ("group", columns.group), ("split", columns.split)):
        _known(frame, given, name, option)
    folder = place(columns.images) if columns.images else folder
    if not folder.is_dir():
        raise DataError(f"There is no folder {folder} to look for the photos of {name} in. Give --images FOLDER.")
    finder = Finder(folder, "train" if "train" in name.lower() else "")
    image, paths = _images(frame, columns.image, finder, name)
    named = tuple(_listed(columns.label))
    group = columns.group or _named(frame, GROUP_NAMES, skip=(image, *named))
    split = columns.split or _split_column(frame, skip=(image, group, *named))
    try:
        labels, label_words = _labels(frame, columns.label, (image, group, split), name)
    except DataError:
        if columns.group or columns.label or not group:
            raise
        group = ""  # a column that may be a group, where it is all that there is, holds the labels
        labels, label_words = _labels(frame, "", (image, split), name)
    rows = pd.DataFrame({"path": paths, "label": labels, "split": None, "group": None})
    if split:
        rows["split"] = _splits(frame[split], split, name)
    if group:
        values = _texts(frame[group])
        rows["group"] = values.where(values != "", None)
    rest = [each for each in frame.columns if each not in {*rows.columns, image, split}]
    rows = pd.concat([rows, frame[rest]], axis=1)
    _refuse_repeats(rows, name)
    words = [f"images from '{image}'", label_words]
    words += [f"groups from '{group}'"] if group else []
    words += [f"splits from '{split}'"] if split else []
    return Rows(rows, ", ".join(words), finder.oddities())


def place(words: str) -> Path:
    """The absolute path of what a user wrote.

    Raises:
        DataError: for a name that no file can have, or a home folder that is not there.
    """
    try:
        path = Path(words).expanduser().absolute()
        path.exists()
    except (OSError, RuntimeError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise DataError(f"{words[:80]!r} cannot be looked at: {why}. Give another path.") from None
    return path


def photos_below(folder: Path) -> Iterator[str]:
    """Every photo in a folder and the folders below, in order. Hidden ones are passed over, links followed once.

    A folder that a link leads back to is entered once only, and one above `folder` not at all, so a loop of links ends.

    Raises:
        DataError: for a folder that cannot be read and a name that is no text.
    """

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename} cannot be read: {error.strerror}. Change its rights, or move it away.")

    seen = {str(each) for each in Path(os.path.realpath(folder)).parents}
    for here, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        real = os.path.realpath(here)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(each for each in folders if not each.startswith("."))
        for file in sorted(files):
            if is_photo(file):
                path = os.path.join(here, file)
                if not path.isprintable() and any("\ud800" <= each <= "\udfff" for each in path):
                    raise DataError(f"The name {path!a} is no text in UTF-8. Rename it.")
                yield path


def is_photo(name: str) -> bool:
    """Whether a name, with folders or without, is that of a photo: by its ending; hidden ones are passed over.

    >>> is_photo("ants/01.JPG"), is_photo("__MACOSX/._01.jpg"), is_photo("labels.csv")
    (True, False, False)
    """
    hidden = any(part.startswith(".") and part != "." for part in name.split("/"))
    return not hidden and os.path.splitext(name)[1].lower() in PHOTO_ENDINGS


def names(values: Iterable[Any], limit: int = 5) -> str:
    """The first few in quotes, and how many more."""
    listed = [f"'{value}'" for value in values]
    more = f" and {len(listed) - limit} more" if len(listed) > limit else ""
    return ", ".join(listed[:limit]) + more


def against_rest(labels: pd.Series, positive: str) -> pd.Series:
    """The labels as two classes: `positive`, and `not POSITIVE` for all others.

    >>> list(against_rest(pd.Series(["glass", "plastic", "metal"]), "plastic"))
    ['not plastic', 'plastic', 'not plastic']

    Raises:
        DataError: if no label is `positive`.
    """
    if not labels.eq(positive).any():
        raise DataError(unknown("class", positive, set(labels)))
    return labels.where(labels == positive, f"not {positive}")


# ---- several labels of one photo ------------------------------------------------------------------------------------


def decisions(probabilities: np.ndarray, classes: Sequence[str], threshold: float | None = None) -> np.ndarray:
    """What is predicted for each row of uncalibrated probabilities, N x classes: the most probable class.

    With a threshold, for many labels a photo: all classes from it on, with `;` between.

    >>> decisions(np.array([[0.6, 0.7]]), ["a", "b"]).tolist()
    ['b']
    >>> decisions(np.array([[0.6, 0.7]]), ["a", "b"], threshold=0.5).tolist()
    ['a;b']
    """
    names = np.asarray(classes, dtype=object)
    if threshold is None:
        return names[probabilities.argmax(1)]
    return np.array([SEPARATOR.join(names[row]) for row in probabilities >= threshold], dtype=object)


def has_many(labels: pd.Series, wish: str = "auto") -> bool:
    """Whether photos may have several labels: as wished, else where a separator or an empty label is seen."""
    seen = labels.eq("") | labels.str.contains(SEPARATOR, regex=False)
    return wish == "many" or (wish == "auto" and bool(seen.any()))


def classes_of(label: str) -> list[str]:
    """The classes that a label of several stands for.

    >>> classes_of("cat;dog"), classes_of("")
    (['cat', 'dog'], [])
    """
    return [each for each in label.split(SEPARATOR) if each]


def each_label(labels: pd.Series, wish: str = "auto") -> pd.Series:
    """The labels, and where photos may have several, each of them on a row of its own; missing for a photo of none."""
    return labels.map(classes_of).explode() if has_many(labels, wish) else labels


def flags_of(labels: pd.Series, classes: Sequence[str]) -> np.ndarray:
    """Photos x classes: whether the photo has the label."""
    sets = [set(classes_of(label)) for label in labels]
    return np.array([[name in each for name in classes] for each in sets], dtype=bool).reshape(-1, len(classes))


def rarest(labels: pd.Series) -> pd.Series:
    """For each photo of several labels its rarest one, by which such photos are split; empty where it has none."""
    counts = each_label(labels, "many").value_counts()
    return labels.map(lambda label: min(classes_of(label), key=lambda each: (counts[each], each), default=""))


# ---- reading --------------------------------------------------------------------------------------------------------


def _parquet(path: Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(path)
    except ImportError:
        raise DataError(f"{path} needs a Parquet reader: pip install 'fastai-baseline[parquet]'.") from None
    except OSError:
        raise
    except Exception as error:  # pyarrow's own kinds
        raise DataError(f"{path} is no whole Parquet file: {str(error).splitlines()[0][:120]}.") from None


def text_form(path: Path) -> tuple[str, str]:
    """The encoding of a table of text, and its delimiter: in a .csv the one of `, ; tab |` that its header has most of.

    Raises:
        OSError, UnicodeError: if its beginning cannot be read.
    """
    with path.open("rb") as opened:
        start = opened.read(4)
    encoding = "utf-16" if start[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    with path.open(encoding=encoding) as text:
        sample = text.read(1 << 16)
    return encoding, "\t" if path.suffix.lower() == ".tsv" else _delimiter(sample)


def _text(path: Path) -> pd.DataFrame:
    try:
        encoding, delimiter = text_form(path)
        return pd.read_csv(
            path,
            sep=delimiter,
            dtype=str,
            keep_default_na=False,
            encoding=encoding,
            skipinitialspace=True,
            index_col=False,
        )
    except UnicodeError as error:
        raise DataError(_not_utf8(path, error)) from None
    except pd.errors.EmptyDataError:
        raise DataError(f"{path} is empty. Give a table with a header and one row a photo.") from None
    except (pd.errors.ParserError, csv.Error) as error:
        raise DataError(f"{path} is no table: {' '.join(str(error).split())[:160]}.") from None


def _refuse_too_large(path: Path, row_bytes: int) -> None:
    """An error where there is less memory than the table will take, before it takes it."""
    if path.suffix.lower() == ".parquet" or (free := free_memory()) is None:
        return
    size = path.stat().st_size
    with path.open("rb") as file:
        sample = file.read(1 << 16)
    rows = size * max(1, sample.count(b"\n")) // max(1, len(sample))
    needed = rows * row_bytes + int(TEXT_COPIES * size)
    if needed > free:
        raise DataError(
            f"{path} has about {rows:,} rows, which take {needed / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are "
            "free. Give a part of it, or a machine with more."
        )


def _delimiter(sample: str) -> str:
    """The one that the header has most of; a comma where it has none."""
    header = sample.splitlines()[0] if sample.strip() else ""
    return max(",;\t|", key=header.count)


def _not_utf8(path: Path, error: UnicodeError) -> str:
    where = ""
    if isinstance(error, UnicodeDecodeError) and error.reason != "truncated data":
        content = path.read_bytes()
        for number, line in enumerate(content.split(b"\n"), 1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as wrong:
                where = f" (byte 0x{line[wrong.start]:02x} in line {number})"
                break
    return f"{path} is not UTF-8{where}, and any other encoding would be a guess. Save it as UTF-8."


# ---- which column is what -------------------------------------------------------------------------------------------


def _known(frame: pd.DataFrame, column: str, name: str, option: str) -> None:
    if column and column not in frame.columns:
        raise DataError(f"In {name}: {unknown('column', column, map(str, frame.columns))} Change --{option}-col.")


def _named(frame: pd.DataFrame, wanted: tuple[str, ...], skip: tuple[str, ...] = ()) -> str:
    lower = {str(column).strip().lower().replace(" ", "_"): str(column) for column in reversed(frame.columns)}
    return next((lower[each] for each in wanted if each in lower and lower[each] not in skip), "")


def _plain(value: Any) -> str:
    """Text of a value: whole floats without their zero, nothing for what is missing."""
    if value is None or value is pd.NA or value is pd.NaT or (isinstance(value, float) and value != value):
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def _texts(values: pd.Series) -> pd.Series:
    return values.astype(object).map(_plain)


def _listed(columns: str) -> list[str]:
    """The names between commas, each once."""
    return list(dict.fromkeys(each.strip() for each in columns.split(",") if each.strip()))


def _images(frame: pd.DataFrame, given: str, finder: Finder, name: str) -> tuple[str, list[str]]:
    """The image column, and for each of its values the photo's path."""
    best = given or image_column(frame, finder)
    if best is None:
        columns = names(frame.columns, 12)
        raise DataError(f"{name} has no column that looks like images; its columns: {columns}. Give --image-col.")
    texts = _texts(frame[best])
    paths = [finder.find(text) for text in texts]
    missing = [text for text, path in zip(texts, paths, strict=True) if path is None]
    if missing:
        raise DataError(
            f"{len(missing):,} of {len(frame):,} images of {name} are not in {finder.folder}: {names(missing, 3)}. "
            f"They are in its column '{best}'. Give --images FOLDER or --image-col COLUMN, or drop the rows."
        )
    return best, [str(path) for path in paths]


def image_column(frame: pd.DataFrame, finder: Finder) -> str | None:
    """The column whose values are photos; else one that looks so, or is named so; else none."""
    listed = [each for each in (_named(frame, (name,)) for name in IMAGE_NAMES) if each]
    shares = {each: finder.share(frame[each].head(50)) for each in dict.fromkeys([*listed, *frame.columns])}
    best = max(shares, key=lambda each: shares[each])
    if shares[best][0]:
        return best
    looks = [each for each in shares if _looks_like_photos(frame[each].head(50))]
    return next(iter([*looks, *listed]), None)


def _looks_like_photos(values: pd.Series) -> bool:
    return all(os.path.splitext(_plain(value))[1].lower() in PHOTO_ENDINGS for value in values)


def _split_column(frame: pd.DataFrame, skip: tuple[str, ...]) -> str:
    found = _named(frame, SPLIT_COLUMNS, skip)
    return found if found and set(_texts(frame[found]).str.lower()) <= {"", *SPLIT_NAMES} else ""


def _splits(values: pd.Series, column: str, name: str) -> pd.Series:
    plain = _texts(values)
    lower = plain.str.lower()
    if wrong := sorted(set(plain[~lower.isin(["", *SPLIT_NAMES])])):
        raise DataError(f"The column '{column}' of {name} holds {names(wrong)}; train, valid, test were needed.")
    return lower.map(SPLIT_NAMES).astype(object).where(lower != "", None)


def _labels(frame: pd.DataFrame, given: str, taken: tuple[str, ...], name: str) -> tuple[pd.Series, str]:
    """The label of each row, and a word on where it comes from."""
    chosen = [given] if given in frame.columns else _listed(given)
    if given:
        for column in chosen or [given]:
            _known(frame, column, name, "label")
    else:
        chosen = _label_columns(frame, taken, name)
    if len(chosen) > 1:
        return _from_flags(frame, chosen, name), f"labels from {len(chosen)} columns of 0 and 1, {names(chosen, 3)}"
    labels = _texts(frame[chosen[0]])
    if (empty := labels == "").any():
        first = labels.index[empty][0] + 1
        raise DataError(
            f"{int(empty.sum()):,} of {len(frame):,} rows of {name} have no label in '{chosen[0]}', first row {first}. "
            "Fill or drop them."
        )
    several = labels.str.contains(SEPARATOR, regex=False)
    if several.any():
        labels = labels.map(
            lambda text: SEPARATOR.join(sorted({part.strip() for part in text.split(SEPARATOR)} - {""}))
        )
    return labels, f"labels from '{chosen[0]}'"


def _label_columns(frame: pd.DataFrame, taken: tuple[str, ...], name: str) -> list[str]:
    if named := _named(frame, LABEL_NAMES, taken):
        return [named]
    rest = [each for each in frame.columns if each not in taken]
    flags = [each for each in rest if _is_flag(frame[each])]
    if len(flags) >= 2:
        return flags
    if len(rest) == 1:
        return rest
    columns = names(frame.columns, 12)
    raise DataError(f"{name} has no column that looks like labels; its columns: {columns}. Give --label-col COLUMN.")


def _is_flag(values: pd.Series) -> bool:
    return set(values.map(_plain)) <= {"0", "1", "True", "False", "true", "false", "0.0", "1.0"}


def _from_flags(frame: pd.DataFrame, columns: list[str], name: str) -> pd.Series:
    """One class of each row where every row has exactly one; else all of them, joined."""
    if odd := [each for each in columns if not _is_flag(frame[each])]:
        raise DataError(f"In {name} the label columns {names(odd)} hold more than 0 and 1. Give --label-col.")
    flags = frame[columns].map(lambda value: _plain(value).lower() in ("1", "true", "1.0"))
    order = sorted(columns)
    return flags[order].apply(lambda row: SEPARATOR.join(c for c, on in zip(order, row, strict=True) if on), axis=1)


def _refuse_repeats(rows: pd.DataFrame, name: str) -> None:
    twice = rows[rows.duplicated("path", keep=False)]
    if twice.empty:
        return
    by_path = twice.groupby("path", sort=False)["label"].nunique()
    if len(torn := by_path.index[by_path > 1]):
        path = torn[0]
        labels = names(sorted(set(twice.loc[twice["path"] == path, "label"])))
        raise DataError(
            f"{len(torn)} photos of {name} have two labels or more, first {path}: {labels}. Keep one, or join them "
            f"with '{SEPARATOR}' if a photo has several."
        )
    count = len(twice) - len(by_path)
    raise DataError(f"{count} rows of {name} repeat a photo, first {twice['path'].iloc[0]}. Drop the repeats.")


# ---- which photo is meant -------------------------------------------------------------------------------------------


class Finder:
    """Photos by the names that tables give them. The folder is listed once, and only if a plain path is not enough.

    Where several photos have the name, the one is meant that has the word `part` (`"train"`, `"test"`) in its path.
    """

    def __init__(self, folder: Path, part: str = "") -> None:
        self.folder, self.part = folder, part
        self.listed: dict[str, list[str]] | None = None
        self.without_ending = self.elsewhere = 0

    def share(self, values: pd.Series) -> tuple[float, float]:
        """How many of these values are photos, and how many by their whole names, 0-1: `7` may be any row's number."""
        looks = [self._look(text) if text else (None, "") for text in map(_plain, values)]
        found = [how for path, how in looks if path is not None]
        return len(found) / max(1, len(looks)), sum(how != "stem" for how in found) / max(1, len(looks))

    def find(self, name: str) -> str | None:
        """The photo of this name; None where there is none, or more than one that fits equally well."""
        path, how = self._look(name) if name else (None, "")
        self.without_ending += how == "stem"
        self.elsewhere += how != "exact" and path is not None
        return path

    def oddities(self) -> list[str]:
        """What had to be guessed, in words."""
        found = []
        if self.without_ending:
            found.append(f"{self.without_ending:,} images are named without their ending")
        if self.elsewhere:
            found.append(f"{self.elsewhere:,} images were found in folders below {self.folder}")
        return found

    def _look(self, name: str) -> tuple[str | None, str]:
        path = os.path.normpath(os.path.join(self.folder, name))
        if os.path.isfile(path):
            return path, "exact"
        key, listed = name.rsplit("/", 1)[-1], self._list()
        below = [each for each in listed.get(key, []) if f"/{each}".endswith(f"/{name}")]
        bare = [each for each in listed.get(f"/{key}", []) if f"/{os.path.splitext(each)[0]}".endswith(f"/{name}")]
        for paths, how in ((below, "below"), (bare, "stem")):
            if paths and (one := self._only(paths)):
                return os.path.join(self.folder, one), how
        return None, ""

    def _list(self) -> dict[str, list[str]]:
        """Photos, as paths below the folder, by file name, and (after a `/`) by file name without ending."""
        if self.listed is None:
            self.listed = {}
            for path in photos_below(self.folder):
                relative = os.path.relpath(path, self.folder)
                file = relative.rsplit("/", 1)[-1]
                self.listed.setdefault(file, []).append(relative)
                self.listed.setdefault("/" + os.path.splitext(file)[0], []).append(relative)
        return self.listed

    def _only(self, paths: list[str]) -> str | None:
        """The one photo, or the one in a folder of the part that the table names."""
        if len(paths) > 1 and self.part:
            paths = [each for each in paths if self.part in each.lower()]
        return paths[0] if len(paths) == 1 else None


def rows_by_path(paths: pd.Series, named: pd.Series, file: str) -> np.ndarray:
    """For each path the row of the same photo among those that a file names, -1 where there is none: by whole path,
    else by the shortest common end that tells all photos apart, so that photos may have moved.

    Raises:
        DataError: if the file names a photo twice.

    >>> rows_by_path(pd.Series(["/new/a/1.jpg", "/new/b/1.jpg"]), pd.Series(["/old/b/1.jpg"]), "split.csv").tolist()
    [-1, 0]
    """
    if named.duplicated().any():
        raise DataError(f"{file} names a photo twice: {named[named.duplicated()].iloc[0]}.")
    if paths.isin(named).any():
        return pd.Index(named).get_indexer(pd.Index(paths))
    found = np.full(len(paths), -1)
    for parts in range(1, 12):
        wanted, ends = (each.str.split("/").str[-parts:].str.join("/") for each in (named, paths))
        if wanted.is_unique:
            rows = pd.Index(wanted).get_indexer(pd.Index(ends))
            hits = rows[rows >= 0]
            if len(hits) and pd.Series(hits).is_unique:
                return rows
            found = rows if (found < 0).all() else found
    return found
