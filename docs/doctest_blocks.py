"""A griffe extension: doctests in docstrings become code blocks on the reference pages."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

SKIP = re.compile(r"\s*# doctest: \+\w+")


def fence_doctests(text: str) -> str:
    r"""Return a docstring with each doctest in a fenced code block, without its doctest options.

    >>> fence_doctests("Add.\n\n>>> 1 + 1  # doctest: +SKIP\n2")
    'Add.\n\n```pycon\n>>> 1 + 1\n2\n```'
    """
    blocks = re.split(r"\n\s*\n", text.strip("\n"))
    fenced = [f"```pycon\n{SKIP.sub('', block)}\n```" if block.startswith(">>> ") else block for block in blocks]
    return "\n\n".join(fenced)


class DoctestBlocks(Extension):
    """Fences the doctests of every object that is loaded."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        if obj.docstring:
            obj.docstring.value = fence_doctests(obj.docstring.value)
