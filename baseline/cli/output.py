"""What the commands print: text and tables, on standard streams that may be full, closed or a terminal."""

from __future__ import annotations

import io
import json
import os
import re
import sys
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, cast

import typer

from baseline.errors import DataError, OutputError
from baseline.terminal import escape_controls, make_console

__all__ = [
    "StandardError",
    "StandardOutput",
    "binary_output",
    "check_any_readable",
    "end_output",
    "open_streams",
    "print_json",
    "print_table",
    "print_text",
]


def open_streams() -> None:
    """Open the null device in place of closed standard streams, which files opened later would otherwise become."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    sys.stdin = sys.stdin or open(0, encoding="utf-8", closefd=False)  # noqa: SIM115


class StandardOutput:
    """Standard output, which raises an OutputError if it is full or closed, and ends the command if its reader left.

    Characters that its encoding lacks are written as escapes: on Windows, that of redirected output may have only 256.
    """

    def __init__(self) -> None:
        self.is_closed = sys.stdout is None
        self.file = sys.stdout or Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
        if isinstance(self.file, io.TextIOWrapper):
            with suppress(OSError):  # it flushes, and nobody may read: `write` reports that
                self.file.reconfigure(errors="backslashreplace")

    def write(self, text: str) -> int:
        """Write text."""
        if self.is_closed:
            raise OutputError("Standard output is closed. Open it, or redirect it to a file.")
        try:
            return self.file.write(text)
        except OSError as error:
            raise end_output(error) from None

    def flush(self) -> None:
        """Write what is buffered."""
        try:
            self.file.flush()
        except OSError as error:
            raise end_output(error) from None

    def __getattr__(self, name: str) -> Any:
        """Return what the stream itself has."""
        return getattr(self.file, name)


class StandardError:
    """Standard error. What cannot be written there is lost: no command ends because its messages cannot be shown."""

    def __init__(self) -> None:
        self.file = sys.stderr or Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115

    def write(self, text: str) -> int:
        """Write text."""
        with suppress(OSError):
            self.file.write(text)
        return len(text)

    def flush(self) -> None:
        """Write what is buffered."""
        with suppress(OSError):
            self.file.flush()

    def end(self) -> None:
        """Discard what still cannot be written, which would change the exit code."""
        try:
            self.file.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())

    def __getattr__(self, name: str) -> Any:
        """Return what the stream itself has."""
        return getattr(self.file, name)


def print_text(text: object, *, end: str = "\n", file: IO[str] | None = None) -> None:
    """Print text with control characters escaped."""
    print(escape_controls(str(text)), end=end, file=file)


def print_json(values: Any) -> None:
    """Print JSON, in which control characters are escaped, and all but ASCII where the stream is not UTF-8."""
    from baseline.files import to_json

    text = escape_controls(to_json(values), json=True)
    if (sys.stdout.encoding or "utf-8").lower() != "utf-8":
        text = re.sub(r"[^\x00-\x7f]", lambda match: json.dumps(match[0])[1:-1], text)
    print(text, end="")


def print_table(table: Any) -> None:
    """Print a rich table, 160 characters wide where standard output is not a terminal."""
    console = make_console()
    if not console.is_terminal:
        console = make_console(width=160)
    console.print(table)


def binary_output() -> IO[bytes]:
    """Return standard output as a binary file, in which control characters are escaped if it is a terminal.

    Raises:
        OutputError: if it is closed.
    """
    if sys.stdout is None or getattr(sys.stdout, "is_closed", False):
        raise OutputError("Standard output is closed. Pass --out FILE.")
    return cast(IO[bytes], TerminalFile()) if sys.stdout.isatty() else sys.stdout.buffer


class TerminalFile:
    """Standard output, which is a terminal, as a binary file in which control characters are escaped."""

    def write(self, content: bytes) -> int:
        """Write bytes of UTF-8."""
        return sys.stdout.buffer.write(escape_controls(content.decode(errors="replace"), json=True).encode())

    def flush(self) -> None:
        """Write what is buffered."""
        sys.stdout.flush()


def end_output(error: OSError, remedy: str = "Free space, or redirect it to another place.") -> OutputError:
    """Return the error for standard output that could not be written, and discard what is still buffered.

    Raises:
        typer.Exit: if the reader, such as `head`, closed the pipe.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if isinstance(error, BrokenPipeError):
        raise typer.Exit(141) from None
    return OutputError(f"Standard output cannot be written: {error.strerror}. {remedy}")


def check_any_readable(images: int, unreadable: int) -> None:
    """Raise a DataError for a command that could not read any of its images and has written the reasons."""
    if unreadable and unreadable == images:
        what = "The image" if images == 1 else f"None of the {images:,} images"
        verb = "could not" if images == 1 else "could"
        raise DataError(
            f"{what} {verb} be read; the output gives the reason{'' if images == 1 else ' for each'}. "
            "Pass image files, such as JPEG or PNG."
        )
