"""TODO."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from baseline.data.label_fixes import read_fixes
from baseline.data.prepare import understand
from baseline.errors import OutputError
from baseline.experiments.series import _one_process
from baseline.make import make_baseline
from baseline.progress import Show, Terminal
from baseline.runs.compare import comparison
from baseline.runs.folder import is_finished, named_folder, occupied, read_manifest

if TYPE_CHECKING:
    import pandas as pd

    from baseline.make import Baseline
    from baseline.recipe.schema import Recipe
    from baseline.runs.compare import Comparison

__all__ = ["Fixed", "make_fixed"]


@dataclass(frozen=True)
class Fixed:
    """A run before fixes of labels and one after them."""

    before: Path
    """The run folder."""
    after: Baseline
    comparison: Comparison
    """Of both, on the test photos, which fixes do not touch (valid, if there is no test split)."""


def make_fixed(
    fixes: Sequence[str | Path],
    photos: str | Path | pd.DataFrame | None = None,
    recipe: str | Path | Recipe = "default",
    *,
    before: str | Path | None = None,
    out: str | Path | None = None,
    seed: int | None = None,
    show: Show | None = None,
    **changes: Any,
) -> Fixed:
    """Trains without and with fixes of labels, and compares both on the same photos.

    The run before them is `before`, or, where the recipe is a finished run's `manifest.json`, that run; then only the
    run after them is trained, into `out`, with that run's splits. Otherwise both are, into `out/before` and
    `out/after`. The other arguments and errors are those of `make_baseline`; fixes are added to those of the recipe.

    Raises:
        DataError: if the fixes do not fit the photos (see `baseline.read_fixes`); before anything is trained.

    >>> make_fixed(["fixes.csv"], recipe="runs/mine/manifest.json").comparison.sentences    # doctest: +SKIP
    """
    _one_process()
    show = show or Terminal()
    if before is None and Path(str(recipe)).name == "manifest.json":
        before = Path(str(recipe)).parent
    chosen, table = understand(photos, recipe, show=Show(), **changes)
    every = [*chosen.fixes, *(str(Path(file).expanduser().absolute()) for file in fixes)]
    every = list(dict.fromkeys(every))
    read_fixes(every, table, chosen.labels)
    if before is not None:
        read_manifest(before)
        changes = {"split_file": str(Path(before).absolute() / "split.csv"), **changes}
        after = make_baseline(photos, recipe, out=out, seed=seed, show=show, **changes, fixes=every)
        return Fixed(Path(before), after, comparison([before, after.folder]))
    with occupied(named_folder(out, chosen.name), named=out is not None) as folder:
        if is_finished(folder / "after"):
            raise OutputError(f"{folder / 'after'} holds a finished run. Choose another --out, or remove it.")
        show.say("before the fixes")
        # of what it returns no more is kept: its network and photos go before the next run needs the room
        before = make_baseline(photos, recipe, out=folder / "before", seed=seed, show=show, **changes).folder
        show.say("after the fixes")
        return make_fixed(fixes, photos, before / "manifest.json", out=folder / "after", show=show)
