"""Evaluate finished models on new labeled images, and compare the result with the test number of each run.

A folder of results holds `metrics.json`, the predictions of each model, and `evaluation.html`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from baseline.errors import DataError, OutputError, format_count
from baseline.evaluation.calibration import calibrate
from baseline.evaluation.difference import difference_interval, match_units
from baseline.evaluation.explain import describe_change
from baseline.experiments.metric_comparison import compare_tables, describe_test, without_tta
from baseline.files import LOCK_FILE, lock_folder, sha256_of, to_csv, to_json, unique_path, without_nan, write_atomic
from baseline.inference import DEFAULT_TTA
from baseline.inference.labeled import Evaluation, Unknown, evaluate_model, read_labeled, score_metrics
from baseline.metrics.registry import find_metric
from baseline.progress import ConsoleProgress, Progress
from baseline.reading import read_run_table
from baseline.recipe.diff import flat_recipe
from baseline.runs.folder import headline_split, read_manifest, read_predictions
from baseline.system import all_or_none

if TYPE_CHECKING:
    from baseline.inference.model import Ensemble, Model
    from baseline.metrics.registry import Metric

__all__ = ["ModelEvaluation", "ModelEvaluations", "evaluate_models"]

RESULT_FILE = re.compile(r"\.?(predictions(-\d+)?\.csv|evaluation\.html|metrics\.json)(\.part)?")
"""Names of the files in a folder of results, also while they are written. `metrics.json` is written last."""

FORMAT = 1
"""Version of the layout of `metrics.json`."""


@dataclass(frozen=True)
class OwnResult:
    """The test number that a run reported, and how the new one differs from it."""

    split: str
    """`"test"`, or `"valid"` where the run has no test split."""
    images: int
    shared: int
    """Number of images that are among the new ones as well, by path or content."""
    scores: dict[str, dict[str, Any]]
    """By name of a metric: `value` and `interval` of the run, and `difference` (new minus run) with
    `difference_interval`, None where one of them is undefined."""
    sentence: str
    """The difference of the headline metric in words."""


@dataclass(frozen=True)
class ModelEvaluation:
    """The evaluation of one model."""

    name: str
    """The folder as it was given."""
    headline: Metric
    """The metric that the run's recipe names, or accuracy; with several labels per image, micro F1."""
    evaluation: Evaluation
    own: OwnResult | None
    """None where the model is not in the folder of its run."""
    notes: list[str]


@dataclass(frozen=True)
class ModelEvaluations:
    """What `evaluate_models` returns."""

    models: list[ModelEvaluation]
    differences: list[dict[str, Any]]
    """For each model but the first, the result of a paired test against the first one, with `sentence`."""
    images: str
    folder: Path | None
    """The folder of results, if they were written."""

    def as_dict(self) -> dict[str, Any]:
        """Return the content of `metrics.json`; docs/evaluation.md describes it."""
        return {
            "format": FORMAT,
            "images": self.images,
            "folder": None if self.folder is None else str(self.folder),
            "models": [model_record(model) for model in self.models],
            "differences": self.differences,
        }


def model_record(model: ModelEvaluation) -> dict[str, Any]:
    """Return the entry of one model in `metrics.json`."""
    evaluation, own = model.evaluation, model.own
    return {
        "model": model.name,
        "headline": model.headline.name,
        "images": len(evaluation.predictions),
        "scores": evaluation.scores,
        "calibration": evaluation.calibration,
        "unlike": evaluation.unlike,
        "sets": evaluation.sets,
        "own": None if own is None else vars(own),
        "notes": model.notes,
        "left_out": evaluation.left_out.to_dict("records"),
        "details": evaluation.metrics,
    }


