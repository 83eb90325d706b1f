"""Model folder <-> network. Knows its files, and checks all they say; knows no images and no predictions.

| file | holds |
|---|---|
| `model.safetensors` | the network's tensors |
| `model.json` | how to build and feed the network: `FIELD_CHECKS`, and whatever else should be known of it |
| `golden.safetensors` | a few images as the network gets them, and what it made of them; not in every folder |

Nothing here pickles, unpickles or follows a path that a file names. What a folder says is believed only after it was
checked, tensors by their sha256 and then against the network that `model.json` names, before memory is taken for them.
"""

from __future__ import annotations

import hashlib
import json
import re
import reprlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from baseline.errors import OutputError, RecipeError, WeightsError, first_line
from baseline.files import CONFIG_FILE, GOLDEN_FILE, TENSORS_FILE, read_json, to_json, write_atomic
from baseline.recipe.schema import HEADS, PRECISIONS, RESIZES, VIEWS, is_int, is_number
from baseline.vision.network import build_network

__all__ = [
    "EXPERIMENT_FILES",
    "FIELD_CHECKS",
    "load_network",
    "member_folders",
    "model_folder",
    "read_golden",
    "save_network",
]


EXPERIMENT_FILES = {"fold": "folds.json", "seed": "seeds.json"}
"""What is written last into a folder of several runs, by the beginning of their folders' names."""


FORMAT = 2
"""Version of the layout of the model folder; older ones are read. In 1 there were no checksums."""


MAX_CLASSES = 100_000

MAX_BYTES = {TENSORS_FILE: 20 * 10**9, GOLDEN_FILE: 10**9, CONFIG_FILE: 50 * 10**6}


_OPTIONAL_FIELDS = {"tta": [], "labels": "one", "threshold": 0.5, "temperature": None, "crop": 1.0, "precision": "float32",
             "weights_license": "unknown"}  # fmt: skip
"""What first model folders do not tell, and what they meant."""


def _is_triple(value: Any, low: float, high: float) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(is_number(each, low, high) for each in value)


def _is_class_list(value: Any) -> bool:
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_CLASSES:
        return False
    return all(isinstance(each, str) and _is_unicode(each) for each in value) and len({*value}) == len(value)


def _is_unicode(text: str) -> bool:
    try:
        return bool(text.encode())
    except UnicodeEncodeError:
        return False


FIELD_CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "arch": (lambda v: isinstance(v, str) and 0 < len(v) < 200, "the name of an architecture"),
    "head": (lambda v: v in HEADS, f"one of {', '.join(HEADS)}"),
    "classes": (_is_class_list, f"a list of 1 to {MAX_CLASSES:,} names, none twice"),
    "image_size": (lambda v: is_int(v, 8, 4096), "pixels, a whole number from 8 to 4096"),
    "resize": (lambda v: v in RESIZES, f"one of {', '.join(RESIZES)}"),
    "mean": (lambda v: _is_triple(v, -1000, 1000), "three numbers, for red, green and blue"),
    "std": (lambda v: _is_triple(v, 1e-6, 1000), "three numbers above 0, for red, green and blue"),
    "tta": (lambda v: isinstance(v, list) and all(each in VIEWS for each in v), f"a list from {', '.join(VIEWS)}"),
    "labels": (lambda v: v in ("one", "many"), "one or many"),
    "threshold": (lambda v: is_number(v, 0.001, 0.999), "a probability above 0 and below 1"),
    "temperature": (lambda v: v is None or is_number(v, 1e-3, 1e3), "a number from 0.001 to 1000, or null"),
    "crop": (lambda v: is_number(v, 0.1, 1), "a share from 0.1 to 1"),
    "precision": (lambda v: v in PRECISIONS[1:], f"one of {', '.join(PRECISIONS[1:])}"),
    "weights_license": (lambda v: v is None or (isinstance(v, str) and len(v) < 200), "a licence's name, or null"),
}
"""Of each fact: whether a value will do, and what was needed."""


def save_network(
    model: nn.Module, facts: Mapping[str, Any], folder: Path, golden: Mapping[str, Tensor] | None = None
) -> None:
    """Writes the files of a model folder, `model.json`, which holds the others' sha256, last.

    Args:
        facts: those of `FIELD_CHECKS`, and whatever else should be known of the network.
        golden: what `golden_outputs` made.
    """
    files = {
        TENSORS_FILE: save({name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()})
    }
    if golden is not None:
        files[GOLDEN_FILE] = save(dict(golden))
    for name, content in files.items():
        write_atomic(folder / name, content)
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    write_atomic(folder / CONFIG_FILE, to_json({"format": FORMAT, **facts, "sha256": hashes}))


