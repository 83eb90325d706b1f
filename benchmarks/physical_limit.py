"""Compares a training step on a CPU with the least time that the CPU's arithmetic and memory allow.

    OMP_NUM_THREADS=1 python benchmarks/physical_limit.py --sizes 80,128,160

The step is that of `benchmarks/pointwise.py`: the last 55% of EfficientNet-Lite0's layer groups, batches of 32, without
the optimizer. The script first measures the rate of large matrix products, in float32 and in bfloat16, and the rate of
copying memory, for several sizes, because smaller tensors stay in the caches. The limit is a sum over the convolutions
and linear layers. Each adds the longer of two times: that of its operations at the rate of matrix products, and that of
reading and writing each of its tensors once. BatchNorm and activations cost nothing, and the two products of the
backward pass share what they read. In the bfloat16 variant, only pointwise convolutions use bfloat16, and tensors stay
in float32.

Prints milliseconds per image of the step in plain torch, with the CPU speedups of the package in float32, and with
pointwise convolutions in bfloat16, and the limit as a percentage of each: the fastest of alternating rounds, CPU time
for one thread and wall time for several. The last line for each size lists the operations that take most of the float32
step, by torch's profiler.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
import typer
from pointwise import BATCH, ROUNDS, STEPS, frozen_and_trained
from torch import nn

from baseline.system import bfloat16_instructions
from baseline.vision.cpu_speedups import optimize_for_cpu
from baseline.vision.pointwise import bfloat16_pointwise

MEGABYTES = (1, 4, 16, 64, 256)
FLOAT_BYTES = 4


def best_seconds(function: Callable[[], Any], repeats: int) -> float:
    """Return the shortest time of a call: CPU time for one thread, wall time for several."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    seconds = []
    for _ in range(repeats):
        start = clock()
        function()
        seconds.append(clock() - start)
    return min(seconds)


def product_rate(kind: torch.dtype, side: int = 2048) -> float:
    """Return operations per second of a product of square matrices; a multiplication and an addition are two."""
    a, b = torch.rand(side, side).to(kind), torch.rand(side, side).to(kind)
    return 2 * side**3 / best_seconds(lambda: a @ b, 6)


def copy_rates() -> dict[int, float]:
    """Return bytes read and written per second when tensors of these sizes, in bytes, are copied."""
    rates = {}
    for size in (megabytes << 20 for megabytes in MEGABYTES):
        source, target = torch.zeros(size // FLOAT_BYTES), torch.zeros(size // FLOAT_BYTES)
        copies = max(1, (64 << 20) // size)

        def copy(source: torch.Tensor = source, target: torch.Tensor = target, copies: int = copies) -> None:
            for _ in range(copies):
                target.copy_(source)

        rates[size] = 2 * size * copies / best_seconds(copy, 8)
    return rates


def step_limit(network: nn.Module, images: torch.Tensor, products: dict[torch.dtype, float], copies: dict[int, float],
               bfloat16: bool) -> dict[str, float]:  # fmt: skip
    """Return the least seconds of a step for each kind of layer."""
    seconds = {"pointwise": 0.0, "depthwise": 0.0, "other": 0.0}
    first = True

    def add(layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        nonlocal first
        weights, read, written = layer.weight.numel(), inputs[0].numel(), output.numel()
        is_conv = isinstance(layer, nn.Conv2d)
        kind = (
            "depthwise" if is_conv and layer.groups > 1 else "pointwise" if layer.weight[0, 0].numel() == 1 else "other"
        )
        operations = 2 * written * weights // layer.weight.shape[0]
        rate = products[torch.bfloat16 if bfloat16 and kind == "pointwise" and is_conv else torch.float32]
        size = min(copies, key=lambda size: abs(size - FLOAT_BYTES * max(read, written)))
        forward = read + written + weights
        backward = read + written + weights if first else 2 * read + written + 2 * weights
        for count, numbers in ((1, forward), (1 if first else 2, backward)):
            seconds[kind] += max(count * operations / rate, FLOAT_BYTES * numbers / copies[size])
        first = False

    with ExitStack() as stack, torch.no_grad():
        for layer in network.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                stack.callback(layer.register_forward_hook(add).remove)
        network(images)
    return seconds


def measure(network: nn.Module, images: torch.Tensor) -> dict[str, float]:
    """Return the seconds of a step of each variant."""
    labels = torch.randint(10, (len(images),))
    contexts: dict[str, Callable[[], AbstractContextManager[Any]]] = {
        "torch": nullcontext, "float32": nullcontext, "bfloat16": lambda: bfloat16_pointwise(network)
    }  # fmt: skip
    seconds: dict[str, list[float]] = {name: [] for name in contexts}

    def steps() -> None:
        for _ in range(STEPS):
            F.cross_entropy(network(images), labels).backward()

    for name in list(contexts) * ROUNDS:
        with contexts[name](), nullcontext() if name == "torch" else optimize_for_cpu(network, images):
            steps()
            seconds[name].append(best_seconds(steps, 1) / STEPS)
    return {name: min(values) for name, values in seconds.items()}


def profile_step(network: nn.Module, images: torch.Tensor, steps: int = 3) -> list[tuple[str, float]]:
    """Return the share of each operation in a float32 step with the CPU speedups, the longest first."""
    labels = torch.randint(10, (len(images),))
    with optimize_for_cpu(network, images):
        F.cross_entropy(network(images), labels).backward()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
            for _ in range(steps):
                F.cross_entropy(network(images), labels).backward()
    seconds = {event.key: event.self_cpu_time_total for event in profiler.key_averages()}
    total = sum(seconds.values())
    return sorted(((name, value / total) for name, value in seconds.items()), key=lambda part: -part[1])


def main(sizes: str = "80,128,160", arch: str = "tf_efficientnet_lite0") -> None:
    """Measure the rates, then all sizes."""
    frozen, network = frozen_and_trained(arch)
    products, copies = {kind: product_rate(kind) for kind in (torch.float32, torch.bfloat16)}, copy_rates()
    print(f"{', '.join(bfloat16_instructions()) or 'no instructions for bfloat16'}; {torch.get_num_threads()} threads")
    print("products: " + ", ".join(f"{str(kind)[6:]} {rate / 1e9:.0f} GFLOP/s" for kind, rate in products.items()))
    print("copies: " + ", ".join(f"{size >> 20} MB {rate / 1e9:.1f} GB/s" for size, rate in copies.items()))
    for size in map(int, sizes.split(",")):
        with torch.no_grad():
            images = frozen(torch.randn(BATCH, 3, size, size).contiguous(memory_format=torch.channels_last))
        limits = {half: step_limit(network, images, products, copies, half) for half in (False, True)}
        for half, parts in limits.items():
            name, total = "bfloat16" if half else "float32", 1e3 * sum(parts.values()) / BATCH
            kinds = ", ".join(f"{kind} {1e3 * value / BATCH:.2f}" for kind, value in parts.items())
            print(f"{size} px, limit in {name}: {total:.2f} ms, {kinds}")
        for name, seconds in measure(network, images).items():
            share = sum(limits[name == "bfloat16"].values()) / seconds
            print(f"{size} px, {name}: {1e3 * seconds / BATCH:.2f} ms, the limit is {share:.0%} of it", flush=True)
        parts = ", ".join(f"{name} {share:.1%}" for name, share in profile_step(network, images)[:9])
        print(f"{size} px, float32: {parts}", flush=True)


if __name__ == "__main__":
    typer.run(main)
