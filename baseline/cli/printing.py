"""Tables and sentences that the commands print."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from shlex import quote
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from baseline.evaluation.explain import describe_difference, describe_references, explain
from baseline.metrics.registry import find_metric
from baseline.recipe.describe import describe_trained
from baseline.report.headline import (
    Headline,
    describe_split,
    headline_of,
    headline_sentence,
    headline_view,
)

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

    from baseline.data.audit.findings import Audit
    from baseline.experiments.before_after import FixComparison
    from baseline.experiments.compare import Comparison
    from baseline.experiments.compare_recipes import RecipeComparison
    from baseline.experiments.label_review import LabelReview
    from baseline.experiments.ladder import Ladder
    from baseline.experiments.learning_curve import LearningCurve
    from baseline.experiments.repeats import FoldRuns, SeedRuns
    from baseline.make import Baseline


def grid(rows: list[tuple[str, str]]) -> Table:
    table = Table.grid(padding=(0, 2))
    for name, text in rows:
        table.add_row(name, text)
    return table


def audit_table(result: Audit) -> RenderableType:
    """The findings of an audit, worst first."""
    if result.findings.empty:
        return f"{len(result.images):,} images: no problems found."
    table = Table("finding", "images", "details", "effect", "remedy")
    for finding, images, *texts in result.findings.itertuples(index=False):
        table.add_row(str(finding), f"{images:,}", *(escape(str(text)) for text in texts))
    return table


def result_table(result: Baseline) -> RenderableType:
    """The result of a run: accuracy by split, seconds by part, and where the files are."""
    table = Table("split", "images", "accuracy", "95% confidence interval", "wrong")
    for split, numbers in result.metrics.items():
        ways = [(numbers["plain"], split)]
        if result.recipe.evaluation.tta:
            ways.append((numbers["tta"], f"{split} with TTA"))
        for scores, name in ways:
            low, high = scores["interval"]
            accuracy, interval = f"{scores['accuracy']:.2%}", f"{low:.2%} to {high:.2%}"
            table.add_row(name, f"{numbers['images']:,}", accuracy, interval, f"{scores['wrong']:,}")
    seconds = "  ".join(f"{name} {value:.0f}" for name, value in result.manifest["seconds"].items())
    ended = enumerate(result.manifest["stages"], 1)
    stages = "  ".join(
        f"stage {number}: {stage['seconds']:.0f} ({describe_trained(stage['trains'])})" for number, stage in ended
    )
    bound = str(result.manifest["bound"])
    lines = [f"seconds: {seconds}", f"         {stages}", f"         {bound}", f"results: {escape(str(result.folder))}"]
    if "test" not in result.metrics:
        lines.insert(
            0,
            "No test split: the weights were chosen on the validation images, so the accuracy is slightly optimistic.",
        )
    return Group(headline_sentence(result.manifest), table, *_explain_result(result), *lines, *_next_lines(result))


def _next_lines(result: Baseline) -> list[str]:
    """The two commands to run next."""
    from baseline.report.advice import next_commands

    return [f"next: {escape(command)}" for command in next_commands(result.folder)]


def _explain_result(result: Baseline) -> list[str]:
    """What the metrics of the last split mean, and what calibration changes."""
    split, numbers = list(result.metrics.items())[-1]
    calibration = result.manifest["calibration"].get(split)
    view = headline_view(result.manifest)
    sentences = [*explain(numbers, view), *([calibration["words"]] if calibration else [])]
    return list(map(escape, [*describe_references(result.manifest), *sentences]))


def seeds_table(result: SeedRuns) -> RenderableType:
    """The result of several seeds: mean, standard deviation and each run."""
    title = [f"{result.split} {find_metric(result.metric['name']).title}"] if result.metric else []
    table = Table("seed", *title, f"{result.split} accuracy", "without TTA", "seconds", "results")
    for run in result.runs:
        shares = (*_metric_cell(run, result.metric), _accuracy_cell(run), f"{run['plain']:.2%}")
        table.add_row(str(run["seed"]), *shares, f"{run['seconds']:.0f}", escape(str(run["folder"])))
    deviation = "" if result.sd is None else f", std {100 * result.sd:.2f} points"
    summary = f"{result.split} accuracy of {len(result.runs)} seeds: mean {result.mean:.2%}{deviation}"
    lines = [f"{summary}, {result.least:.2%} to {result.most:.2%}"]
    if result.metric:
        lines.insert(0, f"{title[0]} of {len(result.runs)} seeds: {_spread_text(result.metric)}")
    lines += _probe_line(result.runs)
    if not result.same_images:
        lines.append("Each seed uses a different test split, so the spread includes sampling variation.")
    ends = [f"results: {result.folder / 'seeds.json'}", *_next_of_series(result.folder, "seeds")]
    return Group(*lines, table, *map(escape, ends))


def _next_of_series(folder: Path, kind: str) -> list[str]:
    """The two commands to run after several seeds or folds."""
    from baseline.report.advice import next_commands_of_series

    return [f"next: {command}" for command in next_commands_of_series(folder, kind)]


def folds_table(result: FoldRuns) -> RenderableType:
    """The result of all folds: out of fold, each run, and their ensemble on test."""
    tested, metric = "test" in result.metrics, find_metric(result.metric["name"]) if result.metric else None
    title = [metric.title] if metric else []
    table = Table("fold", "images", *title, "accuracy", "without TTA", *["on test"] * tested, "seconds", "results")
    for run in result.runs:
        shares = [f"{run[name]:.2%}" for name in ("plain", *["test"] * tested)]
        shares = [*_metric_cell(run, result.metric), _accuracy_cell(run), *shares]
        cells = (str(run["fold"]), f"{run['images']:,}", *shares, f"{run['seconds']:.0f}", escape(str(run["folder"])))
        table.add_row(*cells)
    views: dict[str, Literal["plain", "tta"]] = {name: "tta" if tta else "plain" for name, tta in result.tta.items()}
    mark = " with TTA" if all(run["tta"] for run in result.runs) else " partly with TTA"
    words = {name: mark if tta else "" for name, tta in result.tta.items()}
    oof = result.metrics["oof"]
    lines = [
        f"out-of-fold accuracy{words['oof']} of {len(result.runs)} folds: {_accuracy_text(oof, views['oof'])}",
        f"accuracy of a fold: mean {result.mean:.2%}, std {100 * result.sd:.2f} points, "
        f"{result.least:.2%} to {result.most:.2%}",
    ]
    if metric and result.metric:
        lines.insert(0, f"{metric.title} of a fold: {_spread_text(result.metric)}")
        lines.insert(0, f"out-of-fold {metric.title}{words['oof']}: {headline_of(metric, oof[views['oof']])}")
    lines += _probe_line(result.runs)
    meaning = explain(oof, views["oof"])
    meaning.append(
        "The weights of each fold were chosen on its own validation images, so these metrics are slightly optimistic."
    )
    if tested and result.against_best:
        accuracy = _accuracy_text(result.metrics["test"], "tta")
        lines.insert(0, f"test accuracy of the ensemble of folds{words['test']}: {accuracy}")
        difference = describe_difference(result.against_best) if not metric else ""
        if metric:
            from baseline.experiments.metric_comparison import describe_test

            difference = describe_test(result.against_best, metric)
            headline = headline_of(metric, result.metrics["test"]["tta"])
            lines.insert(0, f"test {metric.title} of the ensemble{words['test']}: {headline}")
        meaning.append(f"On test, the ensemble differs from the best fold by {difference}.")
    ends = [f"results: {result.folder / 'folds.json'}", *_next_of_series(result.folder, "folds")]
    return Group(*lines, table, *map(escape, (*meaning, *ends)))


def _probe_line(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The mean of what logistic regression on features scores beside the runs, if all of them have it."""
    probes = [run["probe"] for run in runs if "probe" in run]
    if len(probes) < len(runs):
        return []
    metric, mean = find_metric(probes[0]["metric"]), statistics.fmean(probe["value"] for probe in probes)
    name = f"{probes[0]['split']} {metric.title}"
    return [f"logistic regression on features of the frozen body: mean {name} {metric.text(mean)}"]


