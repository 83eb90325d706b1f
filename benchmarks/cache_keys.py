"""Measures the share of the CPU time of a run that goes into the keys of caches, and into the hashes for resuming.

python benchmarks/cache_keys.py images/       # a line of JSON for an empty cache, and one for a full one (medians)
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from statistics import median
from typing import Any

import typer
from serving import print_json

import baseline
from baseline import files
from baseline.data.audit import scan
from baseline.training import checkpoint


class Stopwatch:
    """Adds up the CPU time of the calling thread in functions; a call within another is counted once."""

    def __init__(self) -> None:
        self.seconds, self.calls, self.depth = 0.0, 0, 0

    def measure(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def measured(*args: Any, **options: Any) -> Any:
            self.depth, self.calls, start = self.depth + 1, self.calls + 1, time.thread_time()
            try:
                return function(*args, **options)
            finally:
                self.depth -= 1
                self.seconds += 0 if self.depth else time.thread_time() - start

        return measured

    def replace(self, module: Any, name: str) -> None:
        """Measure a function in every module that has imported it."""
        function = getattr(module, name)
        measured = self.measure(function)
        for other in list(sys.modules.values()):
            if getattr(other, name, None) is function:
                setattr(other, name, measured)


def main(images: Path, image_size: int = 64, repeats: int = 3) -> None:
    parts = {"keys": Stopwatch(), "hashes": Stopwatch()}
    for module, name in ((files, "file_identities"), (files, "fingerprint_of"), (scan, "file_stamp")):
        parts["keys"].replace(module, name)
    parts["hashes"].replace(checkpoint, "_fingerprint_table")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["BASELINE_HOME"] = f"{folder}/cache"
        for cache, count in (("empty", 1), ("full", repeats)):
            shares: dict[str, list[float]] = {name: [] for name in parts}
            seconds = []
            for number in range(count):
                before = {name: stopwatch.seconds for name, stopwatch in parts.items()}
                start = time.process_time()
                baseline.make_baseline(
                    images, out=f"{folder}/{cache}{number}", preset="instant", image_size=image_size,
                    progress=baseline.Progress(),
                )  # fmt: skip
                seconds.append(time.process_time() - start)
                for name, stopwatch in parts.items():
                    shares[name].append(100 * (stopwatch.seconds - before[name]) / seconds[-1])
            print_json(
                cache=cache, seconds=median(seconds), **{f"percent_{name}": median(shares[name]) for name in parts}
            )


if __name__ == "__main__":
    typer.run(main)
