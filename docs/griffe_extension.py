"""A griffe extension for the reference pages: doctests become code blocks, and `Annotated[int, ...]` becomes `int`."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from griffe import Attribute, Expr, ExprSubscript, ExprTuple, Extension, Function, Object

SKIP = re.compile(r"\s*# doctest: \+\w+")


def fence_doctests(text: str) -> str:
    r"""Return a docstring with each doctest in a fenced code block, without its doctest options.

    >>> fence_doctests("Add.\n\n>>> 1 + 1  # doctest: +SKIP\n2")
    'Add.\n\n```pycon\n>>> 1 + 1\n2\n```'
    """
    blocks = re.split(r"\n\s*\n", text.strip("\n"))
    fenced = [f"```pycon\n{SKIP.sub('', block)}\n```" if block.startswith(">>> ") else block for block in blocks]
    return "\n\n".join(fenced)


def without_metadata(annotation: Any) -> Any:
    """Return an annotation in which each `Annotated[TYPE, ...]` is its type."""
    if isinstance(annotation, list):
        return [without_metadata(part) for part in annotation]
    if not isinstance(annotation, Expr):
        return annotation
    if isinstance(annotation, ExprSubscript) and str(annotation.left) == "Annotated":
        inner = annotation.slice
        return without_metadata(inner.elements[0] if isinstance(inner, ExprTuple) else inner)
    for field in dataclasses.fields(annotation):
        value = getattr(annotation, field.name)
        if isinstance(value, Expr | list):
            setattr(annotation, field.name, without_metadata(value))
    return annotation


class ReferencePages(Extension):
    """Changes every object that is loaded for the reference pages."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        if obj.docstring:
            obj.docstring.value = fence_doctests(obj.docstring.value)
        if isinstance(obj, Attribute):
            obj.annotation = without_metadata(obj.annotation)
        elif isinstance(obj, Function):
            for parameter in obj.parameters:
                parameter.annotation = without_metadata(parameter.annotation)
