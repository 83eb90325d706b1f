"""Table of issues -> a page to decide on them, image by image. Knows HTML; judges nothing.

The page holds its images, styles and script itself and asks the browser (by its content security policy) to load
nothing else. What a person decides stays in that browser's storage, where it allows that, and leaves the page as the
download `fixes.csv`.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pandas as pd

from baseline import __version__
from baseline.files import write_atomic
from baseline.progress import Progress
from baseline.report.figures import ThumbnailCache
from baseline.report.html import render

__all__ = ["write_review_page"]


IMAGE_SIDE = 224
"""Pixels of an image's longer side in the page."""


def write_review_page(
    target: Path, issues: pd.DataFrame, title: str, most: int = 500, progress: Progress | None = None
) -> Path:
    """Writes the page of suspected labels and of images unlike all others.

    Args:
        issues: of `baseline.find_label_issues`, the most suspicious first.
        most: images shown of each kind.

    Raises:
        OutputError: if it cannot be written.

    >>> write_review_page(Path("clean.html"), found.issues, "images")                  # doctest: +SKIP
    PosixPath('clean.html')
    """
    progress = progress or Progress()
    labels = issues["is_label_issue"] | (issues["conflict"] != "")
    kinds = {"labels": issues[labels], "outliers": issues[issues["is_outlier_issue"] & ~labels]}
    kinds["outliers"] = kinds["outliers"].sort_values("outlier_score", kind="stable")
    images, label_of = ThumbnailCache(IMAGE_SIDE), issues.set_index("path")["given_label"]
    cards: dict[str, list[dict[Any, Any]]] = {}
    with progress.bar("writing the page", sum(len(rows.head(most)) for rows in kinds.values()), "images") as bar:
        for kind, rows in kinds.items():
            cards[kind] = []
            for row in rows.head(most).to_dict("records"):
                copy = {"copy_label": label_of.get(row["conflict"], "")}
                cards[kind].append({**row, **copy, "image": images.get(row["path"])})
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
        "missing": images.missing,
        "key": hashlib.sha256(issues.to_csv(index=False).encode()).hexdigest()[:16],
    }
    write_atomic(target, render("clean", page))
    return target
