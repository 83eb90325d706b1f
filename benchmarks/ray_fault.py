"""Compares predictions of Ray workers, one of which is killed during the job, with those of one process.

    OMP_NUM_THREADS=1 python benchmarks/ray_fault.py runs/mine IMAGES --images 60000 --workers 2 --out ray_fault/

Both files stay in the folder, and a complete file is not predicted again.
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
from predicting import list_images

from baseline import ConsoleProgress, load, write_predictions
from baseline.inference.output import PredictOptions


def find_worker() -> int:
    """Return the process of a busy worker on this machine, or 0."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cmdline").read_bytes().startswith(b"ray::run_job"):
                return int(process.name)
        except OSError:  # the process has ended
            continue
    return 0


def kill_one(shards: Path, after: int) -> None:
    """Kill a worker once this many shards exist."""
    names: set[str] = set()
    while len(names) < after or not (process := find_worker()):
        names |= {path.name for path in shards.glob("[0-9]*")}
        time.sleep(0.002)
    os.kill(process, signal.SIGKILL)
    print(f"killed process {process} after {len(names)} shards", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("images_dir", metavar="IMAGES")
    parser.add_argument("--images", type=int, default=6000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--kill-after", type=int, default=5, metavar="SHARDS")
    parser.add_argument("--tta", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("ray_fault"))
    args = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    model, paths = load(args.model), list_images(args.images_dir, args.images)
    options, progress = PredictOptions(tta=args.tta, every=True), ConsoleProgress()
    args.out.mkdir(parents=True, exist_ok=True)
    local, remote = args.out / "local.csv", args.out / "remote.csv"
    stats = write_predictions(model, paths, local, options, resume=local.exists())
    print(f"one process: {stats}", flush=True)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init("local", num_cpus=args.workers, include_dashboard=False, log_to_driver=False)
    threading.Thread(
        target=kill_one, args=(remote.with_name("remote.csv.shards"), args.kill_after), daemon=True
    ).start()
    stats = write_predictions(model, paths, remote, options, resume=remote.exists(), executor="ray", progress=progress)
    print(f"{args.workers} workers: {stats}", flush=True)
    identical = local.read_bytes() == remote.read_bytes()
    print(f"{len(paths):,} rows, identical: {identical}")
    raise SystemExit(not identical)


if __name__ == "__main__":
    main()
