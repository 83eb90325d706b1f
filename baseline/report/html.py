"""Values + template -> a page of its own: styles, pictures and script are in it. Knows HTML; knows no runs.

The templates are in `templates/`: `page.html.j2` has the head, the looks (light, dark, print, phone) and the sorting of
tables, and the pages extend it; `parts.html.j2` has what several of them show. A page asks the browser, by its content
security policy, to load nothing. Values are escaped; figures are SVG of the module `figures`.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

__all__ = ["percent", "render"]


def render(template: str, values: Mapping[str, Any]) -> str:
    """The page that `templates/TEMPLATE.html.j2` makes of the values."""
    environment = Environment(
        loader=PackageLoader("baseline.report"),
        autoescape=True,  # class names and paths are anybody's
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=percent, thousands=lambda value: f"{value:,}", uri=data_uri, short=short_path)
    return environment.get_template(f"{template}.html.j2").render(values)


def percent(share: float | None, digits: int = 1) -> str:
    """A share as text; a dash where there is none.

    >>> percent(0.9055, 2)
    '90.55\\xa0%'
    """
    return "–" if share is None else f"{100 * share:.{digits}f}\N{NO-BREAK SPACE}%"


def data_uri(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=82)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def short_path(path: str) -> str:
    """The last two folders and the name of a path."""
    return "/".join(Path(path).parts[-3:])
