"""Images -> the variants from saying the most frequent class to training every layer, each with what it gains and costs.

Knows variants and their run folders; trains nothing itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from baseline.errors import RecipeError, unknown_name
from baseline.experiments.variants import (
    ARCH_INDEPENDENT,
    PROBES,
    VARIANTS,
    prepare_architectures,
    read_split_predictions,
    resume_hint_on_interrupt,
)
from baseline.experiments.zeroshot import parse_clip
from baseline.files import to_json, write_atomic
from baseline.parallel.executor import Job, get_executor
from baseline.progress import ConsoleProgress, format_duration
from baseline.recipe.choose import starting_recipe
from baseline.runs.folder import create_run_folder, headline_split, read_manifest

if TYPE_CHECKING:
    import pandas as pd

    from baseline.experiments.variants import Architecture
    from baseline.parallel.executor import Executor
    from baseline.progress import Progress
    from baseline.recipe.schema import Recipe

__all__ = ["Ladder", "run_ladder"]


TTA_BASE_VARIANTS = tuple(name for name in VARIANTS if name not in (*PROBES, "scratch", "tta"))
"""Variants that test-time augmentation may be of."""


SIMILAR_TIME = 0.1, 1.0
"""By so large a share, or by so many seconds, the same training takes longer another time."""


@dataclass(frozen=True)
class Ladder:
    """What each variant reached."""

    folder: Path
    """Holds `ladder.csv`, `ladder.json`, `ladder.png`, `ladder.html`, `split.csv` and a run folder for each variant."""
    split: str
    """Whose images the variants are judged on: test, or valid where there is none."""
    table: pd.DataFrame
    """One row a variant: `arch, variant, words, images, accuracy` (0-1, on the plain image but for the variant `tta`), `low` and
    `high` (its 95 % interval), `against` (the variant it is tested against), `difference` (-1 to 1), `difference_low`,
    `difference_high`, `p` (McNemar's mid-p, Holm's over all variants), `beyond_noise`, `seconds` (of training, and of what
    the frozen layers made of the images), `parameters` (trained) and `run` (its folder)."""
    sentences: list[str]
    """What to take, and what the rest would bring."""


def run_ladder(
    images: str | Path | pd.DataFrame | None = None,
    recipe: str | Path | Recipe = "default",
    *,
    archs: Sequence[str] = (),
    variants: Sequence[str] = (),
    out: str | Path | None = None,
    resume: bool = False,
    on: str = "",
    clip: str = "",
    prompt: str = "",
    progress: Progress | None = None,
    **changes: Any,
) -> Ladder:
    """Climbs the ladder on one split of the images; tells what each variant gains over the one below, and what it costs.

    Args:
        images, recipe, changes: as `make_baseline` takes them; its stages are what the variants `groups` and `all` do.
        archs: bodies to compare, each with all variants; the recipe's own if not given.
        variants: some of `VARIANTS`, to climb only these; all but `zeroshot` if not given.
        out: the folder; `runs/ladder-NAME-DATE-TIME` if not given.
        resume: keep the variants that an interrupted ladder in `out` has finished.
        on: what trains the variants; see `run_seeds`. Those without a network of their own are arithmetic on what is in
            memory, and are done here meanwhile.
        clip, prompt: for the variant `zeroshot`, which is climbed where it is asked for or `clip` is given; see
            `baseline.zeroshot.clip_of`. Needs the extra `clip`.

    Raises:
        RecipeError: for a variant that does not exist, a recipe with a budget, if `on` is nothing that makes runs, for a
            variant `tta` without a variant or views that it is of, or for a variant `zeroshot` without the extra, with many
            labels an image, or with a model that open_clip does not know.
        WeightsError: if the weights of `clip` cannot be had or do not fit.
        OutputError: if `out` holds a ladder and `resume` was not asked for, or one of other images or another recipe.

    >>> run_ladder("images/").sentences[0]                                        # doctest: +SKIP
    'Take the last layer groups fine-tuned: 87.7% (84.6% to 90.3%) on test, trained in 45 s.'
    """
    if strange := [name for name in variants if name not in VARIANTS]:
        raise RecipeError(unknown_name("variant", strange[0], VARIANTS))
    progress = progress or ConsoleProgress()
    wanted = [name for name in VARIANTS if name in variants or (bool(clip) if name == "zeroshot" else not variants)]
    if prompt and "zeroshot" not in wanted:
        raise RecipeError("The prompt is for the variant zeroshot. Add it to --variants, or give --clip.")
    if "tta" in wanted and not set(wanted) & set(TTA_BASE_VARIANTS):
        raise RecipeError(
            f"The variant tta is of a trained one, and there is none. Add one of {', '.join(TTA_BASE_VARIANTS)}."
        )
    asked = parse_clip(clip, prompt) if "zeroshot" in wanted else None
    chosen, workers = starting_recipe(images, recipe), get_executor(on, progress)
    with create_run_folder(out, f"ladder-{chosen.name}") as folder, workers:
        bodies = prepare_architectures(images, chosen, archs, folder, progress, changes, resume=resume, clip=asked)
        if "tta" in variants and not bodies[0].wished.tta:
            raise RecipeError(
                "The variant tta is asked for, and the recipe's tta has no views. Give some, or leave it out."
            )
        with resume_hint_on_interrupt(folder, progress):
            found = evaluate_variants(run_variants(bodies, wanted, workers), folder)
        write_ladder_files(found)
    return found


def run_variants(
    bodies: Sequence[Architecture], variants: Sequence[str], workers: Executor
) -> list[tuple[Architecture, str, Path]]:
    """Body, variant and run folder of each variant, when all are finished."""
    each = [
        (body, variant)
        for number, body in enumerate(bodies)
        for variant in variants
        if not (variant in ARCH_INDEPENDENT and number) and not (variant == "tta" and not body.wished.tta)
    ]
    jobs = [
        variant_job(
            f"variant {number} of {len(each)}: {VARIANTS[variant]}, {body.planned(variant).arch}", body, variant
        )
        # zero-shot first: that its weights do not fit is better told before hours of training
        for number, (body, variant) in enumerate(sorted(each, key=lambda one: one[1] != "zeroshot"), 1)
    ]
    workers.all(jobs, sum(not job.here for job in jobs))
    trained = {
        body: [variant for own, variant in each if own is body and variant in TTA_BASE_VARIANTS] for body in bodies
    }
    found = []
    for body, variant in each:
        viewed = (
            max(trained[body], key=lambda name: valid_accuracy(body.folder / name)) if variant == "tta" else variant
        )
        found.append((body, variant, body.folder / viewed))
    return found


def variant_job(words: str, body: Architecture, variant: str) -> Job:
    if variant == "tta":  # of a variant that was evaluated with it, too
        return Job(words, lambda progress: None, here=True)
    return body.job(words, variant, body.folder / variant)


def valid_accuracy(run: Path) -> float:
    """Accuracy on valid, which the choice of a variant may look at."""
    return float(read_manifest(run)["metrics"]["valid"]["plain"]["accuracy"])


def evaluate_variants(climbed: Sequence[tuple[Architecture, str, Path]], folder: Path) -> Ladder:
    import pandas as pd

    from baseline.evaluation.metrics import accuracy_of
    from baseline.evaluation.significance import holm_correction, paired_test

    split = headline_split(read_manifest(climbed[0][2])["metrics"])
    tables = [read_split_predictions(run, split, variant == "tta") for _, variant, run in climbed]
    below = [reference_index(climbed, number) for number in range(len(climbed))]
    tests = holm_correction(
        [{} if at is None else paired_test(tables[at], told) for at, told in zip(below, tables, strict=True)]
    )
    rows = []
    for (body, variant, run), told, at, test in zip(climbed, tables, below, tests, strict=True):
        accuracy, low, high = accuracy_of(told)
        stages = read_manifest(run)["stages"]
        less, more = test.get("interval", (None, None))
        rows.append(
            {
                "arch": body.recipe.arch if variant not in ARCH_INDEPENDENT else "",
                "variant": variant,
                "words": variant_title(body, variant, run),
                "images": len(told),
                "accuracy": accuracy,
                "low": low,
                "high": high,
                "against": None if at is None else climbed[at][1],
                "difference": test.get("difference"),
                "difference_low": less,
                "difference_high": more,
                "p": test.get("p"),
                "beyond_noise": test.get("beyond_noise"),
                "seconds": round(sum(each["seconds"] + each.get("cached_seconds", 0) for each in stages), 1),
                "parameters": max(each["parameters"] for each in stages),
                "run": str(run),
            }
        )
    return Ladder(folder, split, pd.DataFrame(rows), summarize_ladder(rows, tables, below, split))


def variant_title(body: Architecture, variant: str, run: Path) -> str:
    if variant == "zeroshot":
        return f"{VARIANTS[variant]}, {body.planned(variant).arch}"
    return f"{VARIANTS[run.name]}, {VARIANTS[variant]}" if variant == "tta" else VARIANTS[variant]


def reference_index(climbed: Sequence[tuple[Architecture, str, Path]], number: int) -> int | None:
    """The number of the variant that one is tested against: the one below it, of the same body, but for three.

    Test-time augmentation is tested against the same network without it, random weights and zero-shot classification
    against a fine-tuned body.
    """
    body, variant, run = climbed[number]
    own = [at for at in range(number) if climbed[at][0] is body and climbed[at][1] != "tta"]
    if variant == "tta":
        return next(at for at in own if climbed[at][2] == run)
    if variant in ("scratch", "zeroshot") and (tuned := [at for at in own if climbed[at][1] in ("groups", "all")]):
        return tuned[-1]
    if own:
        return own[-1]
    return 0 if number and climbed[0][1] == "majority" else None


def summarize_ladder(
    rows: Sequence[Mapping[str, Any]], tables: Sequence[pd.DataFrame], below: Sequence[int | None], split: str
) -> list[str]:
    """The cheapest variant that the best one does not beat beyond noise, what it gains, and what the rest would bring.

    Of those that take about as long as the cheapest it is the one with the highest accuracy.
    """
    from baseline.evaluation.significance import paired_test

    def gain(one: int, other: int) -> tuple[str, bool]:
        found = paired_test(tables[one], tables[other])
        low, high = (100 * end for end in found["interval"])
        return f"{100 * found['difference']:+.1f} points ({low:+.1f} to {high:+.1f})", bool(found["beyond_noise"])

    def costs(one: int, other: int) -> str:
        return f"{format_duration(rows[other]['seconds'] - rows[one]['seconds'])} more"

    several = len({row["arch"] for row in rows if row["arch"]}) > 1
    named = [f"{row['words']} ({row['arch']})" if several and row["arch"] else row["words"] for row in rows]
    order = sorted(range(len(rows)), key=lambda at: (rows[at]["seconds"], at))
    best = max(order, key=lambda at: rows[at]["accuracy"])
    equal = [at for at in order if at == best or not gain(at, best)[1]]
    least = rows[equal[0]]["seconds"]
    near = [at for at in equal if rows[at]["seconds"] - least <= max(SIMILAR_TIME[0] * least, SIMILAR_TIME[1])]
    taken = max(near, key=lambda at: rows[at]["accuracy"])
    row = rows[taken]
    span = f"{row['accuracy']:.1%} ({row['low']:.1%} to {row['high']:.1%})"
    how = "trained" if row["parameters"] else "without training,"
    found = [f"Take {named[taken]}: {span} on {split}, {how} in {format_duration(row['seconds'])}."]
    cheaper = [at for at in order[: order.index(taken)] if rows[at]["seconds"] < row["seconds"]]
    if cheaper:
        next_best = max(cheaper, key=lambda at: rows[at]["accuracy"])
        words = f"{gain(next_best, taken)[0]} over {named[next_best]}, for {costs(next_best, taken)}"
        found.append(f"It brings {words}.")
    if taken != best:
        words = f"{gain(taken, best)[0]}, no difference beyond noise, for {costs(taken, best)}"
        found.append(f"The highest number is that of {named[best]}: {words}.")
    asides = {"tta": "Test-time augmentation brings", "scratch": "Random weights instead bring",
              "zeroshot": "Zero-shot classification instead brings"}  # fmt: skip
    for at, row in enumerate(rows):
        if row["variant"] in asides and (lower := below[at]) is not None:
            words, beyond = gain(lower, at)
            found.append(
                f"{asides[row['variant']]} {words} over {named[lower]}{'' if beyond else ': nothing beyond noise'}."
            )
    return found


def write_ladder_files(found: Ladder) -> None:
    from markupsafe import Markup

    from baseline.report import figures
    from baseline.report.html import render

    rows = [
        {key: None if value != value else value for key, value in row.items()} for row in found.table.to_dict("records")
    ]
    figure = figures.ladder_figure(found.table)
    page = {
        "found": found,
        "rows": rows,
        "several": len({row["arch"] for row in rows if row["arch"]}) > 1,
        "drawing": Markup(figures.svg(figure, "ladder", "Accuracy of each variant")),
    }
    told = {"split": found.split, "sentences": found.sentences, "variants": rows}
    write_atomic(found.folder / "ladder.csv", found.table.to_csv(index=False))
    write_atomic(found.folder / "ladder.json", to_json(told))
    write_atomic(found.folder / "ladder.png", figures.png(figure))
    write_atomic(found.folder / "ladder.html", render("ladder", page))
