"""Weighs all sources that may read a place by what speaks for them, and reads it by the best one.

The source of the core reads class folders, and `image_tables` reads table files. Every other one is a module of
`baseline.data.sources.layouts` with a subclass of `Source`: it is found by itself, and deleting its file removes only
that source. One with the name of a source of the core replaces it.
"""

from __future__ import annotations

import inspect
import pkgutil
from functools import cache
from importlib import import_module
from textwrap import shorten

from baseline.data.sources.class_folders import ClassFolders
from baseline.data.sources.place import Evidence, MalformedFileError, Place, Source, SourceTable, optional_module
from baseline.data.sources.read_table import TABLE_SUFFIXES, is_table
from baseline.errors import DataError, format_count, quoted_list, unknown_name

__all__ = ["all_sources", "read_place"]


LAYOUTS = "baseline.data.sources.layouts"

MIN_STRENGTH = 0.15
"""Strength below which a place is not read by a source unless `--source` insists."""

SINGLE_CLASS = 0.2
"""Strength of a reading with a single class, which is not taken where a source has advice."""

MARGIN = 0.06
"""Difference in strength up to which two sources fit equally well."""

MIN_OVERLAP = 0.9
"""Share of the images that two readings must have in common to be alike."""

MENTIONED = 0.05
"""Strength from which a source that was not taken is mentioned."""


@cache
def all_sources() -> dict[str, Source]:
    """Return every source by its name, those of the core first."""
    tables, layouts = map(optional_module, ("image_tables", "layouts"))
    sources: list[Source] = [ClassFolders(), *([tables.ImageTable()] if tables else [])]
    for info in sorted(pkgutil.iter_modules(layouts.__path__ if layouts else []), key=lambda info: info.name):
        module = import_module(f"{LAYOUTS}.{info.name}")
        classes = [
            value for _, value in inspect.getmembers(module, inspect.isclass) if value.__module__ == module.__name__
        ]
        sources += [value() for value in classes if issubclass(value, Source)]
    return {source.name: source for source in sources}


def read_place(place: Place) -> SourceTable:
    """Read a place by the source for which most speaks, and note why, and why not by the next one.

    Raises:
        DataError: if no source fits, or two fit equally well; the message names the options.
    """
    forced = place.settings.source or ("names" if place.settings.label_from else "")
    sources = all_sources()
    known = [name for name, source in sources.items() if source.example]
    if forced and forced not in known:
        raise DataError(unknown_name("source", forced, known, limit=99))
    considered = [sources[forced]] if forced else list(sources.values())
    matches = [(source, evidence) for source in considered if (evidence := match_source(source, place))]
    matches.sort(key=lambda match: -match[1].strength)
    single = bool(matches) and matches[0][1].strength <= SINGLE_CLASS and bool(advice(place))
    if not matches or (not forced and (matches[0][1].strength < MIN_STRENGTH or single)):
        raise DataError(place.too_large or refusal(place, matches[0][1] if matches else None, forced))
    (source, best), others = matches[0], matches[1:]
    others = [match for match in others if match[1].strength >= MENTIONED]
    result = source.rows(place, best)
    result.reason = "" if place.is_file and not others else best.reason
    if others:
        other_source, other = others[0]
        if best.strength - other.strength >= MARGIN:
            result.rejected = describe_rejected(other_source, other)
        elif difference := find_difference(result, other_source, other, place):
            raise DataError(
                f"{place.path} can be read as {best.layout} or as {other.layout}, but their {difference} differ. "
                f"Pass --source {source.name} or --source {other_source.name}."
            )
        elif not result.rejected:
            result.rejected = f"not as {other.layout}, which would give the same classes"
    if source.name == ClassFolders.name:
        result.notes += unread_tables(place, result.rejected)
    return result


def describe_rejected(source: Source, evidence: Evidence) -> str:
    """Return why a place is not read by another source, or how to insist on it."""
    if evidence.objection:
        return f"not as {evidence.layout}, because {evidence.objection}"
    return f"give --source {source.name} to read {evidence.layout} instead" if evidence.reason else ""


def match_source(source: Source, place: Place) -> Evidence | None:
    """Return what speaks for a source; nothing if a file only looks like one of its layout."""
    try:
        return source.matches(place)
    except MalformedFileError:
        return None


def unread_tables(place: Place, mentioned: str) -> list[str]:
    """Return a note on the tables at the top of a place that is read without them."""
    tables = [path.name for path in place.files if is_table(path) and path.parent == place.folder]
    names = [name for name in tables if "submission" not in name.lower() and name not in mentioned]
    return [f"{quoted_list(names)} not read; to use a table, give it instead of the folder"] if names else []


def find_difference(result: SourceTable, source: Source, evidence: Evidence, place: Place) -> str:
    """Return in what another source that fits as well reads the place differently: images, classes or nothing.

    Where it cannot read the place after all, `result.rejected` says why.
    """
    try:
        other = source.rows(place, evidence).table
    except DataError as error:
        result.rejected = f"not as {evidence.layout}, which fails: {shorten(str(error), 120, placeholder='...')}"
        return ""
    both = result.table[["path", "label"]].merge(other[["path", "label"]], on="path", suffixes=("", "_2"))
    if len(both) < MIN_OVERLAP * max(len(result.table), len(other)):
        return "images"
    pairs = both[["label", "label_2"]].drop_duplicates()
    return "" if pairs["label"].is_unique and pairs["label_2"].is_unique else "classes"


def advice(place: Place) -> list[str]:
    """Return what the sources say about a place that none of them reads."""
    return [hint for source in all_sources().values() if (hint := source.hint(place))]


def refusal(place: Place, weak: Evidence | None, forced: str) -> str:
    """Return the message for a place that no source reads."""
    if forced:
        source = all_sources()[forced]
        return (
            f"{place.path} does not fit --source {forced}, which reads, for example, {source.example}. "
            "Leave out --source, or give another one."
        )
    hints = advice(place)
    if place.is_file:
        endings = ", ".join(TABLE_SUFFIXES)
        rest = " ".join(hints) or f"Pass a folder of images, or a file that ends in {endings} or .zip, .tar, .tar.gz."
        return f"{place.path} is neither a table nor an archive. {rest}"
    if not place.images:
        return f"{place.path} contains no images. " + (
            " ".join(hints) or "Pass a folder with one folder of images per class."
        )
    count = format_count(len(place.images), "image")
    if hints:
        return f"{place.path} contains {count} but no class folders. {' '.join(hints)}"
    why = f": {weak.objection}" if weak and weak.objection else ""
    insist = " or --source folders" if weak and weak.layout.startswith("class") else ""
    ways = f"Sort them into one folder per class, or give a table{',' if insist else ' or'} --label-from REGEX{insist}."
    return f"{place.path} contains {count} but no class folders{why}. {ways}"
