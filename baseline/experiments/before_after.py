"""Comparison of a run before label fixes with a run after them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from baseline.data.label_fixes import read_fixes
from baseline.data.prepare import load_images
from baseline.errors import OutputError
from baseline.experiments.compare import compare_runs
from baseline.experiments.series import require_single_process
from baseline.make import make_baseline
from baseline.progress import ConsoleProgress, Progress
from baseline.runs.folder import is_finished, lock_folder, new_run_path, read_manifest, run_name

if TYPE_CHECKING:
    import pandas as pd

    from baseline.experiments.compare import Comparison
    from baseline.make import Baseline
    from baseline.recipe.schema import Recipe

__all__ = ["FixComparison", "compare_fixes"]


@dataclass(frozen=True)
class FixComparison:
    """A run before label fixes, and one after them."""

    before: Path
    """The run folder."""
    after: Baseline
    comparison: Comparison
    """Comparison of the two on the test images, which fixes do not change (on validation without a test split)."""


def compare_fixes(
    fixes: Sequence[str | Path],
    images: str | Path | pd.DataFrame | None = None,
    recipe: str | Path | Recipe = "default",
    *,
    before: str | Path | None = None,
    out: str | Path | None = None,
    seed: int | None = None,
    progress: Progress | None = None,
    **changes: Any,
) -> FixComparison:
    """Train without and with label fixes, and compare the two runs on the same images.

    The run before the fixes is `before` or, if the recipe is the `manifest.json` of a finished run, that run; then only
    the run after the fixes is trained, into `out`, with the splits of the first. Otherwise both are trained, into
    `out/before` and `out/after`. The other arguments and errors are those of `make_baseline`; fixes are added to those
    of the recipe.

    Raises:
        DataError: before training, if the fixes do not fit the images (see `baseline.data.label_fixes.read_fixes`).

    >>> compare_fixes(["fixes.csv"], recipe="runs/mine/manifest.json").comparison.sentences    # doctest: +SKIP
    """
    require_single_process()
    progress = progress or ConsoleProgress()
    if before is None and Path(str(recipe)).name == "manifest.json":
        before = Path(str(recipe)).parent
    base_recipe, table = load_images(images, recipe, progress=Progress(), **changes)
    fix_files = [*base_recipe.data.fixes, *(str(Path(file).expanduser().absolute()) for file in fixes)]
    fix_files = list(dict.fromkeys(fix_files))
    read_fixes(fix_files, table, base_recipe.data.task)
    if before is not None:
        read_manifest(before)
        changes = {"split_file": str(Path(before).absolute() / "split.csv"), **changes}
        after = make_baseline(images, recipe, out=out, seed=seed, progress=progress, **changes, fixes=fix_files)
        return FixComparison(Path(before), after, compare_runs([before, after.folder]))
    with lock_folder(new_run_path(out, run_name(images, base_recipe.name)), named=out is not None) as folder:
        if is_finished(folder / "after"):
            raise OutputError(f"{folder / 'after'} contains a finished run. Choose another --out, or remove it.")
        progress.log("before the fixes")
        # only the folder is kept, so that the first run's network and images are freed before the second run
        before = make_baseline(images, recipe, out=folder / "before", seed=seed, progress=progress, **changes).folder
        progress.log("after the fixes")
        return compare_fixes(fixes, images, before / "manifest.json", out=folder / "after", progress=progress)
