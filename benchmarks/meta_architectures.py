"""Builds every architecture of timm without values, and tries a pass of the first two of each family.

python benchmarks/meta_architectures.py          # prints a line of JSON for each that fails, and one with the totals
"""

from __future__ import annotations

from collections import Counter

import timm
import torch
import typer
from serving import print_json

from baseline.errors import first_line
from baseline.vision.network import build_network

PASSES = 2
"""Number of architectures of each family of which a pass is tried."""


def try_architecture(name: str, passes: Counter[str]) -> str:
    """Return the step at which an architecture fails, and why; empty if it does not."""
    step, family = "build", timm.model_entrypoint(name).__module__
    try:
        with torch.device("meta"):
            network = build_network(name, 3, None)[0].eval()
        if passes[family] < PASSES:
            passes[family] += 1
            step, size = "pass", timm.models.get_pretrained_cfg(name).input_size[-1]
            with torch.inference_mode():
                network(torch.zeros(1, 3, size, size, device="meta"))
    except Exception as error:  # as many types as there are architectures
        return f"{step}: {type(error).__name__}: {first_line(error)}"
    return ""


def main() -> None:
    passes: Counter[str] = Counter()
    names, failed = timm.list_models(), Counter[str]()
    for name in names:
        if reason := try_architecture(name, passes):
            failed[reason.partition(":")[0]] += 1
            print_json(architecture=name, reason=reason)
    print_json(architectures=len(names), passes=passes.total(), failed=failed)


if __name__ == "__main__":
    typer.run(main)
