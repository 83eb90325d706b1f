"""What can go wrong, in words. Every error of this library is one of these; each is also a built-in.

The message is one line: what is, what was needed, what to do. The command line prints it and exits with `exit_code`.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

__all__ = [
    "BaselineError",
    "DataError",
    "LeakError",
    "OutputError",
    "RecipeError",
    "TrainingError",
    "WeightsError",
    "first_line",
    "missing_image",
    "quoted_list",
    "unknown_name",
]


class BaselineError(Exception):
    """The root: catch it to catch everything this library says about your input."""

    exit_code = 2


class RecipeError(BaselineError, ValueError):
    """A recipe, or an option that changes one, cannot be used as it is."""


class DataError(BaselineError, ValueError):
    """The images, their labels or their splits cannot be used as they are."""


class LeakError(DataError):
    """Images of one split have copies in another, and that was to be an error."""

    exit_code = 3


class WeightsError(BaselineError, ValueError):
    """Pretrained weights are missing, damaged, or not of this architecture."""


class TrainingError(BaselineError, RuntimeError):
    """Training cannot go on: its loss is no number, memory is too small for two images, or a reader dies."""


class OutputError(BaselineError, OSError):
    """Results cannot be written, or a finished run cannot be read back."""


def unknown_name(what: str, given: str, known: Iterable[str], limit: int = 12) -> str:
    """The sentence for a name that does not exist, with the nearest one that does.

    >>> unknown_name("recipe", "cifra10", ["cifar10", "default"])
    "There is no recipe 'cifra10'. Did you mean 'cifar10'? Known: cifar10, default."
    """
    names = sorted(known)
    near = get_close_matches(given, names, n=1)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    shown = ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
    return f"There is no {what} '{given}'.{hint} Known: {shown}."


def missing_image(error: OSError) -> DataError:
    """For an image that was there when the run began.

    >>> str(missing_image(FileNotFoundError(2, "No such file", "a.jpg")))
    'a.jpg has gone meanwhile. Put it back, or begin again without it.'
    """
    return DataError(f"{error.filename} has gone meanwhile. Put it back, or begin again without it.")


def first_line(error: BaseException) -> str:
    """What an error of a library says, in one line of at most 200 characters; its kind, where it says nothing.

    >>> first_line(ValueError("no such thing.\\nat line 3")), first_line(KeyError())
    ('no such thing', 'KeyError')
    """
    lines = str(error).strip().splitlines()
    return " ".join((lines[0] if lines else "").split())[:200].rstrip(".") or type(error).__name__


def incompatible_version(run: Path) -> OutputError:
    """For what this version of the package cannot go on with."""
    return OutputError(f"{run} was begun by another version of baseline. Remove it, or give another --out.")


def quoted_list(values: Iterable[Any], limit: int = 5) -> str:
    """The first few in quotes, and how many more."""
    listed = [f"'{value}'" for value in values]
    more = f" and {len(listed) - limit} more" if len(listed) > limit else ""
    return ", ".join(listed[:limit]) + more
