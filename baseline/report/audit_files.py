"""TODO."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from baseline.files import to_json, write_atomic

if TYPE_CHECKING:
    from baseline.data.audit.findings import Audit

__all__ = ["write_audit"]


def write_audit(folder: Path, checked: Audit) -> list[Path]:
    """Writes `findings.json`, `pairs.csv`, `unreadable.csv` and pictures of pairs into the folder; says which."""
    from baseline.report import figures

    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, str | bytes] = {"findings.json": to_json({"findings": checked.findings.to_dict("records")})}
    if len(checked.pairs):
        files["pairs.csv"] = checked.pairs.to_csv(index=False)
    if len(checked.unreadable):
        files["unreadable.csv"] = checked.unreadable.to_csv(index=False)
    for name, pairs in checked.pairs_to_review().items():
        files[f"{name}.png"] = figures.png(figures.pairs_figure(pairs, name))
    for name, content in files.items():
        write_atomic(folder / name, content)
    return [folder / name for name in files]
