"""One process against several on the same images: accuracy, and seconds of training, alternating.

    python benchmarks/processes.py cifar10 --images-per-class 250 --times 3

All have the same processors; one process uses them as threads. What follows the images is handed to `baseline run`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--times", type=int, default=3)
    known, words = parser.parse_known_args()
    found: dict[int, list[dict]] = {1: [], known.processes: []}
    with tempfile.TemporaryDirectory() as folder:
        run(known.images, [*words, "--quiet"], 1, Path(folder) / "warm")  # fills the caches
        for turn in range(known.times):
            for processes, manifests in found.items():
                manifests.append(
                    run(known.images, [*words, "--quiet"], processes, Path(folder) / f"{processes}-{turn}")
                )
    for processes, manifests in found.items():
        for split, numbers in manifests[0]["metrics"].items():
            low, high = numbers["tta"]["interval"]
            print(f"{processes}: {split} {numbers['tta']['accuracy']:.2%} ({low:.2%} to {high:.2%})")
        print(f"{processes}: stages {', '.join(f'{seconds:.1f} s' for seconds in stages(manifests))}; "
              f"evaluation {statistics.median(each['seconds']['evaluation'] for each in manifests):.1f} s")  # fmt: skip
    one, many = (sum(stages(manifests)) for manifests in found.values())
    print(f"training takes {many / one:.2f} times as long in {known.processes} processes")


def stages(manifests: list[dict]) -> list[float]:
    """Median seconds of each stage without the pass through frozen layers, which the cache had."""
    each = zip(
        *([stage["seconds"] - stage["features_seconds"] for stage in m["stages"]] for m in manifests), strict=True
    )
    return [statistics.median(seconds) for seconds in each]


def run(images: str, words: list[str], processes: int, out: Path) -> dict:
    command = [sys.executable, "-m", "baseline", "run", images, *words, "--out", str(out)]
    subprocess.run([*command, *(["--processes", str(processes)] if processes > 1 else [])], check=True,
                   stdout=subprocess.DEVNULL)  # fmt: skip
    return json.loads((out / "manifest.json").read_text())


if __name__ == "__main__":
    main()
