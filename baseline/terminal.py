"""Text for a terminal, in which characters that would control it are escaped."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["escape_controls", "make_console", "remove_odd_sizes", "shorten_runs"]


CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that control a terminal, break a line, or change the direction of text; not tab and newline. Halves of
surrogate pairs, which Python has for the bytes of names that are not UTF-8, cannot be shown either."""


def escape_controls(text: str, *, json: bool = False) -> str:
    r"""Return text that a terminal shows as it is, such as the name of a file that someone else chose.

    Args:
        json: whether the text is JSON, and stays so.

    >>> print(escape_controls("\x1b[2Jants\u202e"), escape_controls("\x9b", json=True))
    \x1b[2Jants\u202e \u009b
    """
    if json:
        return CONTROLS.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
    return CONTROLS.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


MAX_RUN = 400
"""Maximum number of characters without a space that a message shows; longer than almost any path."""

LONG_RUN = re.compile(rf"\S{{{MAX_RUN + 1},}}")
"""A name that no reader needs in full."""


def shorten_runs(text: str) -> str:
    """Return text in which the middle of every very long run of characters without a space is left out.

    >>> shorten_runs("There is no class '" + 5000 * "x" + "'.")[18:]                     # doctest: +ELLIPSIS
    "'xxx...xxx...(4,603 more characters)...xxx...xxx'."
    """
    half = MAX_RUN // 2
    return LONG_RUN.sub(
        lambda match: f"{match[0][:half]}...({len(match[0]) - 2 * half:,} more characters)...{match[0][-half:]}", text
    )


SIZE_VARIABLES, PLAUSIBLE_SIZE = ("COLUMNS", "LINES", "TERMINAL_WIDTH"), re.compile("[1-9][0-9]{0,3}")
"""Environment variables that rich and Typer take as the size of the terminal, and what they may hold."""


def remove_odd_sizes() -> None:
    """Unset environment variables with an impossible size of the terminal; a line is as long as rich finds it there."""
    for name in SIZE_VARIABLES:
        if not PLAUSIBLE_SIZE.fullmatch(os.environ.get(name, "1")):
            del os.environ[name]


def make_console(**options: Any) -> Console:
    """Return a rich console that escapes control characters; see `rich.console.Console` for the options."""
    from rich.console import Console

    remove_odd_sizes()

    class EscapingConsole(Console):
        def render_str(self, text: str, **kwargs: Any) -> Any:
            return super().render_str(escape_controls(text), **kwargs)

    return EscapingConsole(highlight=False, **options)
