"""Run folder -> one page that shows and explains it, and its pictures. Knows a run's files; trains nothing.

Everything is read back from the folder (`manifest.json`, `predictions.csv`, `history.csv`, `lr_find.csv`, `split.csv`,
`audit/`, `model/`), so that the page can be made again later, elsewhere, and says the same. The model runs once, on the
few photos that are shown with a Grad-CAM, and not again for a page that shows the same. The page holds its pictures,
styles and its one small script itself, and asks the browser (by its content security policy) to load nothing else.
"""

from __future__ import annotations

import io
import json
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np
import pandas as pd
from markupsafe import Markup
from PIL import Image

from baseline import __version__
from baseline.data.image import fit_photo, open_photo
from baseline.data.labels import each_label, flags_of
from baseline.errors import DataError, OutputError, names
from baseline.evaluation.calibration import BINS
from baseline.evaluation.explain import sentences
from baseline.evaluation.label_errors import suspected_labels
from baseline.evaluation.metrics import measure
from baseline.files import read_json, sha256_of, write
from baseline.progress import Show
from baseline.recipe.schema import course_words, rate_words, trained_words
from baseline.report import figures
from baseline.report.figures import THUMB, Photos
from baseline.report.html import percent, rendered
from baseline.runs.folder import judged_split, read_manifest, read_predictions

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["write_report"]


ERRORS, HITS, RANDOM, SAMPLE = 12, 8, 24, 24
"""Photos shown: most confident errors and least confident hits (these with Grad-CAM), random ones, training ones."""

SUSPECTS = 12
"""Photos shown whose label may be wrong."""

PAIRS = 6
"""Pairs of copies that are shown of each kind."""

CONFUSED = 15


MANIFEST = ("recipe", "reasons", "metrics", "seconds", "stages", "data", "device", "versions", "finished")


def write_report(run: str | Path, show: Show | None = None) -> Path:
    """Writes `report.html` and its pictures (PNG) into the folder of a finished run, and returns the page's path.

    Photos that are no longer where they were are shown as grey boxes, and the page says so.

    Raises:
        OutputError: if the folder holds no finished run, a newer version wrote it, or it cannot be written.
        DataError: if its prediction table lacks columns or holds what is no number.

    >>> write_report("runs/cifar10-20261122-101500")                               # doctest: +SKIP
    PosixPath('runs/cifar10-20261122-101500/report.html')
    """
    show = show or Show()
    found = _read(Path(run))
    with show.bar("writing the report", 5, "parts") as bar:
        page: dict[str, Any] = {"run": found, "version": __version__}
        photos = Photos()
        for part in (_headline, _training, _data, _quality, _examples):
            page |= part(found, photos)
            bar.step()
        page |= _time_and_again(found) | {"missing": photos.missing, "asked": photos.asked}
    target = found.folder / "report.html"
    write(target, rendered("report", page))
    show.say(f"report: {target}")
    return target


@dataclass(frozen=True)
class _Run:
    """What a run folder holds."""

    folder: Path
    manifest: dict[str, Any]
    predictions: pd.DataFrame
    epochs: pd.DataFrame
    sweeps: pd.DataFrame | None
    """None where the folder has no `lr_find.csv`."""
    table: pd.DataFrame
    findings: list[dict[str, Any]]
    pairs: pd.DataFrame | None

    @property
    def recipe(self) -> dict[str, Any]:
        return self.manifest["recipe"]

    @property
    def many(self) -> bool:
        """Whether a photo may have several labels."""
        return self.recipe.get("labels") == "many"

    @cached_property
    def split(self) -> str:
        """The split that the headline is measured on."""
        return judged_split(self.manifest["metrics"])

    @cached_property
    def rows(self) -> pd.DataFrame:
        """The predictions of that split, with `right`."""
        rows = self.predictions[self.predictions["split"] == self.split].reset_index(drop=True)
        return rows.copy().assign(  # a copy, in which a thousand classes are one block again
            right=rows["predicted"] == rows["label"]
        )

    @cached_property
    def numbers(self) -> dict[str, Any]:
        """What `measure` tells of `rows`: the manifest of an older version may not hold all of it."""
        return measure(self.rows, self.recipe.get("labels", "one"))[self.split]

    @cached_property
    def classes(self) -> list[str]:
        return [name.removeprefix("p_") for name in map(str, self.predictions) if name.startswith("p_")]

    @cached_property
    def probabilities(self) -> np.ndarray:
        """Photos x classes, of `rows`."""
        return self.rows[[f"p_{name}" for name in self.classes]].to_numpy()


