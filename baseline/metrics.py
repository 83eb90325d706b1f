"""Prediction table -> numbers with intervals. Knows arithmetic; knows no photos and no models."""

from __future__ import annotations

from typing import Any

import pandas as pd

from .tables import flags_of

__all__ = ["measure", "wilson"]


def measure(table: pd.DataFrame, labels: str = "one") -> dict[str, dict[str, Any]]:
    """Accuracy by split, plain and with test-time augmentation, with 95 % intervals.

    Returns:
        By split (`"valid"`, `"test"`): `photos`, and under `"plain"` and `"tta"` each `accuracy` (0-1), `interval`
        (low, high), `wrong` (photos) and `loss` (mean, nats).

        With `labels="many"` the accuracy counts photos of which every label is right, and each has also `micro_f1`,
        `macro_f1`, and, with test-time augmentation, `average_precision` by class (None where the split has no photo
        of it) and their mean, `mean_average_precision`.

    >>> rows = {"split": ["test"] * 4, "label": list("aabb"), "loss": [0.1] * 4, "plain_loss": [0.1] * 4}
    >>> table = pd.DataFrame({**rows, "predicted": list("aabb"), "plain_predicted": list("aaba")})
    >>> measure(table)["test"]["plain"]["accuracy"]
    0.75
    """
    return {
        str(split): {
            "photos": len(rows),
            **{name: _numbers(rows, prefix, labels) for name, prefix in (("plain", "plain_"), ("tta", ""))},
        }
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


def _numbers(rows: pd.DataFrame, prefix: str, labels: str) -> dict[str, Any]:
    hits = int((rows[f"{prefix}predicted"] == rows["label"]).sum())
    return {
        "accuracy": hits / len(rows),
        "interval": wilson(hits, len(rows)),
        "wrong": len(rows) - hits,
        "loss": float(rows[f"{prefix}loss"].mean()),
        **(_of_many(rows, prefix) if labels == "many" else {}),
    }


def _of_many(rows: pd.DataFrame, prefix: str) -> dict[str, Any]:
    from sklearn.metrics import average_precision_score, f1_score

    classes = [column.removeprefix("p_") for column in map(str, rows) if column.startswith("p_")]
    truth, told = (flags_of(rows[column], classes) for column in ("label", f"{prefix}predicted"))
    found: dict[str, Any] = {
        f"{kind}_f1": float(f1_score(truth, told, average=kind, zero_division=0)) for kind in ("micro", "macro")
    }
    if not prefix:
        found["average_precision"] = {
            name: float(average_precision_score(truth[:, at], rows[f"p_{name}"])) if truth[:, at].any() else None
            for at, name in enumerate(classes)
        }
        known = [value for value in found["average_precision"].values() if value is not None]
        found["mean_average_precision"] = sum(known) / len(known) if known else None
    return found
