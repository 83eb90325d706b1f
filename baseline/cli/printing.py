"""What commands found -> the tables and sentences that they print. Knows words and columns; prints nothing."""

from __future__ import annotations

from collections.abc import Mapping
from shlex import quote
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from baseline.evaluation.explain import describe_difference, explain
from baseline.recipe.schema import describe_trained
from baseline.runs.folder import headline_split

if TYPE_CHECKING:
    import pandas as pd

    from baseline.data.audit.findings import Audit
    from baseline.experiments.before_after import FixComparison
    from baseline.experiments.label_review import LabelReview
    from baseline.experiments.ladder import Ladder
    from baseline.experiments.learning_curve import LearningCurve
    from baseline.experiments.repeats import FoldRuns, SeedRuns
    from baseline.make import Baseline
    from baseline.runs.compare import Comparison


def grid(rows: list[tuple[str, str]]) -> Table:
    table = Table.grid(padding=(0, 2))
    for name, words in rows:
        table.add_row(name, words)
    return table


def audit_table(checked: Audit) -> RenderableType:
    """The table of an audit, worst first."""
    if checked.findings.empty:
        return f"{len(checked.images):,} images: nothing found."
    table = Table("finding", "images", "what was found", "what it does", "what answers it")
    for finding, images, *words in checked.findings.itertuples(index=False):
        table.add_row(str(finding), f"{images:,}", *(escape(str(each)) for each in words))
    return table


def result_table(done: Baseline) -> RenderableType:
    """The table at the end: accuracy by split, seconds by part, and where everything is."""
    table = Table("split", "images", "accuracy", "95 % interval", "wrong")
    for split, numbers in done.metrics.items():
        for kind, words in (("plain", ""), ("tta", f" + {', '.join(done.recipe.tta)}")):
            if kind == "plain" or done.recipe.tta:
                found = numbers[kind]
                low, high = found["interval"]
                span = f"{low:.2%} to {high:.2%}"
                counts = (f"{numbers['images']:,}", f"{found['accuracy']:.2%}", span, f"{found['wrong']:,}")
                table.add_row(split + words, *counts)
    seconds = "  ".join(f"{name} {value:.0f}" for name, value in done.manifest["seconds"].items())
    ended = enumerate(done.manifest["stages"], 1)
    stages = "  ".join(
        f"stage {number}: {stage['seconds']:.0f} ({describe_trained(stage['trains'])})" for number, stage in ended
    )
    bound = f"bound by {done.manifest['bound']}"
    lines = [f"seconds: {seconds}", f"         {stages}", f"         {bound}", f"results: {escape(str(done.folder))}"]
    if "test" not in done.metrics:
        lines.insert(0, "No test split: the weights were chosen on these valid images, which flatters the number.")
    return Group(_headline(done), table, *_explain_result(done), *lines)


def _explain_result(done: Baseline) -> list[str]:
    """The numbers of the last split in plain words, and what calibration does."""
    split, numbers = list(done.metrics.items())[-1]
    found = done.manifest["calibration"].get(split)
    return [escape(line) for line in (*explain(numbers), *([found["words"]] if found else []))]


def seeds_table(found: SeedRuns) -> RenderableType:
    """The table of several seeds, and their mean and spread."""
    table = Table("seed", f"{found.split} accuracy", "plain", "seconds", "results")
    for run in found.runs:
        shares = (f"{run['accuracy']:.2%}", f"{run['plain']:.2%}")
        table.add_row(str(run["seed"]), *shares, f"{run['seconds']:.0f}", escape(str(run["folder"])))
    deviation = "" if found.sd is None else f", sd {100 * found.sd:.2f} points"
    words = f"{found.split} accuracy of {len(found.runs)} seeds: mean {found.mean:.2%}{deviation}"
    lines = [f"{words}, {found.least:.2%} to {found.most:.2%}"]
    if not found.same_images:
        lines.append("Each seed drew other test images: the spread is that of the images and of training together.")
    return Group(*lines, table, escape(f"results: {found.folder / 'seeds.json'}"))