def _read(folder: Path) -> _Run:
    manifest = read_manifest(folder)
    if lacking := [key for key in MANIFEST if key not in manifest]:
        raise OutputError(f"{folder / 'manifest.json'} lacks {names(lacking)}. Give the folder of a finished run.")
    findings = folder / "audit" / "findings.json"
    run = _Run(
        folder,
        manifest,
        read_predictions(folder),
        _table(folder / "history.csv"),
        _table(folder / "lr_find.csv") if (folder / "lr_find.csv").exists() else None,
        _table(folder / "split.csv", texts=True),
        read_json(findings)["findings"] if findings.exists() else [],
        _table(folder / "audit" / "pairs.csv", texts=True) if (folder / "audit" / "pairs.csv").exists() else None,
    )
    if run.rows.empty:
        raise DataError(f"{folder / 'predictions.csv'} has no row of the split '{run.split}'. Run it again.")
    told = pd.concat([run.rows["label"], run.rows["predicted"]])
    if strange := sorted({*each_label(told, run.recipe.get("labels", "one")).dropna()} - {*run.classes}):
        raise DataError(f"{folder / 'predictions.csv'} has labels without a column p_LABEL: {names(strange)}.")
    return run


def _table(path: Path, texts: bool = False) -> pd.DataFrame:
    """A table of the run folder; with `texts` every value is text as it stands, so that a class may be called NA."""
    options: dict[str, Any] = {"dtype": str, "keep_default_na": False} if texts else {}
    try:
        return pd.read_csv(path, **options)
    except OSError as error:
        raise OutputError(f"{path} cannot be read: {error.strerror}. Give the folder of a finished run.") from None
    except ValueError as error:
        raise OutputError(f"{path} is no whole table: {' '.join(str(error).split())[:120]}. Run it again.") from None


@dataclass(frozen=True)
class _Card:
    """A photo as the page shows it."""

    image: Image.Image | None
    words: str
    """What it is, for those who cannot see it."""
    lines: list[str]
    """What stands below it."""
    path: str
    wrong: bool = False
    looked: Image.Image | None = None
    """The same with its Grad-CAM."""
    looked_words: str = ""


def _sheet(run: _Run, name: str, cards: Sequence[_Card]) -> None:
    """The cards as a picture in the run folder; a photo with a Grad-CAM has that one beside it."""
    pictures = []
    for card in cards:
        pictures.append((card.image, "\n".join(card.lines)))
        if card.looked is not None:
            pictures.append((card.looked, ""))
    if pictures:
        write(run.folder / f"{name}.png", figures.sheet(pictures))


def _figure(run: _Run, name: str, figure: Figure, words: str) -> Markup:
    """The figure for the page, and as a PNG in the run folder."""
    write(run.folder / f"{name}.png", figures.png(figure))
    return Markup(figures.svg(figure, name, words))  # matplotlib and `svg` escape what is not theirs


def _headline(run: _Run, _: Photos) -> dict[str, Any]:
    """The number, its interval, and what to hold against it."""
    kind = "tta" if run.recipe["tta"] else "plain"
    found = run.manifest["metrics"][run.split][kind]
    low, high = found["interval"]
    return {
        "title": _title(run),
        "found": found,
        "half": (high - low) / 2,
        "kind": kind,
        "photos": len(run.rows),
        "sentences": sentences(run.numbers)[1:],  # the first is the headline's own
        "numbers": [
            (split, way, numbers["photos"], numbers[way])
            for split, numbers in run.manifest["metrics"].items()
            for way in (("plain", "tta") if run.recipe["tta"] else ("plain",))
        ],
    }


def _title(run: _Run) -> str:
    """The recipe's, where it is for one data set; else what the photos were called."""
    if run.recipe.get("data") or not run.manifest.get("photos"):
        return run.recipe["title"] or run.recipe["name"]
    return Path(run.manifest["photos"].rpartition(":")[2]).stem


