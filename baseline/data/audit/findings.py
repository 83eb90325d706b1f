"""Image table -> findings: unreadable images, duplicates, leaks between splits, imbalance. Loads no models.

Every image is decoded once. The results are cached by path, size, times and inode, so that a second audit only
reads new images. Nothing is moved or deleted.

Two images are exact duplicates if their files are identical, and near-duplicates if their perceptual hashes (pHash, 64
bits, as the package imagehash has it) differ in at most 10 bits and their 8 x 8 thumbnails correlate by more than 0.9.
Among CIFAR-10's 60,000 images this finds 54% of the test images that a published list pairs with a training image;
58% of those it finds are on the list, and by eye three in four of the others are true duplicates
(`benchmarks/audit_cifar10.py`). Mirrored, rotated or heavily cropped copies are not found, and small objects on an
empty background may be mistaken for duplicates.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from baseline.data.audit.duplicates import duplicate_ids, find_pairs
from baseline.data.audit.readable import list_unreadable, scan_table
from baseline.data.audit.scan import SCAN_COLUMNS
from baseline.data.image import formats
from baseline.data.labels import explode_labels
from baseline.errors import LeakError, format_count
from baseline.progress import Progress

__all__ = ["Audit", "audit"]


TINY_CLASS = 10
"""Number of training images below which a class is reported as tiny."""


IMBALANCE_RATIO = 5.0
"""Ratio of the largest to the smallest class from which on classes are reported as imbalanced."""


@dataclass(frozen=True)
class Audit:
    """Results of an audit."""

    images: pd.DataFrame
    """The image table with the columns of the scan (see `ScanRecord`), and `duplicate_id` (a number that duplicates
    share, -1 for an image without any)."""
    pairs: pd.DataFrame
    """One row per pair of duplicates: `path, other, kind` (`exact`, `near`), `distance` (bits), `label, other_label,
    split, other_split, leak, conflict`."""
    findings: pd.DataFrame
    """One row per finding: `finding, images, words, effect, answer`."""
    value_range: tuple[float, ...] = ()
    """The values of black and white for all images of more than 8 bits whose files do not declare them; else empty."""

    @property
    def usable(self) -> pd.DataFrame:
        """The image table without unreadable images, with the column `duplicate_id` that `split` uses."""
        readable = self.images[self.images["reason"] == ""].reset_index(drop=True)
        return readable.drop(columns=list(SCAN_COLUMNS))

    @property
    def unreadable(self) -> pd.DataFrame:
        """`path, label, reason` of the images that cannot be read."""
        return list_unreadable(self.images)

    def __repr__(self) -> str:
        return f"Audit({self._summary()!r})"

    def _summary(self) -> str:
        found = format_count(len(self.findings), "finding") if len(self.findings) else "no problems"
        return f"{format_count(len(self.images), 'image')}: {found}"

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the number of images and problems, and the findings, worst first."""
        from baseline.notebook import card, text_table

        headings = ("finding", "images", "details", "effect", "remedy")
        rows = [[str(name), f"{count:,}", *map(str, texts)] for name, count, *texts in self.findings.to_numpy()]
        return card(self._summary(), [text_table(headings, rows)] if rows else [])

    def pairs_to_review(self) -> dict[str, pd.DataFrame]:
        """Return the pairs worth looking at, as `leaks`, `conflicts` and `near_duplicates`; empty ones are left out."""
        near = self.pairs[self.pairs["kind"] == "near"].sort_values("distance", kind="stable")
        parts = {"leaks": self.pairs[self.pairs["leak"]], "conflicts": self.pairs[self.pairs["conflict"]]}
        return {name: part for name, part in {**parts, "near_duplicates": near}.items() if len(part)}

    def raise_on_leaks(self) -> None:
        """Raise LeakError if images of one split have duplicates in another."""
        leaks = self.pairs[self.pairs["leak"]]
        if len(leaks):
            row = leaks.iloc[0]
            raise LeakError(
                f"{format_count(len(leaks), 'duplicate pair')} across splits, first {row.path} ({row.split}) and "
                f"{row.other} ({row.other_split}). Pass --leaks drop or --split random, or remove the duplicates."
            )


def audit(
    table: pd.DataFrame, *, grouped: bool = False, value_range: Sequence[float] = (), progress: Progress | None = None
) -> Audit:
    """Read every image of the table once and report what is wrong with them; the module describes the method.

    Args:
        table: an image table. Duplicates across the splits that it gives are leaks.
        grouped: whether images will be split by the column `group`; if not, an unused group column is a finding.
        value_range: see `load_image`; measured if empty.

    Raises:
        DataError: if no image can be read, or too few classes or images are left to train on.

    >>> report = audit(image_table("images/"))                                    # doctest: +SKIP
    >>> report.findings                                                           # doctest: +SKIP
    """
    progress = progress or Progress()
    table = table.reset_index(drop=True)
    images, scan, value_range = scan_table(table, value_range, progress)
    pairs = find_pairs(images, scan)
    images["duplicate_id"] = duplicate_ids(images, pairs)
    findings = pd.DataFrame(
        collect_findings(images, pairs, grouped, value_range),
        columns=["finding", "images", "words", "effect", "answer"],
    )
    return Audit(images, pairs, findings, value_range)


