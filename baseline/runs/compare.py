"""Run folders -> a table of runs, and whether they differ by more than noise. Knows run folders; runs nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from baseline.errors import BaselineError, DataError
from baseline.recipe.diff import flatten
from baseline.runs.folder import headline_split, looks_unfinished, read_manifest, read_predictions

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Comparison", "compare_runs", "list_runs"]


MAX_DEPTH = 3
"""Folders below the one that is listed in which runs are looked for: `runs/seeds/seed-0` is two deep."""


WORDS = ("name", "title", "expected", "presets", "log")
"""Of a recipe; they change no number."""


DIFFERENCE = ("difference", "difference_low", "difference_high", "p", "shared")


MISSING_COLUMNS = "not told"
"""Of what a manifest lacks, as one of another version does."""


@dataclass(frozen=True)
class Comparison:
    """Runs beside each other."""

    table: pd.DataFrame
    """One row a run: `run, split, images, accuracy, low, high`, then `balanced_accuracy`, `macro_f1` and `ece`, each
    with `_low` and `_high`, `loss` (nats), `difference` to the first run (-1 to 1) with `difference_low` and
    `difference_high`, `p` (McNemar's mid-p; Holm's where more than two runs are compared), `shared` (images),
    `seconds`, `megabytes` (of the model file) and `differs` (what differs from the first run in recipe, weights, device
    and versions). Missing where not told. An average has the sums of its runs' seconds and megabytes, and differences
    to the best of them."""
    sentences: list[str]
    """One for each run but the first: how much it differs from the first, and how sure that is; of an average, from
    the best of its runs."""

    def as_html(self) -> str:
        """The table and the sentences as one page that needs no other file."""
        return _html_page(self)


def compare_runs(
    runs: Sequence[str | Path], *, anyway: bool = False, averages: Sequence[Sequence[str | Path]] = ()
) -> Comparison:
    """Compares finished runs, each with the first, on the test images they share (valid, if they have no test split).

    Args:
        runs: run folders, two or more.
        anyway: compare runs of different images, too, as far as they share any.
        averages: each a list of some of the runs, of whose calibrated probabilities the mean is judged, too, as
            `baseline.load` of these runs would predict.

    Raises:
        OutputError: if a folder is no finished run, or a newer version wrote it.
        DataError: if the images or their labels are not the same.

    >>> compare_runs(["runs/quick", "runs/standard"]).sentences                      # doctest: +SKIP
    ['runs/standard against runs/quick on 10,000 images: +2.1 points (+1.6 to +2.6): more than noise (p < 0.001)']
    """
    import pandas as pd

    if len(runs) < 2:
        raise DataError(f"{len(runs)} run was given; two or more were needed. Name another run folder.")
    folders = [Path(run) for run in runs]
    manifests = [read_manifest(folder) for folder in folders]
    chosen = [_member_numbers(folders, average) for average in averages]
    split = "test" if all("test" in manifest["metrics"] for manifest in manifests) else "valid"
    tables = [_run_row(folder, split) for folder in folders]
    if not anyway:
        _check_comparable(folders, tables, split)
    together = [_ensemble_table([folders[at] for at in some], [manifests[at] for at in some], split) for some in chosen]
    bests = [max(some, key=lambda at: (tables[at]["predicted"] == tables[at]["label"]).mean()) for some in chosen]
    tests = _paired_tests(
        [(tables[0], each) for each in tables[1:]]
        + [(tables[best], table) for best, table in zip(bests, together, strict=True)]
    )
    rows: list[dict[str, Any]] = []
    told: list[str] = []
    singles = len(folders) - 1
    for folder, manifest, test in zip(folders, manifests, [{}, *tests[:singles]], strict=True):
        changes = _changed_settings(manifests[0], manifest)
        differs = "; ".join(f"{key}: {other} (was {one})" for key, (one, other) in changes.items())
        row = _manifest_row(folder, manifest, split) | {"differs": differs}
        if rows:
            found, words = _differences(test, set(changes))
            row |= found
            told.append(f"{folder} against {folders[0]} {words}")
        rows.append(row)
    for some, best, table, test in zip(chosen, bests, together, tests[singles:], strict=True):
        found, words = _differences(test, {"average"})
        row = _ensemble_row([rows[at] for at in some], table, manifests[some[0]], split) | found
        told.append(f"the {row['run']} against the best of these, {folders[best]}, {words}")
        rows.append(row)
    if len(tests) > 1:
        told.append(f"p is held against {len(tests)} comparisons made at once (Holm 1979).")
    return Comparison(pd.DataFrame(rows, columns=list(dict.fromkeys(key for row in rows for key in row))), told)


def list_runs(folder: str | Path = "runs") -> pd.DataFrame:
    """The runs in a folder and below: `run, state, finished, split, accuracy, low, high, seconds, arch`.

    Unfinished ones come first, then the others by date. `state` is `finished`, `unfinished` (it runs still, or was
    ended), or what is wrong with its manifest.

    Raises:
        DataError: if there is no such folder.
    """
    import pandas as pd

    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"There is no folder {folder}. Give the folder that holds your runs.")
    columns = ["run", "state", "finished", "split", "accuracy", "low", "high", "seconds", "arch"]
    found = pd.DataFrame([_list_row(run) for run in _run_folders(folder, MAX_DEPTH)], columns=columns)
    return found.sort_values(["finished", "run"], ignore_index=True)


def _run_row(folder: Path, split: str) -> pd.DataFrame:
    table = read_predictions(folder, ("path", "label", "split", "predicted"))
    return table[table["split"] == split]


def _manifest_row(folder: Path, manifest: dict[str, Any], split: str) -> dict[str, Any]:
    """What the manifest says."""
    file = folder / "model" / "model.safetensors"
    return {
        "run": str(folder),
        "split": split,
        **_metrics_row(manifest["metrics"].get(split, {})),
        "seconds": round(sum(manifest.get("seconds", {}).values()), 1),
        "megabytes": round(file.stat().st_size / 1e6, 1) if file.exists() else None,
    }


def _metrics_row(numbers: dict[str, Any]) -> dict[str, Any]:
    """What `measure` told of a split, as columns; numbers that older versions did not tell stay out."""
    found = numbers.get("tta", {})
    low, high = found.get("interval", (None, None))
    row = {"images": numbers.get("images"), "accuracy": found.get("accuracy"), "low": low, "high": high}
    for name in ("balanced_accuracy", "macro_f1", "ece"):
        low, high = found.get("intervals", {}).get(name, (None, None))
        row |= {name: found.get(name), f"{name}_low": low, f"{name}_high": high}
    return row | {"loss": found.get("loss")} | dict.fromkeys(DIFFERENCE)


def _list_row(folder: Path) -> dict[str, Any]:
    row: dict[str, Any] = {"run": str(folder), "state": "finished", "finished": ""}
    if not (folder / "manifest.json").exists():
        return row | {"state": "unfinished"}
    try:
        manifest = read_manifest(folder)
    except BaselineError as error:
        return row | {"state": str(error)}
    split = headline_split(manifest["metrics"])
    known = _manifest_row(folder, manifest, split)
    kept = {key: known[key] for key in ("split", "accuracy", "low", "high", "seconds")}
    return row | kept | {"finished": str(manifest.get("finished", "")), "arch": manifest["recipe"].get("arch")}


def _run_folders(folder: Path, deepest: int) -> list[Path]:
    """Folders that are runs, finished or begun; nothing is looked for inside a run."""
    if (folder / "manifest.json").exists() or looks_unfinished(folder):
        return [folder]
    below = [each for each in sorted(folder.iterdir()) if each.is_dir() and not each.is_symlink()] if deepest else []
    return [run for each in below for run in _run_folders(each, deepest - 1)]


def _check_comparable(folders: list[Path], tables: list[pd.DataFrame], split: str) -> None:
    first = set(tables[0]["path"])
    for folder, table in zip(folders[1:], tables[1:], strict=True):
        if (paths := set(table["path"])) != first:
            raise DataError(
                f"{folder} and {folders[0]} were measured on different {split} images: {len(paths):,} and "
                f"{len(first):,}, of which they share {len(paths & first):,}. Give --anyway to compare them on these."
            )


def _paired_tests(pairs: Sequence[tuple[pd.DataFrame, pd.DataFrame]]) -> list[dict[str, Any]]:
    """`paired_test` of each pair of tables; nothing for those that share no image."""
    from baseline.evaluation.significance import holm_correction, paired_test

    return holm_correction([paired_test(one, two) if set(one["path"]) & set(two["path"]) else {} for one, two in pairs])


def _differences(found: dict[str, Any], changes: set[str]) -> tuple[dict[str, Any], str]:
    """How a run differs from the first: columns of its row, and words."""
    from baseline.evaluation.explain import describe_difference

    if not found:
        return {"shared": 0}, "cannot be tested: they share no image."
    low, high = found["interval"]
    row = dict(zip(DIFFERENCE, (found["difference"], low, high, found["p"], found["images"]), strict=True))
    words = f"on {found['images']:,} images: {describe_difference(found)}."
    if found["beyond_noise"] and changes == {"seed"}:
        # McNemar compares two networks; how far two networks of one recipe lie apart is the noise of training
        found["beyond_noise"] = False
        words = f"on {found['images']:,} images: {describe_difference(found)}. The p is of these two networks; as they "
        words += "differ by the seed only, it is what one recipe's trainings lie apart. --seeds tells how much that is."
    if found["beyond_noise"] and not changes:
        words += " Nothing that the manifests tell differs: the code did, or the machine."
    return row, words


def _changed_settings(first: dict[str, Any], other: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What differs between two manifests and may change numbers: (first's, other's) by name."""
    one, two = (
        flatten({key: value for key, value in manifest["recipe"].items() if key not in WORDS})
        | flatten({key: manifest[key] for key in ("device", "versions") if key in manifest})
        | {"weights": weights.get("sha256") if isinstance(weights := manifest.get("weights"), dict) else weights}
        for manifest in (first, other)
    )
    splits = {manifest.get("data", {}).get("sha256", MISSING_COLUMNS) for manifest in (first, other)}
    alike = ("split", "split_file") if len(splits) == 1 and MISSING_COLUMNS not in splits else ()
    keys = [key for key in dict.fromkeys((*one, *two)) if key not in alike]
    return {
        key: (one.get(key, MISSING_COLUMNS), two.get(key, MISSING_COLUMNS))
        for key in keys
        if one.get(key) != two.get(key)
    }


