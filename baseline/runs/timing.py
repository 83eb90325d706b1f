"""Seconds by part -> where the time went, and what would help. Knows numbers; measures nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from baseline.recipe.schema import Recipe

__all__ = ["bottleneck", "time_by_part"]


def time_by_part(seconds: Mapping[str, float], stages: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Seconds of a run by what was done in them, most first.

    Args:
        seconds: by part of the run, of which "training" is told apart further.
        stages: with their `features_seconds`, `lr_find_seconds` and `laps`; see `baseline.training.History`.
    """
    found = {name: value for name, value in seconds.items() if name != "training"}
    found["outputs of frozen layers"] = sum(stage.get("features_seconds", 0.0) for stage in stages)
    found["searching rates"] = sum(stage.get("lr_find_seconds", 0.0) for stage in stages)
    for name in ("loading", "forward", "backward", "step", "validation"):
        found[name] = sum(stage.get("laps", {}).get(name, 0.0) for stage in stages)
    return {name: round(value, 2) for name, value in sorted(found.items(), key=lambda item: -item[1])}


def bottleneck(where: Mapping[str, float], recipe: Recipe, device: str) -> str:
    """What took most of the time, and the option that would help."""
    most = next(iter(where))
    faster = "a smaller --image-size" + (", fewer epochs, or a GPU" if device == "cpu" else " or fewer epochs")
    helps = {
        "data": "it is in the cache now" if recipe.data else "a folder on a faster disk",
        "audit": "what was seen is in the cache now; --no-audit leaves it out",
        "decoding": "the images are in the cache now" if recipe.cache_gb else "--cache-gb keeps decoded images",
        "outputs of frozen layers": (
            f"{faster}; they are in the cache now" if recipe.cache_gb else "--cache-gb keeps them for the next run"
        ),
        "logs": "fewer of --log",
        "loading": "--workers reads images in the background; --cache-gb keeps them decoded",
        "evaluation": "fewer views in the recipe's tta, or " + faster,
        "validation": "a smaller valid_share in the recipe, or " + faster,
    }
    share = where[most] / max(sum(where.values()), 1e-9)
    return f"{most}, {share:.0%} of the time; what would help: {helps.get(most, faster)}"


class RunTimer:
    """Seconds by part, in order."""

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.seconds: dict[str, float] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - began, 2)
