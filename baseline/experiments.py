"""Experiments that are several runs: seeds, before and after fixes. Knows `make_baseline`; does none of its work."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .compare import Comparison, comparison
from .errors import OutputError, RecipeError
from .make import Baseline, make_baseline, starting_recipe, understand
from .mending import read_fixes
from .progress import Show, Terminal
from .save import as_json, judged_split, read_manifest, removed_if_empty, write

if TYPE_CHECKING:
    import pandas as pd

    from .recipe import Recipe

__all__ = ["Fixed", "Seeds", "make_fixed", "make_seeds"]


@dataclass(frozen=True)
class Seeds:
    """Runs that differ by their seed only."""

    folder: Path
    """Holds `seed-K`, a run folder each, and `seeds.json`."""
    split: str
    runs: list[dict[str, Any]]
    """Each run's `seed`, `folder`, `accuracy` (0-1, with test-time augmentation), `plain` (without), `seconds`."""
    mean: float
    """Of the accuracies, 0-1."""
    sd: float | None
    """Standard deviation of one run, n - 1 below the line; None for one run."""
    least: float
    most: float
    same_photos: bool
    """Whether all were measured on the same photos; if not, the spread holds that of the photos, too."""


def make_seeds(
    count: int,
    photos: str | Path | pd.DataFrame | None = None,
    recipe: str | Path | Recipe = "default",
    *,
    out: str | Path | None = None,
    seed: int | None = None,
    show: Show | None = None,
    **changes: Any,
) -> Seeds:
    """Runs `make_baseline` with `count` seeds, from `seed` on, into `out/seed-K`, and tells mean and spread.

    The other arguments and errors are those of `make_baseline`. What was finished before an interrupt stays.

    Raises:
        RecipeError: if `count` is not 1 or more.
        OutputError: if one of the run folders holds a finished run already; before anything is trained.

    >>> found = make_seeds(5, "photos/")                                           # doctest: +SKIP
    >>> found.mean, found.sd                                                       # doctest: +SKIP
    """
    if count < 1:
        raise RecipeError(f"--seeds is {count}; 1 or more were needed.")
    show = show or Terminal()
    chosen = starting_recipe(photos, recipe)
    first = chosen.seed if seed is None else seed
    folder = Path(out).expanduser() if out else Path("runs") / f"{chosen.name}-{datetime.now():%Y%m%d-%H%M%S}"
    numbers = range(first, first + count)
    for path in (folder / "seeds.json", *(folder / f"seed-{number}" / "manifest.json" for number in numbers)):
        if path.exists():
            raise OutputError(f"{path.parent} holds a finished run. Choose another --out, or remove it.")
    runs, splits, seen = [], set(), set()
    for number in numbers:
        show.say(f"seed {number}, {number - first + 1} of {count}")
        with removed_if_empty(folder, new=not folder.exists()):
            done = make_baseline(photos, recipe, out=folder / f"seed-{number}", seed=number, show=show, **changes)
        split = judged_split(done.metrics)
        splits.add(split)
        seen.add(frozenset(done.predictions["path"][done.predictions["split"] == split]))
        runs.append(
            {
                "seed": number,
                "folder": str(done.folder),
                "accuracy": done.metrics[split]["tta"]["accuracy"],
                "plain": done.metrics[split]["plain"]["accuracy"],
                "seconds": round(sum(done.manifest["seconds"].values()), 1),
            }
        )
        # settled by timing, which may fall out otherwise the next time: the seed is to be the only difference
        changes = {"frozen_precision": done.recipe.frozen_precision, **changes}
        del done  # its network and decoded photos, before the next run needs the room
    accuracies = [run["accuracy"] for run in runs]
    found = Seeds(
        folder=folder,
        split=min(splits),
        runs=runs,
        mean=statistics.fmean(accuracies),
        sd=statistics.stdev(accuracies) if count > 1 else None,
        least=min(accuracies),
        most=max(accuracies),
        same_photos=len(seen) == 1,
    )
    write(folder / "seeds.json", as_json(dataclasses.asdict(found)))
    return found


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
    folder = Path(out).expanduser() if out else Path("runs") / f"{chosen.name}-{datetime.now():%Y%m%d-%H%M%S}"
    if (folder / "after" / "manifest.json").exists():
        raise OutputError(f"{folder / 'after'} holds a finished run. Choose another --out, or remove it.")
    show.say("before the fixes")
    with removed_if_empty(folder, new=not folder.exists()):
        first = make_baseline(photos, recipe, out=folder / "before", seed=seed, show=show, **changes)
    before = first.folder
    del first  # its network and decoded photos, before the next run needs the room
    show.say("after the fixes")
    return make_fixed(fixes, photos, before / "manifest.json", out=folder / "after", show=show)
