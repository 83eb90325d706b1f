"""Run folders: making and locking them, and reading what they hold.

Every file is written to a temporary name and renamed. `manifest.json` is written last: a folder that has one is
complete, and its report can be written again at any time. The network is in a model folder inside it.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from baseline.errors import DataError, OutputError, similar_path
from baseline.files import LOCK_FILE as LOCK
from baseline.files import MANIFEST_FORMAT as FORMAT
from baseline.files import (
    REMOVED_DIR,
    UNFINISHED_DIR,
    check_schema,
    lock_folder,
    manifest_format,
    read_json,
    refuse_damaged,
    unique_path,
)
from baseline.reading import read_run_table

if TYPE_CHECKING:
    import pandas as pd

    from baseline.runs.manifest import Manifest

__all__ = [
    "create_run_folder",
    "headline_split",
    "is_finished",
    "lock_folder",
    "looks_unfinished",
    "new_run_path",
    "read_manifest",
    "read_predictions",
    "run_name",
    "scratch_folder",
]


EARLY_FILES = (UNFINISHED_DIR, "history.csv", "split.csv", "predictions.csv", "model/model.json", "audit/findings.json")
"""Files that a run writes before its manifest."""


TEXT_COLUMNS = ("path", "label", "split", "predicted", "plain_predicted")

NUMBER_COLUMNS = ("confidence", "loss", "plain_confidence", "plain_loss")
"""Columns of a prediction table, beside one `p_CLASS` for each class."""


MIN_FREE_BYTES = 200_000_000
"""Minimum free space on the disk of a new run folder."""


SCRATCH = "scratch"
"""Folder of a run that its Learner may write to, apart from the run's own files."""


def scratch_folder(run: Path) -> Path:
    """Make and return the folder that the Learner of a run may write to."""
    folder = run / SCRATCH
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def run_name(images: Any, recipe_name: str) -> str:
    """Return the name of a run of these images: their folder or file, or the recipe if it is one for its own images.

    >>> run_name("data/my flowers/", "default"), run_name("hf:beans", "default"), run_name("x/", "cifar10")
    ('my-flowers', 'beans', 'cifar10')
    """
    if recipe_name != "default" or not isinstance(images, str | Path):
        return recipe_name
    place = Path(str(images)).expanduser().absolute()
    name = place.name.rpartition(":")[2]
    name = name if place.is_dir() else re.sub(r"(\.tar)?\.\w{1,8}$", "", name)
    return re.sub(r"[^\w.-]+", "-", name).strip("-.")[:40] or recipe_name


def new_run_path(out: str | Path | None, name: str) -> Path:
    """Return `out`, or a new `runs/NAME-DATE-TIME` in the working folder."""
    return Path(out).expanduser() if out else unique_path(Path("runs") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}")


@contextmanager
def create_run_folder(out: str | Path | None, name: str) -> Iterator[Path]:
    """Create and lock the folder of a run: `out`, or a new one in `runs`.

    The folder is removed again if the run fails before it wrote anything.

    Raises:
        OutputError: if it cannot be written, already holds a finished run, another run is writing to it, or the disk
            is nearly full.
    """
    with lock_folder(new_run_path(out, name), named=out is not None) as folder:
        try:
            if is_finished(folder):
                raise OutputError(f"{folder} holds a finished run. Choose another --out, or remove it.")
            if (free := shutil.disk_usage(folder).free) < MIN_FREE_BYTES:
                raise OutputError(
                    f"The disk of {folder} has {free // 10**6} MB free; {MIN_FREE_BYTES // 10**6} MB were needed. "
                    "Make room, or choose another --out."
                )
            yield folder
        finally:
            shutil.rmtree(folder / REMOVED_DIR, ignore_errors=True)  # of this run, or of one that was killed
            if not is_finished(folder):
                with suppress(OSError):
                    (folder / SCRATCH).rmdir()  # succeeds only if it is empty


def read_manifest(run: str | Path) -> Manifest:
    """Return the content of a run's `manifest.json`, in the layout of this version.

    Raises:
        OutputError: if there is none, it cannot be read, or a newer version wrote it.
    """
    from baseline.runs.manifest import Manifest

    run = Path(run)
    if not run.is_dir():
        raise OutputError(f"There is no folder {run}.{similar_path(run)} Pass the folder of a finished run.")
    if not (run / "manifest.json").exists():
        state = "an unfinished run" if looks_unfinished(run) else "not a run folder"
        raise OutputError(f"{run} is {state}: it has no manifest.json. Pass the folder of a finished run.")
    manifest = read_json(run / "manifest.json", Any)
    if not isinstance(manifest, dict) or not {"recipe", "metrics"} <= set(manifest):
        raise OutputError(f"{run / 'manifest.json'} is not the manifest of a run. Pass the folder of a finished run.")
    version = manifest_format(run, manifest)
    with refuse_damaged(run / "manifest.json"):
        manifest = manifest if version == FORMAT else upgrade_manifest(manifest)
        check_schema(manifest, Manifest)
    return cast("Manifest", manifest)


