"""Recipe and source -> audited image table in which every image has its split.

`load_images` reads the source; `prepare` also audits the table, filters it, splits it and applies label fixes.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from baseline.data.split import split_to_csv
from baseline.errors import LeakError, format_count
from baseline.files import write_atomic
from baseline.progress import ConsoleProgress
from baseline.recipe.choose import apply_changes, choose_recipe
from baseline.recipe.diff import diff_recipes
from baseline.recipe.load import read_values
from baseline.recipe.schema import COLUMN_KEYS
from baseline.report.audit_files import write_audit

if TYPE_CHECKING:
    import pandas as pd

    from baseline.data.audit.findings import Audit
    from baseline.progress import Progress
    from baseline.recipe.schema import Recipe

__all__ = ["load_images", "prepare", "run_request"]


SPLIT_FIELDS = {*COLUMN_KEYS, "image_dir", "label_from", "labels", "positive", "split", "split_file", "fold", "seed",
           "valid_share", "test_share", "images_per_class", "audit", "leaks", "fixes", "keep_if", "keep_model",
           "keep_above"}  # fmt: skip
"""Recipe fields that decide which images are used and in which split."""


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
    images: str | Path | pd.DataFrame | None,
    recipe: str | Path | Recipe,
    folder: Path,
    progress: Progress,
    **changes: Any,
) -> tuple[Recipe, pd.DataFrame, pd.DataFrame]:
    """Return the recipe, the image table with splits that `make_baseline` trains on, and the unreadable images.

    The results of the audit are written into the folder. A recipe whose `split_file` holds `split_to_csv` of the table
    reproduces the splits, without an audit.
    """
    recipe, table = load_images(images, recipe, progress=progress, **changes)
    return prepare_table(table, recipe, folder, progress, {})


def run_request(recipe: Recipe, table: pd.DataFrame) -> dict[str, Any]:
    """Return what identifies a run: the recipe from `load_images`, and the SHA-256 of paths, labels, splits and groups.

    It is stored in the manifest, so that a later call can tell whether it asks for the same run.
    """
    identity = table[[column for column in ("path", "label", "split", "group") if column in table]]
    return {"recipe": recipe.as_dict(), "images": hashlib.sha256(identity.to_csv(index=False).encode()).hexdigest()}


def load_image_table(
    images: Any, recipe: Recipe, reasons: dict[str, str], progress: Progress
) -> tuple[Recipe, pd.DataFrame]:
    """Read the image table, and resolve the recipe's `split` and `labels` by it; add the reasons to `reasons`."""
    from baseline.data.labels import is_multilabel
    from baseline.data.sources.tables import Columns
    from baseline.data.split import resolve_split
    from baseline.data.table import image_table, summarize_source

    columns = Columns(recipe.image_col, recipe.label_col, recipe.group_col, recipe.split_col, recipe.image_dir)
    options = {"label_from": recipe.label_from, "labels": recipe.labels, "positive": recipe.positive}
    table = image_table(images, columns=columns, **options, progress=progress)
    for line in summarize_source(table):
        progress.log(line)
    method, reasons["split"] = resolve_split(table, recipe)
    return recipe.changed(split=method, labels="many" if is_multilabel(table["label"], recipe.labels) else "one"), table


def _audit_table(
    table: pd.DataFrame, recipe: Recipe, progress: Progress
) -> tuple[pd.DataFrame, pd.DataFrame, Audit | None]:
    """Audit the table and log the findings; return the readable images, the unreadable ones and the audit, if any."""
    from baseline.data.audit.findings import audit, drop_unreadable

    if recipe.audit == "none":
        return *drop_unreadable(table, progress), None
    report = audit(table, grouped="group" in recipe.split, progress=progress)
    for row in report.findings.itertuples():
        progress.log(f"audit: {row.finding}: {row.words}; {row.effect} ({row.answer})")
    return report.usable, report.unreadable, report


def prepare_table(
    table: pd.DataFrame, recipe: Recipe, folder: Path, progress: Progress, reasons: dict[str, str]
) -> tuple[Recipe, pd.DataFrame, pd.DataFrame]:
    """Return the recipe, the image table with splits and fixed labels, and the unreadable images.

    The results of the audit, the images that `keep_if` left out and the fixes are written into the folder.
    """
    from baseline.data.label_fixes import apply_fixes, read_fixes
    from baseline.data.split import split
    from baseline.data.table import check_table
    from baseline.files import resolve_path
    from baseline.inference.filter import filter_by_model

    fixes = None
    if recipe.fixes:
        recipe = recipe.changed(fixes=[str(resolve_path(file)) for file in recipe.fixes])
        fixes = read_fixes(recipe.fixes, table, recipe.labels)
    check_table(table, recipe.labels)
    table, unreadable, report = _audit_table(table, recipe, progress)
    if len(unreadable):
        check_table(table, recipe.labels)
    if recipe.keep_if:
        table, removed = filter_by_model(table, recipe, progress)
        write_atomic(folder / "not_kept.csv", removed.to_csv(index=False))
        reasons["keep_if"] = f"{format_count(len(removed), 'image')} left out, listed in not_kept.csv"
    table = _drop_leaks(split(table, recipe), recipe, progress)
    if fixes is not None:
        table, reasons["fixes"] = apply_fixes(table, fixes)
        progress.log(f"fixes: {reasons['fixes']}")
        write_atomic(folder / "fixes.csv", fixes.to_csv(index=False))
    if report is not None and len(report.findings):
        write_audit(folder / "audit", report)
    progress.log(_describe_splits(table, recipe.labels))
    return recipe, table, unreadable


def splits_differ(manifest: Path, recipe: Recipe, table: pd.DataFrame) -> bool:
    """Return whether the splits differ from those of a run's manifest, although no recipe field explains it."""
    values = read_values(manifest)
    expected = values["data"].get("sha256") if "recipe" in values and isinstance(values.get("data"), dict) else None
    if (
        expected is None
        or {key.partition(".")[0] for key in diff_recipes(values["recipe"], recipe.as_dict())} & SPLIT_FIELDS
    ):
        return False
    return bool(expected != hashlib.sha256(split_to_csv(table).encode()).hexdigest())


def _drop_leaks(table: pd.DataFrame, recipe: Recipe, progress: Progress) -> pd.DataFrame:
    """Drop images with a duplicate in a later split if `leaks` is `"drop"`; raise if `audit` is `"strict"`."""
    from baseline.data.audit.findings import find_leaks

    if recipe.audit == "none" or (recipe.leaks == "keep" and recipe.audit != "strict"):
        return table
    leaks = find_leaks(table)
    count = format_count(int(leaks.sum()), "image")
    if recipe.leaks == "drop":
        progress.log(f"audit: dropped {count} with a duplicate in a later split")
        return table[~leaks].reset_index(drop=True)
    if leaks.any():
        row = table[leaks].iloc[0]
        raise LeakError(
            f"Found {count} with a duplicate in a later split, first {row['path']} ({row['split']}). "
            "Give --leaks drop or --split random, or remove the duplicates."
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
