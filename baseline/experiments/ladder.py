"""Ladder experiment: variants of increasing effort on one split, with what each gains over the one below and costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from baseline.errors import RecipeError, unknown_name
from baseline.evaluation.explain import describe_change
from baseline.experiments.metric_comparison import (
    compare_tables,
    evaluate_metric,
    metric_besides_accuracy,
    read_split_predictions,
)
from baseline.experiments.series import refuse_own_parts
from baseline.experiments.variants import (
    ARCH_INDEPENDENT,
    PROBES,
    VARIANTS,
    prepare_architectures,
    resume_hint_on_interrupt,
)
from baseline.experiments.zeroshot import parse_clip
from baseline.files import to_csv, to_json, write_atomic
from baseline.parallel.executor import Job, get_executor
from baseline.progress import ConsoleProgress, format_duration
from baseline.recipe.choose import choose_recipe
from baseline.runs.folder import create_run_folder, headline_split, read_manifest, run_name

if TYPE_CHECKING:
    import pandas as pd

    from baseline.experiments.variants import Architecture
    from baseline.metrics.registry import Metric
    from baseline.parallel.executor import Executor
    from baseline.progress import Progress
    from baseline.recipe.schema import Recipe
    from baseline.report.headline import Headline

__all__ = ["Ladder", "run_ladder"]


TTA_BASE_VARIANTS = tuple(name for name in VARIANTS if name not in (*PROBES, "scratch", "tta"))
"""Variants whose network the variant `tta` may use."""


SIMILAR_TIME = 0.1, 1.0
"""Variation of the same training's duration from run to run, as a fraction and in seconds; smaller differences are
ignored."""


@dataclass(frozen=True)
class Ladder:
    """Results of all variants."""

    folder: Path
    """Contains `ladder.csv`, `ladder.json`, `ladder.png`, `ladder.html`, `split.csv` and a run folder per variant."""
    split: str
    """Split that the variants are evaluated on: test, or valid if there is no test split."""
    table: pd.DataFrame
    """One row per variant: `arch, variant, words` (its title), `images, accuracy` (0-1, without TTA except for the
    variant `tta`), `low` and `high` (95% confidence interval), `against` (the variant it is compared with),
    `difference` (-1 to 1), `difference_low`, `difference_high`, `p` (McNemar's mid-p, Holm-corrected over all
    variants), `beyond_noise`, `seconds` (training, and the cached features), `parameters` (trained) and `run` (its
    folder)."""
    sentences: list[str]
    """The recommended variant, and how the others compare with it."""
    metric: Metric | None = None
    """The metric that the recipe names, if it is not the accuracy: the table then has its value and interval as
    `METRIC, METRIC_low, METRIC_high`, and differences and p are its own, see `metric_test`."""

    def __repr__(self) -> str:
        return f"Ladder({str(self.folder)!r})"

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the recommended variant, the chart, how the others compare, and the page."""
        from baseline.notebook import card
        from baseline.report import figures

        title = self.metric.title if self.metric else "Accuracy"
        drawing = figures.ladder_figure(self.table, self.metric)
        chart = figures.svg(drawing, figures.unique_prefix(self.folder), f"{title} of each variant")
        first, *others = self.sentences
        return card(first, [chart], others, [self.folder / "ladder.html", self.folder / "ladder.csv"])


