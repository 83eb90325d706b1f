"""The library's exceptions, and helpers to word their messages.

Every error that the library raises on purpose is a `BaselineError`, and a built-in exception as well. Its message is
one line that says what is, what was needed and what to do. The command line prints it and exits with `exit_code`.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import traceback
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from importlib import import_module
from importlib.util import find_spec
from itertools import islice, takewhile
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from baseline.terminal import escape_controls, shorten_runs

__all__ = [
    "BaselineError",
    "DataError",
    "LeakError",
    "MemoryShortageError",
    "OutputError",
    "RecipeError",
    "TrainingError",
    "WeightsError",
    "closest_name",
    "first_line",
    "format_count",
    "import_failure",
    "incompatible_version",
    "install_command",
    "missing_image",
    "missing_package",
    "quoted_list",
    "similar_path",
    "system_errors",
    "unknown_name",
    "unusable_image",
]


MAX_LISTED = 20
"""Maximum number of faults of one kind, such as unknown keys, that a message lists."""


MAX_COMPARED = 2000
"""Maximum number of entries of a folder that are compared with a name that is not there."""


FASTAI_PREFIX = re.compile(r"^(?:Exception occured in `[^`]*` when calling event `[^`]*`:\s*)+")
"""What fastai puts before the message of an error in a callback, once for each callback that it passes through."""


class BaselineError(Exception):
    """Base class of all errors that the library raises on purpose; catch it to catch them all."""

    exit_code = 2

    def __str__(self) -> str:
        """Return the message on one line, without what fastai puts before that of an error in a callback.

        Line breaks and control characters in the names of files are escaped, and very long names are shortened.
        """
        message = FASTAI_PREFIX.sub("", super().__str__())
        return shorten_runs(escape_controls(message).replace("\n", "\\n").replace("\t", "\\t"))

    def _render_traceback_(self) -> list[str]:
        """Return what IPython and notebooks show: the lines of the caller that led here, and the message."""
        inside = (str(Path(__file__).parent), contextlib.__file__)
        frames = traceback.extract_tb(self.__traceback__)
        callers = takewhile(lambda frame: not frame.filename.startswith(inside), frames)
        lines = [f"line {frame.lineno}: {frame.line}" for frame in callers if frame.name != "run_code"]
        return [*lines, f"{type(self).__name__}: {self}"]


class RecipeError(BaselineError, ValueError):
    """A recipe, or an option that changes one, is invalid."""


class DataError(BaselineError, ValueError):
    """The images, their labels or their splits are unusable."""


class LeakError(DataError):
    """Images of one split have duplicates in another, and the recipe treats that as an error."""

    exit_code = 3


class WeightsError(BaselineError, ValueError):
    """Pretrained weights are missing, damaged, or belong to another architecture."""


class TrainingError(BaselineError, RuntimeError):
    """Training failed: the loss is not finite, memory is too small for a batch of two images, or a worker died."""


class MemoryShortageError(BaselineError, MemoryError):
    """There is too little memory to decode an image, which may be intact."""


class OutputError(BaselineError, OSError):
    """Results cannot be written, or a finished run cannot be read."""


@contextlib.contextmanager
def system_errors(*, of_any_code: bool = False) -> Iterator[None]:
    """Turn errors of the operating system, and names that are not UTF-8, into errors of one line.

    Args:
        of_any_code: whether to include errors that the caller's own code raises, such as a callback or a generator of
            images. By default these pass unchanged.

    >>> with system_errors():
    ...     open("\udcff.csv").read().encode()                                         # doctest: +SKIP
    OutputError: \\udcff.csv cannot be read or written: No such file or directory. ...
    """
    try:
        yield
    except BaselineError:
        raise
    except OSError as error:  # a path that is too long, that the user may not read, or a disk that fails
        if not error.errno or not (of_any_code or _is_of_package(error)):
            raise
        raise OutputError(_describe_os_error(error)) from error
    except UnicodeEncodeError as error:  # of a name that is not UTF-8, whose bytes Python has as halves of surrogates
        if not (of_any_code or _is_of_package(error)):
            raise
        before, after = error.object[: error.start], error.object[error.start :]
        name = before.rpartition("\n")[2][-200:] + after.partition("\n")[0][:200]
        raise DataError(f"{name!a} is not valid text: {error.reason}. Rename the file or folder.") from error


def _describe_os_error(error: OSError) -> str:
    try:
        Path.cwd()
    except FileNotFoundError:
        return "The working folder was removed. Change to another one."
    if error.filename is None:  # of a connection, a process, or a file that was open
        return f"The operating system reports an error: {error.strerror}. Check the disk, the memory and the network."
    reason = f"cannot be read or written: {error.strerror}"
    return f"{error.filename} {reason}. Check the path, its permissions and the disk."


PACKAGE_FOLDER, STANDARD_FOLDER = Path(__file__).parent, Path(os.__file__).parent


def _is_of_package(error: BaseException) -> bool:
    """Return whether the innermost code that raised an error, apart from other libraries, is this package's."""
    for frame, _ in reversed([*traceback.walk_tb(error.__traceback__)]):
        file = Path(frame.f_code.co_filename)
        if file.is_relative_to(PACKAGE_FOLDER):
            return True
        is_library = file.is_relative_to(STANDARD_FOLDER) or {"site-packages", "dist-packages"} & {*file.parts}
        if frame.f_globals.get("__name__") == "__main__" or (file.is_absolute() and not is_library):
            return False
    return True


