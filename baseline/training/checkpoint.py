"""Checkpoints of an unfinished run: reading and writing `unfinished/` in its run folder.

| file | contents |
|---|---|
| `begun.json` | what the run was called with, and the recipe with every "auto" resolved |
| `images.csv` | each image with its label, split, size, modification time and hash |
| `state.json` | the training state; names the next two files and their sha256, and is renamed into place last |
| `now-HASH.safetensors` | current weights, optimizer state and random states |
| `best-HASH.safetensors` | the weights kept so far |

Nothing is pickled. A checkpoint is used only if its files have the checksums recorded in `state.json`.
This module handles tensors and files; it knows nothing of training.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save as save_tensors
from typing_extensions import TypedDict

from baseline.data.prepare import RunRequest
from baseline.errors import DataError, OutputError, first_line, incompatible_version, missing_image
from baseline.files import REMOVED_DIR, UNFINISHED_DIR, read_json, refuse_damaged, to_csv, to_json, write_atomic
from baseline.reading import load_tensors, read_run_table
from baseline.recipe.diff import diff_recipes

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Checkpoints", "describe_differences", "pack", "unpack"]


MIN_SECONDS_BETWEEN = 10.0
"""Minimum number of seconds between two checkpoints."""


MAX_TIME_FRACTION = 20
"""Minimum time between two checkpoints, as a multiple of the time that it takes to write one."""


HASHED_BYTES = 65_536
"""Number of bytes of an image by which it is told from one of the same size and time."""

FORMAT = 4
"""Version of the file layout; a run with another version cannot be resumed."""


class StartFile(TypedDict):
    """What `begun.json` holds at least."""

    asked: RunRequest
    recipe: dict[str, Any]
    reasons: dict[str, str]
    device: str


class StateFile(TypedDict):
    """What `state.json` holds."""

    spent: float
    now: str
    best: str
    sha256: dict[str, str]
    state: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run, in its folder.

    >>> checkpoints = Checkpoints(Path("runs/mine"))
    >>> checkpoints.exists
    False
    """

    def __init__(self, run: Path) -> None:
        self.run, self.folder = run, run / UNFINISHED_DIR
        self.error = ""
        """Why checkpoints cannot be written any more; empty while they can."""
        self._last_save = time.perf_counter()
        self._save_seconds = 0.0
        self._best: tuple[Any, str, str] = (None, "", "")
        """The kept weights that were written last, their file name and its sha256."""

    @property
    def exists(self) -> bool:
        """Whether the folder holds an unfinished run."""
        return (self.folder / "begun.json").exists()

    def start(self, facts: Mapping[str, Any], table: pd.DataFrame) -> None:
        """Record what the run starts with; checkpoints of an earlier run in the folder are removed.

        Args:
            facts: `images` as the user gave them, `asked`, `reasons`, the resolved `recipe`, `device`; all as JSON.
            table: the images with their splits.
        """
        self.remove()
        write_atomic(self.folder / "images.csv", to_csv(_fingerprint_table(table)))
        write_atomic(self.folder / "begun.json", to_json({"format": FORMAT, **facts}))

    def read_start(self) -> dict[str, Any]:
        """Return the facts that `start` recorded.

        Raises:
            OutputError: if they cannot be read, or were written by another version.
        """
        facts = read_json(self.folder / "begun.json")
        if facts.get("format") != FORMAT:
            raise incompatible_version(self.run)
        return read_json(self.folder / "begun.json", StartFile)

    def verify_start(self, request: Mapping[str, Any], table: pd.DataFrame) -> dict[str, Any]:
        """Check that the run was started with the same request and images.

        Returns:
            What `read_start` returns, and `spent`, the seconds of training so far.

        Raises:
            OutputError: if the recipe, images, labels, splits or image files differ; the message says how.
        """
        start = self.read_start()
        changes = diff_recipes(start["asked"]["recipe"], request["recipe"])
        message = describe_differences(changes) if changes else _describe_change(
            self._read_images(), _fingerprint_table(table)
        )  # fmt: skip
        parts, given = start["asked"].get("own_parts", {}), request.get("own_parts", {})
        if parts != given:
            message = f"own parts were {parts or 'none'} and are now {given or 'none'}"
        if message:
            raise OutputError(f"{self.run} is unfinished and was started differently: {message}. Use the same settings "
                              "and images, choose another --out, or remove the folder.")  # fmt: skip
        seconds = read_json(self._state_file, StateFile)["spent"] if self._state_file.exists() else 0.0
        return {**start, "spent": seconds}

    @property
    def _state_file(self) -> Path:
        return self.folder / "state.json"

    def _read_images(self) -> pd.DataFrame:
        try:
            return read_run_table(path := self.folder / "images.csv")
        except DataError:
            raise self._damaged(path) from None

    def is_due(self) -> bool:
        """Whether it is time for another checkpoint."""
        return not self.error and time.perf_counter() - self._last_save >= max(
            MIN_SECONDS_BETWEEN, MAX_TIME_FRACTION * self._save_seconds
        )

    def save(self, state: Mapping[str, Any], best: Mapping[str, torch.Tensor], spent: float) -> None:
        """Write a checkpoint in place of the last one.

        If it cannot be written, the last one stays in place and `error` holds the reason.

        Args:
            state: numbers, text, tensors, and lists, tuples and dicts of them.
            best: the kept weights by name; written only if they are another object than the last time.
            spent: seconds of training so far.
        """
        start = time.perf_counter()
        plain_state, tensors = pack(state)
        try:
            now, sha256 = self._write_tensors("now", tensors)
            if best is not self._best[0]:
                self._best = (best, *self._write_tensors("best", dict(best)))
            files = {now: sha256, self._best[1]: self._best[2]}
            facts = {"spent": spent, "now": now, "best": self._best[1], "sha256": files, "state": plain_state}
            write_atomic(self._state_file, to_json(facts))
            for path in self.folder.glob("*.safetensors"):
                if path.name not in files:
                    path.unlink(missing_ok=True)
        except OSError as error:
            self.error = first_line(error)
        self._last_save = time.perf_counter()
        self._save_seconds = self._last_save - start

    def _write_tensors(self, kind: str, tensors: Mapping[str, torch.Tensor]) -> tuple[str, str]:
        """Write the tensors to a file and return its name and sha256.

        The name depends on the content, so that the files of the last checkpoint stay valid until the next is complete.
        """
        content = save_tensors({key: value.detach().cpu().contiguous() for key, value in tensors.items()})
        sha256 = hashlib.sha256(content).hexdigest()
        write_atomic(self.folder / (file := f"{kind}-{sha256[:16]}.safetensors"), content)
        return file, sha256

    def load(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]] | None:
        """Return the last state and the kept weights, or None if there is no checkpoint yet.

        Raises:
            OutputError: if its files were changed, or cannot be read.
        """
        if not self._state_file.exists():
            return None
        facts = read_json(self._state_file, StateFile)
        contents = []
        for name in (facts["now"], facts["best"]):
            path = self.folder / Path(name).name
            try:
                contents.append(load_tensors(path, sha256=facts["sha256"].get(name, "")))
            except (OSError, ValueError):
                raise self._damaged(path) from None
        now, best = contents
        self._best = (best, Path(facts["best"]).name, facts["sha256"][facts["best"]])
        with refuse_damaged(self.folder):
            return unpack(facts["state"], now), best

    def _damaged(self, path: Path) -> OutputError:
        return OutputError(f"{path} is damaged. Remove {self.folder} to start the run from the beginning.")

    def remove(self) -> None:
        """Delete all checkpoints of the run."""
        if self.folder.is_dir():
            removed = self.folder.with_name(REMOVED_DIR)
            if removed.exists():  # of a run that was killed here
                shutil.rmtree(removed, ignore_errors=True)
            self.folder.rename(removed)
            shutil.rmtree(removed, ignore_errors=True)