def run_ladder(
    images: str | Path | pd.DataFrame | None = None,
    recipe: str | Path | Recipe = "default",
    *,
    archs: Sequence[str] = (),
    variants: Sequence[str] = (),
    out: str | Path | None = None,
    resume: bool = False,
    executor: str = "",
    clip: str = "",
    prompt: str = "",
    progress: Progress | None = None,
    **changes: Any,
) -> Ladder:
    """Run variants of increasing effort on one split of the images, and report what each gains and what it costs.

    Args:
        images, recipe, changes: as for `make_baseline`; the recipe's stages are those of the variants `groups` and
            `all`.
        archs: architectures to compare, each with all variants; the recipe's own if empty.
        variants: names from `VARIANTS` to run; all except `zeroshot` if empty.
        out: output folder; `runs/ladder-NAME-DATE-TIME` if not given.
        resume: keep the variants that an interrupted ladder in `out` has finished.
        executor: the executor that trains the variants; see `run_seeds`. Variants that train no network run in this
            process meanwhile, because their data is in memory.
        clip, prompt: model and prompt of the variant `zeroshot`, which is run if it is named or `clip` is given; see
            `baseline.experiments.zeroshot.parse_clip`. Needs the extra `clip`.

    Raises:
        RecipeError: if a variant does not exist, the recipe has a budget, `executor` does not exist, `tta` is requested
            without a variant or views to apply it to, or `zeroshot` is requested without the extra, for multi-label
            images, or with a model that open_clip does not know.
        WeightsError: if the weights of `clip` cannot be obtained or do not fit.
        OutputError: if `out` contains a ladder and `resume` is false, or a ladder of other images or another recipe.

    >>> run_ladder("images/").sentences[0]                                        # doctest: +SKIP
    'Recommended: last layer groups fine-tuned, 87.7% (84.6 to 90.3%) on test, trained in 45 s.'
    """
    refuse_own_parts("A ladder", images, changes)
    if unknown := [name for name in variants if name not in VARIANTS]:
        raise RecipeError(unknown_name("variant", unknown[0], VARIANTS))
    progress = progress or ConsoleProgress()
    selected = [name for name in VARIANTS if name in variants or (bool(clip) if name == "zeroshot" else not variants)]
    if prompt and "zeroshot" not in selected:
        raise RecipeError("The prompt is for the variant zeroshot. Add it to --variants, or give --clip.")
    if "tta" in selected and not set(selected) & set(TTA_BASE_VARIANTS):
        raise RecipeError(
            f"The variant tta needs a trained variant to apply it to. Add one of {', '.join(TTA_BASE_VARIANTS)}."
        )
    clip_model = parse_clip(clip, prompt) if "zeroshot" in selected else None
    (base_recipe, place), job_executor = choose_recipe(images, recipe), get_executor(executor, progress)
    with create_run_folder(out, f"ladder-{run_name(place, base_recipe.name)}") as folder, job_executor:
        architectures = prepare_architectures(
            images, base_recipe, archs, folder, progress, changes, resume=resume, clip=clip_model
        )
        if "tta" in variants and not architectures[0].requested.evaluation.tta:
            raise RecipeError(
                "The variant tta was requested, but the recipe's tta has no views. Set tta, or omit the variant."
            )
        with resume_hint_on_interrupt(folder, progress):
            ladder = evaluate_variants(run_variants(architectures, selected, job_executor), folder)
        write_ladder_files(ladder)
    return ladder


def run_variants(
    architectures: Sequence[Architecture], variants: Sequence[str], executor: Executor
) -> list[tuple[Architecture, str, Path]]:
    """Run all variants, and return the architecture, variant and run folder of each."""
    pairs = [
        (architecture, variant)
        for number, architecture in enumerate(architectures)
        for variant in variants
        if not (variant in ARCH_INDEPENDENT and number)
        and not (variant == "tta" and not architecture.requested.evaluation.tta)
    ]
    jobs = [
        variant_job(
            f"variant {number} of {len(pairs)}: {VARIANTS[variant]}, {architecture.variant_recipe(variant).model.arch}",
            architecture,
            variant,
        )
        # zero-shot first, so that weights that do not fit are reported before hours of training
        for number, (architecture, variant) in enumerate(sorted(pairs, key=lambda pair: pair[1] != "zeroshot"), 1)
    ]
    executor.run(jobs, sum(not job.local for job in jobs))
    trained = {
        architecture: [variant for other, variant in pairs if other is architecture and variant in TTA_BASE_VARIANTS]
        for architecture in architectures
    }
    runs = []
    for architecture, variant in pairs:
        folders = [architecture.folder / name for name in trained[architecture]]
        run = max(folders, key=valid_score) if variant == "tta" else architecture.folder / variant
        runs.append((architecture, variant, run))
    return runs


def variant_job(title: str, architecture: Architecture, variant: str) -> Job:
    """Return the job that makes the run folder of a variant."""
    if variant == "tta":  # the run of another variant, which is evaluated with TTA anyway
        return Job(title, lambda progress: None, local=True)
    return architecture.job(title, variant, architecture.folder / variant)


def valid_score(run: Path) -> float:
    """Return the metric on the validation images, which may be used to choose a variant; higher is better."""
    manifest = read_manifest(run)
    metric, scores = metric_besides_accuracy(manifest), cast("dict[str, Any]", manifest["metrics"]["valid"]["plain"])
    return metric.score(scores[metric.name]) if metric else float(scores["accuracy"])