def _member_numbers(folders: Sequence[Path], average: Sequence[str | Path]) -> list[int]:
    """Which of the compared runs are meant, by number."""
    if missing := [each for each in average if Path(each) not in folders]:
        raise DataError(f"{missing[0]} is to be averaged, and is not among the runs that are compared. Add it to them.")
    found = [folders.index(Path(each)) for each in average]
    if len(set(found)) < max(2, len(found)):
        given = ", ".join(map(str, average))
        raise DataError(f"An average is of two or more different runs; given: {given}. Name each once.")
    return found


def _ensemble_table(folders: Sequence[Path], manifests: Sequence[dict[str, Any]], split: str) -> pd.DataFrame:
    from baseline.evaluation.ensemble import ensemble

    recipes = [manifest["recipe"] for manifest in manifests]
    kinds = [("many", recipe["threshold"]) if recipe.get("labels") == "many" else ("one", 0.5) for recipe in recipes]
    for folder, kind in zip(folders, kinds, strict=True):
        if kind != kinds[0]:
            raise DataError(f"{folder} and {folders[0]} differ in labels or threshold, and have no average.")
    tables = [table[table["split"] == split] for table in map(read_predictions, folders)]
    temperatures = [manifest.get("calibration", {}).get("temperature") for manifest in manifests]
    return ensemble(tables, temperatures, *kinds[0])


