"""Compares recipes over seeds: groups of runs that differ in the seed, by their mean accuracy or metric."""

from __future__ import annotations

import glob
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from baseline.errors import DataError, quoted_list
from baseline.evaluation.intervals import SIGNIFICANCE_LEVEL
from baseline.experiments.metric_comparison import metric_besides_accuracy
from baseline.files import refuse_damaged
from baseline.metrics.registry import Metric, find_metric
from baseline.recipe.diff import flatten_recipe
from baseline.report.headline import headline_view
from baseline.report.text_table import TextTable
from baseline.runs.folder import headline_split, is_finished, read_manifest

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["RecipeComparison", "compare_recipes", "is_pattern"]


@dataclass(frozen=True)
class RecipeComparison:
    """Several recipes side by side, each with runs of several seeds."""

    table: pd.DataFrame
    """One row per recipe: `recipe` (its pattern), `runs`, `tta` (number of runs whose headline is with TTA), `split`,
    `mean`, `sd`, `least` and `most` of the metric, and for all but the first `difference` (of the means),
    `difference_low`, `difference_high` and `p` (of a t-test over seeds, paired where the seeds are the same;
    Holm-corrected for more than two recipes)."""
    sentences: list[str]
    metric: Metric

    def as_text(self) -> TextTable:
        """Return the table with headings in words and percentages."""
        scale, form = (100, "+.1f") if self.metric.percent else (1, "+.4f")
        headings = ["recipe", "runs", f"mean {self.metric.title}", "standard deviation", "lowest", "highest"]
        rows = []
        for row in self.table.to_dict("records"):
            change = p = ""
            if row["difference"] == row["difference"]:
                numbers = [format(scale * row[f"difference{end}"], form) for end in ("", "_low", "_high")]
                change, p = f"{numbers[0]} ({numbers[1]} to {numbers[2]})", f"{row['p']:.3f}"
            values = [self.metric.text(row[name], 1) for name in ("mean", "sd", "least", "most")]
            count = "" if row["tta"] == row["runs"] else f", {row['tta']}"
            runs = f"{row['runs']}{count} with TTA" if row["tta"] else f"{row['runs']}"
            rows.append([row["recipe"], runs, *values, change, p])
        return TextTable([*headings, "difference", "p"], rows)

    def as_html(self) -> str:
        """Return the table and the sentences as a self-contained HTML page."""
        from baseline.report.html import render

        note = "Differences are between means over seeds, with 95% confidence intervals of a t-test over seeds."
        page = {"kind": "recipes over seeds", "note": note, "sentences": self.sentences, "table": self.as_text()}
        return render("compare", {**page, "settings": []})

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the sentences and the table."""
        from baseline.notebook import card, text_table

        table = self.as_text()
        first, *others = self.sentences
        return card(first, [text_table(table.headings, table.rows)], others)


def is_pattern(text: str | Path) -> bool:
    """Whether a text is a pattern of several paths.

    >>> is_pattern("runs/a/*"), is_pattern("runs/a")
    (True, False)
    """
    return glob.has_magic(str(text))


def compare_recipes(patterns: Sequence[str]) -> RecipeComparison:
    """Compare the recipes whose runs match each pattern with the first of them, over seeds.

    The test asks whether another training of the recipes would show the same difference. It is paired where both
    recipes have the same seeds, which then also draw the same splits.

    Args:
        patterns: two or more, such as `"runs/a/*"`; each matches two or more finished runs.

    Raises:
        DataError: if a pattern matches fewer than two finished runs, or recipes differ in their metric or split.

    >>> compare_recipes(["runs/a/seed-*", "runs/b/seed-*"]).sentences                # doctest: +SKIP
    ['runs/b/seed-* against runs/a/seed-* over 5 seeds: +1.2 points (+0.4 to +2.0): significant (p = 0.01).']
    """
    import pandas as pd

    from baseline.evaluation.significance import holm_correction

    if len(patterns) < 2:
        raise DataError(f"Expected two or more patterns of run folders, got {len(patterns)}.")
    groups = [_scores(pattern) for pattern in patterns]
    metric, split = groups[0]["metric"], groups[0]["split"]
    for pattern, group in zip(patterns[1:], groups[1:], strict=True):
        if (group["metric"], group["split"]) != (metric, split):
            raise DataError(
                f"{pattern} is evaluated by {group['metric'].name} on {group['split']}, and {patterns[0]} by "
                f"{metric.name} on {split}. Compare runs with the same metric and splits."
            )
    tests = holm_correction([_seed_test(groups[0]["scores"], group["scores"]) for group in groups[1:]])
    rows, sentences = [_summary(patterns[0], groups[0])], []
    for pattern, group, test in zip(patterns[1:], groups[1:], tests, strict=True):
        low, high = test["interval"]
        columns = {"difference": test["difference"], "difference_low": low, "difference_high": high, "p": test["p"]}
        rows.append({**_summary(pattern, group), **columns})
        sentences.append(f"{pattern} against {patterns[0]} {_describe_over_runs(test, metric)}")
    if len(tests) > 1:
        sentences.append(f"p-values are Holm-corrected for {len(tests)} comparisons.")
    return RecipeComparison(pd.DataFrame(rows), sentences, metric)


def _scores(pattern: str) -> dict[str, Any]:
    """The metric, the split and the score of each seed of the runs that match a pattern."""
    matches = glob.glob(str(Path(pattern).expanduser()))  # noqa: PTH207, because a pattern may be absolute
    runs = [path for path in sorted(map(Path, matches)) if is_finished(path)]
    if len(runs) < 2:
        raise DataError(f"{pattern} matches {len(runs)} finished runs; two or more were needed. Train more seeds.")
    scores: dict[Any, float] = {}
    evaluations: list[tuple[str, str]] = []
    views: list[str] = []
    for run in runs:
        with refuse_damaged(run):
            manifest = read_manifest(run)
            metric = metric_besides_accuracy(manifest) or find_metric("accuracy")
            split, recipe = headline_split(manifest["metrics"]), flatten_recipe(manifest["recipe"])
            view = headline_view(manifest)
            value = manifest["metrics"][split][view].get(metric.name)
        if value is None:
            raise DataError(f"{run} has no {metric.title} on {split}. Leave it out of the pattern.")
        key = (recipe.get("seed"), recipe.get("fold"))
        scores[key if key not in scores else str(run)] = float(value)  # type: ignore[arg-type]
        evaluations.append((metric.name, split))
        views.append(view)
    if len(set(evaluations)) > 1:
        names = quoted_list(sorted({f"{name} on {split}" for name, split in evaluations}))
        raise DataError(f"The runs of {pattern} are evaluated differently: {names}. Use a pattern for each.")
    return {"metric": metric, "split": split, "scores": scores, "tta": views.count("tta")}


def _summary(pattern: str, group: Mapping[str, Any]) -> dict[str, Any]:
    values = list(group["scores"].values())
    spread = {"mean": statistics.fmean(values), "sd": statistics.stdev(values)}
    return {
        "recipe": pattern, "runs": len(values), "tta": group["tta"], "split": group["split"], **spread,
        "least": min(values), "most": max(values),
    }  # fmt: skip


def _seed_test(one: Mapping[Any, float], other: Mapping[Any, float]) -> dict[str, Any]:
    """A t-test over seeds: paired where both have the same, else Welch's; the interval is of the same distribution."""
    import numpy as np
    from scipy.stats import ttest_ind, ttest_rel

    paired = set(one) == set(other)
    first, second = list(one.values()), [other[key] for key in one] if paired else list(other.values())
    difference = float(np.mean(second) - np.mean(first))
    spread = np.ptp(np.subtract(second, first)) if paired else np.ptp(first) + np.ptp(second)
    if spread < 1e-12:  # every seed has the same result: there is no variance to test with
        p, interval = (1.0 if abs(difference) < 1e-12 else 0.0), (difference, difference)
    else:
        result = ttest_rel(second, first) if paired else ttest_ind(second, first, equal_var=False)
        low, high = result.confidence_interval(1 - SIGNIFICANCE_LEVEL)
        p, interval = float(result.pvalue), (float(low), float(high))
    beyond_noise = p < SIGNIFICANCE_LEVEL
    runs = len(first) if paired else (len(first), len(second))
    return {"difference": difference, "interval": interval, "p": p, "beyond_noise": beyond_noise, "runs": runs}


def _describe_over_runs(test: Mapping[str, Any], metric: Metric) -> str:
    from baseline.evaluation.explain import describe_change

    runs = test["runs"]
    over = f"over {runs} seeds, paired" if isinstance(runs, int) else f"over {runs[0]} and {runs[1]} runs"
    p = "p < 0.001" if test["p"] < 0.001 else f"p = {test['p']:.3f}"
    verdict = "significant" if test["beyond_noise"] else "not significant"
    return f"{over}: {metric.title} {describe_change(test, metric)}: {verdict} ({p})."
