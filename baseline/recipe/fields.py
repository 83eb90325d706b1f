"""What the fields of a recipe are made of: their metadata, the types that several share, and checks of values."""

from __future__ import annotations

import re
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Interval, Predicate

from baseline.files import MAX_NAME_BYTES, is_file_name
from baseline.recipe.validation import Before, Needed, as_tuple

__all__ = ["augmentation", "parse_duration", "setting"]

SPLIT_METHODS = ("auto", "provided", "random", "group", "kfold", "kfold:K", "kfold:COLUMN", "group-kfold:K",
                 "time:COLUMN")  # fmt: skip

VIEWS = ("flip", "five_crops")

IMAGES_PANEL = "Images and labels"
SPLIT_PANEL = "Splits"
MODEL_PANEL = "Model and training"
RUN_PANEL = "This run"

Text = Annotated[str, Needed("text")]
FileName = Annotated[str, Predicate(is_file_name), Needed(f"a name of 1 to {MAX_NAME_BYTES} bytes without / and \\")]
PathText = Annotated[str, Needed("a path")]
Flag = Annotated[bool, Needed("true or false")]
Pixels = Annotated[int, Interval(ge=8, le=4096), Needed("pixels, a whole number from 8 to 4096")]
PixelsOrNone = Annotated[int, Interval(ge=0, le=4096), Needed("pixels, a whole number up to 4096, or 0")]
Fraction = Annotated[float, Interval(ge=0.01, le=0.9), Needed("a fraction from 0.01 to 0.9")]
LearningRate = Annotated[float, Interval(ge=1e-12, le=100)]
Views = Annotated[
    tuple[Literal["flip", "five_crops"], ...], Before(as_tuple), Needed(f"a list from {', '.join(VIEWS)}")
]


def setting(default: Any, help: str, panel: str = MODEL_PANEL, *, flat: str = "", common: bool = False) -> Any:
    """A field of a recipe.

    Args:
        default: its value where a recipe does not name it.
        help: one line for `--help`.
        panel: the heading under which `--help` shows it.
        flat: its name outside its group, where that differs from the field's own.
        common: whether `baseline run --help` shows it; the others are under `--help-all` and `--set`.
    """
    return field(default=default, metadata={"help": help, "panel": panel, "flat": flat, "common": common})


def augmentation(default: Any, *, cacheable: tuple[Any, ...]) -> Any:
    """A field of `Augment`.

    Args:
        default: its value where a recipe does not name it.
        cacheable: the values with which features of frozen layers can be cached; empty if the field alone has no
            effect on images.
    """
    return field(default=default, metadata={"cacheable": cacheable})


def is_split_method(value: str) -> bool:
    """Whether the text is one of `SPLIT_METHODS`, with the number or the column that has to follow.

    >>> is_split_method("kfold:5"), is_split_method("kfold:1"), is_split_method("kfold:part"), is_split_method("time")
    (True, False, True, False)
    """
    method, _, rest = value.partition(":")
    if method == "group-kfold" or (method == "kfold" and rest.isdecimal()):
        return rest.isdecimal() and 2 <= int(rest) <= 1000
    return (method in ("kfold", "time") and bool(rest)) or value in ("auto", "provided", "random", "group", "kfold")


def is_nonempty(value: str) -> bool:
    """Whether the text has any characters."""
    return bool(value)


def is_budget(value: str) -> bool:
    """Whether the text is empty or a duration such as `10m`."""
    return value == "" or parse_duration(value) > 0


def as_paths(value: Any) -> Any:
    """One path or several as a tuple of text; an empty path is none."""
    paths = [value] if isinstance(value, str | Path) else value
    return tuple(str(path) for path in paths if str(path)) if isinstance(paths, list | tuple) else value


def split_logger_names(value: Any) -> Any:
    """Logger names in a list, or in one text with commas, each once and without `none`."""
    names = [name.strip() for name in value.split(",")] if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        return value
    return tuple(dict.fromkeys(name for name in names if name not in ("", "none")))


def parse_duration(text: Any) -> int:
    """Seconds that a text such as `"1h30m"` stands for; 0 if it is no duration.

    >>> parse_duration("1h30m"), parse_duration("90s"), parse_duration("soon")
    (5400, 90, 0)
    """
    parts = re.fullmatch(r"(?:(\d{1,4})h)?(?:(\d{1,5})m)?(?:(\d{1,6})s)?", text) if isinstance(text, str) else None
    hours, minutes, seconds = (int(part or 0) for part in parts.groups()) if parts else (0, 0, 0)
    return 3600 * hours + 60 * minutes + seconds
