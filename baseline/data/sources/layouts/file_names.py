"""The source "names": the class is part of each image's name, such as `cat.0.jpg` or `Abyssinian_12.jpg`."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pandas as pd

from baseline.data.sources.folders import split_from_name
from baseline.data.sources.place import Evidence, Place, Source, SourceTable
from baseline.errors import DataError, format_count, quoted_list

__all__ = ["FileNames", "propose_patterns"]


PATTERNS = {
    r"([^/]+?)[ ._-]*[(]?[0-9]+[)]?\.\w+$": "the text before the last number",
    r"([^/_. -]+)[_. -][^/]*$": "the first word",
    r"[_. -]([^/_. -]+)\.\w+$": "the last word",
    r"[0-9][_. -]+([^/_. -]+)[_. -][^/]*$": "the word after a number",
}
"""Patterns that are tried on file names, the best first, and what they find."""


@dataclass(frozen=True)
class Pattern:
    """A pattern that finds classes in the names of images."""

    regex: str
    part: str
    """The part of the name that is the class."""
    counts: Counter[str]
    """Number of images per class."""

    def describe(self, limit: int = 4) -> str:
        """Return the largest classes with their numbers of images."""
        shown = ", ".join(f"{label} {count:,}" for label, count in self.counts.most_common(limit))
        more = f" and {len(self.counts) - limit:,} more" if len(self.counts) > limit else ""
        return f"{shown}{more}"


class FileNames(Source):
    """The class is part of an image's name."""

    name = "names"
    example = "images/cat_1.jpg and images/dog_2.jpg, with --label-from auto or a regular expression"

    def matches(self, place: Place) -> Evidence | None:
        if place.is_file or not place.settings.label_from:
            return None
        return Evidence(1.0, "images with the class in their name", f"--label-from {place.settings.label_from}")

    def rows(self, place: Place, evidence: Evidence) -> SourceTable:
        if not place.images:
            raise DataError(f"{place.folder} contains no images. Pass a folder of images.")
        names = [place.relative(path) for path in place.images]
        regex = place.settings.label_from
        if regex != "auto":
            return self.read(place, names, regex)
        labeled, unlabeled = set_aside(names)
        patterns = propose_patterns(labeled)
        if not patterns:
            raise DataError(f"--label-from auto finds no classes in the file names of {place.folder}, such as "
                            f"{quoted_list(labeled, 3)}. Pass --label-from REGEX.")  # fmt: skip
        source = self.read(place, labeled, patterns[0].regex)
        source.columns = f"none; the class is {patterns[0].part} in the file name"
        if unlabeled:
            folders = quoted_list(sorted({name.rpartition("/")[0] for name in unlabeled}), 3)
            source.notes.append(f"{format_count(len(unlabeled), 'image')} in {folders} ignored: no class in the name")
        splits = [next(filter(None, map(split_from_name, name.split("/")[:-1])), None) for name in labeled]
        if len(set(splits)) > 1 and "train" in splits:
            source.table["split"] = splits
        return source

    def read(self, place: Place, names: Sequence[str], label_from: str) -> SourceTable:
        """Read the classes in the names of images by a regular expression.

        Raises:
            DataError: if the expression is invalid or does not match all images.
        """
        labels, groups = search_names(label_from, names)
        if unmatched := [name for name, label in zip(names, labels, strict=True) if not label]:
            raise DataError(
                f"--label-from '{label_from}' does not match the paths of {len(unmatched):,} of "
                f"{format_count(len(names), 'image')} in {place.folder}: {quoted_list(unmatched, 3)}. Correct it."
            )
        paths = [os.path.join(place.folder, name) for name in names]
        table = pd.DataFrame({"path": paths, "label": labels, "split": None, "group": groups})
        by = f"labels by --label-from '{label_from}'"
        return SourceTable(table, f"images in {place.folder} with the class in their name", f"none; {by}")

    def hint(self, place: Place) -> str:
        """Return the patterns that the names show, with their classes."""
        if place.is_file or not place.images:
            return ""
        labeled, _ = set_aside([place.relative(path) for path in place.images])
        patterns = propose_patterns(labeled)
        if not patterns:
            return ""
        first, *others = patterns
        advice = f"Pass --label-from auto for {first.part} in each name ({first.describe(3)})"
        other = "".join(f", or '{o.regex}' for {o.part}" for o in others[:1])
        return f"{advice}{other}."


