"""Compares finished runs: a table of their metrics, and whether they differ significantly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from baseline.errors import BaselineError, DataError, similar_path
from baseline.experiments.metric_comparison import (
    compare_tables,
    describe_test,
    evaluate_metric,
    metric_besides_accuracy,
    read_split_predictions,
)
from baseline.files import refuse_damaged
from baseline.recipe.diff import IGNORED_FIELDS, flatten, flatten_recipe
from baseline.report.headline import (
    Headline,
    describe_split,
    headline_view,
    named_headline,
    named_metric,
)
from baseline.report.text_table import TextTable
from baseline.runs.folder import headline_split, looks_unfinished, read_manifest, read_predictions

if TYPE_CHECKING:
    import pandas as pd

    from baseline.metrics.registry import Metric
    from baseline.runs.manifest import Manifest

__all__ = ["Comparison", "compare_runs", "list_runs"]


MAX_DEPTH = 3
"""Maximum depth at which runs are listed: `runs/seeds/seed-0` is two folders deep."""


DIFFERENCE_COLUMNS = ("difference", "difference_low", "difference_high", "p", "shared")


NOT_SET = "not set"
"""Value of what a manifest does not have, such as one that another version wrote."""


@dataclass(frozen=True)
class Comparison:
    """Several runs side by side."""

    table: pd.DataFrame
    """One row per run: `run, split, tta, images, accuracy, low, high`, then `balanced_accuracy`, `macro_f1` and `ece`,
    each with `_low` and `_high`, `loss` (nats), `difference` to the first run (-1 to 1) with `difference_low` and
    `difference_high`, `p` (McNemar's mid-p, Holm-corrected for more than two runs), `shared` (images),
    `seconds`, `megabytes` (of the model file) and `differs` (what differs from the first run in recipe, weights, device
    and versions). Missing where a manifest does not say. All numbers and differences of a run are with test-time
    augmentation (TTA) where its headline is, which `tta` says; without it a run has fewer metrics. An ensemble has the
    sums of its runs' seconds and megabytes, and differences to the best of them."""
    sentences: list[str]
    """One for each run but the first: how much it differs from the first (an ensemble: from the best of its runs), and
    how certain that is."""
    metric: Metric | None = None
    """The metric that all recipes name, if they name the same and it is not the accuracy: the table then has its value
    and interval as `METRIC, METRIC_low, METRIC_high`, and the differences are its own, see `metric_test`."""

    def as_text(self) -> TextTable:
        """Return the table with headings in words and percentages, for Markdown, LaTeX and the page."""
        return _text_table(self)

    def as_html(self) -> str:
        """Return the table, the sentences and the settings that differ as a self-contained HTML page."""
        from baseline.report.html import render

        settings = [(row["run"], [text for text in row["differs"].split("; ") if text]) for row in _records(self.table)]
        note = (
            "Intervals are 95% confidence intervals. Differences are to the first run, for an ensemble to its best run."
        )
        page = {"kind": "runs", "note": note, "sentences": self.sentences, "table": self.as_text()}
        return render("compare", {**page, "settings": settings[1:]})

    def __repr__(self) -> str:
        return f"Comparison({', '.join(map(repr, self.table['run']))})"

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the first difference, a chart of all runs, the others, and the table."""
        from baseline.notebook import card, interval_chart, text_table

        rows = [(row["run"], row["accuracy"], row["low"], row["high"]) for row in _records(self.table)]
        chart = interval_chart(rows, "accuracy of each run, with 95% confidence intervals")
        table = self.as_text()
        first, *others = self.sentences
        reports = [Path(row["run"]) / "report.html" for row in _records(self.table)]
        return card(first, [chart, text_table(table.headings, table.rows)], others, reports)


def compare_runs(
    runs: Sequence[str | Path], *, anyway: bool = False, averages: Sequence[Sequence[str | Path]] = ()
) -> Comparison:
    """Compare finished runs with the first one, on the test images they share (valid if there is no test split).

    Args:
        runs: two or more run folders.
        anyway: compare runs with different images on those that they share.
        averages: lists of some of the runs; the mean of their calibrated probabilities is evaluated as well, as
            `baseline.load` of these runs predicts.

    Raises:
        OutputError: if a folder is not a finished run, or a newer version wrote it.
        DataError: if the images or their labels differ.

    >>> compare_runs(["runs/quick", "runs/standard"]).sentences                      # doctest: +SKIP
    ['runs/standard against runs/quick on 10,000 images: +2.1 points (+1.6 to +2.6): significant (p < 0.001)']
    """
    if len(runs) < 2:
        raise DataError(f"Expected two or more run folders, got {len(runs)}.")
    folders = [Path(run) for run in runs]
    with refuse_damaged(" or ".join(map(str, folders))):
        return _compare(folders, anyway, averages)


def _compare(folders: list[Path], anyway: bool, averages: Sequence[Sequence[str | Path]]) -> Comparison:
    import pandas as pd

    manifests = [read_manifest(folder) for folder in folders]
    ensembles = [_member_numbers(folders, members) for members in averages]
    split = "test" if all("test" in manifest["metrics"] for manifest in manifests) else "valid"
    metric, sentences = _common_metric(manifests)
    tables = [read_split_predictions(folder, split, tta=True, metric=metric) for folder in folders]
    if not anyway:
        _check_comparable(folders, tables, split)
    ensemble_tables = [
        _ensemble_table([folders[number] for number in members], [manifests[number] for number in members], split)
        for members in ensembles
    ]
    best_members = [
        max(members, key=lambda number: _score(tables[number], manifests[number], metric)) for members in ensembles
    ]
    pairs = [(tables[0], table) for table in tables[1:]]
    pairs += [(tables[best], table) for best, table in zip(best_members, ensemble_tables, strict=True)]
    tests = _paired_tests(pairs, metric, _task_of(manifests[0])[0])
    rows: list[dict[str, Any]] = []
    run_tests, ensemble_tests = tests[: len(folders) - 1], tests[len(folders) - 1 :]
    for folder, manifest, test in zip(folders, manifests, [{}, *run_tests], strict=True):
        changes = _changed_settings(manifests[0], manifest)
        differs = "; ".join(f"{key}: {other} (was {first})" for key, (first, other) in changes.items())
        row = _manifest_row(folder, manifest, split, metric) | {"differs": differs}
        if rows:
            columns, description = _differences(test, set(changes), metric)
            row |= columns
            sentences.append(f"{folder} against {folders[0]} {description}")
        rows.append(row)
    for members, best, table, test in zip(ensembles, best_members, ensemble_tables, ensemble_tests, strict=True):
        columns, description = _differences(test, {"ensemble"}, metric)
        row = _ensemble_row([rows[number] for number in members], table, manifests[members[0]], split, metric) | columns
        sentences.append(f"the {row['run']} against the best of these, {folders[best]}, {description}")
        rows.append(row)
    if len(tests) > 1:
        sentences.append(f"p-values are Holm-corrected for {len(tests)} comparisons.")
    if metric:
        order = sorted(rows, key=lambda row: metric.score(row[metric.name]), reverse=True)
        listing = ", ".join(f"{row['run']} {metric.text(row[metric.name])}" for row in order)
        sentences.append(f"By {metric.title}, best first: {listing}.")
    names = list(dict.fromkeys(key for row in rows for key in row))
    return Comparison(pd.DataFrame(rows, columns=names), sentences, metric)


def list_runs(folder: str | Path = "runs") -> pd.DataFrame:
    """List the runs in a folder and below: `run, state, finished, split, tta, accuracy, low, high, seconds, arch`.

    The accuracy is with test-time augmentation (TTA) where the headline of the run is, which `tta` says. If a run is
    judged by another metric, there is also `headline`, the metric with its interval as text.

    Unfinished runs come first, then the others by date. `state` is `finished`, `unfinished` (still running, or
    interrupted), or what is wrong with the manifest.

    Raises:
        DataError: if there is no such folder.
    """
    import pandas as pd

    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"Folder {folder} does not exist.{similar_path(folder)} Pass the folder of your runs.")
    columns = ["run", "state", "finished", "split", "tta", "accuracy", "low", "high", "seconds", "arch"]
    rows = [_list_row(run) for run in _run_folders(folder, MAX_DEPTH)]
    if any("headline" in row for row in rows):
        columns.append("headline")
    return pd.DataFrame(rows, columns=columns).sort_values(["finished", "run"], ignore_index=True)


def _common_metric(manifests: Sequence[Manifest]) -> tuple[Metric | None, list[str]]:
    """The metric that all recipes name, unless it is the accuracy, and what has to be said if they differ."""
    named = [named_metric(manifest) for manifest in manifests]
    names = list(dict.fromkeys(metric.name if metric else "auto" for metric in named))
    if len(names) > 1:
        return None, [f"The runs have different metrics ({', '.join(names)}), so they are compared by accuracy."]
    return metric_besides_accuracy(manifests[0]), []


def _score(table: pd.DataFrame, manifest: Manifest, metric: Metric | None) -> float:
    """The metric, or the accuracy, of a prediction table; higher is better."""
    if metric:
        return metric.score(evaluate_metric(table, metric, _task_of(manifest)[0]).value)
    return float((table["predicted"] == table["label"]).mean())


def _manifest_row(folder: Path, manifest: Manifest, split: str, metric: Metric | None = None) -> dict[str, Any]:
    """Build a comparison row from a run's manifest."""
    file = folder / "model" / "model.safetensors"
    return {
        "run": str(folder),
        "split": split,
        "tta": headline_view(manifest) == "tta",
        **_metrics_row(manifest["metrics"].get(split, {}), metric),
        "seconds": round(sum(manifest.get("seconds", {}).values()), 1),
        "megabytes": round(file.stat().st_size / 1e6, 1) if file.exists() else None,
    }


def _metrics_row(numbers: Mapping[str, Any], metric: Metric | None) -> dict[str, Any]:
    """The metrics of a split as columns; those that older versions did not compute are None."""
    metrics = numbers.get("tta", {})  # the same without TTA, but has more metrics than "plain"
    low, high = metrics.get("interval", (None, None))
    row = {"images": numbers.get("images"), "accuracy": metrics.get("accuracy"), "low": low, "high": high}
    for name in dict.fromkeys((*([metric.name] if metric else []), "balanced_accuracy", "macro_f1", "ece")):
        low, high = metrics.get("intervals", {}).get(name) or (None, None)
        row |= {name: metrics.get(name), f"{name}_low": low, f"{name}_high": high}
    return row | {"loss": metrics.get("loss")} | dict.fromkeys(DIFFERENCE_COLUMNS)


def _list_row(folder: Path) -> dict[str, Any]:
    row: dict[str, Any] = {"run": str(folder), "state": "finished", "finished": ""}
    if not (folder / "manifest.json").exists():
        return row | {"state": "unfinished"}
    try:
        with refuse_damaged(folder):
            manifest = read_manifest(folder)
            split, view = headline_split(manifest["metrics"]), headline_view(manifest)
            full_row = _manifest_row(folder, manifest, split)
            columns = {key: full_row[key] for key in ("split", "tta", "accuracy", "low", "high", "seconds")}
            arch = flatten_recipe(manifest["recipe"]).get("arch")
            headline = named_headline(manifest, split, view) if metric_besides_accuracy(manifest) else None
    except BaselineError as error:
        return row | {"state": str(error)}
    row |= columns | {"finished": str(manifest.get("finished", "")), "arch": arch}
    if headline:
        row["headline"] = f"{headline.metric.title} {headline.text()}"
        row["headline"] += f" ({headline.span()})" if headline.interval else ""
    return row


def _run_folders(folder: Path, depth: int) -> list[Path]:
    """Folders of runs, finished or not; the folders inside a run are not searched."""
    if (folder / "manifest.json").exists() or looks_unfinished(folder):
        return [folder]
    subfolders = [path for path in sorted(folder.iterdir()) if path.is_dir() and not path.is_symlink()] if depth else []
    return [run for subfolder in subfolders for run in _run_folders(subfolder, depth - 1)]


def _check_comparable(folders: list[Path], tables: list[pd.DataFrame], split: str) -> None:
    first = set(tables[0]["path"])
    for folder, table in zip(folders[1:], tables[1:], strict=True):
        if (paths := set(table["path"])) != first:
            raise DataError(
                f"{folder} and {folders[0]} were evaluated on different {split} images: {len(paths):,} and "
                f"{len(first):,}, of which they share {len(paths & first):,}. Pass --anyway to compare them on these."
            )


def _paired_tests(
    pairs: Sequence[tuple[pd.DataFrame, pd.DataFrame]], metric: Metric | None, task: str
) -> list[dict[str, Any]]:
    """Results of `paired_test`, or `metric_test`, for each pair of tables; empty for pairs that share no image."""
    from baseline.evaluation.significance import holm_correction

    shared = (set(one["path"]) & set(two["path"]) for one, two in pairs)
    tests = [compare_tables(*pair, metric, task) if paths else {} for pair, paths in zip(pairs, shared, strict=True)]
    return holm_correction(tests)


def _differences(test: dict[str, Any], changes: set[str], metric: Metric | None) -> tuple[dict[str, Any], str]:
    """How a run differs from the first one: columns of its row, and a sentence."""
    from baseline.evaluation.explain import describe_difference

    def describe(test: dict[str, Any]) -> str:
        return describe_test(test, metric) if metric else describe_difference(test)

    if not test:
        undefined = f", or {metric.title} is undefined for one of them" if metric else ""
        return {"shared": 0}, f"cannot be tested: they share no image{undefined}."
    low, high = test["interval"]
    row = dict(zip(DIFFERENCE_COLUMNS, (test["difference"], low, high, test["p"], test["images"]), strict=True))
    if test["beyond_noise"] and changes == {"seed"}:
        # McNemar's test compares two networks; how far two networks of one recipe differ is the noise of training
        test["beyond_noise"] = False
        description = (
            f"on {test['images']:,} images: {describe(test)}. The p-value is for these two networks; they "
            "differ in the seed only, so this is the variation between trainings of one recipe. --seeds measures it."
        )
    else:
        description = f"on {test['images']:,} images: {describe(test)}."
    if test["beyond_noise"] and not changes:
        description += " The manifests have the same settings: the code or the machine differs."
    return row, description


def _changed_settings(first: Manifest, other: Manifest) -> dict[str, tuple[Any, Any]]:
    """What differs between two manifests and may change the result: (first's, other's) value by name."""
    one, two = (
        flatten_recipe({key: value for key, value in manifest["recipe"].items() if key not in IGNORED_FIELDS})
        | flatten({key: manifest[key] for key in ("device", "versions") if key in manifest})
        | {"weights": weights.get("sha256") if isinstance(weights := manifest.get("weights"), dict) else weights}
        for manifest in (first, other)
    )
    splits = {manifest.get("data", {}).get("sha256", NOT_SET) for manifest in (first, other)}
    same_split = ("split", "split_file") if len(splits) == 1 and NOT_SET not in splits else ()
    keys = [key for key in dict.fromkeys((*one, *two)) if key not in same_split]
    return {key: (one.get(key, NOT_SET), two.get(key, NOT_SET)) for key in keys if one.get(key) != two.get(key)}


def _member_numbers(folders: Sequence[Path], members: Sequence[str | Path]) -> list[int]:
    """The positions of an ensemble's runs among the compared runs."""
    if missing := [run for run in members if Path(run) not in folders]:
        raise DataError(f"{missing[0]} is part of an ensemble but not among the compared runs. Add it to them.")
    numbers = [folders.index(Path(run)) for run in members]
    if len(set(numbers)) < max(2, len(numbers)):
        names = ", ".join(map(str, members))
        raise DataError(f"An ensemble needs two or more different runs; given: {names}. Name each once.")
    return numbers


def _ensemble_table(folders: Sequence[Path], manifests: Sequence[Manifest], split: str) -> pd.DataFrame:
    from baseline.evaluation.ensemble import ensemble

    tasks = [_task_of(manifest) for manifest in manifests]
    for folder, task in zip(folders, tasks, strict=True):
        if task != tasks[0]:
            raise DataError(f"{folder} and {folders[0]} differ in task or threshold, so they cannot form an ensemble.")
    tables = [table[table["split"] == split] for table in map(read_predictions, folders)]
    temperatures = [manifest.get("calibration", {}).get("temperature") for manifest in manifests]
    thresholds = [manifest.get("thresholds", tasks[0][1]) for manifest in manifests]
    cut_points = [manifest.get("cut_points", []) for manifest in manifests]
    return ensemble(tables, temperatures, tasks[0][0], thresholds, cut_points)


def _task_of(manifest: Manifest) -> tuple[str, float]:
    """The task of a run, and the threshold of its labels."""
    recipe = flatten_recipe(manifest["recipe"])
    return ("multilabel", recipe["threshold"]) if recipe.get("task") == "multilabel" else ("single", 0.5)


def _ensemble_row(
    rows: Sequence[dict[str, Any]], table: pd.DataFrame, manifest: Manifest, split: str, metric: Metric | None
) -> dict[str, Any]:
    """The row of the ensemble of the runs in these rows."""
    from baseline.evaluation.metrics import evaluate

    sums = {key: [row[key] for row in rows] for key in ("seconds", "megabytes")}
    return {
        "run": f"ensemble of {' and '.join(row['run'] for row in rows)}",
        "split": split,
        "tta": any(row["tta"] for row in rows),
        **_metrics_row(evaluate(table, _task_of(manifest)[0], metric.name if metric else "auto")[split], metric),
        **{key: None if None in values else round(sum(values), 1) for key, values in sums.items()},
        "differs": f"ensemble of {len(rows)} runs",
    }


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a table, with None for missing values."""
    rows = table.astype(object).where(table.notna(), None).to_dict("records")
    return [{str(name): value for name, value in row.items()} for row in rows]


def _text_table(comparison: Comparison) -> TextTable:
    metric = comparison.metric
    headings = ["run", "images", *([metric.title] if metric else []), "accuracy", "macro F1", "calibration error"]
    headings += ["log loss", f"difference in {metric.title if metric else 'points'}", "p", "seconds", "MB"]
    return TextTable(headings, [_text_row(row, metric) for row in _records(comparison.table)])


def _text_row(row: dict[str, Any], metric: Metric | None) -> list[str]:
    def share(name: str, low: str, high: str) -> str:
        if row[name] is None:
            return ""
        return f"{row[name]:.1%}" + ("" if row[low] is None else f" ({100 * row[low]:.1f} to {100 * row[high]:.1f})")

    named = []
    if metric:
        low, high = row[f"{metric.name}_low"], row[f"{metric.name}_high"]
        named = [str(Headline(metric, row[metric.name], None if low is None else (low, high)))]
    change, p = "", ""
    if row["difference"] is not None:
        scale, form = (1, "+.4f") if metric and not metric.percent else (100, "+.1f")
        ends = [format(scale * row[f"difference{end}"], form) for end in ("", "_low", "_high")]
        change = f"{ends[0]} ({ends[1]} to {ends[2]})"
        p = "< 0.001" if row["p"] < 0.001 else f"{row['p']:.3f}"
    return [
        row["run"],
        "" if row["images"] is None else f"{row['images']:,.0f} {describe_split(row)}",
        *named,
        share("accuracy", "low", "high"),
        share("macro_f1", "macro_f1_low", "macro_f1_high"),
        share("ece", "ece_low", "ece_high"),
        "" if row["loss"] is None else f"{row['loss']:.3f}",
        change,
        p,
        f"{row['seconds']:,.0f}",
        "" if row["megabytes"] is None else f"{row['megabytes']:.1f}",
    ]
