"""Measures milliseconds per image of a model in torch, ONNX and 8-bit ONNX on this CPU; medians of alternating runs.

python benchmarks/exported.py runs/mine IMAGES
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import onnxruntime
import torch

import baseline
from baseline.data.image import load_square
from baseline.data.sources.image_list import list_images
from baseline.deploy.export_module import ExportModule

TURNS = 15


def main(run: str, images: str) -> None:
    model = baseline.load(run)
    paths = list(list_images([images])[0])
    squares = np.stack([load_square(path, model.decoded_size, model.config["resize"]) for path in paths[:32]])
    module = ExportModule(model.network, model.config, model.decoded_size, (), any_size=False).to(
        memory_format=torch.channels_last
    )
    runs: dict[str, Callable[[np.ndarray], object]] = {"torch": lambda images: module(torch.from_numpy(images))}
    with tempfile.TemporaryDirectory() as work, torch.inference_mode():
        for name, int8 in (("onnx", False), ("onnx int8", True)):
            result = baseline.export(
                run, "onnx", Path(work) / f"{name}.onnx", images=images, size="fixed", tta=False, int8=int8
            )
            print(f"{name}: {result}")
            session = onnxruntime.InferenceSession(result.path)
            runs[name] = lambda images, session=session: session.run(None, {"images": images})
        for batch in (1, 32):
            seconds: dict[str, list[float]] = {name: [] for name in runs}
            for turn in range(TURNS + 3):
                for name, call in runs.items():
                    start = time.perf_counter()
                    call(squares[:batch])
                    if turn >= 3:
                        seconds[name].append((time.perf_counter() - start) / batch)
            print(
                f"batches of {batch}: " + ", ".join(f"{name} {1000 * median(s):.1f} ms" for name, s in seconds.items())
            )


if __name__ == "__main__":
    main(*sys.argv[1:])