def load_network(folder: str | Path) -> tuple[nn.Sequential, dict[str, Any]]:
    """The network of a model folder (or of a run that holds one) in evaluation mode on the CPU, and its facts.

    Facts that an old folder does not tell are filled in; `sha256` tells that of `model.safetensors` as it was read.

    Raises:
        OutputError: if there is no model folder, a newer version wrote it, or `model.json` says what cannot be.
        WeightsError: if its tensors are damaged or not those of the network it names.
    """
    folder = model_folder(folder)
    facts = _read_config(folder / CONFIG_FILE)
    path = folder / TENSORS_FILE
    content = _read_bytes(path)
    tensors = _read_tensors(path, content, facts)
    sketch = _meta_network(folder / CONFIG_FILE, facts)
    _check_tensors(path, tensors, sketch, facts)
    model = _build(folder / CONFIG_FILE, facts)
    model.load_state_dict(tensors)
    if not any(_accepts_size(each, facts["image_size"]) for each in (sketch.eval(), model.eval())):
        words = f"{facts['arch']} takes no images of {facts['image_size']} pixels"
        raise OutputError(f"{folder / CONFIG_FILE}: {words}. Copy it again from where it is whole.")
    if TENSORS_FILE not in facts["sha256"]:  # else `_read_tensors` has compared it
        facts["sha256"] = {TENSORS_FILE: hashlib.sha256(content).hexdigest()}
    return model, facts