def _accuracy_cell(run: Mapping[str, Any]) -> str:
    """The cell of a run's accuracy."""
    return f"{run['accuracy']:.2%}{' with TTA' if run['tta'] else ''}"


def _metric_cell(run: Mapping[str, Any], metric: Mapping[str, Any] | None) -> list[str]:
    """The cell of a run's metric, if the recipe names one."""
    return [find_metric(metric["name"]).text(run[metric["name"]])] if metric else []


def _spread_text(spread: Mapping[str, Any]) -> str:
    """Mean, standard deviation, lowest and highest value of a metric."""
    mean, least, most, sd = (find_metric(spread["name"]).text(spread[key]) for key in ("mean", "least", "most", "sd"))
    return f"mean {mean}, {'' if spread['sd'] is None else f'std {sd}, '}{least} to {most}"


def _accuracy_text(numbers: Mapping[str, Any], view: str) -> str:
    """An accuracy with its interval, over groups where there are any."""
    scores = numbers[view]
    low, high = scores.get("group_interval", scores["interval"])
    of = f"{numbers['groups']:,} groups" if "group_interval" in scores else f"{numbers['images']:,} images"
    micro = f"; micro F1 {scores['micro_f1']:.2%}" if "mean_average_precision" in scores else ""
    return f"{scores['accuracy']:.2%} (95% confidence interval {low:.2%} to {high:.2%}, {of}){micro}"


