"""Recipe and source -> audited image table in which every image has its split.

`load_images` reads the source; `prepare` also audits and splits the table and applies label fixes. They write no files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired

from typing_extensions import TypedDict

from baseline.data.split import split_to_csv
from baseline.errors import LeakError, format_count
from baseline.files import read_values
from baseline.metrics.registry import check_metric
from baseline.progress import ConsoleProgress
from baseline.recipe.choose import apply_changes, choose_recipe
from baseline.recipe.diff import diff_recipes
from baseline.recipe.schema import LEAVES

if TYPE_CHECKING:
    import pandas as pd

    from baseline.data.audit.findings import Audit
    from baseline.progress import Progress
    from baseline.recipe.schema import Recipe

__all__ = ["RunRequest", "load_images", "metric_notes", "prepare", "run_request"]


class RunRequest(TypedDict):
    """What identifies a run."""

    recipe: dict[str, Any]
    """The recipe before each `"auto"` is resolved."""
    images: str
    """SHA-256 of paths, labels, splits and groups."""
    own_parts: NotRequired[dict[str, list[str]]]
    """Names of the caller's own transforms, loss, metrics and callbacks, by argument."""


@dataclass(frozen=True)
class Prepared:
    """The images of a run, and what was found on the way."""

    recipe: Recipe
    """The recipe with its split method and task resolved."""
    table: pd.DataFrame
    """The image table with splits and fixed labels."""
    unreadable: pd.DataFrame
    """`path`, `label` and `reason` of the images that were left out."""
    audit: Audit | None = None
    fixes: pd.DataFrame | None = None
    """The label fixes that were applied."""
    reasons: dict[str, str] = field(default_factory=dict)
    """Why settings were chosen, by the name of the field."""


def load_images(
    images: str | Path | pd.DataFrame | None = None,
    recipe: str | Path | Recipe = "default",
    *,
    progress: Progress | None = None,
    **changes: Any,
) -> tuple[Recipe, pd.DataFrame]:
    """Return the recipe and the image table that `make_baseline` would start from, and log a five-line summary.

    Arguments and errors are those of `make_baseline`. `table.attrs["source"]` describes the source.
    """
    recipe, images = choose_recipe(images, recipe)
    recipe, reasons = apply_changes(recipe, None, changes)
    return load_image_table(images, recipe, reasons, progress or ConsoleProgress())


def prepare(
    images: str | Path | pd.DataFrame | None, recipe: str | Path | Recipe, progress: Progress, **changes: Any
) -> Prepared:
    """Return the image table with splits that `make_baseline` trains on.

    A recipe whose `split_file` holds `split_to_csv` of the table reproduces the splits, without an audit.
    """
    recipe, table = load_images(images, recipe, progress=progress, **changes)
    return prepare_table(table, recipe, progress)


def run_request(recipe: Recipe, table: pd.DataFrame, own_parts: Mapping[str, list[str]] | None = None) -> RunRequest:
    """Return what identifies a run: the recipe from `load_images`, and the SHA-256 of paths, labels, splits and groups.

    The names of the caller's own parts are added, if there are any. It is stored in the manifest, so that a later call
    can tell whether it asks for the same run.
    """
    identity = table[[column for column in ("path", "label", "split", "group") if column in table]]
    digest = hashlib.sha256(identity.to_csv(index=False).encode()).hexdigest()
    request: RunRequest = {"recipe": recipe.as_dict(), "images": digest}
    if own_parts:
        request["own_parts"] = dict(own_parts)
    return request


def load_image_table(
    images: Any, recipe: Recipe, reasons: dict[str, str], progress: Progress
) -> tuple[Recipe, pd.DataFrame]:
    """Read the image table, and resolve the recipe's `split` and `task` by it; add the reasons to `reasons`."""
    from baseline.data.labels import classes_in, is_multilabel
    from baseline.data.split import given_folds, kept_splits, resolve_split
    from baseline.data.table import summarize_source, table_from_settings

    table = table_from_settings(images, recipe.data, progress, splits=kept_splits(recipe.split.method))
    for line in summarize_source(table):
        progress.log(line)
    method, reasons["split"] = resolve_split(table, recipe)
    if "folds" in reasons["split"]:
        progress.log(f"split:    {method}; {reasons['split']}")
    task = "multilabel" if is_multilabel(table["label"], recipe.data.task) else "single"
    recipe = recipe.changed(split=method, task=task)
    if (folds := given_folds(table, method)) and recipe.split.fold not in folds and "fold" not in reasons:
        recipe, reasons["fold"] = recipe.changed(fold=folds[0]), "the first of the folds that the images come with"
    for line in metric_notes(images, recipe, classes_in(table, task)):
        progress.log(line)
    return recipe, table


