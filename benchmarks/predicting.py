"""How fast `baseline predict` is beside the bare model, and what bounds it; and whether its memory stays flat.

    python benchmarks/predicting.py rate runs/mine IMAGES --images 6000 --turns 3
    python benchmarks/predicting.py memory runs/mine IMAGES --images 60000

`rate` takes turns: the bare network on one batch that lies ready in memory, with the same views, batch size and number
format, then `write_predictions` over files on disk, then the files alone. `memory` samples the resident memory of
`baseline predict` while it works.
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

import numpy as np
import torch

from baseline import load, write_predictions
from baseline.data.sources.folders import images_below
from baseline.evaluation.predict import predict_probabilities
from baseline.inference.model import Model
from baseline.inference.output import PredictOptions
from baseline.vision.cpu_speedups import optimize_for_cpu
from baseline.vision.learner import mixed_precision


def chosen(folder: str, count: int) -> list[str]:
    """So many images below a folder, drawn without regard to their place on disk, again from the first if too few."""
    found = list(images_below(Path(folder)))
    random.Random(0).shuffle(found)
    return list(islice(cycle(found), count))


def bare(model: Model, batch: torch.Tensor, count: int, views: tuple[str, ...], precision: str) -> float:
    """Images/s of the network alone."""
    numbers = mixed_precision(precision, "cpu")
    with optimize_for_cpu(model.network, batch, trainable=False):
        predict_probabilities(model.network, batch, views, many=model.multilabel, numbers=numbers)
        began = time.perf_counter()
        for _ in range(count // len(batch)):
            predict_probabilities(model.network, batch, views, many=model.multilabel, numbers=numbers)
        return count // len(batch) * len(batch) / (time.perf_counter() - began)


def rate(given: argparse.Namespace) -> None:
    model, paths = load(given.model), chosen(given.images_in, given.images)
    views = () if given.no_tta else tuple(model.config["tta"])
    wanted = PredictOptions(tta=not given.no_tta, precision=given.precision)
    squares = [model._square(path) for path in paths[:64]]
    batch = model._inputs([each for each in squares if isinstance(each, np.ndarray)])
    found: dict[str, list[float]] = {"bare": [], "predict": [], "share": [], "reading, one thread": []}
    for _ in range(given.turns):
        before = bare(model, batch, given.images // 4, views, given.precision)
        with tempfile.TemporaryDirectory() as work:
            done = write_predictions(model, paths, Path(work) / "out.csv", wanted)
        after = bare(model, batch, given.images // 4, views, given.precision)
        began = time.perf_counter()
        for path in paths[:500]:
            model._square(path)
        found["reading, one thread"].append(500 / (time.perf_counter() - began))
        found["bare"].append((before + after) / 2)
        found["predict"].append(done.images / done.seconds)
        found["share"].append(found["predict"][-1] / found["bare"][-1])
        print({name: round(values[-1], 3) for name, values in found.items()}, flush=True)
    medians = ", ".join(f"{name} {statistics.median(values):,.3f}" for name, values in found.items())
    print(f"{model.config['image_size']} px, views {views}, {torch.get_num_threads()} threads; medians: {medians}")


def memory(given: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as work:
        listed, out = Path(work) / "paths.txt", Path(work) / "out.csv"
        listed.write_text("".join(f"{path}\n" for path in chosen(given.images_in, given.images)))
        words = ["predict", given.model, "-", "--out", str(out), "--precision", given.precision]
        command = [sys.executable, "-m", "baseline", *words, *(["--no-tta"] if given.no_tta else [])]
        began, shares = time.perf_counter(), [0.1, 0.25, 0.5, 0.75, 0.98]
        with listed.open() as file:
            job = subprocess.Popen(command, stdin=file)
        while job.poll() is None:
            rows = out.read_bytes().count(b"\n") if out.exists() else 0
            if shares and rows >= shares[0] * given.images:
                seen = Path(f"/proc/{job.pid}/status").read_text().split()
                resident, peak = (int(seen[seen.index(name) + 1]) // 1024 for name in ("VmRSS:", "VmHWM:"))
                at = time.perf_counter() - began
                print(f"{shares.pop(0):.0%}: {resident:,} MB resident, at most {peak:,}, after {at:.0f} s", flush=True)
            time.sleep(0.5)
        raise SystemExit(job.returncode)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["rate", "memory"])
    parser.add_argument("model")
    parser.add_argument("images_in", metavar="IMAGES")
    parser.add_argument("--images", type=int, default=6000)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--no-tta", action="store_true")
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16"])
    given = parser.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    {"rate": rate, "memory": memory}[given.what](given)


if __name__ == "__main__":
    main()
