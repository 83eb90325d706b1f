"""A run that is under way <-> `unfinished/` in its run folder. Knows tensors and files; knows no training.

| file | holds |
|---|---|
| `begun.json` | what the run was asked for, and the recipe as it was settled |
| `images.csv` | each image with its label, split, size and time of change |
| `state.json` | where training stands; names the next two and their sha256, and is renamed into place after them |
| `now-HASH.safetensors` | the weights as they are, the optimizer's and the random states |
| `best-HASH.safetensors` | the best weights so far |

Nothing here pickles. A state is believed if its files have the checksums that it tells.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from baseline.errors import OutputError, first_line, incompatible_version, missing_image
from baseline.files import UNFINISHED_DIR, read_json, to_json, write_atomic
from baseline.recipe.diff import diff_recipes

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Checkpoints", "describe_differences", "pack", "unpack"]


MIN_SECONDS_BETWEEN = 10.0
"""Seconds of training, at least, between two states on disk."""


MAX_TIME_FRACTION = 20
"""Times as long as it takes to write a state, at least, is trained before the next is written."""


FORMAT = 2
"""Version of the layout; another one is not gone on with."""


class Checkpoints:
    """The states of one run, in its folder.

    >>> checkpoints = Checkpoints(Path("runs/mine"))
    >>> checkpoints.exists
    False
    """

    def __init__(self, run: Path) -> None:
        self.run, self.folder = run, run / UNFINISHED_DIR
        self.error = ""
        """Why states are not kept any more, in words; empty while they are."""
        self._last = time.perf_counter()
        self._took = 0.0
        self._best: tuple[Any, str, str] = (None, "", "")
        """The weights that were written last, their file and its sha256."""

    @property
    def exists(self) -> bool:
        """Whether a run was begun here and has not ended."""
        return (self.folder / "begun.json").exists()

    def start(self, facts: Mapping[str, Any], table: pd.DataFrame) -> None:
        """Writes what a run begins with; of an earlier one in the folder nothing stays.

        Args:
            facts: `images`, as they were given, `asked`, `reasons`, the settled `recipe`, `device`; as JSON has it.
            table: the images with their splits.
        """
        self.remove()
        write_atomic(self.folder / "images.csv", _table_to_text(table).to_csv(index=False))
        write_atomic(self.folder / "begun.json", to_json({"format": FORMAT, **facts}))

    def read_start(self) -> dict[str, Any]:
        """What `begin` was told.

        Raises:
            OutputError: if it cannot be read, or another version wrote it.
        """
        facts = read_json(self.folder / "begun.json")
        if facts.get("format") != FORMAT:
            raise incompatible_version(self.run)
        return facts

    def verify_start(self, asked: Mapping[str, Any], table: pd.DataFrame) -> dict[str, Any]:
        """What `begun` gives, if what is asked for now is what was begun; and `spent`, seconds of training so far.

        Raises:
            OutputError: with the difference, if recipe, images, labels, splits or the files themselves are others.
        """
        begun = self.read_start()
        found = diff_recipes(begun["asked"]["recipe"], asked["recipe"])
        words = describe_differences(found) if found else _describe_change(self._images(), _table_to_text(table))
        if words:
            raise OutputError(f"{self.run} is unfinished and was begun with something else: {words}. Give the same as "
                              "then, choose another --out, or remove it.")  # fmt: skip
        spent = read_json(self._told)["spent"] if self._told.exists() else 0.0
        return {**begun, "spent": spent}

    @property
    def _told(self) -> Path:
        return self.folder / "state.json"

    def _images(self) -> pd.DataFrame:
        import pandas as pd

        return pd.read_csv(self.folder / "images.csv", dtype=str, keep_default_na=False)

    def is_due(self) -> bool:
        """Whether it is time for another state."""
        return not self.error and time.perf_counter() - self._last >= max(
            MIN_SECONDS_BETWEEN, MAX_TIME_FRACTION * self._took
        )

    def save(self, state: Mapping[str, Any], best: Mapping[str, torch.Tensor], spent: float) -> None:
        """Writes a state in place of the last; one that cannot be written leaves the last one and says so once.

        Args:
            state: numbers, text, tensors, and lists, tuples and dicts of them.
            best: tensors by name; written only if it is another object than the last time.
            spent: seconds of training so far.
        """
        began = time.perf_counter()
        told, tensors = pack(state)
        try:
            now, sha256 = self._tensors("now", tensors)
            if best is not self._best[0]:
                self._best = (best, *self._tensors("best", dict(best)))
            files = {now: sha256, self._best[1]: self._best[2]}
            facts = {"spent": spent, "now": now, "best": self._best[1], "sha256": files, "state": told}
            write_atomic(self._told, to_json(facts))
            for path in self.folder.glob("*.safetensors"):
                if path.name not in files:
                    path.unlink(missing_ok=True)
        except OSError as error:
            self.error = first_line(error)
        self._last = time.perf_counter()
        self._took = self._last - began

    def _tensors(self, kind: str, tensors: Mapping[str, torch.Tensor]) -> tuple[str, str]:
        """Writes them; the file's name, which no other content has, as the last state holds until the next is whole;
        and its sha256."""
        content = save_tensors({key: value.detach().cpu().contiguous() for key, value in tensors.items()})
        sha256 = hashlib.sha256(content).hexdigest()
        write_atomic(self.folder / (file := f"{kind}-{sha256[:16]}.safetensors"), content)
        return file, sha256

    def load(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]] | None:
        """The last state and the best weights; None if none was written yet.

        Raises:
            OutputError: if its files were changed, or cannot be read.
        """
        if not self._told.exists():
            return None
        told = read_json(self._told)
        found = []
        for name in (told["now"], told["best"]):
            path = self.folder / Path(name).name
            content = path.read_bytes() if path.exists() else b""
            if hashlib.sha256(content).hexdigest() != told["sha256"][name]:
                raise OutputError(f"{path} is damaged. Remove {self.folder}, and the run begins anew.")
            found.append(load_tensors(content))
        now, best = found
        self._best = (best, Path(told["best"]).name, told["sha256"][told["best"]])
        return unpack(told["state"], now), best

    def remove(self) -> None:
        """Removes what was kept."""
        if self.folder.exists():
            going = self.folder.with_name(f".{self.folder.name}-{os.getpid()}")
            self.folder.rename(going)
            shutil.rmtree(going, ignore_errors=True)


def describe_differences(found: Mapping[str, tuple[Any, Any]]) -> str:
    """What `baseline.save.differing` found, in words.

    >>> describe_differences({"image_size": (128, 160)})
    'image_size was 128 and is 160'
    """
    words = [f"{key} was {one!r} and is {two!r}" for key, (one, two) in found.items()]
    return "; ".join([*words[:4], *([f"and {len(words) - 4} more"] if len(words) > 4 else [])])


def pack(value: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    """Nested values as JSON can hold them, and the tensors among them by name; `unpack` undoes it.

    >>> pack({"at": (1, torch.zeros(2))})
    ({'at': {'tuple': [1, {'tensor': '0'}]}}, {'0': tensor([0., 0.])})
    """
    tensors: dict[str, torch.Tensor] = {}

    def told(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            tensors[str(len(tensors))] = value
            return {"tensor": str(len(tensors) - 1)}
        if isinstance(value, Mapping):
            return {"dict": [[key, told(each)] for key, each in value.items()]} if _is_ambiguous(value) else {
                key: told(each) for key, each in value.items()}  # fmt: skip
        if isinstance(value, tuple):
            return {"tuple": [told(each) for each in value]}
        if isinstance(value, list) or type(value).__name__ == "L":  # fastcore's list
            return [told(each) for each in value]
        return value.item() if hasattr(value, "item") else value

    return told(value), tensors


def _is_ambiguous(value: Mapping[Any, Any]) -> bool:
    """Whether a dict could be taken for something else once it is JSON."""
    return not all(isinstance(key, str) for key in value) or (
        len(value) == 1 and {*value} <= {"tensor", "tuple", "dict"}
    )


def unpack(told: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    """What was given to `pack`."""
    if isinstance(told, list):
        return [unpack(each, tensors) for each in told]
    if not isinstance(told, dict):
        return told
    if len(told) == 1:
        ((kind, value),) = told.items()
        if kind == "tensor":
            return tensors[value]
        if kind == "tuple":
            return tuple(unpack(each, tensors) for each in value)
        if kind == "dict":
            return {key: unpack(each, tensors) for key, each in value}
    return {key: unpack(each, tensors) for key, each in told.items()}


def _table_to_text(table: pd.DataFrame) -> pd.DataFrame:
    """What must not change in a run's images, as text."""
    try:
        stats = [Path(path).stat() for path in table["path"]]
    except FileNotFoundError as error:
        raise missing_image(error) from None
    found = table[["path", "label", "split"]].astype(str)
    return found.assign(bytes=[str(each.st_size) for each in stats], changed=[str(each.st_mtime_ns) for each in stats])


def _describe_change(before: pd.DataFrame, now: pd.DataFrame) -> str:
    """What became of the images, in words; empty if nothing did."""
    if before.equals(now):
        return ""
    both = before.merge(now, on="path", how="outer", suffixes=("", "_now"), indicator=True)
    here, told = both["_merge"] == "both", []
    for words, rows in (
        ("images are new", both["_merge"] == "right_only"),
        ("images have gone", both["_merge"] == "left_only"),
        ("have another label", here & (both["label"] != both["label_now"])),
        ("have another split", here & (both["split"] != both["split_now"])),
        ("were written anew", here & ((both["bytes"] != both["bytes_now"]) | (both["changed"] != both["changed_now"]))),
    ):
        if rows.any():
            told.append(f"{int(rows.sum()):,} {words}, such as {both.loc[rows, 'path'].iloc[0]}")
    return "; ".join(told) or "the images are in another order"
