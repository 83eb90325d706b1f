"""Measures forward images/s of networks on this CPU in float32 and bfloat16: the best of five passes of 32 images.

python benchmarks/formats.py --threads 1
"""

from __future__ import annotations

import math
import time
from typing import Annotated

import torch
import typer

from baseline.system import bfloat16_instructions
from baseline.vision.cpu_speedups import optimize_for_cpu
from baseline.vision.learner import mixed_precision
from baseline.vision.network import build_network

ARCHS = "tf_efficientnet_lite0,efficientnet_b0,mobilenet_v2,squeezenet1_1,resnet18,resnet50,densenet121,convnext_tiny"


@torch.no_grad()
def rates(arch: str, size: int) -> dict[str, float]:
    backbone = build_network(arch, 2, None)[0][0].eval().to(memory_format=torch.channels_last)
    images = torch.rand(32, 3, size, size).contiguous(memory_format=torch.channels_last)
    seconds: dict[str, float] = {}
    with optimize_for_cpu(backbone, images, trainable=False):
        for turn in range(6):
            for name in ("float32", "bfloat16"):
                start = time.perf_counter()
                with mixed_precision(name, "cpu"):
                    backbone(images)
                if turn:  # the first also sets up kernels and memory
                    seconds[name] = min(seconds.get(name, math.inf), time.perf_counter() - start)
    return {name: len(images) / value for name, value in seconds.items()}


def main(
    archs: Annotated[str, typer.Option(help="Separated by commas.")] = ARCHS,
    sizes: Annotated[str, typer.Option(help="Pixels, separated by commas.")] = "48,96,128,224",
    threads: int = 1,
) -> None:
    """Print a line for each network and size."""
    torch.set_num_threads(threads)
    print(f"{' and '.join(bfloat16_instructions()) or 'no bfloat16 instructions'}, {threads} threads")
    for arch in archs.split(","):
        for size in map(int, sizes.split(",")):
            speed = rates(arch, size)
            ratio = speed["bfloat16"] / speed["float32"]
            print(f"{arch:24}{size:4} px {speed['float32']:8.0f} {speed['bfloat16']:8.0f} {ratio:.2f}", flush=True)


if __name__ == "__main__":
    typer.run(main)