def evaluate_models(
    models: Sequence[str | Path | Sequence[str | Path]],
    images: Any,
    *,
    tta: bool = DEFAULT_TTA,
    unknown: Unknown = "error",
    metric: str = "auto",
    splits: Sequence[str] = (),
    skip_trained: bool = False,
    reject_unlike: float = 0.0,
    coverage: float = 0.0,
    out: str | Path | None = None,
    write: bool = True,
    progress: Progress | None = None,
    **settings: Any,
) -> ModelEvaluations:
    """Evaluate models on labeled images, compare each with its run's own test number, and write the results.

    Args:
        models: run folders or model folders; a list of such folders is an ensemble.
        images: labeled images in any form that `make_baseline` reads.
        tta: average over the views of each run's evaluation (test-time augmentation).
        unknown: what images do whose labels a model does not know: `"error"`, or `"drop"` to leave them out.
        metric: a metric to compute beside the others, and to compare by.
        splits: only the images of these splits, if the images come with splits.
        skip_trained: leave out images that a model was trained on; otherwise a note counts them.
        reject_unlike, coverage: see `evaluate_model`.
        out: folder of the results; `evaluations/NAME-DATE-TIME` by default.
        write: whether to write any.
        **settings: how the images are read: fields of `DataSettings`, such as `label_col`.

    Raises:
        DataError: if labels are unknown to a model, or no image can be read.
        OutputError: if `out` exists, or a folder holds no model.

    >>> evaluate_models(["runs/mine"], "new/").models[0].own.sentence              # doctest: +SKIP
    'accuracy +1.2 points (-2.0 to +4.1) against 87.3% on 505 test images of the run: not significant'
    """
    from baseline.inference.model import load

    progress = progress or ConsoleProgress()
    with results_folder(images, out) if write else nullcontext() as folder:
        loaded = [load(model) for model in models]
        task = common_task(loaded)
        table = read_labeled(images, task=task, splits=splits, progress=progress, **settings)
        options: dict[str, Any] = {"tta": tta, "unknown": unknown, "metric": metric, "skip_trained": skip_trained}
        options |= {"reject_unlike": reject_unlike, "coverage": coverage}
        results = [
            evaluate_one(model_name(given), model, table, progress, **options)
            for given, model in zip(models, loaded, strict=True)
        ]
        result = ModelEvaluations(results, compare_models(results, task), str(images)[:500], folder)
        if folder is not None:
            write_results(folder, result)
            progress.log(f"page: {folder / 'evaluation.html'}")
    return result


def common_task(models: Sequence[Model | Ensemble]) -> str:
    """Return the task of models, `"single"` or `"multilabel"`.

    Raises:
        DataError: if they have different ones.
    """
    if len({model.multilabel for model in models}) > 1:
        raise DataError("Some of the models predict one label per image and some several. Evaluate them separately.")
    return "multilabel" if models[0].multilabel else "single"


@contextmanager
def results_folder(images: Any, out: str | Path | None) -> Iterator[Path]:
    """Create and lock the folder of the results, without those of an evaluation that was killed while it wrote them.

    Raises:
        OutputError: if it holds anything else, cannot be written, or another process is writing to it.
    """
    name = Path(str(images)).stem if isinstance(images, str | Path) else "images"
    folder = (
        Path(out).expanduser() if out else unique_path(Path("evaluations") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}")
    )
    was_killed = (folder / LOCK_FILE).exists()
    with lock_folder(folder, named=out is not None) as folder:
        results = {path for path in folder.iterdir() if RESULT_FILE.fullmatch(path.name)}
        is_unfinished = was_killed and not (folder / "metrics.json").exists()
        if {*folder.iterdir()} - (results if is_unfinished else set()) - {folder / LOCK_FILE}:
            raise OutputError(f"{folder} exists already. Choose another --out, or remove it.")
        for path in results:
            path.unlink()
        yield folder


def model_name(given: str | Path | Sequence[str | Path]) -> str:
    """Return the name of a model, or of an ensemble."""
    return str(given) if isinstance(given, str | Path) else f"ensemble of {' and '.join(map(str, given))}"


def evaluate_one(
    name: str, model: Model | Ensemble, table: pd.DataFrame, progress: Progress, *, skip_trained: bool, metric: str,
    **options: Any,
) -> ModelEvaluation:  # fmt: skip
    """Evaluate one model, and compare it with its run."""
    run, notes = find_run(model)
    if run is not None:
        is_new, overlap = check_overlap(name, run, table["path"], skip_trained=skip_trained)
        table, notes = table[is_new].reset_index(drop=True), [*notes, *overlap]
    for note in notes:
        progress.log(note)
    evaluation = evaluate_model(model, table, metric=metric, progress=progress, **options)
    task = "multilabel" if model.multilabel else "single"
    headline = find_metric(metric, multilabel=model.multilabel)
    own = None
    if run is not None:
        manifest = read_manifest(run)
        if metric == "auto":
            headline = find_metric(flat_recipe(manifest["recipe"]).get("metric", "auto"), multilabel=model.multilabel)
        own = compare_with_run(run, model, evaluation, task, headline, tta=options["tta"])
        notes.append(own.sentence)
    return ModelEvaluation(name, headline, evaluation, own, [*notes, *evaluation.notes])


