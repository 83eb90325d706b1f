"""Compares training in one process and in several: accuracy and seconds, in alternating runs.

    python benchmarks/processes.py cifar10 --images-per-class 250 --times 3

All use the same CPU cores; one process uses them as threads. Other options are passed to `baseline run`.
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
    args, options = parser.parse_known_args()
    manifests_by_count: dict[int, list[dict]] = {1: [], args.processes: []}
    with tempfile.TemporaryDirectory() as folder:
        run(args.images, [*options, "--quiet"], 1, Path(folder) / "warm")  # fills the caches
        for turn in range(args.times):
            for processes, manifests in manifests_by_count.items():
                manifests.append(
                    run(args.images, [*options, "--quiet"], processes, Path(folder) / f"{processes}-{turn}")
                )
    for processes, manifests in manifests_by_count.items():
        for split, numbers in manifests[0]["metrics"].items():
            low, high = numbers["tta"]["interval"]
            print(f"{processes}: {split} {numbers['tta']['accuracy']:.2%} ({low:.2%} to {high:.2%})")
        print(f"{processes}: stages {', '.join(f'{seconds:.1f} s' for seconds in stages(manifests))}; "
              f"evaluation {statistics.median(m['seconds']['evaluation'] for m in manifests):.1f} s")  # fmt: skip
    single, several = (sum(stages(manifests)) for manifests in manifests_by_count.values())
    print(f"training takes {several / single:.2f} times as long in {args.processes} processes")


def stages(manifests: list[dict]) -> list[float]:
    """Median seconds of each stage without computing features, which are cached."""
    seconds_by_stage = zip(
        *([stage["seconds"] - stage["features_seconds"] for stage in m["stages"]] for m in manifests), strict=True
    )
    return [statistics.median(seconds) for seconds in seconds_by_stage]


def run(images: str, options: list[str], processes: int, out: Path) -> dict:
    command = [sys.executable, "-m", "baseline", "run", images, *options, "--out", str(out)]
    subprocess.run([*command, *(["--processes", str(processes)] if processes > 1 else [])], check=True,
                   stdout=subprocess.DEVNULL)  # fmt: skip
    return json.loads((out / "manifest.json").read_text())


if __name__ == "__main__":
    main()
