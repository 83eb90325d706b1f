"""The metric that the sample submission of a competition suggests. It is said, and never applied by itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from baseline.data.sources.read_table import read_table
from baseline.errors import DataError
from baseline.metrics.registry import find_metric, is_metric

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["is_sample_name", "propose_metric"]


SAMPLE_NAMES = ("sample_submission", "samplesubmission", "sample-submission")
"""How the file names of sample submissions begin, in lower case."""


def is_sample_name(name: str) -> bool:
    """Whether a file has the name of a sample submission."""
    return name.lower().startswith(SAMPLE_NAMES)


def propose_metric(images: Any, classes: Sequence[str], *, multilabel: bool) -> str:
    """Return a line with the metric that the sample submission beside the images suggests; empty if there is none.

    Args:
        images: the images of a run: a folder, or a table in the folder of the sample.
        classes: the classes of the images.
    """
    if not isinstance(images, str | Path) or not Path(images).expanduser().exists():
        return ""
    place = Path(images).expanduser()
    folder = place if place.is_dir() else place.parent
    samples = [path for path in sorted(folder.iterdir()) if is_sample_name(path.name) and path.suffix.lower() == ".csv"]
    if len(samples) != 1:
        return ""
    try:
        frame = read_table(samples[0])
    except DataError:  # `submit` reports what is wrong with it
        return ""
    name, reason = suggested_metric(frame[frame.columns[1:]], set(classes), multilabel=multilabel)
    if not is_metric(name or "none"):
        return ""
    return (
        f"{samples[0].name} has {reason}, which competitions often score by {find_metric(name).title}; "
        f"--metric {name} selects and reports by it"
    )


def suggested_metric(columns: pd.DataFrame, classes: set[str], *, multilabel: bool) -> tuple[str, str]:
    """Return the metric that the columns of a sample besides the ids suggest, and what they have; both may be empty.

    >>> import pandas as pd
    >>> suggested_metric(pd.DataFrame({"label": ["b a", "a b"]}), {"a", "b", "c"}, multilabel=False)
    ('map_at_2', "up to 2 classes per image, separated by spaces, in 'label'")
    """
    values = {str(value).strip() for name in columns for value in columns[name]} - {""}
    if not values:
        return "", ""
    if columns.shape[1] > 1:
        matching = columns.shape[1] == len(classes) and all(map(is_fraction, values))
        return ("log_loss", "a column of probabilities per class") if matching else ("", "")
    if multilabel:  # several classes per image are labels then, not guesses in their order
        return "", ""
    column, most = columns.columns[0], max(len(value.split(" ")) for value in values)
    if values <= classes:
        grades = len(classes) > 2 and all(value.replace(".", "", 1).isdecimal() for value in classes)
        hint = " (--metric quadratic_kappa if they are grades)" if grades else ""
        return "accuracy", f"class names{hint} in '{column}'"
    if most > 1 and {word for value in values for word in value.split(" ")} <= classes:
        reason = f"up to {most} classes per image, separated by spaces, in '{column}'"
        return (f"map_at_{most}", reason) if most < len(classes) else ("", "")
    if all(value.isdecimal() for value in values):
        return "accuracy", f"codes of classes in '{column}'"
    if len(classes) == 2 and all(map(is_fraction, values)):
        return "roc_auc", f"one column of probabilities, '{column}'"
    return "", ""


def is_fraction(value: str) -> bool:
    """Whether the text is a number from 0 to 1."""
    try:
        return 0 <= float(value) <= 1
    except ValueError:
        return False
