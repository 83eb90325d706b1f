"""Images -> accuracy by the number of training images, and what more of them should bring.

The same test images judge every size. Knows variants and their run folders; trains nothing itself.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from baseline.data.split import split_to_csv
from baseline.errors import DataError, RecipeError, unknown_name
from baseline.experiments.power_law import fit_power_law
from baseline.experiments.variants import (
    ARCH_INDEPENDENT,
    PROBES,
    VARIANTS,
    prepare_architectures,
    read_split_predictions,
    resume_hint_on_interrupt,
)
from baseline.files import to_json, write_atomic
from baseline.parallel.executor import Job, get_executor
from baseline.progress import ConsoleProgress
from baseline.recipe.choose import starting_recipe
from baseline.runs.folder import create_run_folder

if TYPE_CHECKING:
    import pandas as pd

    from baseline.experiments.variants import Architecture
    from baseline.parallel.executor import Executor
    from baseline.progress import Progress
    from baseline.recipe.schema import Recipe

__all__ = ["LearningCurve", "run_learning_curve"]


SMALLEST_SIZE = 5
"""Images a class; from there on doubled."""

MIN_SIZES = 3

MIN_GROUPS = 16

MIN_REDUNDANCY_SEEDS = 5

FIGURE_TITLE = "Accuracy by training images"

CURVE_VARIANTS = tuple(name for name in VARIANTS if name not in (*ARCH_INDEPENDENT, "tta"))


@dataclass(frozen=True)
class LearningCurve:
    """Accuracy by the number of training images."""

    folder: Path
    """Holds `curve.csv`, `curve.json`, `curve.png`, `curve.html`, `split.csv` and the run folders."""
    split: str
    table: pd.DataFrame
    """One row a training: `variant, size` (images a class), `seed` (of the choice of images), `images` (for training),
    `accuracy` (0-1, on the plain image) and `run` (its folder; empty where no network was trained)."""
    fits: dict[str, dict[str, Any]]
    """By variant: `floor, scale, exponent`; `doubled`: images, expected accuracy and the interval of the gain; `checked`:
    the accuracy of all images, foretold from at most half of them, as an interval, and measured."""
    redundancy: dict[str, Any]
    """Where images have groups: accuracies with a share of every group's images, and with all images of a share of the
    groups."""
    sentences: list[str]


def run_learning_curve(
    images: str | Path | pd.DataFrame | None = None,
    recipe: str | Path | Recipe = "default",
    *,
    sizes: Sequence[int] = (),
    seeds: int = 3,
    variants: Sequence[str] = ("logistic", "groups"),
    out: str | Path | None = None,
    resume: bool = False,
    on: str = "",
    progress: Progress | None = None,
    **changes: Any,
) -> LearningCurve:
    """Trains on more and more of the images, and tells what twice as many should bring.

    Training and valid images are thinned alike, class by class; those of one seed hold the smaller sets of it. With all
    images there is nothing to choose, and the seed is that of the training alone.

    Args:
        images, recipe, changes: as `make_baseline` takes them.
        sizes: training images a class; 5, 10, 20 ... and all if not given.
        seeds: choices of images for each size.
        variants: what is trained; names from `baseline ladder` but for `majority`, `tta` and `zeroshot`.
        out: the folder; `runs/curve-NAME-DATE-TIME` if not given.
        resume: keep the trainings that an interrupted curve in `out` has finished.
        on: what trains; see `run_seeds`. Variants without a network of their own are arithmetic on what is in memory, and
            are done here meanwhile.

    Raises:
        RecipeError: for unknown variants, fewer than three sizes, a recipe with a budget, or if `on` is nothing that makes
            runs.
        DataError: if the images are too few for three sizes.
        OutputError: if `out` was begun and `resume` was not asked for, or with other images or another recipe.

    >>> run_learning_curve("images/").sentences[0]                                         # doctest: +SKIP
    'logistic regression on pretrained features: twice the images (4,044) should bring 0.4 to 1.9 points.'
    """
    if strange := [name for name in variants if name not in CURVE_VARIANTS]:
        raise RecipeError(unknown_name("variant", strange[0], CURVE_VARIANTS))
    if sizes and (len(set(sizes)) < MIN_SIZES or min(sizes) < 1):
        raise RecipeError(f"--sizes are {', '.join(map(str, sizes))}; {MIN_SIZES} different ones, 1 or more images a "
                          "class each, were needed for a curve.")  # fmt: skip
    if seeds < 1:
        raise RecipeError(f"--seeds is {seeds}; 1 or more were needed.")
    progress = progress or ConsoleProgress()
    chosen, workers = starting_recipe(images, recipe), get_executor(on, progress)
    with create_run_folder(out, f"curve-{chosen.name}") as folder, workers:
        body = prepare_architectures(images, chosen, (), folder, progress, changes, resume=resume)[0]
        with resume_hint_on_interrupt(folder, progress):
            planned = training_sizes(body.table, body.wished.labels, sizes)
            found = CurvePlan(body, planned, seeds, tuple(variants), folder, progress).curve(workers)
        write_curve_files(found)
    return found


@dataclass(frozen=True)
class CurvePlan:
    body: Architecture
    sizes: list[int]
    """Images a class; the last one takes all."""
    seeds: int
    variants: tuple[str, ...]
    folder: Path
    progress: Progress

    @property
    def split(self) -> str:
        return "test" if (self.body.table["split"] == "test").any() else "valid"

    @cached_property
    def label(self) -> pd.Series:
        """Of each image the one that it counts for: its rarest where it has several."""
        return primary_labels(self.body.table, self.body.recipe.labels)

    def curve(self, workers: Executor) -> LearningCurve:
        import pandas as pd

        every = [
            (variant, size, seed)
            for variant in self.variants
            for size in self.sizes
            for seed in range(self.seeds)
            if not (variant in PROBES and size == self.sizes[-1] and seed)  # the same images, and no chance in it
        ]
        words = {
            each: f"{number} of {len(every)}: {VARIANTS[each[0]]}, {each[1]} images a class, choice {each[2] + 1}"
            for number, each in enumerate(every, 1)
        }
        jobs = (self._job(words[each], *each) for each in every)
        count = sum(variant not in PROBES for variant, _, _ in every)
        probed = {job.words: right for job, right in workers.each(jobs, count)}
        rows: list[dict[str, Any]] = []
        hits: list[np.ndarray] = []
        for variant, size, seed in every:
            run = "" if variant in PROBES else str(self._run(variant, size, seed))
            right = self._right(run) if run else probed[words[variant, size, seed]]
            hits.append(right)
            images = int((self._chosen(size, seed)["split"] == "train").sum())
            rows.append({"variant": variant, "size": size, "seed": seed, "images": images, "accuracy": float(right.mean()),
                         "run": run})  # fmt: skip
        table = pd.DataFrame(rows)
        fits = {variant: fit_variant(table[table["variant"] == variant], np.array(hits)) for variant in self.variants}
        redundancy = self._redundancy()
        told = [f"{VARIANTS[variant]}: {line}" for variant in self.variants for line in fits[variant]["words"]]
        return LearningCurve(self.folder, self.split, table, fits, redundancy, told + redundancy.get("words", []))

    def _chosen(self, size: int, seed: int) -> pd.DataFrame:
        """The image table with so many training images a class, and as small a share of the valid ones.

        Valid images stay whole where they are the judges. Of several labels the rarest counts; every class keeps one.
        """
        import pandas as pd

        from baseline.data.labels import explode_labels

        table, label = self.body.table, self.label
        chance = np.random.default_rng(seed).random(len(table))
        rank = table.assign(chance=chance).groupby([label, "split"])["chance"].rank(method="first")
        share = size / self.sizes[-1]
        kept = (table["split"] == "test") | ((table["split"] == "train") & (rank <= size))
        every = explode_labels(table.loc[table["split"] == "train", "label"], self.body.recipe.labels)
        kept[pd.Series(chance[every.index], every.index).groupby(every.to_numpy()).idxmin()] = True
        valid = table["split"] == "valid"
        count = valid.groupby(label).transform("sum")
        kept |= valid & ((rank <= np.ceil(count * share)) | (self.split == "valid"))
        return table[kept]

    def _job(self, words: str, variant: str, size: int, seed: int) -> Job:
        """What trains a network into its run folder, or gives which of the judging images a probe has right."""
        if variant in PROBES:
            return Job(words, lambda progress: self._probed(variant, self._chosen(size, seed)), here=True)
        chosen, run = self._chosen(size, seed), self._run(variant, size, seed)
        split_file = self.folder / "splits" / f"{run.name}.csv"
        write_atomic(split_file, split_to_csv(chosen))
        # batches and steps follow from how many images there are
        wished = self.body.recipe.changed(batch_size=self.body.wished.batch_size, seed=self.body.recipe.seed + seed)
        return dataclasses.replace(self.body, table=chosen, split_file=split_file, wished=wished).job(
            words, variant, run
        )

    def _run(self, variant: str, size: int, seed: int) -> Path:
        return self.folder / variant / f"images-{size}-{seed + 1}"

    def _right(self, run: str) -> np.ndarray:
        """Which of the judging images a run has right, in the order of their paths."""
        told = read_split_predictions(Path(run), self.split, augmented=False).sort_values("path")
        return (told["predicted"] == told["label"]).to_numpy()

    def _probed(self, variant: str, chosen: pd.DataFrame) -> np.ndarray:
        from baseline.data.labels import classes_in, predicted_labels

        table, recipe = self.body.table, self.body.recipe
        rows = {name: chosen.index[chosen["split"] == name].to_numpy() for name in ("train", "valid")}
        judges = table[table["split"] == self.split].sort_values("path")
        found = self.body.probe(variant, rows["train"], rows["valid"], judges.index.to_numpy())
        threshold = recipe.threshold if recipe.labels == "many" else None
        return predicted_labels(found.told, classes_in(table, recipe.labels), threshold) == judges["label"].to_numpy()

    def _redundancy(self) -> dict[str, Any]:
        """By logistic regression: a share of every group's images against all images of that share of the groups.

        An image without a group is one of its own, as where images are split.
        """
        from baseline.data.split import unit_ids

        table = self.body.table
        train = table[table["split"] == "train"].assign(label=self.label)
        if "group" not in train or train["group"].isna().all():
            return {}
        train["group"] = unit_ids(train, "group")
        if train["group"].nunique() < MIN_GROUPS or len(train) < 2 * train["group"].nunique():
            return {}
        self.progress.log("groups: fewer images of each, or fewer of them")
        whole = float(self._probed("logistic", table).mean())
        rows = []
        for share in (1 / 2, 1 / 4, 1 / 8):
            found: dict[str, list[float]] = {"of_each": [], "of_them": []}
            for seed in range(max(self.seeds, MIN_REDUNDANCY_SEEDS)):
                chance = np.random.default_rng(seed).random(len(table))
                for name, kept in (
                    ("of_each", sample_within_groups(train, chance, share)),
                    ("of_them", sample_groups(train, seed, share)),
                ):
                    chosen = table[table["split"].ne("train") | table.index.isin(kept)]
                    found[name].append(float(self._probed("logistic", chosen).mean()))
            rows.append({"share": share, **{name: float(np.mean(values)) for name, values in found.items()}})
        facts = {"groups": int(train["group"].nunique()), "images": len(train), "all": whole, "shares": rows}
        return facts | {"words": describe_redundancy(facts)}


def sample_within_groups(train: pd.DataFrame, chance: np.ndarray, share: float) -> pd.Index:
    """Rows of a share of the images of every group, one at least."""
    rank = train.assign(chance=chance[train.index]).groupby("group")["chance"].rank(method="first")
    count = train.groupby("group")["path"].transform("size")
    return train.index[rank <= np.maximum(1, np.round(count * share))]


def sample_groups(train: pd.DataFrame, seed: int, share: float) -> pd.Index:
    """Rows of all images of a share of the groups of each class, one at least."""
    rng = np.random.default_rng(seed)
    kept: set[Any] = set()
    for _, rows in train.groupby("label"):
        groups = rows["group"].unique()
        kept |= set(rng.permutation(groups)[: max(1, round(len(groups) * share))])
    return train.index[train["group"].isin(kept)]


def describe_redundancy(facts: dict[str, Any]) -> list[str]:
    half = facts["shares"][0]
    lost = {name: 100 * (facts["all"] - half[name]) for name in ("of_each", "of_them")}
    told = [
        f"{facts['images']:,} training images are of {facts['groups']:,} groups: with half of each group's images "
        f"{lost['of_each']:.1f} points are lost, with half of the groups {lost['of_them']:.1f}."
    ]
    if lost["of_each"] < lost["of_them"] / 3:
        told.append("More images of the same groups would add little; images of new ones would.")
    return told


def primary_labels(table: pd.DataFrame, labels: str) -> pd.Series:
    from baseline.data.labels import rarest_label

    return rarest_label(table["label"]) if labels == "many" else table["label"]


def training_sizes(table: pd.DataFrame, labels: str, wished: Sequence[int]) -> list[int]:
    """Images a class: those wished, or doubled from 5; and all."""
    most = int(primary_labels(table, labels)[table["split"] == "train"].value_counts().max())
    # the last is at most 3/4 of all
    doubled = [size for size in (SMALLEST_SIZE * 2**n for n in range(40)) if size <= 0.75 * most]
    found = sorted({size for size in wished if size < most}) if wished else doubled
    if len(found) + 1 < MIN_SIZES:
        words = ", ".join(map(str, [*found, most]))
        raise DataError(
            f"The largest class has {most} training images, and the sizes are {words}; {MIN_SIZES} were needed for a "
            "curve. Give more images, or other --sizes."
        )
    return [*found, most]


def fit_variant(table: pd.DataFrame, hits: np.ndarray) -> dict[str, Any]:
    """The power law of one variant, what twice the images should bring, and whether half of them would have foretold all.

    Args:
        hits: of all trainings, by the table's index.
    """
    power = fit_power_law(table["images"].to_numpy(), hits[table.index])
    most = int(table["images"].max())
    low, high = power.gain(most, 2 * most)
    doubled = {
        "images": 2 * most,
        "accuracy": float(1 - power.error(2 * most)[0]),
        "gain": (low, high),
    }
    words = [f"twice the images ({2 * most:,}) should bring {100 * low:.1f} to {100 * high:.1f} points."]
    fit = {name: float(getattr(power, name)[0]) for name in ("floor", "scale", "exponent")}
    found: dict[str, Any] = {**fit, "noise": power.noise, "doubled": doubled}
    half = table[table["images"] <= most / 2]
    if half["images"].nunique() >= MIN_SIZES:
        earlier = fit_power_law(half["images"].to_numpy(), hits[half.index], same_test=True)
        trainings = int((table["images"] == most).sum())
        high, low = (1 - end for end in earlier.measured(most, trainings))
        measured = float(table.loc[table["images"] == most, "accuracy"].mean())
        image = 1 / hits.shape[1]  # no accuracy is told more finely
        inside = low - image <= measured <= high + image
        found["checked"] = {"from": int(half["images"].max()), "foretold": (low, high), "measured": measured,
                            "inside": inside}  # fmt: skip
        words.append(
            f"from at most {found['checked']['from']:,} images, {low:.1%} to {high:.1%} was foretold for all {most:,}; "
            f"measured {measured:.1%}, {'inside' if inside else 'outside: take the line above with care'}."
        )
    return found | {"words": words}


def write_curve_files(found: LearningCurve) -> None:
    from markupsafe import Markup

    from baseline.report import figures
    from baseline.report.html import render

    lines = {variant: curve_points(found, variant) for variant in found.fits}
    figure = figures.curve_figure(found.table, lines, {variant: VARIANTS[variant] for variant in found.fits})
    told = {"split": found.split, "sentences": found.sentences, "fits": found.fits, "redundancy": found.redundancy}
    sizes = found.table.groupby(["variant", "images"], sort=False)["accuracy"].agg(["count", "mean", "min", "max"])
    page = {
        "found": found,
        "drawing": Markup(figures.svg(figure, "curve", FIGURE_TITLE)),
        "variants": VARIANTS,
        "rows": sizes.reset_index().to_dict("records"),
    }
    write_atomic(found.folder / "curve.csv", found.table.to_csv(index=False))
    write_atomic(found.folder / "curve.json", to_json(told))
    write_atomic(found.folder / "curve.png", figures.png(figure))
    write_atomic(found.folder / "curve.html", render("curve", page))


def curve_points(found: LearningCurve, variant: str) -> np.ndarray:
    """The law as images and accuracies, 2 x points, to twice the images that there are."""
    fit = found.fits[variant]
    images = np.geomspace(found.table["images"].min(), fit["doubled"]["images"], 60)
    return np.stack([images, 1 - (fit["floor"] + fit["scale"] * images ** -fit["exponent"])])