def unknown_name(kind: str, name: str, known: Iterable[str], limit: int = 12) -> str:
    """Return the message for a name that does not exist, with the closest one that does.

    >>> unknown_name("recipe", "cifra10", ["cifar10", "default"])
    "There is no recipe 'cifra10'. Did you mean 'cifar10'? Known: cifar10, default."
    """
    names = sorted(known, key=lambda name: (len(name) if name.isdigit() else 0, name))
    listed = ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
    return f"{closest_name(kind, name, names)} Known: {listed}."


def closest_name(kind: str, name: str, known: Iterable[str]) -> str:
    """Return the message for a name that does not exist, without the list of those that do.

    >>> closest_name("recipe", "cifra10", ["cifar10", "default"])
    "There is no recipe 'cifra10'. Did you mean 'cifar10'?"
    """
    matches = get_close_matches(name, sorted(known), n=1)
    return f"There is no {kind} '{name}'." + (f" Did you mean '{matches[0]}'?" if matches else "")


def similar_path(path: str | Path) -> str:
    """Return a question, after a space, that proposes a path for one that does not exist; empty without a similar one.

    >>> similar_path("no-folder/of/this/name")
    ''
    """
    path = Path(path).expanduser()
    similar = None if os.path.lexists(path) else _most_similar(path)
    return f" Did you mean {similar}?" if similar else ""


def _most_similar(path: Path) -> Path | None:
    """Return the entry of a folder with the most similar name; where the folder is not there, first look for it."""
    folder: Path | None = path.parent
    try:
        if not path.parent.is_dir():
            folder = _most_similar(path.parent) if path.parent != path else None
            return folder and (folder / path.name if (folder / path.name).exists() else folder)
        names = {entry.name.lower(): entry.name for entry in islice(path.parent.iterdir(), MAX_COMPARED)}
    except OSError:
        return None
    matches = get_close_matches(path.name.lower(), names, n=1, cutoff=0.7)
    return path.with_name(names[matches[0]]) if matches else None


def missing_image(error: OSError) -> DataError:
    """Return the error for an image that existed when the run started and has disappeared since.

    >>> str(missing_image(FileNotFoundError(2, "No such file", "a.jpg")))
    'a.jpg disappeared during the run. Put it back, or start again without it.'
    """
    return DataError(f"{error.filename} disappeared during the run. Put it back, or start again without it.")