def folds_table(found: FoldRuns) -> RenderableType:
    """The table of all folds, what they say of all images, and their average on test."""
    tested = "test" in found.metrics
    table = Table("fold", "images", "accuracy", "plain", *["on test"] * tested, "seconds", "results")
    for run in found.runs:
        shares = [f"{run[name]:.2%}" for name in ("accuracy", "plain", *["test"] * tested)]
        words = (str(run["fold"]), f"{run['images']:,}", *shares, f"{run['seconds']:.0f}", escape(str(run["folder"])))
        table.add_row(*words)
    lines = [
        f"out-of-fold accuracy of {len(found.runs)} folds: {_accuracy_text(found.metrics['oof'])}",
        f"accuracy of a fold: mean {found.mean:.2%}, sd {100 * found.sd:.2f} points, "
        f"{found.least:.2%} to {found.most:.2%}",
    ]
    meaning = explain(found.metrics["oof"])
    meaning.append("Each fold's weights were chosen on its own valid images, which flatters these numbers a little.")
    if tested and found.against_best:
        lines.insert(0, f"test accuracy of the folds' average: {_accuracy_text(found.metrics['test'])}")
        meaning.append(f"On test, the average differs from the best fold by {describe_difference(found.against_best)}.")
    ends = [
        f"results: {found.folder / 'folds.json'}",
        f"all together: baseline predict {quote(str(found.folder))} IMAGES",
    ]
    return Group(*lines, table, *map(escape, (*meaning, *ends)))


def _accuracy_text(numbers: Mapping[str, Any]) -> str:
    """An accuracy with its interval, that over groups where there are any."""
    found = numbers["tta"]
    low, high = found.get("group_interval", found["interval"])
    of = f"{numbers['groups']:,} groups" if "group_interval" in found else f"{numbers['images']:,} images"
    micro = f"; micro F1 {found['micro_f1']:.2%}" if "mean_average_precision" in found else ""
    return f"{found['accuracy']:.2%} (95 % interval {low:.2%} to {high:.2%}, {of}){micro}"


def ladder_table(found: Ladder) -> RenderableType:
    table = Table(box=None, pad_edge=False, header_style="bold")
    several = found.table["arch"].nunique() > 2
    names = [
        "variant",
        *(["architecture"] if several else []),
        f"accuracy on {found.split}",
        "points gained",
        "over",
        "p",
    ]
    for name in (*names, "seconds", "parameters"):
        table.add_column(
            name, justify="left" if name in ("variant", "architecture", "over") else "right", overflow="fold"
        )
    for row in found.table.to_dict("records"):
        tested = isinstance(row["against"], str)
        points = [100 * row[key] for key in ("difference", "difference_low", "difference_high")] if tested else []
        told = ["{:+.1f} ({:+.1f} to {:+.1f})".format(*points), row["against"],
                "<0.001" if row["p"] < 0.001 else f"{row['p']:.3f}"] if tested else ["", "", ""]  # fmt: skip
        accuracy = f"{row['accuracy']:.1%} ({row['low']:.1%} to {row['high']:.1%})"
        costs = [f"{row['seconds']:,.0f}", f"{row['parameters']:,}"]
        table.add_row(row["words"], *([row["arch"]] if several else []), accuracy, *told, *costs)
    return Group(table, "", *found.sentences)


def curve_table(found: LearningCurve) -> RenderableType:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("training images", justify="right")
    variants = list(found.fits)
    for variant in variants:
        table.add_column(f"{variant}, accuracy on {found.split}", justify="right")
    means = found.table.pivot_table(
        index="images", columns="variant", values="accuracy", aggfunc=["mean", "min", "max"]
    )
    for images, row in means.iterrows():
        spans = [
            f"{row['mean', variant]:.1%} ({row['min', variant]:.1%} to {row['max', variant]:.1%})"
            if row["mean", variant] == row["mean", variant]
            else ""
            for variant in variants
        ]
        table.add_row(f"{images:,}", *spans)
    return Group(table, "", *found.sentences)