def metric_notes(images: Any, recipe: Recipe, classes: Sequence[str]) -> list[str]:
    """Return what has to be said about the metric on these classes: their order, or what a sample submission suggests.

    Raises:
        RecipeError: if the metric does not fit the classes.
    """
    from baseline.data.sources.place import optional_module

    name, multilabel = recipe.evaluation.metric, recipe.data.task == "multilabel"
    note, samples = check_metric(name, classes, multilabel=multilabel), optional_module("sample_submission")
    if samples and name == "auto":
        note = samples.propose_metric(images, classes, multilabel=multilabel)
    return [f"metric: {note}"] if note else []


def _audit_table(
    table: pd.DataFrame, recipe: Recipe, progress: Progress
) -> tuple[pd.DataFrame, pd.DataFrame, tuple[float, ...], Audit | None]:
    """Audit the table and log the findings.

    Returns:
        The readable images, the unreadable ones, the range of values (see `load_image`), and the audit, if any.
    """
    if recipe.data.audit == "none":
        from baseline.data.audit.readable import drop_unreadable

        return *drop_unreadable(table, progress, recipe.data.value_range), None
    from baseline.data.audit.findings import audit

    grouped, value_range = "group" in recipe.split.method, recipe.data.value_range
    report = audit(table, grouped=grouped, value_range=value_range, progress=progress)
    for row in report.findings.itertuples():
        progress.log(f"audit: {row.finding}: {row.words}; {row.effect} ({row.answer})")
    return report.usable, report.unreadable, report.value_range, report


def prepare_table(table: pd.DataFrame, recipe: Recipe, progress: Progress) -> Prepared:
    """Audit and split an image table, and apply the recipe's label fixes."""
    from baseline.data.split import kept_splits, split
    from baseline.data.table import check_table
    from baseline.files import resolve_path

    fixes, reasons = None, {}
    task, splits = recipe.data.task, kept_splits(recipe.split.method)
    if recipe.data.fixes:
        from baseline.data.label_fixes import apply_fixes, read_fixes

        recipe = recipe.changed(fixes=[str(resolve_path(file)) for file in recipe.data.fixes])
        fixes = read_fixes(recipe.data.fixes, table, task)
    check_table(table, task, splits)
    table, unreadable, value_range, report = _audit_table(table, recipe, progress)
    recipe = recipe.changed(value_range=value_range)
    if len(unreadable):
        check_table(table, task, splits)
    table = _drop_leaks(split(table, recipe), recipe, progress)
    if fixes is not None:
        table, reasons["fixes"] = apply_fixes(table, fixes)
        progress.log(f"fixes: {reasons['fixes']}")
    progress.log(_describe_splits(table, task))
    return Prepared(recipe, table, unreadable, report, fixes, reasons)


def splits_differ(manifest: Path, recipe: Recipe, table: pd.DataFrame) -> bool:
    """Return whether the splits differ from those of a run's manifest, although no recipe field explains it."""
    values = read_values(manifest)
    expected = values["data"].get("sha256") if "recipe" in values and isinstance(values.get("data"), dict) else None
    if expected is None:
        return False
    changed = diff_recipes(values["recipe"], recipe.as_dict())
    if any(name == "seed" or LEAVES.get(name, ("",))[0] in ("data", "split") for name in changed):
        return False
    return bool(expected != hashlib.sha256(split_to_csv(table).encode()).hexdigest())


def _drop_leaks(table: pd.DataFrame, recipe: Recipe, progress: Progress) -> pd.DataFrame:
    """Drop images with a duplicate in a later split if `leaks` is `"drop"`; raise if `audit` is `"strict"`."""
    from baseline.data.audit.readable import find_leaks

    if recipe.data.audit == "none" or (recipe.split.leaks == "keep" and recipe.data.audit != "strict"):
        return table
    leaks = find_leaks(table)
    count = format_count(int(leaks.sum()), "image")
    if recipe.split.leaks == "drop":
        progress.log(f"audit: dropped {count} with a duplicate in a later split")
        return table[~leaks].reset_index(drop=True)
    if leaks.any():
        row = table[leaks].iloc[0]
        raise LeakError(
            f"Found {count} with a duplicate in a later split, first {row['path']} ({row['split']}). "
            "Pass --leaks drop or --split random, or remove the duplicates."
        )
    return table


def count_by_split(table: pd.DataFrame) -> dict[str, int]:
    """Return the number of images per split."""
    return {str(name): int(count) for name, count in table["split"].value_counts().items()}


def _describe_splits(table: pd.DataFrame, labels: str) -> str:
    from baseline.data.labels import classes_in

    counts = count_by_split(table)
    by_split = ", ".join(f"{counts[name]:,} {name}" for name in ("train", "valid", "test") if name in counts)
    classes = format_count(len(classes_in(table, labels)), "class", "classes")
    return f"images: {len(table):,} in {classes}; {by_split}"
