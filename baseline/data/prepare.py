"""TODO."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from baseline.data.split import split_to_csv
from baseline.errors import LeakError
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
"""Of a recipe; what decides which images there are, and in which split."""


def load_images(
    images: str | Path | pd.DataFrame | None = None,
    recipe: str | Path | Recipe = "default",
    *,
    progress: Progress | None = None,
    **changes: Any,
) -> tuple[Recipe, pd.DataFrame]:
    """The recipe and the image table that `make_baseline` would start from; what was understood is said in five lines.

    Arguments and errors are those of `make_baseline`. `table.attrs["source"]` holds what was said.
    """
    chosen, images = choose_recipe(images, recipe)
    chosen, reasons = apply_changes(chosen, None, changes)
    return load_image_table(images, chosen, reasons, progress or ConsoleProgress())


def prepare(
    images: str | Path | pd.DataFrame | None,
    recipe: str | Path | Recipe,
    folder: Path,
    progress: Progress,
    **changes: Any,
) -> tuple[Recipe, pd.DataFrame, pd.DataFrame]:
    """The recipe, the image table that `make_baseline` trains with, every image in its split, and what it leaves out.

    What the audit found is written into the folder. A recipe whose `split_file` holds `split_to_csv` of the table gives
    the same splits again, without an audit.
    """
    chosen, table = load_images(images, recipe, progress=progress, **changes)
    return prepare_table(table, chosen, folder, progress, {})


def run_request(recipe: Recipe, table: pd.DataFrame) -> dict[str, Any]:
    """What a run was asked for: a recipe as `load_images` gives it, and the sha256 of paths, labels, splits and groups.

    The manifest keeps it, so that another run can tell whether it would be the same one.
    """
    told = table[[column for column in ("path", "label", "split", "group") if column in table]]
    return {"recipe": recipe.as_dict(), "images": hashlib.sha256(told.to_csv(index=False).encode()).hexdigest()}


def load_image_table(
    images: Any, chosen: Recipe, reasons: dict[str, str], progress: Progress
) -> tuple[Recipe, pd.DataFrame]:
    """The image table, and the recipe with what follows from it."""
    from baseline.data.labels import is_multilabel
    from baseline.data.sources.tables import Columns
    from baseline.data.split import resolve_split
    from baseline.data.table import image_table, summarize_source

    columns = Columns(chosen.image_col, chosen.label_col, chosen.group_col, chosen.split_col, chosen.image_dir)
    forms = {"label_from": chosen.label_from, "labels": chosen.labels, "positive": chosen.positive}
    table = image_table(images, columns=columns, **forms, progress=progress)
    for line in summarize_source(table):
        progress.log(line)
    way, reasons["split"] = resolve_split(table, chosen)
    return chosen.changed(split=way, labels="many" if is_multilabel(table["label"], chosen.labels) else "one"), table


def _audit_table(
    table: pd.DataFrame, chosen: Recipe, progress: Progress
) -> tuple[pd.DataFrame, pd.DataFrame, Audit | None]:
    """The images to go on with, those that cannot be read, and the audit, which is told."""
    from baseline.data.audit.findings import audit, drop_unreadable

    if chosen.audit == "none":
        return *drop_unreadable(table, progress), None
    checked = audit(table, grouped="group" in chosen.split, progress=progress)
    for row in checked.findings.itertuples():
        progress.log(f"audit: {row.finding}: {row.words}; {row.effect} ({row.answer})")
    return checked.usable, checked.unreadable, checked


def prepare_table(
    table: pd.DataFrame, chosen: Recipe, folder: Path, progress: Progress, reasons: dict[str, str]
) -> tuple[Recipe, pd.DataFrame, pd.DataFrame]:
    """The recipe, the images with their splits, labels mended, and those that cannot be read.

    What the audit found, what a second model left out and the fixes go into the folder.
    """
    from baseline.data.label_fixes import apply_fixes, read_fixes
    from baseline.data.split import split
    from baseline.data.table import check_table
    from baseline.files import resolve_path
    from baseline.inference.filter import filter_by_model

    fixes = None
    if chosen.fixes:
        chosen = chosen.changed(fixes=[str(resolve_path(file)) for file in chosen.fixes])
        fixes = read_fixes(chosen.fixes, table, chosen.labels)
    check_table(table, chosen.labels)
    table, unread, checked = _audit_table(table, chosen, progress)
    if len(unread):
        check_table(table, chosen.labels)
    if chosen.keep_if:
        table, strangers = filter_by_model(table, chosen, progress)
        write_atomic(folder / "not_kept.csv", strangers.to_csv(index=False))
        reasons["keep_if"] = f"{len(strangers):,} images were left out: not_kept.csv"
    table = _drop_leaks(split(table, chosen), chosen, progress)
    if fixes is not None:
        table, reasons["fixes"] = apply_fixes(table, fixes)
        progress.log(f"fixes: {reasons['fixes']}")
        write_atomic(folder / "fixes.csv", fixes.to_csv(index=False))
    if checked is not None and len(checked.findings):
        write_audit(folder / "audit", checked)
    progress.log(_describe_splits(table, chosen.labels))
    return chosen, table, unread


def splits_differ(manifest: Path, chosen: Recipe, table: pd.DataFrame) -> bool:
    """Whether the images of a run's manifest have other splits now, though the recipe leaves them as they were."""
    before = read_values(manifest)
    hashed = before["data"].get("sha256") if "recipe" in before and isinstance(before.get("data"), dict) else None
    if (
        hashed is None
        or {key.partition(".")[0] for key in diff_recipes(before["recipe"], chosen.as_dict())} & SPLIT_FIELDS
    ):
        return False
    return bool(hashed != hashlib.sha256(split_to_csv(table).encode()).hexdigest())


def _drop_leaks(table: pd.DataFrame, chosen: Recipe, progress: Progress) -> pd.DataFrame:
    """The table without images that have a copy in a later split, or an error, where the recipe wants either."""
    from baseline.data.audit.findings import find_leaks

    if chosen.audit == "none" or (chosen.leaks == "keep" and chosen.audit != "strict"):
        return table
    leaks = find_leaks(table)
    if chosen.leaks == "drop":
        progress.log(f"audit: {int(leaks.sum()):,} images with a copy in a later split are dropped")
        return table[~leaks].reset_index(drop=True)
    if leaks.any():
        row = table[leaks].iloc[0]
        raise LeakError(
            f"{int(leaks.sum()):,} images have a copy in a later split, first {row['path']} ({row['split']}). "
            "Give --leaks drop or --split random, or mend the images."
        )
    return table


def count_by_split(table: pd.DataFrame) -> dict[str, int]:
    """Images by split."""
    return {str(name): int(count) for name, count in table["split"].value_counts().items()}


def _describe_splits(table: pd.DataFrame, labels: str) -> str:
    from baseline.data.labels import classes_in

    counts = count_by_split(table)
    by_split = ", ".join(f"{counts[name]:,} {name}" for name in ("train", "valid", "test") if name in counts)
    return f"images: {len(table):,} of {len(classes_in(table, labels))} classes; {by_split}"