def check_overlap(name: str, run: Path, paths: pd.Series, *, skip_trained: bool) -> tuple[np.ndarray, list[str]]:
    """Return which images to evaluate, and sentences about those that the run has used.

    Raises:
        DataError: if `skip_trained` leaves no image.
    """
    identity, notes, total = ImageIdentity(paths), [], format_count(len(paths), "image")
    trained, valid = (identity.rows_of(run_images(run, split)) >= 0 for split in ("train", "valid"))
    if skip_trained and trained.all():
        raise DataError(f"{name} was trained on all of the {total}. Pass images that it was not trained on.")
    if trained.any():
        count = f"{int(trained.sum()):,} of {total}"
        notes.append(
            f"left out: {count} that {name} was trained on"
            if skip_trained
            else f"{name} was trained on {count}, so the result is optimistic; --skip-trained leaves them out"
        )
    if valid.any() and headline_split(read_manifest(run)["metrics"]) == "test":
        notes.append(f"the weights of {name} were chosen on {int(valid.sum()):,} of {total}, its validation images")
    return ~trained if skip_trained else np.ones(len(paths), bool), notes


def find_run(model: Model | Ensemble) -> tuple[Path | None, list[str]]:
    """Return the folder of a model's run, or None and the reason why there is no number to compare with."""
    if len(model.members) > 1:
        return None, ["an ensemble has no test number of its own to compare with"]
    folder = model.members[0].folder.absolute()
    if folder.name == "model" and (folder.parent / "manifest.json").exists():
        return folder.parent, []
    return None, [f"{model.members[0].folder} is not in the folder of its run, so there is no number to compare with"]


def run_images(run: Path, split: str) -> pd.Series:
    """Return the paths of a run's images in a split."""
    table = read_run_table(run / "split.csv", usecols=["path", "split"])
    return table.loc[table["split"] == split, "path"]


class ImageIdentity:
    """Finds images again by path, or else by content: the size of the file, then its SHA-256."""

    def __init__(self, paths: pd.Series) -> None:
        self.paths = [str(path) for path in paths]
        self.sizes = [file_size(path) for path in self.paths]
        self.hashes: dict[str, str] = {}

    def rows_of(self, others: pd.Series) -> np.ndarray:
        """Return for each of the images the row in `others` with the same image, -1 where there is none."""
        paths = [str(path) for path in others]
        by_path = {path: row for row, path in reversed([*enumerate(paths)])}
        rows = np.array([by_path.get(path, -1) for path in self.paths], dtype=int)
        wanted = {size for row, size in zip(rows, self.sizes, strict=True) if row < 0 and size > 0}
        if wanted:
            by_content = {
                self.content(path): row for row, path in reversed([*enumerate(paths)]) if file_size(path) in wanted
            }
            known = {file_size(paths[row]) for row in by_content.values()}
            for at in np.flatnonzero(rows < 0):
                if self.sizes[at] in known:
                    rows[at] = by_content.get(self.content(self.paths[at]), -1)
        return rows

    def content(self, path: str) -> str:
        """Return the SHA-256 of a file, computed once."""
        if path not in self.hashes:
            self.hashes[path] = sha256_of(Path(path))
        return self.hashes[path]


def file_size(path: str) -> int:
    """Return the size of a regular file in bytes, -1 for anything else."""
    try:
        return Path(path).stat().st_size if Path(path).is_file() else -1
    except (OSError, ValueError):
        return -1


