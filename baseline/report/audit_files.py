"""Write the results of an audit as files: findings, pairs, unreadable images and pictures of the pairs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from baseline.files import to_csv, to_json, write_atomic

if TYPE_CHECKING:
    import pandas as pd

    from baseline.data.audit.findings import Audit

__all__ = ["FindingRecord", "write_audit"]


class FindingRecord(TypedDict):
    """A finding of the audit, as in `findings.json`."""

    finding: str
    """Its kind, such as `leak`."""
    images: int
    """Number of images that it affects."""
    words: str
    effect: str
    """What it does to the metrics."""
    answer: str
    """What to do about it."""


def write_audit(folder: Path, audit: Audit) -> list[Path]:
    """Write `findings.json`, `pairs.csv`, `unreadable.csv` and pictures of pairs; return their paths."""
    files: dict[str, str | bytes] = {"findings.json": to_json({"findings": audit.findings.to_dict("records")})}
    if len(audit.pairs):
        files["pairs.csv"] = to_csv(audit.pairs)
    if len(audit.unreadable):
        files["unreadable.csv"] = to_csv(audit.unreadable)
    for name, pairs in audit.pairs_to_review().items():
        files[f"{name}.png"] = pairs_sheet(pairs, name.replace("_", " "))
    for name, content in files.items():
        write_atomic(folder / name, content)
    return [folder / name for name in files]


def pairs_sheet(pairs: pd.DataFrame, title: str, max_pairs: int = 18) -> bytes:
    """Return a PNG file of the first pairs side by side, each image with its name, label, split and kind of pair."""
    from baseline.report.figures import ThumbnailCache, image_sheet

    images, thumbnails = [], ThumbnailCache(160)
    for row in pairs.head(max_pairs).to_dict("records"):
        for path, prefix, kind in ((row["path"], "", row["kind"]), (row["other"], "other_", "")):
            caption = ", ".join(str(part) for part in (row[f"{prefix}label"], row[f"{prefix}split"], kind) if part)
            images.append((thumbnails.get(path), f"{Path(path).name}\n{caption}"))
    count = f"{len(pairs):,}" if len(pairs) <= max_pairs else f"the first {max_pairs} of {len(pairs):,}"
    return image_sheet(images, side=thumbnails.side, title=f"{title}: {count} pair{'' if len(pairs) == 1 else 's'}")