def ladder_table(result: Ladder) -> RenderableType:
    table = Table(box=None, pad_edge=False, header_style="bold")
    several = result.table["arch"].nunique() > 2
    metric, gained = result.metric, "points gained"
    names = ["variant", *(["backbone"] if several else []), f"accuracy on {result.split}", gained, "over", "p"]
    if metric:
        names.insert(-4, f"{metric.title} on {result.split}")
        names[names.index(gained)] = f"change of {metric.title}"
    for name in (*names, "seconds", "parameters"):
        table.add_column(name, justify="left" if name in ("variant", "backbone", "over") else "right", overflow="fold")
    for row in result.table.to_dict("records"):
        tested = isinstance(row["against"], str)
        points = [100 * row[key] for key in ("difference", "difference_low", "difference_high")] if tested else []
        gain = ["{:+.1f} ({:+.1f} to {:+.1f})".format(*points), row["against"],
                "<0.001" if row["p"] < 0.001 else f"{row['p']:.3f}"] if tested else ["", "", ""]  # fmt: skip
        accuracy = [f"{row['accuracy']:.1%} ({row['low']:.1%} to {row['high']:.1%})"]
        if metric:
            from baseline.evaluation.explain import describe_change
            from baseline.experiments.ladder import headline_of_row

            accuracy.insert(0, headline_of_row(row, metric))
            test = {"difference": row["difference"], "interval": (row["difference_low"], row["difference_high"])}
            gain[0] = describe_change(test, metric) if tested else ""
        costs = [f"{row['seconds']:,.0f}", f"{row['parameters']:,}"]
        table.add_row(row["words"], *([row["arch"]] if several else []), *accuracy, *gain, *costs)
    return Group(table, "", "Networks predict without TTA, except for a variant with TTA.", *result.sentences)


def curve_table(result: LearningCurve) -> RenderableType:
    metric = result.metric or find_metric("accuracy")
    show = partial(metric.text, digits=1)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("training images", justify="right")
    variants = list(result.fits)
    for variant in variants:
        table.add_column(f"{variant}, {metric.title} on {result.split}", justify="right")
    means = result.table.pivot_table(
        index="images", columns="variant", values=metric.name, aggfunc=["mean", "min", "max"]
    )
    for images, row in means.iterrows():
        spans = [
            f"{show(row['mean', variant])}, lowest {show(row['min', variant])}, highest {show(row['max', variant])}"
            if row["mean", variant] == row["mean", variant]
            else ""
            for variant in variants
        ]
        table.add_row(f"{images:,}", *spans)
    return Group(table, "", "Networks predict without TTA.", *result.sentences)


