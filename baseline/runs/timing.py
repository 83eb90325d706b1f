"""Seconds by part of a run: measuring them, and what they say about the bottleneck."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from baseline.recipe.schema import Recipe

__all__ = ["RunTimer", "bottleneck", "time_by_part"]


def time_by_part(seconds: Mapping[str, float], stages: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the seconds of a run by part, longest first.

    Args:
        seconds: by part of the run; "training" is divided further.
        stages: with their `features_seconds`, `lr_find_seconds` and `laps`; see `baseline.training.state.History`.
    """
    times = {name: value for name, value in seconds.items() if name != "training"}
    times["outputs of frozen layers"] = sum(stage.get("features_seconds", 0.0) for stage in stages)
    times["searching rates"] = sum(stage.get("lr_find_seconds", 0.0) for stage in stages)
    for name in ("loading", "forward", "backward", "step", "validation"):
        times[name] = sum(stage.get("laps", {}).get(name, 0.0) for stage in stages)
    return {name: round(value, 2) for name, value in sorted(times.items(), key=lambda item: -item[1])}


SHORT_RUN = 60
"""Seconds of a run below which it needs no advice on how to make it faster."""


PART_NAMES = {
    "backward": "the backward pass", "forward": "the forward pass", "step": "the optimizer step",
    "loading": "loading batches", "searching rates": "the learning-rate search", "decoding": "decoding images",
    "data": "reading the data", "audit": "the audit", "weights": "loading weights", "logs": "the loggers",
    "estimate": "the time estimate", "reference": "what the result is compared with",
}  # fmt: skip


def bottleneck(times: Mapping[str, float], recipe: Recipe, device: str) -> str:
    """Return which part took most of the time, and what makes it faster."""
    part = next(iter(times))
    smaller = "a smaller --image-size" + (", fewer epochs, or a GPU" if device == "cpu" else " or fewer epochs")
    cached = recipe.options.cache_gb > 0
    remedies = {
        **dict.fromkeys(("forward", "backward", "step", "searching rates"), smaller),
        "data": "it is cached now" if recipe.data.dataset else "a folder on a faster disk",
        "audit": "its results are cached now; --no-audit skips it",
        "decoding": "the images are cached now" if cached else "--cache-gb keeps decoded images",
        "outputs of frozen layers": f"{smaller}; they are cached now"
        if cached
        else "--cache-gb keeps them for later runs",
        "logs": "fewer loggers",
        "loading": "--workers reads images in the background; --cache-gb keeps them decoded",
        "evaluation": "fewer TTA views, or " + smaller,
        "validation": "a smaller valid_fraction, or " + smaller,
    }
    total, remedy = sum(times.values()), remedies.get(part)
    advice = f"; faster: {remedy}" if remedy and total >= SHORT_RUN else ""
    return f"most of the time went into {PART_NAMES.get(part, part)} ({times[part] / max(total, 1e-9):.0%}){advice}"


class RunTimer:
    """Measures the seconds of each part of a run, in order."""

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.seconds: dict[str, float] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Measure the seconds spent inside."""
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 2)