def evaluate_variants(runs: Sequence[tuple[Architecture, str, Path]], folder: Path) -> Ladder:
    """Return the results of all variants, each tested against its reference."""
    import pandas as pd

    from baseline.evaluation.metrics import accuracy_of
    from baseline.evaluation.significance import holm_correction

    manifest = read_manifest(runs[0][2])
    split, metric = headline_split(manifest["metrics"]), metric_besides_accuracy(manifest)
    task = runs[0][0].recipe.data.task
    tables = [read_split_predictions(run, split, variant == "tta", metric) for _, variant, run in runs]
    references = [reference_index(runs, index) for index in range(len(runs))]

    tests = holm_correction(
        [
            {} if reference is None else compare_tables(tables[reference], table, metric, task)
            for reference, table in zip(references, tables, strict=True)
        ]
    )
    rows = []
    for (architecture, variant, run), table, reference, test in zip(runs, tables, references, tests, strict=True):
        accuracy, low, high = accuracy_of(table)
        stages = read_manifest(run)["stages"]
        difference_low, difference_high = test.get("interval", (None, None))
        rows.append(
            {
                "arch": architecture.recipe.model.arch if variant not in ARCH_INDEPENDENT else "",
                "variant": variant,
                "words": variant_title(architecture, variant, run),
                "images": len(table),
                "accuracy": accuracy,
                "low": low,
                "high": high,
                **(metric_columns(evaluate_metric(table, metric, task)) if metric else {}),
                "against": None if reference is None else runs[reference][1],
                "difference": test.get("difference"),
                "difference_low": difference_low,
                "difference_high": difference_high,
                "p": test.get("p"),
                "beyond_noise": test.get("beyond_noise"),
                "seconds": round(sum(stage["seconds"] + stage.get("cached_seconds", 0) for stage in stages), 1),
                "parameters": max(stage["parameters"] for stage in stages),
                "run": str(run),
            }
        )
    sentences = summarize_ladder(rows, tables, references, split, metric, task)
    return Ladder(folder, split, pd.DataFrame(rows), sentences, metric)


def metric_columns(headline: Headline) -> dict[str, float | None]:
    """Return a metric and the ends of its interval as columns of the table."""
    name, (low, high) = headline.metric.name, headline.interval or (None, None)
    return {name: headline.value, f"{name}_low": low, f"{name}_high": high}


def variant_title(architecture: Architecture, variant: str, run: Path) -> str:
    if variant == "zeroshot":
        return f"{VARIANTS[variant]}, {architecture.variant_recipe(variant).model.arch}"
    if variant != "tta":
        return VARIANTS[variant]
    reason = read_manifest(run)["reasons"].get("tta", "")
    return f"{VARIANTS[run.name]}, {VARIANTS[variant]}{f' (not used: {reason})' if reason else ''}"


def reference_index(runs: Sequence[tuple[Architecture, str, Path]], index: int) -> int | None:
    """Return the index of the run that a run is tested against: the previous variant of the same architecture.

    There are three exceptions. TTA is tested against the same network without it; random weights and zero-shot
    classification are tested against a fine-tuned network.
    """
    architecture, variant, run = runs[index]
    previous = [number for number in range(index) if runs[number][0] is architecture and runs[number][1] != "tta"]
    if variant == "tta":
        return next(number for number in previous if runs[number][2] == run)
    if variant in ("scratch", "zeroshot") and (
        fine_tuned := [number for number in previous if runs[number][1] in ("groups", "all")]
    ):
        return fine_tuned[-1]
    if previous:
        return previous[-1]
    return 0 if index and runs[0][1] == "majority" else None


def describe_gain(test: Mapping[str, Any], metric: Metric | None) -> tuple[str, bool]:
    """Describe a difference, and return whether it is significant."""
    if not test:
        return "an undefined amount", False
    if metric:
        return describe_change(test, metric), bool(test["beyond_noise"])
    low, high = (100 * bound for bound in test["interval"])
    return f"{100 * test['difference']:+.1f} points ({low:+.1f} to {high:+.1f})", bool(test["beyond_noise"])


