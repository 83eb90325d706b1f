"""Measures the speed of `baseline predict` relative to the bare model, and whether its memory stays constant.

    python benchmarks/predicting.py rate runs/mine IMAGES --images 6000 --turns 3
    python benchmarks/predicting.py memory runs/mine IMAGES --images 60000

`rate` alternates between the bare network on one batch in memory, with the same views, batch size and precision,
`write_predictions` on files on disk, and reading the files only. `memory` samples the resident memory of
`baseline predict` while it runs.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path

import torch

from baseline import load, write_predictions
from baseline.data.sources.folders import images_below
from baseline.evaluation.predict import predict_probabilities
from baseline.inference.model import Model
from baseline.inference.output import PredictOptions
from baseline.vision.cpu_speedups import optimize_for_cpu
from baseline.vision.learner import mixed_precision


def list_images(folder: str, count: int) -> list[str]:
    """Return `count` images below a folder in random order, repeated if there are too few."""
    paths = list(images_below(Path(folder)))
    random.Random(0).shuffle(paths)
    return list(islice(cycle(paths), count))


def bare(model: Model, batch: torch.Tensor, count: int, views: tuple[str, ...], precision: str) -> float:
    """Return images/s of the network alone."""
    autocast = mixed_precision(precision, "cpu")
    with optimize_for_cpu(model.network, batch, trainable=False):
        predict_probabilities(model.network, batch, views, many=model.multilabel, numbers=autocast)
        start = time.perf_counter()
        for _ in range(count // len(batch)):
            predict_probabilities(model.network, batch, views, many=model.multilabel, numbers=autocast)
        return count // len(batch) * len(batch) / (time.perf_counter() - start)


def rate(args: argparse.Namespace) -> None:
    model, paths = load(args.model), list_images(args.images_dir, args.images)
    views = () if args.no_tta else tuple(model.config["tta"])
    options = PredictOptions(tta=not args.no_tta, precision=args.precision)
    batch = model.inputs([model.load_square(path) for path in paths[:64]])
    rates: dict[str, list[float]] = {"bare": [], "predict": [], "share": [], "reading, one thread": []}
    for _ in range(args.turns):
        before = bare(model, batch, args.images // 4, views, args.precision)
        with tempfile.TemporaryDirectory() as work:
            stats = write_predictions(model, paths, Path(work) / "out.csv", options)
        after = bare(model, batch, args.images // 4, views, args.precision)
        start = time.perf_counter()
        for path in paths[:500]:
            model.load_square(path)
        rates["reading, one thread"].append(500 / (time.perf_counter() - start))
        rates["bare"].append((before + after) / 2)
        rates["predict"].append(stats.images / stats.seconds)
        rates["share"].append(rates["predict"][-1] / rates["bare"][-1])
        print({name: round(values[-1], 3) for name, values in rates.items()}, flush=True)
    medians = ", ".join(f"{name} {statistics.median(values):,.3f}" for name, values in rates.items())
    print(f"{model.config['image_size']} px, views {views}, {torch.get_num_threads()} threads; medians: {medians}")


def memory(args: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as work:
        list_file, out = Path(work) / "paths.txt", Path(work) / "out.csv"
        list_file.write_text("".join(f"{path}\n" for path in list_images(args.images_dir, args.images)))
        arguments = ["predict", args.model, "-", "--out", str(out), "--precision", args.precision]
        command = [sys.executable, "-m", "baseline", *arguments, *(["--no-tta"] if args.no_tta else [])]
        start, fractions = time.perf_counter(), [0.1, 0.25, 0.5, 0.75, 0.98]
        with list_file.open() as file:
            job = subprocess.Popen(command, stdin=file)
        while job.poll() is None:
            rows = out.read_bytes().count(b"\n") if out.exists() else 0
            if fractions and rows >= fractions[0] * args.images:
                status = Path(f"/proc/{job.pid}/status").read_text().split()
                resident, peak = (int(status[status.index(name) + 1]) // 1024 for name in ("VmRSS:", "VmHWM:"))
                seconds = time.perf_counter() - start
                print(
                    f"{fractions.pop(0):.0%}: {resident:,} MB resident, at most {peak:,}, after {seconds:.0f} s",
                    flush=True,
                )
            time.sleep(0.5)
        raise SystemExit(job.returncode)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("benchmark", choices=["rate", "memory"])
    parser.add_argument("model")
    parser.add_argument("images_dir", metavar="IMAGES")
    parser.add_argument("--images", type=int, default=6000)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--no-tta", action="store_true")
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16"])
    args = parser.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    {"rate": rate, "memory": memory}[args.benchmark](args)


if __name__ == "__main__":
    main()
