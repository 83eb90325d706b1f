"""Compares pointwise convolutions in float32 and in bfloat16, as matrix products, in a training step on a CPU.

    OMP_NUM_THREADS=1 python benchmarks/pointwise.py --sizes 80,128,160

The step is that of the last 55% of EfficientNet-Lite0's layer groups, without the optimizer, with batches of 32 and the
CPU speedups of the package; both variants alternate. Weights stay in float32 and are cast in every step. Prints
milliseconds of CPU time per image, the fastest of the rounds.
"""

from __future__ import annotations

import time
from contextlib import nullcontext

import torch
import torch.nn.functional as F
import typer
from torch import nn

from baseline.system import bfloat16_instructions
from baseline.vision.cpu_speedups import optimize_for_cpu
from baseline.vision.layers import find_layers
from baseline.vision.network import build_network
from baseline.vision.pointwise import bfloat16_pointwise

BATCH, ROUNDS, STEPS = 32, 4, 2


def frozen_and_trained(arch: str) -> tuple[nn.Sequential, nn.Sequential]:
    """Return the network in two parts, of which quick's last stage trains the second; ten classes, random weights."""
    torch.manual_seed(0)
    model, splitter = build_network(arch, 10, None)
    layers = find_layers(model.to(memory_format=torch.channels_last).eval())
    groups = splitter(model)
    trained = {id(p) for group in groups[len(groups) - round(0.55 * len(groups)) :] for p in group}
    cut = next(n for n, layer in enumerate(layers) if any(id(p) in trained for p in layer.parameters()))
    return nn.Sequential(*layers[:cut]), nn.Sequential(*layers[cut:])


def main(sizes: str = "80,128,160", arch: str = "tf_efficientnet_lite0") -> None:
    """Measure all sizes."""
    frozen, network = frozen_and_trained(arch)
    print(f"{', '.join(bfloat16_instructions()) or 'no instructions for bfloat16'}; {torch.get_num_threads()} threads")
    for size in map(int, sizes.split(",")):
        with torch.no_grad():
            images = frozen(torch.randn(BATCH, 3, size, size).contiguous(memory_format=torch.channels_last))
        labels, spent = torch.randint(10, (BATCH,)), {"float32": [0.0], "bfloat16": [0.0]}
        for name in list(spent) * ROUNDS:
            precision = bfloat16_pointwise(network) if name == "bfloat16" else nullcontext()
            with precision, optimize_for_cpu(network, images):
                F.cross_entropy(network(images), labels).backward()
                start = time.process_time()
                for _ in range(STEPS):
                    F.cross_entropy(network(images), labels).backward()
            spent[name].append((time.process_time() - start) / STEPS / BATCH * 1e3)
        best = {name: min(values[1:]) for name, values in spent.items()}
        print(f"{size} px: " + ", ".join(f"{name} {value:.2f} ms" for name, value in best.items()), flush=True)


if __name__ == "__main__":
    typer.run(main)