def label_review_table(result: LabelReview, target: str) -> RenderableType:
    """Suspected labels by pair of classes, and what to do next."""
    issues = result.issues
    suspected = issues[issues["is_label_issue"]]
    table = Table("label", "suggested", "images", "highest confidence")
    pairs = suspected.groupby(["given_label", "predicted_label"], sort=False)["confidence"].agg(["size", "max"])
    pairs = pairs.sort_values("size", ascending=False, kind="stable").reset_index()
    for label, suggestion, count, confidence in pairs.head(10).itertuples(index=False):
        table.add_row(escape(label), escape(suggestion), f"{count:,}", f"{confidence:.0%}")
    conflicts, outliers = int((issues["conflict"] != "").sum()), int(issues["is_outlier_issue"].sum())
    counts = f"{len(suspected):,} of {len(issues):,} labels may be wrong ({len(suspected) / len(issues):.1%})"
    also = f"{conflicts:,} images have a duplicate with another label; {outliers:,} are outliers."
    lines = [
        f"{counts}; {also}",
        "Not all of these are wrong: hard images are listed, too. In CIFAR-10 with 9% label noise, 70% of the "
        "suspected labels were wrong. Review before accepting.",
        f"review them: {result.folder / 'clean.html'}",
        f"all images, ranked: {result.folder / 'issues.csv'}",
    ]
    fixes = result.fixes or "fixes.csv"
    again = result.run / "manifest.json" if result.run else target
    lines += [f"accepted: {result.fixes}"] if result.fixes else []
    lines += [f"next: baseline run {quote(str(again))} --fixes {quote(str(fixes))}"]
    return Group(*([table] if len(pairs) else []), *map(escape, lines))


def fixes_table(result: FixComparison) -> RenderableType:
    """The result of a run with fixes, and what the fixes changed."""
    fixes = f"fixes: {result.after.manifest['reasons']['fixes']}"
    return Group(result_table(result.after), escape(fixes), comparison_table(result.comparison))


def comparison_table(result: Comparison) -> RenderableType:
    metric = result.metric
    title = [metric.title] if metric else []
    table = Table("run", "images", *title, "accuracy", "macro F1", "ECE", "loss", "seconds", "MB", "different settings")
    for row in result.table.astype(object).where(result.table.notna(), None).to_dict("records"):
        shares = [_with_interval(row, *names) for names in _INTERVALS]
        if metric:
            low, high = row[f"{metric.name}_low"], row[f"{metric.name}_high"]
            shares.insert(0, str(Headline(metric, row[metric.name], None if low is None else (low, high))))
        loss = "" if row["loss"] is None else f"{row['loss']:.4f}"
        size = "" if row["megabytes"] is None else f"{row['megabytes']:.1f}"
        images = "" if row["images"] is None else f"{row['images']:,.0f} {describe_split(row)}"
        cells = (escape(row["run"]), images, *shares, loss, f"{row['seconds']:.0f}", size, escape(row["differs"]))
        table.add_row(*cells)
    return Group(table, *[escape(line) for line in result.sentences])


def recipes_table(result: RecipeComparison) -> RenderableType:
    text = result.as_text()
    table = Table(*text.headings)
    for row in text.rows:
        table.add_row(*map(escape, row))
    return Group(table, *map(escape, result.sentences))


_INTERVALS = (
    ("accuracy", "low", "high"),
    ("macro_f1", "macro_f1_low", "macro_f1_high"),
    ("ece", "ece_low", "ece_high"),
)


def _with_interval(row: Mapping[Any, Any], name: str, low: str, high: str) -> str:
    if row[name] is None:
        return ""
    span = "" if row[low] is None else f" ({100 * row[low]:.1f} to {100 * row[high]:.1f})"
    return f"{row[name]:.2%}{span}"


def runs_table(result: pd.DataFrame) -> RenderableType:
    if result.empty:
        return "There are no runs in this folder."
    number = "result" if "headline" in result else "accuracy"
    table = Table("run", f"{number}, 95% confidence interval", "finished", "seconds", "backbone")
    for row in result.astype(object).where(result.notna(), None).to_dict("records"):
        if row["state"] != "finished":
            table.add_row(escape(row["run"]), escape(row["state"]))
            continue
        number = f"{row.get('headline') or _with_interval(row, 'accuracy', 'low', 'high')} {describe_split(row)}"
        table.add_row(escape(row["run"]), number, row["finished"][:16], f"{row['seconds']:.0f}", str(row["arch"]))
    return table
