"""Image table -> findings about it: what cannot be read, what comes twice, what leaks. Knows files; knows no models.

Every image is decoded once; what was seen of it is kept in the cache by path, size and time of change, so that a second
audit reads only what is new. Nothing is moved or deleted.

Two images are the same where their files are; they are near-duplicates where their perceptual hashes (pHash, 64 bits,
by the package imagehash) differ in at most 10 bits and their 8 x 8 thumbnails correlate by more than 0.9. On CIFAR-10's
60,000 images that finds 54 % of the test images that a published list pairs with a training image; 58 % of those found
are on the list, and three of four of the rest are true by eye (`benchmarks/audit_cifar10.py`). It finds no mirrored,
turned or much cropped copies, and small things on an empty ground may be taken for copies.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from baseline.data.audit.duplicates import duplicate_ids, find_pairs
from baseline.data.audit.scan import SCAN_COLUMNS, scan_images
from baseline.data.labels import explode_labels
from baseline.data.table import count_trainable
from baseline.errors import DataError, LeakError
from baseline.progress import Progress

__all__ = ["Audit", "audit", "drop_unreadable", "find_leaks"]


SMALL_SIDE, LONG_ASPECT_RATIO, TINY_CLASS, IMBALANCE_RATIO = 32, 3.0, 10, 5.0
"""Pixels; long side over short; images of a class; largest class over smallest: from here on each is told."""


@dataclass(frozen=True)
class Audit:
    """What was found."""

    images: pd.DataFrame
    """The image table with what was seen: `width, height` (pixels), `mode` (PIL's), `turned` (by EXIF), `frames`,
    `reason` (why it cannot be read, else empty) and `duplicate_id` (a number that copies share, -1 where there are none)."""
    pairs: pd.DataFrame
    """One row a pair of copies: `path, other, kind` (`exact`, `near`), `distance` (bits), `label, other_label, split,
    other_split, leak, conflict`."""
    findings: pd.DataFrame
    """One row a finding: `finding, images, words, effect, answer`."""

    @property
    def usable(self) -> pd.DataFrame:
        """The image table without the images that cannot be read, with the column `duplicate_id` that `split` looks at."""
        kept = self.images[self.images["reason"] == ""].reset_index(drop=True)
        return kept.drop(columns=list(SCAN_COLUMNS))

    @property
    def unreadable(self) -> pd.DataFrame:
        """`path, label, reason` of the images that cannot be read."""
        return list_unreadable(self.images)

    def pairs_to_review(self) -> dict[str, pd.DataFrame]:
        """Pairs worth looking at, by what they are: `leaks`, `conflicts`, `near_duplicates`; none that is empty."""
        near = self.pairs[self.pairs["kind"] == "near"].sort_values("distance", kind="stable")
        parts = {"leaks": self.pairs[self.pairs["leak"]], "conflicts": self.pairs[self.pairs["conflict"]]}
        return {name: part for name, part in {**parts, "near_duplicates": near}.items() if len(part)}

    def raise_on_leaks(self) -> None:
        """Raises LeakError where images of one split have copies in another."""
        leaks = self.pairs[self.pairs["leak"]]
        if len(leaks):
            row = leaks.iloc[0]
            raise LeakError(
                f"{len(leaks)} pairs of copies lie on two sides of the splits, first {row.path} ({row.split}) and "
                f"{row.other} ({row.other_split}). Give --leaks drop or --split random, or mend the images."
            )


def audit(table: pd.DataFrame, *, grouped: bool = False, progress: Progress | None = None) -> Audit:
    """Reads every image of the table once and tells what is wrong with them; see the module for how.

    Args:
        table: an image table. Leaks are copies between the splits that it gives.
        grouped: whether the splits to come heed the column `group`; if not, an unused one is a finding.

    Raises:
        DataError: if no image can be read, or too few classes or images are left to train on.

    >>> checked = audit(image_table("images/"))                                   # doctest: +SKIP
    >>> checked.findings                                                          # doctest: +SKIP
    """
    progress = progress or Progress()
    table = table.reset_index(drop=True)
    seen = scan_images(table["path"].tolist(), progress)
    images = table.assign(**seen.to_columns(), duplicate_id=-1)
    check_readable(images)
    pairs = find_pairs(images, seen)
    images["duplicate_id"] = duplicate_ids(images, pairs)
    found = pd.DataFrame(
        collect_findings(images, pairs, grouped), columns=["finding", "images", "words", "effect", "answer"]
    )
    return Audit(images, pairs, found)


def drop_unreadable(table: pd.DataFrame, progress: Progress | None = None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The image table without the images that cannot be read, and a table of those (`path`, `label`, `reason`).

    What is left of an audit where none is wanted: every image is read once, but not compared with the others.

    Raises:
        DataError: if no image can be read, or too few classes or images are left to train on.
    """
    progress = progress or Progress()
    table = table.reset_index(drop=True)
    images = table.assign(reason=scan_images(table["path"].tolist(), progress).reason)
    check_readable(images)
    return table[images["reason"] == ""].reset_index(drop=True), list_unreadable(images)


def list_unreadable(images: pd.DataFrame) -> pd.DataFrame:
    return images.loc[images["reason"] != "", ["path", "label", "reason"]].reset_index(drop=True)


def find_leaks(table: pd.DataFrame) -> pd.Series:
    """Which images of a table with splits and `duplicate_id` have a copy in a later one: training in valid, both in test."""
    rank = table["split"].map({"train": 0, "valid": 1, "test": 2})
    return (table["duplicate_id"] >= 0) & (rank < rank.groupby(table["duplicate_id"]).transform("max"))


def check_readable(images: pd.DataFrame) -> None:
    bad = images[images["reason"] != ""]
    if len(bad) == len(images):
        first = bad.iloc[0]
        raise DataError(f"None of the {len(bad)} images can be read; the first: {first['path']} ({first['reason']}).")
    if len(bad):
        count_trainable(images[images["reason"] == ""])


def collect_findings(
    images: pd.DataFrame, pairs: pd.DataFrame, grouped: bool
) -> Iterator[tuple[str, int, str, str, str]]:
    """Worst first. Each says what it may do to the number, and the option that answers it."""
    whole = images[images["reason"] == ""]
    leaks = pairs[pairs["leak"]]
    if len(leaks):
        inside = pd.concat([leaks["path"][leaks["split"] == "test"], leaks["other"][leaks["other_split"] == "test"]])
        count = inside.nunique()
        test = max(1, int((whole["split"] == "test").sum()))
        words = f"{len(leaks):,} pairs of copies lie in two splits; {count:,} of test ({count / test:.1%})"
        yield "leak", count or len(leaks), words, "the number is too good", "--leaks drop, or --split random"
    conflicts = pairs[pairs["conflict"]]
    if len(conflicts):
        exact = conflicts[conflicts["kind"] == "exact"]
        words = f"{len(conflicts):,} pairs of copies have different labels; {len(exact):,} are identical files"
        equal = [f"{Path(one).name} = {Path(two).name}" for one, two in exact[["path", "other"]].head(3).to_numpy()]
        words += f": {', '.join(equal)}{' ...' if len(exact) > 3 else ''}" if equal else ""
        count = pd.concat([conflicts["path"], conflicts["other"]]).nunique()
        yield "conflict", count, words, "one label of two is wrong: a limit to every number", "mend the labels"
    if not grouped and whole["group"].notna().any():
        count = int(whole["group"].notna().sum())
        words = f"{whole['group'].nunique():,} groups are known, and the split does not heed them"
        yield "unused group", count, words, "the number is too good for groups never seen", "--split group"
    bad = images[images["reason"] != ""]
    if len(bad):
        listed = "; ".join(f"{Path(path).name} ({why})" for path, why in bad[["path", "reason"]].head(3).to_numpy())
        yield "unreadable", len(bad), f"{len(bad):,} cannot be read: {listed}", "they are left out", "mend them"
    for kind, words in (("exact", "copies of another file"), ("near", "near-duplicates of another")):
        found = pairs[pairs["kind"] == kind]
        if len(found):
            count = found["other"].nunique()
            effect = "they count more than once; splits made here keep them on one side"
            yield f"{kind} duplicates", count, f"{count:,} images are {words}", effect, "none needed"
    yield from class_findings(whole)
    yield from image_findings(whole)


def class_findings(whole: pd.DataFrame) -> Iterator[tuple[str, int, str, str, str]]:
    labels = whole[whole["split"].isna() | (whole["split"] == "train")]["label"]
    counts = explode_labels(labels).value_counts()
    if counts.iloc[0] >= IMBALANCE_RATIO * counts.iloc[-1]:
        words = f"'{counts.index[0]}' has {counts.iloc[0]:,} images, '{counts.index[-1]}' {counts.iloc[-1]:,}"
        effect = f"always saying '{counts.index[0]}' scores {counts.iloc[0] / counts.sum():.1%}"
        yield "imbalance", int(counts.iloc[0]), words, effect, "--balance weights"
    tiny = counts[counts < TINY_CLASS]
    if len(tiny):
        words = f"{len(tiny)} classes have fewer than {TINY_CLASS} images: {', '.join(map(str, tiny.index[:3]))}"
        yield "tiny classes", int(tiny.sum()), words, "what is said of these classes is chance", "add images"


def image_findings(whole: pd.DataFrame) -> Iterator[tuple[str, int, str, str, str]]:
    sides = whole[["width", "height"]]
    small = sides.min(axis=1) < SMALL_SIDE
    if small.any():
        words = f"{int(small.sum()):,} are smaller than {SMALL_SIDE} px, down to {int(sides.min(axis=1).min())} px"
        yield "small images", int(small.sum()), words, "little is left to see", "a smaller --image-size saves time"
    long = sides.max(axis=1) > LONG_ASPECT_RATIO * sides.min(axis=1)
    if long.any():
        words = f"{int(long.sum()):,} are more than {LONG_ASPECT_RATIO:g} times as long as wide"
        yield "long images", int(long.sum()), words, "squeezed into a square they are distorted", "--resize pad"
    modes = whole["mode"].value_counts()
    if len(modes) > 1:
        words = ", ".join(f"{mode} {count:,}" for mode, count in modes.items())
        effect = "a class that has a mode of its own is told by it; all become RGB"
        yield "modes", int(modes.iloc[1:].sum()), words, effect, "none needed"
    for finding, hits, words, effect in (
        (
            "EXIF-rotated",
            whole["turned"],
            "are turned by their EXIF orientation",
            "read upright here; other tools may see them lying",
        ),
        ("animations", whole["frames"] > 1, "are animations", "of each the first frame is taken"),
    ):
        if hits.any():
            yield finding, int(hits.sum()), f"{int(hits.sum()):,} ({hits.mean():.1%}) {words}", effect, "none needed"