def _training(run: _Run, _: Photos) -> dict[str, Any]:
    """Recipe and reasons, stages, and the curves."""
    stages = run.manifest["stages"]
    reasons = run.manifest["reasons"]
    hidden = {"stages", "presets", "expected", "title"}
    kept = {key: value for key, value in run.recipe.items() if key not in hidden and value not in ("", {}, [], None)}
    settings = [(key, _plain(value), reasons.get(key, "")) for key, value in kept.items()]
    settings += [(key, "", why) for key, why in reasons.items() if key not in kept]
    metric = next((name for name in map(str, run.epochs) if name.startswith("valid_") and name != "valid_loss"), "")
    best = run.epochs[run.epochs["best"]].iloc[-1:]
    words = f"Losses, {metric.removeprefix('valid_').replace('_', ' ')} and learning rate of {len(run.epochs)} epochs"
    for row in best.to_dict("records"):
        words += f"; the best, {row[metric]:.2%} on valid, was epoch {row['epoch']} of stage {row['stage']}"
    context = {
        "settings": settings,
        "stages": [
            {
                **stage,
                "rate": rate_words(stage["lr"]),
                "trained": trained_words(stage["trains"]),
                "course": course_words(stage),
            }
            for stage in stages
        ],
        "weights": run.manifest.get("weights"),
        "training": _figure(run, "training", figures.training_figure(run.epochs), words),
        "search": None,
    }
    if run.sweeps is not None:
        searched = [f"stage {n}: {rate_words(stages[n - 1]['lr'])}" for n in sorted(run.sweeps["stage"].unique())]
        words = f"Loss against learning rate; taken: {', '.join(searched) or 'the rates of the recipe'}"
        figure = figures.lr_find_figure(run.sweeps, stages)
        context["search"] = _figure(run, "lr_find", figure, words)
    return context


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(each)}" for key, each in value.items())
    if isinstance(value, tuple | list):
        return ", ".join(map(_plain, value))
    return {True: "yes", False: "no"}.get(value, str(value)) if isinstance(value, bool) else str(value)


def _data(run: _Run, photos: Photos) -> dict[str, Any]:
    """Counts, what the audit found, some training photos, and pairs of copies."""
    labels = each_label(run.table["label"], run.recipe.get("labels", "one"))  # a row a label, by the photo's index
    table = run.table.drop(columns="label").join(labels)
    counts = pd.crosstab(table["label"], table["split"])
    counts = counts[[split for split in ("train", "valid", "test") if split in counts]]
    smallest, largest = counts.sum(axis=1).min(), counts.sum(axis=1).max()
    words = f"Photos of {len(counts)} classes by split; the smallest class has {smallest:,}, the largest {largest:,}"
    sample = [_card(photos, row["path"], row["label"], "a training photo of") for row in _sample(run)]
    _sheet(run, "sample", sample)
    return {
        "counts": counts,
        "totals": run.table["split"].value_counts(),
        "class_counts": _figure(run, "classes", figures.counts_figure(counts), words),
        "findings": run.findings,
        "left_out": run.manifest["data"].get("left_out", []),
        "sample": sample,
        "pairs": [] if run.pairs is None else list(_pairs(run.pairs, photos)),
    }


