"""Measures which share of the CPU time of a run goes into telling replaced images apart, for caches and resuming.

python benchmarks/cache_keys.py images/       # prints a line of JSON for an empty cache, and one for a full one
"""

from __future__ import annotations

import cProfile
import json
import os
import pstats
import tempfile
import time
from pathlib import Path

import typer

import baseline

FUNCTIONS = ("file_identity", "_fingerprint_table")
"""Functions that examine the files of images; the profiler makes Python slower than it is."""


def main(images: Path, image_size: int = 64) -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.environ["BASELINE_HOME"] = f"{folder}/cache"
        for cache in ("empty", "full"):
            profile, start = cProfile.Profile(time.thread_time), time.process_time()
            profile.enable()
            result = baseline.make_baseline(
                images, out=f"{folder}/{cache}", preset="instant", image_size=image_size, progress=baseline.Progress()
            )
            profile.disable()
            seconds = time.process_time() - start
            times = dict.fromkeys(FUNCTIONS, 0.0)
            for (_, _, name), (_, _, _, cumulative, _) in pstats.Stats(profile).stats.items():  # type: ignore[attr-defined]
                if name in times:
                    times[name] += cumulative
            count = sum(result.manifest["data"]["images"].values())
            rounded = {name: round(value, 4) for name, value in times.items()}
            share = round(100 * sum(times.values()) / seconds, 3)
            print(
                json.dumps({"cache": cache, "images": count, "seconds": round(seconds, 1), **rounded, "percent": share})
            )


if __name__ == "__main__":
    typer.run(main)