def compare_with_run(
    run: Path, model: Model | Ensemble, evaluation: Evaluation, task: str, headline: Metric, *, tta: bool
) -> OwnResult:
    """Compare an evaluation with the test number of the model's run."""
    manifest = read_manifest(run)
    split = headline_split(manifest["metrics"])
    table = read_predictions(run)
    table = table[table["split"] == split].reset_index(drop=True)
    has_probabilities = tta or any(str(column).startswith("plain_p_") for column in table)
    table = table if tta else without_tta(table)
    table = calibrate(table, model.members[0].config["temperature"] or 1.0, task)
    new = evaluation.predictions
    same = ImageIdentity(new["path"]).rows_of(table["path"])
    units = match_units(table, new, same)
    names = [name for name in evaluation.scores if has_probabilities or not find_metric(name).probabilities]
    scores: dict[str, dict[str, Any]] = {}
    for name, score in score_metrics(table, task, names).items():
        change = difference_interval((table, new), find_metric(name), task, units)
        difference, interval = change or (None, None)
        scores[name] = {**score, "difference": difference, "difference_interval": interval}
    shared = int((same >= 0).sum())
    words = " with TTA" if tta and model.members[0].config["tta"] else ""
    sentence = describe_own(scores.get(headline.name), headline, split, len(table), shared, words)
    return OwnResult(split, len(table), shared, scores, sentence)


def describe_own(score: dict[str, Any] | None, metric: Metric, split: str, images: int, shared: int, view: str) -> str:
    """Return a sentence about how a new value differs from that of the run."""
    if score is None:
        return f"the run's {metric.title} is with TTA, and this is without, so they are not compared"
    count = format_count(images, f"{split} image")
    if score["difference"] is None:
        return f"{metric.title} is undefined here or on the {count} of the run, so they are not compared"
    low, high = score["difference_interval"]
    change = describe_change({"difference": score["difference"], "interval": (low, high)}, metric)
    verdict = "not significant" if low <= 0 <= high else "significant"
    if shared:
        verdict += f"; {format_count(shared, 'image is', 'images are')} in both"
    optimistic = ", on which its weights were chosen" if split == "valid" else ""
    value = f"{metric.text(score['value'], 1)}{view}"
    return f"{metric.title} {change} against {value} on the {count} of the run{optimistic}: {verdict}"


def compare_models(results: Sequence[ModelEvaluation], task: str) -> list[dict[str, Any]]:
    """Return the paired test of each model against the first one, on the images that both predicted."""
    from baseline.evaluation.explain import describe_difference
    from baseline.evaluation.significance import holm_correction

    first, tests = results[0], []
    for other in results[1:]:
        metric = first.headline if first.headline.name == other.headline.name else find_metric("accuracy")
        by_accuracy = metric.name == "accuracy"
        tables = (first.evaluation.predictions, other.evaluation.predictions)
        test = compare_tables(*tables, None if by_accuracy else metric, task)
        tests.append({"model": other.name, "against": first.name, "metric": metric.name, **test})
    holm_correction([test for test in tests if "p" in test])
    for test in tests:
        metric = find_metric(test["metric"])
        text = f"{metric.title} is undefined for one of them" if "p" not in test else (
            f"accuracy {describe_difference(test)}" if metric.name == "accuracy" else describe_test(test, metric)
        )  # fmt: skip
        images = f" on {test['images']:,} images" if "images" in test else ""
        test["sentence"] = f"{test['model']} against {test['against']}{images}: {text}"
    return tests


def write_results(folder: Path, result: ModelEvaluations) -> None:
    """Write `metrics.json`, the predictions, and the page."""
    from baseline.report.evaluation_page import write_evaluation_page

    numbers = range(1, len(result.models) + 1)
    names = [f"predictions-{number}.csv" for number in numbers] if len(numbers) > 1 else ["predictions.csv"]
    sections = [
        {"name": model.name, "headline": model.headline, "evaluation": model.evaluation, "own": model.own,
         "notes": model.notes}
        for model in result.models
    ]  # fmt: skip
    sentences = [test["sentence"] for test in result.differences]
    with all_or_none(folder / "evaluation.html", *(folder / name for name in names)):
        for name, model in zip(names, result.models, strict=True):
            write_atomic(folder / name, to_csv(model.evaluation.predictions))
        write_evaluation_page(folder / "evaluation.html", result.images, sections, sentences)
        write_atomic(folder / "metrics.json", to_json(without_nan(result.as_dict())))
