"""TODO."""

from __future__ import annotations

from typing import Any

__all__ = ["describe_difference", "explain"]


def explain(numbers: dict[str, Any]) -> list[str]:
    """What the numbers of one split mean, in plain words.

    >>> rows = {"split": ["test"] * 4, "label": list("aabb"), "loss": [0.1] * 4, "plain_loss": [0.1] * 4}
    >>> table = pd.DataFrame({**rows, "predicted": list("aabb"), "plain_predicted": list("aaba")})
    >>> print(*explain(measure(table)["test"]), sep="\\n")
    0 of 4 images are wrong; the true share of wrong ones lies between 0.0% and 49.0%, as far as 4 images can tell.
    Always saying 'a', the most frequent class, would score 50.0%.
    Test-time augmentation changes accuracy by +25.0 points (+0.0 to +75.0): no difference beyond noise (p = 0.50).
    """
    tta, images = numbers["tta"], numbers["images"]
    low, high = tta["interval"]
    told = [
        f"{tta['wrong']:,} of {images:,} images are wrong; the true share of wrong ones lies between {1 - high:.1%} "
        f"and {1 - low:.1%}, as far as {images:,} images can tell."
    ]
    if "group_interval" in tta:
        low, high = tta["group_interval"]
        told.append(f"Over its {numbers['groups']:,} groups the interval of the accuracy is {low:.1%} to {high:.1%}.")
    if "majority" in numbers:
        most = numbers["majority"]
        told.append(f"Always saying '{most['label']}', the most frequent class, would score {most['accuracy']:.1%}.")
    gain = numbers.get("tta_gain")
    if gain and (gain["only_one"] or gain["only_other"]):
        told.append(f"Test-time augmentation changes accuracy by {describe_difference(gain)}.")
    if "ece" in tta:
        told.append(describe_calibration(tta))
    return told + [f"{name} is not defined: {why}." for name, why in tta.get("undefined", {}).items()]


def describe_difference(found: dict[str, Any]) -> str:
    """A difference, its interval and whether it is more than noise; `found` is what `paired_test` gives."""
    low, high = (100 * end for end in found["interval"])
    verdict = "more than noise" if found["beyond_noise"] else "no difference beyond noise"
    sure = f"p = {found['p']:.2f}" if found["p"] >= 0.01 else "p < 0.01" if found["p"] >= 0.001 else "p < 0.001"
    return f"{100 * found['difference']:+.1f} points ({low:+.1f} to {high:+.1f}): {verdict} ({sure})"


def describe_calibration(tta: dict[str, Any]) -> str:
    told = [each for each in tta["reliability"] if each["images"]]
    surer = sum(each["images"] * (each["confidence"] - each["accuracy"]) for each in told)
    way = "it is surer than it is right" if surer > 0 else "it is right more often than it is sure"
    points = f"{100 * tta['ece']:.1f} points"
    return f"Confidence and accuracy are {points} apart (expected calibration error); on the whole {way}."
