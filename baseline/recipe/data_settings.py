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

    dataset: Text = setting("", "Name of a built-in dataset, such as cifar10.", IMAGES_PANEL, flat="data")
    """The named dataset that the recipe is for; empty if the images are given."""
    image_col: Text = setting("", "Column with the image paths.", IMAGES_PANEL)
    """If empty, detected by column names and contents. The same applies to the next three fields."""
    label_col: Text = setting(
        "", "Column of the labels, or several 0/1 columns, separated by commas.", IMAGES_PANEL, common=True
    )
    group_col: Text = setting("", "Column with the group of each image (patient, photographer, ...).", IMAGES_PANEL)
    """A split keeps groups together where it is given, unless `split` says otherwise."""
    split_col: Text = setting("", "Column with the split of each image: train, valid or test.", IMAGES_PANEL)
    image_dir: PathText = setting(
        "", "Folder of the images in a table (default: the folder of the table).", IMAGES_PANEL, common=True
    )
    label_from: Text = setting(
        "", "Regular expression for the label in an image's path; auto infers it from the file names.",
        IMAGES_PANEL,
    )  # fmt: skip
    source: Text = setting("", "Layout of the images, if more than one matches; see baseline sources.", IMAGES_PANEL)
    label_delim: Annotated[str, Needed("text between labels, such as ' ' or ','")] = setting(
        "", "Delimiter between several labels of an image; detected by default.", IMAGES_PANEL
    )
    bins: Annotated[int, Interval(ge=0, le=100), Needed("a whole number from 2, 0 for none")] = setting(
        0, "Bin a column of numbers into this many classes of about equal size.", IMAGES_PANEL
    )
    missing: Literal["auto", "drop", "error"] = setting(
        "auto", "Rows without an image or a label: drop, error, or auto (drop up to 5%, else error).", IMAGES_PANEL
    )
    encoding: Text = setting("", "Encoding of a CSV or TSV table, such as cp1252; detected by default.", IMAGES_PANEL)
    min_per_class: Annotated[int, Interval(ge=0, le=10**6), Needed("a whole number, 0 for all")] = setting(
        0, "Exclude classes with fewer images than this.", IMAGES_PANEL
    )
    other: Text = setting("", "Merge rare classes (see --min-per-class) into one class with this name.", IMAGES_PANEL)
    """Without `min_per_class`, classes with a single image are rare."""
    task: Literal["auto", "single", "multilabel"] = setting(
        "auto", "One label per image (single) or several (multilabel); auto infers it from the labels.", IMAGES_PANEL
    )
    """`"auto"` is multi-label where a `;` occurs in a label."""
    positive: Text = setting("", "Train one class against all others.", IMAGES_PANEL)
    """The others become one class, `not NAME`; empty leaves the classes as they are."""
    images_per_class: Annotated[int, Interval(ge=0, le=10**9), Needed("a whole number, 0 for all")] = setting(
        0, "Train on a random subset with this many images per class; 0 takes all.", IMAGES_PANEL, common=True
    )
    value_range: Annotated[tuple[float, ...], Before(as_numbers), Predicate(is_range), Needed("two numbers")] = setting(
        (), "Values of black and white in images with more than 8 bits, such as 0,4095.", IMAGES_PANEL
    )
    """If empty, it is measured on the images whose files declare no range, and is the same for all of them."""
    fixes: Annotated[tuple[str, ...], Before(as_paths), Needed("a list of paths")] = setting(
        (), "Tables of corrected labels, as written by baseline clean.", IMAGES_PANEL
    )
    """They are applied in order to all images but those that the result is measured on."""
    audit: Literal["tell", "strict", "none"] = setting(
        "tell", "tell reports problems with the images, strict fails on leaks, none only excludes unreadable files.",
        IMAGES_PANEL,
    )  # fmt: skip