def collect_findings(
    images: pd.DataFrame, pairs: pd.DataFrame, grouped: bool, value_range: Sequence[float]
) -> Iterator[tuple[str, int, str, str, str]]:
    """Yield the findings, worst first: name, number of images, description, effect on the score, and remedy.

    In the description of files, their names follow a colon, so that the model card can leave them out.
    """
    readable = images[images["reason"] == ""]
    leaks = pairs[pairs["leak"]]
    if len(leaks):
        in_test = pd.concat([leaks["path"][leaks["split"] == "test"], leaks["other"][leaks["other_split"] == "test"]])
        count = in_test.nunique()
        test_images = max(1, int((readable["split"] == "test").sum()))
        affected = f"{format_count(count, 'test image')} ({count / test_images:.1%})"
        exact_count = int((leaks["kind"] == "exact").sum())
        pair_count = format_count(len(leaks), "duplicate pair")
        message = f"{pair_count} across splits, {exact_count:,} byte-identical, affecting {affected}"
        effect = "the score is too optimistic" + ("" if exact_count else ", unless they only look alike")
        yield "leak", count or len(leaks), message, effect, "--leaks drop, or --split random"
    conflicts = pairs[pairs["conflict"]]
    if len(conflicts):
        exact = conflicts[conflicts["kind"] == "exact"]
        pair_count = format_count(len(conflicts), "duplicate pair")
        message = f"{pair_count} with different labels, {len(exact):,} byte-identical"
        examples = [f"{Path(one).name} = {Path(two).name}" for one, two in exact[["path", "other"]].head(3).to_numpy()]
        message += f": {', '.join(examples)}{' ...' if len(exact) > 3 else ''}" if examples else ""
        count = pd.concat([conflicts["path"], conflicts["other"]]).nunique()
        which = "pair" if len(exact) == len(conflicts) else "byte-identical pair"
        effect = f"at least one of each {which} is mislabeled, which caps any accuracy"
        if exact.empty:
            effect = "either a label is wrong, or they only look alike"
        yield "conflict", count, message, effect, "review the labels" if exact.empty else "fix the labels"
    if not grouped and readable["group"].notna().any():
        count = int(readable["group"].notna().sum())
        message = f"{format_count(readable['group'].nunique(), 'group')} in the data, ignored by the split"
        yield "unused group", count, message, "the score is too optimistic for unseen groups", "--split group"
    bad = images[(images["reason"] != "") & ~images["reason"].str.contains("pip install")]
    if len(bad):
        listed = "; ".join(
            f"{Path(path).name} ({reason})" for path, reason in bad[["path", "reason"]].head(3).to_numpy()
        )
        message = f"{format_count(len(bad), 'unreadable image')}: {listed}"
        yield "unreadable", len(bad), message, "left out", "repair or remove"
    if formats is not None:
        yield from formats.file_findings(images, value_range)
    for kind, noun, plural in (
        ("exact", "exact copy of another image", "exact copies of other images"),
        ("near", "near-duplicate of another image", "near-duplicates of other images"),
    ):
        same_kind = pairs[pairs["kind"] == kind]
        if len(same_kind):
            count = same_kind["other"].nunique()
            effect = "duplicates count more than once; splits made here keep them together"
            yield f"{kind} duplicates", count, format_count(count, noun, plural), effect, "none needed"
    yield from class_findings(readable)
    if formats is not None:
        yield from formats.image_findings(readable)


def class_findings(readable: pd.DataFrame) -> Iterator[tuple[str, int, str, str, str]]:
    """Yield the findings about the number of training images per class."""
    labels = readable[readable["split"].isna() | (readable["split"] == "train")]["label"]
    counts = explode_labels(labels).value_counts()
    if counts.iloc[0] >= IMBALANCE_RATIO * counts.iloc[-1]:
        largest, smallest = counts.index[0], counts.index[-1]
        message = f"'{largest}' has {format_count(counts.iloc[0], 'image')}, '{smallest}' has {counts.iloc[-1]:,}"
        effect = f"always predicting '{largest}' scores {counts.iloc[0] / counts.sum():.1%}"
        yield "imbalance", int(counts.iloc[0]), message, effect, "--class-balance weights"
    tiny = counts[counts < TINY_CLASS]
    if len(tiny):
        listed = ", ".join(map(str, tiny.index[:3]))
        message = f"{format_count(len(tiny), 'class', 'classes')} with fewer than {TINY_CLASS} images: {listed}"
        yield "tiny classes", int(tiny.sum()), message, "their scores are mostly chance", "add images"