def upgrade_manifest(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return a manifest of format 1 in the layout of this version: `photos` is `images`, and the recipe has groups."""
    from baseline.recipe.legacy import upgrade_recipe
    from baseline.recipe.load import recipe_from_dict

    upgraded = {_rename(key): value for key, value in manifest.items()}
    upgraded["recipe"] = recipe_from_dict(upgrade_recipe(manifest["recipe"])).as_dict()
    for key in ("data", "calibration", "asked"):
        if isinstance(upgraded.get(key), Mapping):
            upgraded[key] = {_rename(name): value for name, value in upgraded[key].items()}
    upgraded["metrics"] = {
        split: {
            _rename(name): {_rename(key): _rename_counts(value) for key, value in group.items()}
            if isinstance(group, dict)
            else group
            for name, group in metrics.items()
        }
        for split, metrics in manifest["metrics"].items()
    }
    return upgraded


def _rename(key: str) -> str:
    return "images" if key == "photos" else key


def _rename_counts(value: Any) -> Any:
    """Rename the count in each row of a table of metrics; class names stay unchanged."""
    if isinstance(value, list):
        return [{_rename(key): item for key, item in row.items()} if isinstance(row, dict) else row for row in value]
    if isinstance(value, dict):
        return {
            name: {_rename(key): item for key, item in row.items()} if isinstance(row, dict) else row
            for name, row in value.items()
        }
    return value


def headline_split(metrics: Mapping[str, Any]) -> str:
    """Return the split whose metrics are the headline of a run: test, or valid where there is no test split.

    >>> headline_split({"valid": {}, "test": {}}), headline_split({"valid": {}})
    ('test', 'valid')
    """
    return "test" if "test" in metrics else "valid"


def read_predictions(run: str | Path, needed: Sequence[str] = ()) -> pd.DataFrame:
    """Return the prediction table of a run folder. Text columns are read as text: a class `007` or `NA` stays as it is.

    Args:
        needed: the columns to read, with `group` where there is one; by default all columns of a prediction table.

    Raises:
        DataError: if the table is missing or cannot be read, lacks columns, or has values that are not numbers.
    """
    import numpy as np

    path = Path(run) / "predictions.csv"
    columns = [str(name) for name in read_run_table(path, nrows=0)]
    classes = [name for name in columns if name.startswith("p_")]
    required = needed or (*TEXT_COLUMNS, *NUMBER_COLUMNS)
    missing = [name for name in required if name not in columns] + ([] if classes or needed else ["p_CLASS"])
    if missing:
        description = ", ".join([*required, *([] if needed else ["and p_CLASS for each class"])])
        raise DataError(f"{path} lacks the columns {', '.join(missing)}; needed: {description}. Repeat the run.")
    read = [name for name in columns if not needed or name in (*needed, "group")]
    numbers = [name for name in read if name in NUMBER_COLUMNS or name.startswith(("p_", "plain_p_"))]
    dtypes = dict.fromkeys(read, "str") | dict.fromkeys(numbers, "float64")
    na_values = {name: ["", "nan", "NaN", "NA"] for name in numbers}
    table = read_run_table(path, dtype=dtypes, na_values=na_values, usecols=read)
    for name in numbers:
        if len(bad := np.flatnonzero(~np.isfinite(table[name].to_numpy()))):
            raise DataError(f"{path}: '{name}' in row {bad[0] + 1} is not a number. Repeat the run, or fix the table.")
    return table


def looks_unfinished(folder: Path) -> bool:
    """Whether the folder holds files that a run writes before its manifest, or is empty and has the name of a run."""
    has_run_name = re.search(r"-\d{8}-\d{6}(-\d+)?$", folder.name) is not None
    is_empty = all(path.name == LOCK for path in folder.iterdir())
    is_evaluation = (folder / "evaluation.html").exists()  # `baseline evaluate` writes predictions, too
    return (not is_evaluation and any((folder / name).exists() for name in EARLY_FILES)) or (has_run_name and is_empty)


def is_finished(run: Path) -> bool:
    """Whether the folder holds a finished run."""
    return (run / "manifest.json").exists() and not (run / UNFINISHED_DIR).exists()
