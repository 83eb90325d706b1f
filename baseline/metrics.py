"""Prediction table -> numbers with intervals. Knows arithmetic; knows no photos and no models."""

from __future__ import annotations

from typing import Any

import pandas as pd

__all__ = ["measure", "wilson"]


def measure(table: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Accuracy by split, plain and with test-time augmentation, with 95 % intervals.

    Returns:
        By split (`"valid"`, `"test"`): `photos`, and under `"plain"` and `"tta"` each `accuracy` (0-1), `interval`
        (low, high), `wrong` (photos) and `loss` (mean, nats).

    >>> rows = {"split": ["test"] * 4, "label": list("aabb"), "loss": [0.1] * 4, "plain_loss": [0.1] * 4}
    >>> table = pd.DataFrame({**rows, "predicted": list("aabb"), "plain_predicted": list("aaba")})
    >>> measure(table)["test"]["plain"]["accuracy"]
    0.75
    """
    return {
        str(split): {"photos": len(rows), "plain": _numbers(rows, "plain_"), "tta": _numbers(rows, "")}
        for split, rows in table.groupby("split", sort=False)
    }


def wilson(hits: int, photos: int) -> tuple[float, float]:
    """The 95 % interval of a share by Wilson's score (1927), which holds for small counts and shares near 0 and 1.

    >>> [round(end, 3) for end in wilson(0, 20)]
    [0.0, 0.161]
    """
    from scipy.stats import binomtest

    interval = binomtest(hits, photos).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def _numbers(rows: pd.DataFrame, prefix: str) -> dict[str, Any]:
    hits = int((rows[f"{prefix}predicted"] == rows["label"]).sum())
    return {
        "accuracy": hits / len(rows),
        "interval": wilson(hits, len(rows)),
        "wrong": len(rows) - hits,
        "loss": float(rows[f"{prefix}loss"].mean()),
    }
