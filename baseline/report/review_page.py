"""Write the page on which a person reviews suspected labels image by image.

The page contains its images, styles and script, and its content security policy tells the browser to load nothing else.
Decisions stay in the browser's storage, where it allows that, and leave the page as the download `fixes.csv`.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pandas as pd

from baseline import __version__
from baseline.data.labels import order_classes
from baseline.files import write_atomic
from baseline.progress import Progress
from baseline.report.figures import ThumbnailCache
from baseline.report.html import render

__all__ = ["write_review_page"]


IMAGE_SIDE = 224
"""Longer side of an image in the page, in pixels."""


def write_review_page(
    target: Path, issues: pd.DataFrame, title: str, max_images: int = 500, progress: Progress | None = None
) -> Path:
    """Write the page of suspected labels and outliers, and return its path.

    Args:
        issues: table from `baseline.evaluation.label_errors.find_label_issues`, the most suspicious image first.
        title: heading of the page.
        max_images: maximum number of images shown of each kind.

    Raises:
        OutputError: if the page cannot be written.

    >>> write_review_page(Path("clean.html"), review.issues, "images")                 # doctest: +SKIP
    PosixPath('clean.html')
    """
    progress = progress or Progress()
    suspect = issues["is_label_issue"] | (issues["conflict"] != "")
    kinds = {"labels": issues[suspect], "outliers": issues[issues["is_outlier_issue"] & ~suspect]}
    kinds["outliers"] = kinds["outliers"].sort_values("outlier_score", kind="stable")
    images, label_of = ThumbnailCache(IMAGE_SIDE), issues.set_index("path")["given_label"]
    cards: dict[str, list[dict[Any, Any]]] = {}
    with progress.bar("writing the page", sum(len(rows.head(max_images)) for rows in kinds.values()), "images") as bar:
        for kind, rows in kinds.items():
            cards[kind] = []
            for row in rows.head(max_images).to_dict("records"):
                copy_label = label_of.get(row["conflict"], "")
                cards[kind].append({**row, "copy_label": copy_label, "image": images.get(row["path"])})
                bar.step()
    page = {
        "title": title,
        "version": __version__,
        "cards": cards,
        "counts": {kind: len(rows) for kind, rows in kinds.items()},
        "checked": len(issues),
        "suspected": int(issues["is_label_issue"].sum()),
        "conflicts": int((issues["conflict"] != "").sum()),
        "classes": order_classes(issues["given_label"].unique()),
        "missing": images.missing,
        "key": hashlib.sha256(issues.to_csv(index=False).encode()).hexdigest()[:16],
    }
    write_atomic(target, render("clean", page))
    return target