def summarize_ladder(
    rows: Sequence[Mapping[str, Any]],
    tables: Sequence[pd.DataFrame],
    references: Sequence[int | None],
    split: str,
    metric: Metric | None = None,
    task: str = "single",
) -> list[str]:
    """Return sentences that recommend a variant, and say how others compare with it.

    The recommended variant is the cheapest one that the most accurate one does not beat significantly; of several that
    take about as long, it is the one with the highest accuracy. If the recipe names another metric, that one is used.
    """

    def score(index: int) -> float:
        return metric.score(rows[index][metric.name]) if metric else float(rows[index]["accuracy"])

    def gain(reference: int, other: int) -> tuple[str, bool]:
        return describe_gain(compare_tables(tables[reference], tables[other], metric, task), metric)

    def extra_time(reference: int, other: int) -> str:
        return f"{format_duration(rows[other]['seconds'] - rows[reference]['seconds'])} more"

    several = len({row["arch"] for row in rows if row["arch"]}) > 1
    titles = [f"{row['words']} ({row['arch']})" if several and row["arch"] else row["words"] for row in rows]
    by_time = sorted(range(len(rows)), key=lambda index: (rows[index]["seconds"], index))
    best = max(by_time, key=score)
    not_beaten = [index for index in by_time if index == best or not gain(index, best)[1]]
    shortest = rows[not_beaten[0]]["seconds"]
    tolerance = max(SIMILAR_TIME[0] * shortest, SIMILAR_TIME[1])
    similar_time = [index for index in not_beaten if rows[index]["seconds"] - shortest <= tolerance]
    recommended = max(similar_time, key=score)
    row = rows[recommended]
    accuracy = f"{100 * row['accuracy']:.1f}% ({100 * row['low']:.1f} to {100 * row['high']:.1f}%)"
    if metric:
        accuracy = f"{metric.title} {headline_of_row(row, metric)}"
    title, verb = (metric.title, f"changes {metric.title} by") if metric else ("accuracy", "gains")
    effort = "trained in" if row["parameters"] else "without training, in"
    sentences = [
        f"Recommended: {titles[recommended]}, {accuracy} on {split}, {effort} {format_duration(row['seconds'])}."
    ]
    cheaper = [index for index in by_time[: by_time.index(recommended)] if rows[index]["seconds"] < row["seconds"]]
    if cheaper:
        runner_up = max(cheaper, key=score)
        sentences.append(
            f"It {verb} {gain(runner_up, recommended)[0]} over {titles[runner_up]}, "
            f"for {extra_time(runner_up, recommended)}."
        )
    if recommended != best:
        sentences.append(
            f"The {'best' if metric else 'highest'} {title} is that of {titles[best]}: "
            f"{gain(recommended, best)[0]}, not significant, "
            f"for {extra_time(recommended, best)}."
        )
    subjects = {"tta": "TTA", "scratch": "Starting from random weights", "zeroshot": "Zero-shot classification"}
    for index, row in enumerate(rows):
        if row["variant"] in subjects and (reference := references[index]) is not None:
            points, beyond_noise = gain(reference, index)
            sentences.append(
                f"{subjects[row['variant']]} changes {title} by {points} compared with {titles[reference]}"
                f"{'' if beyond_noise else ', not significant'}."
            )
    return sentences


def headline_of_row(row: Mapping[Any, Any], metric: Metric, digits: int = 1) -> str:
    """Return a metric and its interval as the table shows them, `0.9731 (0.9612 to 0.9810)`."""
    low, high = row[f"{metric.name}_low"], row[f"{metric.name}_high"]
    span = f" ({metric.text(low, digits)} to {metric.text(high, digits)})" if low is not None and low == low else ""
    return f"{metric.text(row[metric.name], digits)}{span}"


def write_ladder_files(ladder: Ladder) -> None:
    """Write the table, the figure and the page of a ladder into its folder."""
    from markupsafe import Markup

    from baseline.report import figures
    from baseline.report.html import render

    rows = [
        {key: None if value != value else value for key, value in row.items()}
        for row in ladder.table.to_dict("records")
    ]
    figure = figures.ladder_figure(ladder.table, ladder.metric)
    title = ladder.metric.title if ladder.metric else "Accuracy"
    page = {
        "ladder": ladder,
        "metric_text": headline_of_row,
        "rows": rows,
        "several": len({row["arch"] for row in rows if row["arch"]}) > 1,
        "drawing": Markup(figures.svg(figure, "ladder", f"{title} of each variant")),
    }
    contents = {"split": ladder.split, "sentences": ladder.sentences, "variants": rows}
    write_atomic(ladder.folder / "ladder.csv", to_csv(ladder.table))
    write_atomic(ladder.folder / "ladder.json", to_json(contents))
    write_atomic(ladder.folder / "ladder.png", figures.png(figure))
    write_atomic(ladder.folder / "ladder.html", render("ladder", page))
