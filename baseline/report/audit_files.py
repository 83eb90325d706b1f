"""Write the results of an audit as files: findings, pairs, unreadable images and pictures of the pairs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from baseline.files import to_csv, to_json, write_atomic

if TYPE_CHECKING:
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
    from baseline.report import figures

    files: dict[str, str | bytes] = {"findings.json": to_json({"findings": audit.findings.to_dict("records")})}
    if len(audit.pairs):
        files["pairs.csv"] = to_csv(audit.pairs)
    if len(audit.unreadable):
        files["unreadable.csv"] = to_csv(audit.unreadable)
    for name, pairs in audit.pairs_to_review().items():
        files[f"{name}.png"] = figures.png(figures.pairs_figure(pairs, name))
    for name, content in files.items():
        write_atomic(folder / name, content)
    return [folder / name for name in files]