def _sample(run: _Run) -> list[dict[Any, Any]]:
    """Training photos of as many classes as there is room for, the same number of each."""
    rows = run.table[run.table["split"] == "train"]
    labels = rows["label"].unique()
    chosen = np.sort(np.random.default_rng(0).permutation(labels)[:SAMPLE])
    each = max(1, min(4, SAMPLE // max(1, len(chosen))))
    picked = rows[rows["label"].isin(chosen)].groupby("label").sample(frac=1, random_state=0)
    return picked.groupby("label", sort=True).head(each).sort_values("label", kind="stable").to_dict("records")


def _pairs(pairs: pd.DataFrame, photos: Photos) -> Iterable[tuple[str, int, list[tuple[_Card, _Card]]]]:
    """By what they are, how many there are and the first of them."""
    near = pairs[pairs["kind"] == "near"].sort_values("distance", key=lambda bits: bits.astype(int), kind="stable")
    parts = {
        "Leaks: copies in two splits": pairs[pairs["leak"] == "True"],
        "Conflicts: copies with different labels": pairs[pairs["conflict"] == "True"],
        "Near-duplicates": near,
    }
    for title, part in parts.items():
        if len(part):
            shown = [
                (
                    _card(photos, row["path"], row["label"], "a photo of", row["split"]),
                    _card(photos, row["other"], row["other_label"], "its copy, labelled", row["other_split"]),
                )
                for row in part.head(PAIRS).to_dict("records")
            ]
            yield title, len(part), shown


def _card(photos: Photos, path: str, label: str, words: str, split: str = "") -> _Card:
    lines = [label or "no label", *([split] if split else [])]
    return _Card(photos.get(path), f"{words} {label or 'no label'}", lines, path)


def _quality(run: _Run, _: Photos) -> dict[str, Any]:
    """Confusions, classes one by one, and whether the confidence can be trusted."""
    tta = run.numbers["tta"]
    bins = pd.DataFrame(tta["reliability"]).dropna(subset="confidence")
    words = f"Share right against confidence in {BINS} bins; on average they are {100 * tta['ece']:.1f} points apart"
    context: dict[str, Any] = {
        "confusion": None,
        "confused": tta.get("confused", [])[:CONFUSED],
        "large": len(run.classes) > figures.MOST_NAMED,
        "bins": bins.to_dict("records"),
        "ece": tta["ece"],
        "lean": float(np.average(bins["confidence"] - bins["accuracy"], weights=bins["photos"])),
        "temperature": run.manifest.get("calibration", {}).get(run.split, {}).get("words", ""),
        "reliability": _figure(run, "reliability", figures.reliability_figure(bins), words),
    }
    matrix = None if run.many else _confusion(run)
    most = [""] * len(run.classes)
    if matrix is not None:
        right = int(np.trace(matrix))
        words = f"Truth by prediction for {len(run.classes)} classes: {right:,} of {matrix.sum():,} photos are right"
        for first in context["confused"][:1]:
            words += f"; most often {first['label']} is taken for {first['predicted']}, {first['photos']} times"
        context["confusion"] = _figure(run, "confusion", figures.confusion_figure(matrix, run.classes), words)
        wrong = matrix - np.diag(matrix.diagonal())
        most = [f"{run.classes[row.argmax()]} ({row.max()})" if row.any() else "" for row in wrong]
    each = zip(tta["classes"].items(), most, strict=True)
    return context | {"per_class": [{"name": name, "taken_for": what, **row} for (name, row), what in each]}


def _confusion(run: _Run) -> np.ndarray:
    """Truth x prediction, photos: memory for classes x classes, and no more."""
    number = {name: at for at, name in enumerate(run.classes)}
    truth, told = (run.rows[column].map(number).to_numpy() for column in ("label", "predicted"))
    count = len(number)
    return np.bincount(truth * count + told, minlength=count * count).reshape(count, count)


def _examples(run: _Run, photos: Photos) -> dict[str, Any]:
    """Most confident errors and least confident hits with Grad-CAM, and random predictions."""
    rows = run.rows
    errors = rows[~rows["right"]].sort_values("confidence", ascending=False, kind="stable").head(ERRORS)
    hits = rows[rows["right"]].sort_values("confidence", kind="stable").head(HITS)
    shown = pd.concat([errors, hits])
    places, why_not = _places(run, shown, photos)
    cards = [_predicted(run, photos, row, where) for row, where in zip(shown.to_dict("records"), places, strict=True)]
    chosen = rows.sample(min(RANDOM, len(rows)), random_state=int(run.recipe.get("seed", 0)) % 2**32)
    suspects = pd.DataFrame() if run.many else suspected_labels(run.predictions)
    parts = {
        "errors": cards[: len(errors)],
        "hits": cards[len(errors) :],
        "random": [_predicted(run, photos, row, None) for row in chosen.to_dict("records")],
        "suspects": [_suspect(photos, row) for row in suspects.head(SUSPECTS).to_dict("records")],
    }
    for name, part in parts.items():
        _sheet(run, name, part)
    if len(suspects):
        write(run.folder / "suspected_labels.csv", suspects.to_csv(index=False))
    return {**parts, "why_not": why_not, "suspected": len(suspects), "held_out": len(run.predictions)}


def _suspect(photos: Photos, row: dict[Any, Any]) -> _Card:
    sure = percent(row["suggested_probability"])
    lines = [f"label: {row['label']}", f"perhaps: {row['suggested']} ({sure})", row["split"]]
    words = f"a photo labelled {row['label']}, perhaps of {row['suggested']}"
    return _Card(photos.get(row["path"]), words, lines, row["path"], wrong=True)


def _predicted(run: _Run, photos: Photos, row: dict[Any, Any], where: np.ndarray | None) -> _Card:
    truth, told, sure = row["label"] or "no label", row["predicted"] or "no label", percent(row["confidence"])
    image = photos.get(row["path"])
    looked = None
    if where is not None and (square := photos.read(row["path"], THUMB)) is not None:
        looked = figures.heated(fit_photo(square, THUMB, run.recipe["resize"]), where, THUMB)
    words = f"a photo of {truth}, predicted {told} with confidence {sure}"
    lines = [f"truth: {truth}", f"predicted: {told}", f"confidence: {sure}"]
    asked = run.classes[_asked(run, row)]
    return _Card(image, words, lines, row["path"], not row["right"], looked, f"what spoke for {asked} in it")


def _asked(run: _Run, row: dict[Any, Any]) -> int:
    """The class that a Grad-CAM shows the evidence for: the predicted one; of many the one most surely wrong, or,
    where all are right, the least sure."""
    if not run.many:
        return run.classes.index(row["predicted"])
    values = np.array([row[f"p_{name}"] for name in run.classes])
    truth, said = (flags_of(pd.Series([row[column]]), run.classes)[0] for column in ("label", "predicted"))
    sure = np.where(said, values, 1 - values)
    return int(np.where(truth != said, sure, -1).argmax() if (truth != said).any() else sure.argmin())


def _places(run: _Run, shown: pd.DataFrame, photos: Photos) -> tuple[list[np.ndarray | None], str]:
    """For each photo where the evidence for its predicted class lies, else None; and why there is none, if so.

    What was found is kept in `gradcam.npz`, so that a page made again needs no network, and in a tenth of the memory.
    """
    nothing: list[np.ndarray | None] = [None] * len(shown)
    rows = shown.to_dict("records")
    at_hand = [at for at, row in enumerate(rows) if photos.get(row["path"]) is not None]
    if not at_hand:
        return nothing, "the photos are not at hand"
    if not (run.folder / "model" / "model.json").exists():
        return nothing, "the run folder holds no model"
    paths, asked = [rows[at]["path"] for at in at_hand], [_asked(run, rows[at]) for at in at_hand]
    key = json.dumps([sha256_of(run.folder / "model" / "model.safetensors"), paths, asked])
    found = _kept_places(run.folder / "gradcam.npz", key)
    if found is None:
        found, facts = _evidence(run, paths, asked)
        if found is None:
            words = f"not available for {facts['arch']} at {facts['image_size']} pixels"
            return nothing, f"{words}: its last layers keep no map of places"
        buffer = io.BytesIO()
        np.savez_compressed(buffer, key=key, places=found)
        write(run.folder / "gradcam.npz", buffer.getvalue())
    for at, where in zip(at_hand, found, strict=True):
        nothing[at] = where
    return nothing, ""


def _kept_places(path: Path, key: str) -> np.ndarray | None:
    """The maps that an earlier page was made with, if they are of the same network, photos and classes."""
    try:
        with np.load(path, allow_pickle=False) as kept:
            return kept["places"] if str(kept["key"]) == key else None
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        return None


def _evidence(run: _Run, paths: Sequence[str], asked: Sequence[int]) -> tuple[np.ndarray | None, dict[str, Any]]:
    """Grad-CAM maps of the photos for these classes, and the facts of the network."""
    import torch

    from baseline.evaluation.gradcam import grad_cam
    from baseline.inference.model_folder import load_network
    from baseline.vision.rng import states_kept

    with states_kept():  # a network is born with random weights before it gets its own
        model, facts = load_network(run.folder)
    size, resize = facts["image_size"], facts["resize"]
    squares = [fit_photo(open_photo(path, size), size, resize) for path in paths]
    inputs = torch.from_numpy(np.stack([np.asarray(each) for each in squares])).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(facts[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    return grad_cam(model, (inputs - mean) / std, asked), facts


def _time_and_again(run: _Run) -> dict[str, Any]:
    seconds = dict(run.manifest.get("time") or run.manifest["seconds"])
    seconds = {name: value for name, value in seconds.items() if value >= 0.005}
    words = "Seconds by part: " + ", ".join(f"{name} {value:.1f}" for name, value in seconds.items())
    return {
        "seconds": seconds,
        "total": sum(run.manifest["seconds"].values()),
        "where": _figure(run, "time", figures.time_figure(seconds), words),
        "command": f"baseline run {shlex.quote(str(run.folder / 'manifest.json'))}",
    }
