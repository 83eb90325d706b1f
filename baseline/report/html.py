"""Render templates to self-contained HTML pages that hold their styles, images and script.

The templates are in `templates/`: `page.html.j2` has the head, the styles (light, dark, print, phone) and the sorting
of tables, and the pages extend it; `parts.html.j2` has macros that several of them share. The content security policy
of a page tells the browser to load nothing. Values are escaped; figures are SVG from the module `figures`.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

__all__ = ["interval_digits", "percent", "render"]


def render(template: str, values: Mapping[str, Any]) -> str:
    """Render `templates/TEMPLATE.html.j2` with the values and return the page."""
    environment = Environment(
        loader=PackageLoader("baseline.report"),
        autoescape=True,  # class names and paths are not under our control
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        percent=percent, digits=interval_digits, thousands=lambda value: f"{value:,}", uri=data_uri, short=short_path
    )
    return environment.get_template(f"{template}.html.j2").render(values)


def percent(share: float | None, digits: int = 1) -> str:
    """Format a share as a percentage; None becomes a dash.

    >>> percent(0.9055, 2)
    '90.55%'
    """
    return "–" if share is None else f"{100 * share:.{digits}f}%"


def interval_digits(interval: Sequence[float]) -> int:
    """Return how many decimals of a percentage to show: one where its interval is wider than a point, else two.

    >>> interval_digits((0.84, 0.90)), interval_digits((0.871, 0.876))
    (1, 2)
    """
    low, high = interval
    return 1 if high - low > 0.01 else 2


def data_uri(image: Image.Image) -> str:
    """Return the image as a JPEG data URI."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=82)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def short_path(path: str) -> str:
    """Return the file name of a path with the last two folders before it."""
    return "/".join(Path(path).parts[-3:])
