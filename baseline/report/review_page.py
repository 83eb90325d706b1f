"""Table of issues -> a page to decide on them, photo by photo. Knows HTML; judges nothing.

The page holds its photos, styles and script itself and asks the browser (by its content security policy) to load
nothing else. What a person decides stays in that browser's storage, where it allows that, and leaves the page as the
download `fixes.csv`.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pandas as pd

from baseline import __version__
from baseline.files import write
from baseline.progress import Show
from baseline.report.figures import Photos
from baseline.report.html import rendered

__all__ = ["write_gallery"]


SIDE = 224
"""Pixels of a photo's longer side in the page."""


def write_gallery(target: Path, issues: pd.DataFrame, title: str, most: int = 500, show: Show | None = None) -> Path:
    """Writes the page of suspected labels and of photos unlike all others.

    Args:
        issues: of `baseline.label_issues`, the most suspicious first.
        most: photos shown of each kind.

    Raises:
        OutputError: if it cannot be written.

    >>> write_gallery(Path("clean.html"), found.issues, "photos")                  # doctest: +SKIP
    PosixPath('clean.html')
    """
    show = show or Show()
    labels = issues["is_label_issue"] | (issues["conflict"] != "")
    kinds = {"labels": issues[labels], "outliers": issues[issues["is_outlier_issue"] & ~labels]}
    kinds["outliers"] = kinds["outliers"].sort_values("outlier_score", kind="stable")
    photos, label_of = Photos(SIDE), issues.set_index("path")["given_label"]
    cards: dict[str, list[dict[Any, Any]]] = {}
    with show.bar("writing the page", sum(len(rows.head(most)) for rows in kinds.values()), "photos") as bar:
        for kind, rows in kinds.items():
            cards[kind] = []
            for row in rows.head(most).to_dict("records"):
                copy = {"copy_label": label_of.get(row["conflict"], "")}
                cards[kind].append({**row, **copy, "image": photos.get(row["path"])})
                bar.step()
    page = {
        "title": title,
        "version": __version__,
        "cards": cards,
        "counts": {kind: len(rows) for kind, rows in kinds.items()},
        "judged": len(issues),
        "suspected": int(issues["is_label_issue"].sum()),
        "conflicts": int((issues["conflict"] != "").sum()),
        "classes": sorted(issues["given_label"].unique()),
        "missing": photos.missing,
        "key": hashlib.sha256(issues.to_csv(index=False).encode()).hexdigest()[:16],
    }
    write(target, rendered("clean", page))
    return target
