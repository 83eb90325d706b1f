"""TODO."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from baseline.data.split import split_csv
from baseline.errors import LeakError
from baseline.files import write
from baseline.progress import Terminal
from baseline.recipe.choose import _changed, _chosen
from baseline.recipe.diff import differing
from baseline.recipe.load import read_values
from baseline.recipe.schema import COLUMN_KEYS
from baseline.report.audit_files import write_audit

if TYPE_CHECKING:
    import pandas as pd

    from baseline.data.audit.findings import Audit
    from baseline.progress import Show
    from baseline.recipe.schema import Recipe

__all__ = ["asked_for", "parted", "understand"]


PARTING = {*COLUMN_KEYS, "images", "label_from", "labels", "positive", "split", "split_file", "fold", "seed",
           "valid_share", "test_share", "photos_per_class", "audit", "leaks", "fixes", "keep_if", "keep_model",
           "keep_above"}  # fmt: skip
"""Of a recipe; what decides which photos there are, and in which split."""


def understand(
    photos: str | Path | pd.DataFrame | None = None,
    recipe: str | Path | Recipe = "default",
    *,
    show: Show | None = None,
    **changes: Any,
) -> tuple[Recipe, pd.DataFrame]:
    """The recipe and the photo table that `make_baseline` would start from; what was understood is said in five lines.

    Arguments and errors are those of `make_baseline`. `table.attrs["source"]` holds what was said.
    """
    chosen, photos = _chosen(photos, recipe)
    chosen, reasons = _changed(chosen, None, changes)
    return _understood(photos, chosen, reasons, show or Terminal())


def parted(
    photos: str | Path | pd.DataFrame | None,
    recipe: str | Path | Recipe,
    folder: Path,
    show: Show,
    **changes: Any,
) -> tuple[Recipe, pd.DataFrame, pd.DataFrame]:
    """The recipe, the photo table that `make_baseline` trains with, every photo in its split, and what it leaves out.

    What the audit found is written into the folder. A recipe whose `split_file` holds `split_csv` of the table gives
    the same splits again, without an audit.
    """
    chosen, table = understand(photos, recipe, show=show, **changes)
    return _parted(table, chosen, folder, show, {})


def asked_for(recipe: Recipe, table: pd.DataFrame) -> dict[str, Any]:
    """What a run was asked for: a recipe as `understand` gives it, and the sha256 of paths, labels, splits and groups.

    The manifest keeps it, so that another run can tell whether it would be the same one.
    """
    told = table[[column for column in ("path", "label", "split", "group") if column in table]]
    return {"recipe": recipe.as_dict(), "photos": hashlib.sha256(told.to_csv(index=False).encode()).hexdigest()}


def _understood(photos: Any, chosen: Recipe, reasons: dict[str, str], show: Show) -> tuple[Recipe, pd.DataFrame]:
    """The photo table, and the recipe with what follows from it."""
    from baseline.data.labels import has_many
    from baseline.data.sources.tables import Columns
    from baseline.data.split import settle_split
    from baseline.data.table import photo_table, understood

    columns = Columns(chosen.image_col, chosen.label_col, chosen.group_col, chosen.split_col, chosen.images)
    forms = {"label_from": chosen.label_from, "labels": chosen.labels, "positive": chosen.positive}
    table = photo_table(photos, columns=columns, **forms, show=show)
    for line in understood(table):
        show.say(line)
    way, reasons["split"] = settle_split(table, chosen)
    return chosen.changed(split=way, labels="many" if has_many(table["label"], chosen.labels) else "one"), table


def _audited(table: pd.DataFrame, chosen: Recipe, show: Show) -> tuple[pd.DataFrame, pd.DataFrame, Audit | None]:
    """The photos to go on with, those that cannot be read, and the audit, which is told."""
    from baseline.data.audit.findings import audit, readable

    if chosen.audit == "none":
        return *readable(table, show), None
    checked = audit(table, grouped="group" in chosen.split, show=show)
    for row in checked.findings.itertuples():
        show.say(f"audit: {row.finding}: {row.words}; {row.effect} ({row.answer})")
    return checked.usable, checked.unreadable, checked


def _parted(
    table: pd.DataFrame, chosen: Recipe, folder: Path, show: Show, reasons: dict[str, str]
) -> tuple[Recipe, pd.DataFrame, pd.DataFrame]:
    """The recipe, the photos with their splits, labels mended, and those that cannot be read.

    What the audit found, what a second model left out and the fixes go into the folder.
    """
    from baseline.data.label_fixes import mended, read_fixes
    from baseline.data.split import split
    from baseline.data.table import check_table
    from baseline.files import place
    from baseline.inference.filter import belonging

    fixes = None
    if chosen.fixes:
        chosen = chosen.changed(fixes=[str(place(file)) for file in chosen.fixes])
        fixes = read_fixes(chosen.fixes, table, chosen.labels)
    check_table(table, chosen.labels)
    table, unread, checked = _audited(table, chosen, show)
    if len(unread):
        check_table(table, chosen.labels)
    if chosen.keep_if:
        table, strangers = belonging(table, chosen, show)
        write(folder / "not_kept.csv", strangers.to_csv(index=False))
        reasons["keep_if"] = f"{len(strangers):,} photos were left out: not_kept.csv"
    table = _without_leaks(split(table, chosen), chosen, show)
    if fixes is not None:
        table, reasons["fixes"] = mended(table, fixes)
        show.say(f"fixes: {reasons['fixes']}")
        write(folder / "fixes.csv", fixes.to_csv(index=False))
    if checked is not None and len(checked.findings):
        write_audit(folder / "audit", checked)
    show.say(_described(table, chosen.labels))
    return chosen, table, unread


def _parts_otherwise(manifest: Path, chosen: Recipe, table: pd.DataFrame) -> bool:
    """Whether the photos of a run's manifest have other splits now, though the recipe leaves them as they were."""
    before = read_values(manifest)
    hashed = before["data"].get("sha256") if "recipe" in before and isinstance(before.get("data"), dict) else None
    if hashed is None or {key.partition(".")[0] for key in differing(before["recipe"], chosen.as_dict())} & PARTING:
        return False
    return bool(hashed != hashlib.sha256(split_csv(table).encode()).hexdigest())


def _without_leaks(table: pd.DataFrame, chosen: Recipe, show: Show) -> pd.DataFrame:
    """The table without photos that have a copy in a later split, or an error, where the recipe wants either."""
    from baseline.data.audit.findings import leaking

    if chosen.audit == "none" or (chosen.leaks == "keep" and chosen.audit != "strict"):
        return table
    leaks = leaking(table)
    if chosen.leaks == "drop":
        show.say(f"audit: {int(leaks.sum()):,} photos with a copy in a later split are dropped")
        return table[~leaks].reset_index(drop=True)
    if leaks.any():
        row = table[leaks].iloc[0]
        raise LeakError(
            f"{int(leaks.sum()):,} photos have a copy in a later split, first {row['path']} ({row['split']}). "
            "Give --leaks drop or --split random, or mend the photos."
        )
    return table


def _counts(table: pd.DataFrame) -> dict[str, int]:
    """Photos by split."""
    return {str(name): int(count) for name, count in table["split"].value_counts().items()}


def _described(table: pd.DataFrame, labels: str) -> str:
    from baseline.data.labels import classes_in

    counts = _counts(table)
    by_split = ", ".join(f"{counts[name]:,} {name}" for name in ("train", "valid", "test") if name in counts)
    return f"photos: {len(table):,} of {len(classes_in(table, labels))} classes; {by_split}"