def missing_package(purpose: str, package: str, extra: str, module: str = "") -> str:
    """Return the message for a package that is not installed, with the command that installs it.

    Args:
        module: of the package; if it is installed and cannot be imported, the message says why.

    >>> missing_package("ONNX export", "onnx", "onnx")                               # doctest: +SKIP
    "ONNX export needs onnx: pip install '.[onnx]'"
    """
    if module and find_spec(module) and (reason := import_failure(module)):
        return f"{purpose} needs {package}, and {module} cannot be imported: {reason}. Install another version of it"
    return f"{purpose} needs {package}: {install_command(extra)}"


def import_failure(module: str) -> str:
    """Return in one line why a module cannot be imported; empty if it can.

    >>> import_failure("json"), import_failure("no_such_module")
    ('', "No module named 'no_such_module'")
    """
    try:
        import_module(module)
    except Exception as error:  # such as an AttributeError of one that was built for another version of NumPy
        return first_line(error)
    return ""


def install_command(extra: str) -> str:
    """Return a command that installs the packages of an extra.

    It names the clone that this package runs from or was installed from, `.` in the clone itself, and the packages of
    the extra if there is none: no index has to know this project.

    >>> install_command("onnx")                                                      # doctest: +SKIP
    "pip install '.[onnx]'"
    """
    from importlib.metadata import PackageNotFoundError, distribution

    try:
        installed = distribution("fastai-baseline")
        origin = json.loads(installed.read_text("direct_url.json") or "{}")
    except PackageNotFoundError:
        installed, origin = None, {}
    installed_from = _local_path(origin.get("url", ""))
    for clone in (Path(__file__).parents[1], installed_from):
        if clone is not None and (clone / "pyproject.toml").is_file():
            editable = origin.get("dir_info", {}).get("editable") and clone == installed_from
            place = "." if clone == Path.cwd() else str(clone)
            return f"pip install {'-e ' if editable else ''}'{place}[{extra}]'"
    requirements = [line.split(";") for line in (installed.requires if installed else None) or []]
    packages = [name.strip() for name, *marker in requirements if re.search(rf"extra == .{extra}.$", "".join(marker))]
    return shlex.join(["pip", "install", *packages])


def _local_path(url: str) -> Path | None:
    return Path(url2pathname(urlsplit(url).path)) if url.startswith("file:") else None


def unusable_image(source: Any, error: Exception) -> Exception:
    """Return the error for an image that cannot be loaded in a run: it was replaced or damaged since it was examined.

    >>> str(unusable_image("a.jpg", OSError("image file is truncated")))
    'a.jpg cannot be decoded: image file is truncated. Restore it, or start again without it.'
    """
    if isinstance(error, BaselineError | MemoryError) or not isinstance(source, str | Path):
        return error
    if isinstance(error, FileNotFoundError):
        return missing_image(error)
    return DataError(f"{source} cannot be decoded: {first_line(error)}. Restore it, or start again without it.")


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, at most 200 characters; its type where the message is empty.

    A line that fastai puts before the message of an error in a callback is left out.

    >>> first_line(ValueError("no such thing.\\nat line 3")), first_line(KeyError())
    ('no such thing', 'KeyError')
    """
    lines = FASTAI_PREFIX.sub("", str(error).strip()).splitlines()
    return " ".join((lines[0] if lines else "").split())[:200].rstrip(".") or type(error).__name__


def incompatible_version(run: Path) -> OutputError:
    """Return the error for an unfinished run that another version of the package started."""
    return OutputError(f"{run} was started by another version of baseline. Remove it, or choose another --out.")


def quoted_list(values: Iterable[Any], limit: int = 5) -> str:
    """Return the first values in quotes, and how many more there are.

    >>> quoted_list(["ant", "bee", "wasp"], limit=2)
    "'ant', 'bee' and 1 more"
    """
    quoted = [f"'{value}'" for value in values]
    more = f" and {len(quoted) - limit} more" if len(quoted) > limit else ""
    return ", ".join(quoted[:limit]) + more


def format_count(count: int, noun: str, plural: str = "") -> str:
    """Return a count with its noun, in the plural where the count is not 1.

    >>> format_count(1, "image"), format_count(1200, "image"), format_count(2, "class", "classes")
    ('1 image', '1,200 images', '2 classes')
    """
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"