def read_golden(folder: Path, facts: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """The images, N x size x size x 3, uint8, and their probabilities, N x classes, float32, that the folder keeps.

    Raises:
        OutputError: if it keeps none.
        WeightsError: if they are damaged.
    """
    path = folder / GOLDEN_FILE
    if GOLDEN_FILE not in facts.get("sha256", {}) or not path.exists():
        raise OutputError(f"{folder} keeps no golden inputs: an older version wrote it, or they were left out.")
    found = _read_tensors(path, _read_bytes(path), facts)
    images, probabilities = (found.get(name, torch.empty(0)) for name in ("images", "probabilities"))
    count, classes = len(images), len(facts["classes"])
    side = images.shape[1] if images.ndim == 4 else 0
    good = images.dtype == torch.uint8 and images.shape == (count, side, side, 3) and count > 0
    if not good or not 0 < side <= 4 * facts["image_size"] or probabilities.shape != (count, classes):
        raise WeightsError(f"{path} holds no images with their probabilities. Copy it again.")
    return images, probabilities.float()


def _read_bytes(path: Path) -> bytes:
    try:
        if path.exists() and not path.is_file():  # reading a pipe would wait for ever
            raise OutputError(f"{path} is no file. Give a run or its model folder.")
        if path.stat().st_size > MAX_BYTES[path.name]:
            raise OutputError(f"{path} is larger than {MAX_BYTES[path.name]:,} bytes, which no model is.")
        return path.read_bytes()
    except (OSError, ValueError) as error:
        if isinstance(error, OutputError):
            raise
        words = getattr(error, "strerror", None) or error
        raise OutputError(f"{path} cannot be read: {words}. Give the folder of a finished run, or a model.") from None


def _read_config(path: Path) -> dict[str, Any]:
    try:
        facts = json.loads(_read_bytes(path).decode("utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise OutputError(f"{path} is damaged: {first_line(error)}. Copy it again.") from None
    if not isinstance(facts, dict):
        raise OutputError(f"{path} tells nothing of a network. Give a run or its model folder.")
    written: Any = facts.get("format")
    if written not in range(1, FORMAT + 1) or isinstance(written, bool | float):
        raise OutputError(
            f"{path.parent} has format {reprlib.repr(written)}; this version reads 1 to {FORMAT}. Update baseline."
        )
    facts = _OPTIONAL_FIELDS | facts
    lacking = [name for name in FIELD_CHECKS if name not in facts]
    lacking += ["sha256"] if written > 1 and not _is_hash_table(facts.get("sha256")) else []
    if lacking:
        raise OutputError(f"{path} does not tell {', '.join(lacking)}. Copy it again from where it is whole.")
    wrong = [name for name, (good, _) in FIELD_CHECKS.items() if not good(facts[name])]
    if wrong:
        words = "; ".join(f"{name} is {reprlib.repr(facts[name])}, needed: {FIELD_CHECKS[name][1]}" for name in wrong)
        raise OutputError(f"{path}: {words}. Copy it again from where it is whole.")
    return facts if written > 1 else facts | {"sha256": {}}


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no number")


def _is_hash_table(value: Any) -> bool:
    return isinstance(value, dict) and TENSORS_FILE in value and all(isinstance(each, str) for each in value.values())


def _read_tensors(path: Path, content: bytes, facts: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors in a file, all numbers, if the file is the one that `model.json` was written for."""
    if content[:1] == b"\x80" or content[:4] == b"PK\x03\x04":
        raise WeightsError(f"{path} is a pickle or an archive, and was not opened; safetensors were needed.")
    expected = facts["sha256"].get(path.name)
    if expected and (found := hashlib.sha256(content).hexdigest()) != expected:
        raise WeightsError(f"{path} is damaged: its sha256 begins with {found[:8]}, not {expected[:8]}. Copy it again.")
    try:
        tensors = load(content)
    except (SafetensorError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise WeightsError(f"{path} is damaged: {first_line(error)}. Copy it again.") from None
    if bad := [name for name, value in tensors.items() if value.is_floating_point() and not value.isfinite().all()]:
        raise WeightsError(f"{path} holds values that are no numbers, first in '{bad[0][:80]}'. Copy it again.")
    return tensors


def _check_tensors(path: Path, given: Mapping[str, Tensor], sketch: nn.Module, facts: Mapping[str, Any]) -> None:
    """Refuses tensors that are not those of the network that the facts name, by name, shape and kind."""
    wanted = sketch.state_dict()
    words = f"{facts['arch']} with {len(facts['classes']):,} classes"
    for name, value in wanted.items():
        other = given.get(name)
        if other is None:
            raise WeightsError(f"{path} lacks '{name}' of {words}. Copy it again, with its own {CONFIG_FILE}.")
        if other.shape != value.shape or other.is_floating_point() != value.is_floating_point():
            raise WeightsError(
                f"{path} is of another network than {words}: '{name}' is {_tensor_spec(other)}, not {_tensor_spec(value)}. "
                f"Copy it again, with its own {CONFIG_FILE}."
            )
    if extra := [name for name in given if name not in wanted]:
        raise WeightsError(
            f"{path} holds '{extra[0][:80]}', which {words} has not. Copy it with its own {CONFIG_FILE}."
        )


def _meta_network(path: Path, facts: Mapping[str, Any]) -> nn.Sequential:
    """The network without memory for its tensors; with it where an architecture cannot be made so."""
    try:
        with torch.device("meta"):
            return build_network(facts["arch"], len(facts["classes"]), None, facts["head"])[0]
    except RecipeError as error:
        raise OutputError(f"{path}: {error}") from None
    except Exception:  # a few compute with their own values when they are made
        return _build(path, facts)


@torch.inference_mode()
def _accepts_size(model: nn.Module, size: int) -> bool:
    """Whether images of so many pixels go through it; without memory nothing is computed."""
    try:
        model(torch.zeros(1, 3, size, size, device=next(model.parameters()).device))
    except Exception:
        return False
    return True


def _build(path: Path, facts: Mapping[str, Any]) -> nn.Sequential:
    try:
        return build_network(facts["arch"], len(facts["classes"]), None, facts["head"])[0]
    except Exception as error:
        raise OutputError(f"{path}: {facts['arch']} cannot be made into a network here: {first_line(error)}") from None


def _tensor_spec(value: Tensor) -> str:
    return f"{' x '.join(map(str, value.shape)) or 'one value'} {str(value.dtype).removeprefix('torch.')}"


def model_folder(folder: str | Path) -> Path:
    """The folder itself where it holds a `model.json`, else `model/` in it, as in a run."""
    folder = Path(folder).expanduser()
    return folder if (folder / CONFIG_FILE).exists() else folder / "model"


def member_folders(folder: str | Path) -> list[Path]:
    """The folder itself, or, of a folder of folds or seeds, those of its runs.

    Raises:
        OutputError: if not all of its runs are finished, or one has gone.
    """
    folder = Path(folder).expanduser()
    if (model_folder(folder) / CONFIG_FILE).exists():
        return [folder]
    for kind, summary in EXPERIMENT_FILES.items():
        if (folder / summary).exists():
            names = _member_names(folder / summary, kind)
            if gone := [name for name in names if not (model_folder(folder / name) / CONFIG_FILE).exists()]:
                raise OutputError(f"{folder / gone[0]}, which {summary} names, holds no model. Copy it there again.")
            return [folder / name for name in names]
        if done := list(folder.glob(f"{kind}-*/manifest.json")):
            raise OutputError(
                f"{folder} holds {len(done)} finished {kind}s, but no {summary}: not all have ended. Give the same "
                "command with --resume, or name their folders."
            )
    return [folder]


def _member_names(summary: Path, kind: str) -> list[str]:
    """The names of the runs' folders, wherever the whole folder lies now."""
    told = read_json(summary)
    runs = told.get("runs") if isinstance(told, dict) else None
    listed = runs if isinstance(runs, list) else []
    found = [Path(str(run.get("folder"))).name if isinstance(run, dict) else "" for run in listed]
    if not found or not all(re.fullmatch(rf"{kind}-\d{{1,10}}", name) for name in found):
        raise OutputError(f"{summary} names no {kind}s. Give the folder of a finished run.")
    return found