def label_review_table(found: LabelReview, target: str) -> RenderableType:
    """What is suspected, by pair of classes, and what to do next."""
    issues = found.issues
    suspected = issues[issues["is_label_issue"]]
    table = Table("label", "perhaps", "images", "surest")
    pairs = suspected.groupby(["given_label", "predicted_label"], sort=False)["confidence"].agg(["size", "max"])
    pairs = pairs.sort_values("size", ascending=False, kind="stable").reset_index()
    for label, perhaps, count, surest in pairs.head(10).itertuples(index=False):
        table.add_row(escape(label), escape(perhaps), f"{count:,}", f"{surest:.0%}")
    conflicts, outliers = int((issues["conflict"] != "").sum()), int(issues["is_outlier_issue"].sum())
    counts = f"{len(suspected):,} of {len(issues):,} labels are suspected ({len(suspected) / len(issues):.1%})"
    also = f"{conflicts:,} images have a copy with another label; {outliers:,} are unlike all others."
    lines = [
        f"{counts}; {also}",
        "Not all of them are wrong: images that are only hard are suspected, too. On CIFAR-10, 70 of 100 suspected "
        "labels were wrong where 9 % of all are, and few where nearly all are right. Look before you accept.",
        f"look and decide: {found.folder / 'clean.html'}",
        f"all images, ranked: {found.folder / 'issues.csv'}",
    ]
    fixes = found.fixes or "fixes.csv"
    again = found.run / "manifest.json" if found.run else target
    lines += [f"accepted: {found.fixes}"] if found.fixes else []
    lines += [f"then: baseline run {quote(str(again))} --fixes {quote(str(fixes))}"]
    return Group(*([table] if len(pairs) else []), *map(escape, lines))


def fixes_table(found: FixComparison) -> RenderableType:
    """What a run with fixes reached, and what they changed."""
    words = f"fixes: {found.after.manifest['reasons']['fixes']}"
    return Group(result_table(found.after), escape(words), comparison_table(found.comparison))


def comparison_table(found: Comparison) -> RenderableType:
    table = Table("run", "images", "accuracy", "macro F1", "ECE", "loss", "seconds", "MB", "differs from the first")
    for row in found.table.astype(object).where(found.table.notna(), None).to_dict("records"):
        shares = [_with_interval(row, *names) for names in _INTERVALS]
        loss = "" if row["loss"] is None else f"{row['loss']:.4f}"
        size = "" if row["megabytes"] is None else f"{row['megabytes']:.1f}"
        images = "" if row["images"] is None else f"{row['images']:,.0f} {row['split']}"
        words = (escape(row["run"]), images, *shares, loss, f"{row['seconds']:.0f}", size, escape(row["differs"]))
        table.add_row(*words)
    return Group(table, *[escape(line) for line in found.sentences])


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


def runs_table(found: pd.DataFrame) -> RenderableType:
    if found.empty:
        return "No runs here."
    table = Table("run", "accuracy, 95 % interval", "finished", "seconds", "arch")
    for row in found.astype(object).where(found.notna(), None).to_dict("records"):
        if row["state"] != "finished":
            table.add_row(escape(row["run"]), escape(row["state"]))
            continue
        number = f"{_with_interval(row, 'accuracy', 'low', 'high')} {row['split']}"
        table.add_row(escape(row["run"]), number, row["finished"][:16], f"{row['seconds']:.0f}", str(row["arch"]))
    return table


def _headline(done: Baseline) -> str:
    split = headline_split(done.metrics)
    kind = "tta" if done.recipe.tta else "plain"
    found = done.metrics[split][kind]
    low, high = found["interval"]
    tta = " with TTA" if done.recipe.tta else ""
    if done.recipe.labels == "many":
        best = done.metrics[split]["tta"]
        return (
            f"{split}{tta}: micro F1 {found['micro_f1']:.2%}, macro F1 {found['macro_f1']:.2%}, mean average precision "
            f"{best['mean_average_precision']:.2%}; below, images of which every label is right"
        )
    return f"{split} accuracy{tta}: {found['accuracy']:.2%} (95 % interval {low:.2%} to {high:.2%})"