def describe_differences(changes: Mapping[str, tuple[Any, Any]]) -> str:
    """Describe what `diff_recipes` returned, at most four fields of it.

    >>> describe_differences({"image_size": (128, 160)})
    'image_size was 128 and is now 160'
    """
    parts = [f"{key} was {before!r} and is now {now!r}" for key, (before, now) in changes.items()]
    return "; ".join([*parts[:4], *([f"and {len(parts) - 4} more"] if len(parts) > 4 else [])])


def pack(value: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    """Split nested values into what JSON can hold and the tensors among them by name; `unpack` reverses it.

    >>> pack({"at": (1, torch.zeros(2))})
    ({'at': {'tuple': [1, {'tensor': '0'}]}}, {'0': tensor([0., 0.])})
    """
    tensors: dict[str, torch.Tensor] = {}

    def to_plain(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            tensors[str(len(tensors))] = value
            return {"tensor": str(len(tensors) - 1)}
        if isinstance(value, Mapping):
            return {"dict": [[key, to_plain(item)] for key, item in value.items()]} if _is_ambiguous(value) else {
                key: to_plain(item) for key, item in value.items()}  # fmt: skip
        if isinstance(value, tuple):
            return {"tuple": [to_plain(item) for item in value]}
        if isinstance(value, list) or type(value).__name__ == "L":  # fastcore's list
            return [to_plain(item) for item in value]
        return value.item() if hasattr(value, "item") else value

    return to_plain(value), tensors


def _is_ambiguous(value: Mapping[Any, Any]) -> bool:
    """Whether a dict would not survive JSON, or could be mistaken there for a tensor, tuple or dict of `pack`."""
    return not all(isinstance(key, str) for key in value) or (
        len(value) == 1 and {*value} <= {"tensor", "tuple", "dict"}
    )


def unpack(packed: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    """Return the value that `pack` was called on."""
    if isinstance(packed, list):
        return [unpack(item, tensors) for item in packed]
    if not isinstance(packed, dict):
        return packed
    if len(packed) == 1:
        ((kind, value),) = packed.items()
        if kind == "tensor":
            return tensors[value]
        if kind == "tuple":
            return tuple(unpack(item, tensors) for item in value)
        if kind == "dict":
            return {key: unpack(item, tensors) for key, item in value}
    return {key: unpack(item, tensors) for key, item in packed.items()}


def _fingerprint_table(table: pd.DataFrame) -> pd.DataFrame:
    """Return what must not change in a run's images, as text: path, label, split, size, time and hash."""
    try:
        stats = [_identify_image(path).partition(" ")[::2] for path in table["path"]]
    except FileNotFoundError as error:
        raise missing_image(error) from None
    sizes, times = zip(*stats, strict=True)
    return table[["path", "label", "split"]].assign(bytes=sizes, changed=times).astype(str)


def _identify_image(path: str) -> str:
    """Return a file's size and time, and the hash of its first bytes; zeros for an image in memory."""
    if path.startswith(("train/", "valid/")) and re.fullmatch(r"\w+/\d+", path) and not Path(path).exists():
        return "0 0 0"
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123  # a Path takes longer to make than to open
        stat, head = os.fstat(file.fileno()), file.read(HASHED_BYTES)
    return f"{stat.st_size} {stat.st_mtime_ns} {hashlib.sha256(head).hexdigest()}"


def _describe_change(before: pd.DataFrame, now: pd.DataFrame) -> str:
    """Describe what changed in the images; empty if nothing did."""
    if before.equals(now):
        return ""
    both = before.merge(now, on="path", how="outer", suffixes=("", "_now"), indicator=True)
    common, parts = both["_merge"] == "both", []
    is_rewritten = common & ((both["bytes"] != both["bytes_now"]) | (both["changed"] != both["changed_now"]))
    for one, many, rows in (
        ("image is new", "images are new", both["_merge"] == "right_only"),
        ("image is missing", "images are missing", both["_merge"] == "left_only"),
        ("image has another label", "images have another label", common & (both["label"] != both["label_now"])),
        ("image has another split", "images have another split", common & (both["split"] != both["split_now"])),
        ("image file was rewritten", "image files were rewritten", is_rewritten),
    ):
        if count := int(rows.sum()):
            parts.append(f"{count:,} {one if count == 1 else many}, such as {both.loc[rows, 'path'].iloc[0]}")
    return "; ".join(parts) or "the images are in another order"
