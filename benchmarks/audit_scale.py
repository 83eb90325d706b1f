"""Measures time and memory of the audit per image, on images of 256 px, and per row, on generated rows.

    python benchmarks/audit_scale.py images 10000 FOLDER_OF_IMAGES
    python benchmarks/audit_scale.py rows 1000000

`images` writes that many JPEGs of 256 px (crops of the images in the folder) and audits them with an empty cache.
`rows` generates the audit's records of images, a hundredth of them duplicates, and runs the remaining steps: pairs,
findings, the split by groups. It reads no image.
"""

from __future__ import annotations

import os
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

import baseline
from baseline.data.audit import duplicates, scan
from baseline.data.audit import findings as audit_findings


def of_images(count: int, source: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.environ["BASELINE_HOME"] = f"{folder}/home"
        _write(count, source, Path(folder) / "images")
        table = baseline.image_table(Path(folder) / "images")
        start, before = time.perf_counter(), _peak()
        checked = baseline.audit(table)
        print(f"{count:,} images: {time.perf_counter() - start:.1f} s, {len(checked.pairs):,} pairs of duplicates")
        print(f"peak memory {_peak():.2f} GB, {_peak() - before:.2f} of it in the audit")


def _write(count: int, source: Path, folder: Path) -> None:
    rng = np.random.default_rng(0)
    paths = sorted(source.rglob("*.jpg"))
    for name in "ab":
        (folder / name).mkdir(parents=True)
    for number in range(count):
        image = Image.open(paths[number % len(paths)]).convert("RGB").resize((400, 400))
        left, top = rng.integers(0, 144, 2)
        image.crop((left, top, left + 256, top + 256)).save(folder / "ab"[number % 2] / f"{number:07}.jpg")


def of_rows(count: int) -> None:
    rng = np.random.default_rng(0)
    before = _peak()
    start = time.perf_counter()
    numbers = np.arange(count)
    table = pd.DataFrame(
        {
            "path": [f"/images/{number % 1000:03}/{number:07}.jpg" for number in numbers],
            "label": np.array([f"class {n}" for n in range(1000)], dtype=object)[numbers % 1000],
            "split": None,
            "group": np.array([f"g{n}" for n in range(50_000)], dtype=object)[rng.integers(0, 50_000, count)],
        }
    )
    records = scan.ScanResult.empty(count)
    records.columns |= {"mode": np.full(count, "RGB", object), "frames": np.ones(count, int)}
    records.columns |= dict.fromkeys(("width", "height"), np.full(count, 256))
    records.digest[:] = rng.integers(0, 2**63, count)
    records.hash[:] = rng.integers(0, 2**63, count)
    records.thumb[:] = rng.integers(0, 255, (count, 192), dtype=np.uint8)
    copies = rng.choice(count, count // 100, replace=False)
    records.hash[copies], records.thumb[copies] = records.hash[copies - 1], records.thumb[copies - 1]
    images = table.assign(**records.columns, duplicate_id=-1)
    pairs = duplicates.find_pairs(images, records)
    images["duplicate_id"] = duplicates.duplicate_ids(images, pairs)
    findings = list(audit_findings.collect_findings(images, pairs, grouped=False, value_range=()))
    print(f"{count:,} rows: {len(pairs):,} pairs, {len(findings)} findings, {time.perf_counter() - start:.1f} s")
    table_with_splits = baseline.split(images, baseline.Recipe().changed(split="group"))
    shares = table_with_splits["split"].value_counts(normalize=True).round(3).to_dict()
    print(f"split by group: {shares}, {time.perf_counter() - start:.1f} s in total")
    print(f"peak memory {_peak():.2f} GB, {_peak() - before:.2f} more than the imports")


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


if __name__ == "__main__":
    if sys.argv[1] == "images":
        of_images(int(sys.argv[2]), Path(sys.argv[3]))
    else:
        of_rows(int(sys.argv[2]))