def search_names(label_from: str, names: Sequence[str]) -> tuple[list[str | None], list[str | None] | None]:
    """Return the label that a regular expression finds in each name, and the group if the expression has one.

    An expression of the user's can take longer than the age of the universe, and Python cannot interrupt it: it runs in
    a process of its own, whose processor time is limited.

    Raises:
        DataError: if it is invalid, has no group, or takes too long.
    """
    seconds = 1 + len(names) // NAMES_PER_SECOND
    request = json.dumps([label_from, list(names), seconds]).encode()
    command = [sys.executable, "-I", "-S", "-W", "ignore", "-c", SEARCH]
    too_long = DataError(
        f"--label-from '{label_from:.200}' takes more than {seconds} s on {format_count(len(names), 'name')}. Avoid "
        "repetitions inside of repetitions, such as (a+)+."
    )
    try:
        ended = subprocess.run(command, input=request, stdout=subprocess.PIPE, timeout=30 * seconds, check=False)
    except subprocess.TimeoutExpired:
        raise too_long from None
    if ended.returncode:  # the signal at the end of its processor time, or too little memory
        raise too_long
    answer = json.loads(ended.stdout)
    if "error" in answer:
        raise DataError(f"'{label_from:.200}' is not a regular expression: {answer['error']}. Correct --label-from.")
    if not answer["groups"]:
        raise DataError(f"'{label_from:.200}' has no group. Put the label in parentheses, as in '([a-z]+)_[0-9]+'.")
    return answer["labels"], answer["named"]


SEARCH = """
import json, re, sys
expression, names, seconds = json.load(sys.stdin)
try:
    import resource
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
except (ImportError, ValueError, OSError):
    pass  # the caller's timeout remains
try:
    pattern = re.compile(expression)
except (re.error, OverflowError, RecursionError, MemoryError) as error:
    json.dump({"error": str(error) or "it is nested too deeply"}, sys.stdout)
    sys.exit()
answer = {"groups": pattern.groups, "labels": [], "named": None}
if pattern.groups:
    matches = [pattern.search(name) for name in names]
    label = "label" if "label" in pattern.groupindex else 1
    answer["labels"] = [match and match[label] for match in matches]
    if "group" in pattern.groupindex:
        answer["named"] = [match and match["group"] for match in matches]
json.dump(answer, sys.stdout)
"""
"""What the process runs: the expression and the names come as JSON, and what was found is returned as JSON."""

NAMES_PER_SECOND = 50_000
"""Number of names that a usual expression searches in a second, with a wide margin."""


def set_aside(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the names of images that may have a class, and those of test images, which are numbers only."""
    unlabeled = []
    for name in names:
        folder, _, file = name.rpartition("/")
        if not re.search(r"[^\W\d_]", os.path.splitext(file)[0]) and is_test(folder):
            unlabeled.append(name)
    missing = set(unlabeled)
    return [name for name in names if name not in missing], unlabeled


def is_test(folder: str) -> bool:
    return any(split_from_name(part) == "test" for part in folder.split("/"))


def propose_patterns(names: Sequence[str]) -> list[Pattern]:
    """Return the patterns that find 2 or more classes of 2 or more images on average in all names, the best first.

    >>> [pattern.describe() for pattern in propose_patterns(["cat.1.jpg", "dog.1.jpg", "cat.2.jpg", "dog.2.jpg"])][:1]
    ['cat 2, dog 2']
    """
    return list(_patterns(names))


def _patterns(names: Sequence[str]) -> Iterator[Pattern]:
    seen = set()
    for regex, part in PATTERNS.items():
        found = [re.search(regex, name.rpartition("/")[2]) for name in names]
        if not names or not all(found):
            continue
        labels = tuple(match[1] for match in found if match)
        counts = Counter(labels)
        if not all(re.search(r"[^\W\d_]", label) for label in counts):
            continue  # numbers are more often counters than classes
        if 2 <= len(counts) <= len(names) / 2 and labels not in seen:
            seen.add(labels)
            yield Pattern(regex, part, counts)
