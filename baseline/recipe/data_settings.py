"""The part of a recipe that says which images there are and what their labels mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Interval, Predicate

from baseline.recipe.fields import IMAGES_PANEL, PathText, Text, as_paths, setting
from baseline.recipe.validation import Before, Needed, as_numbers, is_range

__all__ = ["DataSettings"]


@dataclass(frozen=True)
class DataSettings:
    """Which images there are, and what their labels mean."""

    dataset: Text = setting("", "Name of a data set, such as cifar10.", IMAGES_PANEL, flat="data")
    """The named data set that the recipe is for; empty where the images are given."""
    image_col: Text = setting("", "Column of a table that names the images.", IMAGES_PANEL)
    """If empty, detected by column names and contents. The same applies to the next three fields."""
    label_col: Text = setting(
        "", "Column of the labels, or several columns of 0 and 1, separated by commas.", IMAGES_PANEL, common=True
    )
    group_col: Text = setting(
        "", "Column that says which images belong together (one patient, one photographer).", IMAGES_PANEL
    )
    """A split keeps groups together where it is given, unless `split` says otherwise."""
    split_col: Text = setting("", "Column that holds train, valid or test.", IMAGES_PANEL)
    image_dir: PathText = setting(
        "", "Folder of the images that a table names; the table's own folder by default.", IMAGES_PANEL, common=True
    )
    label_from: Text = setting(
        "", "Regular expression that finds the label in an image's path; auto takes the pattern that names show.",
        IMAGES_PANEL,
    )  # fmt: skip
    source: Text = setting("", "How to read the images, where several ways fit; see baseline sources.", IMAGES_PANEL)
    label_delim: Annotated[str, Needed("text between labels, such as ' ' or ','")] = setting(
        "", "Delimiter between the labels of an image that has several; detected by default.", IMAGES_PANEL
    )
    bins: Annotated[int, Interval(ge=0, le=100), Needed("a whole number from 2, 0 for none")] = setting(
        0, "Make this many classes of about equal size from a column of numbers.", IMAGES_PANEL
    )
    missing: Literal["auto", "drop", "error"] = setting(
        "auto", "Rows without an image or a label: drop, error, or auto, which drops up to 5 % of them.", IMAGES_PANEL
    )
    encoding: Text = setting("", "Encoding of a CSV or TSV table, such as cp1252; detected by default.", IMAGES_PANEL)
    min_per_class: Annotated[int, Interval(ge=0, le=10**6), Needed("a whole number, 0 for all")] = setting(
        0, "Leave out classes with fewer images than this.", IMAGES_PANEL
    )
    other: Text = setting("", "Join rare classes (see --min-per-class) as one of this name.", IMAGES_PANEL)
    """Without `min_per_class`, classes with a single image are rare."""
    task: Literal["auto", "single", "multilabel"] = setting(
        "auto", "Whether an image has one label or several, separated by ';'.", IMAGES_PANEL
    )
    """`"auto"` is multi-label where a `;` occurs in a label."""
    positive: Text = setting("", "Train one class against all others.", IMAGES_PANEL)
    """The others become one class, `not NAME`; empty leaves the classes as they are."""
    images_per_class: Annotated[int, Interval(ge=0, le=10**9), Needed("a whole number, 0 for all")] = setting(
        0, "Train on a random subset with this many images per class; 0 takes all.", IMAGES_PANEL, common=True
    )
    value_range: Annotated[tuple[float, ...], Before(as_numbers), Predicate(is_range), Needed("two numbers")] = setting(
        (), "Values of black and white in images of more than 8 bits, such as 0,4095.", IMAGES_PANEL
    )
    """If empty, it is measured on the images whose files declare no range, and is the same for all of them."""
    fixes: Annotated[tuple[str, ...], Before(as_paths), Needed("a list of paths")] = setting(
        (), "Tables of corrected labels, as baseline clean writes them.", IMAGES_PANEL
    )
    """They are applied in order to all images but those that the result is measured on."""
    audit: Literal["tell", "strict", "none"] = setting(
        "tell", "tell reports problems with the images, strict fails on leaks, none only drops unreadable files.",
        IMAGES_PANEL,
    )  # fmt: skip
