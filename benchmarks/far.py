"""Whether predictions by Ray's workers, one of which is killed on the way, are those of one process; and their rate.

    OMP_NUM_THREADS=1 python benchmarks/far.py runs/mine IMAGES --images 60000 --workers 2 --out far/

Both files are kept in the folder, and a file that is there is not made again.
"""

from __future__ import annotations

import argparse
import os
import signal
import threading
import time
from pathlib import Path

import ray
import torch
from predicting import chosen

from baseline import ConsoleProgress, load, write_predictions
from baseline.inference.output import PredictOptions


def worker() -> int:
    """A process on this machine in which a worker does its work; 0 while there is none."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cmdline").read_bytes().startswith(b"ray::run_job"):
                return int(process.name)
        except OSError:  # it has just ended
            continue
    return 0


def kill_one(shards: Path, after: int) -> None:
    """Kills a worker when so many shards were made in turn or ahead of it."""
    seen: set[str] = set()
    while len(seen) < after or not (found := worker()):
        seen |= {path.name for path in shards.glob("[0-9]*")}
        time.sleep(0.002)
    os.kill(found, signal.SIGKILL)
    print(f"killed process {found} after {len(seen)} shards", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("images_in", metavar="IMAGES")
    parser.add_argument("--images", type=int, default=6000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--kill-after", type=int, default=5, metavar="SHARDS")
    parser.add_argument("--tta", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("far"))
    given = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    model, paths = load(given.model), chosen(given.images_in, given.images)
    wanted, show = PredictOptions(tta=given.tta, every=True), ConsoleProgress()
    given.out.mkdir(parents=True, exist_ok=True)
    alone, far = given.out / "alone.csv", given.out / "far.csv"
    done = write_predictions(model, paths, alone, wanted, resume=alone.exists())
    print(f"one process: {done}", flush=True)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init("local", num_cpus=given.workers, include_dashboard=False, log_to_driver=False)
    threading.Thread(target=kill_one, args=(far.with_name("far.csv.shards"), given.kill_after), daemon=True).start()
    done = write_predictions(model, paths, far, wanted, resume=far.exists(), executor="ray", progress=show)
    print(f"{given.workers} workers: {done}", flush=True)
    same = alone.read_bytes() == far.read_bytes()
    print(f"{len(paths):,} rows, the same to the last byte: {same}")
    raise SystemExit(not same)


if __name__ == "__main__":
    main()
