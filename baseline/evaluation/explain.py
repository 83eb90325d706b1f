"""Sentences in plain English about what `evaluate` and `paired_test` return."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from baseline.evaluation.intervals import SIGNIFICANCE_LEVEL
from baseline.metrics.registry import Metric, find_metric
from baseline.progress import format_duration

__all__ = ["describe_change", "describe_difference", "describe_metric_test", "describe_probe", "describe_references",
           "explain"]  # fmt: skip


def explain(numbers: Mapping[str, Any], view: str = "tta") -> list[str]:
    """Say in plain English what the metrics of one split mean, a sentence per list item.

    Args:
        numbers: the metrics of one split, as `baseline.evaluate` returns them.
        view: whether errors are counted with test-time augmentation, `"tta"`, or without it, `"plain"`.

    >>> import pandas as pd
    >>> from baseline import evaluate
    >>> rows = {"split": "test", "label": list("ab") * 10, "loss": 0.1, "plain_loss": 0.1}
    >>> table = pd.DataFrame({**rows, "predicted": list("ab") * 10, "plain_predicted": ["b", *"ba" * 9, "b"]})
    >>> print(*explain(evaluate(table)["test"]), sep="\\n")
    0 of 20 predictions are wrong: an error rate of 0.0% (95% confidence interval 0.0% to 16.1%).
    Always predicting 'a', the most frequent class, would score 50.0%.
    Test-time augmentation (TTA) changes accuracy by +5.0 points (-11.9 to +23.6): not significant (p = 0.50).
    """
    tta, images = numbers["tta"], numbers["images"]
    wrong, (low, high) = numbers[view]["wrong"], numbers[view]["interval"]
    sentences = [
        f"{wrong:,} of {images:,} predictions {'is' if wrong == 1 else 'are'} wrong: an error rate of "
        f"{wrong / images:.1%} (95% confidence interval {1 - high:.1%} to {1 - low:.1%})."
    ]
    if "group_interval" in numbers[view]:
        low, high = numbers[view]["group_interval"]
        sentences.append(
            f"With whole groups resampled ({numbers['groups']:,} groups), the 95% confidence interval of the accuracy "
            f"is {low:.1%} to {high:.1%}."
        )
    if "majority" in numbers:
        majority = numbers["majority"]
        sentences.append(
            f"Always predicting '{majority['label']}', the most frequent class, would score {majority['accuracy']:.1%}."
        )
    gain = numbers.get("tta_gain")
    if gain and (gain["only_one"] or gain["only_other"]):
        sentences.append(f"Test-time augmentation (TTA) changes accuracy by {describe_difference(gain)}.")
    if "ece" in tta:
        sentences.append(describe_calibration(tta))
    return sentences + [f"{name} is undefined: {reason}." for name, reason in tta.get("undefined", {}).items()]


def describe_difference(result: Mapping[str, Any]) -> str:
    """Describe a difference in accuracy, its confidence interval and whether it is statistically significant.

    Args:
        result: what `paired_test` returned.
    """
    low, high = (100 * end for end in result["interval"])
    p = result["p"]
    verdict = (
        "significant" if result["beyond_noise"] else "inconclusive" if p < SIGNIFICANCE_LEVEL else "not significant"
    )
    p_text = f"p = {p:.2f}" if p >= 0.01 else "p < 0.01" if p >= 0.001 else "p < 0.001"
    return f"{100 * result['difference']:+.1f} points ({low:+.1f} to {high:+.1f}): {verdict} ({p_text})"


def describe_change(test: Mapping[str, Any], metric: Metric) -> str:
    """Describe a difference and its interval, in points where the metric is in percent.

    >>> from baseline.metrics.registry import find_metric
    >>> describe_change({"difference": 0.0123, "interval": (0.001, 0.02)}, find_metric("roc_auc"))
    '+0.0123 (+0.0010 to +0.0200)'
    """
    numbers = (test["difference"], *test["interval"])
    if metric.percent:
        change, low, high = (f"{100 * number:+.1f}" for number in numbers)
        return f"{change} points ({low} to {high})"
    change, low, high = (f"{number:+.4f}" for number in numbers)
    return f"{change} ({low} to {high})"


def describe_metric_test(test: Mapping[str, Any], metric: Metric) -> str:
    """Describe what `metric_test` returned: the difference, whether it is better or worse, and how certain that is.

    >>> from baseline.metrics.registry import find_metric
    >>> test = {"difference": -0.1, "interval": (-0.2, -0.01), "p": 0.03, "beyond_noise": True}
    >>> describe_metric_test(test, find_metric("log_loss"))
    '-0.1000 (-0.2000 to -0.0100): better, significant (p = 0.03)'
    """
    better = metric.score(test["difference"]) > 0
    if test["beyond_noise"]:
        verdict = f"{'better' if better else 'worse'}, significant"
    else:
        verdict = "inconclusive" if test["p"] < SIGNIFICANCE_LEVEL else "not significant"
    p = "p < 0.01" if test["p"] < 0.01 else f"p = {test['p']:.2f}"
    return f"{describe_change(test, metric)}: {verdict} ({p})"


def describe_probe(probe: Mapping[str, Any]) -> str:
    """Describe the reference beside a result in a sentence.

    Args:
        probe: `probe` of a run's manifest; see `baseline.runs.probe_reference`.
    """
    metric = find_metric(probe["metric"])
    value, duration = metric.text(probe["value"], 1), format_duration(probe["seconds"])
    title = "" if metric.name == "accuracy" else f"{metric.title} "
    if probe.get("kept"):
        return (
            "Fine-tuning was not better on the validation images, so the result is that of logistic regression on "
            f"features of the frozen body: {title}{value} in {duration}."
        )
    start = f"Logistic regression on features of the frozen body: {title}{value} in {duration}"
    if "interval" not in probe:
        return f"{start}."
    if "p" not in probe:  # a run of an earlier version
        return f"{start}; fine-tuning changes it by {describe_change(probe, metric)}."
    change = describe_metric_test(probe, metric) if title else describe_difference(probe)
    return f"{start}; fine-tuning changes it by {change}."


def describe_references(manifest: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each number that stands beside the result of a run, and why it is without TTA.

    >>> folds = {"folds": 5, "images": 40, "metric": "accuracy", "value": 0.95, "own_interval": (0.835, 0.986)}
    >>> describe_references({"folds": folds})
    ['5-fold cross-validation on all 40 images: accuracy 95.0% without TTA (95% confidence interval 83.5% to 98.6%).']
    """
    sentences = [describe_probe(manifest["probe"])] if "probe" in manifest else []
    if reason := manifest.get("reasons", {}).get("tta"):
        sentences.append(f"Test-time augmentation (TTA) is not used: {reason}.")
    if folds := manifest.get("folds"):
        metric = find_metric(folds["metric"])
        interval = folds["own_interval"]
        low, high = (metric.text(end, 1) for end in interval or (None, None))
        span = f" (95% confidence interval {low} to {high})" if interval else ""
        sentences.append(
            f"{folds['folds']}-fold cross-validation on all {folds['images']:,} images: {metric.title} "
            f"{metric.text(folds['value'], 1)} without TTA{span}."
        )
    return sentences


def describe_calibration(tta: dict[str, Any]) -> str:
    """Describe the expected calibration error, and whether the model is over- or underconfident."""
    bins = [row for row in tta["reliability"] if row["images"]]
    excess = sum(row["images"] * (row["confidence"] - row["accuracy"]) for row in bins)
    tendency = "overconfident" if excess > 0 else "underconfident"
    return (
        f"Confidence and accuracy differ by {100 * tta['ece']:.1f} points on average (expected calibration error); "
        f"overall the model is {tendency}."
    )