def _ensemble_row(
    rows: Sequence[dict[str, Any]], table: pd.DataFrame, manifest: dict[str, Any], split: str
) -> dict[str, Any]:
    """The row of the average of the runs of these rows."""
    from baseline.evaluation.metrics import evaluate

    sums = {key: [row[key] for row in rows] for key in ("seconds", "megabytes")}
    return {
        "run": f"average of {' and '.join(row['run'] for row in rows)}",
        "split": split,
        **_metrics_row(evaluate(table, manifest["recipe"].get("labels", "one"))[split]),
        **{key: None if None in each else round(sum(each), 1) for key, each in sums.items()},
        "differs": f"average of {len(rows)} runs",
    }


STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;margin:2rem;color:#222;background:#fff}"
    "div{overflow-x:auto}table{border-collapse:collapse}caption{text-align:left}"
    "th,td{padding:.3rem .6rem;border-bottom:1px solid #bbb;text-align:left;vertical-align:top}"
    "@media(prefers-color-scheme:dark){body{color:#eee;background:#181818}}"
)


def _html_page(found: Comparison) -> str:
    head = "".join(f'<th scope="col">{escape(str(name)).replace("_", " ")}</th>' for name in found.table)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(_format_value(value))}</td>" for value in row) + "</tr>"
        for row in found.table.itertuples(index=False)
    )
    told = "".join(f"<li>{escape(line)}</li>" for line in found.sentences)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Runs compared</title>'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<style>{STYLE}</style></head><body><h1>Runs compared</h1><ul>{told}</ul><div><table>"
        "<caption>Shares are 0 to 1, intervals 95 %, differences to the first run, of an average to the best of its "
        "runs.</caption>"
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div></body></html>\n"
    )


def _format_value(value: Any) -> str:
    if value is None or value != value:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 10 else f"{value:,.1f}"
    return str(value)
